"""Which config a resumed run has, how it differs from its parent's, and which differences are refused for now.

Same experiment: the parent's resolved config <- `--set`. Another experiment, or --reresolve: resolved anew. Reads the
config and the parent's folder; writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from . import config
from .changes import Change, changes
from .errors import KitError, Refused
from .request import Request
from .runs import Run

# All that a resume may change for now: what costs nothing, or only a new position in the data.
_ALLOWED_ACTIONS: tuple[dict[str, str], ...] = ({}, {"data_position": "rederive"})
# The policies of `resume` that say what happens anyway; new_params: only partial loading makes new parameters.
_PLAIN_POLICIES = {"auto", "load"}
_POLICIES = ("weights", "optimizer", "scheduler", "scaler", "ema", "swa", "counters", "rng", "data_position")
_KEYS_SHOWN = 6


class ResumeConfig(NamedTuple):
    """The new run's config.

    Args:
        resolved: the config.
        changed: what differs from the parent's; nothing where the parent has no config.
        settings: every `--set` that went into it, the parent's first.
        said: sentences for the person.
    """

    resolved: dict[str, Any]
    changed: Sequence[Change]
    settings: tuple[str, ...]
    said: tuple[str, ...]


def resolve_anew(request: Request, experiment: str) -> dict[str, Any]:
    """Return the config as the file has it now, with `--set` and the trainer's arguments of the command line."""
    file = request.config_file
    resolved = config.resolve(file.document, experiment, request.settings, schema=file.schema)
    return _with_extra_args(resolved, request)


def for_resume(request: Request, experiment: str, parent: Run | None) -> ResumeConfig:
    """Return the config of a run that is resumed from `parent`.

    Raises:
        UsageError, InvalidFile: as config.resolve.
    """
    name = request.config_file.path.name
    own = tuple(request.settings)
    if parent is None or not parent.config:
        whose = f"'{parent.run_id}'" if parent else "the checkpoint's run"
        said = f"{whose} has no resolved config: '{name}' as it is now is used"
        return ResumeConfig(resolve_anew(request, experiment), (), own, (said,))
    schema = request.config_file.schema
    if parent.experiment != experiment or request.reresolve:
        resolved = resolve_anew(request, experiment)
        return ResumeConfig(resolved, changes(parent.config, resolved, schema), own, ())
    source = f"the config of run '{parent.run_id}'"
    resolved = _with_extra_args(config.override(parent.config, request.settings, schema, source), request)
    return ResumeConfig(
        resolved,
        changes(parent.config, resolved, schema),
        (*parent.settings, *own),
        _outdated(request, experiment, parent),
    )


def refuse_forbidden(found: ResumeConfig, step: int | None) -> None:
    """Raise Refused for a change, a policy or a planned swap that this version cannot carry out.

    Args:
        step: the optimizer step that is resumed at.
    """
    for change in found.changed:
        why = change.refuse or change.consent
        if why is None and change.actions in _ALLOWED_ACTIONS:
            continue
        cost = why or ", ".join(f"{component}: {action}" for component, action in change.actions.items())
        raise Refused(
            f"changing {change.key} from {change.old!r} to {change.new!r} on a resume is not possible yet ({cost}); "
            "this version resumes with changes that cost nothing or only derive the data position anew"
        )
    for name in _POLICIES:
        policy = config.get(found.resolved, f"resume.{name}", "auto")
        if policy not in _PLAIN_POLICIES:
            raise Refused(
                f"resume.{name} is '{policy}': this version loads every component of the checkpoint; "
                f"--set resume.{name}=auto"
            )
    swap_at = config.get(found.resolved, "optimizer.swap_at")
    if swap_at is not None and step is not None and step >= swap_at:
        raise Refused(
            f"optimizer.swap_at is {swap_at} and the checkpoint is of step {step}: this version does not swap the "
            "optimizer; resume from an earlier step"
        )


def _with_extra_args(resolved: dict[str, Any], request: Request) -> dict[str, Any]:
    if request.extra_args is not None:
        resolved["trainer"]["extra_args"] = list(request.extra_args)
    return resolved


def _outdated(request: Request, experiment: str, parent: Run) -> tuple[str, ...]:
    """Say which keys the config file has otherwise by now; the copy in the run folder rules."""
    file = request.config_file
    if parent.record.get("config_sha256") == file.sha256 and not parent.record.get("parent_run_id"):
        return ()
    try:
        now = config.resolve(file.document, experiment, parent.settings, schema=file.schema)
    except KitError as error:  # the experiment, or a key that was set, has left the file
        return (f"'{file.path.name}' cannot be compared with the run's own config, which is used: {error}",)
    now["trainer"]["extra_args"] = config.get(parent.config, "trainer.extra_args", [])
    keys = [change.key for change in changes(parent.config, now, file.schema)]
    if not keys:
        return ()
    shown = ", ".join(keys[:_KEYS_SHOWN]) + (f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else "")
    return (f"'{file.path.name}' says otherwise by now ({shown}): the run's own config is used; --reresolve takes it",)
