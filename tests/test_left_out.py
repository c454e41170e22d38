"""What a recovery leaves out is left out by the trainer or not at all; where neither does it, that is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resumekit.checkpoint.selection import Selection
from resumekit.run.run_folder import open_run
from resumekit.run.run_table import Recovery, RunTable
from resumekit.trainer import resume_bundle
from resumekit.trainer.loading import ResumeBundle, load_resume_bundle
from resumekit.trainer.resume_checks import check_resume
from resumekit.trainer.saving import save_checkpoint
from resumekit.trainer.trainer_env import journal_event
from resumekit.watch import restart_point
from resumekit.watch.incident import Incident
from support.checkpoint_tools import quiet, small_model, train
from support.commands import Kit
from support.resume_parts import write_plan
from support.runs import events
from support.schemas import assert_valid

DATA = (
    "the data of the 3 steps behind step 4 were to be left out: the trainer has gone on without reading "
    "bundle.skip_data_steps, and trains on them again"
)
EVAL = "the evaluation of step 6 was to be left out once: the trainer has gone on without reading bundle.skip_eval_step"


RECOVERYS_OWN = (("data.skipped_steps", "recovery"),)


class Toy:
    """A trainer that is resumed at step 4; the plan leaves out the data of 3 steps and the evaluation of step 6."""

    def __init__(self, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run_dir, self.monkeypatch = run_dir, monkeypatch
        self.model, self.optimizer = small_model()
        self.batch, self.evaluated = 4, []

    def load(self, log_fn: Callable[[str], Any] = quiet, data_state: Any = None, changes: Any = None) -> ResumeBundle:
        path = self.save(4, data_state=data_state)
        told = {"skip_data_steps": 3, "skip_eval_step": 6}
        own = [{"key": key, "origin": origin} for key, origin in RECOVERYS_OWN]
        position = {"data_position": "load"} if data_state is not None else {}
        plan = write_plan(self.run_dir, path, 4, recovery=told, changes=changes or own, **position)
        self.monkeypatch.setenv("RESUMEKIT_PLAN", str(plan))
        return load_resume_bundle(self.model, self.optimizer, ckpt_path=path, log_fn=log_fn)

    def save(self, step: int, **more: Any) -> Path | None:
        return save_checkpoint(
            self.run_dir / "checkpoints", step, model=self.model, optimizer=self.optimizer, log_fn=quiet, **more
        )

    def warnings(self) -> list[str]:
        for one in events(self.run_dir, "warning"):
            assert_valid("event", one)
        return [one["message"] for one in events(self.run_dir, "warning") if one["kind"] == "not_left_out"]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_a_new_process: None) -> Toy:
    monkeypatch.setattr(resume_bundle, "_expected", [])
    monkeypatch.setattr(resume_bundle, "_said", set())
    run_dir = tmp_path / "T-1_x_20260101-0000"
    run_dir.mkdir()
    (run_dir / "run.json").write_text("{}")
    monkeypatch.setenv("RESUMEKIT_RUN_DIR", str(run_dir))
    monkeypatch.setenv("RESUMEKIT_RUN_ID", run_dir.name)
    return Toy(run_dir, monkeypatch)


def tell(_toy: Toy, step: int) -> None:
    journal_event("step", step=step, loss=0.5)


def save(toy: Toy, step: int) -> None:
    toy.save(step)


@pytest.mark.parametrize("go_on", [tell, save])
def test_a_trainer_that_leaves_out_what_it_is_told_is_left_alone(toy: Toy, go_on: Callable[[Toy, int], None]) -> None:
    bundle = toy.load()
    for _ in range(bundle.skip_data_steps):
        toy.batch += 1
    for step in range(5, 9):
        train(toy.model, toy.optimizer)
        go_on(toy, step)
        if step != bundle.skip_eval_step:
            toy.evaluated.append(step)
    assert (toy.batch, toy.evaluated, toy.warnings()) == (7, [5, 7, 8], [])


@pytest.mark.fault("D8", by="resume_bundle.py: a trainer that trains on without asking what is left out is said to")
@pytest.mark.parametrize("go_on", [tell, save])
def test_of_a_trainer_that_asks_for_nothing_it_is_said_once_it_has_trained_on(
    toy: Toy, go_on: Callable[[Toy, int], None]
) -> None:
    toy.load()
    go_on(toy, 4)  # where it was resumed: nothing is trained yet
    assert toy.warnings() == []
    go_on(toy, 5)
    assert toy.warnings() == [DATA]
    go_on(toy, 6)  # its evaluation comes behind it
    assert toy.warnings() == [DATA]
    for step in (7, 8, 9):
        go_on(toy, step)
    assert toy.warnings() == [DATA, EVAL]


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        ({"position": 7, "seed": 1, "order": "a"}, "passed"),
        ({"position": 7, "seed": 1, "order": "b"}, "not_told"),
        ({"position": 3, "seed": 1, "order": "a"}, "not_told"),
    ],
)
def test_a_position_that_the_recovery_itself_moves_on_is_no_alarm(toy: Toy, now: dict[str, Any], verdict: str) -> None:
    """It was warned of 'data.skipped_steps was changed', which is the kit's own word."""
    lines: list[str] = []
    check_resume(toy.load(data_state={"position": 4, "seed": 1, "order": "a"}), data_state=now, log_fn=lines.append)
    found = {one["name"]: one["verdict"] for one in events(toy.run_dir, "check")}
    assert found["data_position"] == verdict and not any("skipped_steps" in line for line in lines)


def test_a_changed_key_of_the_data_is_still_named_beside_what_is_left_out(toy: Toy) -> None:
    changes = [{"key": key, "origin": origin} for key, origin in (*RECOVERYS_OWN, ("data.name", "config"))]
    check_resume(toy.load(data_state=4, changes=changes), data_state=7, log_fn=quiet)
    (found,) = (one for one in events(toy.run_dir, "check") if one["name"] == "data_position")
    assert (found["verdict"], found["why"]) == ("warned", "data.name was changed")


def test_each_of_the_two_is_asked_for_by_itself(toy: Toy) -> None:
    assert toy.load().skip_eval_step == 6
    tell(toy, 9)
    assert toy.warnings() == [DATA]


def test_neither_the_kit_nor_a_look_at_the_whole_bundle_asks_in_the_trainers_place(toy: Toy) -> None:
    bundle = toy.load()
    assert repr(bundle) and bundle == bundle and bundle.lr_scale_at(5) == 1.0
    assert bundle.left_out.asked == set()


def test_a_teacher_that_is_loaded_besides_takes_nothing_back(toy: Toy, tmp_path: Path) -> None:
    toy.load()
    model, optimizer = small_model(seed=1)
    path = save_checkpoint(tmp_path / "teacher", 3, model=model, optimizer=optimizer, log_fn=quiet)
    assert load_resume_bundle(model, optimizer, ckpt_path=path, log_fn=quiet).skip_data_steps == 0
    tell(toy, 5)
    assert toy.warnings() == [DATA]


def test_without_a_recovery_nothing_is_said(toy: Toy) -> None:
    path = toy.save(4)
    bundle = load_resume_bundle(toy.model, toy.optimizer, ckpt_path=path, log_fn=quiet)
    tell(toy, 9)
    assert toy.warnings() == []
    assert (bundle.skip_data_steps, bundle.skip_eval_step) == (0, None)


def test_the_load_prints_what_is_to_be_left_out(toy: Toy) -> None:
    lines: list[str] = []
    toy.load(lines.append)
    assert "[resume] the data of the next 3 steps are to be left out (skip_data_steps)" in lines
    assert "[resume] the evaluation of step 6 is to be left out (skip_eval_step)" in lines


@pytest.mark.parametrize(
    ("loads_with_kit", "has_checkpoint", "why"),
    [(True, True, None), (False, True, "trainer.loads_with_kit"), (True, False, "no checkpoint")],
)
def test_what_the_trainer_cannot_be_told_is_not_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads_with_kit: bool, has_checkpoint: bool, why: str | None
) -> None:
    folder = tmp_path / "runs" / "T-1_x_20260101-0000"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    config = {"trainer": {"loads_with_kit": loads_with_kit}}
    (folder / "resolved_config.json").write_text(json.dumps(config))
    run = open_run(folder)
    chosen = SimpleNamespace(step=20, run_id="other", path=tmp_path / "none") if has_checkpoint else None
    monkeypatch.setattr(restart_point.along_history, "search_stable", lambda *_: Selection(chosen, ()))
    monkeypatch.setattr(
        restart_point.run_table, "recovery_of", lambda _run: Recovery("nonfinite", 1, first_bad_step=32)
    )
    crash: dict[str, Any] = {"symptoms": {"eval_crash": {"step": 30}}}
    begun = restart_point.find(run, crash, RunTable(folder.parent), Incident("eval", "it crashed", first_bad_step=32))
    told = (begun.skip_data_steps, begun.skip_eval_step)
    if why is None:
        assert (told, begun.said) == ((12, 30), ())
    else:
        assert told == (0, None)
        assert [sentence for sentence in begun.said if why not in sentence] == []
        expected = ["the data of 12 steps are not left out"] if has_checkpoint else []
        expected += ["the evaluation of step 30 is not left out"]
        assert [sentence.split(":")[0] for sentence in begun.said] == expected


@pytest.mark.long
@pytest.mark.fault("D8", by="restart_point.py: nothing is left out of a trainer that cannot be told")
def test_a_trainer_without_the_helpers_is_taken_up_and_no_line_says_that_data_were_left_out(kit: Kit) -> None:
    kit.config(
        "--delay", "0.03", "--save-every", "5", "--nan-from", "32",
        trainer={"log_patterns": {"step": "^step ([0-9]+)", "loss": "loss ([0-9.a-z]+)"}},
        training={"max_steps": 9999}, status={"interval_s": 1}, checkpoint={"every": 5, "keep_last": None},
        recover={"enabled": True, "backoff_s": 1, "replay_steps": 10, "cut_lr_on": [], "max_attempts": 2},
    )  # fmt: skip
    done = kit("run", "T-1", code=8)
    first, *children = kit.run_dirs()
    assert len(children) == 2
    for child in children:
        told = json.loads((child / "resume_plan.json").read_text())
        assert told["recovery"]["skip_data_steps"] == 0
        assert json.loads((child / "run.json").read_text())["recovery"]["skip_data_steps"] == 0
        assert "data.skipped_steps" not in {change["key"] for change in told["changes"]}
    (note,) = [one for one in told["notes"] if "left out" in one]
    assert note.startswith("the data of 12 steps are not left out") and note in done.stderr
    assert not events(first, "warning")
