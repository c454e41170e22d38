"""What is progress, what is life, and when an observer knows nothing: the hang rule and what it is told."""

from __future__ import annotations

import json
import os
import pty
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resumekit.base.paths import RunPaths
from resumekit.process import sidecar_warnings
from resumekit.process.sidecar_warnings import NewCheckpoints
from resumekit.run.journal_fold import fold
from resumekit.run.run_folder import Run, open_run
from resumekit.run.run_table import RunTable
from resumekit.watch import inspection, observe, rules
from resumekit.watch.inspection import HEALTHY, UNKNOWN
from resumekit.watch.observe import BEHIND_S, Observer
from resumekit.watch.rules import SICK, Limits, Observation
from support.commands import Kit, sidecar_of
from support.followed_logs import Lab
from support.journal_events import event, steady
from support.places import TOY
from support.processes import wait_until
from support.recoveries import configure
from support.runs import events
from support.toy_trainer import write_checkpoint

MINUTE = 60.0
LIMIT_S = Limits().hang_minutes * MINUTE


# the rule


# One step a second for an hour; what follows is folded on top of it.
STEADY = fold({}, [event("launched", 0.0), *steady(1, 3600, 0.0)])


@settings(deadline=None)
@given(
    stepped=st.integers(0, 90),
    checkpoint=st.none() | st.integers(0, 90),
    text=st.none() | st.integers(0, 90),
    reads_steps=st.booleans(),
    is_behind=st.booleans(),
    beats=st.booleans(),
    shows_same_step=st.booleans(),
    renewed=st.none() | st.integers(0, 90),
)
def test_only_progress_forbids_a_hang_and_life_alone_never_does(
    stepped: int, checkpoint: int | None, text: int | None, reads_steps: bool, is_behind: bool, beats: bool,
    shows_same_step: bool, renewed: int | None,
) -> None:  # fmt: skip
    """Over all that can be seen of a run that lives: its last step, checkpoint, text, each so many minutes ago.

    Life is: heartbeats and log lines that tell the same step again, and a process (the run is 'running').
    """
    begin_s = 3600.0
    now_s = begin_s + 91 * MINUTE
    told = [event("step", now_s - stepped * MINUTE, step=3601, loss=0.5)]
    if checkpoint is not None:
        told.append(event("checkpoint", now_s - checkpoint * MINUTE, step=3500, writer="sidecar", size=1))
    for number in range(91 - stepped):
        at_s = now_s - stepped * MINUTE + number * MINUTE
        if at_s < now_s and beats:
            told.append(event("heartbeat", at_s, global_step=3601, loss=0.5))
        if at_s < now_s and shows_same_step:
            told.append(event("step", at_s, step=3601, loss=0.5, source="log"))
    seen_s = [now_s - age * MINUTE for age in (text if not reads_steps else None, renewed) if age is not None]
    sight = Observation(now_s, "running", behind="it is" if is_behind else "", progress_s=max(seen_s, default=None))
    state = fold(STEADY, sorted(told, key=lambda one: one["mono_s"]))
    found = [one.cause for one in rules.findings(state, Limits(), sight) if one.verdict == SICK]
    idle = min(age for age in (stepped, checkpoint, renewed, None if reads_steps else text) if age is not None)
    stood_s = min(2 * LIMIT_S, 2 * state.get("longest_stand_s", 0.0))
    is_hung = idle * MINUTE > max(LIMIT_S, stood_s) and not is_behind
    assert ("hang" in found) is is_hung


@pytest.mark.parametrize("rule", ["hang", "eval", "save", "throughput", "oom"])
def test_nothing_that_goes_by_an_age_is_said_while_the_observer_is_behind(rule: str) -> None:
    told = [event("launched", 0.0), *steady(1, 3600, 0.0)]
    end_s = 3600.0 + 2 * 3600.0
    if rule == "eval":
        told.append(event("phase", 3601.0, phase="fast_eval"))
    if rule == "save":
        told.append(event("phase", 3601.0, phase="checkpoint"))
    if rule == "oom":
        told += [event("oom", end_s - number, step=3600) for number in range(5, 0, -1)]
    if rule == "throughput":
        told += [event("step", 3600.0 + 5 * number, step=3600 + number, loss=0.5) for number in range(1, 1440)]
    state = fold({}, told)
    sight = Observation(end_s, "running", log_ooms=9 if rule == "hang" else 0)
    assert any(one.verdict == SICK for one in rules.findings(state, Limits(), sight))
    found = rules.findings(state, Limits(), sight._replace(behind="it is"))
    assert not [one for one in found if one.verdict == SICK]


def test_a_loss_that_is_not_finite_needs_no_age() -> None:
    state = fold({}, [event("launched", 0.0), event("step", 1.0, step=1, loss="nan")])
    (found,) = rules.findings(state, Limits(), Observation(9e5, "running", behind="it is"))
    assert found.cause == "nonfinite"


# what the observer says of itself


def account_of(tmp_path: Path, printed: int, **fields: Any) -> str:
    """Return what is said of an observer at second 1000 with this account, `printed` bytes of log being there."""
    paths = RunPaths(tmp_path / "run")
    paths.logs.mkdir(parents=True)
    paths.output_log.write_bytes(b"x" * printed)
    if fields:
        paths.sidecar_state.write_text(json.dumps({"run_id": "run", **fields}))
    run = Run(paths, {"run_id": "run"})
    return observe.observer_is_behind(run, observe.read_observer(run), {"launched": {"mono_s": 1.0}}, 1000.0)


@pytest.mark.parametrize(
    ("printed", "account", "is_behind"),
    [
        (100, {"read_offset": 100, "mono_s": 998.0, "caught_up_s": 998.0}, False),
        (900, {"read_offset": 100, "mono_s": 998.0, "caught_up_s": 998.0}, False),  # printed since the account
        (900, {"read_offset": 100, "mono_s": 998.0, "caught_up_s": 900.0}, True),  # a flood, a disk that is full
        (100, {"read_offset": 100, "mono_s": 900.0, "caught_up_s": 900.0}, True),  # a sidecar that stands still
        (0, {"read_offset": 0, "mono_s": 1000.0 - BEHIND_S, "caught_up_s": 1000.0 - BEHIND_S}, False),
        (900, {}, True),  # no sidecar ever followed it
        (0, {}, False),
        (900, {"read_offset": "x", "mono_s": True, "caught_up_s": None}, True),  # no account
        (100, {"output_offset": 100}, False),  # one of an older kit, all of it read
        (900, {"output_offset": 100}, False),  # the same, and new
    ],
)
def test_when_an_observer_is_behind(tmp_path: Path, printed: int, account: dict, is_behind: bool) -> None:
    assert bool(account_of(tmp_path, printed, **account)) is is_behind


def test_what_is_said_of_an_observer_that_is_behind(tmp_path: Path) -> None:
    assert account_of(tmp_path, 900, read_offset=100, mono_s=700.0, caught_up_s=690.0) == (
        "the sidecar has read to byte 100 of 900, its account is 5 min old: nothing can be said of its speed"
    )


def test_an_account_of_another_run_is_none(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.sidecar_state.write_text(json.dumps({"run_id": "another", "read_offset": 5, "mono_s": 1.0}))
    assert observe.read_observer(Run(paths, {"run_id": "run"})) == Observer()


def test_an_account_of_an_older_kit_that_is_old_tells_by_what_is_unread(tmp_path: Path) -> None:
    said = account_of(tmp_path, 900, output_offset=100)
    assert said == ""
    path = RunPaths(tmp_path / "run").sidecar_state
    os.utime(path, (time.time() - 300, time.time() - 300))
    run = Run(RunPaths(tmp_path / "run"), {"run_id": "run"})
    assert "read to byte 100 of 900" in observe.observer_is_behind(run, observe.read_observer(run), {}, 1000.0)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "run")
    yield made
    made.trainer.close()


def test_a_flood_leaves_the_follower_behind_until_it_has_caught_up(lab: Lab) -> None:
    lab.steps()
    lab.prints(b"waiting for data\n" * 1_000_000)
    before = lab.log.account["caught_up_s"]
    lab.log.pump(0.0)
    lab.log.pump(0.0)
    assert lab.log.left_bytes and lab.log.account["caught_up_s"] <= before + 1
    now = time.monotonic()
    while lab.log.left_bytes:
        lab.log.pump(1.0)
    lab.log.pump(1.0)
    assert lab.log.account["caught_up_s"] >= now


def test_a_trainer_that_prints_all_the_time_leaves_no_follower_behind(lab: Lab) -> None:
    """There is always something that is unread; what counts is whether all of some moment ago was read."""
    for _ in range(20):
        before = time.monotonic()
        lab.prints(b"waiting for data\n" * 1000)
        lab.log.pump(0.0)
        lab.prints(b"waiting for data\n")
    assert lab.log.left_bytes and lab.log.account["caught_up_s"] >= before


# progress bars


def shown(lab: Lab, *writes: bytes) -> list[list[int]]:
    """Return the steps that are found after each write, with two looks: what stands still in between is whole."""
    found = []
    for text in writes:
        lab.prints(text)
        found.append([one for _ in range(2) for one in lab.steps()])
    return found


@pytest.mark.parametrize(
    ("pattern", "writes", "steps"),
    [
        (r"([0-9]+)/2000 \[", [b"\r  3%|\xe2\x96\x8e  | 60/2000 [00:36<19:24, 1.67it/s]", b"\r| 61/2000 [00:37<"],
         [[60], [61]]),
        ("step ([0-9]+)", [b"step 1", b"2", b" loss 0.5", b"\nstep 13"], [[1], [12], [12], [12, 13]]),
        ("step ([0-9]+)", [b"\x1b[2K\r\x1b[32mstep 7\x1b[0m", b"\x1b[2K\r\x1b[32mstep 8\x1b[0m"], [[7], [8]]),
        ("step ([0-9]+)", [b"\r\x1b[2Kepoch 1\n\r\x1b[2Kstep 5", b"\r\x1b[2K\x1b[1A\x1b[2Kepoch 1\n\r\x1b[2Kstep 6"],
         [[5], [6]]),
        ("step ([0-9]+)", [b"step 5\r", b"step 6\r"], [[5], [6]]),
        (r"([0-9]+)/9", [b"\rrank 0: 3/9 [\rrank 1: 3/9 [", b"\rrank 0: 4/9 [\rrank 1: 4/9 ["], [[3, 3], [4, 4]]),
        (r"([0-9]+)/9", [b"\r3/9 [00:10]", b"\r3/9 [00:20]", b"\r3/9 [00:30]"], [[3], [3], [3]]),
        ("step ([0-9]+)", [b"waiting ", b"for ", b"data"], [[], [], []]),
    ],
)  # fmt: skip
def test_the_step_of_a_line_without_its_end_is_read(lab: Lab, pattern: str, writes: list[bytes], steps: Any) -> None:
    lab.paths.resolved_json.write_text(json.dumps({"trainer": {"log_patterns": {"step": pattern}}}))
    lab.run = Run(lab.paths, lab.run.record)
    lab.log = lab.follower({})
    assert shown(lab, *writes) == steps


def test_a_number_that_has_come_in_part_is_no_step(lab: Lab) -> None:
    """Else 1, 10 and 100 of 1000 would be steps of an epoch that begins anew."""
    lab.prints(b"\rstep 999")
    assert (lab.steps(), lab.steps()) == ([], [999])
    lab.prints(b"\rstep 1")
    assert lab.steps() == []
    lab.prints(b"000")
    assert (lab.steps(), lab.steps()) == ([], [1000])


def test_another_text_counts_and_the_same_again_does_not(lab: Lab) -> None:
    lab.prints(b"epoch 1\nepoch 2\n")
    lab.steps()
    first = lab.log.account["text_s"]
    assert first is not None
    lab.prints(b"epoch 2\nepoch 2\n\n")
    lab.steps()
    assert lab.log.account["text_s"] == first
    lab.prints(b"epoch 3\n")
    lab.steps()
    assert lab.log.account["text_s"] > first
    assert lab.follower(lab.log.account).account["text_s"] == lab.log.account["text_s"]


def line_is_new(lab: Lab, text: bytes) -> bool:
    """Whether a print counts as a line of steps that differs from the one before it."""
    before = lab.log.account["step_line_s"]
    lab.prints(text)
    for _ in range(2):  # what stands still in between is whole
        lab.steps()
    return lab.log.account["step_line_s"] != before


@pytest.mark.parametrize(
    ("pattern", "writes"),
    [
        (r"\[([0-9]+)/200\]", [b"[100/200] loss 0.9\n", b"[200/200] loss 0.8\n", b"[100/200] loss 0.7\n",
                             b"[200/200] loss 0.6\n"]),
        (r"([0-9]+)/1000 ", [b"\r1000/1000 [00:05, 20it/s]\n", b"\r1000/1000 [00:05, 19it/s]", b"\r1000/1000 [00:06"]),
        ("step ([0-9]+)", [b"step 14\n", b"step 1.15k\n", b"step 1.16k\n"]),
    ],
)  # fmt: skip
def test_a_line_of_steps_that_differs_is_progress_whatever_its_number(
    lab: Lab, pattern: str, writes: list[bytes]
) -> None:
    lab.paths.resolved_json.write_text(json.dumps({"trainer": {"log_patterns": {"step": pattern}}}))
    lab.run = Run(lab.paths, lab.run.record)
    lab.log = lab.follower({})
    assert [line_is_new(lab, text) for text in writes] == [True] * len(writes)
    assert not line_is_new(lab, b"\rstill waiting |")
    assert not line_is_new(lab, b"\rstill waiting /\n")


def test_the_same_line_of_steps_for_ever_is_no_progress_nor_is_one_that_is_read_again(lab: Lab) -> None:
    assert line_is_new(lab, b"step 7 loss 0.5\n")
    assert not line_is_new(lab, b"step 7 loss 0.5\nnoise\nstep 7 loss 0.5\n")
    lab.log = lab.follower(lab.log.account)
    assert not line_is_new(lab, b"step 7 loss 0.5\n")
    account = lab.log.account
    lab.log = lab.follower({**account, "output_offset": 0, "step_line": None})
    lab.steps()
    assert lab.log.account["step_line_s"] == account["step_line_s"]


def test_a_bar_that_stands_is_no_progress_though_its_clock_goes_on(lab: Lab) -> None:
    assert line_is_new(lab, b"\rstep 7/9 [00:10<00:20, 1.6it/s]")
    assert not line_is_new(lab, b"\rstep 7/9 [01:00:12<00:22, 1.6it/s]")
    assert line_is_new(lab, b"\rstep 8/9 [01:00:12<00:22, 1.6it/s]")


def test_a_line_of_steps_forbids_a_hang_where_the_trainer_tells_no_steps_itself() -> None:
    account, told = Observer(100, 5.0, 5.0, text_s=950.0, saved_s=700.0, step_line_s=900.0), {"has_stepped": True}
    assert observe._progress_s(None, told, None, account) == 900.0
    assert observe._progress_s(None, {**told, "tells_steps": True}, None, account) == 700.0


# checkpoints


def test_a_checkpoint_that_is_new_or_renewed_is_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(RunPaths(tmp_path), {"run_id": tmp_path.name})
    folder = run.paths.checkpoints
    write_checkpoint(folder / "hrm_arc_step_2.pt", 2)
    looker, clock = NewCheckpoints(run, {}), 100.0

    def look() -> float | None:
        nonlocal clock
        clock += sidecar_warnings.SAVES_LOOK_S
        looker.look(clock)
        return looker.account["saved_s"]

    assert look() is None  # it was there before
    (folder / "notes.txt").write_text("no checkpoint")
    (folder / "hrm_arc_step_2.pt.json").write_text("{}")
    assert look() is None
    (folder / "hrm_arc_step_4.pt").write_bytes(b"of a form that cannot be read")
    assert look() == clock
    assert look() == clock - sidecar_warnings.SAVES_LOOK_S
    (folder / "hrm_arc_best.pt").mkdir()
    assert look() == clock
    os.utime(folder / "hrm_arc_step_2.pt", (5, 5))  # renewed in its place, by a clock that is wrong
    assert look() == clock
    os.unlink(folder / "hrm_arc_step_2.pt")
    assert look() == clock - sidecar_warnings.SAVES_LOOK_S
    assert NewCheckpoints(run, looker.account).account == looker.account


def test_a_checkpoint_that_is_newer_is_progress_in_the_journal_too() -> None:
    told = [event("launched", 0.0), *steady(1, 100, 0.0), event("checkpoint", 900.0, step=1, writer="sidecar", size=1)]
    assert fold({}, told)["active_mono_s"] == 900.0
    again = event("checkpoint", 1900.0, step=1, writer="sidecar", size=1)
    assert fold({}, [*told, again])["active_mono_s"] == 900.0


# real runs


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def last_step(run: Path) -> int:
    return max((one["step"] for one in events(run, "step")), default=0)


def look(kit: Kit, run: Path) -> inspection.Report:
    return inspection.look_at(kit.runs, run.name)


@pytest.fixture
def quick(kit: Kit) -> Kit:
    kit.config(
        "--delay", "0.05", training={"max_steps": 100_000}, abort={"hang_minutes": 0.05, "grace_s": 5},
    )  # fmt: skip
    return kit


def test_a_trainer_whose_sidecar_stands_still_is_no_hang_and_the_hang_is_found_later(
    quick: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A healthy one was stopped: "no step since 299", while its own log said 978."""
    monkeypatch.setattr(observe, "BEHIND_S", 3.0)
    quick.config(
        "--delay", "0.05", "--at", "130", "hang", training={"max_steps": 100_000}, abort={"hang_minutes": 0.04},
    )  # fmt: skip
    quick("run", "T-1", "--detach")
    run = quick.started()
    wait_until(lambda: last_step(run) > 5, "it trains")
    sidecar = sidecar_of(quick, run)
    os.kill(sidecar, signal.SIGSTOP)
    stood_at = last_step(run)
    seen = wait_until(lambda: (one := look(quick, run)).verdict == UNKNOWN and one, "the sidecar is behind")
    time.sleep(0.04 * MINUTE)
    assert look(quick, run).verdict == UNKNOWN
    assert SICK not in [one.verdict for one in seen.findings] and seen.state == "running"
    assert last_step(run) == stood_at
    assert "the sidecar has read to byte" in seen.evidence and "nothing can be said of its speed" in seen.evidence
    os.kill(sidecar, signal.SIGCONT)
    wait_until(lambda: last_step(run) == 130, "it has caught up, to where the trainer hangs")
    found = wait_until(lambda: (one := look(quick, run)).verdict == SICK and one, "and that is found")
    assert [one.cause for one in found.findings] == ["hang"]


def test_a_run_whose_sidecar_is_dead_gets_another_while_nothing_can_be_said_of_it(
    quick: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resumekit.watch import acting

    quick("run", "T-1", "--detach")
    run = quick.started()
    wait_until(lambda: (run / ".sidecar.json").exists() and last_step(run) > 5, "it trains, and there is an account")
    (launched,) = events(run, "launched")
    os.kill(launched["launcher"]["pid"], signal.SIGKILL)
    os.kill(sidecar_of(quick, run), signal.SIGKILL)
    for pid in [p for p in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_sidecar_supervisor(p, quick, run)]:
        os.kill(pid, signal.SIGKILL)
    monkeypatch.setattr(observe, "BEHIND_S", 1.0)
    seen = wait_until(lambda: (one := look(quick, run)).verdict == UNKNOWN and one, "no sidecar")
    monkeypatch.setenv("RESUMEKIT_TEST_MARK", quick.mark)
    deeds = acting.act(quick.runs, [seen])
    assert [one.words for one in deeds] == ["it had no sidecar any more: it has one now"]
    monkeypatch.setattr(observe, "BEHIND_S", 20.0)
    wait_until(lambda: look(quick, run).verdict == HEALTHY, "it is followed again")


def _is_sidecar_supervisor(pid: int, kit: Kit, run: Path) -> bool:
    """Whether a process is a Bash of this run's launcher: what would start another sidecar."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"launcher.sh" in words and kit.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


BAR = """
import sys, time
for step in range(1, 10**6):
    sys.stdout.write(f"\\r{step / 1e4:3.0f}%|###   | {step}/1000000 [00:01<00:02, 99.9it/s]")
    sys.stdout.flush()
    time.sleep(0.1)
    if step == int(sys.argv[1]):
        while True:
            sys.stdout.write(f"\\r  0%|###   | {step}/1000000 [00:{time.time():.0f}<00:02, 99.9it/s]")
            sys.stdout.flush()
            time.sleep(0.1)
"""


def test_a_progress_bar_without_a_newline_is_followed_and_one_that_stands_is_a_hang(quick: Kit) -> None:
    """It was stopped as hung after hang_minutes, and begun again from 0."""
    script = quick.folder / "bar.py"
    script.write_text(BAR)
    quick.config(
        trainer={"command": ["{python}", str(script), "50"], "log_patterns": {"step": r"\| *([0-9]+)/[0-9]+ \["}},
        training={"max_steps": 10**6}, abort={"hang_minutes": 0.04},
    )  # fmt: skip
    quick("run", "T-1", "--detach")
    run = quick.started()
    while last_step(run) < 50:  # five seconds, twice the limit
        assert look(quick, run).verdict == HEALTHY
        time.sleep(0.1)
    assert b"\n" not in (run / "logs" / "output.log").read_bytes()
    wait_until(lambda: [one.cause for one in look(quick, run).findings] == ["hang"], "a bar that stands")


def test_another_text_is_progress_where_no_pattern_reads_steps(kit: Kit) -> None:
    """A resumed run of a trainer that tells no step was stopped after twice the limit, whatever it printed."""
    paths = RunPaths(kit.runs / "run")
    paths.logs.mkdir(parents=True)
    state = {"launched": None, "resumed_step": 5}
    account = Observer(100, 5.0, 5.0, text_s=900.0, saved_s=700.0)
    run, table = Run(paths, {"run_id": "run"}), RunTable(kit.runs)
    assert observe._progress_s(run, state, table, account) == 900.0
    assert observe._progress_s(run, {**state, "has_stepped": True}, table, account) == 700.0
    assert observe._progress_s(run, {**state, "tells_phases": True}, table, account) == 700.0
    told = fold({"resumed_step": 5}, [event("launched", 0.0)])
    sight = Observation(2.5 * LIMIT_S, "running", parent_stepped=True)
    assert [one.cause for one in rules.findings(told, Limits(), sight)] == ["hang"]
    assert not [
        one for one in rules.findings(told, Limits(), sight._replace(progress_s=2 * LIMIT_S)) if one.verdict == SICK
    ]


@pytest.mark.parametrize(
    ("parent", "patterns", "has_stepped", "is_judged"),
    [("P", "step ([0-9]+)", True, True), ("P", "step ([0-9]+)", False, False), ("P", "it ([0-9]+)", True, False),
     ("gone", "step ([0-9]+)", True, False), ("C", "step ([0-9]+)", True, True)],
)  # fmt: skip
def test_what_is_known_of_a_resumed_run_s_steps_by_those_that_it_came_from(
    tmp_path: Path, parent: str, patterns: str, has_stepped: bool, is_judged: bool
) -> None:
    """P; C, which came from P and was stopped before a step; N, which came from `parent` and has told none yet."""
    for name, came_from, pattern in (("P", None, patterns), ("C", "P", patterns), ("N", parent, "step ([0-9]+)")):
        paths = RunPaths(tmp_path / name)
        paths.logs.mkdir(parents=True)
        paths.run_json.write_text(json.dumps({"run_id": name, "parent_run_id": came_from}))
        trainer = {"loads_with_kit": False, "log_patterns": {"step": pattern}}
        paths.resolved_json.write_text(json.dumps({"trainer": trainer}))
    if has_stepped:
        told = {"event": "step", "run_id": "P", "mono_s": 1.0, "step": 5, "source": "log"}
        RunPaths(tmp_path / "P").journal.write_text(json.dumps(told) + "\n")
    assert observe.parent_stepped(open_run(tmp_path / "N"), RunTable(tmp_path)) is is_judged


@pytest.mark.parametrize(("loads_with_kit", "is_judged"), [(False, True), (True, False)])
def test_a_parent_that_told_its_steps_by_the_heartbeat_alone_shows_that_they_can_be_seen(
    tmp_path: Path, loads_with_kit: bool, is_judged: bool
) -> None:
    """Neither has a pattern; a parent that told them by the kit's helpers shows nothing of one that has none."""
    for name, came_from, loads in (("P", None, loads_with_kit), ("N", "P", False)):
        paths = RunPaths(tmp_path / name)
        paths.logs.mkdir(parents=True)
        paths.run_json.write_text(json.dumps({"run_id": name, "parent_run_id": came_from}))
        paths.resolved_json.write_text(json.dumps({"trainer": {"loads_with_kit": loads}}))
    beats = [{"event": "heartbeat", "run_id": "P", "mono_s": 60.0 * n, "global_step": 2 * n} for n in (1, 2)]
    RunPaths(tmp_path / "P").journal.write_text("".join(json.dumps(one) + "\n" for one in beats))
    assert observe.parent_stepped(open_run(tmp_path / "N"), RunTable(tmp_path)) is is_judged


EPOCHS = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from toy_trainer import write_checkpoint
folder, begun = Path(sys.argv[2]), int(sys.argv[3] if len(sys.argv) > 3 else 0)
for epoch in range(begun + 1, 6):
    for step in range(1, 4):
        print(f"{sys.argv[4] if len(sys.argv) > 4 else ''}step {step}/3", flush=True)
        time.sleep(0.02)
    write_checkpoint(folder / f"model_{epoch}.pt", epoch)
    if epoch - begun == 2:
        sys.exit(1)
"""


@pytest.mark.parametrize("pattern", ["step ([0-9]+)/", "never ([0-9]+)"])
def test_starts_that_leave_newer_checkpoints_are_not_fruitless(kit: Kit, pattern: str) -> None:
    """Steps that begin again in each epoch, or are told nowhere: every start of it brought two epochs."""
    script = kit.folder / "epochs.py"
    script.write_text(EPOCHS)
    configure(
        kit, trainer={
            "command": ["{python}", str(script), str(TOY.parent), "{checkpoints_dir}"],
            "resume_args": ["{step}"], "log_patterns": {"step": pattern}, "loads_with_kit": False,
        },
        checkpoint={"pattern": "model_{step}.pt", "every": 1}, training={"max_steps": 1000},
        recover={"backoff_s": 1, "max_attempts": 2, "replay_steps": 0},
    )  # fmt: skip
    kit("run", "T-1")
    runs = kit.run_dirs()
    assert len(runs) == 3 and (runs[-1] / "checkpoints" / "model_5.pt").exists()
    assert [events(run, "recovery")[-1]["attempt"] for run in runs] == [1, 1, 1]


def test_a_start_that_saves_what_was_saved_before_is_fruitless(tmp_path: Path) -> None:
    """It went back to an older checkpoint, and came no further than those before it."""
    starts = [observe._Start(40, 70, 60, 0), observe._Start(50, 70, 60, 0), observe._Start(0, 70, 50, 0)]
    old, observe._starts = observe._starts, lambda *_: starts
    try:
        assert observe.fruitless_starts(None, {}, None, 5) == 1
        starts.insert(0, observe._Start(60, 70, 60, 0))
        assert observe.fruitless_starts(None, {}, None, 5) == 2
    finally:
        observe._starts = old


class Terminal:
    """A terminal of its own, with a Bash whose jobs can be stopped, in which a command runs in the foreground."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        script = 'stty tostop; "$@"; echo "it came back"; while :; do sleep 0.1; done'
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.execve("/bin/bash", ["bash", "-mc", script, "bash", *argv], env)
        self.shown = b""
        threading.Thread(target=self._read, daemon=True).start()

    def types(self, keys: bytes) -> None:
        os.write(self.descriptor, keys)

    def _read(self) -> None:
        while True:
            try:
                self.shown += os.read(self.descriptor, 65536)
            except OSError:
                return

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def terminal(quick: Kit) -> Iterator[Terminal]:
    made = Terminal(quick.argv("run", "T-1"), quick.env)
    yield made
    made.close()


def test_a_launcher_that_is_stopped_at_its_terminal_leaves_the_sidecar_at_work(quick: Kit, terminal: Terminal) -> None:
    """Ctrl-Z stops the foreground's group; the sidecar goes on reading, and showing, with `stty tostop` too."""
    run = quick.started()
    wait_until(lambda: last_step(run) > 10, "it trains")
    (launched,) = events(run, "launched")
    terminal.types(b"\x1a")
    wait_until(lambda: state_of(launched["launcher"]["pid"]) == "T", "the launcher is stopped")
    wait_until(lambda: b"it came back" in terminal.shown, "the shell has its terminal again")
    goal = last_step(run) + 80  # four seconds, longer than the limit of the hang rule
    wait_until(lambda: last_step(run) > goal, "steps go on being read")
    seen = look(quick, run)  # the launcher that is stopped is named, and nothing is wrong with the training
    assert (seen.note, [one.cause for one in seen.findings if one.verdict == SICK]) == ("", [])
    wait_until(lambda: f"step {goal} ".encode() in terminal.shown, "and shown")
    os.killpg(os.getpgid(launched["launcher"]["pid"]), signal.SIGSTOP)
    goal = last_step(run) + 20
    wait_until(lambda: last_step(run) > goal, "nor does a stop of the whole group stop it")
    assert open_run(run).run_id == run.name and sys.version_info
