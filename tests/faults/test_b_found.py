"""What the campaigns of section B have found once: each stays mended."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import errors, files
from resumekit.checkpoint import pruning
from resumekit.checkpoint.selection import CheckpointFolder, select
from resumekit.trainer.saving import save_checkpoint
from support.checkpoint_tools import IO_ERROR, NO_SPACE, failing, leftovers, os_calls, quiet, small_model

pytestmark = pytest.mark.usefixtures("in_a_new_process")


def save(folder: Path, step: int, **more: Any) -> Path | None:
    model, optimizer = small_model()
    return save_checkpoint(folder, step, **{"model": model, "optimizer": optimizer, "log_fn": quiet, **more})


@pytest.mark.fault("B14", by="pruning.py: pins that can't be read protect every step")
def test_where_the_pins_can_not_be_read_nothing_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, claims = tmp_path / "checkpoints", tmp_path / "claims"
    for step in (1, 2, 3, 4):
        save(folder, step)
    real = os.listdir

    def listdir(path: Any) -> list[str]:
        if Path(path) == claims:
            raise OSError(IO_ERROR, "x")
        return real(path)

    names = {"run_id": None, "claims": claims, "pattern": "hrm_arc_step_{step}.pt", "best_name": "hrm_arc_best.pt"}
    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", listdir)
        assert pruning.prune(folder, pruning.Keep(2, None), **names) == []
    assert len(pruning.prune(folder, pruning.Keep(2, None), **names)) == 2, "no claims folder: nothing is pinned"


@pytest.mark.fault("B15", by="files.py: fsync_parents, once for each process that saves")
def test_a_first_save_makes_the_names_of_the_folders_durable_too(tmp_path: Path) -> None:
    """The launcher has just made them; without that a power cut could take the run folder with its checkpoint."""
    synced: list[str] = []

    def act(_k: int, _name: str, arguments: tuple[Any, ...]) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{arguments[0]}"))

    folder = tmp_path / "runs" / "T-1_x" / "checkpoints"
    with os_calls(act, ("fsync",)):
        save(folder, 1)
        first, synced[:] = set(synced), []
        save(folder, 2)
    assert {str(folder.parent), str(folder.parent.parent), str(tmp_path)} <= first
    assert str(folder.parent) not in synced


@pytest.mark.fault("B6", by="save_file.py: the close of what is durable already says nothing")
def test_a_close_that_fails_does_not_unsay_what_an_fsync_has_said(tmp_path: Path) -> None:
    real, was_there = os.close, []

    def close(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        real(descriptor)
        if name.endswith(("hrm_arc_step_1.pt", "(deleted)")):
            was_there.append(name)
            raise OSError(IO_ERROR, "x")

    os.close = close
    try:
        assert save(tmp_path, 1) is not None and was_there
    finally:
        os.close = real


@pytest.mark.fault("B6", by="manifest.py: the temp file of a manifest goes with its descriptor")
def test_a_close_of_the_manifest_that_fails_leaves_no_temp_file(tmp_path: Path) -> None:
    real = os.close

    def close(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        real(descriptor)
        if ".pt.json.tmp-" in name:
            raise OSError(NO_SPACE, "x")

    os.close = close
    try:
        assert save(tmp_path, 1) is None
    finally:
        os.close = real
    assert leftovers(tmp_path) == [] and select([CheckpointFolder(tmp_path)]).chosen is None


@pytest.mark.fault("G9", by="files.py: open_regular says 'unreadable' of a stale handle")
@pytest.mark.parametrize("call", ["fstat", "close"])
def test_a_file_that_fails_while_it_is_read_is_unreadable_and_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text("{}")
    real = getattr(os, call)

    def stale(descriptor: int, *more: Any) -> Any:
        if isinstance(descriptor, int) and os.readlink(f"/proc/self/fd/{descriptor}") == str(path):
            if call == "close":
                real(descriptor)
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(descriptor, *more)

    monkeypatch.setattr(os, call, stale)
    if call == "close":
        assert files.read_json(path) == {}
    else:
        with pytest.raises(files.UnreadableFile, match="cannot be read: Stale file handle"):
            files.read_json(path)


@pytest.mark.fault("B4", by="errors.py: few inodes and enough space is no inodes")
def test_no_inodes_is_named_when_those_of_the_failed_save_are_free_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Space:
        f_files, f_favail, f_bavail, f_frsize = 1000, 1, 1_000_000, 4096

    monkeypatch.setattr(os, "statvfs", lambda _path: Space)
    full = OSError(errno.ENOSPC, "x")
    assert errors.disk_error_cause(full, tmp_path / "a", 1000).startswith("no inodes left on that disk")
    assert errors.disk_error_cause(full, tmp_path / "a", 10**12).startswith(
        "no space: need 1,000,000.0 MB, have 4,096.0 MB"
    )


@pytest.mark.fault("B5", by="errors.py: the quota is named where the folder is not there yet, too")
def test_a_quota_is_named_where_not_even_the_folder_could_be_made(tmp_path: Path) -> None:
    said: list[str] = []
    with os_calls(failing(errno.EDQUOT, "mkdir")):
        assert save(tmp_path / "checkpoints", 1, log_fn=said.append) is None
    assert "(the quota is used up)" in said[0]
