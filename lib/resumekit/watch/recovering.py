"""Taking up a run that has ended by an incident: nothing, wait, or a new run folder that is ready to start.

The launcher asks when its trainer has ended, the watcher where there is no launcher any more; however often they
ask, at most one child comes of it: the claim of the head is exclusive. Config and code are the parent's own; nothing
is resolved anew. Source: protocol §12.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from pathlib import Path

from ..base import claims, file_identity, journal, ownership, processes
from ..base.errors import FAILED, Busy, DiskFull, KitError, KitIncomplete, Refused
from ..base.imports import Any, NamedTuple
from ..base.terminal import plain, say
from ..base.terms import OOM
from ..config import config, schema
from ..config.config import ConfigFile
from ..config.yaml_document import Document
from ..policy.config_diff import changes
from ..process import aborting, attest
from ..process.nan_guard import record_recovery
from ..run import held, live_marker, run_end, status, trust
from ..run.journal_fold import RECOVERY_WAITS, State
from ..run.run_folder import Run
from ..run.run_table import Recovery, RunTable
from ..start import baseline, code_change, consent, init_base, make_folder, pipeline
from ..start.choice import CONTINUE, Choice, refuse_what_cannot_be_continued
from ..start.code_state import Code
from ..start.pipeline import Planned
from ..start.plan import Plan
from ..start.preflight import Ready
from ..start.request import Request
from . import allocation, budget, devices, eligibility, escalation, failed_start, incident, restart_point
from .incident import Incident
from .restart_point import Suspect
from .rules import limits_of

# What may pass by itself, a full disk or a lock, is tried again after so long.
TRY_AGAIN_S = 60.0
# And then a person is called.
GIVE_UP_S = 3600.0
# How long a sidecar may take to start, and to write down the end: it may have a checkpoint of many GB to attest.
SIDECAR_START_S = 2.0
END_WAIT_S = 60.0
# The longest wait between two starts.
MAX_BACKOFF_S = 3600.0
_POLICY_OF_ONE_RESUME = "auto"


class Outcome(NamedTuple):
    """What is to be done: start `ready`; or ask again in `wait_s` seconds; or, with neither, nothing."""

    ready: make_folder.Launch | None = None
    wait_s: float | None = None


NOTHING = Outcome()


def recover(run_dir: Path, launcher_pid: int, *, is_attended: bool = False) -> Outcome:
    """Decide about a run that is over, and make the folder of the one that goes on from it.

    Args:
        run_dir: the run's folder.
        launcher_pid: the process that would start the trainer.
        is_attended: a person has started this run, and waits for its launcher.
    """
    examined = trust.examine(run_dir)
    run = examined.run
    table = RunTable(run_dir.parent)
    table.put(run)
    launcher = processes.identify(launcher_pid)
    if not run.is_ours or os.path.lexists(run.paths.paused):
        return NOTHING
    if _is_only_said(examined):
        return NOTHING
    if examined.standing.is_callers and run.setting("recover", "enabled") is not True:
        return NOTHING
    if (origin := budget.origin_of_failed_spawn(run, table)) is not None:
        is_first_look = budget.give_back_claim(origin, run, launcher)
        return Outcome(wait_s=TRY_AGAIN_S) if is_first_look else recover(origin.paths.run_dir, launcher_pid)
    state, found = {}, None
    try:
        state = _state_at_the_end(run)
        if examined.standing.is_callers:
            record_recovery(run, state)
        if status.needs_attention(state):
            escalation.renotify(run)
            return NOTHING
        if sentence := incident.leftovers_go_on(run, state):
            return _wait(run, state, "leftovers", sentence, TRY_AGAIN_S)
        found = incident.of(run, state, table)
        if found is None:
            _tell_of_an_early_end(run, state, table)
            return NOTHING
        if _is_taken_up(run, table) or _is_of_another_job(run):
            return NOTHING
        aborting.note(run, found.cause, found.evidence, first_bad_step=found.first_bad_step)
        state = status.read_state(run)
        found = incident.of(run, state, table)
        if found is None:
            return NOTHING  # a person has stopped it meanwhile
        if is_attended and (reason := failed_start.cannot_heal(run, state)):
            _say(f"'{run.run_id}' is not tried again: {reason}")
            # `nohup`, cron, a terminal that was closed: then no person reads what is said here.
            escalation.call_a_person(run, found, reason, is_told=os.isatty(2))
            return NOTHING
        outcome = _decide(examined, state, table, found, launcher_pid)
        if isinstance(outcome, str):
            _say(f"'{run.run_id}' needs attention: {outcome}")
            escalation.call_a_person(run, found, outcome)
            return NOTHING
        return outcome
    except (KitError, OSError) as error:  # a lock, a full disk: it may pass by itself
        return _cannot_now(run, state, table, found, error)


def _tell_of_an_early_end(run: Run, state: State, table: RunTable) -> None:
    """Have a person told of a trainer that has ended with code 0 before its last step."""
    if status.name_of(run, state, status.look(run, state)) != status.ENDED_EARLY:
        return
    if _is_taken_up(run, table):  # by a person, who knows
        live_marker.remove(run.paths)
        return
    max_steps, step = run.setting("training", "max_steps"), state.get("step")
    where = f"at step {step} of {max_steps}" if step is not None else f"before the first of its {max_steps} steps"
    message = f"it ended by itself {where}, with code 0: nothing goes on from it by itself (ended_early)"
    _say(f"'{run.run_id}': {message}")
    escalation.tell_of_early_end(run, message)


def _state_at_the_end(run: Run) -> State:
    """Fold the journal, once a sidecar that is at work has written the end down: it may still prove a checkpoint."""
    begun = time.monotonic()
    while "exited" not in (state := status.read_state(run)):
        waited_s = time.monotonic() - begun
        is_at_work = waited_s < SIDECAR_START_S or claims.is_held(run.paths.status_lock)
        if not is_at_work or waited_s > END_WAIT_S:
            break
        time.sleep(0.1)
    return state


def _is_only_said(examined: trust.Examined) -> bool:
    """Say why a run is not the caller's word; whether that is all, because its journal is not the caller's either."""
    run = examined.run
    if examined.standing.is_callers:
        return False
    _say(f"'{run.run_id}' is not taken up: {examined.standing.reason}")
    return not (ownership.is_callers(run.paths.run_dir, stat.S_IFDIR) and ownership.is_callers(run.paths.journal))


def _decide(
    examined: trust.Examined, state: State, table: RunTable, found: Incident, launcher_pid: int
) -> Outcome | str:
    """Return what is to be done; a sentence where a person has to see to it."""
    run = examined.run
    if not examined.standing.is_callers:
        return f"{examined.standing.reason}; nothing in it is executed without a person (docs/security.md)"
    try:
        return _take_up(examined, state, table, found, launcher_pid)
    except (DiskFull, Busy, KitIncomplete):
        raise
    except KitError as error:
        if _is_taken_up(run, table):
            return NOTHING  # another one was faster
        if error.exit_code == FAILED:
            raise
        return str(error)


def _cannot_now(run: Run, state: State, table: RunTable, found: Incident | None, error: KitError | OSError) -> Outcome:
    """Say, in the journal once, that it is tried again; after GIVE_UP_S a person is called."""
    if found is not None and _call_for_help(run, state, table, found, str(error)):
        return NOTHING
    code = error.code if isinstance(error, KitError) else "os_error"
    return _wait(run, state, code, str(error), TRY_AGAIN_S)


def _wait(run: Run, state: State, code: str, reason: str, wait_s: float) -> Outcome:
    """Say that it is asked again later, in the journal once as long as the reason's code stays the same.

    The sentence itself may change each time: it tells pids, and how much room there is.
    """
    message = f"cannot be taken up now: {plain(reason)}"
    _say(f"'{run.run_id}' {message}; it is tried again")
    with contextlib.suppress(OSError):
        if state.get("recovery_waits") != code:
            journal.append(run.paths.journal, "warning", run.run_id, kind=RECOVERY_WAITS, code=code, message=message)
    return Outcome(wait_s=wait_s)


def _call_for_help(run: Run, state: State, table: RunTable, found: Incident, reason: str) -> bool:
    """Give up what has been tried for long enough; while that cannot even be written down, tell it once an hour."""
    since_s = found.since_s if found.since_s is not None else state.get("active_mono_s")
    # An hour that the budget was waited for is none in which it was tried.
    tried_s = 0.0 if since_s is None else min(time.monotonic() - since_s, budget.free_for_s(run, table))
    if tried_s < GIVE_UP_S:
        return False
    sentence = f"for {tried_s / 3600:.0f} h it could not be taken up: {reason}"
    try:
        escalation.call_a_person(run, found, sentence)
        return True
    except (KitError, OSError):
        if tried_s % GIVE_UP_S < TRY_AGAIN_S:
            escalation.tell_unwritten(run, found, sentence)
        return False


def _take_up(examined: trust.Examined, state: State, table: RunTable, found: Incident, launcher_pid: int) -> Outcome:
    """Decide about the run, wait for its turn, then make the run folder that goes on from it.

    Raises:
        KitError: it cannot be taken up; where a person has to see to it, the sentence says why.
    """
    run = examined.run
    if (waits := _stands_against(run, state, table, found)) is not None:
        return waits
    planned = _decided(examined, state, table, found)
    if (left_s := _backoff_left_s(run, found)) > 0:
        how = "; Ctrl-C ends it" if sys.stderr.isatty() else ""
        _say(f"{found.evidence}; start {found.fruitless + 1} follows, not before {left_s:.0f} s from now{how}")
        return Outcome(wait_s=left_s)
    choice = planned.choice
    if sentence := incident.end_leftovers(run, state):
        return _wait(run, state, "leftovers", sentence, TRY_AGAIN_S)
    devices.require_free_gpus(run, state)
    budget.require_room(run, state, choice.candidate)
    refuse_what_cannot_be_continued(run, table)
    if _is_decided_by_a_person(run, table):
        return NOTHING
    prepared = make_folder.prepare(planned, processes.identify(launcher_pid), ["recover", run.run_id])
    if _is_decided_by_a_person(run, table):
        return NOTHING  # who stops a run looks for its claim after writing it down, so one of us sees the other
    factor = choice.recovery.lr_factor if choice.recovery else 1.0
    cut = f", learning rate x {factor:g}" if factor != 1.0 else ""
    _say(f"{found.evidence}: {choice.headline}{cut}; run {prepared.run_id}")
    handed = planned.plan.handed if planned.plan else None
    for sentence in (*choice.said, *([handed.words] if handed else [])):
        _say(sentence)
    with contextlib.suppress(OSError):
        budget.tell_of_equal_ends(run, state, table, found)
    return Outcome(ready=prepared)


def _stands_against(run: Run, state: State, table: RunTable, found: Incident) -> Outcome | None:
    """Ask what may stand against another start before a checkpoint is chosen; None where nothing does.

    Returns:
        When to ask again, where the budget of an hour is spent.

    Raises:
        Refused: a person has to see to it.
    """
    if reason := eligibility.before_a_choice(run, found):
        raise Refused(reason)
    if (number := budget.count_failed_spawns(run, table)) >= limits_of(run.setting).max_attempts:
        raise Refused(
            f"{found.evidence}; {number} runs that were to go on could not start: their logs/output.log says why"
        )
    if name := restart_point.quarantine_suspect(run, table):
        _say(f"'{name}' is in quarantine: two starts from it ended before their first step")
    if (over := budget.spent(run, table)) is not None:
        reason = f"{found.evidence}; {over.reason}"
        if over.wait_s is None:
            raise Refused(reason)
        return _wait(run, state, "budget", reason, over.wait_s)
    return None


def _decided(examined: trust.Examined, state: State, table: RunTable, found: Incident) -> Planned:
    """Take the recovery through the pipeline of every start.

    What the plan needs consent for keeps a recovery from being made, as a refusal does: no person is asked at night.

    Raises:
        KitError: as `pipeline.decide`.
    """
    run = examined.run
    suspect = restart_point.suspect_left_aside(run, table)
    attest.attest_what_is_left(run)
    held.let_go(run)
    request, asked = _request(examined, table), code_change.ask(run)

    def object_to_code(ready: Ready, code: Code) -> None:
        if reason := eligibility.in_the_code(run, asked, code):
            raise Refused(reason)
        if reason := eligibility.in_the_versions(run, ready.versions.comparable()):
            raise Refused(reason)

    def object_to_plan(made: Plan) -> None:
        if made.refusals or made.consents:
            raise Refused("; ".join((*made.refusals, *made.consents)))

    return pipeline.decide(
        request,
        lambda request: _choice(run, state, table, found, request, suspect),
        pipeline.Objections(to_code=object_to_code, to_plan=object_to_plan),
    )


def _is_decided_by_a_person(run: Run, table: RunTable) -> bool:
    """Whether a person has stopped or paused the run while it was decided about."""
    return incident.of(run, status.read_state(run), table) is None or os.path.lexists(run.paths.paused)


def _is_taken_up(run: Run, table: RunTable) -> bool:
    return claims.held_by_other(run.paths, table.has_started) is not None


def _is_of_another_job(run: Run) -> bool:
    """Say why the caller may not take a run up that is of another scheduler's job; whether that is so."""
    reason = allocation.why_not_callers(run)
    if reason:
        _say(f"'{run.run_id}' is left alone: {reason}")
    return reason is not None


def _backoff_left_s(run: Run, found: Incident) -> float:
    """Return how long to wait before the next start: none after one that brought something, then doubling."""
    base_s = run.setting("recover", "backoff_s")
    if found.fruitless == 0 or type(base_s) not in (int, float) or found.since_s is None:
        return 0.0
    wait_s = min(max(1.0, base_s) * 2 ** (found.fruitless - 1), MAX_BACKOFF_S)
    age_s = time.monotonic() - found.since_s
    return max(0.0, wait_s - age_s) if age_s >= 0 else 0.0  # a negative age is one of another boot


def _request(examined: trust.Examined, table: RunTable) -> Request:
    """Return the request that the run itself stands for: its own config, as it was read from its own folder."""
    run, content = examined.run, examined.config_copy
    own = schema.load()
    resolved = config.override(run.config, (), own, f"the config of run '{run.run_id}'")
    path = Path(str(run.record.get("config_file")))
    if content is None:
        raise Refused(f"the config's copy '{run.paths.config_copy}' cannot be read")
    file = ConfigFile(
        path=path,
        document=Document({}, {}, str(path)),
        sha256=file_identity.sha256(content),
        content=content,
        schema=own,
    )
    root = Path(str(run.record.get("root")))
    return Request(experiment=run.run_id, config_file=file, base=resolved, root=root, runs_dir=table.runs_dir)


def _choice(
    run: Run, state: State, table: RunTable, found: Incident, request: Request, suspect: Suspect | None
) -> Choice:
    own = request.config_file.schema
    begin = restart_point.find(run, state, table, found, suspect)
    chosen = begin.selection.chosen
    since = baseline.baseline_of(run, chosen, table, own)
    before = _without_policies(request.base, own)["resume"]
    inherited = {**request.base, "resume": {**before, **since.policies}}
    resolved, settings = _made_smaller(run, found, inherited, own)
    factor = run.setting("recover", "lr_factor") if eligibility.is_cut(run, found) and chosen else 1.0
    recovery = Recovery(
        cause=found.cause,
        attempt=found.fruitless + 1,
        first_bad_step=found.first_bad_step,
        lr_factor=float(factor),
        skip_data_steps=begin.skip_data_steps,
        skip_eval_step=begin.skip_eval_step,
    )
    differs = baseline.differences_from(since, run, resolved, before, own)
    return Choice(
        relation=CONTINUE,
        experiment=str(run.experiment),
        name=run.name,
        config=resolved,
        table=table,
        settings=settings,
        parent=run,
        step=0 if chosen is None or chosen.step is None else chosen.step,
        candidate=chosen,
        candidates=begin.selection.candidates,
        changed=differs.changed,
        said=(*begin.said, *since.said),
        recovery=recovery,
        already_accepted=differs.already_accepted,
        origin=since.run if since.between else None,
        init=init_base.again(run.record, resolved) if chosen is None else None,
        consents=consent.checkpoint_consents(chosen, resolved, table),
    )


def _made_smaller(
    run: Run, found: Incident, inherited: dict[str, Any], own: schema.Schema
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return (the config, every `--set` in it) of the next run: with `abort.oom_set` where the memory did not suffice.

    Raises:
        Refused: abort.oom_set is in force already.
    """
    if found.cause != OOM:
        return inherited, run.settings
    smaller = tuple(run.setting("abort", "oom_set"))
    resolved = config.override(inherited, smaller, own, f"the config of run '{run.run_id}'")
    if changes(inherited, resolved, own):
        return resolved, (*run.settings, *smaller)
    if not run_end.is_oom_kill(run_end.read(run)):
        raise Refused(f"{found.evidence}, and abort.oom_set ({', '.join(smaller)}) is in force already")
    return resolved, run.settings


def _without_policies(resolved: dict[str, Any], own: schema.Schema) -> dict[str, Any]:
    """Return the config without what a person told one resume to reset or swap: the checkpoints since then have it."""
    kept = dict(resolved["resume"])
    for key in kept:
        if own.leaves.get(f"resume.{key}", {}).get("default") == _POLICY_OF_ONE_RESUME:
            kept[key] = _POLICY_OF_ONE_RESUME
    return {**resolved, "resume": kept}


def _say(sentence: str) -> None:
    say("resumekit", sentence)
