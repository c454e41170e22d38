"""bin/runs.sh --watch: the live runs first, then the newest, drawn again and again on a terminal that is given back."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import pytest

from resumekit.base import journal
from resumekit.run import listing, live_view
from resumekit.run.journal_fold import fold
from resumekit.run.live_view import LiveView
from resumekit.run.run_table import RunTable
from support.commands import Kit, killed
from support.places import LIVE
from support.processes import DEADLINE_S, wait_until
from support.runs import events
from support.schemas import assert_valid

ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


def finished(kit: Kit, name: str) -> Path:
    kit("run", "T-1", "--fresh", "--name", name, "--set", "training.max_steps=2")
    return kit.run_dirs()[-1]


def started(kit: Kit, name: str) -> Path:
    done = kit("run", "T-2", "--fresh", "--name", name, "--detach", env={"TOY_ARGS": "--delay 0.05 --steps 100000"})
    run = kit.runs / done.stdout.strip()
    wait_until(lambda: events(run, "step"), "a first step")
    return run


def names(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines[1:]]


def test_the_live_runs_stand_first_then_the_newest(kit: Kit):
    oldest, live = finished(kit, "oldest"), started(kit, "live")
    newest = finished(kit, "newest")
    view = LiveView(kit.runs)
    lines = view.picture(24)
    assert names(lines) == [live.name, newest.name, oldest.name]
    assert "1 live of 3 runs" in lines[0] and "running" in lines[1] and "finished" in lines[2]
    assert names(view.picture(4)) == [live.name, newest.name, "..."] and view.picture(4)[-1] == "... and 1 more"
    assert names(LiveView(kit.runs, "T-1").picture(24)) == [newest.name, oldest.name]
    assert names(LiveView(kit.runs, live.name).picture(24)) == [live.name]
    os.kill(events(live, "launched")[0]["launcher"]["pid"], signal.SIGTERM)
    wait_until(lambda: "0 live of 3" in view.picture(24)[0], "nothing lives any more")
    wait_until(lambda: not (kit.runs / LIVE / live.name).exists(), "its marker is gone")
    assert names(view.picture(24)) == [newest.name, live.name, oldest.name]


def test_a_run_whose_launcher_and_trainer_were_killed_stands_right_behind_the_live(kit: Kit):
    lost, newest = started(kit, "lost"), finished(kit, "newest")
    live = started(kit, "live")
    (launched,) = events(lost, "launched")
    for who in ("launcher", "shim", "trainer"):
        os.kill(launched[who]["pid"], signal.SIGKILL)
    view = LiveView(kit.runs)
    wait_until(lambda: "lost" in view.picture(24)[2], "the second line says that it is lost")
    assert names(view.picture(24)) == [live.name, lost.name, newest.name]


def test_a_finished_run_is_read_once_until_its_journal_grows(kit: Kit, monkeypatch: pytest.MonkeyPatch):
    run, other = finished(kit, "one"), finished(kit, "other")
    view, opened = LiveView(kit.runs), []
    real = live_view.open_run
    monkeypatch.setattr(live_view, "open_run", lambda folder: opened.append(folder.name) or real(folder))
    before = view.picture(24)
    assert sorted(set(opened)) == sorted([run.name, other.name])
    wait_until(lambda: time.time() - kit.runs.stat().st_mtime > live_view.GRAIN_S, "the folder is at rest")
    view.picture(24)
    opened.clear()
    assert view.picture(24)[1:] == before[1:] and opened == []
    journal.append(run / "journal.jsonl", "best", run.name, step=2, score=0.5)
    lines = view.picture(24)
    assert opened == [run.name]
    assert ["best 0.5000 at 2" in line for line in lines[1:]] == [run.name in line for line in lines[1:]]


def test_the_best_score_is_shown_with_the_name_of_its_metric(kit: Kit):
    """'best 0.0000 at 48' was the accuracy of a run whose best was chosen by its cells."""
    run = finished(kit, "one")
    config = json.loads((run / "resolved_config.json").read_text())
    named = "best cell_accuracy 0.5000 at 2"
    for metric, shown in (("cell_accuracy", named), (None, "best 0.5000 at 2"), ([], "best 0.5000")):
        config["validation"] = {"best_metric": metric}
        (run / "resolved_config.json").write_text(json.dumps(config))
        journal.append(run / "journal.jsonl", "best", run.name, step=2, score=0.5)
        table = RunTable(kit.runs)
        (row,) = listing.choose(table, run.name)
        assert shown in listing.as_text(table, [row]), metric
        assert_valid("status", row[1])
        assert row[1]["best_metric"] == (metric or None)


def test_of_two_thousand_folders_those_are_looked_at_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number in range(2_000):
        (tmp_path / f"MANY-{number % 10}_x_20261122-{number:04d}").mkdir()
    view, looked_at = LiveView(tmp_path), []
    real = LiveView._status
    monkeypatch.setattr(LiveView, "_status", lambda self, run: looked_at.append(run.run_id) or real(self, run))
    lines = view.picture(50)
    assert len(lines) == 50 and lines[-1] == "... and 1952 more" and len(looked_at) == 48
    assert "0 live of 2000 runs" in lines[0]


def test_runs_come_and_go_while_it_is_watched(tmp_path: Path):
    view = LiveView(tmp_path)
    assert len(view.picture(24)) == 1
    run = tmp_path / "T-1_a_20261122-1200"
    for _ in range(20):  # within the grain of the folder's time too
        run.mkdir()
        assert names(view.picture(24)) == [run.name]
        run.rmdir()
        assert names(view.picture(24)) == []
    assert len(view.picture(1)) == 1 and len(view.picture(0)) == 1


def test_a_run_without_a_sidecar_is_folded_on_from_where_the_last_look_was(kit: Kit, monkeypatch: pytest.MonkeyPatch):
    run = killed(kit)
    (run / ".sidecar.json").unlink()
    (kit.runs / LIVE / run.name).touch()
    view, read_from = LiveView(kit.runs), []
    real = journal.read
    monkeypatch.setattr(journal, "read", lambda path, offset=0: read_from.append(offset) or real(path, offset))
    first = view.picture(24)
    journal.append(run / "journal.jsonl", "best", run.name, step=2, score=0.25)
    second = view.picture(24)
    assert "best 0.2500 at 2" in second[1] and "best 0.2500" not in first[1] and "step 12/20" in second[1]
    assert read_from[0] == 0 and read_from[1] > 0
    assert view._folds[run.name][0] == fold({}, (event for event, _ in real(run / "journal.jsonl")))


class Terminal:
    """bin/runs.sh --watch on a terminal of its own."""

    def __init__(self, kit: Kit, *args: str, term: str = "xterm") -> None:
        self.screen, self._terminal = pty.openpty()
        self.resize(20, 100)
        self.modes = termios.tcgetattr(self._terminal)
        end = self._terminal
        self.process = subprocess.Popen(
            kit.argv("runs", "--watch", *args), env={**kit.env, "TERM": term}, stdin=end, stdout=end, stderr=end,
            start_new_session=True, preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self.seen = b""

    def resize(self, lines: int, columns: int) -> None:
        ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def read(self) -> bytes:
        while select.select([self.screen], [], [], 0.05)[0]:
            self.seen += os.read(self.screen, 1 << 16)
        return self.seen

    def until(self, wanted: bytes) -> None:
        wait_until(lambda: wanted in self.read(), f"{wanted!r} on the terminal")

    def end(self) -> int:
        code = self.process.wait(DEADLINE_S)
        self.read()
        return code

    def is_given_back(self) -> bool:
        return (
            self.seen.endswith(LEAVE) and b"\x1b[?25h" in self.seen and termios.tcgetattr(self._terminal) == self.modes
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)
        os.close(self._terminal)


@pytest.fixture
def terminal(kit: Kit) -> Iterator[Terminal]:
    finished(kit, "one")
    terminal = Terminal(kit)
    yield terminal
    terminal.close()


@pytest.mark.parametrize(("way", "code"), [("q", 0), ("\x03", 130), ("TERM", 143)])
def test_the_terminal_is_as_before_however_it_ends(terminal: Terminal, way: str, code: int):
    terminal.until(b"finished")
    assert ENTER in terminal.seen and b"\x1b[2J" not in terminal.seen, "nothing is cleared before it is drawn over"
    if way == "TERM":
        terminal.process.send_signal(signal.SIGTERM)
    else:
        os.write(terminal.screen, way.encode())
    # bash's own code for a signal is the process's own here: the shell has become it.
    assert terminal.end() == code and terminal.is_given_back()


def test_it_draws_anew_by_itself_and_when_the_window_changes(terminal: Terminal):
    terminal.until(b"finished")
    first = terminal.read().count(b"\x1b[H")
    wait_until(lambda: terminal.read().count(b"\x1b[H") >= first + 1, "another picture")
    terminal.seen = b""
    before = time.monotonic()
    terminal.resize(2, 30)
    terminal.until(b"\x1b[H")
    assert time.monotonic() - before < live_view.EVERY_S
    lines = terminal.seen.replace(b"\x1b[H", b"").split(b"\x1b[J")[0].split(b"\r\n")
    texts = [line.replace(b"\x1b[K", b"").strip().decode() for line in lines]
    assert len(texts) <= 2 and all(len(text) <= 30 for text in texts)
    assert len(texts[0]) == 30 and texts[0].endswith("…"), "what was cut says so"


def test_ctrl_z_gives_the_terminal_back_too(terminal: Terminal):
    terminal.until(b"finished")
    terminal.seen = b""
    # No shell could continue it here: the kernel then does not stop it either, and it goes on.
    terminal.process.send_signal(signal.SIGTSTP)
    terminal.until(ENTER)
    assert terminal.seen.index(LEAVE) < terminal.seen.index(ENTER)
    os.write(terminal.screen, b"q")
    assert terminal.end() == 0 and terminal.is_given_back()


def test_without_a_terminal_it_is_refused_in_a_sentence(kit: Kit):
    finished(kit, "one")
    refused = kit("runs", "--watch", code=2)
    assert refused.stdout == "" and "there is none: leave it out" in refused.stderr
    assert "one of them" in kit("runs", "--watch", "--json", code=2).stderr
    assert "there is no run of 'T-9'" in kit("runs", "T-9", "--watch", code=2).stderr
    dumb = Terminal(kit, term="dumb")
    assert dumb.end() == 2 and b"draws on a terminal" in dumb.seen and ENTER not in dumb.seen
    dumb.close()


def test_nothing_of_another_user_s_file_moves_the_cursor(kit: Kit):
    run = killed(kit)
    account = json.loads((run / ".sidecar.json").read_text())
    account["state"].update(best_eval_acc="\x1b[31m", step="\x1b[2J")
    (run / ".sidecar.json").write_text(json.dumps(account))
    terminal = Terminal(kit)
    terminal.until(run.name.encode())
    os.write(terminal.screen, b"q")
    assert terminal.end() == 0 and b"\x1b[31m" not in terminal.seen and b"\x1b[2J" not in terminal.seen
    terminal.close()
