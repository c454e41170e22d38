"""Which processes of a run are suspended (`kill -STOP`, Ctrl-Z, a debugger), and the command that lets them go on.

A suspended launcher takes up no end, a suspended shim writes none down, a suspended sidecar follows nothing, and a
suspended trainer does not hang; only the user who suspended them can know whether that is meant. Reads /proc and the
sidecar's account; writes nothing.
Try it: `bin/runs.sh`
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..basics import process_details, processes
from ..basics.files import UnreadableFile, read_json
from .run_state import State
from .runs import Run

LAUNCHER, SHIM, SIDECAR, HELPER, TRAINER = "launcher", "shim", "sidecar", "helper", "trainer"
# So many processes of a training are looked at: a wrapper, what it wraps, not each data worker.
MAX_OF_TRAINER = 8


class Suspended(NamedTuple):
    """One suspended process: 'launcher', 'shim', 'sidecar', 'trainer' (its first process, or what that wraps), or
    'helper' (another one of the launcher's group).
    """

    process: str
    pid: int


def of(run: Run, state: State) -> tuple[Suspended, ...]:
    """Return the suspended processes of a run of this host.

    Args:
        run: the run; its files may be anybody's, so each identity is checked against /proc.
        state: its folded journal.
    """
    if not run.is_in_our_namespace:
        return ()
    launched = state.get("launched") or {}
    launcher = processes.identity_from(launched.get("launcher") or run.record.get("launcher"))
    identities = {
        LAUNCHER: launcher,
        SHIM: processes.identity_from(launched.get("shim")),
        SIDECAR: processes.identity_from(_sidecar(run)),
    }
    named = [Suspended(name, identity.pid) for name, identity in identities.items() if processes.is_stopped(identity)]
    trainer = run.trainer_of(state.get("launched"))
    named += [Suspended(TRAINER, pid) for pid in of_trainer(trainer)]
    if not any(one.process == LAUNCHER for one in named):
        return tuple(named)
    # Ctrl-Z suspends the launcher's whole group, subshells of it too: all of them have to go on.
    others = set(processes.stopped_in_group_of(launcher)) - {one.pid for one in named}
    return (*named, *(Suspended(HELPER, pid) for pid in sorted(others)))


def of_trainer(trainer: processes.Identity | None) -> list[int]:
    """Return the suspended ones of a live trainer's first process and its nearest descendants."""
    if trainer is None or processes.probe(trainer) != processes.ALIVE:
        return []
    pids = [trainer.pid]
    for pid in pids:  # grows while it is walked
        pids += process_details.children_of(pid)[: max(0, MAX_OF_TRAINER - len(pids))]
    return [pid for pid in pids if process_details.is_suspended(pid)]


def words(found: tuple[Suspended, ...]) -> str:
    """Return the sentence that names the processes and the command; '' where none is suspended."""
    if not found:
        return ""
    named = [f"{one.process} (pid {one.pid})" for one in found if one.process != HELPER]
    which = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
    verb, whom = ("are", "them") if len(named) > 1 else ("is", "it")
    return f"its {which} {verb} suspended (state T): {command(found)} lets {whom} go on"


def command(found: tuple[Suspended, ...]) -> str:
    """Return the command that lets suspended processes go on, to be pasted."""
    return " ".join(["kill -CONT", *(str(one.pid) for one in found)])


def _sidecar(run: Run) -> Any:
    try:
        account = read_json(run.paths.sidecar_state)
    except UnreadableFile:
        return None
    return account.get("sidecar") if isinstance(account, dict) and account.get("run_id") == run.run_id else None
