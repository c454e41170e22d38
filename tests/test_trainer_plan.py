"""The trainer carries out the launcher's plan: read with care, ruling over defaults, never contradicted silently."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from resumekit.base.errors import InvalidFile, KitError
from resumekit.policy.decide import PLANNED, Decision
from resumekit.policy.lr_scale import LrScale, Ramp
from resumekit.trainer import decisions
from resumekit.trainer.loading import ResumeBundle, load_resume_bundle
from resumekit.trainer.saving import save_checkpoint
from support.checkpoint_tools import quiet
from support.resume_parts import OPTIMIZERS, Net, moments, same, train, write_plan

pytestmark = pytest.mark.usefixtures("in_a_new_process")


class Job:
    """A trainer with optimizer, schedule, scaler and data."""

    def __init__(self, seed: int, *, kind: str = "adamw", grown: bool = False, length: int = 20) -> None:
        self.model = Net(seed=seed, grown=grown)
        self.optimizer = OPTIMIZERS[kind](self.model.parameters(), lr=0.1)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, length)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def save(self, folder: Path, step: int = 4, **more: Any) -> Path:
        train(self.model, self.optimizer, schedule=self.schedule, steps=step)
        self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": 64.0})
        path = save_checkpoint(
            folder, step, model=self.model, optimizer=self.optimizer, scheduler=self.schedule, scaler=self.scaler,
            epoch=2, best_val_loss=0.5, data_state={"at": 9}, extra={"carry": 1}, log_fn=quiet, **more,
        )  # fmt: skip
        assert path is not None
        return path

    def load(self, path: Path | None, **more: Any) -> ResumeBundle:
        return load_resume_bundle(
            self.model, self.optimizer, self.schedule, self.scaler, ckpt_path=path, **{"log_fn": quiet, **more}
        )


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a plan and name it to the trainer."""

    def write(checkpoint: Path | None, step: int | None = 4, **fields: Any) -> Path:
        whole = {"scheduler": "load", "scaler": "load", "data_position": "load", **fields}
        path = write_plan(tmp_path, checkpoint, step, **whole)
        monkeypatch.setenv("RESUMEKIT_PLAN", str(path))
        return path

    return write


def test_every_field_is_read(tmp_path: Path, plan: Any) -> None:
    ramp = {"from_step": 4, "steps": 9, "factor": 0.8, "warm_restart": True}
    path = plan(
        tmp_path / "x.pt", optimizer__model="swap", lr_scale={"factor": 0.5, "ramp": ramp}, new_params="kaiming"
    )
    found = decisions.read_plan()
    assert found is not None
    assert (found.path, found.checkpoint, found.step, found.new_params) == (
        str(path),
        str(tmp_path / "x.pt"),
        4,
        "kaiming",
    )
    assert found.lr_scale == LrScale(0.5, Ramp(4, 9, 0.8, True))
    assert found.components["optimizer.model"] == Decision("swap", "the plan's reason", PLANNED)
    assert found.components["weights"] == Decision("load", "", PLANNED)


def test_without_the_variable_there_is_no_plan() -> None:
    assert decisions.read_plan() is None


GOOD = {"version": 1, "step": 4, "components": {"weights": {"action": "load", "why": ""}}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not JSON"), ("[]", "it is not an object"), ('{"version": NaN}', "not JSON"), ("[" * 100_000, "not JSON"),
        ({}, "its version is 'None', not 1"), ({**GOOD, "version": 2}, "its version is '2', not 1"),
        ({**GOOD, "version": True}, "its version is 'True', not 1"), ({**GOOD, "step": -1}, "its step '-1'"),
        ({**GOOD, "step": "a[$(touch canary)]"}, "is not a whole number"), ({**GOOD, "step": 4.0}, "its step '4.0'"),
        ({**GOOD, "components": []}, "do not name the weights"), ({**GOOD, "components": {}}, "do not name"),
        ({**GOOD, "components": {"weights": "load"}}, "its component 'weights' is not an object"),
        ({**GOOD, "components": {"weights": {"action": "swap"}}}, "its action 'swap' of 'weights' is not one of load,"),
        ({**GOOD, "components": {"weights": {"action": ["load"]}}}, "is not one of load, partial, reset"),
        ({**GOOD, "components": {"weights": {"action": "load", "why": 3}}}, "its reason for 'weights' is not a text"),
        ({**GOOD, "components": {**GOOD["components"], "lr": {"action": "load"}}}, "a component 'lr', which there is"),
        ({**GOOD, "components": {**GOOD["components"], "ema.x": {"action": "load"}}}, "a component 'ema.x'"),
        ({**GOOD, "new_params": "zeros"}, "its new_params 'zeros' is not one of module, kaiming"),
        ({**GOOD, "lr_scale": 0.5}, "its lr_scale is not an object"),
        ({**GOOD, "lr_scale": {"factor": -1}}, "lr_scale is '-1', not a number above 0"),
        ({**GOOD, "lr_scale": {"factor": 1.0, "ramp": {"steps": 1}}}, "the ramp of lr_scale needs exactly"),
        ({**GOOD, "more": "x" * (5 << 20)}, "larger than"),
    ],
)  # fmt: skip
def test_a_broken_plan_is_one_sentence_and_nothing_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, said: str
) -> None:
    path = tmp_path / "resume_plan.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    monkeypatch.setenv("RESUMEKIT_PLAN", str(path))
    with pytest.raises(InvalidFile) as error:
        Job(2).load(tmp_path / "never_opened.pt")
    text = str(error.value)
    assert said in text and "nothing was loaded" in text and f"the plan '{path}'" in text and len(text) < 600
    assert "\n" not in text


def test_a_plan_that_is_no_file_is_said_without_hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, said in (("fifo", "not a regular file"), ("nothing", "no such file"), (".", "not a regular file")):
        monkeypatch.setenv("RESUMEKIT_PLAN", str(tmp_path / name))
        with pytest.raises(InvalidFile, match=said):
            Job(2).load(tmp_path / "never_opened.pt")


def test_a_reason_can_not_write_to_the_terminal(tmp_path: Path, plan: Any) -> None:
    path = Job(1).save(tmp_path / "a")
    written = plan(path, scaler="reset")
    content = json.loads(written.read_text())
    content["components"]["scaler"]["why"] = "\x1b[2Jgone\n[resume] forged"
    written.write_text(json.dumps(content))
    lines: list[str] = []
    Job(2).load(path, log_fn=lines.append)
    assert "[resume] scaler: reset:  [2Jgone [resume] forged" in lines


def test_a_plan_that_loads_everything_is_the_load_without_a_plan(tmp_path: Path, plan: Any) -> None:
    path = Job(1).save(tmp_path / "a")
    alone = Job(2)
    without = alone.load(path)
    losses = train(alone.model, alone.optimizer, schedule=alone.schedule, steps=3)
    plan(path)
    planned = Job(2)
    assert planned.load(path) == without
    assert train(planned.model, planned.optimizer, schedule=planned.schedule, steps=3) == losses


def test_each_action_is_done_and_reported_in_the_plans_words(tmp_path: Path, plan: Any) -> None:
    first = Job(1)
    path = first.save(tmp_path / "a")
    plan(path, optimizer="reset", scheduler="reset", scaler="reset", counters="reset", rng="reset",
         data_position="reset")  # fmt: skip
    second = Job(2)
    random = torch.get_rng_state()
    bundle = second.load(path)
    assert bundle.report == {
        "weights": "load", "optimizer": "reset: the plan's reason", "scheduler": "reset: the plan's reason",
        "scaler": "reset: the plan's reason", "ema": "absent: not used here", "swa": "absent: not used here",
        "counters": "reset: the plan's reason", "rng": "reset: left as it is, the plan's reason",
        "data_position": "reset: the plan's reason",
    }  # fmt: skip
    assert (bundle.global_step, bundle.start_epoch, bundle.best_val_loss) == (0, 0, math.inf)
    assert bundle.extra == {"data_state": None, "carry": 1}
    assert same(dict(second.model.state_dict()), dict(first.model.state_dict()))
    assert not second.optimizer.state and second.scaler.get_scale() == 8.0
    assert second.schedule.last_epoch == 0 and second.optimizer.param_groups[0]["lr"] == 0.1
    assert torch.equal(torch.get_rng_state(), random)


def test_a_from_scratch_control_leaves_the_weights_out(tmp_path: Path, plan: Any) -> None:
    path = Job(1).save(tmp_path / "a")
    plan(path, weights="reset", optimizer="reset", scheduler="reset", counters="reset")
    second = Job(2, grown=True)
    before = {name: value.clone() for name, value in second.model.state_dict().items()}
    bundle = second.load(path)
    assert bundle.report["weights"] == "reset: the plan's reason" and bundle.missing == ()
    assert same(dict(second.model.state_dict()), before)


def test_an_architecture_edit_and_a_longer_schedule_as_planned(tmp_path: Path, plan: Any) -> None:
    first = Job(1)
    path = first.save(tmp_path / "a")
    wanted = moments(first.model, first.optimizer)
    plan(path, weights="partial", scheduler="refit", new_params="kaiming", data_position="rederive")
    second = Job(2, grown=True, length=50)
    lines: list[str] = []
    bundle = second.load(path, log_fn=lines.append)
    assert bundle.report["weights"] == "partial: 9 of 13 parameters, 4 new"
    assert bundle.report["optimizer"] == "partial: 6 of 10 parameters, 4 new"
    assert bundle.report["scheduler"] == "refit: placed at step 4, the plan's reason"
    assert bundle.report["data_position"] == "rederive: the plan's reason"
    assert bundle.reinitialised == ("gate.weight", "rule_head.weight") and bundle.extra["data_state"] == {"at": 9}
    assert all(same(state, wanted[name]) for name, state in moments(second.model, second.optimizer).items())
    assert second.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi * 4 / 50)))
    assert "[warn] missing params: 4 (new layers?)" in lines


def test_a_swap_leaves_the_old_state_and_keeps_the_phase_and_the_next_resume_keeps_lions(
    tmp_path: Path, plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protocol §7: weights alone, 80 % of the rate for the first steps; it happens once."""
    path = Job(1).save(tmp_path / "a")
    ramp = {"from_step": 4, "steps": 1000, "factor": 0.8, "warm_restart": False}
    plan(path, optimizer="swap", scheduler="refit", lr_scale={"factor": 1.0, "ramp": ramp})
    second = Job(2, kind="lion")
    bundle = second.load(path)
    assert bundle.report["optimizer"] == "swap: the plan's reason" and not second.optimizer.state
    assert second.schedule.last_epoch == 4
    assert [bundle.lr_scale_at(step) for step in (4, 1003, 1004)] == [0.8, 0.8, 1.0]
    monkeypatch.delenv("RESUMEKIT_PLAN")
    train(second.model, second.optimizer, schedule=second.schedule, steps=2)
    wanted = moments(second.model, second.optimizer)
    again = save_checkpoint(
        tmp_path / "b", 6, model=second.model, optimizer=second.optimizer, scheduler=second.schedule, log_fn=quiet
    )
    third = Job(3, kind="lion")
    bundle = third.load(again)
    assert bundle.report["optimizer"] == "load" and bundle.lr_ramp == ramp
    assert all(same(state, wanted[name]) for name, state in moments(third.model, third.optimizer).items())


def test_a_swap_that_the_trainer_does_not_make_is_refused(tmp_path: Path, plan: Any) -> None:
    path = Job(1).save(tmp_path / "a")
    plan(path, optimizer="swap")
    with pytest.raises(InvalidFile, match="the plan swaps AdamW for another one, and the trainer passes AdamW again"):
        Job(2).load(path)


def test_each_of_several_optimizers_has_its_own_decision_under_the_checkpoints_name(tmp_path: Path, plan: Any) -> None:
    def make(seed: int, first: str, second: str) -> tuple[Net, dict[str, Any]]:
        model = Net(seed=seed)
        return model, {
            first: OPTIMIZERS["adamw"](model.body.parameters()),
            second: OPTIMIZERS["sgd"](model.head.parameters()),
        }

    old, two = make(1, "adamw", "sign")
    train(old, *two.values(), steps=2)
    path = save_checkpoint(tmp_path / "a", 4, model=old, optimizer=two, log_fn=quiet)
    plan(path, optimizer__adamw="reset", optimizer__sign="load", scheduler="absent", scaler="absent",
         data_position="absent")  # fmt: skip
    new, fresh = make(2, "model", "puzzles")
    bundle = load_resume_bundle(new, fresh, ckpt_path=path, log_fn=quiet)
    assert bundle.report["optimizer.model"] == "reset: the plan's reason"
    assert bundle.report["optimizer.puzzles"] == "load"
    assert not fresh["model"].state and len(fresh["puzzles"].state) == 2


@pytest.mark.parametrize(
    ("argument", "actions", "said"),
    [
        ({"optimizer_policy": "reset"}, {}, "optimizer_policy='reset'.*says optimizer: load"),
        ({"optimizer_policy": "swap_to_lion"}, {}, "optimizer_policy='swap_to_lion'.*says optimizer: load"),
        ({"schedule_policy": "reset"}, {}, "schedule_policy='reset'.*says scheduler: load"),
        ({"restore_rng": False}, {}, "restore_rng=False.*says rng: load"),
        ({"new_params": "kaiming"}, {}, "new_params='kaiming'.*says new_params: module"),
        ({"allow_partial_weights": True}, {"weights": "reset", "optimizer": "reset"}, "=True.*says weights: reset"),
    ],
)
def test_an_argument_that_says_something_else_than_the_plan_is_an_error_that_names_both(
    tmp_path: Path, plan: Any, argument: dict[str, Any], actions: dict[str, str], said: str
) -> None:
    path = Job(1).save(tmp_path / "a")
    plan(path, **actions)
    job = Job(2)
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    with pytest.raises(KitError, match=said):
        job.load(path, **argument)
    assert same(dict(job.model.state_dict()), before)


def test_an_argument_that_agrees_with_the_plan_or_only_allows_is_none(tmp_path: Path, plan: Any) -> None:
    path = Job(1).save(tmp_path / "a")
    plan(path)
    assert Job(2).load(path, allow_partial_weights=True).report["weights"] == "load"
    plan(path, optimizer="reset", scheduler="refit", rng="reset", new_params="kaiming")
    agreed = Job(2).load(
        path, optimizer_policy="reset", schedule_policy="reset", restore_rng=False, new_params="kaiming"
    )
    assert agreed.report["optimizer"] == "reset: the plan's reason"


def test_a_strict_plan_is_not_widened_by_an_argument(tmp_path: Path, plan: Any) -> None:
    path = Job(1).save(tmp_path / "a")
    plan(path)
    with pytest.raises(InvalidFile, match="missing in it: 4 "):
        Job(2, grown=True).load(path, allow_partial_weights=True)


def test_a_plan_for_another_step_is_refused(tmp_path: Path, plan: Any) -> None:
    path = Job(1).save(tmp_path / "a")
    plan(path, step=9)
    with pytest.raises(InvalidFile, match=r"is for step 9, and checkpoint '.*' is of step 4; nothing was loaded"):
        Job(2).load(path)
    plan(path, step=None)
    assert Job(2).load(path).global_step == 4


def test_a_step_that_the_checkpoint_does_not_hold_is_the_plans(tmp_path: Path, plan: Any) -> None:
    model = Net(seed=1)
    path = tmp_path / "hrm_arc_step_400.pt"
    torch.save({"model_state_dict": model.state_dict()}, path)
    plan(path, step=400, optimizer="absent", scheduler="absent", scaler="absent", rng="absent", data_position="absent")
    assert Job(2).load(path).global_step == 400


@pytest.mark.parametrize("component", ["optimizer", "scheduler", "scaler", "rng", "data_position"])
def test_a_plan_that_loads_what_is_not_there_is_refused(tmp_path: Path, plan: Any, component: str) -> None:
    path = tmp_path / "x.pt"
    torch.save({"model_state_dict": Net(seed=1).state_dict(), "global_step": 4}, path)
    others = dict.fromkeys(("optimizer", "scheduler", "scaler", "rng", "data_position"), "absent")
    plan(path, **{**others, component: "load"})
    with pytest.raises(InvalidFile, match=f"loads {component}, and the checkpoint has none; nothing was loaded"):
        Job(2).load(path)


def test_what_the_trainer_does_not_use_stays_in_the_checkpoint_whatever_the_plan_says(
    tmp_path: Path, plan: Any
) -> None:
    path = Job(1).save(tmp_path / "a")
    plan(path)
    job = Job(2)
    report = load_resume_bundle(job.model, ckpt_path=path, log_fn=quiet).report
    left = "absent: not used here, left in the checkpoint"
    assert report["optimizer"] == report["scheduler"] == report["scaler"] == left


def test_a_resume_without_a_checkpoint_is_no_fresh_start(tmp_path: Path, plan: Any) -> None:
    """The launcher said to resume; a trainer that lost the path on its way would begin anew, unnoticed."""
    plan(tmp_path / "x.pt", step=40_000)
    for nothing in (None, ""):
        with pytest.raises(KitError, match="resumes at step 40000, and load_resume_bundle got no ckpt_path"):
            Job(2).load(nothing)  # type: ignore[arg-type]


def test_the_plan_is_about_its_own_checkpoint_and_not_about_a_teachers(
    tmp_path: Path, plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, own = Job(1).save(tmp_path / "teacher", step=7), Job(1).save(tmp_path / "parent")
    plan(own, optimizer="reset")
    assert Job(2).load(teacher).report["optimizer"] == "load"
    assert Job(2).load(own).report["optimizer"] == "reset: the plan's reason"
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    monkeypatch.setenv("RESUMEKIT_RUN_DIR", str(run))
    copy = run / "checkpoints" / "last.pt"
    os.link(own, copy)
    assert Job(2).load(copy).report["optimizer"] == "reset: the plan's reason"


def test_the_journal_says_what_was_done(tmp_path: Path, plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Job(1).save(tmp_path / "a")
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setenv("RESUMEKIT_RUN_DIR", str(run))
    plan(path, weights="partial", scheduler="refit")
    bundle = Job(2, grown=True).load(path)
    (event,) = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines() if line]
    assert event["event"] == "resumed" and event["report"] == bundle.report and event["step"] == 4
    assert event["report"]["weights"] == "partial: 9 of 13 parameters, 4 new"


def test_a_partial_load_that_a_person_asked_for_holds_however_little_fits(plan: Any, tmp_path: Path) -> None:
    path = Job(seed=1).save(tmp_path / "checkpoints")
    job = Job(seed=2)
    job.model = torch.nn.Module()
    own = dict(Net(seed=2).named_parameters())
    name = min(own, key=lambda one: own[one].numel())
    job.model.register_parameter(name.replace(".", "_"), torch.nn.Parameter(torch.zeros(3)))
    job.model.add_module(name.partition(".")[0], Net(seed=2).get_submodule(name.rpartition(".")[0]))
    job.optimizer = torch.optim.AdamW(job.model.parameters(), lr=0.1)
    job.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(job.optimizer, 20)
    plan(path, weights="partial", optimizer="partial")
    with pytest.raises(InvalidFile, match="it is another model's"):
        job.load(path)
    written = Path(os.environ["RESUMEKIT_PLAN"])
    fields = json.loads(written.read_text())
    fields["components"]["weights"]["forced"] = True
    written.write_text(json.dumps(fields))
    assert job.load(path).report["weights"].startswith("partial: ")
