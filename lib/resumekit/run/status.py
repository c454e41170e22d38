"""The status of a run: a view on its journal, the clock and the processes, never a source of its own.

`observe` is pure; `current` reads what it needs; `write` puts status.json down whole. Who writes holds the
status lock: the sidecar, or for a moment who goes on from the run (`renew`).
Try it: `bin/runs.sh --json EXP-01`
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from ..base import claims, journal, processes, terminal, terms
from ..base.errors import KitError, Refused
from ..base.files import to_json, utc_now, write_atomic
from ..base.imports import TYPE_CHECKING, Any, NamedTuple
from ..base.values import count, integer, items, mapping, number, text
from . import run_end
from .journal_fold import State, fold, measured_speed
from .liveness import HOST, MOVES
from .run_folder import Run
from .state_types import is_sound
from .throughput import is_saving

if TYPE_CHECKING:
    from .life_signs import LifeSigns
    from .liveness import Suspended

# How a `recovery` event ends: a child goes on, or a person has to.
RESUMED, NEEDS_ATTENTION = "resumed", "needs_attention"
ENDED_EARLY = "ended_early"
ENDED = frozenset({"finished", ENDED_EARLY, "stopped", "preempted", "failed", "aborted", "lost", "needs_attention"})
# Over by an incident: something may go on from it.
TAKEN_UP = frozenset({"failed", "lost", "aborted"})
LIVE = frozenset({"starting", "running", "unsupervised"})
# A process that holds the status lock for longer is at work on it, and will write what is new itself.
RENEW_WAIT_S = 2.0
# What a scheduler sends before it ends a job; who asks for a stop with one of these wants the run to go on later.
_WARNINGS = frozenset({"USR1", "USR2"})
# Thirty years: a longer wait says nothing, and the calendar may not reach there.
MAX_ETA_S = 1e9


# Of a journal of which this much had to be folded the state is kept for the life of the process, of so many runs.
KEPT_BYTES = 1 << 20
MAX_KEPT = 64
# A pass of the watcher folds no more than this: two seconds on a slow machine.
LONG_UNREAD_BYTES = 32 << 20
# How far the reading of a journal is, is told after so many seconds; the clock is looked at after so many events.
PROGRESS_S = 3.0
PROGRESS_EVENTS = 20_000


class _Folded(NamedTuple):
    """A fold of this process: the state, the byte offset behind it in the journal, and the journal's tail there."""

    state: State
    offset: int
    tail: str | None


_folded: dict[str, _Folded] = {}


class View(NamedTuple):
    """What is known of a run beside its journal, at one moment.

    Args:
        trainer, launcher: 'alive', 'dead' or 'unknown', as liveness judges.
        end: exit.json, or None.
        now: seconds since the epoch.
        suspended: processes of the run that do nothing until CONT.
        sight: what liveness saw; None where nothing was looked at.
    """

    trainer: str
    launcher: str
    end: dict[str, Any] | None
    now: float
    suspended: tuple[Suspended, ...] = ()
    sight: LifeSigns | None = None

    @property
    def seen(self) -> LifeSigns:
        """What liveness saw. Raises KitError where nothing was looked at."""
        if self.sight is None:
            raise KitError("it was not looked whether the run's trainer lives")
        return self.sight

    @property
    def is_unknown(self) -> bool:
        """Whether it cannot be told from here whether the trainer lives: nothing may be started or ended."""
        return self.sight is not None and self.sight.verdict.what == processes.UNKNOWN

    @property
    def trains_on(self) -> bool:
        """Whether an end is written down, and what the first process has left goes on."""
        return self.sight is not None and self.sight.verdict.code == MOVES

    @property
    def last_heard_at(self) -> str | None:
        """When a trainer that is not seen from here was last heard of (UTC, ISO 8601); None of any other."""
        sight = self.sight
        is_remote = sight is not None and sight.place == HOST and sight.verdict.what == processes.ALIVE
        sign = sight.sign if sight and (self.is_unknown or is_remote) else None
        return utc_now(sign.at_s) if sign else None


def _last_step(state: State) -> int | None:
    """Return the last step that was told of: of a trainer whose steps are not read, the one that was saved last."""
    told, saved = state.get("step"), state.get("last_checkpoint_step")
    return saved if told is None or (saved is not None and saved > told) else told


def observe(run: Run, state: State, view: View) -> dict[str, Any]:
    """Return the status of a run, by schemas/status.schema.json; protocol §3's fields come first.

    Args:
        run: the run, for what was fixed at its start; its files may be another user's, so no type in them is trusted.
        state: its folded journal.
        view: processes, end and clock.
    """
    launched = state.get("launched") or {}
    trainer = launched.get("trainer") or {}
    max_steps, parent_step = count(run.setting("training", "max_steps")), count(run.parent_step)
    planned_steps = max_steps if max_steps is not None else state.get("max_steps")
    step, speed = _last_step(state), measured_speed(state) or state.get("steps_per_sec")
    record = run.record
    handed = number(mapping(record.get("handed_rate")).get("factor"))
    is_now = name_of(run, state, view)
    ended_at = text((state.get("exited") or {}).get("at"))
    return {
        "run_id": run.run_id,
        "global_step": step if step is not None else parent_step,
        "steps_per_sec": speed,
        "lr": state.get("lr"),
        "last_fast_eval_step": state.get("last_fast_eval_step"),
        "last_full_eval_step": state.get("last_full_eval_step"),
        "best_eval_acc": state.get("best_eval_acc"),
        **_etas(run, step, speed if is_now in LIVE else None, planned_steps, view.now),
        "state": is_now,
        "phase": "checkpoint" if is_saving(state) else state.get("phase"),
        "experiment": text(run.experiment),
        "parent_run_id": text(record.get("parent_run_id")),
        "parent_step": parent_step,
        "config_hash": text(record.get("config_hash")),
        "epoch": state.get("epoch"),
        "max_steps": planned_steps,
        "loss": state.get("loss"),
        "lr_scale": state.get("lr_scale", handed if handed is not None else 1.0),
        "optimizer": state.get("optimizer") or text(run.setting("optimizer", "name")),
        "swap_from_step": state.get("swap_from_step"),
        "scheduler_phase": state.get("scheduler_phase"),
        "last_checkpoint_step": state.get("last_checkpoint_step"),
        "best_step": state.get("best_step"),
        "best_metric": text(run.setting("validation", "best_metric")) or state.get("best_metric"),
        "host": trainer.get("host"),
        "boot_id": trainer.get("boot_id"),
        "pid": trainer.get("pid"),
        "pid_started_at": launched.get("at"),
        "pid_start_ticks": trainer.get("start_ticks"),
        "started_at": launched.get("at"),
        "heartbeat_at": ended_at if is_now in ENDED and ended_at else view.last_heard_at or utc_now(view.now),
        "last_progress_at": state.get("last_progress_at"),
        "exit_code": view.end.get("code") if view.end and not view.trains_on else None,
        "last_warning": state.get("last_warning"),
        "checks": terms.checks_summary(state.get("checks", {})),
        "recovery": state.get("recovery"),
        "stopped_by": stop_of(state, view.end) if is_now in ("stopped", "preempted") else None,
        "job_cause": job_cause(state) if is_now in ("stopped", "preempted") else None,
        "suspended": [one._asdict() for one in view.suspended],
        "liveness": view.trainer,
        "last_heard_at": view.last_heard_at,
        "taken_over": _taken_over(state),
        "log_format": state.get("log_format") or _own_format(run),
    }


def _taken_over(state: State) -> dict[str, Any] | None:
    word = state.get("taken_over")
    return {key: word[key] for key in ("by", "host", "child_run_id", "at")} if word else None


def name_of(run: Run, state: State, view: View) -> str:
    """Name the state of a run, whatever is in its config."""
    return state_of(
        state, view, count(run.setting("training", "max_steps")), shows_steps=shows_steps(run),
        is_in_a_job=has_scheduler(run), incident_codes=_codes(run.setting("recover", "always_codes")),
    )  # fmt: skip


def state_of(
    state: State, view: View, max_steps: int | None, *, shows_steps: bool = True, is_in_a_job: bool = False,
    incident_codes: frozenset[int] = frozenset(),
) -> str:  # fmt: skip
    """Name the state of a run; a trainer is never called dead on doubt.

    Args:
        state: its folded journal.
        view: processes, end and clock.
        max_steps: where the run is whole; None if that is not known.
        shows_steps: whether steps can be expected to be seen. Without, a trainer that is there counts as running.
        is_in_a_job: whether a scheduler started it: a stop that is not a person's is the scheduler's then.
        incident_codes: exit codes that are an incident even where they are those of a stop.
    """
    if needs_attention(state):
        return "needs_attention"
    if view.end is not None and not view.trains_on:
        by = None if view.end.get("code") in incident_codes else run_end.stopped_by(view.end)
        return _end_state(state, view.end, max_steps, shows_steps, by and ("preempted" if is_in_a_job else "stopped"))
    if not state.get("launched"):
        is_coming = processes.ALIVE in (view.launcher, view.trainer)
        return "starting" if is_coming else "never_started"
    if view.trainer == processes.DEAD:  # and it was not seen how
        return _asked_state(state) or ("aborted" if state.get("aborted") else "lost")
    if view.launcher == processes.DEAD:
        return "unsupervised"
    has_begun = "step" in state or state.get("phase") not in ("startup", "compile")
    return "running" if has_begun or not shows_steps else "starting"


def needs_attention(state: State) -> bool:
    """Whether an incident of this run was given up: nothing goes on from it by itself."""
    return (state.get("recovery") or {}).get("outcome") == NEEDS_ATTENTION


def stop_of(state: State, end: dict[str, Any] | None) -> str | None:
    """Return the signal that a run was stopped with: what asked for it, else what its trainer ended on."""
    return (state.get("stopped") or {}).get("by") or run_end.stopped_by(end)


def job_cause(state: State) -> str | None:
    """Return why a scheduler ended the run's job, one of terms.JOB_CAUSES; None where none did."""
    cause: str | None = (state.get("job_ends") or {}).get("cause")
    return cause


def has_scheduler(run: Run) -> bool:
    """Whether a scheduler's job started the run, by run.json; one from before that field may name Slurm's job."""
    values = mapping(mapping(run.record.get("environment")).get("values"))
    return isinstance(run.record.get("scheduler"), dict) or "SLURM_JOB_ID" in values


def _codes(value: Any) -> frozenset[int]:
    return frozenset(code for code in items(value) if integer(code) is not None)


def _asked_state(state: State) -> str | None:
    """Name the end of a run that was asked for; None where none was."""
    stopped = state.get("stopped")
    if not stopped:
        return None
    if (cause := job_cause(state)) is not None:
        return "stopped" if cause in terms.STOPPED_JOB else "preempted"
    return "preempted" if stopped.get("by") in _WARNINGS else "stopped"


def _end_state(state: State, end: dict[str, Any], max_steps: int | None, shows_steps: bool, stopped: str | None) -> str:
    code, step = end.get("code"), state.get("step")
    if code == 0 and run_end.last_step_is_reached(state, max_steps):
        return "finished"
    if asked := _asked_state(state):
        return asked
    if state.get("aborted"):
        return "aborted"
    if stopped and job_cause(state) in terms.STOPPED_JOB:
        stopped = "stopped"
    if code == 0 and stopped:
        return stopped
    if run_end.error(end):
        return "failed"
    if code == 0:
        # Where steps can be seen and there is an end, code 0 alone proves nothing; where they cannot, it has to do.
        is_unseen = step is None and (not shows_steps or state.get("last_checkpoint_step") is not None)
        return "finished" if max_steps is None or is_unseen else ENDED_EARLY
    return stopped or "failed"


def shows_steps(run: Run) -> bool:
    """Whether this trainer journals, or has by its config what its steps are read out of."""
    patterns = run.setting("trainer", "log_patterns")
    if run.setting("trainer", "loads_with_kit") is True or "step" in mapping(patterns):
        return True
    return text(run.setting("trainer", "metrics_file")) is not None or _own_format(run) not in (None, "lightning")


def _own_format(run: Run) -> str | None:
    """Return the format that the config names for the log; None where it is looked for, or patterns read the log."""
    name = run.log_format
    if name in ("auto", "none"):
        return None
    from .log_formats import FORMATS  # late: few configs name one

    return name if name in FORMATS else None


def _etas(run: Run, step: int | None, speed: float | None, max_steps: int | None, now: float) -> dict[str, Any]:
    """Return the seconds to the next evals and the end, at the speed measured since the resume point."""

    def seconds_to(target: int | None) -> float | None:
        if step is None or target is None or not speed or speed <= 0:
            return None
        seconds = max(0, target - step) / speed
        return seconds if seconds < MAX_ETA_S else None

    def next_multiple(every: int | None) -> int | None:
        return (step // every + 1) * every if step is not None and every else None

    end_s = seconds_to(max_steps)
    return {
        "eta_s": end_s,
        "eta_at": utc_now(now + end_s) if end_s is not None else None,
        "eta_fast_eval_s": seconds_to(next_multiple(count(run.setting("validation", "fast_eval_every")))),
        "eta_full_eval_s": seconds_to(next_multiple(count(run.setting("validation", "full_eval_every")))),
    }


def look(run: Run, state: State, *, is_thorough: bool = False, is_follower: bool = False) -> View:
    """Look at the run's processes and its exit.json, now; the arguments are life_signs.examine's."""
    from . import life_signs, liveness  # late: a first start looks at no run
    from .liveness import HERE

    sight = life_signs.examine(run, state, is_thorough=is_thorough, is_follower=is_follower)
    is_over = sight.end is not None and sight.launcher == processes.DEAD  # most runs of a listing: nothing acts on it
    stopped = () if is_over or sight.place != HERE else liveness.suspended_of(run, state, is_follower=is_follower)
    return View(
        trainer=sight.verdict.what, launcher=sight.launcher, end=sight.end, now=time.time(), suspended=stopped,
        sight=sight,
    )  # fmt: skip


def read_state(run: Run) -> State:
    """Fold the run's journal, from where the sidecar's saved fold or an earlier one of this process ended.

    Raises:
        OSError: as `journal.read`.
    """
    state, offset = saved_state(run)
    key, path = os.fspath(run.paths.run_dir), run.paths.journal
    kept = _folded.get(key)
    if kept is not None and kept.offset > offset and journal.tail(path, kept.offset) == kept.tail:
        state, offset = kept.state, kept.offset
    end = offset

    def events() -> Iterator[dict[str, Any]]:
        nonlocal end
        for event, behind in _telling_progress(run, told(run, offset)):
            end = behind
            yield event

    state = fold(state, events())
    if end - offset >= KEPT_BYTES:
        if len(_folded) >= MAX_KEPT:
            _folded.clear()
        _folded[key] = _Folded(state, end, journal.tail(path, end))
    return state


def _telling_progress(run: Run, found: Iterator[tuple[dict[str, Any], int]]) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield what is found in a journal, and say at times how far that is."""
    if terminal.progress is None:
        yield from found
        return
    told_s, name = time.monotonic(), run.run_id
    for position, (event, end) in enumerate(found, 1):
        yield event, end
        if position % PROGRESS_EVENTS == 0 and time.monotonic() - told_s >= PROGRESS_S:
            told_s = time.monotonic()
            with contextlib.suppress(OSError):
                size = max(end, os.stat(run.paths.journal).st_size)
                terminal.progress(f"reading the journal of '{name}': {end / size:.0%} of {size / 1e6:,.0f} MB")


def is_long_unread(run: Run) -> bool:
    """Whether so much of a run's journal is in no account of a sidecar that no pass of the watcher can wait for it."""
    try:
        return os.stat(run.paths.journal).st_size - saved_state(run)[1] > LONG_UNREAD_BYTES
    except OSError:
        return False


def told(run: Run, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield (event, byte offset behind it) of a run's journal; what says that it is of the future is of now.

    Else one wrong clock in a trainer would switch off for ever whatever goes by the age of the newest event.
    """
    now_s = clock(run)
    for event, end in journal.read(run.paths.journal, offset):
        mono_s: Any = event.get("mono_s")
        if now_s is not None and type(mono_s) in (int, float) and mono_s > now_s:  # infinite ones too
            now_s = time.monotonic()
            event = {**event, "mono_s": min(mono_s, now_s)}
        yield event, end


def clock(run: Run, state: State | None = None) -> float | None:
    """Return the monotonic clock that a run's events are on; None where they are of another boot or host."""
    trainer = ((state or {}).get("launched") or {}).get("trainer")
    known = processes.identity_from(trainer or run.record.get("launcher"))
    if known is None or known.boot_id != processes.boot_id():
        return None
    is_ours = known.host == processes.host_name() or processes.is_of_this_kernel(known.boot_id)
    return time.monotonic() if is_ours else None


def saved_state(run: Run) -> tuple[State, int]:
    """Return (state, byte offset in the journal) as the sidecar last saved them; the run's beginning without."""
    parent_step = count(run.parent_step)
    beginning: State = {} if parent_step is None else {"resumed_step": parent_step}
    saved = run.sidecar_account
    try:
        size = os.stat(run.paths.journal).st_size
    except OSError:
        return beginning, 0
    state: Any = saved.get("state")
    offset = count(saved.get("journal_offset"))
    if not is_sound(state) or offset is None or offset > size:
        return beginning, 0
    if saved.get("journal_tail") != journal.tail(run.paths.journal, offset):
        # After a power cut the account may know of lines that the journal has lost, and others stand there since.
        return beginning, 0
    return state, offset


def current(run: Run) -> dict[str, Any]:
    """Return the status of a run as it is now, without writing anything."""
    state = read_state(run)
    return observe(run, state, look(run, state))


def renew(run: Run) -> None:
    """Write the status of a run that another process may be writing too; nothing where that cannot be done now."""
    with contextlib.suppress(OSError, Refused), claims.locked(run.paths.status_lock, RENEW_WAIT_S):
        write(run, current(run))


def write(run: Run, status: dict[str, Any]) -> None:
    """Replace status.json; a reader sees the old one or the new one, never half of either."""
    write_atomic(run.paths.status, to_json(status))
