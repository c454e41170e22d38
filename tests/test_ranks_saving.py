"""Saves and loads that all ranks make together: one answer in all of them, and what one rank alone has to say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from resumekit.base.errors import KitError
from resumekit.run import health
from resumekit.trainer import restart, saving
from resumekit.trainer.heartbeat import heartbeat_writer
from resumekit.trainer.loading import load_resume_bundle
from resumekit.trainer.ranks import accumulation
from resumekit.trainer.saving import save_checkpoint
from resumekit.trainer.trainer_env import journal_event
from support.rank_groups import in_ranks, raised
from support.resume_parts import write_plan
from support.runs import events
from support.schemas import assert_valid

FILE = "hrm_arc_step_3.pt"


def quiet(_line: str) -> None:
    pass


def save(folder: Path, **more: Any) -> Path | None:
    arguments = {"model": torch.nn.Linear(2, 1), "data_state": {}, "ranks": "all", "log_fn": quiet, **more}
    return save_checkpoint(folder, 3, **arguments)


def saved(folder: Path) -> Path:
    torch.manual_seed(5)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return save_checkpoint(folder, 3, model=model, optimizer=optimizer, data_state={}, log_fn=quiet)


def test_all_ranks_get_the_same_path_and_rank_0_has_written_what_each_has(tmp_path: Path) -> None:
    def act(rank: int) -> Any:
        torch.manual_seed(100 + rank)
        return save(tmp_path, data_state={"of": rank})

    assert in_ranks(2, act) == [tmp_path / FILE] * 2
    states = torch.load(tmp_path / FILE, weights_only=True)["rank_states"]
    assert [one["data_state"] for one in states] == [{"of": 0}, {"of": 1}]
    assert not torch.equal(*(one["rng_state"]["torch"] for one in states))


def test_a_refusal_of_rank_1_is_one_sentence_in_both_and_nothing_is_written(tmp_path: Path) -> None:
    def act(rank: int) -> Any:
        return save(tmp_path, extra={"mine": object()} if rank else {})

    answers = raised(in_ranks(2, act))
    assert answers[0] == answers[1]
    assert answers[0].startswith(
        "KitError: no rank goes on with the save of step 3, for rank 1 cannot: the checkpoint's 'mine' is a "
        "'builtins.object'"
    )
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fails_gives_none_in_all_ranks_and_twice_in_a_row_an_error_in_all(tmp_path: Path) -> None:
    def act(rank: int) -> Any:
        def fail(*_args: Any) -> None:
            raise OSError(5, "Input/output error")

        saving._write = fail
        first = save(tmp_path)
        return first, raised([_error(lambda: save(tmp_path))])[0]

    answers = in_ranks(2, act)
    assert [one[0] for one in answers] == [None, None]
    why = "step 3 was not saved to '"
    assert answers[0][1].startswith(f"KitError: no rank goes on with the writing of step 3, for rank 0 cannot: {why}")
    assert answers[1][1] == answers[0][1]


def _error(call: Any) -> Any:
    try:
        return call()
    except Exception as error:
        return error


def test_a_rank_that_never_comes_to_the_save_is_waited_for_no_longer_than_said_and_named(tmp_path: Path) -> None:
    def act(rank: int) -> Any:
        return save(tmp_path) if rank == 0 else None

    first, _ = raised(in_ranks(2, act, wait_s=0.5))
    assert first.startswith("KitError: rank 1 of 2 did not come to the save of step 3 within 0.5 s")
    assert not list(tmp_path.iterdir())


def test_an_unknown_value_is_one_sentence(tmp_path: Path) -> None:
    for call in (lambda: save(tmp_path, ranks="each"), lambda: load(None, ranks="each")):
        with pytest.raises(KitError, match="ranks='each' is unknown: 'all' where every rank makes this call"):
            call()


def load(path: Path | None, model: Any = None, **more: Any) -> Any:
    model = model or torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return load_resume_bundle(model, optimizer, ckpt_path=path, log_fn=quiet, **more), optimizer


@pytest.mark.parametrize("fault", ["other_file", "other_model"])
def test_what_one_rank_cannot_load_none_loads(fault: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    (tmp_path / "other").mkdir()
    other = save_checkpoint(tmp_path / "other", 4, model=torch.nn.Linear(2, 1), data_state={}, log_fn=quiet)

    def act(rank: int) -> Any:
        model = torch.nn.Linear(2, 1 + (rank and fault == "other_model"))
        before = model.weight.detach().clone()
        error = _error(lambda: load(other if rank and fault == "other_file" else path, model, ranks="all"))
        return raised([error])[0], torch.equal(model.weight, before)

    answers = in_ranks(2, act)
    assert answers[0] == answers[1] and answers[0][1], "nothing was loaded"
    sentence = {
        "other_file": "KitError: the ranks do not do the same: rank 1 has checkpoint hrm_arc_step_4.pt, step 4, and "
        "rank 0 checkpoint hrm_arc_step_3.pt, step 3",
        "other_model": "InvalidFile: no rank goes on with the load, for rank 1 cannot: ",
    }[fault]
    assert answers[0][0].startswith(sentence)


def test_the_worst_check_of_all_ranks_is_the_runs_and_names_the_rank(tmp_path: Path) -> None:
    path, run = saved(tmp_path), tmp_path / "run"
    run.mkdir()

    def act(rank: int) -> None:
        os.environ["RESUMEKIT_RUN_DIR"] = str(run)
        model = torch.nn.Linear(2, 1)
        _, optimizer = load(path, model, ranks="all")
        if rank:
            model.weight.data += 1
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    assert in_ranks(2, act) == [None, None]
    found = {one["name"]: one for one in events(run, "check")}
    assert len(found) == len(list(events(run, "check"))), "each once"
    assert found["weights"]["verdict"] == "failed" and found["weights"]["why"].startswith("rank 1; ")
    assert found["optimizer"]["verdict"] == "passed" and "rank" not in found["optimizer"]["why"]
    for event in events(run):
        assert_valid("event", event)


@pytest.fixture
def run_of_rank_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    for name, value in {
        "RESUMEKIT_RUN_DIR": str(run),
        "RESUMEKIT_RUN_ID": "run",
        "RANK": "1",
        "WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(name, value)
    return run


def test_of_another_rank_only_what_went_wrong_is_journaled_with_its_number(run_of_rank_1: Path) -> None:
    for event, fields in (
        ("step", {"step": 1, "loss": 0.5}), ("eval", {"step": 1, "kind": "fast", "weights": "raw"}),
        ("heartbeat", {"global_step": 1}), ("warning", {"kind": "no_data_state", "message": "it"}),
        ("check", {"name": "weights", "verdict": "passed", "expected": None, "found": None, "why": ""}),
    ):  # fmt: skip
        journal_event(event, **fields)
    assert not (run_of_rank_1 / "journal.jsonl").exists()
    journal_event("step", step=2, loss=float("nan"))
    journal_event("nonfinite", step=3, what="gradient")
    journal_event("oom", step=4, message="out of memory")
    journal_event("check", name="weights", verdict="failed", expected=None, found=None, why="x")
    told = [(one["event"], one.get("what") or one.get("rank") or one.get("why")) for one in events(run_of_rank_1)]
    assert told == [
        ("nonfinite", "loss of rank 1"), ("nonfinite", "gradient of rank 1"), ("oom", 1), ("check", "rank 1; x"),
    ]  # fmt: skip
    for event in events(run_of_rank_1):
        assert_valid("event", event)


def test_a_loss_of_another_rank_that_is_not_finite_once_is_taken_back_and_told_twice_it_is_sure() -> None:
    told = {"event": "nonfinite", "what": "loss of rank 1", "rank": 1}
    once = health.on_nonfinite({}, told, 7, 0.0)
    assert not health.not_finite(once)
    assert not health.not_finite(health.on_loss(once, 0.5, 8, 1.0), is_last=True), (
        "the first rank's next loss is finite"
    )
    for twice in (health.on_nonfinite(once, told, 8, 1.0), health.on_loss(once, "nan", 8, 1.0)):
        ((evidence, _, step),) = health.not_finite(twice)
        assert "loss of rank 1 not finite" in evidence and step == 7


def test_only_the_first_rank_beats(run_of_rank_1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    writer = heartbeat_writer(run_of_rank_1 / "status.json", lambda: {"asked": asked.append(1)}, every_s=1000)
    writer.close()
    assert not asked and not list(run_of_rank_1.iterdir())
    monkeypatch.setenv("RANK", "0")
    assert writer() and asked


def test_the_passes_of_a_step_keep_the_global_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert accumulation(64, 4) == 16
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert accumulation(64, 4) == 2
    for global_batch, micro_batch in ((48, 5), (16, 4), (0, 4), (64, 0)):
        with pytest.raises(KitError, match=f"a global batch of {global_batch} is no multiple of {8 * micro_batch}, "):
            accumulation(global_batch, micro_batch)


@pytest.fixture
def restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that has saved step 3, in a process that torchrun has started again in its place."""
    monkeypatch.setenv("RESUMEKIT_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("RESUMEKIT_RUN_ID", "run")
    saved(tmp_path / "checkpoints")
    save_checkpoint(tmp_path / "parent", 1, model=torch.nn.Linear(2, 1), data_state={}, log_fn=quiet)
    for module, name, value in (
        (saving, "_saved", {}), (restart, "_goes_on", False), (restart, "_before", {}),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    monkeypatch.setenv(restart.VARIABLE, "1")
    return tmp_path


def test_a_restarted_trainer_goes_on_from_its_own_checkpoint_whatever_its_arguments_say(
    restarted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = restarted / "parent" / "hrm_arc_step_1.pt"
    monkeypatch.setenv("RESUMEKIT_PLAN", str(write_plan(restarted, parent, 1)))
    for told in (None, parent):
        bundle, _ = load(told, optimizer_policy="reset")
        assert bundle.global_step == 3 and bundle.report["optimizer"] == "load", "a reset was done when it began"
    (first, second) = (one["message"] for one in events(restarted, "warning") if one["kind"] == "restarted_in_place")
    assert first.endswith("newest checkpoint, 'hrm_arc_step_3.pt', and not from nothing")
    assert second.endswith("and not from 'hrm_arc_step_1.pt', as its arguments say")
    assert save_checkpoint(restarted / "checkpoints", 4, model=torch.nn.Linear(2, 1), data_state={}, log_fn=quiet)


def test_a_teacher_is_loaded_as_it_is_named(restarted: Path) -> None:
    assert load(restarted / "parent" / "hrm_arc_step_1.pt")[0].global_step == 1


def test_what_a_process_has_saved_itself_is_no_earlier_starts(restarted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second stage begins anew though the first one has saved."""
    for count in ("0", "1"):
        monkeypatch.setenv(restart.VARIABLE, count)
        run = restarted / f"run_{count}"
        monkeypatch.setenv("RESUMEKIT_RUN_DIR", str(run))
        assert load(None)[0].global_step == 0
        save_checkpoint(run / "checkpoints", 4, model=torch.nn.Linear(2, 1), data_state={}, log_fn=quiet)
        assert load(None)[0].global_step == 0


def test_a_restarted_trainer_that_does_not_go_on_is_refused_at_its_first_save_and_not_at_each(restarted: Path) -> None:
    sentence = (
        r"started this trainer again in its place \(restart 1\), it did not go on from its own checkpoint of step 3 "
        "and would save step 2 again with other values: call load_resume_bundle at each start"
    )
    with pytest.raises(KitError, match=sentence):
        save_checkpoint(restarted / "checkpoints", 2, model=torch.nn.Linear(2, 1), data_state={}, log_fn=quiet)
    for _ in range(2):  # what follows is new, and may be saved again
        path = save_checkpoint(restarted / "checkpoints", 4, model=torch.nn.Linear(2, 1), data_state={}, log_fn=quiet)
        assert path is not None


def test_a_first_start_in_an_empty_folder_begins_anew(restarted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (restarted / "checkpoints").iterdir():
        path.unlink()
    assert load(None)[0].global_step == 0
    monkeypatch.delenv(restart.VARIABLE)
    assert load(None)[0].global_step == 0


def test_a_checkpoint_of_another_run_in_the_folder_is_none_of_its_own(
    restarted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESUMEKIT_RUN_ID", "another")
    assert load(None)[0].global_step == 0
    assert json.loads((restarted / "checkpoints" / f"{FILE}.json").read_text())["run_id"] == "run"
