"""A run that was cut anywhere and resumed is bit for bit the run that was never cut; without any item of its state not.

Each cut is a real trainer under the launcher that signals itself at a named place (support/cut_trainer.py), and each
resume a new process started by the commands. `make campaign` does all cuts, `make faults` the nastiest one of each
kind, `make test` one row of them, in processes that are forked from one that has imported torch.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from resumekit.trainer.comparison import compare
from support import cut_trainer
from support.commands import Kit
from support.fork_server import ForkServer
from support.long_tests import every_fourth, long
from support.runs import events

EVERY = 3  # optimizer steps between two checkpoints; a new best (steps 4, 8, 12) saves too
CONFIG: dict[str, dict[str, Any]] = {
    "data": {"max_grid": 5},
    "model": {
        "seq_len": 25, "hidden_size": 16, "layers": 1, "heads": 2, "puzzle_emb_dim": 16, "dropout": 0.1,
        "halt_max_steps": 2, "halt_exploration": 0.5,
    },
    "training": {
        "seed": 1, "max_steps": 12, "batch_size": 4, "grad_accum_steps": 2, "amp": "off", "device": "cpu", "threads": 1,
        "log_every": 1,
    },
    "optimizer": {"lr": 1e-3},
    "schedule": {"warmup_steps": 4},
    "ema": {"decay": 0.9},
    "validation": {
        "fast_eval_every": 2, "full_eval_every": 4, "gate_full_eval_on_fast_improvement": False,
        "best_metric": "loss", "best_mode": "min",
    },
    "checkpoint": {"every": EVERY, "keep_last": 2},
    "recover": {"enabled": False},
}  # fmt: skip
BF16 = {"training": CONFIG["training"] | {"amp": "bf16"}}
# Everything on that is off above; a step may need several attempts, so cuts count by whole steps.
SWITCHES: dict[str, dict[str, Any]] = {
    "model": CONFIG["model"] | {"droppath_h": "0..0.3", "aux_rule_head": True},
    "training": CONFIG["training"] | {"amp": "fp16", "grad_noise_sigma": 0.01},
    "optimizer": CONFIG["optimizer"] | {"name": "lion"},
    "swa": {"enabled": True, "start_step": 4, "cycle_steps": 3, "amplitude": 0.3},
}
TRAINER = {
    "command": [
        "{python}", "-u", str(Path(cut_trainer.__file__)).replace("{", "{{").replace("}", "}}"), "--run_id", "{run_id}",
        "--config", "{config_json}", "--checkpoint_dir", "{checkpoints_dir}", "--status_json_path", "{heartbeat_json}",
        "--logdir", "{logs_dir}",
    ],
    "resume_args": ["--resume", "{checkpoint}"],
    "loads_with_kit": True,
    "log_patterns": {},
}  # fmt: skip

# <signal>:<stage>:<k>: the k-th passage, of this process, through a stage. Several: each resumed run is cut again.
SAMPLE = (
    # the second save is of step 4; a stop in the full evaluation of that step; a stop while it is saved again
    "KILL:save.write:2 TERM:eval:4 INT:save.rename:1 KILL:optimizer:5",
    # a stop in the middle of backward(); the data has its final name, the manifest has not; all but the random numbers
    # are loaded; a stop between the forward and the backward pass
    "INT:backward:7 KILL:save.manifest:2 KILL:load.rng:1 TERM:micro:11",
)
CAMPAIGN = (
    # an optimizer step, in its order; `forward`, `micro` and `backward` pass twice in each
    "KILL:start:1", "TERM:start:1", "KILL:between:1", "KILL:between:2", "KILL:between:4", "KILL:between:12",
    "TERM:between:1", "TERM:between:7", "INT:between:12", "KILL:forward:8", "KILL:forward:21", "TERM:forward:5",
    "KILL:micro:7", "KILL:micro:16", "KILL:micro:24", "TERM:micro:2", "INT:micro:23", "KILL:backward:10",
    "KILL:backward:19", "TERM:backward:20", "KILL:clip:5", "INT:clip:9", "KILL:optimizer:1", "KILL:optimizer:11",
    "TERM:optimizer:6", "INT:optimizer:8", "KILL:schedule:7", "TERM:schedule:3", "KILL:ema:6", "KILL:ema:12",
    "INT:ema:4", "KILL:counted:8", "TERM:counted:9", "KILL:journal.step:7", "KILL:journal.step:12",
    "TERM:journal.step:5",
    # an evaluation: fast after every second step, full after every fourth, raw and EMA weights each
    "KILL:eval:1", "KILL:eval:5", "KILL:eval:8", "KILL:eval:20", "TERM:eval:1", "TERM:eval:9", "INT:eval:2",
    "INT:eval:19", "KILL:journal.eval:4", "TERM:journal.eval:4", "KILL:journal.best:2", "INT:journal.best:1",
    # a save: the first is of step 3, then 4, 6, 8, 9, 12; pruning has something to do from the third on
    "KILL:save.collect:1", "TERM:save.collect:2", "KILL:save.write:1", "KILL:save.write:6", "TERM:save.write:3",
    "INT:save.write:4", "INT2:save.write:3", "TERM2:save.write:2", "KILL:save.fsync:2", "TERM:save.fsync:6",
    "KILL:save.rename:1", "KILL:save.rename:4", "TERM:save.rename:5", "KILL:save.renamed:3", "KILL:save.manifest:1",
    "KILL:save.manifest:2", "TERM:save.manifest:4", "KILL:save.best:2", "KILL:save.best.linked:1",
    "KILL:save.best.linked:2", "KILL:save.best.manifest:1", "KILL:save.best.manifest:3", "INT:save.best.manifest:2",
    "KILL:save.synced:3", "KILL:save.synced:6", "TERM:save.synced:2", "KILL:save.prune:2", "KILL:save.prune:5",
    "KILL:save.pruned:1", "TERM:save.pruned:1", "KILL:end:1", "TERM:end:1",
    # the resumed run is cut again, while it loads or later
    "KILL:between:8 KILL:start:1", "KILL:between:8 KILL:load:1", "TERM:between:8 KILL:loaded:1",
    "TERM:between:8 TERM:load:1", "INT:eval:5 KILL:eval:1", "TERM:eval:5 INT:eval:1",
    "KILL:optimizer:5 KILL:optimizer:2",
    "KILL:save.manifest:3 KILL:save.manifest:1", "INT:save.pruned:1 KILL:save.best:1", "KILL:ema:4 INT:micro:3",
)  # fmt: skip
# Here the checkpoint that is being saved is whole, though its event is not in the journal yet ...
WHOLE_AT = ("save.best", "save.best.linked", "save.best.manifest", "save.synced")
# ... and here its data is, under its final name and without a manifest: the kit may find it sound and take it.
PERHAPS_WHOLE_AT = ("save.renamed", "save.manifest")
# Every step and evaluation is done when these come: nothing is left to stop, and nothing to resume.
TOO_LATE = ("TERM:end:1", "TERM:save.fsync:6")


@pytest.fixture(scope="module")
def server() -> ForkServer:
    return ForkServer("support.cut_trainer", "arc_training")


def forked(server: ForkServer) -> dict[str, Any]:
    """Return TRAINER's section for a trainer that is forked."""
    return TRAINER | {"command": server.command("support.cut_trainer", *TRAINER["command"][3:])}


@pytest.fixture(scope="module")
def uninterrupted(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from whole_run(tmp_path_factory.mktemp("whole"), trainer=forked(server))


@pytest.fixture(scope="module")
def uninterrupted_bf16(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from whole_run(tmp_path_factory.mktemp("whole_bf16"), **BF16)


def whole_run(folder: Path, **sections: Any) -> Iterator[Path]:
    kit = Kit(folder)
    kit.config(**{"trainer": TRAINER} | CONFIG | sections)
    kit("run", "T-1")
    (run,) = kit.run_dirs()
    assert [e["step"] for e in events(run, "step")] == list(range(1, 13))
    assert saved_steps(run) == [3, 4, 6, 8, 9, 12], "the cuts below count saves in this order"
    yield run
    kit.clean_up()


@pytest.mark.parametrize("cut", [SAMPLE[0], long(SAMPLE[1])])
def test_a_run_that_was_cut_and_resumed_equals_the_uninterrupted_one(
    cut: str, kit: Kit, server: ForkServer, uninterrupted: Path
) -> None:
    kit.config(trainer=forked(server) if cut == SAMPLE[0] else TRAINER, **CONFIG)
    cut_and_resume(kit, cut.split(), uninterrupted)


@pytest.mark.campaign
@pytest.mark.parametrize("cut", CAMPAIGN)
def test_wherever_it_is_cut_the_resumed_run_equals_the_uninterrupted_one(
    cut: str, kit: Kit, uninterrupted: Path
) -> None:
    kit.config(trainer=TRAINER, **CONFIG)
    cut_and_resume(kit, cut.split(), uninterrupted)


@pytest.mark.campaign
@pytest.mark.parametrize("cut", ["KILL:micro:15", "TERM:eval:4"])
def test_under_bf16_autocast_too(cut: str, kit: Kit, uninterrupted_bf16: Path, uninterrupted: Path) -> None:
    kit.config(trainer=TRAINER, **CONFIG | BF16)
    cut_and_resume(kit, cut.split(), uninterrupted_bf16)
    assert not compare(uninterrupted_bf16, uninterrupted).is_equal, "bf16 was on"


@pytest.mark.long
@pytest.mark.parametrize("cut", ["KILL:optimizer:8 TERM:eval:5 KILL:save.manifest:2"])
def test_with_every_switch_on_too(cut: str, kit: Kit, tmp_path: Path) -> None:
    whole = Kit(tmp_path / "whole")
    whole.config(trainer=TRAINER, **CONFIG | SWITCHES)
    whole("run", "T-1")
    kit.config(trainer=TRAINER, **CONFIG | SWITCHES)
    cut_and_resume(kit, cut.split(), whole.run_dirs()[0])
    whole.clean_up()


def cut_and_resume(kit: Kit, cuts: list[str], whole: Path) -> None:
    """Run, cut as often as `cuts` says, and resume to the end; what is promised about it is asserted on the way."""
    begins = {0}
    for cut in (*cuts, ""):
        runs_before = kit.run_dirs()
        # Before the first checkpoint there is nothing to resume: `run` starts anew then, and else it continues.
        # One that was cut behind its last step has nothing left to train, and a resume asks.
        words = ("run", "T-1") if 0 in begins else ("resume", "T-1", *(["--accept"] if 12 in begins else []))
        result = kit(*words, code=None, env={"CUT": cut})
        (run,) = set(kit.run_dirs()) - set(runs_before)
        assert result.returncode == expected_code(cut), f"{result.stdout}{result.stderr}"
        begun_at = json.loads((run / "run.json").read_bytes())["parent_step"] or 0
        steps = [e["step"] for e in events(run, "step")]
        assert begun_at in begins
        assert steps == list(range(begun_at + 1, begun_at + 1 + len(steps)))
        if cut in TOO_LATE:
            break
        begins = resumable_steps(run, cut, begun_at, (steps or [begun_at])[-1]) if cut else {12}
    assert kit.status(run)["state"] == "finished"
    assert compare(run, whole).differences == []


def expected_code(cut: str) -> int:
    if not cut or cut in TOO_LATE:
        return 0
    return 128 + signal.Signals[f"SIG{cut.partition(':')[0].rstrip('2')}"]


def resumable_steps(run: Path, cut: str, begun_at: int, last: int) -> set[int]:
    """Return the steps that the next start may begin at; a stop loses none of them, a kill at most one interval."""
    name, stage, _ = cut.split(":")
    saved, found = max([begun_at, *saved_steps(run)]), proven_steps(run)
    proven = max([begun_at, *found])
    if name in ("TERM", "INT"):
        assert proven == last
    elif stage in WHOLE_AT:
        assert found and proven >= saved
    elif stage in PERHAPS_WHOLE_AT:
        newest = max(step_of(path) for path in run.glob("checkpoints/hrm_arc_step_*.pt"))
        assert newest > saved and proven in (saved, newest)
        return {saved, newest}
    else:
        assert proven == saved
    assert last - proven <= EVERY
    return {proven}


def saved_steps(run: Path) -> list[int]:
    """Return the steps that the trainer said it had saved (the sidecar tells of what it found sound)."""
    return [e["step"] for e in events(run, "checkpoint") if e.get("writer") != "sidecar"]


def proven_steps(run: Path) -> list[int]:
    """Return the steps of a run's own checkpoints whose digest is the one in their manifest."""
    pairs = [(path, path.with_suffix(".pt.json")) for path in run.glob("checkpoints/hrm_arc_step_*.pt")]
    return [step_of(data) for data, manifest in pairs if manifest.exists() and is_proven(data, manifest)]


def is_proven(data: Path, manifest: Path) -> bool:
    return hashlib.sha256(data.read_bytes()).hexdigest() == json.loads(manifest.read_bytes())["sha256"]


def step_of(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


# Each item of the state, left out at a load by a trainer that is otherwise the same.

LAST_STEP = 11
# The largest loss counts as the best one: after the first evaluations none is, so what is remembered of them decides.
STATE_CONFIG = CONFIG | {
    "training": CONFIG["training"] | {"max_steps": LAST_STEP},
    "validation": CONFIG["validation"] | {"best_mode": "max"},
    "checkpoint": {"every": EVERY, "keep_last": None},
}
SWITCHES_STATE_CONFIG = STATE_CONFIG | SWITCHES | {
    "training": SWITCHES["training"] | {"max_steps": LAST_STEP},
}  # fmt: skip
IN_AN_EVALUATION, IN_A_STEP = "TERM:eval:13", "TERM:micro:18"  # saves step 8, both evaluations pending; saves step 9
IN_A_STEP_OF_SWITCHES = "TERM:optimizer:9"  # saves step 9


@pytest.fixture(scope="module")
def stopped(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By cut: the checkpoint that the stop left; and under '' the uninterrupted run's folder."""
    runs = tmp_path_factory.mktemp("state")
    found = {"": train(server, runs / "whole", FRESH_LR_SCALE="0.5")}
    for name, cut, step in (("at-8", IN_AN_EVALUATION, 8), ("at-9", IN_A_STEP, 9)):
        train(server, runs / name, code=143, CUT=cut, FRESH_LR_SCALE="0.5")
        found[cut] = runs / name / "checkpoints" / f"hrm_arc_step_{step}.pt"
    return found


def train(
    server: ForkServer, run: Path, resume: Path | None = None, code: int = 0, config: dict[str, Any] = STATE_CONFIG,
    **environment: str,
) -> Path:  # fmt: skip
    """Train in a process of its own, without the launcher; returns the run folder."""
    run.mkdir()
    file = run / "resolved_config.json"
    file.write_text(json.dumps(config))
    parent = {"parent_run_id": resume.parent.parent.name, "parent_step": step_of(resume)} if resume else {}
    (run / "run.json").write_text(json.dumps({"run_id": run.name, **parent}))
    ended = server.run(run, "--config", str(file), *(["--resume", str(resume)] if resume else []), **environment)
    assert ended == code, (run / "output.log").read_text()
    return run


@pytest.mark.parametrize("cut", [IN_AN_EVALUATION, IN_A_STEP])
def test_with_every_item_of_its_state_a_run_goes_on_alike(
    cut: str, server: ForkServer, stopped: dict[str, Path]
) -> None:
    run = train(server, stopped[""].parent / f"all-{cut}", stopped[cut])
    assert compare(run, stopped[""]).differences == []


@pytest.mark.parametrize("item", every_fourth(cut_trainer.FORGET))
def test_without_one_item_of_its_state_it_goes_on_differently(
    item: str, server: ForkServer, stopped: dict[str, Path]
) -> None:
    cut = IN_AN_EVALUATION if item == "evaluations pending" else IN_A_STEP
    run = train(server, stopped[""].parent / f"without {item}", stopped[cut], LEAVE_OUT=item)
    assert not compare(run, stopped[""]).is_equal


@pytest.fixture(scope="module")
def stopped_switches(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The uninterrupted run's folder and the checkpoint that a stop left, with every switch on."""
    runs = tmp_path_factory.mktemp("switches")
    whole = train(server, runs / "whole", config=SWITCHES_STATE_CONFIG)
    train(server, runs / "cut", code=143, config=SWITCHES_STATE_CONFIG, CUT=IN_A_STEP_OF_SWITCHES)
    return whole, runs / "cut" / "checkpoints" / "hrm_arc_step_9.pt"


def test_with_every_item_of_its_state_a_run_with_every_switch_on_goes_on_alike(
    server: ForkServer, stopped_switches: tuple[Path, Path]
) -> None:
    whole, checkpoint = stopped_switches
    run = train(server, whole.parent / "all", checkpoint, config=SWITCHES_STATE_CONFIG)
    assert compare(run, whole).differences == []


@pytest.mark.parametrize("item", every_fourth(cut_trainer.FORGET_SWITCHES))
def test_without_one_item_of_its_state_a_run_with_every_switch_on_goes_on_differently(
    item: str, server: ForkServer, stopped_switches: tuple[Path, Path]
) -> None:
    whole, checkpoint = stopped_switches
    run = train(server, whole.parent / f"without {item}", checkpoint, config=SWITCHES_STATE_CONFIG, LEAVE_OUT=item)
    assert not compare(run, whole).is_equal


def test_the_puzzles_optimizer_has_no_state_beside_its_place_in_the_schedule(stopped: dict[str, Path]) -> None:
    checkpoint = torch.load(stopped[IN_A_STEP], weights_only=True)
    assert checkpoint["optimizer_state_dict"]["puzzles"]["state"] == {}
