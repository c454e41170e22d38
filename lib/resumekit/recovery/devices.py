"""Whether a run's GPUs are free: a process that came after its end and computes there is waited for.

What was there before the run ended had shared them with it and is no obstacle. Asks nvidia-smi, where there is one, for
five seconds at most; a machine without it, and one that does not answer, is asked nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..basics import answers
from ..basics.errors import KitError
from ..run_folder import run_end
from ..run_folder.event_values import seconds_of
from ..run_folder.run_state import State
from ..run_folder.runs import Run

TIMEOUT_S = 5.0
MAX_BYTES = 1 << 20
# A GPU still lists what was killed a moment ago.
SETTLES_S = 10.0
_NAMED = 3


def require_free(run: Run, state: State) -> None:
    """Make sure that nothing has taken a run's place on its GPUs.

    Raises:
        KitError: a process has; that may pass by itself.
    """
    if run.setting("recover", "needs_free_devices", True) is not True:
        return
    uuids = _devices(_recorded(run))
    ended_s = _ended_s(run, state)
    if not uuids or ended_s is None:
        return
    give_up = time.monotonic() + SETTLES_S
    while others := [(uuids[uuid], *app) for uuid, *app in _apps() if uuid in uuids and _came_after(app[0], ended_s)]:
        if time.monotonic() > give_up or any(_is_there(pid) for _, pid, _ in others):
            break
        time.sleep(1.0)
    if others:
        named = ", ".join(f"GPU {index}: pid {pid} ({words})" for index, pid, words in others[:_NAMED])
        raise KitError(f"the GPUs of the run are in use by what came after its end: {named}")


def _recorded(run: Run) -> str | None:
    """Return CUDA_VISIBLE_DEVICES as the run had it; None where it had none: then it saw every GPU."""
    environment = run.record.get("environment")
    values = environment.get("values") if isinstance(environment, Mapping) else None
    value = values.get("CUDA_VISIBLE_DEVICES") if isinstance(values, Mapping) else None
    return value if isinstance(value, str) else None


def _devices(visible: str | None) -> dict[str, str]:
    """Return the run's GPUs, index by uuid, as nvidia-smi counts them; none where the record names something else."""
    rows = [row for row in _table("gpu", "index,uuid") if len(row) == 2]
    every = {uuid: index for index, uuid in rows}
    if visible is None:
        return every
    wanted = [word.strip() for word in visible.split(",") if word.strip()]
    return {uuid: index for uuid, index in every.items() if index in wanted or any(
        word.startswith("GPU-") and uuid.startswith(word) for word in wanted
    )}  # fmt: skip


def _apps() -> list[tuple[str, int, str]]:
    """Return (uuid, pid, name) of each process that computes on a GPU."""
    rows = _table("compute-apps", "gpu_uuid,pid,process_name")
    return [
        (row[0], int(row[1]), row[2][:60]) for row in rows if len(row) >= 3 and row[1].isascii() and row[1].isdigit()
    ]


def _table(what: str, columns: str) -> list[Sequence[str]]:
    command = ["nvidia-smi", f"--query-{what}={columns}", "--format=csv,noheader"]
    answer = answers.collect(answers.ask(command, os.environ), MAX_BYTES, TIMEOUT_S)
    return [[cell.strip() for cell in line.split(",")] for line in answer.kept.decode("utf-8", "replace").splitlines()]


def _ended_s(run: Run, state: State) -> float | None:
    """Return when a run ended, in seconds since boot; when it was last heard of, where nothing saw its end."""
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    end: Any = run_end.read(run)
    at = end.get("at") if end else None
    if isinstance(at, str):
        return since_boot - (time.time() - seconds_of(at))
    active_s = state.get("active_mono_s")
    return None if active_s is None else since_boot - (time.monotonic() - active_s)


def _is_there(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def _came_after(pid: int, ended_s: float) -> bool:
    """Whether a process is younger than the end of the run; one that cannot be seen from here is taken for that."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            ticks = int(file.read().rsplit(b")", 1)[1].split()[19])
    except (OSError, IndexError, ValueError):
        return True
    return ticks / os.sysconf("SC_CLK_TCK") > ended_s
