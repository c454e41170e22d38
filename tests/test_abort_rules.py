"""When a run is sick: resumekit.watch.rules, on journals made by hand, made up, and recorded."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reliability import traces
from reliability.campaign_traces import judge_healthy, judge_sick
from resumekit.base.paths import RunPaths
from resumekit.run import journal_fold, log_patterns, throughput
from resumekit.run.journal_fold import fold
from resumekit.run.run_folder import Run
from resumekit.run.state_types import is_sound
from resumekit.watch import observe, rules
from resumekit.watch.rules import SICK, WARNING, Finding, Limits, Observation, limits_of
from support.garbage_events import GARBAGE
from support.journal_events import event, steady, step
from support.schemas import assert_valid

RECORDED = Path(__file__).resolve().parent / "recorded"
MINUTE = 60.0


def after(events: list[dict[str, Any]], now_s: float, limits: Limits | None = None, **sight: Any) -> list[Finding]:
    state = fold({}, [event("launched", 0.0), *events])
    assert is_sound(json.loads(json.dumps(state, allow_nan=False)))
    return rules.findings(state, limits or Limits(), Observation(now_s, **{"run_state": "running", **sight}))


def causes(found: list[Finding], verdict: str = SICK) -> list[str]:
    return [one.cause for one in found if one.verdict == verdict]


HOUR = list(steady(1, 3600, 0.0))


@pytest.mark.parametrize("seed", range(900, 920))
def test_a_healthy_run_is_never_called_sick(seed: int) -> None:
    """Twenty of the thousand of `make campaign`, on seeds of their own."""
    assert judge_healthy(6000, seed) == ""


@pytest.mark.parametrize("cause", sorted(traces.FAULTS))
def test_a_sick_run_is_found_in_time_and_by_its_name(cause: str) -> None:
    assert judge_sick(6000, (900, cause))[1] == ""


@pytest.mark.parametrize(
    ("seed", "cause"),
    [(1002000500, "hang"), (1002001015, "throughput"), (1002001274, "diverged"), (1002001711, "hang")],
    ids=["the parent stepped", "untold evaluations", "habit redrawn", "asleep at the fault"],
)
def test_the_campaign_makes_and_judges_what_the_rules_promise(seed: int, cause: str) -> None:
    """Traces that once showed or hid more than a watcher sees; none may be found before its fault."""
    judged = judge_sick(traces.STEPS, (seed, cause))
    assert judged.said == "" and judged.share >= 0


def test_nothing_is_wrong_with_a_steady_run() -> None:
    assert after(HOUR, 3600.0) == []


# loss and weights


@pytest.mark.parametrize("loss", ["nan", "inf", "-inf", 1e38, -1e31])
@pytest.mark.fault("D2", by="health.py: is_bad")
def test_a_loss_that_is_not_finite_twice_is_sick_at_once_and_its_first_step_is_named(loss: Any) -> None:
    (found,) = after([*HOUR, step(3601, 3601.0, loss), step(3602, 3602.0, loss)], 3603.0)
    assert (found.cause, found.verdict, found.first_bad_step, found.since_s) == ("nonfinite", SICK, 3601, 3601.0)
    assert "step 3601" in found.evidence


def test_a_loss_that_came_back_is_worth_a_warning() -> None:
    found = after([*HOUR, step(3601, 3601.0, "nan"), *steady(3602, 3610, 3601.0)], 3611.0)
    assert (causes(found), causes(found, WARNING)) == ([], ["nonfinite"])


@pytest.mark.parametrize("loss", ["many", None, True, [], "12", {}])
@pytest.mark.fault("D10", by="health.py: anything that is no loss changes nothing")
def test_what_is_no_loss_is_no_fault(loss: Any) -> None:
    assert after([*HOUR, step(3601, 3601.0, loss)], 3602.0) == []


def test_the_trainer_may_say_itself_that_something_is_not_finite() -> None:
    (found,) = after([*HOUR, event("nonfinite", 3601.0, step=3601, what="gradient")], 3602.0)
    assert (found.cause, found.first_bad_step) == ("nonfinite", 3601)
    assert "gradient" in found.evidence


def test_the_heartbeat_alone_tells_it_too() -> None:
    def beat(number: int, mono_s: float) -> dict[str, Any]:
        return event("heartbeat", mono_s, global_step=number, loss="nan")

    events = [*HOUR, beat(3600, 3660.0), beat(3600, 3720.0)]
    assert causes(after(events, 3721.0)) == []
    assert causes(after([*events, beat(3660, 3780.0)], 3781.0)) == ["nonfinite"]


@pytest.mark.parametrize("step_s", [0.1, 4.0, 30.0])
def test_one_loss_that_is_not_finite_is_sick_only_once_the_next_is_not_either(step_s: float) -> None:
    """A trainer skips such a batch itself; where every 50th step is logged, its next telling is long to come."""
    before = list(steady(1, 100, 0.0, step_s))
    one = [*before, step(150, 150 * step_s, "nan")]
    found = after(one, 199 * step_s)
    assert (causes(found), causes(found, WARNING)) == ([], ["nonfinite"])
    assert causes(after([*one, step(200, 200 * step_s, 0.6)], 201 * step_s)) == []
    (sick,) = after([*one, step(200, 200 * step_s, "nan")], 201 * step_s)
    assert (sick.cause, sick.first_bad_step, sick.since_s) == ("nonfinite", 150, 150 * step_s)


def test_one_nan_before_the_steps_begin_anew_is_healed_by_the_next_epoch() -> None:
    epochs = [*steady(1, 99, 0.0), step(100, 100.0, "nan"), *steady(1, 49, 100.0), step(50, 150.0, "nan")]
    assert causes(after(epochs, 151.0)) == []


@pytest.mark.parametrize("name", ["failed", "lost"])
def test_a_trainer_that_ends_after_one_nan_ended_for_it(name: str) -> None:
    events = [*HOUR, step(3601, 3601.0, "nan")]
    assert causes(after(events, 3602.0, run_state=name, end={"code": 1}))[0] == "nonfinite"


def test_a_trainer_that_is_silent_after_one_nan_is_stopped_for_it_when_it_hangs() -> None:
    events = [*HOUR, step(3601, 3601.0, "nan")]
    assert causes(after(events, 3601 + 29 * MINUTE)) == []
    found = after(events, 3601 + 31 * MINUTE)
    assert (causes(found), found[0].first_bad_step) == (["nonfinite", "hang"], 3601)


def test_a_heartbeat_that_repeats_the_loss_of_the_last_step_event_is_no_second_telling() -> None:
    """Every 50th step has a loss; the heartbeat beside it is further, and has the same loss."""
    events = [*HOUR, step(3650, 3650.0, "nan"), event("heartbeat", 3675.0, global_step=3675, loss="nan")]
    assert causes(after(events, 3676.0)) == []


def save(number: int, mono_s: float, **fields: Any) -> dict[str, Any]:
    return event("checkpoint", mono_s, step=number, path="p", sha256="0" * 64, size=10**6, **fields)


@pytest.mark.fault("D3", by="health.py: saw_save")
def test_weights_that_are_not_finite_in_a_save_are_bad_since_the_last_sound_one() -> None:
    events = [*HOUR, save(3000, 3600.1, finite=True), save(3600, 3600.2, finite=False), *steady(3601, 3605, 3601.0)]
    (found,) = after(events, 3610.0)
    assert (found.cause, found.first_bad_step) == ("nonfinite", 3001)
    assert after([*events, save(3605, 3607.0, finite=True)], 3610.0) == []


def test_a_save_that_is_not_known_to_be_finite_says_nothing() -> None:
    assert after([*HOUR, save(3600, 3600.1, writer="sidecar")], 3601.0) == []


@pytest.mark.fault("D6", by="rules.py: frozen, a warning")
@pytest.mark.fault("D7", by="rules.py: zero, a warning")
def test_a_frozen_and_a_zero_loss_are_warnings() -> None:
    frozen = [step(number, float(number), 2.5) for number in range(1, 500)]
    assert causes(after(frozen, 500.0), WARNING) == ["frozen"]
    zero = [step(number, float(number), 0.0) for number in range(1, 50)]
    assert causes(after(zero, 50.0), WARNING) == ["zero"]
    assert causes(after(frozen + zero, 500.0)) == []


@pytest.mark.fault("F10", by="health.py: saw_step")
@pytest.mark.parametrize(
    "steps, said",
    [
        ([1, 2, 3, 2], "back from 3 to 2"),
        ([*range(50)] * 3, "back from 49 to 0 (the last of 2 odd steps)"),
        ([1, 2, 3, 40_000], "at once from 3 to 40000"),
        ([0, 5_000_000, 5_000_001], "at once from 0 to 5000000"),
    ],
)
@pytest.mark.parametrize("teller", ["its events", "its heartbeat"])
def test_a_step_that_goes_back_or_too_far_at_once_is_a_warning(steps: list[int], said: str, teller: str) -> None:
    if teller == "its events":
        events = [step(number, float(at), 1 + at % 7) for at, number in enumerate(steps)]
    else:
        events = [event("heartbeat", float(at), global_step=number) for at, number in enumerate(steps)]
    (found,) = after(events, float(len(steps)))
    assert (found.cause, found.verdict) == ("odd_step", WARNING)
    assert said in found.evidence


def test_a_step_that_cannot_be_is_no_speed() -> None:
    events = [*HOUR, step(10**9, 3601.0), step(10**9 + 1, 3602.0), *steady(5, 900, 3603.0)]
    state = fold({}, [event("launched", 0.0), *events])
    assert journal_fold.measured_speed(state) == pytest.approx(1.0, rel=0.1)
    assert throughput.recent_speed(state["pace"]) == pytest.approx(1.0, rel=0.1)
    assert throughput.slow_for(state["pace"], 0.9) == 0.0


def test_ways_between_steps_that_are_no_jumps() -> None:
    often, seldom = [*range(100), 9_000], [*range(0, 400_000, 100_000), 3_000_000]
    resumed = [step(0, 1.0), event("resumed", 2.0, step=400_000), step(400_001, 3.0)]
    beats = [step(10, 1.0), event("heartbeat", 2.0, global_step=14), step(12, 3.0)]
    late = [step(12, 1.0), step(10, 2.0, source="log"), step(13, 3.0)]
    for steps in (often, seldom):
        assert after([step(number, float(at), 1 + at % 7) for at, number in enumerate(steps)], 1e3) == []
    for events in (resumed, beats, late):
        assert after(events, 4.0) == []


def test_a_heartbeat_that_counts_anew_in_each_epoch_is_no_hang() -> None:
    beats = [event("heartbeat", 60.0 * at, global_step=at % 50) for at in range(90)]
    assert causes(after(beats, 90 * MINUTE)) == []


@pytest.mark.fault("D5", by="rules.py: abort.divergence")
def test_divergence_is_judged_only_where_it_is_set() -> None:
    events = [*HOUR, *(step(n, float(n), n % 2 + 0.5 * min(40.0, 1.02 ** (n - 3600))) for n in range(3601, 4200))]
    assert after(events, 4200.0) == []
    assert causes(after(events, 4200.0, Limits(divergence=3.0))) == ["diverged"]


@pytest.mark.fault("D4", by="health.py: smoothed over 200 steps")
def test_a_spike_that_heals_is_no_divergence() -> None:
    spike = [step(n, float(n), 5e4 + n if n < 3630 else 0.5 + n % 2) for n in range(3601, 3900)]
    assert after([*HOUR, *spike], 3900.0, Limits(divergence=10.0)) == []


# speed


def slowed(minutes: float, share: float) -> list[dict[str, Any]]:
    seconds = minutes * MINUTE
    return list(steady(3601, 3600 + int(seconds * share), 3600.0, 1 / share))


@pytest.mark.fault("E1", by="throughput.py: slow_for")
def test_sixty_percent_slower_for_eleven_minutes_is_sick() -> None:
    events = [*HOUR, *slowed(11.0, 0.4)]
    (found,) = after(events, 3600 + 11 * MINUTE)
    assert found.cause == "throughput"
    assert "0.51 steps/s" in found.evidence or "0.5" in found.evidence


@pytest.mark.fault("E2", by="throughput.py: slow_for")
def test_sixty_percent_slower_for_nine_minutes_is_not() -> None:
    assert after([*HOUR, *slowed(9.0, 0.4)], 3600 + 9 * MINUTE) == []


def test_forty_percent_slower_for_an_hour_is_not() -> None:
    assert after([*HOUR, *slowed(60.0, 0.6)], 3600 + 60 * MINUTE) == []


def test_a_rare_teller_that_is_slow_from_its_start_is_measured_by_its_parent_in_time() -> None:
    """Ten steps of 75 s take 850 s now; the first event comes a moment after a heartbeat."""
    events = [event("heartbeat", 50.0, global_step=1939), *(step(1930 + 10 * n, 58.0 + 850.0 * (n - 1), 0.5 + n % 7)
              for n in range(1, 7))]  # fmt: skip
    usual = 10 / 75
    assert causes(after(events[:4], 58.0 + 2 * 850, lineage_speed=usual)) == []
    assert causes(after(events, 58.0 + 5 * 850, lineage_speed=usual)) == ["throughput"]


def test_who_stood_still_before_and_went_on_is_waited_for_twice_as_long() -> None:
    """A trainer that prints steps alone: its evaluation takes 20 minutes now and then."""
    before = list(steady(1, 100, 0.0))
    events = [*before, *steady(101, 200, 100.0 + 20 * MINUTE)]
    now_s = 200.0 + 20 * MINUTE
    assert causes(after(events, now_s + 35 * MINUTE)) == []
    assert causes(after(events, now_s + 41 * MINUTE)) == ["hang"]
    assert causes(after(before, 100.0 + 31 * MINUTE)) == ["hang"]
    far = [*before, *steady(101, 200, 100.0 + 600 * MINUTE)]
    assert causes(after(far, 200.0 + 661 * MINUTE)) == ["hang"]
    named = [event("phase", 0.5, phase="train"), *events]
    assert causes(after(named, now_s + 31 * MINUTE)) == ["hang"]


@pytest.mark.fault("E2", by="throughput.py: slow_for")
def test_one_fast_minute_begins_the_ten_minutes_anew() -> None:
    events = [*HOUR, *slowed(9.0, 0.4)]
    last = events[-1]
    events += steady(last["step"] + 1, last["step"] + 90, last["mono_s"])
    last = events[-1]
    events += steady(last["step"] + 1, last["step"] + 200, last["mono_s"], 2.5)
    assert after(events, events[-1]["mono_s"]) == []


@pytest.mark.fault("E3", by="journal_fold.py: phases that wait")
def test_evaluations_and_saves_are_no_slowness() -> None:
    events, now_s = [], 0.0
    for number in range(1, 4000):
        now_s += 1.0
        events.append(step(number, now_s))
        if number > 2000:  # from here on it spends more time on them than on steps
            events.append(event("phase", now_s, phase="fast_eval"))
            now_s += 3.0
            events.append(event("phase", now_s, phase="train"))
    assert causes(after(events, now_s)) == []
    state = fold({}, events)
    assert throughput.baseline(state["pace"]) == pytest.approx(1.0, rel=0.1)


@pytest.mark.fault("E3", by="throughput.py: one long interval")
def test_evaluations_without_an_event_are_no_slowness() -> None:
    events, now_s = [], 0.0
    for number in range(1, 8000):
        now_s += 1.0 if number < 4000 or number % 20 else 240.0
        events.append(step(number, now_s, 0.5 + number % 3, source="log"))
    assert after(events, now_s) == []


@pytest.mark.fault("E3", by="throughput.py: one long interval")
def test_saves_without_an_event_are_no_slowness_however_close_to_the_limit_they_are() -> None:
    """Every second telling holds a save, four usual intervals long, now a little more, now a little less."""
    events, now_s = [], 0.0
    for number in range(1, 3000):
        now_s += 5.0 + 0.1 * (number % 7) + (16.0 if number % 2 else 0.0)
        events.append(step(50 * number, now_s, number % 11 + 1.0, source="log"))
    state: dict[str, Any] = {}
    for one in events:
        state = fold(state, [one])
        assert causes(rules.findings(state, Limits(), Observation(one["mono_s"], "running"))) == []


def test_a_heartbeat_beside_the_steps_does_not_change_the_speed() -> None:
    """A step in 6 s, every tenth told, a beat each minute that drifts past them: two tellers of one speed."""
    told = [step(10 * n, 60.3 * n, n % 7 + 1.0) for n in range(1, 400)]
    beats = [event("heartbeat", 60.0 * n + 50.0, global_step=int((60.0 * n + 50.0) / 6.03)) for n in range(1, 400)]
    events = sorted([*told, *beats], key=lambda one: one["mono_s"])
    assert throughput.baseline(fold({}, events)["pace"]) == pytest.approx(1 / 6.03, rel=0.05)
    assert after(events, events[-1]["mono_s"]) == []


def test_a_young_run_is_measured_by_its_lineage() -> None:
    young = list(steady(1, 300, 0.0, 2.5))
    assert after(young, 750.0) == []
    assert causes(after(young, 750.0, lineage_speed=1.0)) == ["throughput"]


def test_a_slow_hour_does_not_become_the_norm() -> None:
    events = [*HOUR, *slowed(300.0, 0.3)]
    (found,) = after(events, 3600 + 300 * MINUTE)
    assert "300 min" in found.evidence


def test_a_trainer_that_is_asleep_with_its_machine_is_not_slow() -> None:
    wake = event("warning", 3600.0 + 8 * 3600, kind="clock_gap", message="asleep")
    events = [*HOUR, wake, *steady(3601, 3700, 8 * 3600 + 3601.0)]
    assert causes(after(events, 8 * 3600 + 3702.0)) == []


# standing still


@pytest.mark.parametrize("has_beats", [True, False])
@pytest.mark.fault("E5", by="rules.py: hang")
def test_no_step_for_half_an_hour_is_a_hang_whatever_the_heartbeat_says(has_beats: bool) -> None:
    beats = [event("heartbeat", 3600.0 + 60 * n, global_step=3600) for n in range(60)] if has_beats else []
    assert after([*HOUR, *beats], 3600 + 29 * MINUTE) == []
    (found,) = after([*HOUR, *beats], 3600 + 31 * MINUTE)
    assert (found.cause, found.since_s) == ("hang", 3600.0)


def test_the_same_step_told_again_and_again_is_no_progress() -> None:
    again = [step(3600, 3600.0 + 30 * n) for n in range(80)]
    assert causes(after([*HOUR, *again], 3600 + 31 * MINUTE))[0] == "hang"


def test_a_trainer_that_counts_anew_in_each_epoch_makes_progress() -> None:
    events = [step(1 + number % 600, float(number), number % 7 + 1.0, source="log") for number in range(9000)]
    assert causes(after(events, 9000.0)) == []


@pytest.mark.fault("A17", by="journal_fold.py: ages begin anew at a clock_gap")
def test_a_machine_that_slept_is_no_hang() -> None:
    wake = event("warning", 30_000.0, kind="clock_gap", message="asleep")
    assert after([*HOUR, wake], 30_001.0) == []
    assert causes(after([*HOUR, wake], 30_000.0 + 31 * MINUTE)) == ["hang"]


def test_a_trainer_that_tells_a_step_every_twenty_minutes_does_not_hang_after_thirty() -> None:
    events = list(steady(1, 40, 0.0, 20 * MINUTE))
    assert after(events, events[-1]["mono_s"] + 80 * MINUTE) == []
    assert causes(after(events, events[-1]["mono_s"] + 102 * MINUTE)) == ["hang"]


@pytest.mark.parametrize(
    ("phase", "minutes", "cause"),
    [("full_eval", 60, "eval"), ("fast_eval", 60, "eval"), ("checkpoint", 30, "hang"), ("compile", 30, "hang")],
)
@pytest.mark.fault("E11", by="rules.py: eval_minutes")
@pytest.mark.fault("B16", by="rules.py: save_minutes")
def test_what_is_waited_for_has_a_limit_of_its_own(phase: str, minutes: int, cause: str) -> None:
    events = [*HOUR, event("phase", 3600.5, phase=phase), step(3600, 3601.0)]  # the log tells the last step late
    assert after(events, 3600.5 + (minutes - 1) * MINUTE) == []
    assert causes(after(events, 3600.5 + (minutes + 1) * MINUTE)) == [cause]


def test_a_first_step_that_does_not_come_is_a_hang_only_for_a_trainer_that_tells_what_it_does() -> None:
    assert causes(after([event("phase", 1.0, phase="startup")], 31 * MINUTE, run_state="starting")) == ["hang"]
    found = after([], 31 * MINUTE, run_state="starting")
    assert (causes(found), causes(found, WARNING)) == ([], ["unseen"])


def test_a_resumed_run_has_twice_the_limit_until_its_first_step() -> None:
    """Where it names no phases: imports, data and compiling in one."""
    resumed = event("resumed", 1.0, step=40_000)
    assert causes(after([resumed], 55 * MINUTE, run_state="starting", parent_stepped=True)) == []
    assert causes(after([resumed], 61 * MINUTE, run_state="starting", parent_stepped=True)) == ["hang"]


def test_a_resumed_run_of_which_no_step_was_ever_read_is_only_warned_of() -> None:
    found = after([event("resumed", 1.0, step=40_000)], 9 * 60 * MINUTE, run_state="starting")
    assert (causes(found), causes(found, WARNING)) == ([], ["unseen"])


def test_a_beat_at_the_step_that_was_resumed_is_no_step() -> None:
    """It trains no step while it compiles, and names no phases: that cannot be told from a hang."""
    beat = event("heartbeat", 60.0, global_step=40_000)
    assert causes(after([beat], 40 * MINUTE), WARNING) == ["unseen"]
    second = event("heartbeat", 120.0, global_step=40_001)
    assert causes(after([beat, second], 40 * MINUTE)) == ["hang"]


def test_one_slow_telling_at_either_end_makes_no_long_slowness() -> None:
    """A beat a minute: a slow stretch of nine minutes lies in two buckets, which are longer than it."""
    events, now_s, number = [], 0.0, 0
    for minute in range(200):
        is_slow = 103 <= minute < 107
        now_s, number = now_s + (130.0 if is_slow else 60.0), number + (1 if is_slow else 9)
        events.append(event("heartbeat", now_s, global_step=number))
        if 100 < minute < 120:
            assert causes(after(events, now_s)) == []


@pytest.mark.fault("G7", by="observe.py: the clock of the run's own boot")
def test_without_a_clock_nothing_has_an_age() -> None:
    assert after([*HOUR, event("phase", 3601.0, phase="full_eval")], None) == []  # type: ignore[arg-type]


# memory, evaluations, ends


@pytest.mark.fault("E8", by="rules.py: oom_count")
def test_three_times_out_of_memory_in_half_an_hour_is_a_loop() -> None:
    ooms = [event("oom", 3600.0 + n * 10 * MINUTE, step=3600) for n in range(3)]
    now_s = 3600.0 + 21 * MINUTE
    assert causes(after([*HOUR, *ooms], now_s)) == ["oom"]
    assert causes(after([*HOUR, *ooms[:2]], now_s)) == []
    apart = [event("oom", n * 20 * MINUTE, step=3600) for n in range(4)]
    assert causes(after([*HOUR, *apart], 3600.0 + 5 * MINUTE)) == []


def test_the_logs_last_lines_tell_of_memory_too_but_not_before_the_first_step() -> None:
    silent_s = 60 * Limits().hang_minutes
    assert causes(after(HOUR, 3600.0 + silent_s + 60, log_ooms=3))[0] == "oom"
    assert after(HOUR, 3600.0 + silent_s - 60, log_ooms=3) == []  # it got over them, as an evaluation does
    assert after([], 60.0, run_state="starting", log_ooms=9) == []


def test_a_step_behind_them_clears_what_the_log_says_of_memory(tmp_path: Path) -> None:
    """Three batches were skipped long ago; then it stepped, and was silent for a minute."""
    run = Run(RunPaths(tmp_path), {"run_id": tmp_path.name})
    run.paths.logs.mkdir()
    run.paths.resolved_json.write_text('{"trainer": {"log_patterns": {"step": "^step ([0-9]+)"}}}')
    lines = "step 5: CUDA out of memory caught, batch skipped\n" * 3
    run.paths.output_log.write_text(lines)
    assert observe.log_ooms(run, 1e9, clears=True) == 3
    run.paths.output_log.write_text(lines + "\x1b[1mstep 8 loss 0.5\x1b[0m\n" + lines[:49])
    assert (observe.log_ooms(run, 1e9, clears=True), observe.log_ooms(run, 1e9)) == (1, 4)
    # A trainer that tells its steps itself, the last one 50 seconds after its log was written to.
    run.paths.resolved_json.write_text("{}")
    run = Run(run.paths, run.record)
    os.utime(run.paths.output_log, (time.time() - 150, time.time() - 150))
    for step_s, ooms in ((100.0, 4), (300.0, 0)):
        state = {"tells_steps": True, "step_mono_s": step_s}
        assert observe._log_ooms_now(run, state, Limits(), 400.0) == ooms


@pytest.mark.fault("E10", by="health.py: on_eval_crash")
def test_an_evaluation_that_crashed_is_sick_until_one_comes_to_its_end() -> None:
    crash = event("eval_crashed", 3601.0, step=3600, kind="fast", message="CUDA error")
    (found,) = after([*HOUR, crash], 3602.0)
    assert (found.cause, found.evidence) == ("eval", "the fast evaluation at step 3600 crashed: CUDA error")
    done = event("eval", 3650.0, step=3650, kind="fast", weights="raw", accuracy=0.1)
    assert after([*HOUR, crash, done], 3651.0) == []


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (None, "the trainer ended at step 3600 and how is not known"),
        ({"code": 137, "signal": 9}, "the trainer ended at step 3600 by signal 9"),
        ({"code": 1, "signal": None}, "the trainer ended at step 3600 with code 1"),
    ],
)
def test_a_dead_trainer_is_sick_and_its_end_is_named(end: dict[str, Any] | None, says: str) -> None:
    (found,) = after(HOUR, None, run_state="failed" if end else "lost", end=end)  # type: ignore[arg-type]
    assert (found.cause, found.evidence) == ("died", says)


def test_what_it_died_of_comes_first() -> None:
    bad = event("nonfinite", 3601.0, step=3601, what="loss")
    found = after([*HOUR, bad], 3602.0, run_state="failed", end={"code": 1, "signal": None})
    assert causes(found) == ["nonfinite", "died"]
    assert causes(after(HOUR, 3602.0, run_state="failed", log_ooms=1)) == ["oom"]


@pytest.mark.fault("A13", by="rules.py: crash_loop")
def test_three_starts_without_a_step_are_a_crash_loop() -> None:
    assert causes(after([], 9.0, run_state="lost", fruitless=3)) == ["crash_loop"]
    assert causes(after([], 9.0, run_state="lost", fruitless=2)) == ["died"]


@pytest.mark.parametrize("name", ["finished", "stopped", "preempted", "ended_early", "aborted", "never_started"])
@pytest.mark.fault("A12", by="rules.py: only what is live, failed or lost")
def test_what_has_ended_otherwise_is_left_alone(name: str) -> None:
    assert after([*HOUR, step(3601, 3601.0, "nan")], 9e6, run_state=name) == []


def test_a_disk_that_is_nearly_full_is_a_warning() -> None:
    found = after([*HOUR, save(3600, 3600.1)], 3601.0, free_bytes=10 << 20, free_inodes=3)
    assert causes(found, WARNING) == ["disk", "inodes"]
    large = [*HOUR, event("checkpoint", 3600.1, step=3600, path="p", sha256="0" * 64, size=8 << 30)]
    assert causes(after(large, 3601.0, free_bytes=9 << 30), WARNING) == ["disk"]
    assert after(large, 3601.0, free_bytes=17 << 30) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(GARBAGE, max_size=12), st.floats(0, 1e12), st.sampled_from(["starting", "running", "lost", "failed"]))
@pytest.mark.fault("D10", by="values.py: each value only if it has the right type")
@pytest.mark.fault("F7", by="values.py")
def test_no_journal_breaks_a_rule(events: list[dict[str, Any]], now_s: float, name: str) -> None:
    found = rules.findings(fold({}, events), Limits(divergence=2.0), Observation(now_s, name, lineage_speed=1.0))
    assert all(json.dumps(one._asdict(), allow_nan=False) for one in found)


AT_ONE = throughput.before_first_step(1)


@pytest.mark.parametrize(
    "part",
    [
        {"pace": {**AT_ONE, "whole_now": [1.0] * 21}}, {"pace": {**AT_ONE, "whole_s": -1.0}},
        {"pace": {}}, {"pace": {**AT_ONE, "levels": [[1, 0]]}}, {"pace": {**AT_ONE, "peaks": [[1.0]]}},
        {"pace": {**AT_ONE, "seconds": math.inf}}, {"pace": {**AT_ONE, "long_in_a_row": None}},
        {"pace": {**AT_ONE, "levels": [[0, 1]] * 2000}}, {"symptoms": []}, {"symptoms": {"bad": {"step": 1}}},
        {"symptoms": {"ooms": [1.0] * 1000}}, {"symptoms": {"smooth": math.nan}}, {"symptoms": {"unknown": 1}},
    ],
)  # fmt: skip
@pytest.mark.fault("F7", by="state_types.py: is_sound")
def test_a_saved_state_of_the_wrong_types_is_not_sound(part: dict[str, Any]) -> None:
    assert is_sound({"pace": AT_ONE, "symptoms": {}})
    assert not is_sound(part)


def test_what_is_remembered_does_not_grow_with_the_run() -> None:
    state = fold({}, traces.healthy(3, 3000).lives[0].events)
    small = len(json.dumps(state))
    for seed in range(4, 12):
        state = fold(state, traces.healthy(seed, 3000).lives[0].events)
        state = fold(state, [event("oom", float(number), step=1) for number in range(500)])
    assert len(json.dumps(state)) < small + 12_000


# thresholds


def test_the_defaults_are_those_of_the_schema() -> None:
    schema = json.loads((Path(__file__).parent.parent / "schemas" / "config.schema.json").read_text())
    sections = schema["properties"]
    for name, default in Limits._field_defaults.items():
        section = "recover" if name == "max_attempts" else "abort"
        assert sections[section]["properties"][name]["default"] == default, name


@pytest.mark.parametrize("value", ["10", -1, 0, True, None, [], math.nan, math.inf, 10**400])
@pytest.mark.fault("D10", by="rules.py: limits_of")
def test_a_threshold_of_the_wrong_type_counts_as_the_default(value: Any) -> None:
    assert limits_of(lambda _section, _key: value) == Limits()


def test_a_threshold_of_the_run_counts() -> None:
    assert limits_of(lambda _section, key: 2 if key == "hang_minutes" else None).hang_minutes == 2
    assert causes(after(HOUR, 3600 + 3 * MINUTE, Limits(hang_minutes=2))) == ["hang"]


# recorded


def test_the_examples_own_journal_is_healthy_at_every_event() -> None:
    lines = (RECORDED / "example_journal.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    state: dict[str, Any] = {}
    for one in events:
        assert_valid("event", one)
        state = fold(state, [one])
        if "launched" in state:
            sight = Observation(one["mono_s"], "running")
            assert rules.findings(state, Limits(divergence=3.0), sight) == []
    assert state["step"] >= 100


def test_a_log_in_nanogpts_form_is_read_and_its_nan_is_found() -> None:
    """Every tenth iteration a line with its loss, and evaluations between them that have a step of their own."""
    text = []
    for number in range(0, 4000, 10):
        if number % 1000 == 0:
            text.append(f"step {number}: train loss 3.2871, val loss 3.3012\nsaving checkpoint to out")
        loss = 10.9 * (number + 10) ** -0.15 if number < 3900 else math.nan
        text.append(f"iter {number}: loss {loss:.4f}, time 489.44ms, mfu 31.20%")
    patterns = log_patterns.compiled({"step": r"^iter ([0-9]+):", "loss": r"loss (nan|inf|[0-9.]+)"})
    lines = ("\n".join(text) + "\n").encode()
    events = []
    for number, found in enumerate(log_patterns.found_steps(lines, patterns)):
        loss = found["loss"]
        events.append(step(found["step"], 0.49 * number, loss if math.isfinite(loss) else str(loss), source="log"))
    assert [one["step"] for one in events] == list(range(0, 4000, 10))
    bad = next(number for number, one in enumerate(events) if one["loss"] == "nan")
    assert after(events[:bad], 0.49 * bad) == []
    (found,) = after(events, 0.49 * len(events))
    assert (found.cause, found.first_bad_step) == ("nonfinite", 3900)
