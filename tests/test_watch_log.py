"""The watcher's own log: where it lies, how it is opened, and what is new enough for it."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from resumekit.base.errors import KitError, UsageError
from resumekit.run.run_table import RunTable
from resumekit.watch import command, inspection, watcher_files
from resumekit.watch.inspection import HEALTHY, PAUSED, Report
from resumekit.watch.rules import SICK, WARNING, Finding
from support import another_user
from support.commands import Kit
from support.places import LIVE, ROOT
from support.watched_runs import made

RUN = "T-1_run_20261122-1735"


def hang(minutes: int) -> Report:
    return Report(RUN, "running", SICK, findings=(Finding("hang", SICK, f"no step since 5, for {minutes} min"),))


DISK = Report(RUN, "running", WARNING, findings=(Finding("disk", WARNING, "3 MiB left"),))


def passes(path: Path, *looks_of_passes: list[Report], deeds: tuple[str, ...] = ()) -> list[str]:
    """Let one pass after the other write into a log, each with the memory of the one before; return its lines."""
    for looks in looks_of_passes:
        known = watcher_files.Memory(path.with_suffix(".json"))
        log = command.WatchLog(path, known)
        log.show([look for look in looks if look.verdict not in (HEALTHY, PAUSED)])
        for words in deeds:
            log.say(RUN, words)
        log.end(looks, lambda _run_id: True)
        known.save()
    return path.read_text().splitlines()


def test_a_finding_is_said_when_it_is_new_when_its_kind_changes_and_when_it_is_over(tmp_path: Path) -> None:
    well = Report(RUN, "running", HEALTHY)
    lines = passes(tmp_path / "log", [well], [hang(31)], [hang(32)], [hang(33)], [DISK], [DISK], [well], [well], [])
    assert [re.sub("^[0-9TZ:-]+  ", "", line) for line in lines] == [
        f"{RUN}  running  no step    sick  hang: no step since 5, for 31 min",
        f"{RUN}  running  no step    warning  disk: 3 MiB left",
        f"{RUN}: well now",
    ]
    assert all(re.match("20[0-9-]{8}T[0-9:]{8}Z  ", line) for line in lines)
    assert passes(tmp_path / "log", [DISK], [])[3:][1].endswith(f"{RUN}: not live any more")


def test_the_same_deed_in_the_next_pass_is_said_once_and_said_again_after_a_pass_without_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert len(passes(path, [hang(31)], [hang(32)], deeds=("stopping it: 31", "taking it up"))) == 3
    passes(path, [hang(33)])
    assert len(passes(path, [hang(34)], deeds=("taking it up",))) == 4


def test_a_log_that_begins_anew_has_what_still_holds(tmp_path: Path) -> None:
    path = tmp_path / "log"
    passes(path, [hang(31)])
    path.unlink()
    assert len(passes(path, [hang(32)])) == 1


def test_a_pass_that_fails_is_said_once_and_that_the_passes_go_on(tmp_path: Path) -> None:
    (tmp_path / LIVE).write_text("a file, for a while")
    for code in (1, 1, 1):
        assert command.main(["--log", "--quiet", f"--runs={tmp_path}"]) == code
    (tmp_path / LIVE).unlink()
    assert command.main(["--log", "--quiet", f"--runs={tmp_path}"]) == 0
    lines = watcher_files.of(tmp_path).log.read_text().splitlines()
    assert [line.partition("  ")[2] for line in lines] == [
        f"'{tmp_path / LIVE}' is to hold the live markers of this user's runs, and is no folder",
        "the passes go on",
    ]


@pytest.mark.parametrize("kind", ["a link", "a dangling link", "a FIFO", "a FIFO with a reader", "a hard link"])
def test_nothing_is_written_through_what_another_user_could_have_put_there(tmp_path: Path, kind: str) -> None:
    profile, log = tmp_path / "profile", tmp_path / ".watch.log"
    reader = None
    if kind != "a dangling link":
        profile.write_text("mine\n")
    if "FIFO" in kind:
        os.mkfifo(log)
        reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK) if "reader" in kind else None
    elif kind == "a hard link":
        os.link(profile, log)
    else:
        log.symlink_to(profile)
    with pytest.raises(KitError, match=r"the log '.*\.watch\.log'"):
        watcher_files.open_log(log)
    assert not profile.exists() if kind == "a dangling link" else profile.read_text() == "mine\n"
    if reader is not None:
        os.close(reader)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_log_of_another_user_is_not_written_to(tmp_path: Path) -> None:
    log = tmp_path / ".watch.log"
    log.touch()
    os.chown(log, another_user.UID, another_user.GID)
    with pytest.raises(KitError, match=f"belongs to another user .uid {another_user.UID}"):
        watcher_files.open_log(log)


def test_a_log_that_has_grown_keeps_its_newest_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = [f"{number:07d} a line\n" for number in range(watcher_files.MAX_LOG_BYTES // 15 + 1)]
    log.write_text("".join(lines))
    os.close(watcher_files.open_log(log))
    kept = log.read_text()
    assert len(kept) <= watcher_files.KEPT_BYTES and "".join(lines).endswith(kept) and kept[0] == "0"
    os.close(watcher_files.open_log(log))
    assert log.read_text() == kept


def test_a_full_disk_ends_no_watcher_and_what_was_not_written_is_said_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(command, "write_all", full)
        assert passes(path, [hang(31)]) == []
    assert len(passes(path, [hang(32)], [hang(33)])) == 1


def test_the_log_lies_in_the_state_folder_under_a_name_of_the_runs_folders_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    one, two = (watcher_files.of(tmp_path / name / "runs", create=True) for name in "ab")
    assert re.fullmatch("runs-[0-9a-f]{8}.log", one.log.name) and one.log.name != two.log.name
    assert one.log.parent == tmp_path / "state" / "resumekit" / "watch"
    assert one.log.parent.stat().st_mode & 0o777 == 0o700
    odd = watcher_files.of(tmp_path / "it's a\nfolder" / ("r" * 255)).log.name
    assert len(odd) < 120 and odd.isprintable()


def test_without_a_state_folder_it_lies_beside_the_runs_and_the_lock_is_always_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = watcher_files.of(tmp_path).lock
    for name in ("XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    files = watcher_files.of(tmp_path, create=True)
    assert files.log == tmp_path / f".watch.{os.geteuid()}.log"
    assert (files.lock, files.memory.parent, files.recovery_log.parent) == (lock, tmp_path / LIVE, tmp_path / LIVE)


@pytest.mark.parametrize("kind", ["a link", "a FIFO"])
def test_a_pass_goes_on_where_its_log_may_not_be_written_to(kit: Kit, kind: str) -> None:
    """As cron calls it, without HOME: at the place where the log would lie something else lies."""
    made(kit.runs, RUN)
    profile, log = kit.folder / "profile", kit.runs / f".watch.{os.geteuid()}.log"
    profile.write_text("mine\n")
    log.symlink_to(profile) if kind == "a link" else os.mkfifo(log)
    argv = [str(ROOT / "bin" / "abort-watch.sh"), "--quiet", "--log", "--runs", str(kit.runs)]
    env = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "RESUMEKIT_TEST_MARK": kit.mark}
    done = subprocess.run(argv, env=env, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "the log '" in done.stderr and RUN in done.stdout
    assert profile.read_text() == "mine\n"


def test_the_terminal_gets_nothing_and_the_log_has_a_line_once(kit: Kit) -> None:
    made(kit.runs, RUN, run_json=b"{}")
    for _ in range(3):
        done = kit("abort-watch", "--log", "--quiet", code=0, env={"XDG_STATE_HOME": ""})
        assert (done.stdout, done.stderr) == ("", "")
    (log,) = (kit.folder / ".local/state/resumekit/watch").glob("runs-*.log")
    (line,) = log.read_text().splitlines()
    assert f"{RUN}  unknown" in line and log.stat().st_mode & 0o777 == 0o600


def test_a_memory_of_another_kind_or_of_another_user_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    for content in (b"", b"[]", b'{"said": 3, "waits": {"a": {"since_s": "x"}, "b": 1}}', b"\xff" * 100):
        path.write_bytes(content)
        known = watcher_files.Memory(path)
        assert (known.said, known.waits) == ({}, {})
    (tmp_path / "elsewhere").write_bytes(b'{"said": {"run a": "b"}}')
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert watcher_files.Memory(path).said == {}


@pytest.mark.parametrize("word", ["--json", "--stop"])
def test_a_log_goes_with_passes_over_all_runs_alone(word: str) -> None:
    with pytest.raises(UsageError, match="--log"):
        command.parse(["--log", word, "--only=T-1"])
    assert inspection.chosen(RunTable(Path("nowhere")), [RUN, "T-2_x"], ["T-1"]) == [RUN]
