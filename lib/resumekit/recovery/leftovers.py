"""What a trainer whose end is written down has left behind: it goes on, or it is ended before the run is taken up.

A wrapper may have ended before what it wrapped, and that may still train: then the run is not dead, and nothing is
started beside it. What shows nothing for as long as a hang takes is killed. Reads /proc and the run's files.
Try it: `python -m pytest tests/test_leftovers.py`
"""

from __future__ import annotations

import os
import time

from ..basics import journal, process_details, processes
from ..basics.terminal import duration
from ..run_folder import life_signs, run_end, status
from ..run_folder.run_state import State
from ..run_folder.runs import Run

KILL_WAIT_S = 10.0
# So long the processor time of what is left is looked at.
LOOK_S = 0.5


def go_on(run: Run, state: State) -> str:
    """Say that a run that would be taken up goes on after its end; '' where nothing of it moves, or another state."""
    view = status.look(run, state)
    if not view.trains_on or status.name_of(run, state, view._replace(sight=None)) not in status.TAKEN_UP:
        return ""
    return _sentence(run, _members(run, state))


def end(run: Run, state: State) -> str:
    """KILL what a dead trainer has left: data workers, or what a dead wrapper wrapped; '' when that is done.

    A second trainer beside it would be worse; whatever it was saving has no final name yet.

    Returns:
        The sentence that says by what it is seen to go on: then nothing was killed. What a rule has ended is over.
    """
    members = _members(run, state)
    if not members:
        return ""
    if "aborted" not in state and (sentence := _sentence(run, members)):
        return sentence
    leader = run.trainer_of(state.get("launched"))
    left = processes.kill_session(leader, KILL_WAIT_S)
    message = f"{len(members)} processes of the dead trainer's session were killed, {left} do not end"
    journal.append(run.paths.journal, "warning", run.run_id, kind="orphans_killed", message=message)
    return ""


def _members(run: Run, state: State) -> list[processes.Identity]:
    leader = run.trainer_of(state.get("launched"))
    return processes.session_members(leader) if leader else []


def _sentence(run: Run, members: list[processes.Identity]) -> str:
    """Say by what the processes that are left are seen to go on; '' where they are not."""
    if not members:
        return ""
    pids = process_details.shown(member.pid for member in members)
    left = f"its end is written down, but {len(members)} processes that its trainer has started go on (pid {pids})"
    if sign := life_signs.moved_after_the_end(run):
        return f"{left}: {sign.name} has changed since; bin/abort-watch.sh --stop {run.run_id} ends them"
    limit_s = run_end.silence_limit_s(run)
    if _age_s(run) < limit_s and _are_busy(members):
        return f"{left}: they compute; they are ended when they have shown nothing for {duration(limit_s)}"
    return ""


def _age_s(run: Run) -> float:
    """Return how long ago the end was written down, by the file system's clock."""
    try:
        return life_signs.now_of(run) - os.stat(run.paths.exit_json).st_mtime
    except OSError:
        return 0.0


def _are_busy(members: list[processes.Identity]) -> bool:
    pids = [member.pid for member in members]
    begun, used_s = time.monotonic(), process_details.total_cpu_s(pids)
    time.sleep(LOOK_S)
    return process_details.total_cpu_s(pids) - used_s > process_details.BUSY * (time.monotonic() - begun)
