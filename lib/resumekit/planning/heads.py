"""Where a resume starts looking: the head that a request is about, its history, and the checkpoint found there.

Reads folder names, run.json and checkpoints; writes nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..basics import claims
from ..basics.errors import NoStableCheckpoint, Refused, UsageError
from ..proving import proof
from ..proving.checkpoints import Candidate, CheckpointFolder, Selection, select
from ..proving.grades import PROVEN, WEIGHTS, WITNESSED
from ..run_folder.lineage import check_experiment, parse_run_name
from ..run_folder.quarantine import quarantined_names
from ..run_folder.runs import Run, RunTable, run_around
from . import spoilt
from .request import Request

_NAMED_IN_A_MESSAGE = 5
_DAMAGED = (proof.DIFFERS, proof.UNREADABLE)


class Found(NamedTuple):
    """What a search came back with.

    Args:
        head: the run whose history was searched; None where a file was named and the experiment has no run.
        parent: the run that a new one would descend from: the head, or the run with the checkpoint that was named.
        selection: the checkpoint, and each one that was thought of.
        others: heads of the same experiment that were not searched, newest first.
        another: how the head is another project's, for a message; None where it is this one's, or was named.
    """

    head: Run | None
    parent: Run | None
    selection: Selection
    others: tuple[Run, ...] = ()
    another: str | None = None


def experiment_of(request: Request) -> str:
    """Return the experiment of the new run: as named, or that of the run id that was named."""
    named = parse_run_name(request.experiment) if "_" in request.experiment else None
    return named.experiment if named else check_experiment(request.experiment)


def search(request: Request, table: RunTable) -> Found:
    """Find the head that the request is about and the checkpoint to start from.

    Raises:
        UsageError: the run is not there, or the step is on several branches.
    """
    head, others, another = _head(request, table)
    if request.checkpoint is not None:
        holder = run_around(table, Path(os.path.realpath(request.checkpoint)))
        head = holder or head
        return Found(head, holder, _select(request, head, table.history(head) if head else []))
    if head is None:
        return Found(None, None, Selection(None, ()))
    selection = _select(request, head, table.history(head))
    if not selection.candidates and request.step is not None and request.from_run is None:
        return _on_another_branch(request, table, Found(head, head, selection, others, another))
    parent = head
    if selection.chosen is not None and (request.step is not None or request.best):
        parent = table.get(selection.chosen.run_id) or head
    return Found(head, parent, selection, others, another)


def refuse_moved(request: Request, table: RunTable) -> None:
    """Raise Refused where a run of the experiment still trains whose folder was moved, renamed, removed or emptied.

    Its live marker is what is left of it; processes are looked for only where there is such a marker.
    """
    from ..run_folder import live_marker

    experiment = experiment_of(request)
    marked: set[str] = set()
    with contextlib.suppress(OSError):
        marked = live_marker.run_ids(table.runs_dir)
    for run_id in sorted(marked):
        parsed = parse_run_name(run_id)
        if parsed is None or parsed.experiment != experiment or ((run := table.get(run_id)) and run.is_ours):
            continue
        if pids := live_marker.carriers(table.runs_dir / run_id):
            raise Refused(
                f"'{run_id}' is alive (pid {', '.join(map(str, pids))}), and its folder was moved, renamed or removed: "
                f"put it back to '{table.runs_dir / run_id}', or end its processes; "
                "--fresh begins another beside it"
            )


def search_stable(run: Run, table: RunTable, max_step: int | None) -> Selection:
    """Return the newest checkpoint along a run's history that may be taken without a person: proven, else witnessed.

    Args:
        max_step: none above this step; None for any.
    """
    trainer = run.config.get("trainer")
    history = [(one, _lower(limit, max_step)) for one, limit in table.history(run)]
    return _select_along(history, trainer if isinstance(trainer, dict) else {}, is_dry_run=False, minimum=WITNESSED)


def _lower(limit: int | None, other: int | None) -> int | None:
    return min((one for one in (limit, other) if one is not None), default=None)


def has_checkpoints(found: Found, table: RunTable) -> bool:
    """Return whether there is anything at all to resume from, stable or not."""
    if found.selection.candidates:
        return True
    return found.head is not None and any(_best_names(table.history(found.head)))


def nothing_stable(request: Request, table: RunTable, found: Found) -> NoStableCheckpoint:
    """Return the error for a search without a result: nothing found, or nothing stable, two different sentences."""
    head, candidates = found.head, found.selection.candidates
    where = (
        f"along the history of '{head.run_id}'" if head and request.checkpoint is None else f"at '{request.checkpoint}'"
    )
    if request.step is not None:
        where = f"of step {request.step} {where}"
    if candidates:
        reasons = "; ".join(f"'{c.path.name}': {c.reason}" for c in candidates[:3])
        more = f" and {len(candidates) - 3} more" if len(candidates) > 3 else ""
        return NoStableCheckpoint(f"no stable checkpoint {where}: {reasons}{more}")
    hints = []
    if head and not request.best and (best := next(_best_names(table.history(head)), None)):
        hints.append(f"'{best}' is there, --best takes it")
    if found.others:
        hints.append(f"other branches, for --from: {listed(found.others)}")
    return NoStableCheckpoint("; ".join([f"no checkpoint found {where}", *hints]))


def copies_said(request: Request, table: RunTable) -> tuple[str, ...]:
    """Return a sentence for each copied folder that is passed over, where an experiment's head was looked for."""
    if request.fresh or request.from_run is not None or "_" in request.experiment:
        return ()
    copies = table.copies(request.experiment)
    return tuple(f"'{run.run_id}' is a copy of '{run.copy_of}': not taken into account" for run in copies)


def warned(found: Found, table: RunTable) -> list[str]:
    """Return a sentence where the checkpoint, taken because it was named, was saved after its run had gone wrong."""
    chosen = found.selection.chosen
    home = table.get(chosen.run_id) if chosen and chosen.run_id else found.parent
    bad = spoilt.of(home) if home else None
    if chosen is None or bad is None or chosen.step is None or chosen.step < bad.step or chosen.grade == PROVEN:
        return []
    return [f"'{chosen.path.name}' was {bad.reason}: it is taken because it was named"]


def passed_over(selection: Selection) -> list[str]:
    """Return one sentence for each checkpoint that was looked at and not taken, ten at most."""
    passed = [c for c in selection.candidates if c.verdict == "passed"]
    said = [f"passed over '{c.path.name}': {c.reason}" for c in passed[:10]]
    return said + ([f"passed over {len(passed) - 10} more (--dry-run --json lists all)"] if len(passed) > 10 else [])


def listed(runs: tuple[Run, ...]) -> str:
    """Return run ids for a message, the first few of them."""
    names = ", ".join(f"'{run.run_id}'" for run in runs[:_NAMED_IN_A_MESSAGE])
    return names + (f" and {len(runs) - _NAMED_IN_A_MESSAGE} more" if len(runs) > _NAMED_IN_A_MESSAGE else "")


def _head(request: Request, table: RunTable) -> tuple[Run | None, tuple[Run, ...], str | None]:
    """Return (the head that the request is about, the experiment's other heads, how it is another project's)."""
    if request.from_run is not None:
        return _named(table, request.from_run, " (given with --from)"), (), None
    if "_" in request.experiment:
        return _past_damaged(table, _named(table, request.experiment, "")), (), None
    experiment = check_experiment(request.experiment)
    heads = table.heads(experiment)
    if not heads:
        return None, (), None
    from . import project  # late: a first start has no head

    of_another: str | None = None
    for run in heads:  # the newest of this project; only where there is none, the newest of another
        how = project.another(run, request, experiment)
        if how is None:
            return run, tuple(one for one in heads if one is not run), None
        of_another = of_another or how
    return heads[0], tuple(heads[1:]), of_another


def _named(table: RunTable, run_id: str, origin: str) -> Run:
    run = table.get(run_id)
    if run is None:
        raise UsageError(f"there is no run '{run_id}' in '{table.runs_dir}'{origin}")
    return run


def _past_damaged(table: RunTable, run: Run) -> Run:
    """Return the run, or who continues it where that one found its checkpoint damaged and never trained.

    Such a child has the head now; a request for the old one by its id means to go on from there all the same.
    """
    seen = {run.run_id}
    while (claim := claims.continuation_of(run.paths)) and (child := table.get(str(claim.get("run_id")))):
        verdict = proof.read(child.paths.proof)
        if child.run_id in seen or verdict is None or verdict.verdict not in _DAMAGED or _has_own(child):
            break
        seen.add(child.run_id)
        run = child
    return run


def _has_own(run: Run) -> bool:
    return bool(select([_folder(run, None)], prove=False).candidates)


def _select(request: Request, head: Run | None, history: list[tuple[Run, int | None]]) -> Selection:
    asked = {"step": request.step, "best": request.best, "path": request.checkpoint}
    trainer = _trainer(request, head)
    if any(asked.values()) or request.step is not None or trainer.get("loads_with_kit"):
        return _select_along(history, trainer, is_dry_run=request.is_dry_run, **asked)
    # What the kit loads is finite by its manifest; here the journal alone knows what was saved after a NaN.
    bad = spoilt.along(history)
    selection = _select_along(spoilt.without(history, bad), trainer, is_dry_run=request.is_dry_run)
    return spoilt.added(selection, history, bad) if bad else selection


def _select_along(
    history: list[tuple[Run, int | None]], trainer: dict[str, Any], *, is_dry_run: bool, **asked: Any
) -> Selection:
    # A trainer with the kit's helpers proves the digest as it loads, beside its own start; others cannot. What theirs
    # need to find in a checkpoint, and how they load it, is their own business.
    with_kit = bool(trainer.get("loads_with_kit"))
    needs = frozenset({*WEIGHTS, "optimizer_state_dict"} if with_kit else ())
    if (run := next((run for run, _ in history if run.foreign_link), None)) is not None and not asked.get("path"):
        raise Refused(
            f"'{run.run_id}' is not resumed from: its '{run.foreign_link}' is a link of another user's, which may lead "
            "to files that are yours alone; resume.sh --checkpoint PATH goes on from a file, --fresh begins anew"
        )
    folders = [_folder(run, limit) for run, limit in history]
    return select(folders, needs=needs, prove=is_dry_run or not with_kit, weights_only=with_kit, **asked)


def _folder(run: Run, limit: int | None) -> CheckpointFolder:
    own = run.paths
    return CheckpointFolder(
        own.checkpoints, run.run_id, run.step_pattern, run.best_pattern, limit, quarantined_names(own)
    )


def _trainer(request: Request, head: Run | None) -> dict[str, Any]:
    if head is not None and head.config and not request.reresolve:
        trainer = head.config.get("trainer")
        return trainer if isinstance(trainer, dict) else {}
    return request.base["trainer"]


def _on_another_branch(request: Request, table: RunTable, found: Found) -> Found:
    """Look for an explicit step in every run of the experiment; take it if it is there once."""
    there: dict[str, tuple[Run, Selection]] = {}
    for run in table.of_experiment(found.head.experiment):
        if run.copy_of is not None or run.foreign_link:
            continue
        selection = _select(request, run, [(run, None)])
        if selection.chosen is not None:
            there[os.path.realpath(selection.chosen.path)] = run, selection
    if len(there) > 1:
        holders = tuple(run for run, _ in there.values())
        raise UsageError(f"step {request.step} is on several branches: name one with --from: {listed(holders)}")
    from . import project

    for run, selection in there.values():
        return Found(run, run, selection, found.others, project.another(run, request, found.head.experiment or ""))
    return found


def _best_names(history: list[tuple[Run, int | None]]) -> Iterator[str]:
    for run, _ in history:
        if os.path.lexists(run.paths.checkpoints / run.best_pattern):
            yield run.best_pattern


def holder_of(candidate: Candidate, parent: Run, table: RunTable) -> Run:
    """Return the run in whose folder a candidate of `parent`'s history lies."""
    return (table.get(candidate.run_id) if candidate.run_id else None) or parent
