"""Why a run is not taken up again by itself: each rule gives one sentence for the person who has to, or None.

A recovered run has its parent's config, code and environment; where it cannot have them, it is not started. Reads the
run's record and this process's environment. Source: protocol §12.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..basics import recorded_environment
from ..basics.causes import NEVER_RECOVERED, OOM
from ..basics.errors import KitError
from ..planning import code_change, environment
from ..planning.code_state import Code
from ..run_folder import last_step, run_end, status
from ..run_folder.runs import Run
from ..run_folder.save_wait import is_saving
from .incident import Incident

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
        KitError: git does not answer now; it may later.
    """
    if run.setting("recover", "allow_code_change") is True:
        return None
    names = code_change.answer(asked)
    git = _mapping(run.record.get("git"))
    if git.get("commit") is not None and not (code.is_known and code.commit):
        raise KitError("git does not say which code there is")  # the next recovery could compare nothing
    return f"{code_change.sentence(names)}; recover.allow_code_change=true lets it pass" if names else None


def in_the_versions(run: Run, versions: Mapping[str, Any]) -> str | None:
    """Return which program or library is another one than at the run's start.

    What is not known is not changed: not now, and not where the run's start could not tell.

    Raises:
        KitError: the trainer's interpreter does not say now, as on a machine that is overloaded; it may later.
    """
    was_silent = _mapping(run.record.get("versions")).get("python") is None
    keys = [key for key in _MACHINE if not (was_silent and key in _BY_THE_INTERPRETER)]
    differs = [one for one in environment.changes(run.record, versions, None) if one.key in keys]
    changed = [one for one in differs if one.new is not None]
    if changed:
        listed = ", ".join(f"{one.key} {one.old} -> {one.new}" for one in changed)
        return f"the machine has changed since the run began: {listed}"
    if differs:
        known = ", ".join(f"{one.key} {one.old}" for one in differs)
        raise KitError(f"it cannot be seen now whether the trainer would still have {known}")
    return None


def _never(run: Run, incident: Incident) -> str | None:
    return incident.evidence or incident.cause if incident.cause in NEVER_RECOVERED else None


def _code(run: Run, incident: Incident) -> str | None:
    """Say of an exit code that the lab has said never to go on from."""
    code = (run_end.read(run) or {}).get("code")
    listed = run.setting("recover", "never_codes")
    if "aborted" not in status.read_state(run) and isinstance(listed, list) and code in listed:
        return f"{incident.evidence}; recover.never_codes says that nothing goes on from code {code} by itself"
    return None


def _done(run: Run, incident: Incident) -> str | None:
    """Say of a run that had done its last step: nothing is left to do, unless that step's save was broken off."""
    max_steps, state = run.setting("training", "max_steps"), status.read_state(run)
    if type(max_steps) is not int or not last_step.is_proven(state, incident.step, max_steps):
        return None
    if is_saving(state) and state.get("last_checkpoint_step", -1) < max_steps:
        return None
    return f"it had done its last step; {incident.evidence}"


def _budget(run: Run, incident: Incident) -> str | None:
    limit = run.setting("recover", "max_attempts")
    if type(limit) is int and incident.fruitless >= limit:
        return f"{incident.fruitless} starts in a row brought nothing new; the last: {incident.evidence}"
    return None


def _own_rate(run: Run, incident: Incident) -> str | None:
    if is_cut(run, incident) and run.setting("trainer", "loads_with_kit") is not True:
        return (
            f"{incident.evidence}; this trainer sets its own learning rate (trainer.loads_with_kit is false): it "
            "cannot be cut, and the same would come again"
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
    names = recorded_environment.passed_names(run.record.get("environment"))
    missing = ", ".join(name for name in names if name not in os.environ)
    if not missing:
        return None
    return (
        f"the trainer was started with {missing} (trainer.env), whose value is not kept and is not set here: "
        "resume it by hand, or set it in the watcher's environment"
    )


def is_cut(run: Run, incident: Incident) -> bool:
    """Whether this cause cuts the learning rate (`recover.cut_lr_on`)."""
    causes = run.setting("recover", "cut_lr_on")
    return isinstance(causes, list) and incident.cause in causes


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
