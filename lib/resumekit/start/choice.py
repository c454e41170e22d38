"""What a start or a resume would do: begin anew, continue a head or branch, from which checkpoint, with which config.

Reads the config, run folders and checkpoints; writes nothing but the manifests of `along_history`. `make_folder` makes
it so.
Try it: `bin/resume.sh EXP-01 --dry-run`
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..base import claims, process_details, processes
from ..base.errors import KitError, NeedsAccept, Refused, UsageError
from ..base.imports import Any, NamedTuple
from ..base.terminal import WARNING, Note
from ..base.values import count
from ..checkpoint.selection import Candidate
from ..config import config, rules
from ..policy.config_diff import Change
from ..run import life_signs, status
from ..run.run_folder import Run
from ..run.run_names import check_name
from ..run.run_table import Recovery, RunTable
from . import baseline, init_base, interpreter, search, trainer_command
from .baseline import ResumeConfig, for_resume
from .init_base import InitBase
from .request import Request

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
        already_accepted: those of them that the parent had changed already: consent was given then.
        origin: the run that `changed` is about, where it is not the parent.
        consents: what a person must agree to before anything of it is started: words or files of another user.
        is_taken_over: a person has said that the parent, which cannot be told alive or dead, is dead.
        init: the checkpoint that a new lineage takes its weights from; None where there is none.
        is_chained: `run.sh` goes on with what is there: the next link of a chain of jobs, perhaps of a finished run.
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
    already_accepted: frozenset[str] = frozenset()
    origin: Run | None = None
    consents: tuple[str, ...] = ()
    is_taken_over: bool = False
    is_chained: bool = False
    init: InitBase | None = None

    @property
    def chosen(self) -> Candidate:
        """The checkpoint that it loads anything from. Raises KitError where it begins without one."""
        found = self.init.candidate if self.init else self.candidate
        if found is None:
            raise KitError(f"{self.experiment} begins from no checkpoint")
        return found

    @property
    def holder(self) -> Run | None:
        """The run in whose folder the checkpoint lies; None without a parent, whose history it is of."""
        return baseline.holder_of(self.chosen, self.parent, self.table) if self.parent else None

    @property
    def base(self) -> Run | None:
        """The run that `changed` is about."""
        return self.origin or self.parent

    @property
    def title(self) -> str:
        """What will be done, in a line."""
        weights = f", with the weights of '{self.chosen.path}'" if self.init else ""
        if self.relation == FRESH:
            return f"starting {self.experiment} anew{weights}"
        if self.candidate is None and self.parent is not None:
            return f"beginning '{self.parent.run_id}' anew: it has no checkpoint{weights}"
        origin = f"'{self.parent.run_id}'" if self.parent else f"'{self.chosen.path}'"
        return f"{'continuing' if self.relation == CONTINUE else 'branching from'} {origin} at step {self.step}"

    @property
    def headline(self) -> str:
        """The title, with the grade of the checkpoint and why it was taken."""
        if self.init is None and self.candidate is None:
            return self.title
        return f"{self.title} ({self.chosen.grade}: {self.chosen.reason})"


# Why a start is refused, for a program: in a scheduler's job these two are no failure (start/in_job).
ALIVE, FINISHED = "alive", "finished"


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
    table = search.table_of(request)
    if request.checkpoint is not None:
        return _resume(request, table, search.search(request, table))
    if request.fresh:
        return _fresh(request, table, ())
    lineage = search.lineage_of(request, table)
    search.refuse_moved(request, table, lineage)
    found = search.search(request, table, lineage)
    head = found.head
    # Where a run is named, a start of another name stands against nothing either.
    own = lineage or (None if head is None else search.Lineage(head.name, True))
    _refuse_starting(table, search.experiment_of(request, table), own)
    if head is None:
        return _first(request, table, lineage)
    if search.has_checkpoints(found, table):
        said = f"'{head.run_id}' has checkpoints: resuming it as resume.sh does (run.sh --fresh begins anew)"
        choice = _resume(request, table, found, said)
        return choice._replace(is_chained=choice.relation == CONTINUE)
    advice = "wait for its first checkpoint, or begin another with run.sh --fresh"
    _refuse_live(head, advice, is_taken_over=request.take_over)
    said = f"'{head.run_id}' has no checkpoint: beginning anew"
    others = f"; other branches, for resume.sh --from: {search.listed(found.others)}" if found.others else ""
    return _anew(_fresh(request, table, (said + others,)), head, request, found.another)


def choose_resume(request: Request) -> Choice:
    """Decide for `resume.sh`: which head, which checkpoint, which config.

    Raises:
        UsageError: the experiment or run is not there, or a step is on several branches.
        NoStableCheckpoint: none was found, or none is stable.
        Refused: another head is alive, the run is finished, or a change is asked for that cannot be made.
        InvalidFile: the config is not valid.
    """
    table = search.table_of(request)
    if not request.goes_back:
        search.refuse_moved(request, table)
    found = search.search(request, table)
    if found.head is None and request.checkpoint is None:
        if request.experiment not in table.experiments:
            request.resolved(request.experiment)  # says which experiments there are
        raise UsageError(
            f"there is no run of '{request.experiment}' in '{table.runs_dir}' to resume (run.sh starts one)"
        )
    return _resume(request, table, found)


def refuse_what_cannot_be_continued(parent: Run, table: RunTable, *, is_taken_over: bool = False) -> None:
    """Raise Refused where a head is alive, has left processes behind, is finished, or is continued already.

    Args:
        is_taken_over: a person says that it is dead: enough where that cannot be told, never where it is alive.
    """
    branch = "branch from one of its steps with resume.sh --step N"
    seen = _refuse_live(parent, f"stop it first, or {branch}", is_taken_over=is_taken_over)
    _refuse_orphans(parent, branch, is_taken_over=is_taken_over)
    _refuse_finished(parent, seen)
    claims.refuse_continued(parent.paths, table.has_started, is_taken_over=is_taken_over)


def _fresh(request: Request, table: RunTable, said: tuple[str, ...]) -> Choice:
    experiment = search.experiment_of(request, table)
    resolved = request.resolved(experiment)
    name = _name(request, config.get(resolved, "experiment.run_name"))
    said = (*said, *_also_said(request, table, resolved))
    init, asked = None, tuple[str, ...]()
    if request.init_from is not None:
        from . import consent  # late, as below: what begins with no file pays for none of them

        init = init_base.find(request.init_from, resolved)
        asked = consent.checkpoint_consents(init.candidate, resolved, table)
    return Choice(
        relation=FRESH, experiment=experiment, name=name, config=resolved, table=table,
        settings=tuple(request.settings), said=said, init=init, consents=asked,
    )  # fmt: skip


def _first(request: Request, table: RunTable, lineage: search.Lineage | None) -> Choice:
    """Begin the first run of a name: beside those of other names where it was given, else with a person's consent."""
    experiment = search.experiment_of(request, table)
    if lineage is None or not (others := search.siblings(table, experiment, lineage)):
        return _fresh(request, table, ())
    names = search.listed(others, with_names=True)
    own = f"'{lineage.name}'" if lineage.name else "no name"
    if lineage.is_named:
        return _fresh(request, table, (f"{own} is a new name of {experiment}, beside {names}: it begins anew",))
    asked = (
        f"the config gives {experiment} {'the name ' if lineage.name else ''}{own}, of which there is no run, only "
        f"{names}: run.sh --name NAME or resume.sh RUN_ID goes on with one of them, --accept begins another beside them"
    )
    return _fresh(request, table, ())._replace(consents=(asked,))


def _also_said(request: Request, table: RunTable, resolved: dict[str, Any]) -> tuple[str, ...]:
    untold = trainer_command.untold(resolved, request.keys_set)
    doubts = (
        *rules.doubtful(resolved),
        *rules.unchecked(resolved, request.config_file.schema),
        *filter(None, [untold]),
    )
    return (
        *(Note(WARNING, f"warning: {doubt}") for doubt in doubts),
        *search.copies_said(request, table),
        *interpreter.override_said(resolved),
        *interpreter.helpers_said(),
        *rules.without_effect(resolved, request.config_file.schema),
    )


def _anew(choice: Choice, head: Run, request: Request, another: str | None) -> Choice:
    """Begin anew in the place of a head without a checkpoint: who claims it first, a person or its recovery, begins.

    Under another name it is another run, as with --fresh; a folder that the kit did not make is not taken up.
    The config is the caller's own; a head of another user's that would execute other words is not passed over.
    """
    if choice.name == head.name or not head.is_ours:  # a folder that the kit did not make has a name by chance
        search.refuse_to_lose_steps(head, choice.table, status.read_state(head))
    if choice.name != head.name:
        return choice
    if not head.is_ours:
        return choice
    if status.current(head)["state"] == "finished":  # a job that is requeued would train it again and again
        raise Refused(
            f"'{head.run_id}' has finished, and has no checkpoint to go on from: run.sh --fresh begins anew, "
            "run.sh --name NAME begins another one",
            FINISHED,
        )
    _refuse_orphans(head, "begin another with run.sh --fresh", is_taken_over=request.take_over)
    claims.refuse_continued(head.paths, choice.table.has_started, is_taken_over=request.take_over)
    advice = (
        f"--accept begins anew in the place of '{head.run_id}', with your own words; run.sh --fresh begins beside it"
    )
    asked: tuple[str, ...] = ()
    if head.config:
        from ..run import trust  # late, here and below: what begins from no run pays for none of them
        from . import consent

        asked = consent.word_consents(head, trust.standing(head), head.config, request, choice.experiment, advice)
    asked += _of_another_project(head, another)
    return choice._replace(
        relation=CONTINUE, parent=head, step=0, consents=asked, is_taken_over=request.take_over,
        init=init_base.again(head.record, choice.config),
    )  # fmt: skip


def _newer_than(candidate: Candidate, head: Run) -> tuple[str, ...]:
    """Return the sentence about a later file that no pattern matches, where there is one."""
    from ..run import stray_checkpoints

    stray = stray_checkpoints.newer(head, candidate.step or 0, candidate.path)
    return (f"{stray.words}: this goes on from the older step {candidate.step}",) if stray else ()


def _of_another_project(head: Run | None, another: str | None) -> tuple[str, ...]:
    if head is None or another is None:
        return ()
    return (
        f"'{head.run_id}' {another}: it is another project's; run.sh --fresh begins one of this project, a folder "
        "of its own (paths.runs, --runs) keeps them apart, --accept goes on from it all the same",
    )


def _words_of(
    parent: Run | None, new: ResumeConfig, request: Request, experiment: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (what a person must agree to before the words of the parent's record are executed, what is only said)."""
    if parent is None or not new.is_inherited:
        return (), ()
    from ..run import trust
    from . import consent

    standing = trust.standing(parent)
    advice = f"--accept executes what '{parent.run_id}' says; resume.sh --reresolve takes your own config"
    asked = consent.word_consents(parent, standing, new.resolved, request, experiment, advice)
    if standing.is_callers or asked:
        return asked, ()
    name = request.config_file.path.name
    return (), (f"'{parent.run_id}' is not your own word ({standing.reason}); it would execute what '{name}' says too",)


def _resume(request: Request, table: RunTable, found: search.Found, *said: str) -> Choice:
    candidate, parent = found.selection.chosen, found.parent
    if candidate is None:
        raise search.nothing_stable(request, table, found)
    experiment = search.experiment_of(request, table)
    since = baseline.baseline_of(parent, candidate, table, request.config_file.schema) if parent else None
    new = for_resume(request, experiment, parent, since)
    name = _name(request, parent.name if parent else config.get(new.resolved, "experiment.run_name"))
    relation = _relation(request, experiment, parent, new, name)
    step = candidate.step
    if step is None:
        step, said = 0, (*said, f"'{candidate.path.name}' does not say its step: 0 is taken, as protocol §6 has it")
    if request.goes_back:
        said = (*said, *search.warned(found, table))
    if parent is not None and relation == CONTINUE:
        refuse_what_cannot_be_continued(parent, table, is_taken_over=request.take_over)
    asked, noted = _words_of(parent, new, request, experiment)
    consents = (*asked, *_of_another_project(parent or found.head, found.another))
    from . import consent

    consents += consent.checkpoint_consents(candidate, new.resolved, table)
    if parent is not None and relation == CONTINUE:
        said += _newer_than(candidate, parent)
    if found.head is not None and found.others and not request.goes_back:
        said += (
            f"'{found.head.run_id}' is the newest branch; the others, for resume.sh --from: "
            f"{search.listed(found.others)}",
        )
    return Choice(
        relation=relation, experiment=experiment, name=name, config=new.resolved, table=table, settings=new.settings,
        parent=parent, step=step, candidate=candidate,
        candidates=found.selection.candidates, changed=new.differences.changed,
        said=(
            *said, *noted, *new.said, *search.passed_over(found.selection),
            *_also_said(request, table, new.resolved),
        ),
        already_accepted=new.differences.already_accepted,
        origin=since.run if since and since.between else None, consents=consents,
        is_taken_over=relation == CONTINUE and request.take_over,
    )  # fmt: skip


def _name(request: Request, otherwise: str | None) -> str | None:
    if request.name is not None:
        return check_name(request.name)
    return None if otherwise is None else check_name(otherwise, "experiment.run_name")


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
    view = life_signs.settled(lambda: status.look(run, state))
    seen = status.observe(run, state, view)
    if not run.is_ours or seen["state"] not in status.LIVE:
        return seen
    if view.is_unknown:
        _refuse_unknown(run, state, view, advice, is_taken_over=is_taken_over)
        return seen
    where = f"pid {seen['pid']} on {seen['host']}" if seen["pid"] else "it is starting"
    if view.seen.verdict.code != "process":
        where += f"; {view.seen.verdict.words}"
    raise Refused(f"'{run.run_id}' is alive ({seen['state']}, {where}): {advice}", ALIVE)


def _refuse_unknown(run: Run, state: Any, view: status.View, advice: str, *, is_taken_over: bool) -> None:
    """Refuse a run that cannot be told alive or dead from here, unless a person has said that it is dead."""
    verdict = view.seen.verdict
    if is_taken_over and verdict.can_take_over:
        return
    from ..run import liveness  # only for a message

    copied = f" ({life_signs.original_of(run, state)})" if verdict.code == liveness.COPY else ""
    raise Refused(
        f"'{run.run_id}' cannot be told alive or dead from here: {verdict.words}{copied}; "
        f"{life_signs.age_words(view.seen, run)}: {verdict.way_out}; or {advice}"
    )


def _refuse_starting(table: RunTable, experiment: str, lineage: search.Lineage | None) -> None:
    """Refuse while another command is just starting a run of this lineage: it is no head before it has a trainer."""
    for run in table.of_experiment(experiment):
        if lineage is not None and not lineage.has(run):
            continue
        if not run.is_ours or run.has_started or (state := status.current(run)["state"]) not in status.LIVE:
            continue
        how = "just being started by another command" if state == "starting" else f"alive ({state})"
        raise Refused(f"'{run.run_id}' is {how}: wait for it, or begin another with run.sh --fresh", ALIVE)


def _refuse_orphans(run: Run, otherwise: str, *, is_taken_over: bool = False) -> None:
    """Refuse while what an ended trainer left still runs: a wrapper may have died before what it wrapped."""
    state = status.read_state(run)
    give_up = time.monotonic() + ORPHANS_WAIT_S
    while (view := status.look(run, state, is_thorough=True)).trainer != processes.DEAD and time.monotonic() < give_up:
        if view.is_unknown and is_taken_over and view.seen.verdict.can_take_over:
            return
        time.sleep(0.2)
    if view.trainer == processes.DEAD:
        return
    if view.is_unknown:
        holders = process_details.lock_holders(run.paths.session_lock)
        pids = f" (pid {process_details.shown(holders)})" if holders else ""
        raise Refused(f"'{run.run_id}' has ended, but {view.seen.verdict.words}{pids}: {view.seen.verdict.way_out}")
    pids = process_details.shown(member.pid for member in life_signs.left_of(run, state))
    raise Refused(
        f"'{run.run_id}' has ended, but processes of its trainer still run (pid {pids}): end them first, or {otherwise}"
    )


def _refuse_finished(parent: Run, seen: dict[str, Any]) -> None:
    if seen["state"] == "finished":
        steps = parent.setting("training", "max_steps")
        has_total = count(steps) is not None and trainer_command.is_told(parent.config, "training.max_steps")
        raise Refused(
            f"'{parent.run_id}' has finished at step {seen['global_step']}: "
            + (f"--set training.max_steps=N goes on from there to a step N above {steps}, " if has_total else "")
            + "run.sh --fresh begins anew, resume.sh --step N branches from one of its steps",
            FINISHED,
        )
