"""What the protocol changes in the example: an optimizer swap, fp16, noise, DropPath, a rule head, an SWA tail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from arc_describe import describe
from arc_settings import SettingsError
from arc_start import starting_step, step_in_name
from hrm_optim import kind_of, set_hyperparameters
from resumekit.trainer.averages import STALL_FAST_EVALS
from support.example_jobs import forget, go_on, job, kit, load, save, with_changes
from support.example_runs import CONFIG, example_server
from support.long_tests import every_fourth
from support.resume_parts import same

pytestmark = pytest.mark.usefixtures("outside_the_kit")


# Each item of the state that these changes bring, left out at a load.

CADENCE = {"fast_eval_every": 2, "full_eval_every": 3}
NOT_YET = 10**6
SWITCHES = with_changes(
    data={"max_grid": 4},  # small: half precision is slow on a CPU
    model={"seq_len": 16, "hidden_size": 16, "droppath_h": "0..0.3", "aux_rule_head": True},
    training={"amp": "fp16", "grad_noise_sigma": 0.01},
    optimizer={"name": "lion", "swap_weight_decay": 1.0},
    swa={"enabled": True, "start_step": 4, "cycle_steps": 3, "amplitude": 0.5},
    validation=CADENCE,
)
STALL = with_changes(swa={"enabled": True, "start_step": NOT_YET, "amplitude": 0.5}, validation=CADENCE)
SGD = with_changes(optimizer={"name": "sgd"}, validation=CADENCE)
# By scenario: the config, and what the progress says after step 6, before its evaluations.
SCENARIOS: dict[str, tuple[dict, dict[str, Any]]] = {
    "switches": (SWITCHES, {"swap_from_step": 3}),
    "stall": (STALL, {"fast_stalled": STALL_FAST_EVALS, "fast_best": -1.0}),
    "sgd": (SGD, {}),
}
LEFT_OUT = {
    "Lion's momentum": ("switches", lambda c: c["optimizer_state_dict"]["model"].update(state={})),
    "SGD's momentum": ("sgd", lambda c: c["optimizer_state_dict"]["model"].update(state={})),
    "scaler": ("switches", lambda c: forget(c, "scaler_state_dict")),
    "scaler: scale": ("switches", lambda c: c["scaler_state_dict"].update(scale=2.0**16)),
    "scaler: steps since it changed": ("switches", lambda c: c["scaler_state_dict"].update(_growth_tracker=0)),
    "rule head": ("switches", lambda c: c["model_state_dict"]["rule_head.weight"].zero_()),
    "random numbers (DropPath)": ("switches", lambda c: forget(c, "rng_state")),
    "step counter (noise)": ("switches", lambda c: c.update(global_step=5)),
    "swap_from_step (weight decay)": ("switches", lambda c: forget(c, "progress", "swap_from_step")),
    "SWA": ("switches", lambda c: forget(c, "swa_state_dict")),
    "SWA's count": ("switches", lambda c: c["swa_state_dict"].update(n_averaged=torch.tensor(5))),
    "SWA's beginning": ("switches", lambda c: c["progress"].update(swa_from_step=3)),
    "stalled fast evals": ("stall", lambda c: forget(c, "progress", "fast_stalled")),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> dict[str, tuple[Path, list]]:
    """By scenario: a checkpoint after step 6, its evaluations not done, and what an uninterrupted run sees after it."""
    made = {}
    for name, (config, progress) in SCENARIOS.items():
        training = job(config)
        if training.scaler:  # as after two overflows
            training.scaler.load_state_dict(training.scaler.state_dict() | {"scale": 2.0**14})
        go_on(training, 5)
        training.step()
        vars(training.progress).update(progress)
        set_hyperparameters(training.optimizers, training.cfg.optimizer, swapped=bool(progress.get("swap_from_step")))
        path = save(training, tmp_path_factory.mktemp(name))
        made[name] = (path, after_step_6(training))
    return made


def after_step_6(training) -> list:
    seen: list = []
    training.run_pending_evals(lambda event, **numbers: seen.append((event, numbers)), lambda: False)
    return [*seen, *go_on(training, 3), vars(training.progress)]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_checkpoint_from_which_nothing_is_left_out_goes_on_alike(scenario, stopped):
    path, expected = stopped[scenario]
    assert same(after_step_6(load(path, SCENARIOS[scenario][0])), expected)


@pytest.mark.parametrize("item", every_fourth(LEFT_OUT))
def test_a_checkpoint_without_one_item_goes_on_differently(item, stopped, tmp_path):
    scenario, leave_out = LEFT_OUT[item]
    path, expected = stopped[scenario]
    checkpoint = torch.load(path, weights_only=True)
    leave_out(checkpoint)
    torch.save(checkpoint, tmp_path / path.name)
    assert not same(after_step_6(load(tmp_path / path.name, SCENARIOS[scenario][0])), expected)


# An optimizer swap.

PLANNED = with_changes(optimizer={"swap_at": 4, "swap_to": "lion", "weight_decay": 0.1, "swap_weight_decay": 0.01})


def test_a_running_process_does_not_swap_in_the_middle():
    training = job(PLANNED)
    go_on(training, 5)
    assert kind_of(training.optimizers) == training.progress.optimizer == "adamw"
    assert training.progress.swap_from_step is None


def test_a_swap_happens_once_and_a_later_resume_keeps_the_new_optimizers_state(tmp_path, capsys):
    before = job(PLANNED)
    go_on(before, 5)
    swapped = load(save(before, tmp_path / "a"), PLANNED, begins_at=5, optimizer_policy="reset")
    assert "swap: lion takes over from adamw at step 5" in capsys.readouterr().out
    assert (swapped.progress.optimizer, swapped.progress.swap_from_step) == ("lion", 5)
    assert swapped.optimizers["model"].param_groups[0]["weight_decay"] == 0.01
    assert swapped.schedule.get_last_lr() == before.schedule.get_last_lr(), "the schedule keeps its phase"
    go_on(swapped, 2)
    path = save(swapped, tmp_path / "b")
    expected = go_on(swapped, 2)
    later = load(path, PLANNED, begins_at=7)
    assert "takes over" not in capsys.readouterr().out
    assert (later.progress.swap_from_step, later.optimizers["model"].param_groups[0]["weight_decay"]) == (5, 0.01)
    assert same(go_on(later, 2), expected)


# fp16.

STILL = with_changes(  # nothing is drawn at random: then an attempt more or less changes nothing
    model={"dropout": 0.0, "halt_exploration": 0.0}, training={"amp": "fp16"}
)


def test_an_attempt_that_overflows_under_fp16_is_no_step():
    scale = 2.0**24
    overflowing, calm = job(STILL), job(STILL)
    overflowing.scaler.load_state_dict(overflowing.scaler.state_dict() | {"scale": scale})
    assert overflowing.step().not_finite is None
    found = overflowing.scaler.get_scale()
    assert found < scale, "it overflowed, and the scale was halved"
    assert overflowing.progress.step == 1
    states = overflowing.optimizers["model"].state.values()
    assert {int(state["step"]) for state in states} == {1}
    assert int(overflowing.ema.n_averaged) == 1
    calm.scaler.load_state_dict(calm.scaler.state_dict() | {"scale": found})
    calm.step()
    assert same(overflowing.model.state_dict(), calm.model.state_dict())
    assert same([c.state_dict() for c in overflowing.carries], [c.state_dict() for c in calm.carries])


def test_gradients_that_overflow_at_every_scale_end_the_run():
    training = job(STILL)
    make = training._think

    def think_with_infinity() -> float:
        loss = make()
        training.model.answer.weight.grad.fill_(float("inf"))
        return loss

    training._think = think_with_infinity
    weights = [weight.detach().clone() for weight in training.model.parameters()]
    outcome = training.step()
    assert outcome.not_finite == "gradient" and training.progress.step == 0
    assert same(list(training.model.parameters()), weights)


def test_an_infinite_gradient_of_the_puzzles_alone_keeps_both_optimizers_from_moving():
    training = job(STILL)
    make = training._think

    def once_infinite() -> float:
        loss = make()
        training._think = make
        training.model.puzzles.weight.grad._values()[0, 0] = float("inf")
        return loss

    training._think = once_infinite
    scale = training.scaler.get_scale()
    assert training.step().not_finite is None
    assert training.scaler.get_scale() <= scale / 2
    assert training.progress.step == 1 and bool(training.model.puzzles.weight.isfinite().all())


# The SWA tail.


def tail(**keys: Any) -> dict:
    swa = {"enabled": True, "start_step": 4, "start_on_stall": False, "amplitude": 0.2, "cycle_steps": 3} | keys
    return with_changes(swa=swa, validation={"fast_eval_every": 100, "full_eval_every": 100})


def weights_of(training) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in training.model.parameters()]


def test_swa_collects_where_the_cycle_is_lowest_and_averages_what_it_collected():
    training, collected, rates = job(tail()), [], []
    plain = job(with_changes())
    for step in range(1, 11):
        rates.append(training.step().lr)
        if step in (4, 7, 10):
            collected.append(weights_of(training))
    assert training.progress.swa_from_step == 4 and int(training.swa.n_averaged) == 3
    for average, *parts in zip(training.swa.module.parameters(), *collected, strict=True):
        torch.testing.assert_close(average, torch.stack(parts).mean(0))
    shape = [plain.schedule.rate(step) * 1e-3 for step in range(10)]
    assert rates[:4] == shape[:4]
    cycle = [0.8, 1.2 - 0.4 / 3, 1.2 - 0.4 / 3] * 2  # a cycle of 3 has its top between two steps
    assert rates[4:] == pytest.approx([rate * factor for rate, factor in zip(shape[4:], cycle, strict=True)])


def test_swa_weights_are_saved_and_evaluated_from_the_beginning_of_their_tail_on(tmp_path):
    training = job(tail() | {"validation": CONFIG["validation"] | {"fast_eval_every": 3, "full_eval_every": 100}})
    seen: list = []

    def note(fields: dict) -> None:
        seen.append((fields["step"], fields["weights"]))

    for _ in range(6):
        training.step()
        training.run_pending_evals(lambda event, **fields: note(fields), lambda: False)
        if training.progress.step in (3, 6):
            save(training, tmp_path)
    assert seen == [(3, "raw"), (3, "ema"), (6, "raw"), (6, "ema"), (6, "swa")]
    manifests = [json.loads((tmp_path / f"hrm_arc_step_{step}.pt.json").read_text()) for step in (3, 6)]
    assert [manifest["weights"] for manifest in manifests] == [["raw", "ema"], ["raw", "ema", "swa"]]


def test_swa_weights_that_score_best_are_named_as_the_best(monkeypatch, tmp_path):
    """And are the ones that a snapshot of this best holds, by the model's own names. Protocol §3, §8."""
    import arc_training
    from resumekit.checkpoint.weights_extract import extract

    training = job(tail(start_step=0))
    training.progress.evals_pending = ["full"]
    plain = arc_training.evaluate

    def evaluate(model, *args, **kwargs):
        score = plain(model, *args, **kwargs)
        return score.__class__(**(vars(score) | {"cell_accuracy": float(model is training.swa.module)}))

    monkeypatch.setattr(arc_training, "evaluate", evaluate)
    training.load(kit, None, allow_partial=False, optimizer_policy="load", schedule_policy="load")
    best = training.run_pending_evals(lambda *_, **__: None, lambda: False)
    assert best == {"score": 1.0, "weights": "swa"} and training.progress.best_weights == "swa"
    models = {"raw": training.model, "ema": training.ema.module, "swa": training.swa.module}
    for number, model in enumerate(models.values()):
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, number)
    training.save(kit, tmp_path, 1.0, best)
    known = json.loads((tmp_path / "hrm_arc_best.pt.json").read_text())
    assert (known["best_weights"], known["best_score"], known["weights"]) == ("swa", 1.0, ["raw", "ema", "swa"])
    for kind, model in models.items():
        with open(tmp_path / "hrm_arc_best.pt", "rb") as file:
            said = extract(tmp_path / f"{kind}.pt", kind, known["sha256"], file.fileno())
        weights = torch.load(tmp_path / f"{kind}.pt", weights_only=True)
        assert same(weights, dict(model.state_dict())) and said["from_raw"] == []
    assert not same(dict(training.model.state_dict()), weights)


def test_swa_that_begins_at_an_evaluation_takes_its_first_weights_and_rate_there():
    config = tail(start_step=NOT_YET, start_on_stall=True)
    training = job(config | {"validation": CONFIG["validation"] | {"fast_eval_every": 3, "full_eval_every": 100}})
    for _ in range(3):
        training.step()
    training.progress.fast_stalled, training.progress.fast_best = STALL_FAST_EVALS, -1.0
    rate = training.schedule.get_last_lr()[0]
    training.run_pending_evals(lambda *_, **__: None, lambda: False)
    assert training.progress.swa_from_step == 3
    assert training.schedule.get_last_lr()[0] == pytest.approx(0.8 * rate)
    assert same(list(training.swa.module.parameters()), weights_of(training))


def test_swa_enabled_later_begins_at_the_resume_from_the_loaded_weights(tmp_path):
    training = job(with_changes(ema={"enabled": False}))
    for _ in range(6):
        training.step()
    path = save(training, tmp_path)
    loaded = load(path, tail())
    assert loaded.progress.swa_from_step == 6 and int(loaded.swa.n_averaged) == 1
    assert same(list(loaded.swa.module.parameters()), weights_of(training))
    assert loaded.schedule.get_last_lr()[0] == pytest.approx(0.8 * training.schedule.get_last_lr()[0])
    waits = load(path, tail(start_step=8))
    assert waits.progress.swa_from_step is None and list(waits.weights) == ["raw", "ema"]


def test_swa_disabled_and_enabled_again_begins_anew(tmp_path):
    training = job(tail())
    for _ in range(5):
        training.step()
    without = load(save(training, tmp_path / "a"))
    assert without.progress.swa_from_step is None
    assert without.schedule.get_last_lr()[0] == pytest.approx(1e-3 * without.schedule.rate._shape(5))
    without.step()
    again = load(save(without, tmp_path / "b"), tail())
    assert again.progress.swa_from_step == 6 and int(again.swa.n_averaged) == 1


# Where a run begins, and what it would be.


def test_the_step_is_read_from_the_plan_else_from_the_command_line_the_name_or_the_manifest(tmp_path, monkeypatch):
    pattern = "hrm_arc_step_{step}.pt"
    assert starting_step(None, 7, pattern) == starting_step("", None, pattern) == 0, "a fresh start"
    checkpoint = str(tmp_path / "hrm_arc_step_400.pt")
    assert starting_step(checkpoint, None, pattern) == 400
    assert starting_step(checkpoint, 7, pattern) == 7
    best = tmp_path / "hrm_arc_best.pt"
    assert starting_step(str(best), None, pattern) is None
    best.with_name("hrm_arc_best.pt.json").write_text('{"step": 350}')
    assert starting_step(str(best), None, pattern) == 350
    (tmp_path / "plan.json").write_text('{"version": 1, "step": 300}')
    monkeypatch.setenv("RESUMEKIT_PLAN", str(tmp_path / "plan.json"))
    assert starting_step(checkpoint, 7, pattern) == 300
    (tmp_path / "plan.json").write_text('{"version": 1}')
    assert starting_step(checkpoint, None, pattern) == 400, "a plan that says no step"


def test_a_description_wants_the_package_of_the_optimizer_that_it_describes(monkeypatch):
    monkeypatch.setitem(sys.modules, "lion_pytorch", None)
    cfg = job(PLANNED).cfg
    assert describe(cfg, 3, None)["step"] == 3
    with pytest.raises(SettingsError, match="needs the package lion-pytorch"):
        describe(cfg, 4, None)


@pytest.mark.parametrize("content", ["", "[]", '{"step": "4"}', '{"step": -1}', "[" * 100_000, None])
def test_a_plan_that_cannot_be_used_is_refused_in_a_sentence(content, tmp_path, monkeypatch):
    plan = tmp_path / "plan.json"
    plan.mkdir() if content is None else plan.write_text(content)
    monkeypatch.setenv("RESUMEKIT_PLAN", str(plan))
    with pytest.raises(SettingsError, match=r"the plan '.*plan\.json' \(RESUMEKIT_PLAN\) cannot be used"):
        starting_step("hrm_arc_step_4.pt", None, "hrm_arc_step_{step}.pt")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("hrm_arc_step_40000.pt", 40000),
        ("hrm_arc_step_40000.pt.json", None),
        ("hrm_arc_step_.pt", None),
        ("hrm_arc_step_-1.pt", None),
        ("hrm_arc_step_４.pt", None),
        ("xhrm_arc_step_4.pt", None),
        (f"hrm_arc_step_{'9' * 16}.pt", None),
    ],
)
def test_a_step_in_a_name_matches_the_pattern_from_start_to_end(name, step):
    assert step_in_name(name, "hrm_arc_step_{step}.pt") == step


def described(folder: Path, config: dict, *flags: str, code: int = 0) -> Any:
    """Run `--describe` in an empty folder; return what it printed."""
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "cwd").mkdir(exist_ok=True)
    flags = ("--describe", "--config", str(folder / "config.json"), *flags)
    done = subprocess.run(
        [sys.executable, *example_server().command("train_arc_full_nova", *flags)[1:]],
        cwd=folder / "cwd", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert os.listdir(folder / "cwd") == [], "no folder is touched"
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


def test_a_description_has_the_parameters_and_rates_of_the_training_that_it_describes(tmp_path):
    config = tail() | {"model": CONFIG["model"] | {"aux_rule_head": True}}
    training = job(config)
    for _ in range(6):
        training.step()
    path = save(training, tmp_path / "checkpoints")
    found = described(tmp_path, config | {"training": CONFIG["training"] | {"device": "cuda"}}, "--resume", str(path))
    loaded = load(path, config)
    assert found["step"] == 6 and set(found) == {"parameters", "buffers", "learning_rates", "step"}
    names = [(name, list(weight.shape)) for name, weight in loaded.model.named_parameters()]
    assert [(row["name"], row["shape"]) for row in found["parameters"]] == names
    roles = {row["name"]: (row["optimizer"], row["group"]) for row in found["parameters"]}
    assert roles.pop("puzzles.weight") == ("puzzles", 0) and set(roles.values()) == {("model", 0)}
    seen = {"model": [], "puzzles": []}
    for _ in range(3):
        for name, rate in zip(seen, loaded.schedule.get_last_lr(), strict=True):
            seen[name].append(rate)
        loaded.step()
    assert found["learning_rates"] == {name: [rates] for name, rates in seen.items()}


def test_a_description_of_a_fresh_run_begins_at_0_and_a_checkpoint_without_a_step_is_asked_for_it(tmp_path):
    fresh = described(tmp_path, CONFIG)
    assert fresh["step"] == 0 and fresh["learning_rates"]["model"][0] == pytest.approx([2.5e-4, 5e-4, 7.5e-4])
    refused = described(tmp_path, CONFIG, "--resume", "x.pt", code=2)
    assert "the step of 'x.pt' (--resume) stands nowhere; say it with --resume_step N" in refused
    torch.save({"model_state_dict": {}}, tmp_path / "hrm_arc_step_3.pt")
    assert described(tmp_path, tail(), "--resume", str(tmp_path / "hrm_arc_step_3.pt"))["step"] == 3


@pytest.mark.long
def test_a_checkpoint_that_cannot_be_read_is_not_described(tmp_path):
    (tmp_path / "hrm_arc_step_50000.pt").write_bytes(b"torn")
    torn = described(tmp_path, tail(), "--resume", str(tmp_path / "hrm_arc_step_50000.pt"), code=2)
    assert "has no readable progress" in torn
    os.mkfifo(tmp_path / "hrm_arc_step_60000.pt")
    fifo = described(tmp_path, tail(), "--resume", str(tmp_path / "hrm_arc_step_60000.pt"), code=2)
    assert "is not a regular file" in fifo
