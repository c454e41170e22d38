"""Why a run is not taken up again by itself: each rule gives one sentence for the user who has to, or None.

Beside these rules: a start at a terminal that cannot succeed (`failed_start`), GPUs that are not free (`devices`), and
how often (`budget`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from ..base import redaction
from ..base.errors import KitError
from ..base.imports import Any
from ..base.terms import NEVER_RECOVERED, OOM
from ..base.values import count, items, mapping
from ..run import run_end, status
from ..run.run_folder import Run
from ..run.throughput import is_saving
from ..start import code_change, compatibility
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
