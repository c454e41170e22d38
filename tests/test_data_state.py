"""The data below data.path: noted at a start, and compared with at a resume, within bounds."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resumekit.base.paths import RunPaths
from resumekit.run.run_folder import Run
from resumekit.start import data_state
from resumekit.start.data_state import DataState, differences, look
from support.commands import Kit
from support.plan_configs import plan_of
from support.runs import events


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of three files, all of one time."""
    for name in ("b/2", "b/1", "a.txt"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x" * 10)
        os.utime(path, ns=(5, 5))
    return tmp_path / "data"


def holder(folder: Path, state: DataState, **fields: Any) -> Run:
    """Return a run that has found the data so."""
    paths = RunPaths(folder / "EXP-01_a")
    paths.run_dir.mkdir(exist_ok=True)
    paths.data_files.write_bytes(state.as_list())
    return Run(paths, {"data": {**state.as_fields(), **fields}})


def rewrite(path: Path, text: str = "y" * 10, at_ns: int = 5) -> None:
    path.write_text(text)
    os.utime(path, ns=(at_ns, at_ns))


FOUND = "the data are not as 'EXP-01_a' found them: files "
TOUCHED = (
    "the data were written again since 'EXP-01_a' found them: 1 files of the same size have another time, the first"
)
BY_STAT, BY_CONTENT = (False,), (True,)
EITHER = (False, True)


@pytest.mark.parametrize(
    ("change", "ways", "wanted"),
    [
        (lambda data: None, EITHER, []),
        (lambda data: rewrite(data / "b" / "1", "x"), EITHER, [FOUND + "1 changed; 'b/1' has 1 bytes, 10 then"]),
        (lambda data: (data / "a.txt").unlink(), EITHER, [FOUND + "1 gone; 'a.txt' is gone"]),
        (lambda data: rewrite(data / "b\x1b"), EITHER, [FOUND + "1 new; 'b\\x1b' is new"]),
        (lambda data: (data / "b").rename(data / "c"), EITHER, [FOUND + "2 gone, 2 new; 'b/1' is gone; 'c/1' is new"]),
        (lambda data: os.utime(data / "b" / "2"), BY_STAT, [TOUCHED + " 'b/2' (data.fingerprint: content"]),
        (lambda data: os.utime(data / "b" / "2"), BY_CONTENT, []),
        (lambda data: rewrite(data / "b" / "2"), BY_STAT, []),
        (lambda data: rewrite(data / "b" / "2"), BY_CONTENT, [FOUND + "1 changed; 'b/2' has another content"]),
    ],
)
def test_what_differs_is_said_with_the_first_file_of_each_kind(
    change: Callable[[Path], Any], ways: tuple[bool, ...], wanted: list[str], data: Path, tmp_path: Path
) -> None:
    before = {reads: look(data, reads=reads) for reads in ways}
    change(data)
    for reads, state in before.items():
        found = differences(holder(tmp_path, state), look(data, reads=reads))
        assert len(found) == len(wanted) and all(one.startswith(two) for one, two in zip(found, wanted, strict=True))


def test_a_content_that_was_not_read_at_both_starts_is_not_compared(data: Path, tmp_path: Path) -> None:
    """As after a recovery, which reads none."""
    for reads in (True, False):
        run = holder(tmp_path, look(data, reads=reads))
        assert differences(run, look(data, reads=not reads)) == []


def test_a_run_of_an_older_kit_and_a_list_that_is_gone_or_hostile(data: Path, tmp_path: Path) -> None:
    now = look(data, reads=False)
    assert differences(Run(RunPaths(tmp_path), {}), now) == []
    run = holder(tmp_path, now, sha256="0" * 64, files=2)
    assert differences(run, now) == [], "the list decides"
    run.paths.data_files.write_text('[["a.txt", 10, 5], ["b/1", "x", 5], 3, ["b/2", 10, 5, 7, 8], [[], 1, 1]]')
    assert differences(run, now) == [FOUND + "2 new; 'b/1' is new"]
    run.paths.data_files.unlink()
    [said] = differences(run, now)
    assert said.endswith("found them: 2 files of 30 bytes then, 3 files of 30 bytes now")


def test_what_is_behind_a_bound_is_not_known(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = look(data, reads=False)
    monkeypatch.setattr(data_state, "MOST_FILES", 2)
    cut = look(data, reads=False)
    assert [one.name for one in cut.files] == ["a.txt", "b/1"] and not cut.is_whole and whole.is_whole
    for then, now in itertools.permutations((whole, cut)):
        assert differences(holder(tmp_path, then), now) == []
    (data / "a.txt").unlink()
    assert differences(holder(tmp_path, whole), look(data, reads=False)) == [FOUND + "1 gone; 'a.txt' is gone"]
    ticks = itertools.count()
    late = look(data, reads=False, clock=lambda: float(next(ticks)))
    assert late == DataState((), False) and differences(holder(tmp_path, late), whole) == []


def test_odd_data_are_looked_at_and_not_opened(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    os.mkfifo(data / "fifo")
    (data / "gone").symlink_to("nowhere")
    (data / "self").symlink_to(data)
    (data / os.fsdecode(b"\xff")).write_text("x")
    found = look(data, reads=True)
    assert [(one.name, one.size, one.sha256 is None) for one in found.files] == [
        ("fifo", 0, True), ("gone", -1, True), ("self/", 0, True), ("\udcff", 1, False),
    ]  # fmt: skip
    assert differences(holder(tmp_path, found), found) == []
    assert [one.name for one in look(data / "\udcff", reads=True).files] == [""]


def test_a_start_notes_the_data_and_the_plan_of_a_resume_warns(kit: Kit, data: Path) -> None:
    kit.config(data={"path": str(data)}, recover={"enabled": False})
    kit("run", "T-1", code=137, env={"TOY_ARGS": "--at 3 kill --save-every 2"})
    [run] = kit.run_dirs()
    assert events(run, "launched")
    record = json.loads((run / "run.json").read_text())["data"]
    assert (record["files"], record["bytes"], record["is_whole"], record["has_content"]) == (3, 30, True, False)
    assert not [one for one in plan_of(kit)["warnings"] if "data" in one]
    rewrite(data / "b" / "1", "x")
    said = f"the data are not as '{run.name}' found them: files 1 changed; 'b/1' has 1 bytes, 10 then"
    assert said in plan_of(kit)["warnings"]
