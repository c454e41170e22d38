"""What a start or a resume would do: begin anew, continue a head or branch, from which checkpoint, with which config.

Reads the config, run folders and checkpoints; writes nothing. `launch` makes it so.
Try it: `bin/resume.sh EXP-01 --dry-run`
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..basics import claims, process_details, processes
from ..basics.errors import NeedsAccept, Refused, UsageError
from ..configuration import config
from ..configuration.changes import Change
from ..proving.checkpoints import Candidate
from ..run_folder import status
from ..run_folder.lineage import check_name
from ..run_folder.recovery import Recovery
from ..run_folder.runs import Run, RunTable
from . import heads, interpreter, origin
from .request import Request
from .resume_config import ResumeConfig, for_resume

# Data workers notice within seconds that their trainer is gone.
ORPHANS_WAIT_S = 15.0

FRESH = "fresh"
CONTINUE = "continue"
BRANCH = "branch"


class Choice(NamedTuple):
    """What will be done.

    Args:
        relation: FRESH, CONTINUE or BRANCH.
        experiment, name: of the new run.
        config: its resolved config.
        table: the runs that it joins.
        settings: every `--set` that went into the config, the parent's first.
        parent: the run it comes from; None for a fresh one, or a checkpoint that lies in no run.
        step: the optimizer step it starts from.
        candidate: the checkpoint.
        candidates: every checkpoint that was thought of, newest first.
        changed: config keys that differ from those of the run that holds the checkpoint.
        settled: those of them that the parent had changed already: consent was given then.
        origin: the run that `changed` is about, where it is not the parent.
        consents: what a person must agree to before anything of it is started: words or files of another user.
        is_taken_over: a person has said that the parent, which cannot be told alive or dead, is dead.
        said: sentences for the person.
        recovery: of the incident that the new run recovers from; None where a person starts it.
    """

    relation: str
    experiment: str
    name: str | None
    config: dict[str, Any]
    table: RunTable
    settings: tuple[str, ...] = ()
    parent: Run | None = None
    step: int | None = None
    candidate: Candidate | None = None
    candidates: tuple[Candidate, ...] = ()
    changed: Sequence[Change] = ()
    said: tuple[str, ...] = ()
    recovery: Recovery | None = None
    settled: frozenset[str] = frozenset()
    origin: Run | None = None
    consents: tuple[str, ...] = ()
    is_taken_over: bool = False

    @property
    def base(self) -> Run | None:
        """The run that `changed` is about."""
        return self.origin or self.parent

    @property
    def title(self) -> str:
        """What will be done, in a line."""
        if self.relation == FRESH:
            return f"starting {self.experiment} anew"
        if self.candidate is None:
            return f"beginning '{self.parent.run_id}' anew: it has no checkpoint"
        origin = f"'{self.parent.run_id}'" if self.parent else f"'{self.candidate.path}'"
        return f"{'continuing' if self.relation == CONTINUE else 'branching from'} {origin} at step {self.step}"

    @property
    def headline(self) -> str:
        """The title, with the grade of the checkpoint and why it was taken."""
        return f"{self.title} ({self.candidate.grade}: {self.candidate.reason})" if self.candidate else self.title


def require_consent(reasons: Sequence[str], *, is_accepted: bool) -> None:
    """Raise NeedsAccept where there is something to agree to, and `--accept` was not given."""
    if reasons and not is_accepted:
        listed = "; ".join(reasons)
        raise NeedsAccept(f"the plan needs consent, which --accept gives: {listed} (--dry-run shows it whole)")


def choose_start(request: Request) -> Choice:
    """Decide for `run.sh`: continue what is unfinished, else begin anew.

    Raises:
        KitError: see `choose_resume`; a finished or a live run is not begun again without --fresh.
    """
    table = RunTable(request.runs_dir)
    if request.checkpoint is not None:
        return _resume(request, table, heads.search(request, table))
    if request.fresh:
        return _fresh(request, table, ())
    heads.refuse_moved(request, table)
    found = heads.search(request, table)
    head = found.head
    _refuse_starting(table, heads.experiment_of(request))
    if head is None:
        return _fresh(request, table, ())
    if heads.has_checkpoints(found, table):
        said = f"'{head.run_id}' has checkpoints: resuming it as resume.sh does (--fresh begins anew)"
        return _resume(request, table, found, said)
    advice = "wait for its first checkpoint, or begin another with --fresh"
    _refuse_live(head, advice, is_taken_over=request.take_over)
    said = f"'{head.run_id}' has no checkpoint: beginning anew"
    others = f"; other branches, for resume.sh --from: {heads.listed(found.others)}" if found.others else ""
    return _anew(_fresh(request, table, (said + others,)), head, request, found.another)


def choose_resume(request: Request) -> Choice:
    """Decide for `resume.sh`: which head, which checkpoint, which config.

    Raises:
        UsageError: the experiment or run is not there, or a step is on several branches.
        NoStableCheckpoint: none was found, or none is stable.
        Refused: another head is alive, the run is finished, or a change is asked for that cannot be made.
        InvalidFile: the config is not valid.
    """
    table = RunTable(request.runs_dir)
    if not request.goes_back:
        heads.refuse_moved(request, table)
    found = heads.search(request, table)
    if found.head is None and request.checkpoint is None:
        raise UsageError(
            f"there is no run of '{request.experiment}' in '{table.runs_dir}' to resume (run.sh starts one)"
        )
    return _resume(request, table, found)


def refuse_what_cannot_be_continued(parent: Run, table: RunTable, *, is_taken_over: bool = False) -> None:
    """Raise Refused where a head is alive, has left processes behind, is finished, or is continued already.

    Args:
        is_taken_over: a person says that it is dead: enough where that cannot be told, never where it is alive.
    """
    branch = "branch from one of its steps with --step"
    seen = _refuse_live(parent, f"stop it first, or {branch}", is_taken_over=is_taken_over)
    _refuse_orphans(parent, branch, is_taken_over=is_taken_over)
    _refuse_finished(parent, seen)
    refuse_continued(parent, table, is_taken_over=is_taken_over)


def refuse_continued(parent: Run, table: RunTable, *, is_taken_over: bool = False) -> None:
    """Raise Refused if another run continues `parent` already."""
    if sentence := claims.held_by_other(parent.paths, table.has_started, is_taken_over=is_taken_over):
        raise Refused(sentence)


def _fresh(request: Request, table: RunTable, said: tuple[str, ...]) -> Choice:
    experiment = heads.experiment_of(request)
    resolved = request.resolved(experiment)
    name = _name(request, config.get(resolved, "experiment.run_name"))
    said = (*said, *_also_said(request, table, resolved))
    return Choice(FRESH, experiment, name, resolved, table, tuple(request.settings), said=said)


def _also_said(request: Request, table: RunTable, resolved: dict[str, Any]) -> tuple[str, ...]:
    return (*heads.copies_said(request, table), *interpreter.override_said(resolved))


def _anew(choice: Choice, head: Run, request: Request, another: str | None) -> Choice:
    """Begin anew in the place of a head without a checkpoint: who claims it first, a person or its recovery, begins.

    Under another name it is another run, as with --fresh; a folder that the kit did not make is not taken up.
    The config is the caller's own; a head of another user's that would execute other words is not passed over.
    """
    if choice.name != head.name:
        return choice
    _refuse_to_lose_steps(head)
    if not head.is_ours:
        return choice
    _refuse_orphans(head, "begin another with --fresh", is_taken_over=request.take_over)
    refuse_continued(head, choice.table, is_taken_over=request.take_over)
    advice = f"--accept begins anew in the place of '{head.run_id}', with your own words; --fresh begins beside it"
    asked: tuple[str, ...] = ()
    if head.config:
        from ..run_folder import trust  # late, here and below: what begins from no run pays for none of them
        from . import executed_words

        asked = executed_words.consents(head, trust.standing(head), head.config, request, choice.experiment, advice)
    asked += _of_another_project(head, another)
    return choice._replace(relation=CONTINUE, parent=head, step=0, consents=asked, is_taken_over=request.take_over)


def _refuse_to_lose_steps(head: Run) -> None:
    """Refuse to begin at step 0 over what looks like a checkpoint and fits no pattern."""
    from ..run_folder import stray_checkpoints

    stray = stray_checkpoints.newest(head)
    if reason := stray.words if stray else stray_checkpoints.lost(head, status.read_state(head)):
        raise Refused(
            f"'{head.run_id}' would be begun anew from step 0, but {reason}: "
            "--fresh begins anew all the same, resume.sh --checkpoint PATH goes on from a file that the trainer loads"
        )


def _newer_than(candidate: Candidate, head: Run) -> tuple[str, ...]:
    """Return the sentence about a later file that no pattern matches, where there is one."""
    from ..run_folder import stray_checkpoints

    stray = stray_checkpoints.newer(head, candidate.step or 0, candidate.path)
    return (f"{stray.words}: this goes on from the older step {candidate.step}",) if stray else ()


def _of_another_project(head: Run, another: str | None) -> tuple[str, ...]:
    if another is None:
        return ()
    return (
        f"'{head.run_id}' {another}: it is another project's; --fresh begins one of this project, a folder of its "
        "own (paths.runs, --runs) keeps them apart, --accept goes on from it all the same",
    )


def _words_of(
    parent: Run | None, new: ResumeConfig, request: Request, experiment: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (what a person must agree to before the words of the parent's record are executed, what is only said)."""
    if parent is None or not new.is_inherited:
        return (), ()
    from ..run_folder import trust
    from . import executed_words

    standing = trust.standing(parent)
    advice = f"--accept executes what '{parent.run_id}' says; resume.sh --reresolve takes your own config"
    asked = executed_words.consents(parent, standing, new.resolved, request, experiment, advice)
    if standing.is_callers or asked:
        return asked, ()
    name = request.config_file.path.name
    return (), (f"'{parent.run_id}' is not your own word ({standing.reason}); it would execute what '{name}' says too",)


def _resume(request: Request, table: RunTable, found: heads.Found, *said: str) -> Choice:
    candidate, parent = found.selection.chosen, found.parent
    if candidate is None:
        raise heads.nothing_stable(request, table, found)
    experiment = heads.experiment_of(request)
    since = origin.of(parent, candidate, table, request.config_file.schema) if parent else None
    new = for_resume(request, experiment, parent, since)
    name = _name(request, parent.name if parent else config.get(new.resolved, "experiment.run_name"))
    relation = _relation(request, experiment, parent, new, name)
    step = candidate.step
    if step is None:
        step, said = 0, (*said, f"'{candidate.path.name}' does not say its step: 0 is taken, as protocol §6 has it")
    if request.goes_back:
        said = (*said, *heads.warned(found, table))
    if relation == CONTINUE:
        refuse_what_cannot_be_continued(parent, table, is_taken_over=request.take_over)
    asked, noted = _words_of(parent, new, request, experiment)
    consents = (*asked, *_of_another_project(parent or found.head, found.another))
    from . import checkpoint_trust

    consents += checkpoint_trust.consents(candidate, new.resolved, table)
    if relation == CONTINUE:
        said += _newer_than(candidate, parent)
    if found.others and not request.goes_back:
        said += (f"'{found.head.run_id}' is the newest branch; the others, for --from: {heads.listed(found.others)}",)
    return Choice(
        relation, experiment, name, new.resolved, table, new.settings, parent, step, candidate,
        found.selection.candidates, new.differences.changed,
        (*said, *noted, *new.said, *heads.passed_over(found.selection), *_also_said(request, table, new.resolved)),
        settled=new.differences.settled, origin=since.run if since and since.between else None, consents=consents,
        is_taken_over=relation == CONTINUE and request.take_over,
    )  # fmt: skip


def _name(request: Request, otherwise: str | None) -> str | None:
    name = request.name if request.name is not None else otherwise
    return None if name is None else check_name(name)


def _relation(request: Request, experiment: str, parent: Run | None, new: ResumeConfig, name: str | None) -> str:
    """Say whether this goes on with its parent's training: no place, no name and nothing of the hash is changed.

    What differs is asked, not the recorded hash: a key with a default that a lab has added since changes every hash,
    and must not let a second trainer start beside a live one.
    """
    if parent is None or not parent.config or request.goes_back or parent.name != name:
        return BRANCH
    if parent.experiment != experiment:
        return BRANCH
    schema = request.config_file.schema
    return BRANCH if any(schema.hashed(change.key) for change in new.differences.asked) else CONTINUE


def _refuse_live(run: Run, advice: str, *, is_taken_over: bool = False) -> dict[str, Any]:
    """Return the status of a run that has ended; refuse one that is alive, or that cannot be told dead from here."""
    state = status.read_state(run)
    view = status.look(run, state)
    seen = status.observe(run, state, view)
    if not run.is_ours or seen["state"] not in status.LIVE:
        return seen
    if view.is_unknown:
        _refuse_unknown(run, state, view, advice, is_taken_over=is_taken_over)
        return seen
    where = f"pid {seen['pid']} on {seen['host']}" if seen["pid"] else "it is starting"
    if view.sight.verdict.code != "process":
        where += f"; {view.sight.verdict.words}"
    raise Refused(f"'{run.run_id}' is alive ({seen['state']}, {where}): {advice}")


def _refuse_unknown(run: Run, state: Any, view: status.View, advice: str, *, is_taken_over: bool) -> None:
    """Refuse a run that cannot be told alive or dead from here, unless a person has said that it is dead."""
    verdict = view.sight.verdict
    if is_taken_over and verdict.can_take_over:
        return
    from ..run_folder import life_signs, liveness  # only for a message

    copied = f" ({life_signs.original_of(run, state)})" if verdict.code == liveness.COPY else ""
    raise Refused(
        f"'{run.run_id}' cannot be told alive or dead from here: {verdict.words}{copied}; "
        f"{life_signs.age_words(view.sight, run)}: {verdict.way_out}; or {advice}"
    )


def _refuse_starting(table: RunTable, experiment: str) -> None:
    """Refuse while another command is just starting this experiment: its run is no head before it has a trainer."""
    for run in table.of_experiment(experiment):
        if not run.is_ours or run.has_started or (state := status.current(run)["state"]) not in status.LIVE:
            continue
        if state == "starting":
            raise Refused(f"'{run.run_id}' is just being started by another command: wait for it, or use --fresh")
        raise Refused(f"'{run.run_id}' is alive ({state}): wait for it, or use --fresh")


def _refuse_orphans(run: Run, otherwise: str, *, is_taken_over: bool = False) -> None:
    """Refuse while what an ended trainer left still runs: a wrapper may have died before what it wrapped."""
    state = status.read_state(run)
    launched = state.get("launched") or {}
    leader = run.trainer_of(launched)
    give_up = time.monotonic() + ORPHANS_WAIT_S
    while (view := status.look(run, state, is_thorough=True)).trainer != processes.DEAD and time.monotonic() < give_up:
        if view.is_unknown and is_taken_over and view.sight.verdict.can_take_over:
            return
        time.sleep(0.2)
    if view.trainer == processes.DEAD:
        return
    if view.is_unknown:
        holders = process_details.lock_holders(run.paths.session_lock)
        pids = f" (pid {process_details.shown(holders)})" if holders else ""
        raise Refused(f"'{run.run_id}' has ended, but {view.sight.verdict.words}{pids}: {view.sight.verdict.way_out}")
    left = processes.session_members(leader) if leader else []
    pids = process_details.shown(member.pid for member in left)
    raise Refused(
        f"'{run.run_id}' has ended, but processes of its trainer still run (pid {pids}): end them first, or {otherwise}"
    )


def _refuse_finished(parent: Run, seen: dict[str, Any]) -> None:
    if seen["state"] == "finished":
        raise Refused(
            f"'{parent.run_id}' has finished at step {seen['global_step']}: "
            "run.sh --fresh begins anew, --step branches from one of its steps"
        )
