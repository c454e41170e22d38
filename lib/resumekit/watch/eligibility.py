"""Why a run is not taken up again by itself: each rule gives one sentence for the user who has to, or None. Among
them: a start at a terminal that cannot succeed, and GPUs that are not free.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence

from ..base import background_command, process_details, redaction
from ..base.errors import KitError
from ..base.imports import Any
from ..base.terms import NEVER_RECOVERED, OOM
from ..base.values import count, epoch_s, items, mapping, seconds, string
from ..run import log_end, run_end, status
from ..run.journal_fold import State
from ..run.run_folder import Run
from ..run.throughput import is_saving
from ..start import code_change, compatibility, interpreter
from ..start.code_state import Code
from .incident import Incident


class VersionsUnknown(KitError):
    """The trainer's interpreter does not say its versions now; it may later."""

    code = "versions_unknown"


_MACHINE = ("python", "torch", "cuda", "driver", "world_size")
_BY_THE_INTERPRETER = ("python", "torch", "cuda")


def before_a_choice(run: Run, incident: Incident) -> str | None:
    """Return what stands against going on from this incident, as run and incident say; None if nothing does."""
    rules: Sequence[Callable[[Run, Incident], str | None]] = (
        _never,
        _code,
        _done,
        _budget,
        _own_rate,
        _memory,
        _environment,
    )
    return next((reason for rule in rules if (reason := rule(run, incident))), None)


def in_the_code(run: Run, asked: code_change.Asked, code: Code) -> str | None:
    """Return why the code that a recovery would start is not the one that the run began with.

    Args:
        asked: the comparison, under way.
        code: what the record of the new run would say.

    Raises:
        CodeUnknown: git does not answer now.
    """
    if run.setting("recover", "allow_code_change") is True:
        return None
    names = code_change.answer(asked)
    git = mapping(run.record.get("git"))
    if git.get("commit") is not None and not (code.is_known and code.commit):
        raise code_change.CodeUnknown("git does not say which code there is")  # the next recovery could compare nothing
    return f"{code_change.sentence(names)}; recover.allow_code_change=true lets it pass" if names else None


def in_the_versions(run: Run, versions: Mapping[str, Any]) -> str | None:
    """Return which program or library is another one than at the run's start.

    What is not known is not changed: not now, and not where the run's start could not tell.

    Raises:
        VersionsUnknown: the trainer's interpreter does not say now, as on a machine that is overloaded.
    """
    was_silent = mapping(run.record.get("versions")).get("python") is None
    keys = [key for key in _MACHINE if not (was_silent and key in _BY_THE_INTERPRETER)]
    differs = [one for one in compatibility.machine_changes(run.record, versions, None) if one.key in keys]
    changed = [one for one in differs if one.new is not None]
    if changed:
        listed = ", ".join(f"{one.key} {one.old} -> {one.new}" for one in changed)
        return f"the machine has changed since the run began: {listed}"
    if differs:
        known = ", ".join(f"{one.key} {one.old}" for one in differs)
        raise VersionsUnknown(f"it cannot be seen now whether the trainer would still have {known}")
    return None


def _never(run: Run, incident: Incident) -> str | None:
    return incident.evidence or incident.cause if incident.cause in NEVER_RECOVERED else None


def _code(run: Run, incident: Incident) -> str | None:
    """Say of an exit code that the lab has said never to go on from."""
    code = (run_end.read(run) or {}).get("code")
    listed = run.setting("recover", "never_codes")
    if "aborted" not in status.read_state(run) and code in items(listed):
        return f"{incident.evidence}; recover.never_codes says that nothing goes on from code {code} by itself"
    return None


def _done(run: Run, incident: Incident) -> str | None:
    """Say of a run that had done its last step: nothing is left to do, unless that step's save was broken off."""
    max_steps, state = count(run.setting("training", "max_steps")), status.read_state(run)
    if max_steps is None or not run_end.last_step_is_proven(state, incident.step, max_steps):
        return None
    if is_saving(state) and state.get("last_checkpoint_step", -1) < max_steps:
        return None
    return f"it had done its last step; {incident.evidence}"


def _budget(run: Run, incident: Incident) -> str | None:
    limit = count(run.setting("recover", "max_attempts"))
    if limit is not None and incident.fruitless >= limit:
        return f"{incident.fruitless} starts in a row brought nothing new; the last: {incident.evidence}"
    return None


def _own_rate(run: Run, incident: Incident) -> str | None:
    takes_it = run.setting("trainer", "loads_with_kit") is True or run.setting("recover", "lr_args")
    if is_cut(run, incident) and not takes_it:
        return (
            f"{incident.evidence}; this trainer sets its own learning rate (trainer.loads_with_kit is false): it "
            "cannot be cut, and the same would come again; recover.lr_args hands a cut one to a trainer that takes it "
            "as an argument"
        )
    return None


def _memory(run: Run, incident: Incident) -> str | None:
    if run_end.is_oom_kill(run_end.read(run)):
        return None  # no loop: a neighbour's memory, or a leak of hours; what comes of it again is the budget's affair
    if incident.cause == OOM and not run.setting("abort", "oom_set"):
        return (
            f"{incident.evidence}; say with abort.oom_set what is to be smaller then "
            "(training.batch_size=16, training.grad_accum_steps=2)"
        )
    return None


def _environment(run: Run, incident: Incident) -> str | None:
    """Of the variables in `trainer.env` the names are recorded, never the values: they have to be here again."""
    names = redaction.passed_variables(run.record.get("environment"))
    missing = ", ".join(name for name in names if name not in os.environ)
    if not missing:
        return None
    return (
        f"the trainer was started with {missing} (trainer.env), whose value is not kept and is not set here: "
        "resume it by hand, or set it in the watcher's environment"
    )


def is_cut(run: Run, incident: Incident) -> bool:
    """Whether this cause cuts the learning rate (`recover.cut_lr_on`)."""
    return incident.cause in items(run.setting("recover", "cut_lr_on"))


# A start that a person makes at a terminal and that cannot succeed: it is not tried again, and its cause is said.
#
# A misspelt option, a module or a script that is missing, a name that does not exist: three starts and ninety
# seconds would end the same. What may heal by itself (a device, a network, a disk) is tried again, and so is every
# start under a scheduler or away from the terminal. Reads exit.json and the log's end.

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


# Whether a run's GPUs are free: a process that came after its end and computes there is waited for.
#
# What was there before the run ended had shared them with it and is no obstacle. Asks nvidia-smi, where there is
# one, for five seconds at most; a machine without it, and one that does not answer, is asked nothing.

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
