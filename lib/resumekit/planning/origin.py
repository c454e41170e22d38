"""With which run a resume is compared: the one that holds the checkpoint, which need not be the one that goes on.

A run that died before its first checkpoint, or is taken up from before it, has left no more than its config. What it
changed, and what it was told to reset, is in no checkpoint yet: it happens when the run goes on, and consent is not
asked for a second time. Reads run.json and the resolved configs of the history; writes nothing.
Try it: `bin/resume.sh EXP-01 --dry-run` after a run that ended before its first checkpoint
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..basics.actions import KEEPS_LESS
from ..configuration.changes import Change, changes
from ..configuration.schema import Schema
from ..proving.checkpoints import Candidate
from ..run_folder.runs import Run, RunTable, run_around
from .heads import holder_of

_SECTION = "resume"


class Origin(NamedTuple):
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
        return (f"compared with '{self.run.run_id}': what '{parent}' {what} is in no checkpoint yet",)


class Differences(NamedTuple):
    """What a new config changes.

    Args:
        changed: against the origin: what the resume costs.
        asked: against the parent: what this request itself is about.
    """

    changed: Sequence[Change] = ()
    asked: Sequence[Change] = ()

    @property
    def settled(self) -> frozenset[str]:
        """The keys that the parent had changed already: consent is not asked for again."""
        return frozenset(change.key for change in self.changed) - {change.key for change in self.asked}


def of(parent: Run, candidate: Candidate | None, table: RunTable, schema: Schema) -> Origin:
    """Return what a run that goes on from `candidate` is compared with.

    Args:
        parent: the run that goes on.
        candidate: the checkpoint, of its history; None where it begins anew.
        schema: says which policies there are.
    """
    if candidate is None or (holder := holder_of(candidate, parent, table)).run_id == parent.run_id:
        return Origin(parent)
    history = [run for run, _ in table.history(parent)]
    ids = [run.run_id for run in history]
    if holder.run_id not in ids:
        return Origin(parent)
    at = ids.index(holder.run_id)
    while not history[at].config and at:  # a folder that the kit did not make: the first run of ours after it
        at -= 1
    return Origin(history[at], tuple(history[:at]), _policies(history[: ids.index(holder.run_id)], table, schema))


def differences(
    origin: Origin, parent: Run, resolved: dict[str, Any], before: dict[str, Any], schema: Schema
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
    except (KeyError, TypeError, ValueError, OSError):  # a record may be anybody's
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
