"""Whether a run is sick, and of what: pure rules on its folded journal, its settings and what can be seen of it
now.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ..base.imports import Any, NamedTuple
from ..base.terminal import duration
from ..base.terms import CAUSES, CRASH_LOOP, DIED, DIVERGED, EVAL, HANG, NONFINITE, OOM, THROUGHPUT, UNSEEN
from ..base.values import above_zero
from ..run import health, run_end, throughput
from ..run.journal_fold import State, is_waiting
from ..run.throughput import is_saving


class Limits(NamedTuple):
    """The thresholds, from the run's own config: `abort.*` and `recover.max_attempts`; minutes are minutes."""

    throughput_drop: float = 0.5
    throughput_minutes: float = 10.0
    hang_minutes: float = 30.0
    eval_minutes: float = 60.0
    save_minutes: float = 30.0
    divergence: float | None = None
    free_mb: int = 256
    free_inodes: int = 1000
    oom_count: int = 3
    oom_minutes: float = 30.0
    max_attempts: int = 3


def limits_of(setting: Callable[[str, str], Any]) -> Limits:
    """Return the limits of a run; a value that is no number above 0 counts as the default.

    Args:
        setting: `setting(section, key)`, from its resolved config, which may be another user's.
    """
    values: dict[str, Any] = dict(Limits._field_defaults)
    for name, default in Limits._field_defaults.items():
        value = setting("recover" if name == "max_attempts" else "abort", name)
        if above_zero(value) is not None:
            values[name] = max(1, int(value)) if type(default) is int else value
    values["throughput_drop"] = min(values["throughput_drop"], 1.0)
    return Limits(**values)


# The rules. A rule speaks only where something has lasted (`throughput`, `hang`, `oom`) or can be nothing else (a
# loss that is not finite, a trainer that is gone). What is not known is never sick. Reads and writes nothing.
# Source: protocol §12; docs/watch.md says the same for people. Try it: `python -m pytest tests/test_abort_rules.py`

SICK, WARNING = "sick", "warning"

FROZEN, ZERO, ODD_STEP, DISK, INODES = "frozen", "zero", "odd_step", "disk", "inodes"
SUSPENDED = "suspended"

# Who tells a step every hour does not hang after half of one: so many usual intervals are waited for at least.
HANG_INTERVALS = 5
# Of a trainer that names no phases: it has stood still before, in an evaluation, and went on. So many times that long,
# and so many times the limit at most.
STOOD = 2
# A start that names no phases, with imports, data and compiling in one, may take so many times the limit.
STARTS = 2
# So much of a log's last line is evidence.
MAX_WORDS = 200
# A log with four digits shows the same loss now and then.
FROZEN_TOLD = 300
ZERO_TOLD = 20
# Before, a smoothed loss is still falling from where it began.
DIVERGENCE_TOLD = 1000
EVALS = frozenset({"fast_eval", "full_eval"})


class Observation(NamedTuple):
    """What can be seen of a run now, beside its journal.

    Args:
        now_s: the monotonic clock of the run's boot; None where that is not this one's: no age is known then.
        run_state: as `status.state_of` names it.
        end: exit.json, or None.
        lineage_speed: the usual steps per second of comparable ancestors; None where there are none.
        lineage_whole: the highest `throughput.whole_speed` of the same ancestors, with every interval between two
            steps in full; None where that is not known.
        fruitless: how many starts in a row, this one included, ended without a new step.
        log_ooms: out-of-memory messages among the last lines of a log that is being written.
        last_words: of one that has ended, what it died of by its log, else its last line; without secrets.
        free_bytes, free_inodes: of the disk that the run writes to; None where that is not known.
        behind: that what follows the run has fallen behind it, in a sentence; '' where it has not. Then nothing is
            known that goes by an age.
        progress_s: when it last got on by something else than a step (a newer checkpoint, another line that
            tells a step, and where no steps can be read, another text), on the clock of `now_s`; None where it did not.
        parent_stepped: whether steps of a run that it came from were seen, by the same patterns.
    """

    now_s: float | None
    run_state: str
    end: dict[str, Any] | None = None
    lineage_speed: float | None = None
    lineage_whole: float | None = None
    fruitless: int = 0
    log_ooms: int = 0
    last_words: str = ""
    free_bytes: int | None = None
    free_inodes: int | None = None
    behind: str = ""
    progress_s: float | None = None
    parent_stepped: bool = False


class Finding(NamedTuple):
    """One thing that is wrong.

    Args:
        cause: its class, one of the names above.
        verdict: SICK (a run in this state is worth stopping or recovering) or WARNING (worth a look).
        evidence: one sentence with numbers.
        since_s: since when, on the run's monotonic clock; None where that is not known.
        first_bad_step: a recovery has to begin before this step; None where any step is as good.
    """

    cause: str
    verdict: str
    evidence: str
    since_s: float | None = None
    first_bad_step: int | None = None


def findings(state: State, limits: Limits, sight: Observation) -> list[Finding]:
    """Return everything that is wrong with a run, sick before warning, the most telling first.

    Args:
        state: its folded journal.
        limits: from its config.
        sight: what can be seen of it now.
    """
    if sight.behind:
        sight = sight._replace(now_s=None)
    if sight.run_state == "aborted":
        found = list(_aborted(state))
    elif sight.run_state in ("failed", "lost"):
        found = [*_not_finite(state, is_last=True), *_ended(state, limits, sight)]
    elif sight.run_state in ("starting", "running", "unsupervised"):
        rules = (_not_finite_any, _oom, _eval, _save, _hang, _throughput, _diverged, _odd_loss, _odd_step, _disk)
        found = [one for rule in rules for one in rule(state, limits, sight)]
    else:
        found = []
    return sorted(found, key=lambda one: one.verdict != SICK)


def _not_finite_any(state: State, limits: Limits, sight: Observation) -> Iterator[Finding]:
    """What is not finite; where a loss was so once, the next telling is waited for, as long as it is no hang."""
    known = state.get("symptoms", {})
    is_silent = _hangs(state, limits, sight)
    sure = list(_not_finite(state, is_last=is_silent))
    yield from sure
    healed = known.get("healed", 0)
    if "bad" in known and not sure:
        what, since_s, _ = health.not_finite(known, is_last=True)[0]
        yield Finding(NONFINITE, WARNING, f"{what}; the next telling decides", since_s)
    elif healed and "bad" not in known:
        yield Finding(NONFINITE, WARNING, f"the loss was not finite {healed} times and came back")


def _not_finite(state: State, *, is_last: bool) -> Iterator[Finding]:
    for what, since_s, first_bad_step in health.not_finite(state.get("symptoms", {}), is_last=is_last):
        yield Finding(NONFINITE, SICK, what, since_s, first_bad_step)


def _aborted(state: State) -> Iterator[Finding]:
    """What it was stopped for: it is over, and something may go on from it."""
    if known := state.get("aborted"):
        cause = known["cause"] if known["cause"] in CAUSES else DIED
        yield Finding(cause, SICK, known["evidence"] or "", known["mono_s"], known["first_bad_step"])


def _ended(state: State, limits: Limits, sight: Observation) -> Iterator[Finding]:
    saved = state.get("last_checkpoint_step")  # of one whose steps are not read that is all that is known
    step = f"at step {state['step']}" if "step" in state else "before its first step"
    step = f"behind its checkpoint of step {saved}" if "step" not in state and saved is not None else step
    code = (sight.end or {}).get("code")
    signal = (sight.end or {}).get("signal")
    how = f"by signal {signal}" if signal else f"with code {code}" if code is not None else "and how is not known"
    last_words = run_end.error(sight.end) or sight.last_words
    if rank := run_end.rank_words(sight.end):
        how += f": {rank[:MAX_WORDS]}"
    elif run_end.has_failed(sight.end) and not signal and last_words:
        how += f", its last line: '{last_words[:MAX_WORDS]}'"
    memory = f"; {sight.log_ooms} lines of its log's last speak of memory" if sight.log_ooms else ""
    if run_end.is_oom_kill(sight.end):
        memory += "; the kernel killed a process of its cgroup for want of memory"
    if sight.fruitless >= limits.max_attempts:
        starts = f"{sight.fruitless} starts in a row without a new step or checkpoint"
        yield Finding(CRASH_LOOP, SICK, f"{starts}; the last one ended {step} {how}{memory}")
    elif sight.log_ooms or run_end.is_oom_kill(sight.end):
        yield Finding(OOM, SICK, f"the trainer ended {step} {how}{memory}")
    elif run_end.has_failed(sight.end) and not signal and _is_evaluating(state):
        yield Finding(EVAL, SICK, f"the trainer ended {step} {how}, in the middle of an evaluation")
    else:
        yield Finding(DIED, SICK, f"the trainer ended {step} {how}")


def _is_evaluating(state: State) -> bool:
    """Whether a run was at an evaluation when it was last heard of: it says so by its phase, or by what went wrong."""
    crash = state.get("symptoms", {}).get("eval_crash")
    is_in_phase = state.get("phase") in EVALS and is_waiting(state)
    return is_in_phase or (crash is not None and crash["step"] in (None, state.get("step")))


def _oom(state: State, limits: Limits, sight: Observation) -> Iterator[Finding]:
    window_s = limits.oom_minutes * 60
    ooms = state.get("symptoms", {}).get("ooms", [])
    recent = [at for at in ooms if sight.now_s is not None and at >= sight.now_s - window_s]
    wanted = min(limits.oom_count, 64)
    if len(recent) >= wanted:
        yield Finding(OOM, SICK, f"out of memory {len(recent)} times in {limits.oom_minutes:g} min", recent[0])
    # Lines that it got over may be hours old, and an evaluation that skips what does not fit may be silent for long.
    elif sight.log_ooms >= wanted and "step" in state and _hangs(state, limits, sight):
        yield Finding(OOM, SICK, f"{sight.log_ooms} of the log's last lines say that memory ran out")


def _hangs(state: State, limits: Limits, sight: Observation) -> bool:
    return any(one.verdict == SICK for one in _hang(state, limits, sight))


def _eval(state: State, limits: Limits, sight: Observation) -> Iterator[Finding]:
    if crash := state.get("symptoms", {}).get("eval_crash"):
        said = f": {crash['message']}" if crash["message"] else ""
        step = f" at step {crash['step']}" if crash["step"] is not None else ""
        yield Finding(EVAL, SICK, f"the {crash['kind'] or ''} evaluation{step} crashed{said}".replace("  ", " "),
                      crash["mono_s"])  # fmt: skip
    yield from _waits_too_long(state, sight, EVALS, limits.eval_minutes, EVAL, "an evaluation")


def _save(state: State, limits: Limits, sight: Observation) -> Iterator[Finding]:
    yield from _waits_too_long(state, sight, {"checkpoint"}, limits.save_minutes, HANG, "a save")


def _waits_too_long(
    state: State, sight: Observation, phases: frozenset[str] | set[str], minutes: float, cause: str, what: str
) -> Iterator[Finding]:
    if state.get("phase") in phases and is_waiting(state) and sight.now_s is not None:
        age_s = sight.now_s - state["waiting_since_s"]
        if age_s > minutes * 60:
            evidence = f"{what} has been going on for {duration(age_s)} (limit {duration(minutes * 60)})"
            yield Finding(cause, SICK, evidence, state["waiting_since_s"])


def _hang(state: State, limits: Limits, sight: Observation) -> Iterator[Finding]:
    """No progress, whatever the heartbeat says: a thread goes on beating while the training stands."""
    active_s = state.get("active_mono_s")
    if sight.now_s is None or active_s is None:
        return
    active_s = max(active_s, sight.progress_s or 0.0)
    if is_waiting(state) and state.get("phase") in EVALS | {"checkpoint"}:
        return  # these have limits of their own
    usual_s = state["pace"]["typical_s"] if "pace" in state else 0.0
    hang_s = limits.hang_minutes * 60
    limit_s = max(hang_s, HANG_INTERVALS * usual_s, min(STOOD * state.get("longest_stand_s", 0.0), STOOD * hang_s))
    if is_saving(state):  # save_checkpoint says so by itself: a save may take as long as a step, or longer
        limit_s = max(limit_s, limits.save_minutes * 60)
    age_s = sight.now_s - active_s
    if age_s <= limit_s:
        return
    if state.get("has_stepped"):
        doing = "; a save is under way" if is_saving(state) else ""
        evidence = f"no step since step {state['step']}, for {duration(age_s)} (limit {duration(limit_s)}){doing}"
        yield Finding(HANG, SICK, evidence, active_s)
    elif state.get("tells_phases") or (sight.parent_stepped and _is_late(state, age_s, limit_s)):
        evidence = f"no first step in {duration(age_s)} (limit {duration(limit_s)}), phase {state.get('phase')}"
        yield Finding(HANG, SICK, evidence, active_s)
    else:
        evidence = f"no step was ever seen in {duration(age_s)}: do trainer.log_patterns or trainer.log_format fit?"
        yield Finding(UNSEEN, WARNING, evidence, active_s)


def _is_late(state: State, age_s: float, limit_s: float) -> bool:
    """Whether a resumed run should have stepped by now, if its steps can be seen at all."""
    return state.get("resumed_step") is not None and age_s > STARTS * limit_s


def _throughput(state: State, limits: Limits, sight: Observation) -> Iterator[Finding]:
    known = state.get("pace")
    if known is None or sight.behind:
        return
    usual = usual_speed(known, limits, sight)
    if usual is None:
        return
    threshold = usual * (1 - limits.throughput_drop)
    slow_s = throughput.slow_for(known, threshold)
    usual_s = state.get("symptoms", {}).get("longest_way", math.inf) / usual
    if slow_s > limits.throughput_minutes * 60 + throughput.tolerance_s(known, usual_s):
        evidence = (
            f"below {threshold:.3g} steps/s for {slow_s / 60:.0f} min of training, usual are {usual:.3g} "
            f"(limit {limits.throughput_drop:.0%} slower for {limits.throughput_minutes:g} min)"
        )
        yield Finding(THROUGHPUT, SICK, evidence)


def _is_only_counted_otherwise(known: throughput.Pace, limits: Limits, sight: Observation) -> bool:
    """Whether a run that is slower than its ancestors is so only because it counts untold saves as training.

    They may have left them out: which intervals are long each life learns anew. With all of them in full it is as fast.
    """
    whole = throughput.whole_speed_now(known)
    if whole is None or sight.lineage_whole is None:
        return False
    return whole >= sight.lineage_whole * (1 - limits.throughput_drop)


def _diverged(state: State, limits: Limits, _sight: Observation) -> Iterator[Finding]:
    known = state.get("symptoms", {})
    if limits.divergence is None or known.get("loss_told", 0) < DIVERGENCE_TOLD or "smooth" not in known:
        return
    times = math.exp(min(700.0, known["smooth"] - known["best"]))
    if times > limits.divergence:
        evidence = f"the loss, smoothed, is {times:.1f} times its recent best (limit {limits.divergence:g})"
        yield Finding(DIVERGED, SICK, evidence, None, known.get("best_step", 0) + 1)


def _odd_loss(state: State, _limits: Limits, _sight: Observation) -> Iterator[Finding]:
    same = state.get("symptoms", {}).get("same")
    if same and same["loss"] == 0 and same["told"] >= ZERO_TOLD:
        evidence = f"the loss has been exactly 0 since step {same['step']} ({same['told']} times): labels in the input?"
        yield Finding(ZERO, WARNING, evidence, None, same["step"])
    elif same and same["told"] >= FROZEN_TOLD:
        evidence = f"the loss has been {same['loss']:.6g} since step {same['step']} ({same['told']} times)"
        yield Finding(FROZEN, WARNING, evidence, None, same["step"])


def _odd_step(state: State, _limits: Limits, _sight: Observation) -> Iterator[Finding]:
    if odd := state.get("symptoms", {}).get("odd_step"):
        is_back = odd["step"] < odd["before"]
        times = f" (the last of {odd['times']} odd steps)" if odd["times"] > 1 else ""
        advice = "count steps over the whole run, not in each epoch" if is_back else "does the trainer count steps?"
        how = f"{'back' if is_back else 'at once'} from {odd['before']} to {odd['step']}{times}"
        yield Finding(ODD_STEP, WARNING, f"the step went {how}: {advice}")


def _disk(state: State, limits: Limits, sight: Observation) -> Iterator[Finding]:
    wanted = max(limits.free_mb << 20, 2 * state.get("symptoms", {}).get("save_bytes", 0))
    if sight.free_bytes is not None and sight.free_bytes < wanted:
        evidence = f"{sight.free_bytes / 2**20:.0f} MiB left on its disk, {wanted / 2**20:.0f} are wanted"
        yield Finding(DISK, WARNING, evidence)
    if sight.free_inodes is not None and sight.free_inodes < limits.free_inodes:
        yield Finding(INODES, WARNING, f"{sight.free_inodes} inodes left on its disk, {limits.free_inodes} are wanted")


def usual_speed(known: throughput.Pace, limits: Limits, sight: Observation) -> float | None:
    """Return the lineage's own baseline: its ancestors' where it has one, for what a sick run learns is no norm."""
    own, lineage = throughput.baseline(known), sight.lineage_speed
    if lineage is None or (own is not None and own >= lineage) or _is_only_counted_otherwise(known, limits, sight):
        return own
    return lineage
