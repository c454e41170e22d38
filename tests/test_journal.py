"""The journal: resumekit.base.journal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resumekit.base import journal
from resumekit.base.paths import RunPaths
from resumekit.run import listing
from resumekit.run.run_folder import open_run
from resumekit.run.run_table import RunTable
from support.commands import Kit
from support.places import LIB

WRITER = """
import sys; sys.path.append(sys.argv[1])
from pathlib import Path
from resumekit.base import journal
from resumekit.base.paths import RunPaths
for i in range(400):
    journal.append(Path(sys.argv[2]), "step", "r", step=i, writer=int(sys.argv[3]), text="x" * 3000)
"""


def read(path: Path, offset: int = 0) -> list[dict]:
    return [event for event, _ in journal.read(path, offset)]


def test_an_event_goes_in_and_comes_out(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal.append(path, "step", "run-1", step=3, loss=0.1 + 0.2, nested={"a": [1, None]})
    (event,) = read(path)
    assert list(event)[:4] == ["event", "at", "mono_s", "run_id"]
    assert (event["loss"], event["nested"], event["run_id"]) == (0.1 + 0.2, {"a": [1, None]}, "run-1")


def test_a_number_that_is_none_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal.append(path, "step", "r", loss=float("nan"), values=[float("inf"), float("-inf")])
    assert b"NaN" not in path.read_bytes()
    (event,) = read(path)
    assert (event["loss"], event["values"]) == ("nan", ["inf", "-inf"])


def test_no_field_takes_the_place_of_the_head(tmp_path: Path) -> None:
    """A trainer's payload may hold any name, also those of our own parameters."""
    path = tmp_path / "journal.jsonl"
    journal.append(
        path, "heartbeat", "r", **{"at": "never", "mono_s": -1, "path": "p", "event": "exited", "run_id": "x"}
    )
    (event,) = read(path)
    assert (event["event"], event["run_id"], event["path"]) == ("heartbeat", "r", "p")
    assert event["at"] != "never" and event["mono_s"] > 0


def test_a_torn_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'\n{"event":"step","st')  # its writer was killed, or its disk full
    journal.append(path, "exited", "r", code=0)
    assert [event["event"] for event in read(path)] == ["exited"]


def test_a_line_that_is_still_being_written_is_read_next_time(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal.append(path, "step", "r", step=1)
    with open(path, "ab") as file:
        file.write(b'\n{"event":"step","step":2')
        file.flush()
        *_, (_, offset) = journal.read(path)
        assert read(path, offset) == []
        file.write(b"}\n")
        file.flush()
    assert [event["step"] for event in read(path, offset)] == [2]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=6))
def test_foreign_bytes_between_events_lose_none(tmp_path_factory: pytest.TempPathFactory, between: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    for number, rubbish in enumerate(between):
        with open(path, "ab") as file:
            file.write(rubbish)
        journal.append(path, "step", "r", step=number)
    assert [event["step"] for event in read(path) if event.get("run_id") == "r"] == list(range(len(between)))


@pytest.mark.parametrize("line", ["[" * 100_000, '{"event":' * 50_000, "{" + "x" * 3_000_000, '{"event": 5}', "null"])
def test_a_hostile_line_is_passed_over(tmp_path: Path, line: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(line + "\n")
    journal.append(path, "step", "r", step=1)
    assert [event["step"] for event in read(path)] == [1]


def test_writers_beside_each_other_mix_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    argv = [sys.executable, "-S", "-c", WRITER, str(LIB), str(path)]
    writers = [subprocess.Popen([*argv, str(n)]) for n in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    found = read(path)
    for number in range(4):
        assert [e["step"] for e in found if e["writer"] == number] == list(range(400))
    assert all(json.loads(line) for line in path.read_text().splitlines() if line)


@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "device"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "journal.jsonl"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/full" if kind == "device" else tmp_path / "elsewhere")
    assert read(path) == []
    with pytest.raises(OSError):
        journal.append(path, "step", "r")
    assert not (tmp_path / "elsewhere").exists()


def test_what_must_survive_a_power_cut_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    for kind in ("launched", "checkpoint", "exited"):
        journal.append(tmp_path / "journal.jsonl", kind, "r")
    assert len(synced) == 3
    journal.append(tmp_path / "journal.jsonl", "step", "r")
    assert len(synced) == 3


def test_the_newest_event_of_a_kind_is_found_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert journal.newest(path, "abort") is None
    for number in range(3):
        journal.append(path, "abort", "run", cause="hang", number=number)
        journal.append(path, "step", "run", step=number, note='"event":"abort",')
    with open(path, "ab") as file:
        file.write(b'\n{"event":"abort","number":9')  # torn
    found = journal.newest(path, "abort")
    assert found is not None and found["number"] == 2
    assert journal.newest(path, "recovery") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file to another user")
def test_of_another_users_journal_no_more_than_a_bound_is_read_at_once(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be read whole is no run without a trainer: its state is unknown, and it is said why."""
    kit("run", "T-1")
    (run,) = kit.run_dirs()
    path = run / "journal.jsonl"
    RunPaths(run).sidecar_state.unlink()
    behind = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"\n" * 20_000)
    monkeypatch.setattr(journal, "MAX_FOREIGN_BYTES", 10_000)
    found = open_run(run)
    assert listing.state_of(found)["state"] == "finished", "one's own is read whole"
    os.chown(path, 65534, 65534)
    with pytest.raises(OSError, match="of another user's journal are not read"):
        read(path)
    assert len(read(path, behind + 15_000)) == 0, "what was read before does not count"
    assert next(journal.read(path))[0]["event"], "nor what is not asked for"
    seen = listing.state_of(found)
    assert seen["state"] == "unknown" and "of another user's journal are not read" in seen["last_warning"]
    assert "of another user's journal are not read" in listing.as_text(RunTable(kit.runs), [(found, seen)])


def test_a_hole_in_a_journal_costs_no_time_and_what_lies_behind_it_is_read(tmp_path: Path) -> None:
    """`truncate -s 15T` takes no disk: reading it would take hours."""
    path = tmp_path / "journal.jsonl"
    journal.append(path, "step", "run", step=1)
    os.truncate(path, path.stat().st_size + (1 << 33))
    begun = time.monotonic()
    assert [event["step"] for event in read(path)] == [1]
    journal.append(path, "step", "run", step=2)
    assert [event["step"] for event in read(path)] == [1, 2]
    assert [event["step"] for event in read(path, 4096)] == [2], "from within the hole"
    assert time.monotonic() - begun < 2.0


def test_zeros_of_a_power_cut_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal.append(path, "step", "run", step=1)
    with path.open("ab") as file:
        file.write(bytes(5 << 20))
    journal.append(path, "step", "run", step=2)
    assert [event["step"] for event in read(path)] == [1, 2]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file to another user")
def test_of_another_users_journal_a_long_stretch_without_an_event_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MAX_FOREIGN_GAP_BYTES", 10_000)
    path = tmp_path / "journal.jsonl"
    for step in range(200):
        journal.append(path, "step", "run", step=step)
    os.chown(path, 65534, 65534)
    assert len(read(path)) == 200 and path.stat().st_size > 10_000, "events are no such stretch"
    with path.open("ab") as file:
        file.write(b"\n" * 10_001)
    with pytest.raises(OSError, match="of another user's journal without an event are not read"):
        read(path)
    os.chown(path, os.geteuid(), os.getegid())
    assert len(read(path)) == 200
