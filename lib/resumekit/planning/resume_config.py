"""Which config a resumed run has, and how it differs from its parent's.

Same experiment: the parent's resolved config <- `--set`. Another experiment, or --reresolve: resolved anew. Compared
with the run that holds the checkpoint. Reads the config and the parent's folder; writes nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..basics.errors import KitError
from ..configuration import config
from ..configuration.changes import changes
from ..run_folder.runs import Run
from . import origin
from .origin import Differences, Origin
from .request import Request

_KEYS_SHOWN = 6
SWAP_TO_LION = "swap_to_lion"


class ResumeConfig(NamedTuple):
    """The new run's config.

    Args:
        resolved: the config.
        settings: every `--set` that went into it, the parent's first.
        said: sentences for the person.
        differences: what it changes; nothing where the parent has no config.
        is_inherited: it is made of the parent's record, with the command line on top; else of the config file.
    """

    resolved: dict[str, Any]
    settings: tuple[str, ...]
    said: tuple[str, ...]
    differences: Differences = Differences()
    is_inherited: bool = False


def for_resume(request: Request, experiment: str, parent: Run | None, since: Origin | None) -> ResumeConfig:
    """Return the config of a run that is resumed from `parent`.

    Args:
        since: what it is compared with; None without a parent.

    Raises:
        UsageError, InvalidFile: as config.resolve.
    """
    name = request.config_file.path.name
    own = tuple(request.settings)
    if parent is None or since is None or not parent.config:
        whose = f"'{parent.run_id}'" if parent else "the checkpoint's run"
        said = f"{whose} has no resolved config: '{name}' as it is now is used"
        return ResumeConfig(request.resolved(experiment), own, (said,))
    schema = request.config_file.schema
    is_inherited = parent.experiment == experiment and not request.reresolve
    if not is_inherited:
        since = since._replace(policies={})  # what was told with `--set` is not taken over
        before = since.run.config.get("resume", {})
        resolved = with_swap(request.resolved(experiment))
        settings, said = own, ()
    else:
        before = _policies(request, experiment)
        inherited = {**parent.config, "resume": {**before, **since.policies}}
        source = f"the config of run '{parent.run_id}'"
        resolved = with_swap(_with_extra_args(config.override(inherited, request.settings, schema, source), request))
        settings, said = (*parent.settings, *own), _outdated(request, experiment, parent)
    differences = origin.differences(since, parent, resolved, before, schema)
    return ResumeConfig(resolved, settings, (*since.said, *said), differences, is_inherited)


def _policies(request: Request, experiment: str) -> dict[str, Any]:
    """Return the `resume` section as the file has it: what one resume was told to reset, the next one must not."""
    file = request.config_file
    try:
        return config.resolve(file.document, experiment, schema=file.schema)["resume"]
    except KitError:  # the experiment has left the file
        return request.base["resume"]


def with_swap(resolved: dict[str, Any]) -> dict[str, Any]:
    """Write `resume.optimizer: swap_to_lion` as what it means, another `optimizer.name`.

    A policy holds for one resume, and what the run trains with from here on is for good: a later resume finds Lion both
    in its config and in its checkpoint. Returns `resolved`, changed in place.
    """
    if config.get(resolved, "resume.optimizer") == SWAP_TO_LION:
        resolved["resume"]["optimizer"] = "auto"
        resolved.setdefault("optimizer", {})["name"] = "lion"
    return resolved


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
