"""Single files, whole or not at all: resumekit.base.files."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from pathlib import Path

import pytest

from resumekit.base import file_identity, files, journal
from resumekit.base.files import UnreadableFile


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    files.write_atomic(path, b"old")
    files.write_atomic(path, b"new", durable=True)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["status.json"]


@pytest.mark.fault("K4", by="files: rename over a link")
def test_a_link_under_that_name_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "status.json").symlink_to(victim)
    files.write_atomic(tmp_path / "status.json", b"new")
    assert (victim.read_text(), (tmp_path / "status.json").read_bytes()) == ("precious", b"new")


@pytest.mark.fault("K4", by="files: exclusive create")
def test_a_planted_temp_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    planted = tmp_path / ".status.json.tmp-planted"
    planted.symlink_to(victim)
    monkeypatch.setattr(files, "temp_path", lambda target: planted)
    with pytest.raises(OSError):
        files.write_atomic(tmp_path / "status.json", b"new")
    assert victim.read_text() == "precious"


def test_a_write_that_fails_leaves_the_old_file_and_no_temp(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    files.write_atomic(path, b"old")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))  # Python ignores SIGXFSZ: the write fails
    try:
        with pytest.raises(OSError):
            files.write_atomic(path, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["status.json"])


@pytest.mark.fault("K4", by="files: exclusive create")
def test_a_file_is_made_only_once(tmp_path: Path) -> None:
    files.write_new(tmp_path / "claim", b"mine")
    with pytest.raises(FileExistsError):
        files.write_new(tmp_path / "claim", b"yours")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        files.write_new(tmp_path / "dangling", b"mine")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "missing", "nul"])
def test_what_is_no_regular_file_is_unreadable_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("na\0me" if kind == "nul" else "file")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    with pytest.raises(UnreadableFile):
        files.read_bounded(path)


@pytest.mark.fault("K13", by="files: 64 KiB and no more")
def test_a_large_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(10 << 30)
    with pytest.raises(UnreadableFile, match="larger than 65536 bytes"):
        files.read_json(path)


@pytest.mark.fault("K2", by="files: strict JSON")
@pytest.mark.parametrize("text", ["", "{", "NaN", '{"a": Infinity}', "[" * 60_000, "\xff", '{"a": 1e999999'])
def test_what_is_not_strict_json_is_unreadable(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UnreadableFile):
        files.read_json(tmp_path / "x.json")


def test_json_is_strict_and_any_text_goes_through_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        files.to_json({"a": float("nan")})
    files.write_atomic(tmp_path / "x.json", files.to_json({"name": "ä\udc80\n\0"}))
    assert files.read_json(tmp_path / "x.json") == {"name": "ä\udc80\n\0"}


@pytest.mark.parametrize(
    ("clock", "shown"),
    [
        (0.0, "1970-01-01T00:00:00.000000Z"),
        (1795368951.123456, "2026-11-22T17:35:51.123456Z"),
        (1795368951.75, "2026-11-22T17:35:51.750000Z"),
    ],
)
def test_time_stamps_are_utc_with_microseconds(clock: float, shown: str) -> None:
    assert abs(int(files.utc_now(clock)[20:26]) - int(shown[20:26])) <= 1
    assert files.utc_now(clock)[:19] == shown[:19]


def torn_reads(path: Path, count: int) -> int:
    """Replace a file as fast as it goes, read it `count` times beside that; return how often it was not whole."""
    contents = [files.to_json({"step": i, "text": "x" * (100 * i)}) for i in range(30)]
    files.write_atomic(path, contents[0])
    is_over = threading.Event()

    def write() -> None:
        while not is_over.is_set():
            for content in contents:
                files.write_atomic(path, content)

    writer = threading.Thread(target=write)
    writer.start()
    torn = 0
    try:
        for _ in range(count):
            try:
                value = files.read_json(path)
                torn += value["text"] != "x" * (100 * value["step"])
            except UnreadableFile:
                torn += 1
    finally:
        is_over.set()
        writer.join()
    return torn


def test_no_read_of_ten_thousand_is_torn(tmp_path: Path) -> None:
    assert torn_reads(tmp_path / "status.json", 10_000) == 0


@pytest.mark.campaign
def test_no_read_of_a_hundred_thousand_is_torn(tmp_path: Path) -> None:
    assert torn_reads(tmp_path / "status.json", 100_000) == 0


def test_the_alarm_rings_for_a_file_that_is_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same count finds torn reads where a writer rewrites its file."""

    def in_place(path: Path, data: bytes) -> None:
        with open(path, "wb") as file:
            for at in range(0, len(data), 100):
                file.write(data[at : at + 100])
                file.flush()
            time.sleep(0)

    monkeypatch.setattr(files, "write_atomic", in_place)
    with contextlib.suppress(KeyError):
        assert torn_reads(tmp_path / "status.json", 2_000) > 0


@pytest.mark.fault("K4", by="files: no link is followed to what the kit itself has written")
def test_a_link_under_a_name_of_the_kits_own_is_not_read(tmp_path: Path) -> None:
    private, planted = tmp_path / "private.json", tmp_path / "heartbeat.json"
    private.write_text('{"password": 1}')
    planted.symlink_to(private)
    for read in (files.read_json, lambda path: files.read_end(path, 10)):
        assert read(private), "the file itself"
        with pytest.raises(UnreadableFile, match="a link"):
            read(planted)
    with pytest.raises(UnreadableFile, match="a link"):
        files.read_bounded(planted, follow_links=False)
    assert files.read_json(planted, follow_links=True) == {"password": 1}
    assert files.read_bounded(planted) == private.read_bytes(), "a config and a checkpoint may be links"


@pytest.mark.fault("K4", by="journal: no link is followed")
def test_a_journal_that_is_a_link_is_none(tmp_path: Path) -> None:
    own, planted = tmp_path / "journal.jsonl", tmp_path / "planted.jsonl"
    journal.append(own, "stopped", "EXP-01_x", by="TERM")
    planted.symlink_to(own)
    assert [event["event"] for event, _ in journal.read(own)] == ["stopped"] and journal.newest(own, "stopped")
    assert list(journal.read(planted)) == [] and journal.newest(planted, "stopped") is None
    assert journal.tail(planted, 10) is None


def test_a_mode_without_the_umask_is_the_files_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, seen = os.umask(0o077), []
    move = os.replace
    monkeypatch.setattr(
        os, "replace", lambda temp, path, **_dirs: seen.append(os.lstat(temp).st_mode & 0o777) or move(temp, path)
    )
    try:
        files.write_atomic(tmp_path / "one", b"", mode=0o644, has_umask=False)
        files.write_atomic(tmp_path / "two", b"", mode=0o644)
    finally:
        os.umask(old)
    assert seen == [0o644, 0o600]


def test_of_two_identities_three_questions_have_three_answers(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"one")
    first = file_identity.identity_at(path)
    assert first is not None and first == file_identity.identity_of(os.stat(path))
    os.link(path, other)
    linked = file_identity.identity_at(other)
    assert linked is not None and (linked.file, linked.version) == (first.file, first.version)
    assert linked != first, "a name more changes ctime"
    path.write_bytes(b"two")
    os.utime(path, ns=(first.mtime_ns, first.mtime_ns + 1))
    written = file_identity.identity_at(path)
    assert written is not None and written.file == first.file and written.version != first.version
    os.utime(path, ns=(first.mtime_ns, first.mtime_ns))  # as if it had never been written to
    hidden = file_identity.identity_at(path)
    assert hidden is not None and hidden.version == first.version and hidden != first
    assert first._replace(device=first.device + 1).lasting == first.lasting, "a drive that was mounted again"
    assert file_identity.file_at(other) == first.file
    assert file_identity.identity_at(tmp_path / "gone") is None and file_identity.file_at("a\0b") is None


def test_a_temp_file_that_got_no_name_is_gone_and_one_that_did_stays(tmp_path: Path) -> None:
    target = tmp_path / "one"
    with files.TempFile(target) as temp:
        temp.write(b"half")
    assert os.listdir(tmp_path) == []
    with files.TempFile(target) as temp:
        assert temp.write(b"whole") == 5 == temp.size
        temp.move_new()
    assert (os.listdir(tmp_path), target.read_bytes()) == (["one"], b"whole")
    with pytest.raises(FileExistsError), files.TempFile(target) as temp:
        temp.write(b"second")
        temp.move_new()
    assert (os.listdir(tmp_path), target.read_bytes()) == (["one"], b"whole")


@pytest.mark.parametrize("number", files.NO_HARD_LINKS)
def test_where_there_are_no_hard_links_a_name_is_looked_at_before_the_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_paths: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "one"
    for _ in range(2):
        with contextlib.suppress(FileExistsError), files.TempFile(target) as temp:
            temp.write(b"second" if target.exists() else b"first")
            temp.move_new()
    assert (os.listdir(tmp_path), target.read_bytes()) == (["one"], b"first")


def test_a_temp_name_says_whose_it_is_and_for_what(tmp_path: Path) -> None:
    name = files.temp_path(tmp_path / "a.tmp-1-2.json").name
    found = files.parse_temp_name(name)
    assert found is not None and (found.target, found.pid) == ("a.tmp-1-2.json", os.getpid())
    for other in ("a.json", ".a.json.tmp-1-2", name + "0", name[1:], ".a.tmp-x-2-01234567"):
        assert files.parse_temp_name(other) is None


def test_only_the_temp_files_of_a_target_are_swept_with_it(tmp_path: Path) -> None:
    target = tmp_path / "exit.json"
    kept = [".exit.json.tmp-notes", files.temp_path(tmp_path / "other.json").name, "exit.json"]
    for path in (*(tmp_path / name for name in kept), files.temp_path(target)):
        path.touch()
    files.unlink_temps([target])
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


@pytest.mark.parametrize("kind", ["missing", "a fifo"])
def test_a_file_that_cannot_be_synced_is_an_error_of_the_disk(tmp_path: Path, kind: str) -> None:
    """Whoever writes a file handles OSError: a save that could not go on for another error would end the training."""
    if kind == "a fifo":
        os.mkfifo(tmp_path / "file")
    with pytest.raises(OSError):
        files.fsync_file(tmp_path / "file")
