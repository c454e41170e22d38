"""A DDP training of two ranks, each with numbers of its own: cut anywhere and resumed, it is as if never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from resumekit.checkpoint import manifest
from resumekit.trainer.saving import save_checkpoint
from support import ranks_trainer
from support.commands import Kit
from support.fork_server import LIMIT_S, ForkServer
from support.places import ROOT
from support.processes import wait_until
from support.rank_groups import in_ranks
from support.rank_runs import PATTERN, STEPS, assert_same, losses, newest, newest_or_none, started, train
from support.runs import events
from support.schemas import assert_valid


@pytest.fixture(scope="module")
def server() -> ForkServer:
    return ForkServer("support.ranks_trainer")


@pytest.fixture(scope="module")
def whole(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(server, folder, "--ranks", "all") == [0, 0]
    return folder


@pytest.mark.parametrize(
    "cut", ["step:6:0", "step:7:1", "save:8:0", "manifest:8:0", "before_save:8:1", "eval:9:1"]
)  # fmt: skip
def test_cut_by_a_kill_anywhere_and_resumed_every_rank_goes_on_bit_for_bit(
    cut: str, server: ForkServer, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    codes = train(server, folder, "--ranks", "all", CUT=cut)
    assert codes[int(cut[-1])] == -signal.SIGKILL
    path = newest(folder / "checkpoints")
    own = str(tmp_path / "more")  # as the launcher does, in a folder of its own
    assert train(server, folder, "--ranks", "all", "--resume", str(path), "--checkpoints", own) == [0, 0]
    assert_same(folder, whole)


def test_a_stop_saves_in_all_ranks_and_loses_nothing(server: ForkServer, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ranks = started(server, folder, "--ranks", "all", "--steps", "100000")
    wait_until(lambda: newest_or_none(folder / "checkpoints") is not None, "a checkpoint")
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert [one.wait() for one in ranks] == [143, 143]
    last = newest(folder / "checkpoints")
    assert {max(losses(folder, rank)) for rank in range(2)} == {manifest.read(last).step}
    states = torch.load(last, weights_only=True)["rank_states"]
    assert len(states) == 2 and not torch.equal(*(one["rng_state"]["torch"] for one in states))
    assert manifest.read(last).rng_ranks == 2


def test_the_first_rank_alone_reports_one_load_and_one_of_each_check(
    server: ForkServer, whole: Path, tmp_path: Path
) -> None:
    resume = str(whole / "checkpoints" / PATTERN.format(8))
    assert train(server, tmp_path, "--ranks", "all", "--resume", resume, "--own-places") == [0, 0]
    (load,) = events(tmp_path, "resumed")
    assert load["report"]["rng"] == "load" and load["report"]["data_position"] == "load"
    checks = [(one["name"], one["verdict"]) for one in events(tmp_path, "check")]
    assert len({name for name, _ in checks}) == len(checks) and ("rng", "passed") in checks
    assert ("weights", "passed") in checks and ("optimizer", "passed") in checks
    assert [one["step"] for one in events(tmp_path, "step")] == [9, 10, 11, 12]
    for event in events(tmp_path):
        assert_valid("event", event)
    assert "[resume]" in (tmp_path / "rank_0" / "output.log").read_text()
    assert "[resume]" not in (tmp_path / "rank_1" / "output.log").read_text()


def test_a_checkpoint_of_rank_0_alone_says_so_and_its_resume_is_not_exact(
    server: ForkServer, whole: Path, tmp_path: Path
) -> None:
    """The same training whose ranks all make the call, without ranks='all': the seeds differ, and so do the losses."""
    folder = tmp_path / "run"
    assert train(server, folder, "--steps", "8") == [0, 0]
    path = newest(folder / "checkpoints")
    assert manifest.read(path).rng_ranks == 1
    assert_valid("manifest", json.loads(path.with_name(f"{path.name}.json").read_text()))
    own = str(tmp_path / "more")
    assert train(server, folder, "--resume", str(path), "--checkpoints", own) == [0, 0]
    assert losses(folder, 0) != losses(whole, 0)
    (load,) = events(folder, "resumed")
    assert load["report"]["rng"] == "rank 0 only"


def test_what_all_have_saved_together_each_rank_may_load_for_itself(
    server: ForkServer, whole: Path, tmp_path: Path
) -> None:
    assert train(server, tmp_path, "--resume", str(whole / "checkpoints" / PATTERN.format(8))) == [0, 0]
    (load,) = events(tmp_path, "resumed")
    assert load["report"]["rng"] == "load"
    for rank in range(2):
        own, left_alone = losses(tmp_path, rank), losses(whole, rank)
        assert own == {step: left_alone[step] for step in range(9, STEPS + 1)}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("own_places", [False, True])
def test_another_number_of_ranks_loads_with_new_generators_and_says_what_became_of_the_place(
    count: int, own_places: bool, server: ForkServer, tmp_path: Path
) -> None:
    folder, now = tmp_path / "run", {1: 1, 3: 4}[count]
    more = ["--own-places"] if own_places else []
    assert train(server, folder, "--ranks", "all", "--steps", "8", *more) == [0, 0]
    path = newest(folder / "checkpoints")
    child = tmp_path / "child"
    assert train(server, child, "--ranks", "all", "--resume", str(path), *more, count=now) == [0] * now
    (load,) = events(child, "resumed")
    change = f"world_size: 2 at the save, {now} now"
    assert load["report"]["rng"] == f"reset: left as it is, {change}"
    assert load["report"]["data_position"] == (
        f"reset: each of 2 ranks had a place of its own in the data, and now there are {now}"
        if own_places
        else f"rederive: {change}"
    )
    end = torch.load(child / "final_0", weights_only=True)
    if not own_places:  # the examples of all ranks, whatever their number: 8 in each step, 40 in an epoch
        assert (end["place"]["epoch"], end["place"]["position"]) == (2, 16)
    assert f"[warn] {change}" in (child / "rank_0" / "output.log").read_text()


def test_one_rank_alone_that_becomes_two_gets_new_generators(server: ForkServer, tmp_path: Path) -> None:
    folder, child = tmp_path / "run", tmp_path / "child"
    assert train(server, folder, "--ranks", "all", "--steps", "8", count=1) == [0]
    path = newest(folder / "checkpoints")
    assert "rank_states" not in torch.load(path, weights_only=True) and manifest.read(path).rng_ranks is None
    assert train(server, child, "--ranks", "all", "--resume", str(path)) == [0, 0]
    (load,) = events(child, "resumed")
    assert load["report"]["rng"] == "reset: left as it is, world_size: 1 at the save, 2 now"
    assert load["report"]["data_position"] == "rederive: world_size: 1 at the save, 2 now"


def test_a_trainer_that_is_started_again_in_its_place_goes_on_from_its_own_newest_checkpoint_bit_for_bit(
    server: ForkServer, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(server, folder, "--ranks", "all", CUT="step:10:1")
    assert train(server, folder, "--ranks", "all", TORCHELASTIC_RESTART_COUNT="1") == [0, 0]
    assert_went_on(folder, whole)


@pytest.mark.long
def test_a_restart_inside_torchrun_goes_on_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1",
        "--monitor-interval=0.1", ranks_trainer.__file__, "--dir", str(folder), "--steps", str(STEPS), "--ranks", "all",
    ]  # fmt: skip
    own = {"RESUMEKIT_RUN_DIR": str(folder), "RESUMEKIT_RUN_ID": "run", "CUT": "step:10:1"}
    done = subprocess.run(
        command, env={**os.environ, **own, "OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True,
        timeout=LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert_went_on(folder, whole)


@pytest.mark.long
def test_a_rank_that_is_killed_under_torchrun_is_recovered_by_the_launcher_bit_for_bit(whole: Path, kit: Kit) -> None:
    out = kit.folder / "out"
    out.mkdir()
    torchrun = ["{python}", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", ranks_trainer.__file__]
    where = [
        "--dir",
        str(out).replace("{", "{{"),
        "--checkpoints",
        "{checkpoints_dir}",
        "--steps",
        "{training.max_steps}",
    ]
    kit.config(
        trainer={"command": [*torchrun, *where, "--ranks", "all"], "resume_args": ["--resume", "{checkpoint}"],
                 "loads_with_kit": True},
        training={"max_steps": STEPS}, recover={"enabled": True, "backoff_s": 1},
    )  # fmt: skip
    kit("run", "T-1", env={"CUT": "step:10:1", "OMP_NUM_THREADS": "1"})
    first, second = kit.run_dirs()
    assert_same(out, whole)
    assert [one["step"] for one in events(first, "checkpoint")] == [4, 8]
    (load,) = events(second, "resumed")
    assert (load["step"], load["report"]["rng"]) == (8, "load")
    found = {one["name"]: one["verdict"] for one in events(second, "check")}
    assert found["rng"] == found["loss"] == found["resume"] == "passed"


def assert_went_on(folder: Path, whole: Path) -> None:
    assert_same(folder, whole)
    (warning,) = (one for one in events(folder, "warning") if one["kind"] == "restarted_in_place")
    assert warning["message"] == (
        "torchrun has started this trainer again in its place (restart 1): it goes on from its own newest checkpoint, "
        "'hrm_arc_step_8.pt', and not from nothing"
    )
    assert [one["step"] for one in events(folder, "checkpoint")] == [4, 8, 12], "each once"
    assert not any(one["kind"] == "save_failed" for one in events(folder, "warning"))


def test_a_trainer_of_which_rank_0_alone_saves_waits_for_nobody(server: ForkServer, tmp_path: Path) -> None:
    """Rank 1 is asleep until rank 0 has saved: had rank 0 waited, neither would end."""

    def act(rank: int) -> Any:
        saved = tmp_path / "saved"
        if rank == 0:
            path = save_checkpoint(tmp_path, 1, model=torch.nn.Linear(2, 1), data_state={}, log_fn=quiet)
            saved.touch()
            return path is not None
        while not saved.exists():
            time.sleep(0.01)
        return None

    assert in_ranks(2, act) == [True, None]


def quiet(_line: str) -> None:
    pass
