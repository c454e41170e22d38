"""Sharded checkpoints (`save_sharded`): ranks killed in the middle of saves, and files changed behind the manifest.

Two gloo ranks under fully_shard, in processes of their own; every number in the checkpoint of step N is N, so that a
mix of two steps is seen. What is chosen is read by torch's own reader. Exits with 1 if anything torn, mixed or altered
was taken, or a save that was done is not.
Try it: `PYTHONPATH=.:lib:tests .venv/bin/python -m reliability.campaign_sharded --kills 300 --mutants 2000`
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # these once, before the ranks are forked
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.fsdp import fully_shard

from reliability.campaign_kinds import MUTATIONS, mutated
from reliability.kind_savers import emptied, numbers
from resume_helper import save_sharded
from resumekit.base.errors import KitError
from resumekit.checkpoint import form, selection
from resumekit.checkpoint.sharded_folder import STATE_FILE
from resumekit.trainer import sharded_content

PATTERN, RANKS, WIDTH = "step-{step}", 2, 65
NEEDS = frozenset({"model_state_dict", "optimizer_state_dict"})
# A save takes this long on an idle machine; a kill comes at any moment of one and a half of them.
FIRST_SAVE_S = 0.15


def run_rank(rank: int, meeting: str, folder: Path, first: int, told: Any) -> None:
    """Be one rank: save one step after the other, and tell when each save begins and when it is done."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 3))
    for part in (model[0], model):
        fully_shard(part)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(2, WIDTH)).sum().backward()
    optimizer.step()
    for step in range(first, first + 4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.to_local().fill_(step)
                for value in optimizer.state[parameter].values():
                    (value.to_local() if hasattr(value, "to_local") else value).fill_(step)
        told.send(("begun", step))
        path = save_sharded(folder, step, model=model, optimizer=optimizer, data_state={"step": step, "rank": rank},
                            pattern=PATTERN, timeout_s=5.0, log_fn=lambda _line: None)  # fmt: skip
        told.send(("done", step if path else -step))
    os._exit(0)


def start(folder: Path, first: int) -> tuple[list[Any], list[Any], Path]:
    """Start the ranks; returns the processes, what each tells, and the folder where they meet."""
    context = multiprocessing.get_context("fork")
    meeting = Path(tempfile.mkdtemp())
    pipes = [context.Pipe(duplex=False) for _ in range(RANKS)]
    ranks = [
        context.Process(target=run_rank, args=(rank, str(meeting / "m"), folder, first, pipes[rank][1]))
        for rank in range(RANKS)
    ]
    for one in ranks:
        one.start()
    for _, inner in pipes:
        inner.close()
    return ranks, [outer for outer, _ in pipes], meeting


def heard(pipe: Any) -> list[tuple[str, int]]:
    """Return all that a rank has told until now."""
    found = []
    try:
        while pipe.poll():
            found.append(pipe.recv())
    except EOFError:
        pass
    return found


def chosen(folder: Path) -> selection.Candidate | None:
    """Return what a resume would take."""
    home = selection.CheckpointFolder(folder, None, form.of({"pattern": PATTERN}))
    return selection.select([home], needs=NEEDS).chosen


def steps_in(path: Path) -> set[float]:
    """Return every number in a checkpoint, by torch's own reader, and the steps in its data states."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = path.parent.parent / "whole.pt"
        dcp_to_torch_save(path, whole)
    plain = torch.load(path / STATE_FILE, weights_only=True)
    states = {float(one["data_state"]["step"]) for one in plain["rank_states"]}
    ranks = [one["data_state"]["rank"] for one in plain["rank_states"]]
    assert ranks == list(range(RANKS)), ranks
    return numbers(torch.load(whole, weights_only=True)) | states | {float(plain["global_step"])}


def kills(folder: Path, count: int, dice: random.Random) -> collections.Counter[str]:
    """Kill one rank at a random moment of a save, and the others a moment later, as torchrun does."""
    found: collections.Counter[str] = collections.Counter()
    place, last, save_s = emptied(folder / "checkpoints"), 0, FIRST_SAVE_S
    while found["kills"] < count:
        ranks, pipes, meeting = start(place, last + 1)
        victim, told, first_s = dice.randrange(RANKS), [], 0.0
        while ("begun", last + 2) not in told and ranks[victim].is_alive():
            told += heard(pipes[victim])
            first_s = first_s or (time.monotonic() if told else 0.0)
            time.sleep(0.001)
        saved_s = time.monotonic() - first_s
        time.sleep(dice.uniform(0, 1.5 * save_s))
        os.kill(ranks[victim].pid, signal.SIGKILL)
        time.sleep(dice.choice((0, 0, 0.05, 0.3)))
        for one in ranks:
            one.kill()
            one.join()
        told += [event for pipe in pipes for event in heard(pipe)]
        shutil.rmtree(meeting, ignore_errors=True)
        done = max((step for kind, step in told if kind == "done"), default=0)
        begun_steps = max((step for kind, step in told if kind == "begun"), default=0)
        taken = chosen(place)
        found["kills"] += 1
        found[f"of rank {victim}"] += 1
        found["in the middle of a save"] += begun_steps > done
        found["temp folders left"] += any(one.name.startswith(".") for one in place.iterdir())
        if taken is None or taken.step is None or taken.step < done:
            found[f"LOST: {taken and taken.step}, and {done} was done"] += 1
            break
        if taken.grade != "proven":
            found[f"taken as {taken.grade}, whole, without its manifest"] += 1
        if steps_in(taken.path) != {float(taken.step)}:
            found[f"MIXED: {steps_in(taken.path)} in step {taken.step}"] += 1
        save_s = min(2.0, 0.8 * save_s + 0.2 * saved_s)
        last = max(last, taken.step, begun_steps)
        for old in place.iterdir():
            if old != taken.path and not old.name.startswith("."):
                shutil.rmtree(old)
    return found


def mutants(folder: Path, count: int, dice: random.Random, *, has_manifest: bool) -> collections.Counter[str]:
    """Change one thing of a whole checkpoint; with its manifest neither selection nor load may take it."""
    found: collections.Counter[str] = collections.Counter()
    source = emptied(folder / "source") / "checkpoints"
    ranks, _, meeting = start(source, 1)
    for one in ranks:
        one.join()
    shutil.rmtree(meeting)
    place, live = folder / "mutants" / "checkpoints", trainer()
    emptied(folder / "mutants")
    for number in range(count):
        emptied(place)
        shutil.copytree(source / "step-2", place / "step-2")
        if has_manifest:
            shutil.copytree(source.parent / "manifests", place.parent / "manifests", dirs_exist_ok=True)
        target = dice.choice(sorted(path for path in (place / "step-2").iterdir()))
        if not mutated(target, how := MUTATIONS[number % len(MUTATIONS)], dice, source / "step-1" / target.name):
            continue
        found["mutants"] += 1
        found[f"of {target.name}"] += 1
        if chosen(place) is not None:
            found[f"TAKEN: {how} of {target.name}" if has_manifest else f"taken: {how} of {target.name}"] += 1
        try:
            content = sharded_content.read_proven(place / "step-2", live, is_of_all=True)
            values = numbers({part: content[part] for part in ("model_state_dict", "optimizer_state_dict")})
            found["of these, with other values"] += values != {2.0}
            found[f"LOADED: {how} of {target.name}" if has_manifest else f"loaded: {how} of {target.name}"] += 1
        except KitError:
            found["refused by the load"] += 1
    return found


def trainer() -> sharded_content.Live:
    """Return what one process alone would load such a checkpoint into."""
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 3))
    return sharded_content.Live(model, torch.optim.AdamW(model.parameters()))


def main(argv: list[str] | None = None) -> int:
    """Run the campaign; returns 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="(default: %(default)s)")
    parser.add_argument("--mutants", type=int, default=2000, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    options = parser.parse_args(argv)
    is_bad = False
    with tempfile.TemporaryDirectory() as name:
        folder, dice = Path(name), random.Random(options.seed)
        for what in ("killed in saves", "changed, with a manifest", "changed, without one"):
            begun = time.monotonic()
            if what == "killed in saves":
                found = kills(folder, options.kills, dice)
            else:
                count = options.mutants if what.endswith("a manifest") else options.mutants // 5
                found = mutants(folder, count, dice, has_manifest=what.endswith("a manifest"))
            is_bad |= any(key.split(":")[0] in ("LOST", "MIXED", "TAKEN", "LOADED") for key in found)
            seconds = time.monotonic() - begun
            print(f"sharded, {what}, seed {options.seed}: {dict(found)} ({seconds:.0f} s)", flush=True)
    return int(is_bad)


if __name__ == "__main__":
    raise SystemExit(main())
