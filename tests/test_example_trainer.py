"""The example trainer: interrupted and resumed by a real restart it is the same run bit for bit; its flags and ends."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import plot_curves
import resume_helper as kit
from arc_eval import Score
from arc_settings import SettingsError, load_settings
from arc_training import Training
from arc_validation import Progress, evals_due, run_pending
from resumekit.trainer.comparison import compare
from support.example_jobs import forget, go_on, job, load
from support.example_runs import (
    CONFIG,
    TRAINER,
    events,
    example_server,
    fork,
    newest_checkpoint,
    start_anew,
    wait_for,
)
from support.long_tests import long
from support.resume_parts import same


@pytest.fixture(scope="module")
def server():
    return example_server()


@pytest.fixture(scope="module")
def uninterrupted(server, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    code, output = fork(server, run_dir).finish()
    assert code == 0, output
    assert "finished: step 15" in output
    return run_dir


def reached(step: int):
    return lambda event: event["event"] == "step" and event["step"] == step


def in_phase(phase: str):
    return lambda event: event.get("phase") == phase


CUTS = {
    "killed during a step": (signal.SIGKILL, reached(10)),
    "killed during an eval": (signal.SIGKILL, in_phase("full_eval")),
    "killed during a save": (signal.SIGKILL, in_phase("checkpoint")),
    "stopped by TERM during a step": (signal.SIGTERM, reached(7)),
    "stopped by TERM during a save": (signal.SIGTERM, in_phase("checkpoint")),
    "stopped by TERM before the last evals": (signal.SIGTERM, reached(15)),
    "stopped by INT during an eval": (signal.SIGINT, in_phase("full_eval")),
}
STARTED_ANEW = "stopped by INT during an eval"  # from nothing, not forked


# For `make test`; the others are long.
QUICK_CUTS = ("killed during a save",)


@pytest.mark.parametrize(
    "cut", [pytest.param(one, marks=() if one in QUICK_CUTS else pytest.mark.long) for one in CUTS]
)
def test_a_resumed_run_has_the_losses_evals_and_final_state_of_an_uninterrupted_one(
    cut, server, uninterrupted, tmp_path
):
    number, seen = CUTS[cut]
    start = start_anew if cut == STARTED_ANEW else functools.partial(fork, server)
    parent, child = tmp_path / "parent", tmp_path / "child"
    trainer = start(parent)
    wait_for(parent, seen)
    os.kill(trainer.pid, number)
    code, output = trainer.finish()
    assert code == (-9 if number == signal.SIGKILL else 128 + number), output

    resume, step = [], 0  # killed before the first save was complete: starts again
    if list((parent / "checkpoints").glob("*.pt.json")):
        step, checkpoint = newest_checkpoint(parent)
        resume = ["--resume", str(checkpoint)]
    if number != signal.SIGKILL:
        assert step == events(parent, "step")[-1]["step"], "a stop saves the step it finished"
    code, output = start(child, *resume).finish()
    assert code == 0, output
    assert f"[resume] step={step} " in output or not step
    assert compare(child, uninterrupted).differences == []


@pytest.mark.parametrize(
    ("number", "pause_s", "saves"),
    [
        (signal.SIGTERM, 0.1, True),
        long(signal.SIGINT, 0.1, True),
        (signal.SIGINT, 1.2, False),
    ],
)
def test_only_a_person_s_second_ctrl_c_ends_the_trainer_at_once(server, tmp_path, number, pause_s, saves):
    """A scheduler sends TERM to the whole job, and again; a key bounces."""
    config = CONFIG | {"validation": {"fast_eval_every": 1000, "full_eval_every": 1000}}
    config = config | {"training": CONFIG["training"] | {"batch_size": 48, "grad_accum_steps": 40}}  # a step of seconds
    trainer = fork(server, tmp_path / "run", config=config)
    wait_for(tmp_path / "run", in_phase("train"))
    for _ in range(2):
        os.kill(trainer.pid, number)
        time.sleep(pause_s)
    assert trainer.finish()[0] == 128 + number
    assert bool(events(tmp_path / "run", "step")) == bool(events(tmp_path / "run", "checkpoint")) == saves


def test_a_loss_that_is_not_finite_ends_the_run_unsaved_with_one_sentence(server, tmp_path):
    config = CONFIG | {"optimizer": {"lr": 1e30}, "schedule": {"warmup_steps": 1}}
    code, output = fork(server, tmp_path / "run", config=config).finish()
    assert code == 1
    (event,) = events(tmp_path / "run", "nonfinite")
    assert event["what"] in ("loss", "gradient")
    assert f"step {event['step']}: the {event['what']} is not finite" in output
    assert "Traceback" not in output
    assert not list((tmp_path / "run" / "checkpoints").glob(f"*_{event['step']}.pt"))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--droppath_h", "0..1"], "model.droppath_h is '0..1' and must be a probability below 1"),
        (["--config", "missing.json"], "the config 'missing.json' (--config) cannot be read"),
        (["--fast_eval_every", "0"], "validation.fast_eval_every is '0'"),
        (["--gate_full_eval_on_fast_improvement", "maybe"], "'maybe' is neither true nor false"),
        (["--stpe", "3"], "unrecognized arguments: --stpe"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_sentence_with_exit_code_2(flags, sentence, tmp_path):
    done = subprocess.run(
        [sys.executable, str(TRAINER), *flags], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert sentence in done.stderr and "Traceback" not in done.stderr


def test_every_flag_of_the_protocol_is_known():
    shown = subprocess.run([sys.executable, str(TRAINER), "--help"], capture_output=True, text=True, timeout=30).stdout
    section_11 = (
        "--run_id --resume --droppath_h --fast_eval_every --full_eval_every --gate_full_eval_on_fast_improvement "
        "--write_status_json_every_sec --status_json_path --logdir"
    )
    section_13 = (
        "--exp_name --parent_run_id --resume_step --resume --allow_partial --optimizer_policy --schedule_policy "
        "--status_json_path"
    )
    for flag in f"{section_11} {section_13} --config --checkpoint_dir --max_steps".split():
        assert f"\n  {flag} " in shown or f"[{flag} " in shown or f"\n  {flag}\n" in shown, flag


def test_started_by_hand_without_a_kit_environment_it_makes_its_own_run_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RESUMEKIT_")}
    flags = ["--config", "config.json", "--exp_name", "EXP-09", "--max_steps", "2", "--droppath_h", "0..0"]
    done = subprocess.run(
        [sys.executable, str(TRAINER), *flags],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.startswith("EXP-09_")
    assert (run_dir / "checkpoints" / "hrm_arc_step_2.pt").is_file()
    assert json.loads((run_dir / "status.json").read_text())["global_step"] == 2


# In one process: what a checkpoint must hold.


def rewind_carry(name: str):
    """Give one part of every micro-batch's carry the value of an unused one."""

    def change(checkpoint: dict) -> None:
        for carry in checkpoint["carry"]:
            carry[name] = torch.ones_like(carry[name]) if name == "halted" else torch.zeros_like(carry[name])

    return change


LEFT_OUT = {
    "AdamW's moments": lambda c: c["optimizer_state_dict"]["model"].update(state={}),
    "EMA": lambda c: forget(c, "ema_state_dict"),
    "EMA's count": lambda c: c["ema_state_dict"].update(n_averaged=torch.tensor(0)),
    "random numbers": lambda c: forget(c, "rng_state"),
    "carry": lambda c: forget(c, "carry"),
    "carry: slow state": rewind_carry("slow"),
    "carry: fast state": rewind_carry("fast"),
    "carry: segments": rewind_carry("segments"),
    "carry: halted": rewind_carry("halted"),
    "carry: tokens": rewind_carry("tokens"),
    "carry: labels": rewind_carry("labels"),
    "carry: puzzle ids": rewind_carry("puzzle_ids"),
    "step counter": lambda c: c.update(global_step=0),
    "pending evals": lambda c: c["progress"].update(evals_pending=[]),
    "best score": lambda c: c["progress"].update(best_score=None),
    "fast best (the gate)": lambda c: c["progress"].update(fast_best=None, fast_improved=False),
}
CADENCE = CONFIG["validation"] | {"fast_eval_every": 2, "full_eval_every": 3}
SCENARIOS = {
    "gated": CONFIG | {"validation": CADENCE | {"gate_full_eval_on_fast_improvement": True}},
    "open": CONFIG | {"validation": CADENCE},
}


@pytest.fixture(scope="module")
def stopped_with_evals_pending(tmp_path_factory) -> dict[str, tuple[Path, list]]:
    """By scenario: a checkpoint after step 6, its evaluations not done, and what an uninterrupted run sees after it."""
    made = {}
    for name, config in SCENARIOS.items():
        training = job(config)
        go_on(training, 5)
        training.step()
        # Scores that nothing can beat: a trainer that forgets them sees improvements where there are none.
        training.progress.best_score = training.progress.fast_best = 2.0
        training.progress.fast_improved = False
        path = training.save(kit, tmp_path_factory.mktemp(name), 1.0, None)
        made[name] = (path, after_step_6(training))
    return made


def after_step_6(training: Training) -> list:
    seen: list = []
    training.run_pending_evals(lambda event, **numbers: seen.append((event, numbers)), lambda: False)
    return seen + go_on(training, 3)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_checkpoint_from_which_nothing_is_left_out_goes_on_alike(
    scenario, stopped_with_evals_pending, outside_the_kit
):
    path, expected = stopped_with_evals_pending[scenario]
    assert same(after_step_6(load(path, SCENARIOS[scenario])), expected)


@pytest.mark.parametrize("item", LEFT_OUT)
def test_a_checkpoint_without_one_item_goes_on_differently(item, stopped_with_evals_pending, outside_the_kit, tmp_path):
    scenario = "open" if item == "best score" else "gated"
    path, expected = stopped_with_evals_pending[scenario]
    checkpoint = torch.load(path, weights_only=True)
    LEFT_OUT[item](checkpoint)
    torch.save(checkpoint, tmp_path / path.name)
    assert not same(after_step_6(load(tmp_path / path.name, SCENARIOS[scenario])), expected)


def test_bf16_goes_on_alike(tmp_path, outside_the_kit):
    config = CONFIG | {"training": CONFIG["training"] | {"amp": "bf16"}}
    training = job(config)
    go_on(training, 3)
    path = training.save(kit, tmp_path, 1.0, None)
    expected = go_on(training, 3)
    assert same(go_on(load(path, config), 3), expected)


def test_another_batch_size_keeps_the_step_and_takes_new_puzzles(tmp_path, outside_the_kit, capsys):
    training = job()
    go_on(training, 2)
    path = training.save(kit, tmp_path, 1.0, None)
    changed = load(path, CONFIG | {"training": CONFIG["training"] | {"batch_size": 5, "grad_accum_steps": 1}})
    assert "every slot takes a new puzzle" in capsys.readouterr().out
    assert changed.progress.step == 2 and math.isfinite(changed.step().loss)
    assert changed.progress.step == 3


def test_ema_enabled_later_starts_from_the_loaded_weights(tmp_path, outside_the_kit):
    training = job(CONFIG | {"ema": {"enabled": False}})
    for _ in range(2):
        training.step()
    loaded = load(training.save(kit, tmp_path, 1.0, None))
    pairs = zip(loaded.ema.module.parameters(), training.model.parameters(), strict=True)
    assert all(torch.equal(average, weight) for average, weight in pairs)


def test_a_schedule_that_is_reset_is_what_the_config_says_at_the_kept_step(tmp_path, outside_the_kit):
    training = job()
    go_on(training, 6)
    path = training.save(kit, tmp_path, 1.0, None)
    longer = CONFIG | {"training": CONFIG["training"] | {"max_steps": 1000}}
    changed = job(longer)
    changed.load(kit, str(path), allow_partial=False, optimizer_policy="load", schedule_policy="reset")
    expected = [rate * changed.schedule.rate(6) for rate in (1e-3, 1e-2)]
    assert changed.schedule.get_last_lr() == pytest.approx(expected)
    assert changed.schedule.get_last_lr()[0] > training.schedule.get_last_lr()[0]
    assert changed.step().lr == changed.schedule.rate(6) * 1e-3


def test_a_checkpoint_of_other_data_is_said(tmp_path, outside_the_kit, capsys):
    training = job()
    training.step()
    path = training.save(kit, tmp_path, 1.0, None)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["data_state"]["fingerprint"] = "0" * 64
    torch.save(checkpoint, tmp_path / "other.pt")
    load(tmp_path / "other.pt")
    assert "[warn] the data is not what the checkpoint was trained on" in capsys.readouterr().out


def test_an_lr_scale_in_the_checkpoint_is_kept_and_multiplies_every_rate(tmp_path, outside_the_kit):
    training = job()
    go_on(training, 2)
    before = training.schedule.get_last_lr()
    ramp = {"from_step": 2, "steps": 1, "factor": 0.5, "warm_restart": False}
    training.take_lr_scale(kit.ResumeBundle(lr_scale=0.8, lr_ramp=ramp))
    path = training.save(kit, tmp_path, 1.0, None)
    loaded = load(path)
    assert (loaded.lr_scale, loaded.lr_ramp) == (0.8, ramp)
    assert loaded.schedule.get_last_lr() == pytest.approx([0.4 * rate for rate in before])
    loaded.step()
    training.take_lr_scale(kit.ResumeBundle())
    training.step()
    assert loaded.schedule.get_last_lr() == pytest.approx([0.8 * rate for rate in training.schedule.get_last_lr()])


def test_an_eval_changes_neither_random_numbers_nor_modes_and_a_broken_off_one_leaves_no_trace(outside_the_kit):
    training = job()
    for _ in range(3):
        training.step()
    assert training.progress.evals_pending == ["fast"]
    seen: list = []
    state = torch.get_rng_state()
    training.run_pending_evals(lambda *event, **numbers: seen.append(event), lambda: True)
    assert seen == [] and training.progress.evals_pending == ["fast"]
    training.run_pending_evals(lambda *event, **numbers: seen.append(event), lambda: False)
    assert seen == [("eval",), ("eval",)] and training.progress.evals_pending == []
    assert torch.equal(torch.get_rng_state(), state) and training.model.training


def scores(**cells: float):
    """An `evaluate` that gives raw weights these cell accuracies by kind."""
    return lambda kind, weights: Score(0.0, cells[kind], 1.0 - cells[kind], 8, {})


VALIDATION = SimpleNamespace(
    fast_eval_every=2, full_eval_every=4, gate_full_eval_on_fast_improvement=True, best_metric="cell_accuracy",
    best_mode="max",
)  # fmt: skip


def test_the_full_eval_is_left_out_until_a_fast_one_improves(capsys):
    progress, journal = Progress(), []

    def at(step: int, **cells: float):
        progress.step, progress.evals_pending = step, evals_due(step, VALIDATION)
        record = lambda event, **fields: journal.append((event, fields["step"], fields.get("kind")))  # noqa: E731
        return run_pending(progress, VALIDATION, scores(**cells), ("raw",), record)

    assert at(4, fast=0.3, full=0.2) == {"score": 0.2, "weights": "raw"}
    assert at(8, fast=0.3, full=0.9) is None
    assert "full eval of step 8 left out" in capsys.readouterr().out
    at(10, fast=0.4)
    assert at(12, fast=0.1, full=0.1) is None, "open since step 10, and no new best"
    assert [entry for entry in journal if entry[2] == "full"] == [("eval", 4, "full"), ("eval", 12, "full")]
    assert (progress.best_score, progress.best_step, progress.last_full_step) == (0.2, 4, 12)
    assert progress.last_fast == {"step": 12, "cell_accuracy": 0.1}


def test_what_is_told_of_the_best_and_of_the_last_eval_is_the_metric_that_decides():
    import train_arc_full_nova as trainer

    progress, told = Progress(step=4, evals_pending=["fast", "full"]), {}
    journal = lambda event, **fields: told.update({event: fields})  # noqa: E731
    run_pending(progress, VALIDATION, scores(fast=0.3, full=0.2), ("raw",), journal)
    assert progress.last_fast == {"step": 4, "cell_accuracy": 0.3} and told["best"]["score"] == 0.2
    rate = SimpleNamespace(scale_at=lambda step: 1.0, phase=lambda place: "cosine")
    schedule = SimpleNamespace(rate=rate, place=4, get_last_lr=lambda: [0.1])
    cfg = SimpleNamespace(training=SimpleNamespace(max_steps=8), validation=VALIDATION)
    training = SimpleNamespace(progress=progress, schedule=schedule, epoch=0)
    speed = SimpleNamespace(per_second=lambda: 1.0)
    beat = trainer.status_fields("x", cfg, training, speed, trainer.Now("train"))
    assert (beat["best_eval_acc"], beat["best_step"]) == (0.2, 4)


def test_a_smaller_loss_is_better_where_the_config_says_min():
    cfg = SimpleNamespace(**(vars(VALIDATION) | {"best_metric": "loss", "best_mode": "min"}))
    progress = Progress(step=4, best_score=0.5, evals_pending=["full"], fast_improved=True)
    assert run_pending(progress, cfg, scores(full=0.6), ("raw", "ema"), lambda *_, **__: None) == {
        "score": 0.4,
        "weights": "raw",
    }


@pytest.mark.parametrize(
    ("section", "key", "value", "sentence"),
    [
        ("optimizer", "name", "adam", "optimizer.name 'adam' is not known; take 'adamw' or 'lion' or 'sgd'"),
        ("optimizer", "swap_to", "ion", "optimizer.swap_to 'ion' is not known; take 'adamw' or 'lion' or 'sgd'"),
        ("training", "amp", "fp8", "training.amp 'fp8' is not known; take 'off' or 'bf16' or 'fp16'"),
        ("schedule", "tail", "cyclic", "schedule.tail 'cyclic' comes with a later version; for now set it to 'None'"),
        ("training", "grad_noise_sigma", -1, "training.grad_noise_sigma is '-1' and must be a number of at least 0"),
        ("swa", "amplitude", 1.5, "swa.amplitude is '1.5' and must be a number from 0 to 1"),
        ("swa", "cycle_steps", 0, "swa.cycle_steps is '0' and must be a whole number of at least 1"),
        ("model", "droppath_h", "a..0.2", "model.droppath_h is 'a..0.2' and must be a probability below 1"),
        ("model", "droppath_h", "-0.1", "model.droppath_h is '-0.1'"),
        ("model", "seq_len", 900, "must be data.max_grid squared, '100'"),
        ("model", "heads", 3, "must be a multiple of twice model.heads '3'"),
        ("training", "batch_size", True, "must be a whole number of at least 1"),
        ("validation", "best_metric", "bleu", "'bleu' is not measured"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_in_a_sentence(section, key, value, sentence):
    with pytest.raises(SettingsError) as refusal:
        load_settings(None, {(section, key): value})
    assert sentence in str(refusal.value)


def test_the_config_wins_over_the_defaults_and_the_flags_over_the_config(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"training": {"max_steps": 5, "seed": 7}, "recover": {"enabled": True}}))
    cfg = load_settings(str(file), {("training", "max_steps"): 9, ("training", "seed"): None})
    assert (cfg.training.max_steps, cfg.training.seed, cfg.training.batch_size) == (9, 7, 8)


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '{"training": 3}'])
def test_a_config_that_is_no_object_of_sections_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SettingsError):
        load_settings(str(tmp_path / "config.json"), {})


# The picture.


def write_run(
    folder: Path, losses: dict[int, float], parent: str | None = None, parent_step: int | None = None
) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"parent_run_id": parent, "parent_step": parent_step}))
    lines = [json.dumps({"event": "step", "step": step, "loss": loss}) for step, loss in losses.items()]
    evals = [
        json.dumps(
            {"event": "eval", "step": step, "kind": "full", "weights": "raw", "accuracy": 0.0, "cell_accuracy": loss}
        )
        for step, loss in losses.items()
        if step % 2 == 0
    ]
    (folder / "journal.jsonl").write_text("\n".join(["", '{"event":"torn', *lines, *evals, ""]))
    return folder


def test_a_spliced_curve_takes_each_step_from_the_run_that_the_newest_one_came_from(tmp_path):
    write_run(tmp_path / "base", dict.fromkeys(range(1, 8), 1.0))
    write_run(tmp_path / "middle", dict.fromkeys(range(5, 9), 2.0), "base", 4)
    newest = write_run(tmp_path / "newest", dict.fromkeys(range(7, 11), 3.0), "middle", 6)
    curve = plot_curves.spliced(newest)
    assert curve.losses == {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 2.0, 6: 2.0, 7: 3.0, 8: 3.0, 9: 3.0, 10: 3.0}
    assert curve.joints == [4, 6]
    assert curve.tails == [{5: 1.0, 6: 1.0, 7: 1.0}, {7: 2.0, 8: 2.0}], "what was trained and then left behind"
    assert {key[0]: event["cell_accuracy"] for key, event in curve.evals.items()} == {2: 1, 4: 1, 6: 2, 8: 3, 10: 3}


@pytest.mark.long
def test_the_picture_is_a_png_and_a_missing_parent_is_said(tmp_path, capsys):
    run = write_run(tmp_path / "run", {step: 1.0 / step for step in range(1, 9)}, "gone", 0)
    assert plot_curves.main([str(run), "--out", str(tmp_path / "curve.png")]) == 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "has no journal here" in capsys.readouterr().err
    assert plot_curves.main([str(tmp_path / "nothing"), "--out", str(tmp_path / "no.png")]) == 1


def test_the_mean_is_over_as_many_steps_as_its_label_says():
    """It was over 50 points, and of a trainer that tells every twentieth step the label said 50 steps."""
    assert plot_curves.smoothed({1: 1.0, 2: 3.0, 3: 5.0, 4: 7.0}, 2) == [1.0, 2.0, 4.0, 6.0]
    assert plot_curves.smoothed({20: 1.0, 40: 3.0, 80: 5.0, 100: 7.0}, 40) == [1.0, 2.0, 5.0, 6.0], (
        "a gap has no points"
    )
    assert plot_curves.window_of(list(range(1, 2000))) == 50
    assert plot_curves.window_of([*range(20, 20_000, 20), 50_000]) == 1000
    assert plot_curves.window_of(list(range(48))) == 4 and plot_curves.window_of([7]) == 1


def journalled(folder: Path, *events: dict) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    (folder / "journal.jsonl").write_text("\n".join(map(json.dumps, events)))
    return folder


@pytest.mark.parametrize(
    ("told", "panels"),
    [
        ({}, ["training loss"]),
        ({"bleu": 0.3, "chrf": 0.5, "loss": 2.0, "mono_s": 3.0}, ["training loss", "evaluation (fast)"]),
        (
            {"accuracy": 0.1, "cell_accuracy": 0.5, "loss": 2.0, "examples": 8},
            ["training loss", "share right, test pairs (fast)"],
        ),
    ],
)
def test_the_picture_has_a_panel_for_what_was_evaluated_and_none_for_nothing(tmp_path, monkeypatch, told, panels):
    """A trainer of other data got an empty panel, with the lines of the example's puzzles in it."""
    from matplotlib import figure

    drawn: list = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: drawn.extend(self.axes))
    events = [{"event": "step", "step": step, "loss": 1 / step} for step in range(20, 600, 20)]
    evals = [{"event": "eval", "step": step, "kind": "fast", **told} for step in (20, 40)] if told else []
    plot_curves.draw([plot_curves.spliced(journalled(tmp_path / "run", *events, *evals))], tmp_path / "x.png")
    assert [axes.get_ylabel() for axes in drawn] == panels
    labels = [[line.get_label() for line in axes.lines] for axes in drawn]
    assert "run, mean of 40 steps" in labels[0]
    of_arc = [label for label in labels[-1] if "copy the input" in str(label)]
    assert len(of_arc) == (2 if "cell_accuracy" in told else 0)
    if "bleu" in told:
        assert labels[1] == ["run: bleu (raw)", "run: chrf (raw)"]


def test_what_a_parent_trained_beyond_the_resume_is_in_the_picture(tmp_path, monkeypatch):
    from matplotlib import figure

    drawn: list = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: drawn.extend(self.axes))
    write_run(tmp_path / "base", dict.fromkeys(range(1, 8), 1.0))
    newest = write_run(tmp_path / "newest", dict.fromkeys(range(5, 9), 2.0), "base", 4)
    monkeypatch.setattr(plot_curves, "_draw_baseline", lambda axes: None)
    plot_curves.draw([plot_curves.spliced(newest)], tmp_path / "x.png")
    (tail,) = (line for line in drawn[0].lines if line.get_label() == "trained by a parent, not gone on from")
    assert list(tail.get_xdata()) == [5, 6, 7] and list(tail.get_ydata()) == [1.0] * 3
