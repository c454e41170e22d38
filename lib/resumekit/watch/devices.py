"""Whether a run's GPUs are free: a process that came after its end and computes there is waited for.

What was there before the run ended had shared them with it and is no obstacle. Asks nvidia-smi, where there is
one, for five seconds at most; a machine without it, and one that does not answer, is asked nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from ..base import background_command, process_details
from ..base.errors import KitError
from ..base.values import epoch_s, mapping, string
from ..run import run_end
from ..run.journal_fold import State
from ..run.run_folder import Run

TIMEOUT_S = 5.0
MAX_BYTES = 1 << 20
# A GPU still lists what was killed a moment ago.
SETTLES_S = 10.0
_NAMED = 3


def require_free_gpus(run: Run, state: State) -> None:
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
    while others := [
        (uuids[uuid], pid, words) for uuid, pid, words in _apps() if uuid in uuids and _came_after(pid, ended_s)
    ]:
        if time.monotonic() > give_up or any(_is_there(pid) for _, pid, _ in others):
            break
        time.sleep(1.0)
    if others:
        named = ", ".join(f"GPU {index}: pid {pid} ({words})" for index, pid, words in others[:_NAMED])
        raise KitError(f"the GPUs of the run are in use by what came after its end: {named}")


def _recorded(run: Run) -> str | None:
    """Return CUDA_VISIBLE_DEVICES as the run had it; None where it had none: then it saw every GPU."""
    values = mapping(mapping(run.record.get("environment")).get("values"))
    return string(values.get("CUDA_VISIBLE_DEVICES"))


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
    answer = background_command.result(background_command.start(command, os.environ), MAX_BYTES, TIMEOUT_S)
    return [[cell.strip() for cell in line.split(",")] for line in answer.kept.decode("utf-8", "replace").splitlines()]


def _ended_s(run: Run, state: State) -> float | None:
    """Return when a run ended, in seconds since boot; when it was last heard of, where nothing saw its end."""
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    at = string(mapping(run_end.read(run)).get("at"))
    if at is not None:
        return since_boot - (time.time() - epoch_s(at))
    active_s = state.get("active_mono_s")
    return None if active_s is None else since_boot - (time.monotonic() - active_s)


def _is_there(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def _came_after(pid: int, ended_s: float) -> bool:
    """Whether a process is younger than the end of the run; one that cannot be seen from here is taken for that."""
    fields = process_details.stat_fields(pid)
    return fields is None or int(fields[19]) / os.sysconf("SC_CLK_TCK") > ended_s
