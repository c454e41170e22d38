"""The base of a new lineage: a checkpoint of which a run takes the weights alone, at step 0 (`run.sh --init-from`).

It may lie anywhere and belong to any user: it is read, and nothing beside it is written. Its digest stands in run.json
and in the plan; a run that has no checkpoint of its own yet begins from the same bytes again, or not at all.
Try it: `bin/run.sh EXP-01 --init-from base.pt --dry-run`
"""

from __future__ import annotations

import os
from pathlib import Path

from ..base.errors import NoStableCheckpoint, Refused
from ..base.files import UnreadableFile
from ..base.imports import Any, NamedTuple
from ..base.terms import FRESH, KEYS, LOAD, PARTIAL, RESET
from ..base.values import mapping, string
from ..checkpoint import grades
from ..checkpoint.grades import PLAUSIBLE
from ..checkpoint.selection import CHOSEN, Candidate, select
from ..config import config
from ..policy.decide import AVERAGES

OPTION = "--init-from"
WHY = f"{OPTION} takes the weights alone"


class InitBase(NamedTuple):
    """What a new lineage begins with.

    Args:
        candidate: the checkpoint, looked into.
        kind: what it is on disk.
        sha256: of its bytes, 64 hex digits.
    """

    candidate: Candidate
    kind: str
    sha256: str

    def as_fields(self) -> dict[str, Any]:
        """Return it as run.json and the plan have it."""
        return {"path": str(self.candidate.path), "kind": self.kind, "sha256": self.sha256}


def find(path: Path, resolved: dict[str, Any]) -> InitBase:
    """Look into a base, and read its bytes once.

    Args:
        path: as it was named.
        resolved: the new run's config: what loads with the kit's helpers needs the weights under their name.

    Raises:
        NoStableCheckpoint: it cannot be read, or is no whole checkpoint.
    """
    with_kit = bool(config.get(resolved, "trainer.loads_with_kit"))
    rate = config.get(resolved, "checkpoint.max_read_mb_per_s")
    place = Path(os.path.realpath(path))
    try:
        inside, sha256 = grades.base_of(place, rate, follow_links=bool(config.get(resolved, "checkpoint.follow_links")))
    except UnreadableFile as error:
        raise _unusable(path, str(error)) from error
    if inside.is_folder and not with_kit:
        found = Candidate(
            None, place.parent, place.name, None, CHOSEN, PLAUSIBLE, "its files are whole", inside.summary
        )
        return InitBase(found, inside.kind, sha256)
    needs = grades.WEIGHTS if with_kit else frozenset[str]()
    selection = select([], path=place, needs=needs, weights_only=with_kit, mb_per_s=rate)
    if selection.chosen is None:
        raise _unusable(path, selection.candidates[0].reason)
    return InitBase(selection.chosen, inside.kind, sha256)


def again(record: dict[str, Any], resolved: dict[str, Any]) -> InitBase | None:
    """Return the base that a run began with, for one that begins in its place; None where it had none.

    Args:
        record: its run.json.
        resolved: the new run's config.

    Raises:
        Refused: it is not there any more as it was.
    """
    fields = mapping(record.get("init_from"))
    path, sha256 = string(fields.get("path")), string(fields.get("sha256"))
    if not fields:
        return None
    began, advice = f"'{record.get('run_id')}' began with the weights of '{path}'", "run.sh --fresh begins without them"
    if path is None or sha256 is None or "\0" in path:
        raise Refused(f"the 'init_from' of '{record.get('run_id')}' in its run.json cannot be read; {advice}")
    if not os.path.lexists(path):
        raise Refused(f"{began}, which is not there any more: put it back, or {advice}")
    try:
        found = find(Path(path), resolved)
    except NoStableCheckpoint as error:
        raise Refused(f"{began}, and {error}: put it back, or {advice}") from error
    if found.sha256 != sha256:
        raise Refused(
            f"{began}, which has changed since (SHA-256 {sha256[:12]}, now {found.sha256[:12]}): put it back, or "
            f"run.sh {OPTION} begins a lineage with what it is now"
        )
    return found


def policies(resolved: dict[str, Any]) -> dict[str, str]:
    """Return component -> action: the weights are loaded, and all else is as newly made.

    Raises:
        Refused: the config asks for a run without the weights.
    """
    own = config.get(resolved, "resume.weights")
    if own == RESET:
        raise Refused(f"resume.weights is 'reset', and {WHY}: set it to auto, or leave {OPTION} out")
    others = {kind: FRESH if kind in AVERAGES else RESET for kind in KEYS}
    return {**others, "weights": PARTIAL if own == PARTIAL else LOAD}


def _unusable(path: Path, reason: str) -> NoStableCheckpoint:
    return NoStableCheckpoint(f"'{path}' ({OPTION}) cannot be begun with: {reason}")
