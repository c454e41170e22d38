"""Children that die while they save: at a chosen call into the os, or by SIGKILL at a random moment.

torch is imported once; each child is a fork. The parent then asks the selection what is there.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from reliability.kind_savers import numbers
from resumekit.checkpoint import pruning
from resumekit.checkpoint.selection import CheckpointFolder, select
from resumekit.trainer.saving import save_checkpoint
from support.checkpoint_tools import leftovers, os_calls, quiet, small_model, train

KILLED = 77


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a fork; return its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at_call(number: int, work: Callable[[], None]) -> bool:
    """Run `work` in a fork that ends without a word before its `number`-th writing call; whether it did end there."""

    def act(k: int, _name: str, _arguments: object) -> None:
        if k == number:
            os._exit(KILLED)

    def hooked() -> None:
        with os_calls(act):
            work()

    code = in_child(hooked)
    assert code in (0, KILLED), code
    return code == KILLED


def kill_during_saves(folder: Path, count: int, seed: int, *, background: bool = False) -> dict[str, int]:
    """Kill `count` children at random moments while they save step after step; return what was found.

    Each child goes on behind the newest step and acknowledges every step whose save has returned, with `background`
    every step whose save was over when the next one, in the background too, had begun.

    Returns:
        Counts: 'torn' (a final name with a manifest that does not prove it, or a file that is not sound), 'lost' (the
        selection is neither the last acknowledged step nor the one in flight), 'mixed' (with `background`: it has a
        number that is not of its step), 'temp' (left behind in all), 'swept', 'saves', 'left' (temp files after all
        sweeps).
    """
    dice = random.Random(seed)
    # What torch imports at a first step is imported once, here, and not in every child.
    model, optimizer = small_model()
    started = time.monotonic()
    save_checkpoint(folder / "timed", 1, model=model, optimizer=optimizer, log_fn=quiet)
    window_s = 4 * (time.monotonic() - started)
    found = {"torn": 0, "lost": 0, "mixed": 0, "temp": 0, "swept": 0, "saves": 0}
    proven, last = 0, 0
    for _ in range(count):
        steps = _killed_child(folder, last, dice.uniform(0.0, window_s), background)
        found["saves"] += len(steps)
        # One more may be durable before the child could acknowledge it.
        in_flight = [max(steps, default=last) + way for way in (1, 2)[: 1 + background]]
        selection = select([CheckpointFolder(folder)])
        bad = [one for one in selection.candidates if one.verdict == "passed" and "no manifest" not in one.reason]
        found["torn"] += len(bad)
        step = selection.chosen.step if selection.chosen else 0
        found["lost"] += step not in (max(steps, default=proven), *in_flight)
        found["mixed"] += bool(background and selection.chosen and _is_mixed(selection.chosen.path, step))
        found["temp"] += len(leftovers(folder))
        found["swept"] += len(pruning.sweep(folder))
        # A file whose manifest did not come any more keeps its name; the next child goes on behind it.
        proven, last = step or 0, max((one.step or 0 for one in selection.candidates), default=0)
    found["left"] = len(leftovers(folder))
    return found


def _fill(model: torch.nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    """Make every number of a model and of its optimizer's state this one."""
    with torch.no_grad():
        for parameter in model.parameters():
            for value in (parameter, *optimizer.state[parameter].values()):
                value.fill_(number)


def _is_mixed(path: Path, step: int) -> bool:
    content = torch.load(path, weights_only=True)
    return numbers([content["model_state_dict"], content["optimizer_state_dict"]]) != {float(step)}


def _killed_child(folder: Path, last: int, delay_s: float, background: bool) -> list[int]:
    """Fork a child that saves the steps after `last`; kill it after `delay_s`; return the steps it acknowledged."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            model, optimizer = small_model()
            os.write(writer, b"0\n")
            for step in range(last + 1, last + 10_000):
                _ = _fill(model, optimizer, step) if background else train(model, optimizer)
                usual = {"keep_last": 3, "log_fn": quiet, "background": background}
                if (
                    save_checkpoint(folder, step, model=model, optimizer=optimizer, **usual)
                    and step - background > last
                ):
                    os.write(writer, b"%d\n" % (step - background))
        finally:
            os._exit(1)
    os.close(writer)
    os.read(reader, 2)
    time.sleep(delay_s)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with os.fdopen(reader, "rb") as file:
        return [int(line) for line in file.read().split()]
