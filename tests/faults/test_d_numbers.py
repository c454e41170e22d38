"""Section D of the catalogue, the numbers go wrong: each case a whole night under launcher, watcher and oracle."""

from __future__ import annotations

import math

import pytest

from support.nights import Night, one, proven_steps, record
from support.processes import wait_until
from support.runs import events

# Within so long a loss that is not finite ends in a TERM: HEALS_S, a beat of the sidecar, and a loaded machine.
ABORTED_WITHIN_S = 20.0


def rates(*runs: object) -> dict[int, float]:
    """Return step -> the rate that its weights were moved by, later runs over earlier ones."""
    return {event["step"]: event["lr"] for run in runs for event in events(run, "step")}  # type: ignore[arg-type]


def undisturbed_rate(step: int, steps: int) -> float:
    """Return night_trainer's own rate in optimizer step `step`, from 1: a cosine from 0.01 to 0."""
    return 0.01 * (1 + math.cos(math.pi * (step - 1) / steps)) / 2


@pytest.mark.fault("D1", by="nan_guard.py: after 2 s; restart_point.py: from before the first bad step; plan.py: x 0.8")
@pytest.mark.fault("D2", by="health.py: not finite, or beyond 1e30")
@pytest.mark.parametrize("loss", ["nan", *(pytest.param(x, marks=pytest.mark.long) for x in ("inf", "-inf", "1e38"))])
def test_a_loss_that_is_not_finite_goes_back_before_it_and_on_at_four_fifths_of_the_rate(
    warm_night: Night, loss: str
) -> None:
    warm_night.config("--delay", "0.02", "--at", "33", f"loss={loss}", training={"max_steps": 400})
    process = warm_night.popen("run", "T-1")
    first = warm_night.started()
    child = warm_night.next_of(first)
    told = one(first, "abort")
    bad = next(event for event in events(first, "step") if event["step"] == 33)
    assert (told["cause"], told["first_bad_step"]) == ("nonfinite", 33)
    assert told["mono_s"] - bad["mono_s"] < ABORTED_WITHIN_S
    # replay_steps is 10: at least ten steps before step 33.
    assert record(child)["parent_step"] == 20
    assert record(child)["recovery"]["lr_factor"] == 0.8
    assert one(child, "resumed")["lr_scale"] == 0.8
    wait_until(lambda: len(events(child, "step")) > 20, "it trains")
    for step, rate in rates(child).items():
        assert rate == pytest.approx(0.8 * undisturbed_rate(step, 400), rel=1e-6)
    process.terminate()
    process.communicate(timeout=60)
    assert all(math.isfinite(float(event["loss"])) for event in events(child, "step"))


@pytest.mark.long
@pytest.mark.fault("D3", by="saving.py: the finite check; health.py: sound since which save")
def test_weights_that_are_not_finite_under_a_finite_loss_are_found_at_the_save(warm_night: Night) -> None:
    warm_night.config("--delay", "0.02", "--at", "33", "average", training={"max_steps": 400})
    process = warm_night.popen("run", "T-1")
    first = warm_night.started()
    child = warm_night.next_of(first)
    told = one(first, "abort")
    # All was finite at step 30, so the first bad one may have been 31; ten steps before that is 20.
    assert (told["cause"], told["first_bad_step"], record(child)["parent_step"]) == ("nonfinite", 31, 20)
    assert "checkpoint of step 40" in told["evidence"]
    process.communicate(timeout=60)
    assert (process.returncode, warm_night.state(child)) == (0, "finished")


@pytest.mark.fault("D4", by="health.py: what came back is a warning; the smoothed loss")
def test_a_spike_that_heals_stops_no_run(warm_night: Night) -> None:
    warm_night.config(
        "--delay", "0.01", "--at", "33", "spike=nan", "--at", "50", "spike=1e9", training={"max_steps": 300},
        abort={"divergence": 3.0, "grace_s": 20},
    )  # fmt: skip
    process = warm_night.popen("run", "T-1")
    run = warm_night.started()
    wait_until(lambda: len(events(run, "step")) > 60, "the spikes are over")
    said = warm_night.watch(code=0).stdout
    assert process.wait(60) == 0
    assert warm_night.run_dirs() == [run] and not events(run, "abort")
    assert "the loss was not finite 1 times and came back" in said or warm_night.state(run) == "finished"


@pytest.mark.long
@pytest.mark.fault("D5", by="rules.py: divergence, where it is set; acting.py: stop, recover.cut_lr_on")
def test_a_loss_that_diverges_and_stays_there_is_stopped_and_goes_on_at_a_lower_rate(warm_night: Night) -> None:
    warm_night.config(
        "--delay", "0.0", "--every", "100", "--at", "1101", "loss=50", training={"max_steps": 100_000},
        abort={"divergence": 3.0, "grace_s": 20},
    )  # fmt: skip
    run = warm_night.start()
    warm_night.watched(lambda: events(run, "abort"), "it is stopped")
    child = warm_night.next_of(run)
    assert one(run, "abort")["cause"] == "diverged"
    assert record(child)["recovery"]["lr_factor"] == 0.8
    assert one(child, "resumed")["lr_scale"] == 0.8


@pytest.mark.fault("D6", by="rules.py: frozen, a warning; acting.py: stops for what is sick alone")
@pytest.mark.fault("D7", by="rules.py: zero, a warning; acting.py: stops for what is sick alone")
@pytest.mark.parametrize(
    ("loss", "evidence"),
    [("0.0", "zero: the loss has been exactly 0 since step 5"), ("0.5", "frozen: the loss has been 0.5 since step 5")],
    ids=["zero", "frozen"],
)
def test_a_loss_that_is_zero_or_does_not_move_is_a_warning_and_stops_no_run(
    warm_night: Night, loss: str, evidence: str
) -> None:
    warm_night.config("--delay", "0", "--every", "1000", "--at", "5", f"loss={loss}", training={"max_steps": 100_000})
    run = warm_night.start(steps=310)
    for words in (["--observe"], [], []):
        done = warm_night.watch(*words, code=0)
        assert done.stdout.split()[:2] == [run.name, "running"]
        assert " warning " in done.stdout and evidence in done.stdout, done.stdout
    told = len(events(run, "step"))
    wait_until(lambda: len(events(run, "step")) > told, "it trains on")
    assert not events(run, "abort") and warm_night.run_dirs() == [run]


@pytest.mark.long
@pytest.mark.fault("D8", by="restart_point.py: the second time at the same step its data are left out")
def test_data_that_make_the_loss_nan_each_time_are_left_out_the_second_time(warm_night: Night) -> None:
    warm_night.config("--delay", "0.02", "--at", "33", "poison", training={"max_steps": 200})
    warm_night("run", "T-1", code=0)
    first, second, third = warm_night.run_dirs()
    assert [one(run, "abort")["first_bad_step"] for run in (first, second)] == [33, 33]
    assert [record(run)["recovery"]["skip_data_steps"] for run in (second, third)] == [0, 13]
    assert [record(run)["parent_step"] for run in (second, third)] == [20, 20]
    assert warm_night.state(third) == "finished" and not events(third, "abort")
    assert one(third, "resumed")["lr_scale"] == pytest.approx(0.64), "cut once for each of two incidents"


@pytest.mark.long
@pytest.mark.fault("D8", by="eligibility.py: the budget")
def test_what_goes_wrong_whatever_is_left_out_needs_a_person_in_the_end(warm_night: Night) -> None:
    """Not data but a step: no window of data helps. An end in three attempts, not a loop."""
    poisoned = [word for step in range(33, 200) for word in ("--at", str(step), "poison")]
    warm_night.config("--delay", "0.01", *poisoned, training={"max_steps": 1000})
    warm_night("run", "T-1", code=8)
    runs = warm_night.run_dirs()
    assert warm_night.state(runs[-1]) == "needs_attention"
    assert "starts in a row brought nothing new" in events(runs[-1], "recovery")[-1]["reason"]
    assert len(runs) <= 6


@pytest.mark.fault("D9", by="acceptance: the rate at the first step against the parent's")
def test_a_schedule_that_was_lost_at_the_resume_is_said_aloud(warm_night: Night) -> None:
    """One that the kit cannot foresee, so it warns; where it can, resume.strict_checks ends the run: test_sabotage."""
    warm_night.config(
        "--delay", "0.01", training={"max_steps": 300}, trainer={"env": ["RESUMEKIT_TEST_MARK", "FORGET"]}
    )
    process = warm_night.popen("run", "T-1", env={"FORGET": ""})
    first = warm_night.started()
    wait_until(lambda: 150 in proven_steps(first), "half of the cosine is done")
    process.terminate()
    process.communicate(timeout=60)
    done = warm_night("resume", "T-1", env={"FORGET": "schedule"})
    child = warm_night.run_dirs()[-1]
    rate = next(check for check in events(child, "check") if check["name"] == "lr")
    assert rate["verdict"] in ("warned", "failed")
    assert "the checks after the resume: warned" in done.stdout and "(lr" in done.stdout


@pytest.mark.fault("D10", by="values.py: each value only if it has the right type")
def test_no_number_where_one_belongs_is_said_or_passed_over_and_crashes_no_reader(night: Night) -> None:
    """The trainer prints what is no loss, as a shell would love it; the run goes on, and the watcher calls it well."""
    words = ["nan?", "", "null", "1e999x", "$(touch pwned)", "a[$(touch pwned)]", "--", "NaNs", "0x1p3", "١٢"]
    lines = "".join(f"step 3 loss {word}\nstep {word} loss 0.5\n" for word in words).encode().hex()
    night.config("--at", "3", f"raw={lines}", "--delay", "0.03", training={"max_steps": 60})
    process = night.popen("run", "T-1")
    run = night.started()
    wait_until(lambda: len(events(run, "step")) > 20, "it trains on")
    assert night.watch(code=0).stdout.split()[1] == "running"
    process.communicate(timeout=60)
    assert (process.returncode, night.state(run)) == (0, "finished")
