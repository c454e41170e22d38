"""The checks of a resumed run's first two minutes: checks.journal_rules, expectations, and what they end."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import journal, terms
from resumekit.checks import expectations
from resumekit.checks.expectations import Expected, ToldRate
from resumekit.checks.journal_rules import WINDOW_S, Rules
from resumekit.run.journal_fold import fold
from resumekit.run.run_folder import open_run
from support.acceptance_events import LOSSES, PARENT, STEP, healthy, judged, step_event
from support.commands import Kit, killed
from support.processes import marked_pids, wait_until
from support.recoveries import configure, kill_trainer, over, reached
from support.runs import events, record
from support.schemas import assert_valid


def test_a_healthy_resume_passes_every_check() -> None:
    found = judged(healthy())
    assert {one.verdict for one in found.values()} == {"passed"}, found
    assert set(found) == {"step", "lr", "data", "phase", "loss", "throughput", "resume"}
    assert found["resume"].sentence() == (
        "the checks after the resume: passed, losses equal bit for bit in 20 steps; 6 of 6 passed"
    )


@pytest.mark.parametrize(
    "sick, name, verdict",
    [
        ([{"event": "resumed", "step": 90, "mono_s": 9.0}, *healthy()[1:]], "step", "failed"),
        ([*healthy()[1:2], *healthy(first=1)[2:]], "step", "failed"),
        (healthy(first=STEP + 2), "step", "failed"),
        ([*healthy()[:2], step_event(STEP + 1, 10, lr=0.0008), *healthy()[3:]], "lr", "failed"),
        ([healthy()[0], {"event": "data", "fingerprint": "beef", "mono_s": 9.1}, *healthy()[2:]], "data", "failed"),
        ([*healthy()[:2], {"event": "heartbeat", "scheduler_phase": "warmup"}, *healthy()[2:]], "phase", "failed"),
        ([*healthy()[:2], *[{**one, "loss": one["loss"] * 1.05} for one in healthy()[2:]]], "loss", "failed"),
        (healthy(seconds=0.13), "throughput", "warned"),
        (healthy(seconds=0.07), "throughput", "warned"),
    ],
)  # fmt: skip
def test_what_is_sick_is_named(sick: list[dict[str, Any]], name: str, verdict: str) -> None:
    found = judged(sick)
    assert found[name].verdict == verdict, found
    assert found["resume"].verdict == verdict and name in found["resume"].why.split(", ")


def test_a_speed_is_compared_where_it_could_be_measured() -> None:
    def verdict(theirs: float, mine: float, **fields: Any) -> str:
        told = [{**event, **fields} if event["event"] == "step" else event for event in healthy(seconds=mine)]
        return judged(told, PARENT._replace(seconds=(theirs,) * 40))["throughput"].verdict

    assert verdict(0.06, 0.1) == "warned"
    assert verdict(0.04, 0.06) == "not_told" and verdict(0.06, 0.03) == "not_told", "a second or two in all"
    assert verdict(0.06, 0.1, source="log") == "not_told", "a log is looked at every quarter of a second"
    assert verdict(0.6, 1.0, source="log") == "warned"


def test_a_stumble_is_no_slowness() -> None:
    told = healthy(count=60)
    for event in told[30:]:
        event["mono_s"] += 30.0  # one long pause
    assert judged(told)["throughput"].verdict == "passed"


def test_evaluations_and_saves_are_left_out_of_the_speed() -> None:
    told, later = [], 0.0
    for index, event in enumerate(healthy(count=60)):
        if index > 2 and index % 4 == 0:
            told.append({"event": "phase", "phase": "fast_eval", "mono_s": event["mono_s"] + later})
            later += 5.0
            told.append({"event": "phase", "phase": "train", "mono_s": event["mono_s"] + later})
        told.append({**event, "mono_s": event["mono_s"] + later} if event["event"] == "step" else event)
    assert judged(told, now_s=1000.0)["throughput"].verdict == "passed"


def test_a_rate_that_was_handed_over_is_held_against_the_parents_of_the_same_steps() -> None:
    rates = {STEP + 2: ToldRate(0.0008), STEP + 4: ToldRate(0.0007)}
    expected = PARENT._replace(rates=(), phase=None, replayed_rates=rates, handed_factor=0.8)
    taken = [step_event(STEP + at, 10 + at, lr=0.0008) for at in (1, 2, 3, 5)]
    assert judged(taken, expected)["lr"].verdict == "passed"
    found = judged([*taken[:1], step_event(STEP + 2, 12, lr=0.001), *taken[2:]], expected)["lr"]
    assert (found.verdict, found.found) == ("failed", "0.001") and "recover.lr_args" in found.why
    assert judged([{**one, "lr": None} for one in taken], expected)["lr"].verdict == "not_told"


@pytest.mark.parametrize(
    ("parent", "told", "verdict"),
    [
        ((0.00101, 5e-6), (0.000507, 5e-7), "passed"),  # of 0.001014 a bar shows 0.00101, of its half 0.000507
        ((0.00101, 5e-6), (0.000507, 0.0), "passed"),
        ((0.00101, 5e-6), (0.000509, 5e-7), "failed"),
        ((0.00101, 5e-6), (0.00101, 5e-6), "failed"),
        ((0.00101, 0.0), (0.000507, 0.0), "failed"),  # what is told to the last digit is compared as before
        ((0.001, 5e-4), (0.001, 5e-4), "not_told"),
        ((0.001, 5e-4), (0.0005, 5e-5), "passed"),
    ],
)
def test_a_cut_rate_is_compared_within_what_its_digits_tell(
    parent: tuple[float, float], told: tuple[float, float], verdict: str
) -> None:
    rates = {STEP + at: ToldRate(*parent).times(0.5) for at in (1, 2, 3, 4)}
    expected = PARENT._replace(rates=(), phase=None, replayed_rates=rates, handed_factor=0.5)
    rate, within = told
    more = {"lr_within": within} if within else {}
    steps = [step_event(STEP + at, 10 + at, lr=rate, source="log", **more) for at in (1, 2, 3, 4)]
    found = judged(steps, expected)["lr"]
    assert found.verdict == verdict
    if verdict == "not_told":
        assert "too few digits to tell the cut rate" in found.why and found.expected == f"0.0005 in step {STEP + 1}"


def test_a_planned_curve_is_compared_within_what_the_digits_of_a_log_tell() -> None:
    expected = PARENT._replace(rates=((0.0005068,) * 8,), phase=None)
    steps = [step_event(STEP + at, 10 + at, lr=0.00051, source="log") for at in (1, 2, 3, 4)]
    assert judged(steps, expected)["lr"].verdict == "failed"
    assert judged([{**one, "lr_within": 5e-6} for one in steps], expected)["lr"].verdict == "passed"
    coarse = [{**one, "lr": 0.001, "lr_within": 5e-4} for one in steps]
    found = judged(coarse, expected._replace(handed_factor=0.5))["lr"]
    assert found.verdict == "not_told" and "too few digits" in found.why


def test_a_changed_rate_that_the_trainer_has_not_taken_is_warned_of() -> None:
    expected = PARENT._replace(
        rates=(), phase=None, rates_before={STEP + 2: ToldRate(0.001), STEP + 4: ToldRate(0.0009)}
    )
    old = [step_event(STEP + at, 10 + at, lr=0.001 if at < 4 else 0.0009) for at in (1, 2, 3, 4)]
    found = judged(old, expected)["lr"]
    assert found.verdict == "warned" and "goes on with the rate from before" in found.why
    assert judged([{**one, "lr": 0.0002} for one in old], expected)["lr"].verdict == "not_told"
    assert judged(old, expected._replace(rates_before={}))["lr"].verdict == "not_told"


def test_without_a_replay_the_first_losses_are_held_against_the_parents_last_ones() -> None:
    parent = PARENT._replace(
        incomparable="training.batch_size was changed", losses={step: LOSSES[step] for step in LOSSES if step <= STEP}
    )
    higher = [{**one, "loss": one["loss"] * 1.5} if one["event"] == "step" else one for one in healthy()]
    assert judged(healthy(), parent)["loss"].verdict == "not_told"
    assert judged(higher, parent)["loss"].verdict == "warned"
    assert judged(higher, parent, loss_band=0.1)["loss"].verdict == "failed"
    assert judged(higher, parent, loss_band=0.6)["loss"].verdict == "passed"


def test_a_replay_on_another_kernel_differs_in_its_last_bits_and_passes() -> None:
    told = [{**one, "loss": one["loss"] * (1 + 1e-6)} if one["event"] == "step" else one for one in healthy()]
    found = judged(told)["loss"]
    assert found.verdict == "passed" and "not bit for bit" in found.why


def test_what_cannot_be_compared_is_not_told_and_says_why() -> None:
    found = judged(healthy(count=4), Expected(STEP), has_ended=True)
    assert found["step"].verdict == "passed"
    others = {name: one for name, one in found.items() if name not in ("step", "resume")}
    assert {one.verdict for one in others.values()} == {"not_told"} and all(one.why for one in others.values())
    assert found["resume"].verdict == "not_told"
    changed = judged(healthy(), PARENT._replace(speed_differs="training.batch_size changed"))["throughput"]
    assert changed.verdict == "not_told" and "training.batch_size changed" in changed.why


def test_a_trainer_that_only_prints_is_judged_by_its_log() -> None:
    logged = [step_event(STEP + 1 + index * 10, 10 + index, source="log", lr=round(0.001, 6)) for index in range(0, 20)]
    found = judged(logged, PARENT._replace(incomparable="x was changed"), now_s=10 + WINDOW_S)
    assert found["step"].verdict == "passed" and found["lr"].verdict == "passed"
    one = judged([step_event(STEP + 10, 10, source="log")], PARENT, has_ended=True)
    assert one["step"].verdict == "passed", "a log line every tenth step is no wrong step"


def test_verdicts_come_once_and_the_trainers_own_count() -> None:
    rules = Rules(PARENT, 0.15, None, {"weights": "failed"})
    rules.see({"event": "check", "name": "lr", "verdict": "passed"})
    for event in healthy():
        rules.see(event)
    early = [one.name for one in rules.verdicts(11.0)]
    assert "lr" not in early and "resume" not in early
    late = {one.name: one for one in rules.verdicts(10 + WINDOW_S)}
    assert set(late) == {"throughput", "resume"} and late["resume"].verdict == "failed"
    assert rules.is_over and list(rules.verdicts(1e6)) == [] and rules.failed == ["weights"]


def test_a_sidecar_that_comes_later_does_not_judge_twice() -> None:
    known = dict.fromkeys(("step", "lr", "data", "phase", "loss"), "passed")
    assert set(judged(healthy(), known=known)) == {"throughput", "resume"}


def test_the_steps_around_a_checkpoint_are_found_without_reading_the_whole_journal(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "journal.jsonl"
    lines = [
        f'\n{{"event":"step","mono_s":{step * 0.5},"run_id":"r","step":{step},"loss":{step / 1000}}}\n'
        for step in range(1, 50_001)
    ]
    path.write_text("".join(lines))
    read, real = [0], journal.read

    def counting(*args: Any) -> Any:
        for event, offset in real(*args):
            read[0] += 1
            yield event, offset

    monkeypatch.setattr(expectations.journal, "read", counting)
    for step in (1, 70, 25_000, 49_999, 50_000):
        read[0] = 0
        losses, seconds, is_counted, widest, _ = expectations._around(path, step, 0)
        assert is_counted is None and widest == 1, "the journal tells of no checkpoint"
        assert set(losses) == {n for n in range(1, 50_001) if abs(n - step) <= expectations.STEPS_AROUND}
        assert all(loss == number / 1000 for number, loss in losses.items())
        assert set(seconds) <= {0.5} and len(seconds) == min(step - 1, expectations.STEPS_AROUND)
        assert read[0] < 15_000


def test_the_status_adds_the_checks_up() -> None:
    assert terms.checks_summary({}) is None
    some = terms.checks_summary({"lr": "passed", "loss": "failed"})
    assert some == {"verdict": "running", "passed": ["lr"], "warned": [], "failed": ["loss"], "not_told": []}
    assert terms.checks_summary({"lr": "passed", "resume": "warned"})["verdict"] == "warned"
    assert terms.checks_summary({"phase": "unknown", "resume": "unknown"})["not_told"] == ["phase"], (
        "as an older kit wrote it"
    )
    assert fold({}, [{"event": "check", "name": "lr", "verdict": "unknown"}])["checks"] == {"lr": "not_told"}


@pytest.mark.parametrize(
    "parts, is_stepwise, verdict",
    [
        ({}, False, "not_told"),
        ({"step": "passed"}, False, "not_told"),
        ({"step": "passed", "weights": "passed"}, False, "passed"),
        ({"step": "passed", "loss": "passed"}, False, "not_told"),
        ({"step": "passed", "loss": "passed"}, True, "passed"),
        ({"weights": "passed", "loss": "passed"}, True, "not_told"),
        ({"step": "passed", "weights": "passed", "lr": "warned"}, True, "warned"),
        ({"step": "failed", "weights": "passed", "lr": "warned"}, True, "failed"),
        ({"step": "passed", "weights": "passed", "lr": "not_told", "data": "not_told"}, False, "passed"),
        ({"step": "passed", "weights": "passed", "rng": "not_told"}, False, "not_told"),
        ({"step": "passed", "weights": "passed", "optimizer": "not_told"}, False, "not_told"),
        ({"step": "passed", "loss": "passed", "rng": "not_told"}, True, "passed"),
        ({"step": "passed", "weights": "passed", "loss": "passed", "buffers": "not_told"}, True, "not_told"),
        ({"step": "passed", "loss": "passed", "averages": "not_told"}, True, "not_told"),
    ],
)
def test_a_verdict_that_passes_needs_the_step_the_weights_or_losses_step_by_step_and_no_component_unseen(
    parts: dict[str, str], is_stepwise: bool, verdict: str
) -> None:
    assert terms.overall_verdict(parts, is_stepwise=is_stepwise) == verdict


LOADED = {"weights": {"action": "load"}}
# A trainer that forgets to load: it gets no checkpoint, and counts from 1 again.
FORGETS = ("--set", "trainer.resume_args=[--delay, '0.1']")


def resumed_wrongly(kit: Kit, *args: str, code: int) -> tuple[Path, str]:
    parent = killed(kit, steps=60, at=12)
    said = kit("resume", "T-1", *FORGETS, *args, code=code)
    assert kit.run_dirs()[-1] != parent
    return kit.run_dirs()[-1], said.stdout


def test_another_step_than_the_planned_one_ends_the_run_with_7_whatever_strict_checks_says(kit: Kit) -> None:
    run, shown = resumed_wrongly(kit, code=7)
    [failed] = [one for one in events(run, "check") if one["verdict"] == "failed" and one["name"] == "step"]
    assert (failed["expected"], failed["found"]) == ("steps after 10", 1)
    status = kit.status(run)
    assert (status["checks"]["verdict"], status["checks"]["failed"]) == ("failed", ["step"])
    assert "resumekit: check step failed: expected steps after 10, found 1" in shown
    assert "do trainer.resume_args name an option" in shown
    assert "check step failed" in (run / "logs/train.log").read_text()
    assert_valid("status", status)
    saved = {path.name for path in (run / "checkpoints").glob("*.pt")}
    assert saved and {entry["file"] for entry in json.loads((run / "quarantine.json").read_text())} == saved
    row = next(line for line in kit("runs", "T-1").stdout.splitlines() if run.name in line)
    assert "failed checks: step" in row and "running" not in row


def test_a_person_is_told_once_of_a_recovery_that_begins_anew_and_nothing_goes_on_from_it(kit: Kit) -> None:
    """Its resume_args do nothing: each further recovery would train all again."""
    told = kit.folder / "told"
    configure(kit, trainer={"resume_args": ["--delay", "0.05"]}, training={"max_steps": 10**6},
              notify={"command": ["sh", "-c", 'cat >> "$0"', str(told)]})  # fmt: skip
    process = kit.popen("run", "T-1")
    first = kit.started()
    wait_until(lambda: reached(first, 12), "it trains")
    kill_trainer(first)
    run = kit.started(2)
    process.communicate(timeout=60)
    assert process.returncode == 7 and kit.run_dirs()[-1] == run, "no third one"
    [event] = [json.loads(line) for line in told.read_text().splitlines()]
    assert (event["event"], event["outcome"], event["run_id"]) == ("recovery", "needs_attention", run.name)
    assert event["reason"].startswith("failed: step; check step failed: expected steps after ")
    assert "do trainer.resume_args name an option that the trainer acts on, and does" in event["reason"]
    assert kit.status(run)["state"] == "needs_attention"


def test_strict_checks_end_the_run_with_7_and_nothing_goes_on_from_it(kit: Kit) -> None:
    run, _ = resumed_wrongly(kit, "--set", "resume.strict_checks=true", code=7)
    assert kit.status(run)["state"] == "aborted"
    [abort] = events(run, "abort")
    assert abort["cause"] == "checks_failed" and abort["evidence"].startswith("failed: step; check step failed: ")
    assert not events(run, "stopped")
    assert events(run, "exited")[0]["code"] == 143, "it got a TERM and its grace"
    saved = {path.name for path in (run / "checkpoints").glob("*.pt")}
    entries = json.loads((run / "quarantine.json").read_text())
    assert saved and {entry["file"] for entry in entries} == saved
    said = kit(
        "resume",
        "T-1",
        "--set",
        "resume.strict_checks=false",
        "--set",
        "trainer.resume_args=[--resume, '{checkpoint}']",
    )
    assert record(kit.run_dirs()[-1])["parent_step"] == 10, said.stderr


def test_detached_the_checks_end_it_too(kit: Kit) -> None:
    killed(kit, steps=60, at=12)
    kit("resume", "T-1", *FORGETS, "--set", "resume.strict_checks=true", "--detach")
    run = kit.run_dirs()[-1]
    wait_until(lambda: events(run, "exited"), "the end of the run")
    over(kit, run, "aborted")


def test_a_killed_sidecar_takes_no_check_with_it(kit: Kit) -> None:
    killed(kit, steps=40, at=12)
    process = kit.popen("resume", "T-1", "--set", "trainer.resume_args=[--resume, '{checkpoint}', --delay, '0.1']")
    run = kit.started(2)
    wait_until(lambda: events(run, "check"), "a first check")
    for pid in marked_pids(f"RESUMEKIT_TEST_MARK={kit.mark}"):
        if b"sidecar" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            os.kill(pid, signal.SIGKILL)
    assert process.wait() == 0
    names = [one["name"] for one in events(run, "check")]
    assert len(names) == len(set(names)) and names[-1] == "resume"
    assert kit.status(run)["checks"]["verdict"] == "not_told", "another trainer.resume_args may train otherwise"


def test_what_a_recovery_leaves_out_itself_is_no_change_of_the_data(kit: Kit) -> None:
    """Else other data were only warned of, and the speed was not compared."""
    run = killed(kit)
    plan = {"version": 1, "step": 4, "components": LOADED, "checkpoint": {"run_id": run.name}}
    changed = {"key": "data.skipped_steps", "old": 0, "new": 8}
    for origin, differs in (("recovery", False), ("config", True)):
        (run / "resume_plan.json").write_text(json.dumps({**plan, "changes": [{**changed, "origin": origin}]}))
        expected = expectations.read(open_run(run))
        assert expected is not None and (expected.data_differs, bool(expected.speed_differs)) == (differs, differs)


def test_an_optimizer_that_was_not_swapped_has_one_curve(kit: Kit) -> None:
    run = killed(kit)
    ramp = {"from_step": 4, "steps": 9, "factor": 0.5, "warm_restart": False, "optimizers": ["model"]}
    rates = [{"key": "a", "after": [0.1, 0.1]}, {"key": "b", "after": [0.3, 0.3], "optimizer": "puzzles"}]
    plan = {
        "version": 1,
        "step": 4,
        "components": LOADED,
        "learning_rates": rates,
        "lr_scale": {"factor": 1.0, "ramp": ramp},
    }
    (run / "resume_plan.json").write_text(json.dumps(plan))
    expected = expectations.read(open_run(run))
    assert expected is not None and expected.unscaled == ((0.2, 0.2),)


def test_the_parents_rates_keep_how_far_their_digits_leave_them_open(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    told = [{"step": 8, "lr": 0.001}, {"step": 9, "lr": 0.00101, "lr_within": 5e-6}, {"step": 10, "lr_within": "x"}]
    events_of_it = [{"event": "step", "mono_s": 1.0, "run_id": "r", "lr": 0.5, **one} for one in told]
    path.write_text("".join(f"{json.dumps(one)}\n" for one in events_of_it))
    rates = expectations._around(path, 8, 0).rates
    assert rates == {9: ToldRate(0.00101, 5e-6), 10: ToldRate(0.5, 0.0)}
