"""Which checkpoint a run resumes from, and why each newer one was passed over.

Names first, then the checkpoints from the newest down until one is good; older ones are not opened. Reads folder
listings, manifests, headers and directories, and the chosen one's bytes where a digest is asked for. Writes nothing.
Try it: `python lib/resume_helper.py --ckpt_dir checkpoints --dry-run`
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..base.errors import KitError, NoStableCheckpoint
from ..base.files import UnreadableFile
from ..base.imports import NamedTuple
from ..base.paths import manifest_path
from . import catalog, manifest
from .archive import Summary
from .form import Form
from .form import of as form_of
from .grades import ATTESTED, PLAUSIBLE, PROVEN, WEIGHTS, Unattested, examine
from .manifest import Manifest

CHOSEN, PASSED, OLDER = "chosen", "passed", "older"
MAX_ODD_NAMES = 20
# Of the files without a manifest that are newer than the chosen one, so many are looked at for their reason.
MAX_LOOKED_AT = 10
WOULD_BE_ATTESTED = "no manifest yet: it would be attested first"
_ORDER = (PLAUSIBLE, ATTESTED, PROVEN)


class _Folder(NamedTuple):
    folder: Path
    run_id: str | None
    form: Form
    max_step: int | None
    quarantined: frozenset[str]
    would_attest: bool


class CheckpointFolder(_Folder):
    """One run's checkpoints, as a part of a history.

    Args:
        folder: where they lie.
        run_id: whose they are; None where that is unknown. A manifest that names another run is passed over.
        form: how they are named and what each consists of; None for the schema's defaults.
        max_step: the step at which the history left this run; None for the newest one.
        quarantined: names of those that failed before.
        would_attest: a dry run stands for a command that attests those without a manifest first: they count as that.
    """

    def __new__(
        cls,
        folder: Path,
        run_id: str | None = None,
        form: Form | None = None,
        max_step: int | None = None,
        quarantined: frozenset[str] = frozenset(),
        would_attest: bool = False,
    ) -> CheckpointFolder:
        return super().__new__(cls, folder, run_id, form or form_of(None), max_step, quarantined, would_attest)


class Candidate(NamedTuple):
    """One checkpoint that was thought of.

    Args:
        folder, name: where it lies.
        step: by its name, else by its manifest or its content; None where nothing says.
        verdict: 'chosen', 'passed' (looked at and not taken) or 'older' (not opened, a newer one is good).
        grade: 'proven', 'attested', 'plausible', or None.
        reason: short, one.
        inside, known: of the chosen one, what it holds and its manifest, if it has one.
    """

    step: int | None
    folder: Path
    name: str
    run_id: str | None
    verdict: str
    grade: str | None
    reason: str
    inside: Summary | None = None
    known: Manifest | None = None

    @property
    def path(self) -> Path:
        """The file; made when asked for, since of a thousand candidates one or two are looked at."""
        return self.folder / self.name

    @property
    def content(self) -> Summary:
        """What a chosen one holds. Raises KitError for one that was not looked into."""
        if self.inside is None:
            raise KitError(f"checkpoint '{self.path}' was not looked into")
        return self.inside


class Selection(NamedTuple):
    """The choice, and every candidate, newest first."""

    chosen: Candidate | None
    candidates: tuple[Candidate, ...]


class _Entry(NamedTuple):
    step: int | None
    folder: Path
    name: str
    home: CheckpointFolder
    has_manifest: bool
    unattested: Unattested | None = None  # why its manifest counts for nothing


class _Rules(NamedTuple):
    needs: frozenset[str]
    prove: bool
    weights_only: bool
    minimum: str
    why: str
    mb_per_s: float | None = None


def select(
    folders: Sequence[CheckpointFolder],
    *,
    step: int | None = None,
    best: bool = False,
    path: Path | None = None,
    needs: frozenset[str] = WEIGHTS,
    prove: bool = True,
    weights_only: bool = True,
    minimum: str = PLAUSIBLE,
    mb_per_s: float | None = None,
) -> Selection:
    """Choose the checkpoint to resume from along a history.

    Args:
        folders: the history, newest run first.
        step: only this step.
        best: the best checkpoint instead of the latest.
        path: this file, whatever its name.
        needs: top-level keys that must be inside, such as 'optimizer_state_dict'.
        prove: read the chosen file once and compare its digest (without a manifest: its checksums); else that is left
            to the process that loads it.
        weights_only: also pass over files that loading with weights_only=True would refuse.
        minimum: the lowest grade to take: 'proven', 'attested' or 'plausible'. A plausible one is taken only where
            the history has no better one, or where it was asked for by step, best or path.
        mb_per_s: read no faster than this.

    Returns:
        The selection; without candidates there was nothing to choose from, with candidates none was stable.

    Source: protocol §0.
    """
    why = "the file asked for" if path else "the best one" if best else "newest stable"
    rules = _Rules(
        needs=needs, prove=prove, weights_only=weights_only, minimum=minimum,
        why=why if step is None else "the step asked for", mb_per_s=mb_per_s,
    )  # fmt: skip
    if path is not None:
        home = folders[0] if folders else CheckpointFolder(path.parent)
        # A user who names a file may name it through a link, and take it from another run.
        path = Path(os.path.realpath(path)) if path.is_symlink() else path
        named = home._replace(folder=path.parent, run_id=None, max_step=None)
        has_manifest = os.path.lexists(manifest_path(path))
        entry = _Entry(home.form.step_of(path.name), path.parent, path.name, named, has_manifest)
        return _take_first([entry], rules, [])
    if best:
        return _take_first(list(_best_entries(folders)), rules, [])
    entries, odd = _entries(folders)
    if step is not None:
        return _take_first([entry for entry in entries if entry.step == step], rules, [])
    return _take_latest(entries, rules, odd)


def require(selection: Selection, where: str) -> Candidate:
    """Return the chosen candidate.

    Args:
        where: what was searched, for the message: "in 'runs/EXP-03/checkpoints'".

    Raises:
        NoStableCheckpoint: none was found, or none is stable; two different sentences.
    """
    if selection.chosen is not None:
        return selection.chosen
    if not selection.candidates:
        raise NoStableCheckpoint(f"no checkpoint found {where}")
    newest = selection.candidates[0]
    count = len(selection.candidates)
    raise NoStableCheckpoint(
        f"no stable checkpoint {where}: {count} found, none usable; the newest, '{newest.path.name}': {newest.reason}"
    )


def _take_first(entries: list[_Entry], rules: _Rules, odd: list[Candidate]) -> Selection:
    """Take the first good one of `entries`, whatever its grade."""
    found: list[Candidate] = []
    for position, entry in enumerate(entries):
        older = entries[position + 1 :]
        try:
            candidate = _examined(entry, rules, older)
        except Unattested:
            candidate = _examined(entry._replace(has_manifest=False), rules, older)
        found.append(candidate)
        if candidate.verdict == CHOSEN:
            found += _older(entries[position + 1 :], candidate)
            return Selection(candidate, (*found, *odd))
    return Selection(None, (*found, *odd))


def _take_latest(entries: list[_Entry], rules: _Rules, odd: list[Candidate]) -> Selection:
    """Take the newest one that has a good manifest; only where there is none, the newest that is sound without."""
    seen: dict[int, Candidate] = {}
    chosen = _first_good(entries, rules, seen, with_manifest=True)
    if chosen is None and rules.minimum == PLAUSIBLE:
        chosen = _first_good(entries, rules, seen, with_manifest=False)
    last = len(entries) if chosen is None else chosen + 1
    left = iter([True] * MAX_LOOKED_AT)
    candidates = [seen.get(i) or _passed(entries[i], rules, is_read=next(left, False)) for i in range(last)]
    if chosen is None:
        return Selection(None, (*candidates, *odd))
    older = _older(entries[last:], seen[chosen])
    return Selection(seen[chosen], (*candidates, *older, *odd))


def _first_good(entries: list[_Entry], rules: _Rules, seen: dict[int, Candidate], *, with_manifest: bool) -> int | None:
    """Return the position of the first good entry of those with a manifest, or of those without; others are noted.

    One that would be attested first counts among those with a manifest.
    """
    for position, entry in enumerate(entries):
        if (entry.has_manifest or entry.home.would_attest) != with_manifest:
            continue
        older = entries[position + 1 :]
        try:
            seen[position] = _examined(entry, rules, older)
        except Unattested as error:
            entries[position] = entry._replace(has_manifest=False, unattested=error)
            if not entry.home.would_attest:
                continue
            again = _examined(entries[position], rules, older)
            if again.verdict != CHOSEN:
                continue  # what its manifest says of it is the better reason
            seen[position] = again
        if seen[position].verdict == CHOSEN:
            return position
    return None


def _passed(entry: _Entry, rules: _Rules, *, is_read: bool) -> Candidate:
    """Say of a file without a manifest why it was passed over; its bytes are not read, its directory and pickle are.

    Args:
        is_read: it is looked at; of many, only the newest are.
    """
    if is_read:
        found = _examined(entry, rules._replace(prove=False, minimum=PLAUSIBLE), [])
        if found.verdict != CHOSEN:
            broken = entry.unattested and entry.unattested.if_broken
            return found._replace(reason=broken) if broken else found
    if entry.unattested:
        return _candidate(entry, PASSED, PLAUSIBLE, str(entry.unattested))
    grade = PLAUSIBLE if is_read else None
    if rules.minimum == PLAUSIBLE:
        return _candidate(
            entry, PASSED, grade, "plausible only (no manifest): nothing says that its save was completed"
        )
    advice = "a recovery takes what is attested or proven; resume.sh takes it"
    return _candidate(entry, PASSED, grade, f"plausible only (no manifest): {advice}")


def _examined(entry: _Entry, rules: _Rules, older: Sequence[_Entry]) -> Candidate:
    home = entry.home
    if home.would_attest:  # who attests it compares it with those of its own run
        older = [one for one in older if one.folder == entry.folder]
    if entry.name in home.quarantined:
        return _candidate(entry, PASSED, None, "quarantined: it failed before")
    try:
        grade = examine(
            entry.folder / entry.name,
            name_step=entry.step,
            run_id=home.run_id,
            has_manifest=entry.has_manifest,
            needs=rules.needs,
            prove=rules.prove,
            weights_only=rules.weights_only,
            older=(one.folder / one.name for one in older),
            mb_per_s=rules.mb_per_s,
            named=home.form,
        )
    except Unattested:
        raise
    except UnreadableFile as error:
        return _candidate(entry, PASSED, None, str(error))
    if home.would_attest and grade.known is None:
        grade = grade._replace(name=ATTESTED, notes=(WOULD_BE_ATTESTED, *grade.notes[1:]))
    found = entry._replace(step=grade.step)
    if home.max_step is not None and grade.step is not None and grade.step > home.max_step:
        reason = f"step {grade.step} lies after the step {home.max_step} where the history left this run"
        return _candidate(found, PASSED, grade.name, reason)
    if _ORDER.index(grade.name) < _ORDER.index(rules.minimum):
        return _candidate(found, PASSED, grade.name, f"only {grade.name}, {rules.minimum} is needed")
    chosen = _candidate(found, CHOSEN, grade.name, "; ".join((rules.why, *grade.notes)))
    return chosen._replace(inside=grade.inside, known=grade.known)


def _older(entries: list[_Entry], chosen: Candidate) -> list[Candidate]:
    same, older = "the chosen one of the same step is in a newer run", "older than the chosen one"
    beside = f"it is of step {chosen.step} too, and was written before '{chosen.name}'"
    step = -1 if chosen.step is None else chosen.step
    found = []
    for one in entries:
        is_same = one.step == step
        verdict, reason = (PASSED, beside) if is_same and one.folder == chosen.folder else (OLDER, same)
        found.append(_candidate(one, verdict, None, reason if is_same else older))
    return found


def _candidate(entry: _Entry, verdict: str, grade: str | None, reason: str) -> Candidate:
    return Candidate(
        step=entry.step, folder=entry.folder, name=entry.name, run_id=entry.home.run_id, verdict=verdict,
        grade=grade, reason=reason,
    )  # fmt: skip


def _entries(folders: Sequence[CheckpointFolder]) -> tuple[list[_Entry], list[Candidate]]:
    """List the history: newest step first, a child's before its parent's at the same step."""
    entries: list[_Entry] = []
    odd: list[Candidate] = []
    for home in folders:
        names = catalog.names_in(home.folder)
        steps, odd_names = catalog.sorted_names(home.folder, names, home.form)
        if home.form.is_fixed and home.form.pattern in names - {name for _, name in steps}:
            unread = _Entry(None, home.folder, home.form.pattern, home, has_manifest=False)
            entries.append(unread)  # looked at first, for why it says no step
        with_manifest = catalog.with_manifest(home.folder, names)
        entries += [
            _Entry(step, home.folder, name, home, name in with_manifest)
            for step, name in steps
            if home.max_step is None or step <= home.max_step
        ]
        odd += [
            Candidate(
                step=None, folder=home.folder, name=name, run_id=home.run_id, verdict=PASSED, grade=None,
                reason=f"its name is not '{home.form.pattern}'",
            )
            for name in odd_names[:MAX_ODD_NAMES]
            if name != home.form.best_pattern
        ]  # fmt: skip
    if len(folders) > 1:
        entries.sort(key=lambda entry: -(entry.step or 0))  # stable: newer runs stay first
    return entries, odd


def _best_entries(folders: Sequence[CheckpointFolder]) -> Iterator[_Entry]:
    """Yield the best of each run: the one of that name, else the one that its framework has noted."""
    for home in folders:
        own = home.form.best_pattern
        name = own if os.path.lexists(home.folder / own) else _noted_best(home)
        if name is not None:
            has_manifest = os.path.lexists(manifest_path(home.folder / name))
            yield _Entry(home.form.step_of(name), home.folder, name, home, has_manifest)


def _noted_best(home: CheckpointFolder) -> str | None:
    """Return the newest that was sealed as the best, else the one that the newest readable checkpoint has noted."""
    from . import kinds  # late: the kit's own trainers give the best a name

    names = catalog.names_in(home.folder)
    there = catalog.sorted_names(home.folder, names, home.form)[0]
    there = [one for one in there if home.max_step is None or one[0] <= home.max_step]
    for _, name in there:
        with contextlib.suppress(UnreadableFile):
            if manifest.read(home.folder / name).best_score is not None:
                return name
    for _, name in there[:MAX_LOOKED_AT]:
        with contextlib.suppress(UnreadableFile, OSError):
            best = kinds.look_inside(home.folder / name, home.form).summary.best
            return best if best in names else None
    return None
