"""One look at every live run: resumekit.watching, bin/abort-watch.sh --observe, with real trainers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import journal, processes
from resumekit.base.errors import KitError, UsageError
from resumekit.base.files import utc_now
from resumekit.base.terminal import plain
from resumekit.process.clock_gap import GAP_S, ClockGap
from resumekit.process.sidecar_state import Account
from resumekit.run.journal_fold import CLOCK_GAP, fold
from resumekit.run.run_folder import open_run
from resumekit.run.run_table import RunTable
from resumekit.watch import command, inspection, observe, rules
from resumekit.watch.inspection import ENDED, HEALTHY, PAUSED, REMOTE, UNKNOWN, Report
from resumekit.watch.rules import SICK, WARNING, Finding
from support.commands import Kit
from support.places import LIVE, ROOT
from support.processes import DEADLINE_S, wait_until
from support.recoveries import PATTERNS, watcher
from support.runs import age, events
from support.watched_runs import journal_of, kill_all_of, made, own_identity, start

pytestmark = pytest.mark.usefixtures("its_own_process_may_stand_for_a_trainer")

WATCH = str(ROOT / "bin" / "abort-watch.sh")
# A test waits no half hour for a hang.
HANG_MINUTES = 0.05


@pytest.fixture
def watched(kit: Kit) -> Kit:
    kit.config(
        "--delay", "0.05", trainer={"log_patterns": PATTERNS}, training={"max_steps": 20_000},
        abort={"hang_minutes": HANG_MINUTES, "grace_s": 20},
    )  # fmt: skip
    return kit


def looks(kit: Kit, *args: str, code: int | None = None) -> dict[str, dict[str, Any]]:
    """Let the watcher look, its second time a moment after the first."""
    chosen = [f"--only={name}" for name in args]
    done = subprocess.run(
        watcher(kit.runs, kit.config_file, "--observe", "--json", *chosen),
        env=kit.env, capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert code in (None, done.returncode), done.stdout + done.stderr
    return {one["run_id"]: one for one in json.loads(done.stdout)}


def seen_as(kit: Kit, run: Path, verdict: str) -> dict[str, Any]:
    """Look until a run has this verdict; return that look."""
    return wait_until(
        lambda: next((one for one in looks(kit).values() if (one["run_id"], one["verdict"]) == (run.name, verdict)), 0),
        f"{run.name} is {verdict}",
    )


def causes(look: dict[str, Any]) -> list[str]:
    return [one["cause"] for one in look["findings"] if one["verdict"] == SICK]


@pytest.mark.long
@pytest.mark.fault("E5", by="rules.py: hang")
def test_the_sick_are_told_from_the_well(watched: Kit) -> None:
    """A healthy trainer, one whose loss is nan, one that hangs and one whose whole family was killed, side by side."""
    well = start(watched, name="well")
    nan = start(watched, f"--at 20 raw={b'step 21 loss nan'.hex()}0a --at 20 wait=/nonexistent", "nan")
    hung = start(watched, "--at 5 hang", "hung")
    dead = start(watched, name="dead")
    kill_all_of(dead)
    wait_until(lambda: [one for one in events(nan, "step") if one.get("loss") == "nan"], "a loss that is nan")
    time.sleep(HANG_MINUTES * 60 + 1)
    found = looks(watched, code=8)
    assert {run_id: one["verdict"] for run_id, one in found.items()} == {
        well.name: HEALTHY, nan.name: SICK, hung.name: SICK, dead.name: SICK,
    }  # fmt: skip
    assert causes(found[nan.name])[0] == "nonfinite"
    assert found[nan.name]["findings"][0]["first_bad_step"] == 21
    assert causes(found[hung.name]) == ["hang"]
    assert causes(found[dead.name]) == ["died"]
    assert (found[well.name]["state"], found[dead.name]["state"]) == ("running", "lost")
    assert found[well.name]["step"] > 0

    text = watched("abort-watch", "--observe", code=8)
    assert [line.split()[0] for line in text.stdout.splitlines()] == sorted(found)
    assert "no step since step 5" in text.stdout
    assert "4 runs looked at, 3 sick" in text.stderr
    only = watched("abort-watch", "--observe", well.name, code=0)
    assert only.stdout.split()[0] == well.name
    # Looking changes nothing: what was alive is, and no event came from us.
    assert {one["event"] for one in events(hung)} <= {"launched", "step", "warning"}
    assert seen_as(watched, hung, SICK)["findings"][0]["cause"] == "hang"


@pytest.mark.fault("A17", by="inspection.py: a second look")
def test_a_run_that_hangs_only_until_the_second_look_is_well(watched: Kit, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    run = start(watched, f"--at 5 wait={gate}")
    time.sleep(HANG_MINUTES * 60 + 0.5)
    process = watched.popen("abort-watch", "--observe", "--json")
    gate.touch()
    out, _ = process.communicate(timeout=DEADLINE_S)
    (look,) = json.loads(out)
    assert (look["run_id"], look["verdict"], process.returncode) == (run.name, HEALTHY, 0)


@pytest.mark.fault("G10", by="bin/abort-watch.sh: finds its own files")
def test_cron_has_no_home_no_terminal_and_hardly_a_path(watched: Kit) -> None:
    run = start(watched)
    argv = [WATCH, "--observe", "--config", str(watched.config_file), "--runs", str(watched.runs)]
    done = subprocess.run(argv, env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}, cwd="/", capture_output=True,
                          stdin=subprocess.DEVNULL, timeout=DEADLINE_S)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == os.fsencode(run.name)


def test_what_has_ended_is_not_looked_at(watched: Kit) -> None:
    watched("run", "T-1", "--set", "training.max_steps=3")
    assert looks(watched, code=0) == {}


def test_a_marker_that_was_left_behind_by_a_run_that_was_stopped_is_nothing_to_worry_about(watched: Kit) -> None:
    run = start(watched)
    marker = watched.runs / LIVE / run.name
    (launched,) = events(run, "launched")
    os.kill(launched["launcher"]["pid"], signal.SIGTERM)
    wait_until(lambda: not marker.exists(), "the run has ended")
    marker.touch()
    (watched.runs / LIVE / "T-1_gone_20261122-1735").touch()
    found = looks(watched, code=0)
    assert found[run.name]["verdict"] == ENDED
    assert found["T-1_gone_20261122-1735"]["note"] == "its folder is gone, the marker was left behind"


@pytest.mark.fault("G8", by="inspection.py: remote")
@pytest.mark.fault("G17", by="inspection.py: paused")
def test_a_paused_run_and_one_of_another_host_are_not_judged(watched: Kit) -> None:
    run = start(watched)
    kill_all_of(run)
    assert causes(seen_as(watched, run, SICK)) == ["died"]
    (run / "paused").touch()
    assert looks(watched, code=0)[run.name]["verdict"] == PAUSED
    (run / "paused").unlink()
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "host": "elsewhere", "boot_id": "another"}))
    look = looks(watched, code=0)[run.name]
    assert (look["verdict"], look["note"]) == (REMOTE, "not looked at: it runs on 'elsewhere'")


def test_the_watcher_looks_again_until_it_is_told_to_stop(watched: Kit) -> None:
    start(watched)
    process = watched.popen("abort-watch", "--observe", "--json", "--every", "1")
    assert process.stdout is not None
    first, second = process.stdout.readline(), process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert [one[0]["verdict"] for one in map(json.loads, (first, second))] == [HEALTHY, HEALTHY]


# without processes


@pytest.mark.fault("G11", by="inspection.py: each run its own limit and its own error")
@pytest.mark.fault("F3", by="files.py: bounded reads")
def test_one_broken_run_among_two_hundred_keeps_no_command_from_looking_at_the_others(tmp_path: Path) -> None:
    broken: list[Callable[[Path], Any]] = [
        lambda run: (run / "journal.jsonl").write_bytes(os.urandom(1 << 16)),
        lambda run: (run / "journal.jsonl").mkdir(),
        lambda run: os.mkfifo(run / "journal.jsonl"),
        lambda run: (run / "run.json").write_bytes(b"[" * 60_000),
        lambda run: (run / "resolved_config.json").write_bytes(b'{"abort": 3, "trainer": [], "training": "x"}'),
        lambda run: (run / ".sidecar.json").write_bytes(b'{"state": {"pace": {"step": "a[$(touch pwned)]"}}}'),
        lambda run: (run / "journal.jsonl").symlink_to("/dev/zero"),
        lambda run: (run / "run.json").unlink(),
    ]
    for number in range(200):
        run = made(tmp_path, f"T-1_run{number}_20261122-1735")
        if number < len(broken):
            broken[number](run)
        else:
            loss = "nan" if number == 99 else 0.5
            journal_of(run, ("step", {"step": 3, "loss": loss}), ("step", {"step": 4, "loss": loss}))
    (tmp_path / LIVE / "$(touch pwned)").touch()
    begun = time.monotonic()
    found = inspection.one_pass(tmp_path)
    assert time.monotonic() - begun < 20
    assert len(found) == 200
    assert [one.run_id for one in found if one.verdict == SICK] == ["T-1_run99_20261122-1735"]
    assert sum(one.verdict == HEALTHY for one in found) == 200 - len(broken) - 1
    assert not [one for one in found if one.verdict == SICK and one.run_id.startswith("T-1_run1_")]


@pytest.mark.fault("G9", by="inspection.py: time_limit")
def test_a_run_that_cannot_be_read_in_time_is_unknown_and_never_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path, "T-1_slow_20261122-1735")
    journal_of(run)
    monkeypatch.setattr(inspection, "LIMIT_S", 0.2)

    def stuck(_run: Any) -> Any:
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(inspection.status, "read_state", stuck)
    (look,) = inspection.one_pass(tmp_path)
    assert (look.verdict, look.state) == (UNKNOWN, "unknown")
    assert "0 s" in look.note


@pytest.mark.fault("G11", by="inspection.py: each run its own error")
def test_an_unforeseen_error_is_one_runs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("T-1_bad_20261122-1735", "T-1_good_20261122-1735"):
        journal_of(made(tmp_path, name), ("step", {"step": 3, "loss": 0.5}))
    real = inspection.status.read_state

    def read_state(run: Any) -> Any:
        if "bad" in run.run_id:
            raise RuntimeError("surprise")
        return real(run)

    monkeypatch.setattr(inspection.status, "read_state", read_state)
    assert [one.verdict for one in inspection.one_pass(tmp_path)] == [UNKNOWN, HEALTHY]


@pytest.mark.fault("G9", by="processes.py: unknown is not dead")
def test_a_trainer_that_cannot_be_looked_at_is_not_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path, "T-1_run_20261122-1735")
    journal_of(run, ("step", {"step": 3, "loss": 0.5}))
    monkeypatch.setattr(processes, "probe", lambda _identity: processes.UNKNOWN)
    (look,) = inspection.one_pass(tmp_path)
    assert (look.verdict, look.state) == (HEALTHY, "running")


def test_a_trainer_of_another_boot_is_dead_and_its_clock_says_nothing(tmp_path: Path) -> None:
    run = made(tmp_path, "T-1_run_20261122-1735")
    who = {**own_identity(), "boot_id": "before"}
    journal.append(run / "journal.jsonl", "launched", run.name, trainer=who, shim=who, launcher=who)
    (look,) = inspection.one_pass(tmp_path)
    assert (look.verdict, look.state) == (UNKNOWN, "unknown") and "its files are changing" in look.note
    age(run)  # a clone of this machine that trains on the same disk would have changed them
    (look,) = inspection.one_pass(tmp_path)
    assert (look.state, [one.cause for one in look.findings]) == ("lost", ["died"])


@pytest.mark.fault("A13", by="observe.py: fruitless_starts")
def test_starts_without_a_step_are_counted_along_the_lineage(tmp_path: Path) -> None:
    names = [f"T-1_run_20261122-173{number}" for number in range(4)]
    for number, name in enumerate(names):
        recovery = {"cause": "died", "attempt": number, "first_bad_step": None, "lr_factor": 1.0}
        parent = {"parent_run_id": names[number - 1], "parent_step": 40, "recovery": recovery} if number else {}
        record = {"run_id": name, "host": processes.host_name(), "experiment": "T-1", **parent}
        run = made(tmp_path, name, run_json=json.dumps(record).encode())
        who = {**own_identity(), "boot_id": "before"}
        journal.append(run / "journal.jsonl", "launched", name, trainer=who, shim=who, launcher=who)
        # The first one came to step 40; a heartbeat of the others tells where they began.
        journal.append(run / "journal.jsonl", "heartbeat", name, global_step=40)
        age(run)
    for marker in names[:3]:
        (tmp_path / LIVE / marker).unlink()
    (look,) = inspection.one_pass(tmp_path)
    (found,) = look.findings
    assert (found.cause, found.verdict) == ("crash_loop", SICK)
    assert found.evidence.startswith("3 starts in a row without a new step")


@pytest.mark.parametrize("tells_steps", [False, True])
def test_a_run_whose_sidecar_takes_no_pattern_from_edited_records_is_unknown(tmp_path: Path, tells_steps: bool) -> None:
    """No step is read any more, though the trainer may print them; one that journals its steps is seen all the same."""
    run = made(tmp_path, "T-1_run_20261122-1735")
    more = {} if tells_steps else {"source": "log"}
    edited = ("warning", {"kind": "records_edited", "message": "its run.json was edited"})
    journal_of(run, ("step", {"step": 3, "loss": 0.5, **more}), edited)
    (look,) = inspection.one_pass(tmp_path)
    assert ("its sidecar reads no steps" in look.note) is (look.verdict == inspection.UNKNOWN) is not tells_steps


@pytest.mark.fault("E8", by="observe.py: log_ooms")
def test_memory_is_read_out_of_the_logs_last_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_hangs", lambda *_: True)
    run = made(tmp_path, "T-1_run_20261122-1735")
    (run / "logs").mkdir()
    line = b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
    (run / "logs" / "output.log").write_bytes(b"fine\n" * 100_000 + line * 3 + b"\xff\0" * 100_000)
    journal_of(run, ("step", {"step": 3, "loss": 0.5}))
    assert [one.cause for one in inspection.one_pass(tmp_path)[0].findings] == []  # far behind the last 64 KiB
    with open(run / "logs" / "output.log", "ab") as log:
        log.write(b"\n" + line * 3)
    assert [one.cause for one in inspection.one_pass(tmp_path)[0].findings] == ["oom"]
    os.utime(run / "logs" / "output.log", (1.0, 1.0))
    assert inspection.one_pass(tmp_path)[0].findings == ()


@pytest.mark.fault("A17", by="clock_gap.py: clock_gap")
def test_a_machine_that_slept_is_journaled_by_the_sidecar() -> None:
    said: list[tuple[str, dict[str, Any]]] = []

    def append(kind: str, /, **fields: Any) -> bool:
        said.append((kind, fields))
        return True

    wakefulness = ClockGap()
    for now_s in (100.0, 100.25, 101.0, 101.0 + GAP_S, 30_000.0, 30_000.25):
        wakefulness.beat(now_s, append)
    assert [(kind, fields["kind"]) for kind, fields in said] == [("warning", CLOCK_GAP)]
    assert said[0][1]["seconds"] == 30_000.0 - 101.0 - GAP_S


def test_the_time_of_a_pause_is_journaled_once_when_it_is_over() -> None:
    said: list[dict[str, Any]] = []

    def append(_event: str, /, **fields: Any) -> bool:
        said.append(fields)
        return len(said) > 1  # the disk is full at first

    wakefulness = ClockGap()
    for now_s, is_paused in ((1.0, False), (2.0, True), (50.0, True), (60.0, False), (61.0, False), (62.0, False)):
        wakefulness.rest(now_s, append, is_paused=is_paused)
    assert [(fields["kind"], fields["seconds"]) for fields in said] == [(CLOCK_GAP, 58.0), (CLOCK_GAP, 59.0)]


def test_the_second_look_keeps_only_what_both_have_seen() -> None:
    hang, bad = Finding("hang", SICK, "no step"), Finding("nonfinite", SICK, "loss nan")
    disk = Finding("disk", WARNING, "full")
    first, second = Report("r", "running", SICK, findings=(hang,)), Report("r", "running", SICK, findings=(bad, disk))
    assert inspection.confirmed(first, second) == second._replace(findings=(disk,), verdict=WARNING)
    assert inspection.confirmed(first, first) == first
    assert inspection.confirmed(first, second._replace(verdict=HEALTHY, findings=())).verdict == HEALTHY


def test_no_control_character_of_a_run_reaches_the_terminal() -> None:
    text = inspection.as_text([Report("r", "running", SICK, findings=(Finding("eval", SICK, "\x1b[2J\nboom"),))])
    assert text.isprintable()
    assert "boom" in text


def test_without_runs_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert inspection.one_pass(tmp_path) == []
    assert inspection.as_text([]) == ""
    (tmp_path / LIVE).write_text("")
    with pytest.raises(KitError, match="cannot be read"):
        inspection.one_pass(tmp_path)


@pytest.mark.parametrize("word", ["--every=0", "--every=x", "--every=", "--only=../x", "--only=", "--stop", "--runs="])
def test_a_wrong_word_is_a_usage_error(word: str) -> None:
    with pytest.raises(UsageError):
        command.parse(["--observe", word])


def test_a_file_system_that_makes_inodes_as_it_goes_has_not_run_out_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result([*real[:5], 0, 0, 0, *real[8:]]))
    run = made(tmp_path, "T-1_run_20261122-1735")
    journal_of(run, ("step", {"step": 3, "loss": 0.5}))
    assert inspection.one_pass(tmp_path)[0].verdict == HEALTHY
    assert observe.MAX_ANCESTORS >= 1


def test_a_misspelt_experiment_is_said_and_not_taken_for_a_healthy_one(kit: Kit) -> None:
    kit.config()
    kit("run", "T-1")
    said = kit("abort-watch", "--observe", "T-1", "T-O1", code=2).stderr
    assert f"there is no run of 'T-O1' in '{plain(str(kit.runs))}'" in said and "'T-1'" not in said


# The ancestors' speed

STEP_S = {"parent": 0.1, "child": 0.25}


def stepped(run: Path, first: int, steps: int, step_s: float, last_s: float) -> list[dict[str, Any]]:
    """Return a journal's steps at an even speed, the last one at `last_s` of the monotonic clock."""
    begun_s = last_s - steps * step_s
    return [
        {"event": "step", "at": utc_now(), "mono_s": begun_s + number * step_s, "run_id": run.name,
         "step": first + number, "loss": 0.5 + 0.01 * (number % 7)}
        for number in range(1, steps + 1)
    ]  # fmt: skip


def write_events(run: Path, *lines: dict[str, Any]) -> None:
    with open(run / "journal.jsonl", "a") as file:
        file.writelines(f"\n{json.dumps(line)}\n" for line in lines)


@pytest.mark.fault("E1", by="observe.py: lineage_speed, the ancestors' usual speed")
@pytest.mark.parametrize(
    ("of_parent", "expected"),
    [
        ({}, ["throughput"]),
        ({"config_hash": "another"}, []),
        ({"host": "elsewhere"}, []),
        ({"owner": "65534"}, []),
        ({"nproc": 2}, []),
    ],
    ids=["the same", "another config", "another host", "another user's", "another number of ranks"],
)
def test_a_run_that_is_slow_from_its_first_step_is_measured_by_its_parent(
    tmp_path: Path, of_parent: dict[str, Any], expected: list[str]
) -> None:
    """Its own usual speed is the slow one; the parent's, ten steps a second, stands in that one's saved fold alone."""
    now_s = time.monotonic()
    if now_s < 240:
        pytest.skip("the machine was started less than four minutes ago: its clock has no such past")
    limits, other_ranks = (
        json.dumps({"abort": {"throughput_minutes": 2}, "trainer": {"launcher": {"nproc": nproc}}}).encode()
        for nproc in (1, of_parent.get("nproc", 1))
    )
    record = {"host": processes.host_name(), "experiment": "T-1", "config_hash": "h"}
    names = {"parent": "T-1_run_20261122-1735", "child": "T-1_run_resume@40_20261122-1835"}
    parent_json = json.dumps({**record, "run_id": names["parent"], **of_parent}).encode()
    parent = made(tmp_path, names["parent"], run_json=parent_json, resolved_config_json=other_ranks)
    before = {**own_identity(), "boot_id": "before"}
    journal.append(parent / "journal.jsonl", "launched", parent.name, trainer=before, shim=before, launcher=before)
    state = fold({}, stepped(parent, 0, 4000, STEP_S["parent"], 1000.0))
    size = (parent / "journal.jsonl").stat().st_size
    Account(open_run(parent)).write({"journal_offset": size, "state": state})
    (tmp_path / LIVE / parent.name).unlink()
    if "owner" in of_parent:
        if os.geteuid() != 0:
            pytest.skip("needs root to give a file away")
        os.chown(parent / "run.json", int(of_parent["owner"]), -1)

    child_json = json.dumps({**record, "run_id": names["child"], "parent_run_id": parent.name, "parent_step": 40})
    child = made(tmp_path, names["child"], run_json=child_json.encode(), resolved_config_json=limits)
    journal_of(child)
    write_events(child, *stepped(child, 40, 900, STEP_S["child"], now_s))
    (look,) = inspection.one_pass(tmp_path)
    assert (look.run_id, [one.cause for one in look.findings]) == (child.name, expected), look.evidence
    if expected:
        # Levels of 4.4 % are what a speed is remembered by.
        assert observe.lineage_speed(open_run(child), RunTable(tmp_path)) == pytest.approx((10.0, 10.0), rel=0.05)
        assert "usual are 9.9" in look.evidence or "usual are 10" in look.evidence


def test_before_the_first_run_there_is_nothing_to_look_at_and_no_error(kit: Kit):
    """A lab that has set up cron before its first start gets no mail each minute."""
    argv = ["abort-watch.sh", "--config", str(kit.config_file)]
    for switches in ([], ["--observe"]):
        done = subprocess.run(
            [ROOT / "bin" / argv[0], *argv[1:], *switches], env=kit.env, capture_output=True, text=True
        )
        said = f"abort-watch.sh: there is no runs folder '{plain(str(kit.runs))}' yet: the first start makes it\n"
        assert (done.returncode, done.stdout, done.stderr) == (0, "", said)
    done = subprocess.run([ROOT / "bin" / argv[0], *argv[1:], "--log"], env=kit.env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not kit.runs.exists()
