"""A start that a person makes at a terminal and that cannot succeed: it is not tried again, and its cause is said.

A misspelt option, a module or a script that is missing, a name that does not exist: three starts and ninety
seconds would end the same. What may heal by itself (a device, a network, a disk) is tried again, and so is every
start under a scheduler or away from the terminal. Reads exit.json and the log's end.
"""

from __future__ import annotations

import os

from ..base.imports import Any
from ..base.values import items, seconds, string
from ..run import log_end, run_end
from ..run.journal_fold import State
from ..run.run_folder import Run
from ..start import interpreter

_SCHEDULERS = (
    "SLURM_JOB_ID",
    "PBS_JOBID",
    "LSB_JOBID",
    "OAR_JOB_ID",
    "FLUX_JOB_ID",
    "COBALT_JOBID",
    "KUBERNETES_SERVICE_HOST",
)
# What has run for longer than this may have made steps that no pattern reads.
_BEGINNING_S = 120.0
_ALWAYS = (log_end.ARGUMENTS, log_end.IMPORT, log_end.SYNTAX)
_OPEN = (log_end.MAY_HEAL, log_end.UNKNOWN)
_WORDS = {
    log_end.ARGUMENTS: "the trainer does not take its arguments",
    log_end.IMPORT: "a module cannot be imported",
    log_end.FILE: "a file is not there",
    log_end.CONFIG: "the trainer does not take its config",
    log_end.SYNTAX: "the program is not complete",
    log_end.PROGRAM: "the trainer fails before its first step",
}


def cannot_heal(run: Run, state: State) -> str | None:
    """Return why a start would end the same when it is tried again; None where it may heal, or that is not known.

    Args:
        run: what a person has started; it has ended.
        state: its folded journal.
    """
    end = run_end.read(run)
    if end is None or end.get("signal") is not None or _is_scheduled() or _has_begun(run, state, end.get("elapsed_s")):
        return None
    found = log_end.last_error_of(run, end["code"])
    is_resume = run.record.get("checkpoint") is not None
    # Of a resume the checkpoint may be the cause: then an older one may load.
    if found is None or found.kind in _OPEN or (is_resume and found.kind not in _ALWAYS):
        return None
    return f"{_WORDS[found.kind]}: {found.line}{_advice(run, found)}"


def _is_scheduled() -> bool:
    return any(name in os.environ for name in _SCHEDULERS)


def _has_begun(run: Run, state: State, elapsed_s: Any) -> bool:
    """Whether a start has got anywhere: a step was seen, or a checkpoint, or it ran long enough to have made some."""
    begun_at = run.parent_step or 0
    if any((state.get(key) or 0) > begun_at for key in ("step", "last_checkpoint_step")):
        return True
    return seconds(elapsed_s) is None or elapsed_s >= _BEGINNING_S


def _advice(run: Run, found: log_end.LastError) -> str:
    if found.module is None:
        return ""
    argv = items(run.record.get("argv"))
    program = string(argv[0]) or "" if argv else ""
    is_python = interpreter.is_python(program)
    where = f" (no module named {found.module} in '{program}')" if is_python else ""
    if found.module != "torch":
        return where
    return f"{where}: install torch there, or name another interpreter with trainer.python"
