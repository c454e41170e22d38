"""What a log tells in the format of a framework: resumekit.run.log_reader."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resumekit.process.train_log import _ESCAPES
from resumekit.run import log_patterns, log_reader
from resumekit.run.log_reader import LogReader
from support.places import ROOT

LOGS = ROOT / "tests" / "recorded" / "logs"
NANOGPT = "iter {}: loss {}, time 12.31ms, mfu 3.02%\n"
BAR = "\r {}%|##        | {}/{} [00:10<06:30,  1.50it/s]"
DICT = "{{'loss': '{}', 'grad_norm': '1.5', 'learning_rate': '0.0003', 'epoch': '1.25'}}\n"


def recorded(name: str) -> bytes:
    return (LOGS / f"{name}.log").read_bytes()


def told(log: bytes | str, name: str = "auto", sizes: tuple[int, ...] = (1 << 18,)) -> list[tuple[str, dict[str, Any]]]:
    reader, found = LogReader(name, {}, _ESCAPES), []
    data = log.encode() if isinstance(log, str) else log
    while data:
        for size in sizes:
            found += reader.feed(data[:size])
            data = data[size:]
    return found + reader.rest() + reader.rest(is_last=True)


def curve(found: list[tuple[str, dict[str, Any]]], name: str = "loss") -> dict[int, Any]:
    """Return step -> value of all that was told of steps."""
    return {one["step"]: one[name] for kind, one in found if kind in ("step", "values") and name in one}


@pytest.mark.parametrize("sizes", [(1 << 18,), (61,), (1, 200, 7)])
def test_a_trainers_line_without_a_step_has_that_of_the_bar_that_is_drawn_again_behind_it(
    sizes: tuple[int, ...],
) -> None:
    """tqdm draws ten times a second: before the line of step 5 its bar has shown 3."""
    found = told(recorded("hf"), sizes=sizes)
    state = json.loads((LOGS / "trainer_state.json").read_text())
    history = [one for one in state["log_history"] if "loss" in one]
    assert curve(found) == {one["step"]: pytest.approx(one["loss"], rel=1e-3) for one in history}
    assert curve(found, "lr") == {one["step"]: pytest.approx(one["learning_rate"], rel=1e-3) for one in history}
    assert [one["step"] for kind, one in found if kind == "eval"] == [10, 20, 30]
    assert {one["max_steps"] for _, one in found if "max_steps" in one} == {30}
    steps = [one["step"] for kind, one in found if kind in ("step", "values")]
    assert steps == sorted(steps) and steps[-1] == 30, "the bars of the evaluations are no steps"


def test_a_step_of_a_bar_says_so_and_a_line_that_is_printed_once_does_not() -> None:
    found = told(recorded("hf"))
    bars = {one["step"] for kind, one in found if kind == "step"}
    assert bars and all(one.get("bar") is True for kind, one in found if kind == "step")
    assert not any("bar" in one for kind, one in found if kind == "values")
    accelerate = "\r {}%|##        | {}/200 [00:10<06:30,  1.50it/s, lr=0.00101, loss=2.1]"
    found = told("".join(accelerate.format(at // 2, at) for at in range(1, 9)) + "\n", "accelerate")
    assert [one["step"] for _, one in found] == [*range(1, 9)]
    assert all(one["bar"] is True and one["lr_within"] == 5e-6 for _, one in found)
    assert not any("bar" in one for _, one in told("".join(NANOGPT.format(at, 2.5) for at in range(9)), "nanogpt"))


def test_a_nan_that_the_trainer_leaves_out_of_the_mean_is_seen() -> None:
    """logging_nan_inf_filter, which is on: the mean is 0 then, and the norm of the gradient is not finite."""
    found = curve(told(recorded("hf_nan")))
    assert [step for step, loss in found.items() if math.isnan(loss)] == [20, 25, 30]
    assert math.isfinite(curve(told(BAR.format(10, 1, 9) + "\n" + DICT.format("0.0") + BAR.format(22, 2, 9), "hf"))[2])


def test_an_evaluation_before_the_first_step_and_its_bar_are_no_training() -> None:
    found = told(recorded("hf_info"))
    assert [one["step"] for kind, one in found if kind == "eval"] == [0, 10, 20, 30]
    assert min(one["step"] for kind, one in found if kind == "step") > 0


def test_a_bar_of_another_total_before_the_first_values_is_left_for_that_of_the_training() -> None:
    evaluation = "".join(BAR.format(n, n, 8) for n in range(1, 9)) + "\n"
    training = "".join(BAR.format(n, n, 500) for n in range(1, 11)) + "\r" + DICT.format("3.2") + BAR.format(2, 10, 500)
    found = told(evaluation + training + BAR.format(2, 11, 500) + "\n", "hf")
    assert curve(found) == {10: 3.2} and found[-1][1]["step"] == 11


@pytest.mark.parametrize("word", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_is_of_the_step_beside_it_or_of_none(word: str) -> None:
    lines = [DICT.format(word).replace("1.25", epoch) for epoch in ("1.25", "1.5")]
    with_bar = told(BAR.format(2, 10, 500) + "\r" + lines[0] + BAR.format(2, 10, 500) + "\r", "hf")
    assert curve(with_bar) == {10: pytest.approx(float(word), nan_ok=True)}
    assert [one for kind, one in told(lines[0], "hf") if kind == "nonfinite"] == [], "one telling is not sure"
    assert [one for kind, one in told("".join(lines), "hf") if kind == "nonfinite"] == [{"after": None}]
    healed = told(lines[0] + DICT.format("2.0") + lines[1], "hf")
    assert [kind for kind, _ in healed if kind == "nonfinite"] == []


def test_lightning_tells_batches_losses_and_the_steps_that_it_saves() -> None:
    reader = LogReader("auto", {}, _ESCAPES)
    found = reader.feed(recorded("lightning"))
    assert [one["step"] for kind, one in found if kind == "step"] == [12, 24], "a batch is no step"
    assert [(one["step"], one["metric"]) for kind, one in found if kind == "best"] == [
        (12, "val_loss"),
        (24, "val_loss"),
    ]
    ((kind, live),) = reader.rest()
    assert (kind, live["epoch"], live["batch"], live["batches"]) == ("live", 1, 12, 12) and live["loss"] > 0
    assert any(b"Validation" in line for line in reader.lines), "a bar of the evaluation shows that it goes on"


@pytest.mark.parametrize("name", ["lightning", "lightning_rich"])
def test_a_bar_of_lightning_is_read_in_tqdms_form_and_in_richs(name: str) -> None:
    reader, losses = LogReader("auto", {}, _ESCAPES), set()
    log = recorded(name)
    for at in range(0, len(log), 400):
        found = reader.feed(log[at : at + 400]) + reader.rest()
        losses |= {one["loss"] for kind, one in found if kind == "live" and "loss" in one}
    assert len(losses) > 10


TQDM_BAR = "Epoch 0: {}%|#####     | {}/16 [00:00<00:00, 41.9it/s, v_num=0, train_loss=nan.0]\r"
RICH_BAR = "Epoch 0/4  ━━━━━━╸━━━━ {1}/16 0:00:00 • 0:00:01 41.87it/s v_num: 0.000 train_loss: nan\r"


@pytest.mark.parametrize("form", [TQDM_BAR, RICH_BAR])
def test_a_nan_in_a_bar_without_a_step_counts_in_two_batches_not_in_one_that_is_drawn_twice(form: str) -> None:
    first, second = (form.format(50, batch) for batch in (8, 9))
    assert [kind for kind, _ in told(first * 3, "lightning") if kind == "nonfinite"] == []
    assert [one for kind, one in told(first + second * 2, "lightning") if kind == "nonfinite"] == [{"after": None}]


@pytest.mark.parametrize(
    ("name", "losses", "evaluations"),
    [
        ("nanogpt", {0: 4.2, 10: 3.2, 20: 2.2}, {0: {"val_loss": 4.25}, 20: {"val_loss": 2.25}}),
        ("torchtitan", {1: 8.0, 10: 7.1, 20: 6.1, 30: 5.1, 40: 4.1}, {20: {"val_loss": 6.0}, 40: {"val_loss": 4.0}}),
        ("megatron", {100: 6.3, 500: 5.5}, {200: {"val_lm_loss": 6.2, "val_lm_loss_PPL": 446.9}}),
        ("accelerate", {}, {20: {"perplexity": 155.48622744818516, "eval_loss": 5.046557158231735}}),
    ],
)  # fmt: skip
def test_steps_losses_and_evaluations_are_read(name: str, losses: dict, evaluations: dict) -> None:
    found = told(recorded(name))
    assert {step: loss for step, loss in curve(found).items() if step in losses} == losses
    scores = {one["step"]: one["metrics"] for kind, one in found if kind == "eval"}
    assert {step: scores[step] for step in evaluations} == evaluations


@pytest.mark.parametrize(
    ("name", "total"), [("torchtitan", 40), ("megatron", 500), ("accelerate", 40), ("nanogpt", None)]
)
def test_how_many_steps_there_will_be_is_told_once(name: str, total: int | None) -> None:
    assert [one["max_steps"] for _, one in told(recorded(name)) if "max_steps" in one] == [total] * (total is not None)


PREFIXES = {"torchrun": "[default{}]:", "the error's": "[rank{}]:", "mpirun": "[1,{}]<stdout>:", "srun": "{}: "}


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=list(PREFIXES))
def test_of_several_ranks_one_makes_the_curve_and_a_nan_of_any_counts(prefix: str) -> None:
    def line(rank: int, step: int, loss: str) -> str:
        return prefix.format(rank) + NANOGPT.format(step, loss)

    steps = [line(1, 1, "2.0") + line(0, 1, "3.0"), line(0, 2, "3.1") + line(1, 2, "2.1")]
    found = told("".join(steps))
    assert curve(found) == {1: 2.0, 2: 2.1}, "of the rank that was first"
    found = told("".join([*steps, line(0, 3, "nan"), line(1, 3, "2.2"), line(0, 4, "nan"), line(1, 4, "2.3")]))
    assert [step for step, loss in curve(found).items() if math.isnan(loss)] == [3, 4]
    assert [one["step"] for kind, one in found if kind == "nonfinite"] == [3]
    healed = told("".join([*steps, line(0, 3, "nan"), line(0, 4, "3.0"), line(1, 4, "2.3"), line(1, 5, "2.4")]))
    assert not any(map(math.isnan, curve(healed).values())) and "nonfinite" not in dict(healed)


def test_a_nan_of_a_rank_whose_lines_come_last_counts() -> None:
    assert [one["step"] for kind, one in told(recorded("ranks")) if kind == "nonfinite"] == [8]


def test_a_successor_goes_on_where_the_reader_before_it_stood() -> None:
    log = recorded("hf").replace(b"[00:0", b"[00:0")
    for at in range(0, len(log), 173):
        first = LogReader("auto", {}, _ESCAPES)
        before = first.feed(log[:at]) + first.rest()
        account = json.loads(json.dumps(first.account))
        second = LogReader("auto", account, _ESCAPES)
        # The bytes of a line that is not whole are read again.
        behind = max(log.rfind(b"\n", 0, at), log.rfind(b"\r", 0, at)) + 1
        found = before + second.feed(log[behind:]) + second.rest(is_last=True)
        assert [kind for kind, _ in found].count("format") == 1
        assert set(curve(found)) <= {5, 10, 15, 20, 25, 30} and len(curve(found)) >= 5


def test_what_was_looked_at_is_bounded_and_a_log_without_a_format_costs_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_reader, "LOOKED_AT_BYTES", 1000)
    reader = LogReader("auto", {}, _ESCAPES)
    reader.feed(b"step 1 loss 2\n" * 100)
    assert reader.is_over and reader.feed((NANOGPT.format(1, 2.0) * 3).encode()) == []
    assert LogReader("auto", reader.account, _ESCAPES).is_over


@pytest.mark.parametrize(
    "saved",
    [
        None, [], {"format": "x"}, {"format": ["hf"], "rank": 3, "bad_ranks": "ab", "step": -1},
        {"format": "hf", "rank": "\ud800", "bad_ranks": ["\ud800"], "total": "9"},
    ],
)  # fmt: skip
def test_an_account_of_another_making_is_no_harm(saved: Any) -> None:
    reader = LogReader("auto", saved, _ESCAPES)
    reader.feed(recorded("hf"))
    json.dumps(reader.account)


def test_scores_by_patterns_of_ones_own_are_of_the_step_before_them() -> None:
    patterns = log_patterns.compiled({"step": "step ([0-9]+)"})
    scores = log_patterns.compiled({"eval": "val_acc ([0-9.]+)", "best": "best so far ([0-9.]+)"})
    lines = b"val_acc 0.1\nstep 10 loss 2\nval_acc 0.5\nstep 20 loss 1, val_acc 0.6\nbest so far 0.6\n"
    found = [
        (one["event"], one["step"], one["score"]) for one in log_patterns.found_scores(lines, scores, patterns, None)
    ]
    assert found == [("eval", 10, 0.5), ("eval", 20, 0.6), ("best", 20, 0.6)]


HOSTILE = [
    b"{'loss': " + b"'learning_rate': " * 60_000, b"{'loss': \n" * 100_000, b"Epoch 0" + b", v_num" * 150_000,
    b"step: 1  loss: " * 70_000, b"iteration 1/ " * 80_000, b"[default0]:" * 90_000, b"0: " * 330_000,
    b" 3%|" * 250_000,
    b"'eval_a': " * 100_000 + b"\n", (b"{'eval_" + b"a" * 4000 + b"\n") * 250,
    (b"Epoch 0, global step 1: '" + b"a" * 4000 + b"\n") * 250,
]  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("name", ["auto", *log_reader.FORMATS])
def test_a_hostile_megabyte_costs_no_time(name: str, hostile: bytes) -> None:
    started = time.process_time()
    told(hostile, name)
    assert time.process_time() - started < 1.5


PIECES = [
    b"\r", b"\n", b"\x1b[A", b"[default0]:", b"\xff", b"{'eval_loss': '",
    b"{'loss': 'nan', 'learning_rate': '1', 'epoch': 'x'}",
    b"Epoch 0: 5%|#| 1/2 [", b" 3%|#| 1/2 [", b" 3%|#| 99999999999999999999/2 [", b"iter 3: loss nan, time 1ms, mfu 1%",
    b"step: 10  loss:  nan  memory: 1GiB(1%)  tps: 1", b"validate step: 10  loss:  nan", b"epoch 1: {'a': 1e999}",
    b" Total optimization steps = 9", b"iteration  1/ 5 | consumed samples: 1 | lm loss: NAN |",
    b"validation loss at iteration 3 | lm loss value: x | ", b"Epoch 0, global step 3: 'val' reached nan (best nan)",
    b" - INFO - m -  Total optimization steps = 3",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=25), st.sampled_from(["auto", *log_reader.FORMATS]))
def test_whatever_comes_is_read_without_harm(pieces: list[bytes], name: str) -> None:
    found = told(b"".join(pieces), name)
    assert all(0 <= one["step"] < 10**15 for _, one in found if one.get("step") is not None)


def test_of_a_bar_that_is_drawn_twice_at_a_step_the_second_drawing_has_its_loss() -> None:
    """tqdm: `update` draws the step with the loss of the one before, `set_postfix` with its own."""
    reader, found = LogReader("accelerate", {}, _ESCAPES), []
    for step in (1, 2, 3):
        bar = f" {step}%|#    | {step}/9 [00:0{step}<00:09, 1.0it/s"
        for loss in (step - 1, step):
            found += reader.feed(f"\r{bar}, loss=0.{loss}]".encode()) + reader.rest()
    found += reader.feed(b"\n") + reader.rest(is_last=True)
    assert {one["step"]: one["loss"] for kind, one in found if kind == "step"} == {1: 0.1, 2: 0.2, 3: 0.3}
    standing = LogReader("accelerate", {}, _ESCAPES)
    standing.feed(b"\r 1%|#    | 1/9 [00:01<00:09, 1.0it/s, loss=0.1]\r")
    assert [standing.rest() for _ in range(3)][-1][0][1]["step"] == 1
