"""With which run a resume is compared, which config it inherits, and how that differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..base.errors import KitError
from ..base.imports import Any, NamedTuple
from ..base.terminal import COMPARED, Note, first_few
from ..base.terms import KEEPS_LESS
from ..checkpoint.selection import Candidate
from ..config import config
from ..config.schema import Schema
from ..policy.config_diff import Change, changes
from ..run.run_folder import Run
from ..run.run_table import RunTable, run_around
from .request import Request

_SECTION = "resume"


class Baseline(NamedTuple):
    """What a resume is compared with.

    Args:
        run: whose config the checkpoint stands for; without a config there is nothing to compare with.
        between: the runs from the parent to that one, the parent first, which the checkpoint knows nothing of; none
            where it is the parent's own.
        policies: what those were told with `resume.*`, and no checkpoint has taken in; nothing where they were not.
    """

    run: Run
    between: tuple[Run, ...] = ()
    policies: dict[str, Any] = {}  # noqa: RUF012 (never changed)

    @property
    def said(self) -> tuple[str, ...]:
        """A sentence for the person, where it is not the parent that is compared with."""
        if not self.between:
            return ()
        parent = self.between[0].run_id
        what = "changed and was told to reset" if self.policies else "changed"
        said = f"compared with '{self.run.run_id}': what '{parent}' {what} is in no checkpoint yet"
        return (Note(COMPARED, said),)


class Differences(NamedTuple):
    """What a new config changes.

    Args:
        changed: against the origin: what the resume costs.
        asked: against the parent: what this request itself is about.
    """

    changed: Sequence[Change] = ()
    asked: Sequence[Change] = ()

    @property
    def already_accepted(self) -> frozenset[str]:
        """The keys that the parent had changed already: consent is not asked for again."""
        return frozenset(change.key for change in self.changed) - {change.key for change in self.asked}


def baseline_of(parent: Run, candidate: Candidate | None, table: RunTable, schema: Schema) -> Baseline:
    """Return what a run that goes on from `candidate` is compared with.

    Args:
        parent: the run that goes on.
        candidate: the checkpoint, of its history; None where it begins anew.
        schema: says which policies there are.
    """
    if candidate is None or (holder := holder_of(candidate, parent, table)).run_id == parent.run_id:
        return Baseline(parent)
    history = [run for run, _ in table.history(parent)]
    ids = [run.run_id for run in history]
    if holder.run_id not in ids:
        return Baseline(parent)
    at = ids.index(holder.run_id)
    while not history[at].config and at:  # a folder that the kit did not make: the first run of ours after it
        at -= 1
    return Baseline(history[at], tuple(history[:at]), _policies(history[: ids.index(holder.run_id)], table, schema))


def differences_from(
    origin: Baseline, parent: Run, resolved: dict[str, Any], before: dict[str, Any], schema: Schema
) -> Differences:
    """Return what a new config changes, against the origin and against the parent.

    Args:
        resolved: the new run's config.
        before: the `resume` section as it is where the trainer is told nothing.
    """
    asked = changes({**parent.config, _SECTION: {**before, **origin.policies}}, resolved, schema)
    if not origin.between:
        return Differences(asked, asked)
    return Differences(changes({**origin.run.config, _SECTION: before}, resolved, schema), asked)


def _policies(between: list[Run], table: RunTable, schema: Schema) -> dict[str, Any]:
    """Return what the runs between were told, of two words the one that keeps less: both have yet to happen."""
    kept: dict[str, Any] = {}
    for run in _told(between, table):
        for name, node in _named(schema):
            value, default = run.setting(_SECTION, name), node.get("default")
            if value in node["enum"] and _rank(value, default) > _rank(kept.get(name, default), default):
                kept[name] = value
    return kept


def _told(between: list[Run], table: RunTable) -> Iterator[Run]:
    """Yield the runs whose policies count: a run that began from no checkpoint of the one before has taken over its."""
    ids = [run.run_id for run in between]
    at = 0
    while at < len(between):
        run = between[at]
        yield run
        home = _began_in(run, table)
        at = ids.index(home.run_id) if home and home.run_id in ids[at + 1 :] else len(between) if home else at + 1


def _began_in(run: Run, table: RunTable) -> Run | None:
    """Return the run that holds the checkpoint which a run began from; None where its record does not say."""
    try:
        return run_around(table, run.paths.run_dir / run.record["checkpoint"])
    except (KeyError, TypeError, ValueError, OSError):  # a record may be another user's
        return None


def _named(schema: Schema) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the policies: those keys of `resume` that say one of several words."""
    for key, node in schema.leaves.items():
        section, _, name = key.partition(".")
        if section == _SECTION and "enum" in node:
            yield name, node


def _rank(value: Any, default: Any) -> int:
    if value == default:
        return -1
    return KEEPS_LESS.index(value) if value in KEEPS_LESS else 0


def holder_of(candidate: Candidate, parent: Run, table: RunTable) -> Run:
    """Return the run in whose folder a candidate of `parent`'s history lies."""
    return (table.get(candidate.run_id) if candidate.run_id else None) or parent


# Which config a resumed run has, and how it differs from its parent's.
#
# Same experiment: the parent's resolved config <- `--set`. Another experiment, or --reresolve: resolved anew.
# Compared with the run that holds the checkpoint. Reads the config and the parent's folder; writes nothing.

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


def for_resume(request: Request, experiment: str, parent: Run | None, since: Baseline | None) -> ResumeConfig:
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
        missing = f"{whose} has no resolved config: '{name}' as it is now is used"
        return ResumeConfig(request.resolved(experiment), own, (missing,))
    schema = request.config_file.schema
    said: tuple[str, ...] = ()
    is_inherited = parent.experiment == experiment and not request.reresolve
    if not is_inherited:
        since = since._replace(policies={})  # what was told with `--set` is not taken over
        before = since.run.config.get("resume", {})
        resolved = with_swap(request.resolved(experiment))
        settings = own
    else:
        before = _policies_of_file(request, experiment)
        inherited = {**parent.config, "resume": {**before, **since.policies}}
        source = f"the config of run '{parent.run_id}'"
        resolved = with_swap(_with_extra_args(config.override(inherited, request.settings, schema, source), request))
        settings, said = (*parent.settings, *own), _outdated(request, experiment, parent)
    differences = differences_from(since, parent, resolved, before, schema)
    return ResumeConfig(resolved, settings, (*since.said, *said), differences, is_inherited)


def _policies_of_file(request: Request, experiment: str) -> dict[str, Any]:
    """Return the `resume` section as the file has it: what one resume was told to reset, the next one must not."""
    file = request.config_file
    try:
        resolved = config.resolve(file.document, experiment, schema=file.schema)
    except KitError:  # the experiment has left the file
        resolved = request.base
    policies: dict[str, Any] = resolved["resume"]
    return policies


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
    shown = first_few(keys, _KEYS_SHOWN)
    return (
        f"'{file.path.name}' says otherwise by now ({shown}): the run's own config is used; resume.sh --reresolve "
        "takes the file's",
    )
