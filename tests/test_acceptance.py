"""The checks of a resumed run's first two minutes: supervision.acceptance_rules, expectations, and what they end."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, Kit, assert_valid, events, marked_pids, wait_until
from test_recovery import configure, kill_trainer, reached
from test_run import killed, record

sys.path.append(str(ROOT / "lib"))
from resumekit.basics import check, journal
from resumekit.supervision import expectations
from resumekit.supervision.acceptance_rules import WINDOW_S, Rules
from resumekit.supervision.expectations import Expected

STEP = 100
LOSSES = {step: 2.0 + 0.01 * (step % 7) for step in range(STEP - 60, STEP + 30)}
PARENT = Expected(
    STEP, "cosine", ((0.0010, 0.0009, 0.0008),), LOSSES, (0.1,) * 40, "f00d", is_replay=True, speed_differs=""
)


def step_event(step: int, mono_s: float, **fields: Any) -> dict[str, Any]:
    rates = {STEP + 1: 0.0010, STEP + 2: 0.0009, STEP + 3: 0.0008}
    told = {"loss": LOSSES.get(step, 2.0), "lr": rates.get(step, 0.0007), **fields}
    return {"event": "step", "step": step, "mono_s": mono_s, **told}


def healthy(count: int = 60, seconds: float = 0.1, first: int = STEP + 1) -> list[dict[str, Any]]:
    begin = [{"event": "resumed", "step": STEP, "mono_s": 9.0}, {"event": "data", "fingerprint": "f00d", "mono_s": 9.1}]
    return begin + [step_event(first + index, 10 + index * seconds) for index in range(count)]


def judged(
    told: list[dict[str, Any]], expected: Expected = PARENT, *, band: float = 0.15, loss_band: float | None = None,
    now_s: float = 10 + WINDOW_S, has_ended: bool = False, known: dict[str, str] | None = None,
) -> dict[str, check.Check]:  # fmt: skip
    rules = Rules(expected, band, loss_band, known or {})
    for event in told:
        rules.see(event)
    return {one.name: one for one in rules.verdicts(now_s, has_ended=has_ended)}


def test_a_healthy_resume_passes_every_check() -> None:
    found = judged(healthy())
    assert {one.verdict for one in found.values()} == {"passed"}, found
    assert set(found) == {"step", "lr", "data", "phase", "loss", "throughput", "resume"}
    assert "bit for bit" in found["loss"].why


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


def test_without_a_replay_the_first_losses_are_held_against_the_parents_last_ones() -> None:
    parent = PARENT._replace(is_replay=False, losses={step: LOSSES[step] for step in LOSSES if step <= STEP})
    higher = [{**one, "loss": one["loss"] * 1.5} if one["event"] == "step" else one for one in healthy()]
    assert judged(healthy(), parent)["loss"].verdict == "passed"
    assert judged(higher, parent)["loss"].verdict == "warned"
    assert judged(higher, parent, loss_band=0.1)["loss"].verdict == "failed"
    assert judged(higher, parent, loss_band=0.6)["loss"].verdict == "passed"


def test_a_replay_on_another_kernel_differs_in_its_last_bits_and_passes() -> None:
    told = [{**one, "loss": one["loss"] * (1 + 1e-6)} if one["event"] == "step" else one for one in healthy()]
    found = judged(told)["loss"]
    assert found.verdict == "passed" and "not bit for bit" in found.why


def test_what_cannot_be_compared_is_unknown_and_says_why() -> None:
    found = judged(healthy(count=4), Expected(STEP), has_ended=True)
    assert found["step"].verdict == "passed"
    others = {name: one for name, one in found.items() if name not in ("step", "resume")}
    assert {one.verdict for one in others.values()} == {"unknown"} and all(one.why for one in others.values())
    assert found["resume"].verdict == "passed"
    changed = judged(healthy(), PARENT._replace(speed_differs="training.batch_size changed"))["throughput"]
    assert changed.verdict == "unknown" and "training.batch_size changed" in changed.why


def test_a_trainer_that_only_prints_is_judged_by_its_log() -> None:
    logged = [step_event(STEP + 1 + index * 10, 10 + index, source="log", lr=round(0.001, 6)) for index in range(0, 20)]
    found = judged(logged, PARENT._replace(is_replay=False), now_s=10 + WINDOW_S)
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
        losses, seconds = expectations._around(path, step)
        assert set(losses) == {n for n in range(1, 50_001) if abs(n - step) <= expectations.STEPS_AROUND}
        assert all(loss == number / 1000 for number, loss in losses.items())
        assert set(seconds) <= {0.5} and len(seconds) == min(step - 1, expectations.STEPS_AROUND)
        assert read[0] < 15_000


def test_the_status_adds_the_checks_up() -> None:
    assert check.summary({}) is None
    some = check.summary({"lr": "passed", "loss": "failed"})
    assert some == {"verdict": "running", "passed": ["lr"], "warned": [], "failed": ["loss"], "unknown": []}
    assert check.summary({"lr": "passed", "resume": "warned"})["verdict"] == "warned"
    assert check.overall([]) == check.overall(["unknown"]) == "unknown"
    assert check.overall(["unknown", "passed"]) == "passed" and check.overall(["passed", "warned"]) == "warned"


# A trainer that forgets to load: it gets no checkpoint, and counts from 1 again.
FORGETS = ("--set", "trainer.resume_args=[--delay, '0.1']")


def resumed_wrongly(kit: Kit, *args: str, code: int) -> tuple[Path, str]:
    parent = killed(kit, steps=60, at=12)
    said = kit("resume", "T-1", *FORGETS, *args, code=code)
    assert kit.run_dirs()[-1] != parent
    return kit.run_dirs()[-1], said.stdout


def test_a_failed_check_is_said_aloud_and_ends_nothing(kit: Kit) -> None:
    run, shown = resumed_wrongly(kit, code=0)
    [failed] = [one for one in events(run, "check") if one["verdict"] == "failed" and one["name"] == "step"]
    assert (failed["expected"], failed["found"]) == ("steps after 10", 1)
    status = kit.status(run)
    assert (status["state"], status["checks"]["verdict"], status["checks"]["failed"]) == (
        "finished",
        "failed",
        ["step"],
    )
    assert "resumekit: check step failed: expected steps after 10, found 1" in shown
    assert "check step failed" in (run / "logs/train.log").read_text()
    assert_valid("status", status)


def test_a_person_is_told_once_of_a_recovery_that_begins_anew(kit: Kit) -> None:
    """Its resume_args do nothing: it trains on, and each further crash would cost all again."""
    told = kit.folder / "told"
    configure(kit, trainer={"resume_args": ["--delay", "0.05"]}, training={"max_steps": 10**6},
              notify={"command": ["sh", "-c", 'cat >> "$0"', str(told)]})  # fmt: skip
    process = kit.popen("run", "T-1")
    first = kit.started()
    wait_until(lambda: reached(first, 12), "it trains")
    kill_trainer(first)
    run = kit.started(2)
    wait_until(lambda: told.exists() and told.read_text().endswith("\n"), "a person is told")
    wait_until(lambda: events(run, "step") and events(run, "step")[-1]["step"] > 20, "it trains on")
    [event] = [json.loads(line) for line in told.read_text().splitlines()]
    assert (event["event"], event["kind"], event["run_id"]) == ("warning", "began_elsewhere", run.name)
    assert "began_elsewhere" in [one["kind"] for one in events(run, "warning")]
    row = next(line for line in kit("runs", "T-1").stdout.splitlines() if run.name in line)
    assert "failed checks: step" in row
    kit("abort-watch", "--stop", "--now", "T-1")
    process.communicate(timeout=60)


def test_strict_checks_end_the_run_with_7_and_nothing_goes_on_from_it(kit: Kit) -> None:
    run, _ = resumed_wrongly(kit, "--set", "resume.strict_checks=true", code=7)
    assert kit.status(run)["state"] == "aborted"
    [abort] = events(run, "abort")
    assert (abort["cause"], abort["evidence"]) == ("checks_failed", "failed: step") and not events(run, "stopped")
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
    wait_until(lambda: kit.status(run)["state"] == "aborted", "its status")


def test_a_killed_sidecar_takes_no_check_with_it(kit: Kit) -> None:
    killed(kit, steps=40, at=12)
    process = kit.popen("resume", "T-1", "--set", "trainer.resume_args=[--resume, '{checkpoint}', --delay, '0.2']")
    run = kit.started(2)
    wait_until(lambda: events(run, "check"), "a first check")
    for pid in marked_pids(f"RESUMEKIT_TEST_MARK={kit.mark}"):
        if b"sidecar" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            os.kill(pid, signal.SIGKILL)
    assert process.wait() == 0
    names = [one["name"] for one in events(run, "check")]
    assert len(names) == len(set(names)) and names[-1] == "resume"
    assert kit.status(run)["checks"]["verdict"] == "passed"
