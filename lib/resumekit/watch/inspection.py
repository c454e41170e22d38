"""One look at every live run of this host: which is sick, and by what evidence. It stops none: that is `acting`.

What is looked at are the caller's live markers (run/live_marker.py), so that finished runs cost nothing. Each
run has its own bound in time, and what is wrong with one does not keep it from the next. Reads run folders;
writes nothing.
Try it: `bin/abort-watch.sh --observe`
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..base import claims, processes
from ..base.errors import KitError
from ..base.imports import Any, NamedTuple
from ..base.paths import RunPaths
from ..base.terminal import plain
from ..base.values import count, string
from ..run import life_signs, live_marker, liveness, own_runs, status, throughput
from ..run.journal_fold import measured_speed
from ..run.run_folder import Run
from ..run.run_names import parse_run_name
from ..run.run_table import RunTable
from . import allocation, observe, rules
from .rules import SICK, SUSPENDED, WARNING, Finding, limits_of

# One run may take so long to look at; a disk that does not answer must not hide the others.
LIMIT_S = 10.0
# What looks sick is looked at again after so long: a machine that has just woken up, a trainer that ends this moment.
SECOND_LOOK_S = 2.0
HEALTHY, ENDED, PAUSED, REMOTE, FOREIGN, UNKNOWN = "well", "ended", "paused", "remote", "foreign", "unknown"
# With --quiet: a line each minute for a run of another host would fill cron's log.
NOT_WORTH_A_LINE = (HEALTHY, PAUSED, REMOTE)


class TooSlow(Exception):
    """A look took longer than it may."""


class Report(NamedTuple):
    """What one look at a run has shown.

    Args:
        run_id: the run.
        state: as in status.json; 'unknown' where it could not be told.
        step, max_steps, steps_per_sec: None where they are not known.
        verdict: 'sick', 'warning', 'well'; 'ended' (a marker that was left behind), 'paused', 'remote', 'foreign' (not
            the caller's), 'unknown'.
        findings: what is wrong, the worst first.
        note: why it was not judged, or not by its ages, for the other verdicts.
        is_at_rest: it trains, its launcher lives, and it is not being ended: nothing has to be done.
        stuck: why nothing can be done about it from here, in a sentence; '' where something can, or need not be.
        is_unread: its journal is longer than a pass can read, and a sidecar of its own has to.
    """

    run_id: str
    state: str
    verdict: str
    step: int | None = None
    max_steps: int | None = None
    steps_per_sec: float | None = None
    findings: tuple[Finding, ...] = ()
    note: str = ""
    is_at_rest: bool = False
    stuck: str = ""
    is_unread: bool = False

    @property
    def evidence(self) -> str:
        return "; ".join([*(f"{one.cause}: {one.evidence}" for one in self.findings), *filter(None, [self.note])])

    def as_fields(self) -> dict[str, Any]:
        """Return it as --json shows it."""
        fields = {**self._asdict(), "findings": [one._asdict() for one in self.findings], "evidence": self.evidence}
        del fields["is_at_rest"], fields["stuck"], fields["is_unread"]
        return fields


def one_pass(runs_dir: Path, wanted: Sequence[str] = ()) -> list[Report]:
    """Look at every live run once, and at those that look sick a second time.

    Args:
        runs_dir: the folder of all runs.
        wanted: experiments and run ids; none for all.

    Raises:
        KitError: the markers cannot be read.
    """
    return look_at_all(runs_dir, live_runs(runs_dir, wanted))


def look_at_all(runs_dir: Path, run_ids: Iterable[str]) -> list[Report]:
    """Look at these runs once, and at those that look sick a second time."""
    looks = [look_at(runs_dir, run_id) for run_id in run_ids]
    if any(one.verdict == SICK for one in looks):
        time.sleep(SECOND_LOOK_S)
        looks = [confirmed(one, look_at(runs_dir, one.run_id)) if one.verdict == SICK else one for one in looks]
    return looks


def live_runs(runs_dir: Path, wanted: Sequence[str] = (), *, of_all_users: bool = False) -> list[str]:
    """Return the ids of the runs that have a live marker, the caller's own or those of all users, sorted.

    Raises:
        KitError: the markers cannot be read.
    """
    try:
        listed = live_marker.folders(runs_dir) if of_all_users else []
        names = live_marker.run_ids_in(listed) if of_all_users else live_marker.run_ids(runs_dir)
    except OSError as error:
        raise KitError(f"the markers in '{error.filename}' cannot be read: {error.strerror}") from error
    return chosen(RunTable(runs_dir), names, wanted)


def chosen(table: RunTable, run_ids: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """Return the run ids that are wanted, by themselves or by their experiment, sorted; all if nothing is named."""
    return sorted(name for name in run_ids if parse_run_name(name) and (not wanted or table.is_named(name, wanted)))


def is_wanted(runs_dir: Path, run_id: str, wanted: Sequence[str]) -> bool:
    """Return whether a run is wanted, by itself or by its experiment; every run is where nothing is named."""
    return not wanted or RunTable(runs_dir).is_named(run_id, wanted)


def without_a_run(runs_dir: Path, wanted: Sequence[str]) -> list[str]:
    """Return the experiments and run ids of which there is no run at all, live or ended: misspelt, most of the time."""
    table = RunTable(runs_dir)
    return [word for word in wanted if table.get(word) is None and not table.of_experiment(word)]


def look_at(runs_dir: Path, run_id: str) -> Report:
    """Look at one run, in bounded time; whatever goes wrong in it becomes a sentence."""
    try:
        with time_limit(LIMIT_S):
            if reason := own_runs.why_marked_run_is_not_own(RunPaths(runs_dir / run_id)):
                return Report(run_id, UNKNOWN, FOREIGN, note=f"left alone: {reason}")
            table = RunTable(runs_dir)
            run = table.get(run_id)
            if run is None:
                return Report(run_id, UNKNOWN, ENDED, note="its folder is gone, the marker was left behind")
            return _judge(run, table)
    except TooSlow:
        return _unknown(run_id, f"it could not be read within {LIMIT_S:.0f} s")
    except Exception as error:  # anything: what one folder holds must not hide the other runs
        return _unknown(run_id, f"it cannot be read: {type(error).__name__}: {error}")


def _unknown(run_id: str, note: str) -> Report:
    return Report(run_id, UNKNOWN, UNKNOWN, note=note, stuck=note)


def confirmed(first: Report, second: Report) -> Report:
    """Return the second look, its sick findings only if the first had them too."""
    causes = {one.cause for one in first.findings}
    kept = tuple(one for one in second.findings if one.verdict != SICK or one.cause in causes)
    if len(kept) == len(second.findings):
        return second
    return second._replace(findings=kept, verdict=_verdict(kept, second.note))


def as_text(looks: Sequence[Report]) -> str:
    """Return one line per run, in columns; '' where there is none."""
    lines = [
        (one.run_id, one.state, _progress(one), "" if one.steps_per_sec is None else f"{one.steps_per_sec:.3g} steps/s",
         one.verdict, one.evidence)
        for one in looks
    ]  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(5)] if lines else []
    return "\n".join(
        plain("  ".join([*(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=False)), line[5]]).rstrip())
        for line in lines
    )


def as_json(looks: Sequence[Report]) -> str:
    """Return a JSON array on one line."""
    return json.dumps([one.as_fields() for one in looks], allow_nan=False)


def summary(looks: Sequence[Report]) -> str:
    """Say in a sentence what a pass has found."""
    number = {name: sum(one.verdict == name for one in looks) for name in (SICK, WARNING, UNKNOWN)}
    shown = "1 run" if len(looks) == 1 else f"{len(looks)} runs"  # not all of them live: one may be over by an incident
    return f"{shown} looked at, {number[SICK]} sick" + "".join(
        f", {number[name]} {name}" for name in (WARNING, UNKNOWN) if number[name]
    )


@contextlib.contextmanager
def time_limit(limit_s: float) -> Iterator[None]:
    """Raise TooSlow in what stands below when it takes longer; only in the main thread."""

    def ring(_number: int, _frame: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, ring)
    # Again and again: code on the way may have taken the first one for an error of its own.
    signal.setitimer(signal.ITIMER_REAL, limit_s, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _judge(run: Run, table: RunTable) -> Report:
    if os.path.lexists(run.paths.paused):
        return Report(run.run_id, UNKNOWN, PAUSED, note="not looked at: there is a file 'paused' in its folder")
    if not run.is_ours:
        return _unknown(run.run_id, "it has no run.json that says whose it is")
    if status.is_long_unread(run):
        return _unknown(run.run_id, "its journal is too long for a look, until a sidecar has read it")._replace(
            is_unread=True
        )
    state = status.read_state(run)
    view = status.look(run, state)
    if note := _unjudged(run, view):
        return note
    name = status.name_of(run, state, view)
    known: dict[str, Any] = {
        "step": state.get("step"),
        "max_steps": count(run.setting("training", "max_steps")),
        "steps_per_sec": throughput.recent_speed(state.get("pace")) or measured_speed(state),
    }
    if name not in (*status.LIVE, *status.TAKEN_UP):
        return Report(run.run_id, name, ENDED, **known, note="not live, the marker was left behind")
    if name in status.TAKEN_UP and not run.has_started:
        return Report(run.run_id, name, ENDED, **known, note="its trainer was never started")
    if name in status.TAKEN_UP and (sentence := claims.held_by_other(run.paths, table.has_started)):
        child = str((claims.continuation_of(run.paths) or {}).get("run_id"))
        # Until its child has a trainer the claim may still become void: the marker stays.
        return Report(run.run_id, name, ENDED if table.has_started(child) else HEALTHY, **known, note=sentence)
    if name in status.TAKEN_UP and (sentence := allocation.why_not_callers(run)):
        return Report(run.run_id, name, WARNING, **known, note=f"left alone: {sentence}")
    limits = limits_of(run.setting)
    seen = observe.observation(run, state, view, table, limits)
    found = tuple(rules.findings(state, limits, seen))
    if sentence := liveness.suspended_words(view.suspended):
        found = (*found, Finding(SUSPENDED, WARNING, sentence))
    is_seen = not found and not seen.behind and "aborted" not in state
    is_at_rest = name == "running" and is_seen and view.launcher == processes.ALIVE
    verdict, stuck = _verdict(found, seen.behind), _stuck(name, view)
    return Report(
        run.run_id, name, verdict, **known, findings=found, note=seen.behind, is_at_rest=is_at_rest, stuck=stuck
    )


def _stuck(name: str, view: status.View) -> str:
    """Say why a pass can do nothing about a run: what would act on it is suspended, or cannot be seen."""
    if sentence := liveness.suspended_words(view.suspended):
        return sentence
    if name in status.TAKEN_UP and view.launcher == processes.UNKNOWN:
        return "it is over, and it cannot be seen from here whether its launcher lives"
    return ""


def _unjudged(run: Run, view: status.View) -> Report | None:
    """Return what is said of a run that is another host's or container's, or cannot be told alive or dead from here.

    One whose death is proven here is judged like any other: a container that was started again, a machine.
    """
    sight = view.seen
    if view.is_unknown:
        verdict = sight.verdict
        note = f"not looked at: {verdict.words}; {life_signs.age_words(sight, run)}: {verdict.way_out}"
        return Report(run.run_id, UNKNOWN, UNKNOWN, note=note, stuck=verdict.words)
    if sight.place == liveness.HOST:
        host = string(run.record.get("host"))
        where = f"its trainer is on {_trainer_host(run)}"
        if host is not None and host != processes.host_name():
            where = f"it runs on '{host[:100]}'"
        return Report(run.run_id, UNKNOWN, REMOTE, note=f"not looked at: {where}")
    if sight.place == liveness.NAMESPACE and processes.DEAD not in (view.trainer, view.launcher):
        return Report(run.run_id, UNKNOWN, REMOTE, note="not looked at: it was started in another container")
    if sight.place == liveness.NAMESPACE and view.launcher != processes.DEAD:
        return Report(run.run_id, UNKNOWN, REMOTE, note="not looked at: its launcher, in another container, may live")
    return None


def _trainer_host(run: Run) -> str:
    trainer = (status.read_state(run).get("launched") or {}).get("trainer") or {}
    return f"'{str(trainer.get('host'))[:100]}'"


def _verdict(found: Sequence[Finding], behind: str) -> str:
    verdicts = {one.verdict for one in found}
    return SICK if SICK in verdicts else UNKNOWN if behind else WARNING if WARNING in verdicts else HEALTHY


def _progress(one: Report) -> str:
    if one.step is None:
        return "no step"
    return f"step {one.step}/{one.max_steps}" if one.max_steps else f"step {one.step}"
