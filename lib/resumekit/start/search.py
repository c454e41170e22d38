"""Where a resume starts looking: the head that a request is about, its history, and the checkpoint found there.

Reads folder names, run.json and checkpoints; writes nothing but the manifests of `along_history`.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from ..base import claims
from ..base.errors import KitError, NoStableCheckpoint, Refused, UsageError
from ..base.imports import TYPE_CHECKING, Any, NamedTuple
from ..base.terminal import PASSED_OVER, Note, first_few
from ..checkpoint import catalog, proof
from ..checkpoint.grades import PROVEN
from ..checkpoint.selection import Selection, select
from ..config import config
from ..run import held, quarantine
from ..run.run_folder import Run
from ..run.run_names import check_experiment, check_name, parse_run_name
from ..run.run_table import RunTable, run_around
from . import along_history
from .request import Request

if TYPE_CHECKING:
    from ..run.journal_fold import State

_NAMED_IN_A_MESSAGE = 5
_FOLDERS_IN_A_MESSAGE = 1
_STEPS_IN_A_MESSAGE = 10
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


class Lineage(NamedTuple):
    """The runs of an experiment that bear one name: what `run.sh` goes on with.

    Args:
        name: their name; None for runs without one.
        is_named: the name was given on the command line; else it is the config's own.
    """

    name: str | None
    is_named: bool

    def has(self, run: Run) -> bool:
        """Whether a run is one of them. A folder that the kit did not make may have no name, and is the config's."""
        return run.name == self.name or (not self.is_named and not run.is_ours and run.name is None)


def lineage_of(request: Request, table: RunTable) -> Lineage | None:
    """Return which runs of the experiment `run.sh` is about.

    None where the request names a run by its id, or where the experiment has left the config, which then has no name.

    Raises:
        UsageError: the name that was given is none.
    """
    if not table.is_experiment(request.experiment):
        return None
    if request.name is not None:
        return Lineage(check_name(request.name), True)
    try:
        name = config.get(request.resolved(check_experiment(request.experiment)), "experiment.run_name")
    except KitError:
        return None
    return Lineage(name, any("run_name" in setting.partition("=")[0] for setting in request.settings))


def siblings(table: RunTable, experiment: str, lineage: Lineage) -> tuple[Run, ...]:
    """Return the newest run of each other name of an experiment, newest first; one that is just starting counts."""
    newest: dict[str | None, Run] = {}
    for run in sorted(table.of_experiment(experiment), key=lambda run: (run.created_at, run.run_id)):
        if not lineage.has(run) and run.copy_of is None and (run.has_started or _is_live(run)):
            newest.pop(run.name, None)
            newest[run.name] = run
    return tuple(reversed(newest.values()))


def _is_live(run: Run) -> bool:
    from ..run import status  # late: a first start looks at no run

    return run.is_ours and status.current(run)["state"] in status.LIVE


def experiment_of(request: Request, table: RunTable) -> str:
    """Return the experiment of the new run: as named, or that of the run whose id was named."""
    if table.is_experiment(request.experiment):
        return check_experiment(request.experiment)
    run, named = table.get(request.experiment), parse_run_name(request.experiment, table.experiments)
    if run is not None:
        return check_experiment(run.experiment or request.experiment)
    if named is not None and (named.experiment in table.experiments or not table.experiments):
        return check_experiment(named.experiment)
    return check_experiment(request.experiment)


def table_of(request: Request) -> RunTable:
    """Return the runs that a request is about; folders that the kit did not make are read by its config."""

    def named_by() -> dict[str, Any]:
        try:
            return request.resolved(experiment_of(request, table))
        except KitError:  # the experiment has left the file; what a request needs of its config is refused elsewhere
            return request.base

    table = RunTable(request.runs_dir, functools.lru_cache(maxsize=1)(named_by), request.config_file.experiments)
    return table


def search(request: Request, table: RunTable, lineage: Lineage | None = None) -> Found:
    """Find the head that the request is about and the checkpoint to start from.

    Args:
        request: what was asked for.
        table: the runs.
        lineage: where an experiment is named, only its runs of this name are looked at; None for every name.

    Raises:
        UsageError: the run is not there, or the step is on several branches.
    """
    head, others, another = _head(request, table, lineage)
    if request.checkpoint is not None:
        holder = run_around(table, Path(os.path.realpath(request.checkpoint)))
        head = holder or head
        return Found(head, holder, along_history.for_request(request, head, table.history(head) if head else []))
    if head is None:
        return Found(None, None, Selection(None, ()))
    selection = along_history.for_request(request, head, table.history(head))
    if not selection.candidates and request.step is not None and request.from_run is None:
        return _on_another_branch(request, table, head, Found(head, head, selection, others, another))
    parent = head
    if selection.chosen is not None and (request.step is not None or request.best):
        parent = table.get(selection.chosen.run_id) or head
    return Found(head, parent, selection, others, another)


def refuse_moved(request: Request, table: RunTable, lineage: Lineage | None = None) -> None:
    """Raise Refused where a run of the experiment still trains whose folder was moved, renamed, removed or emptied.

    Of a lineage only its own runs count. A live marker is what is left of such a run; processes are looked for only
    where there is one.
    """
    from ..run import live_marker

    experiment = experiment_of(request, table)
    marked: set[str] = set()
    with contextlib.suppress(OSError):
        marked = live_marker.run_ids(table.runs_dir)
    for run_id in sorted(marked):
        parsed = parse_run_name(run_id, table.experiments)
        if parsed is None or parsed.experiment != experiment or ((run := table.get(run_id)) and run.is_ours):
            continue
        if lineage is not None and parsed.name != lineage.name:
            continue
        if pids := live_marker.carriers(table.runs_dir / run_id):
            raise Refused(
                f"'{run_id}' is alive (pid {', '.join(map(str, pids))}), and its folder was moved, renamed or removed: "
                f"put it back to '{table.runs_dir / run_id}', or end its processes; "
                "run.sh --fresh begins another beside it"
            )


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
        where += " that is the best (resume.sh --best)" if request.best else ""
        return NoStableCheckpoint("; ".join([f"no stable checkpoint {where}: {reasons}{more}", *_missing(head, table)]))
    hints = _missing(head, table)
    hints += _seen_instead(request, table.history(head)) if head and request.checkpoint is None else []
    if head and not request.best and (best := next(_best_names(table.history(head)), None)):
        hints.append(f"'{best}' is there, resume.sh --best takes it")
    if head and head.record.get("init_from"):
        hints.append("run.sh begins again with the weights of its base")
    if found.others:
        hints.append(f"other branches, for resume.sh --from: {listed(found.others)}")
    return NoStableCheckpoint("; ".join([f"no checkpoint found {where}", *hints]))


def looked_for(history: list[tuple[Run, int | None]], *, best: bool = False) -> str:
    """Return a sentence about what was searched: name and folder, of the newest run of a history."""
    key = "best_pattern" if best else "pattern"
    places = dict.fromkeys(
        f"'{run.form.best_pattern if best else run.form.pattern}' (checkpoint.{key}) in '{run.paths.checkpoints}'"
        for run, _ in history
    )
    return f"looked for {first_few(places, _FOLDERS_IN_A_MESSAGE)}"


def _seen_instead(request: Request, history: list[tuple[Run, int | None]]) -> Iterator[str]:
    """Yield what is there instead: the steps, or else where it was looked, and a file there that fits no pattern."""
    steps = {step for run, limit in history for step in _steps_of(run, limit)} if not request.best else set()
    if steps:
        nearest = sorted(steps, key=lambda step: abs(step - (request.step or 0)))[:_STEPS_IN_A_MESSAGE]
        more = f" and {len(steps) - len(nearest)} more" if len(steps) > len(nearest) else ""
        yield f"the steps that are there: {', '.join(map(str, sorted(nearest)))}{more}"
        return
    yield looked_for(history, best=request.best)
    if not request.best:
        from ..run import stray_checkpoints

        if stray := stray_checkpoints.newest(history[0][0]):
            yield stray.words


def _steps_of(run: Run, limit: int | None) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for step, _ in catalog.steps_in(run.paths.checkpoints, run.form):
            if limit is None or step <= limit:
                yield step
    if (own := held.step(run)) is not None and (limit is None or own <= limit):
        yield own


def _missing(head: Run | None, table: RunTable) -> list[str]:
    """Return the sentence about an ancestor whose folder is not there, with whatever checkpoints it has."""
    parent = table.missing_parent(head) if head else None
    return [f"'{parent}', which it descends from, is not in '{table.runs_dir}': put its folder back"] if parent else []


def refuse_to_lose_steps(head: Run, table: RunTable, state: State) -> None:
    """Raise Refused where a run cannot be begun at step 0 without losing steps: its own, or those it went on from.

    Args:
        head: a run without a checkpoint.
        table: the runs.
        state: its folded journal.
    """
    from ..run import stray_checkpoints

    stray = stray_checkpoints.newest(head)
    reason = stray.words if stray else stray_checkpoints.lost(head, state)
    if reason is None and head.parent_step:
        reason = f"it went on from step {head.parent_step}{_of_what(head, table)}"
    if reason:
        raise Refused(
            f"'{head.run_id}' would be begun anew from step 0, but {reason}: "
            "run.sh --fresh begins anew all the same, resume.sh --checkpoint PATH goes on from a file that the trainer "
            "loads"
        )


def _of_what(head: Run, table: RunTable) -> str:
    """Say what a run went on from that has no checkpoint any more, for a message."""
    if missing := table.missing_parent(head):
        return f" of '{missing}', whose folder is not in '{table.runs_dir}' (put it back to go on)"
    if parent := table.parent(head):
        return f" of '{parent.run_id}', and no checkpoint up to it is there any more"
    return f" of the file '{head.record.get('checkpoint')}', which lies in no run"


def copies_said(request: Request, table: RunTable) -> tuple[str, ...]:
    """Return a sentence for each copied folder that is passed over, where an experiment's head was looked for."""
    if request.fresh or request.from_run is not None or not table.is_experiment(request.experiment):
        return ()
    copies = table.copies(request.experiment)
    return tuple(f"'{run.run_id}' is a copy of '{run.copy_of}': not taken into account" for run in copies)


def warned(found: Found, table: RunTable) -> list[str]:
    """Return a sentence where the checkpoint, taken because it was named, was saved after its run had gone wrong."""
    chosen = found.selection.chosen
    home = table.get(chosen.run_id) if chosen and chosen.run_id else found.parent
    bad = quarantine.saved_after_nan(home) if home else None
    if chosen is None or bad is None or chosen.step is None or chosen.step < bad.step or chosen.grade == PROVEN:
        return []
    return [f"'{chosen.path.name}' was {bad.reason}: it is taken because it was named"]


def passed_over(selection: Selection) -> list[Note]:
    """Return one note for each checkpoint that was looked at and not taken, ten at most."""
    passed = [f"passed over '{c.path.name}': {c.reason}" for c in selection.candidates if c.verdict == "passed"]
    more = [f"passed over {len(passed) - 10} more (--dry-run --json lists all)"] if len(passed) > 10 else []
    return [Note(PASSED_OVER, sentence) for sentence in (*passed[:10], *more)]


def listed(runs: tuple[Run, ...], *, with_names: bool = False) -> str:
    """Return run ids for a message, the first few of them, each behind its name where that is wanted."""
    words = (f"'{run.name}' ('{run.run_id}')" if with_names and run.name else f"'{run.run_id}'" for run in runs)
    return first_few(words, _NAMED_IN_A_MESSAGE)


def _head(request: Request, table: RunTable, lineage: Lineage | None) -> tuple[Run | None, tuple[Run, ...], str | None]:
    """Return (the head that the request is about, the experiment's other heads, how it is another project's)."""
    if request.from_run is not None:
        return _named(table, request.from_run, " (given with --from)"), (), None
    if not table.is_experiment(request.experiment):
        return _past_damaged(table, _named(table, request.experiment, "")), (), None
    experiment = check_experiment(request.experiment)
    heads = table.heads(experiment, None if lineage is None else lineage.has)
    if not heads:
        return None, (), None
    from . import project  # late: a first start has no head

    of_another: str | None = None
    for run in heads:  # the newest of this project; only where there is none, the newest of another
        how = project.another_project(run, request, experiment)
        if how is None:
            return run, tuple(one for one in heads if one is not run), None
        of_another = of_another or how
    return heads[0], tuple(heads[1:]), of_another


def _named(table: RunTable, run_id: str, origin: str) -> Run:
    run = table.get(run_id)
    if run is None:
        known = f"; the experiments of the config are {', '.join(table.experiments)}" if not origin else ""
        raise UsageError(f"there is no run '{run_id}' in '{table.runs_dir}'{origin}{known}")
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
    return bool(select([held.own_folder(run, None)], prove=False).candidates)


def _on_another_branch(request: Request, table: RunTable, head: Run, found: Found) -> Found:
    """Look for an explicit step in every run of the head's experiment; take it if it is there once."""
    if head.experiment is None:
        return found
    there: dict[str, tuple[Run, Selection]] = {}
    for run in table.of_experiment(head.experiment):
        if run.copy_of is not None or run.foreign_link:
            continue
        selection = along_history.for_request(request, run, [(run, None)])
        if selection.chosen is not None:
            there[os.path.realpath(selection.chosen.path)] = run, selection
    if len(there) > 1:
        holders = tuple(run for run, _ in there.values())
        raise UsageError(
            f"step {request.step} is on several branches: name one with resume.sh --from: {listed(holders)}"
        )
    from . import project

    for run, selection in there.values():
        return Found(run, run, selection, found.others, project.another_project(run, request, head.experiment))
    return found


def _best_names(history: list[tuple[Run, int | None]]) -> Iterator[str]:
    for run, _ in history:
        if os.path.lexists(run.paths.checkpoints / run.form.best_pattern):
            yield run.form.best_pattern
