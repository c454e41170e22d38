"""What healthy trainers do after a resume and no check may fail for, one cause at a time (many: `make campaign`).

(The other way round, what must be seen: tests/test_sabotage.py.)
"""

# ruff: noqa: F401, F811 (`path` and `run` are fixtures)
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from resume_helper import check_resume, load_resume_bundle
from resumekit.checks import expectations
from resumekit.policy import plan_file
from resumekit.policy.decide import Decision
from resumekit.policy.plan_file import PlanFile, PlannedChange
from resumekit.trainer.weights import is_alike
from support.acceptance_events import LOSSES, PARENT, STEP, healthy, judged, step_event
from support.checked_jobs import Job, found, path, run, verdicts

CURVE = PARENT.rates[0]


def told(**fields: list[Any]) -> list[dict[str, Any]]:
    """Return a healthy journal whose first steps tell these values instead."""
    events = healthy()
    for name, values in fields.items():
        for event, value in zip(events[2:], values, strict=False):
            event[name] = value
    return events


def test_a_rate_may_be_told_one_step_ahead_and_its_course_counts() -> None:
    assert judged(told(lr=[*CURVE[1:], 0.0007]))["lr"].verdict == "passed"
    twice = [CURVE[0], CURVE[2], 0.0006]
    assert judged(told(lr=twice))["lr"].verdict == "failed"
    assert judged(told(lr=twice), known={"lr": "passed"})["lr"].verdict == "failed", "the helpers saw the first alone"


def test_a_rate_may_be_told_without_the_plans_scale_or_of_another_group() -> None:
    scaled = PARENT._replace(rates=(tuple(0.8 * rate for rate in CURVE),), unscaled=(CURVE,))
    assert judged(told(lr=list(CURVE)), scaled)["lr"].verdict == "passed"
    assert judged(told(lr=[0.5 * rate for rate in CURVE]), scaled)["lr"].verdict == "failed"
    a_tenth = judged(told(lr=[0.1 * rate for rate in CURVE]), known={"lr": "passed"})
    assert "lr" not in a_tenth, "the helpers have judged every group already"


def test_the_last_digits_of_a_log_are_no_other_loss() -> None:
    logged = [{**event, "source": "log", "loss": 0.013} for event in healthy()[2:]]
    expected = PARENT._replace(losses=dict.fromkeys(LOSSES, 0.014), is_exact=True, rates=())
    assert judged(logged, expected)["loss"].verdict == "warned"
    near = [{**event, "loss": 0.0140001} for event in logged]
    lost = expected._replace(unrestored="the checkpoint holds no random number generators (rng_state)")
    assert judged(near, lost)["loss"].verdict == "warned", "it trained on with something else, however little"
    assert judged(near, lost._replace(is_exact=False))["loss"].verdict == "passed"
    apart = [{**event, "loss": 0.016} for event in logged]
    assert judged(apart, expected)["loss"].verdict == "failed"


@pytest.mark.parametrize(
    "share, is_exact, verdict",
    [(1.00001, False, "passed"), (1.00001, True, "warned"), (1.005, False, "warned"), (1.02, False, "failed")],
)
def test_how_far_a_replay_may_be_off(share: float, is_exact: bool, verdict: str) -> None:
    losses = [loss * share for step, loss in LOSSES.items() if step > STEP]
    assert judged(told(loss=losses), PARENT._replace(is_exact=is_exact))["loss"].verdict == verdict


def test_a_loss_that_is_no_number_fails_before_there_are_enough_to_compare() -> None:
    for event in ({**step_event(STEP + 1, 10.0), "loss": "nan"}, {"event": "nonfinite", "step": 101, "what": "loss"}):
        assert judged([*healthy()[:2], event], has_ended=True)["loss"].verdict == "failed"


def test_a_phase_counts_where_it_was_told() -> None:
    def phase(step: int, name: str) -> str:
        beat = {"event": "heartbeat", "global_step": step, "scheduler_phase": name}
        return judged([*healthy()[:2], beat, *healthy()[2:]])["phase"].verdict

    assert phase(STEP, "warmup") == "failed" and phase(STEP, "cosine") == "passed"
    assert phase(STEP + 30, "floor") == "not_told", "it may have got there meanwhile"
    assert phase(0, "warmup") == "passed", "a beat before the load, and the rates fall"


def test_a_teachers_checkpoint_is_not_the_runs_own() -> None:
    teacher = {"event": "resumed", "step": 7, "is_planned": False, "mono_s": 9.0}
    kit = PARENT._replace(loads_with_kit=True)
    assert judged([healthy()[0], teacher, *healthy()[1:]], kit)["step"].verdict == "passed"
    assert judged([teacher, *healthy()[1:]], PARENT)["step"].verdict == "passed", "it loads its own by itself"
    other = judged([{**teacher, "step": STEP}, *healthy()[1:]], kit)["step"]
    assert other.verdict == "failed" and "another checkpoint than the planned one" in other.why


def test_a_log_may_count_from_0_or_lack_a_line() -> None:
    logged = [{**event, "source": "log"} for event in healthy(first=STEP)[2:]]
    assert judged(logged)["step"].verdict == "warned"
    logged = [{**event, "source": "log"} for event in healthy(first=STEP + 5)[2:]]
    assert judged(logged)["step"].verdict == "warned"


def test_a_load_that_was_never_looked_at_is_said() -> None:
    loaded = {**healthy()[0], "report": {"optimizer": "load"}}
    assert judged([loaded, *healthy()[1:]])["optimizer"].verdict == "warned"
    assert "optimizer" not in judged([loaded, *healthy()[1:]], known={"weights": "not_told"})
    assert "optimizer" not in judged([{**loaded, "report": {"optimizer": "absent: not used here"}}, *healthy()[1:]])
    for done in (
        "swap: the checkpoint holds adamw",
        "reset: resume.optimizer is 'reset'",
        "partial: 3 of 4 parameters",
    ):
        report = {"weights": "load", "optimizer.model": done}
        found = judged([{**loaded, "report": report}, *healthy()[1:]])["optimizer"]
        assert (found.verdict, found.expected) == ("warned", "a step of the loaded optimizer")
    anew = {"weights": "reset: resume.weights is 'reset'", "optimizer": "reset: resume.optimizer is 'reset'"}
    assert "optimizer" not in judged([{**loaded, "report": anew}, *healthy()[1:]]), "there is nothing to look at"


@pytest.mark.parametrize(
    "planned, done, name",
    [
        ({"optimizer": "reset"}, {"optimizer": "load"}, "optimizer"),
        ({"optimizer.model": "swap"}, {"optimizer.model": "load"}, "optimizer"),
        ({"optimizer": "swap"}, {"optimizer.model": "partial: 61 of 63 parameters, 2 new"}, "optimizer"),
        ({"scheduler": "refit"}, {"scheduler": "load"}, "scheduler"),
        ({"ema": "fresh"}, {"ema": "load"}, "averages"),
        ({"rng": "reset"}, {"rng": "load"}, "rng"),
        ({"optimizer": "load"}, {"optimizer": "partial: 61 of 63 parameters, 2 new"}, ""),
        ({"weights": "partial"}, {"weights": "load"}, ""),
        ({"scheduler": "load"}, {"scheduler": "refit: placed at step 100, the optimizer has other groups"}, ""),
        ({"ema": "fresh"}, {"ema": "absent: not used here"}, ""),
        ({"data_position": "rederive"}, {"data_position": "load"}, ""),
        ({"optimizer": "reset"}, {"optimizer": "reset: resume.optimizer is 'reset'"}, ""),
    ],
)  # fmt: skip
def test_a_load_that_uses_what_the_plan_leaves_out_is_named(
    planned: dict[str, str], done: dict[str, str], name: str
) -> None:
    loaded = {**healthy()[0], "report": done}
    found = judged([loaded, *healthy()[1:]], PARENT._replace(actions=planned), known={"weights": "passed"})
    assert [key for key, one in found.items() if one.verdict == "failed"] == ([name, "resume"] if name else [])
    if name:
        assert found[name].why == "the trainer loaded otherwise than the plan says"
        teacher = [healthy()[0], {**loaded, "is_planned": False}, *healthy()[1:]]
        found = judged(teacher, PARENT._replace(actions=planned), known={"weights": "passed"})
        assert found["resume"].verdict == "passed", "another file, which the trainer loads besides"


def test_of_a_progress_bar_the_steps_between_two_looks_go_unread() -> None:
    def drawn(seconds: float) -> list[dict[str, Any]]:
        steps = healthy(seconds=seconds, first=STEP + 25)[2:]
        return [{**event, "source": "log", "step_total": 600} for event in steps]

    bar = drawn(0.5)
    assert judged(drawn(0.04))["step"].verdict == "passed", "25 steps in a second"
    assert judged(bar, PARENT._replace(widest=30))["step"].verdict == "passed"
    assert judged(bar, PARENT._replace(widest=20))["step"].verdict == "warned"
    lines = [{**event, "source": "log"} for event in healthy(first=STEP + 25)[2:]]
    assert judged(lines, PARENT._replace(widest=30))["step"].verdict == "warned"


@pytest.mark.parametrize(
    "key, is_replay",
    [
        ("checkpoint.every", True), ("resume.strict_checks", True), ("training.log_every", True),
        ("training.threads", False), ("data.workers", False), ("git.commit", False), ("torch", False),
        ("trainer.extra_args", False), ("x-lab.mixup", False),
    ],
)  # fmt: skip
def test_losses_are_compared_one_by_one_only_where_nothing_could_touch_a_number(key: str, is_replay: bool) -> None:
    def plan(*changes: PlannedChange, **actions: str) -> PlanFile:
        loads = dict.fromkeys(("weights", "optimizer", "rng", "data_position"), "load")
        components = {name: Decision(action) for name, action in {**loads, **actions}.items()}
        return PlanFile("plan.json", 4, None, None, components, changes)

    because = expectations._incomparable(plan(PlannedChange(key)))
    assert because == ("" if is_replay else f"{key} was changed")
    assert expectations._incomparable(plan(rng="reset")) == "the plan says rng: reset"
    absent = plan(rng="absent")
    assert expectations._incomparable(absent) == "" and expectations._unrestored(plan(), loads_with_kit=True) == ""
    said = "the checkpoint holds no random number generators (rng_state)"
    assert expectations._unrestored(absent, loads_with_kit=True) == said


# In the trainer.


class Scaled(Job):
    """A job with a GradScaler, that advances schedule and average after a step that was left out too."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.scaler.scale(1000 * self.model(torch.ones(5, 4) * torch.randn(5, 1))).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.ema.update_parameters(self.model)

    def save(self, folder: Path, **more: Any) -> Path:
        return super().save(folder, scaler=self.scaler, **more)

    def load(self, path: Path, **more: Any) -> Any:
        return load_resume_bundle(
            self.model, self.optimizer, self.schedule, self.scaler, ckpt_path=path, ema=self.ema,
            log_fn=lambda _: None, **more,
        )  # fmt: skip


def test_steps_that_the_scaler_leaves_out_are_no_faults(run: Path, tmp_path: Path) -> None:
    parent = Scaled()
    parent.step()
    parent.scaler.load_state_dict(parent.scaler.state_dict() | {"scale": 2.0**127})  # overflows a few times
    saved = parent.save(tmp_path / "a")
    job = Scaled(seed=1)
    bundle = job.load(saved)
    assert check_resume(bundle, job.model)
    for _ in range(20):
        job.step()
    assert job.scaler.get_scale() < 2.0**127
    assert "failed" not in verdicts(run).values(), found(run)
    assert verdicts(run)["scaler"] == "passed" and verdicts(run)["averages"] == "warned"
    job = Scaled(seed=1)
    bundle = job.load(saved)
    job.scaler.load_state_dict(job.scaler.state_dict() | {"scale": 1024.0})
    assert not check_resume(bundle, job.model) and verdicts(run)["scaler"] == "failed"


def test_a_position_of_tensors_is_compared_and_stops_nothing(run: Path, tmp_path: Path) -> None:
    state = {"order": torch.arange(5), "rng": (3, [1, 2])}
    job = Job()
    job.step()
    saved = job.save(tmp_path / "a", data_state=state)
    bundle = Job(seed=1).load(saved)
    assert check_resume(bundle, data_state={"order": torch.arange(5), "rng": (3, [1, 2])})
    assert not check_resume(bundle, data_state={"order": torch.arange(5).flip(0), "rng": (3, [1, 2])}, log_fn=str)

    class Odd:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("not to be compared")

    assert check_resume(bundle, data_state={"order": Odd(), "rng": 0}, log_fn=str)
    assert verdicts(run)["data_position"] == "not_told"


def test_an_evaluation_of_something_else_is_no_worse_one(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    job = Job()
    job.step()
    saved = job.save(tmp_path / "a", last_fast_eval={"step": 4, "accuracy": 0.9})

    def checked(**more: Any) -> str:
        plan = {"version": 1, "step": 4, "components": {"weights": {"action": "load"}}, "changes": [more]}
        for name in ("optimizer", "scheduler", "ema", "counters", "rng"):
            plan["components"][name] = {"action": "load"}
        (run / "resume_plan.json").write_text(json.dumps(plan))
        monkeypatch.setenv("RESUMEKIT_PLAN", str(run / "resume_plan.json"))
        check_resume(Job(seed=1).load(saved), fast_eval=lambda: 0.5, log_fn=str)
        return verdicts(run)["fast_eval"]

    assert checked(key="checkpoint.every", origin="config") == "failed"
    assert checked(key="ema.enabled", origin="config") == "warned"
    assert checked(key="torch", origin="environment") == "warned"


@pytest.mark.parametrize(
    ("metric", "mode", "then", "now", "verdict"),
    [
        ("cell_accuracy", "max", 0.5, 0.49, "passed"),
        ("cell_accuracy", "max", 0.5, 0.3, "failed"),
        ("loss", "min", 0.5, 0.3, "passed"),
        ("loss", "min", 0.5, 0.7, "failed"),
        ("loss", "min", 40.0, 40.5, "passed"),
        ("accuracy", "max", 0.0, 0.5, "not_told"),
    ],
)
def test_an_evaluation_is_judged_by_the_metric_of_the_best(
    run: Path,
    tmp_path: Path,
    metric: str,
    mode: str,
    then: float,
    now: float,
    verdict: str,
) -> None:
    """A worse loss passed, and a share of cells was compared with one of whole grids."""
    wanted = {"best_metric": "cell_accuracy" if verdict == "not_told" else metric, "best_mode": mode}
    (run / "resolved_config.json").write_text(json.dumps({"validation": wanted}))
    (run / "run.json").write_text("{}")
    job = Job()
    job.step()
    saved = job.save(tmp_path / "a", last_fast_eval={"step": 4, metric: then})
    check_resume(Job(seed=1).load(saved), fast_eval=lambda: now, log_fn=str)
    assert found(run)["fast_eval"]["verdict"] == verdict, found(run)["fast_eval"]
    assert found(run)["fast_eval"]["expected"] == f"{metric} {then:g} at step 4"


def test_a_wrapper_that_is_no_torch_optimizer_is_loaded_and_says_unknown(run: Path, path: Path) -> None:
    class Wrapper(torch.optim.Optimizer):  # as accelerate's: it inherits the methods, and never called __init__
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            self.inner = inner

        param_groups = property(lambda self: self.inner.param_groups)
        state = property(lambda self: self.inner.state)
        defaults = property(lambda self: self.inner.defaults)

        def state_dict(self) -> dict[str, Any]:
            return self.inner.state_dict()

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.inner.load_state_dict(state)

    job = Job(seed=1)
    wrapper = Wrapper(job.optimizer)
    load_resume_bundle(job.model, wrapper, ckpt_path=path, optimizer_policy="reset", log_fn=str)
    assert verdicts(run) == {"weights": "not_told"}


def test_columns_of_a_matrix_are_looked_at_too() -> None:
    weight = torch.randn(1024, 1024)
    moved = weight.clone()
    moved[:, 1:] = weight[:, 1:].roll(1, dims=1)  # a fixed stride of 4096 would see the first column alone
    assert is_alike(weight, weight.clone()) and not is_alike(weight, moved)


def test_a_file_within_the_runs_own_folder_is_the_planned_one(tmp_path: Path) -> None:
    is_about = [
        plan_file.is_about(str(tmp_path / "parent.pt"), str(tmp_path / name), tmp_path / "run")
        for name in ("parent.pt", "run/last.pt", "teacher.pt", "runaway/x.pt")
    ]
    assert is_about == [True, True, False, False]
