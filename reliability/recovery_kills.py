"""A recovery whose process is killed before its k-th changing call, for every k; and then the watcher's next passes.

Runs in a Python that was started with `syscalls.environment()`; it needs no torch.
Try it: `python -m reliability.campaign_saves --only recovery`
"""

from __future__ import annotations

import collections
import os
from pathlib import Path

from reliability import power_loss, recovery_power, syscalls
from reliability import recovery_stage as stage
from reliability.power_protocols import Found
from resumekit.watch import recovering

NAMES = ("recovery", "attention", "quarantine")
# The trainer ends with a code of its own: one that was killed before it was a trainer has another.
_OWN_CODE, _KILLED = 3, 137


def kill_everywhere(name: str, folder: Path, *, most: int | None = None) -> Found:
    """Kill a recovery before each of its changing calls, and judge what the next passes make of it.

    Args:
        name: of the scene; see recovery_power.scene.
        folder: scratch, empty.
        most: only so many of them, one of each kind at least; None for all.
    """
    scene, disk = recovery_power.scene(name, folder), folder / "disk"
    before = power_loss.State((), power_loss.scan(scene.runs))
    count, examples, bad = 0, [], 0
    points = _points(scene, before, disk)
    if most is not None:
        points = _some(points, most)
    for call, at in points:
        _prepare(scene, before, disk)
        assert _is_killed(disk / scene.ended.run_id, call, at), f"{call} {at} is not reached any more"
        count += 1
        if wrong := stage.judge(disk, scene.ended):
            bad += 1
            examples += [f"killed before {call} {at}: {wrong}"][: 5 - len(examples)]
    return Found(count, bad, examples, is_whole=most is None)


def _points(scene: recovery_power.Scene, before: power_loss.State, disk: Path) -> list[tuple[str, int]]:
    """Return each point: the name of a call, and how many of them the process has made by then.

    The shim's fork goes on with its parent's number.
    """
    _prepare(scene, before, disk)
    log = disk.with_name("undisturbed")
    assert not _is_killed(disk / scene.ended.run_id, "", 0, log)
    calls = [call for call in syscalls.read_log(log) if call.name in syscalls.CHANGING]
    main = calls[0].pid
    forked = next((i for i, call in enumerate(calls) if call.pid != main), len(calls))
    common = collections.Counter(call.name for call in calls[:forked])
    later = [collections.Counter(c.name for c in calls[forked:] if (c.pid == main) == is_main) for is_main in (0, 1)]
    return [
        (name, at) for name in syscalls.CHANGING
        for at in range(1, 1 + common[name] + max(one[name] for one in later))
    ]  # fmt: skip


def _some(points: list[tuple[str, int]], most: int) -> list[tuple[str, int]]:
    """Return the last of each kind, and as many of the others as there is room for."""
    last = dict(points)
    others = [(call, at) for call, at in points if last[call] != at]
    room = max(1, most - len(last))
    return [*last.items(), *others[:: -(-len(others) // room)]]


def _prepare(scene: recovery_power.Scene, before: power_loss.State, disk: Path) -> None:
    power_loss.materialize(before, disk)
    stage.own_markers(disk)
    scene.ended.notes.unlink(missing_ok=True)


def _is_killed(run_dir: Path, call: str, at: int, log: Path | None = None) -> bool:
    """Recover, as far as it comes; whether the call was reached."""
    reader, writer = os.pipe()

    def work() -> None:
        recovering._backoff_left_s = lambda _run, _found: 0.0
        recovering._say = lambda _sentence: None
        shim = syscalls.Shim()
        shim.watch(run_dir.parent, log)
        shim.arm(call, at, syscalls.KILL)
        code = stage.take_up(run_dir, command=("sh", "-c", f"exit {_OWN_CODE}"))
        shim.disarm()
        os.write(writer, str(code).encode())

    status = stage.forked(work)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read()
    return os.WIFSIGNALED(status) or said == str(_KILLED).encode()
