"""The caller's own state folder, and whether a path is theirs alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from resumekit.base.ownership import is_callers, is_callers_alone, make_private, state_folder


@pytest.fixture(autouse=True)
def _no_state_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)


def test_xdg_state_home_comes_before_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert state_folder(create=True) == tmp_path / "home" / ".local" / "state" / "resumekit"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    folder = state_folder(create=True)
    assert folder == tmp_path / "xdg" / "resumekit"
    assert stat.S_IMODE(os.lstat(folder).st_mode) == 0o700


def test_there_is_none_without_either_variable_or_with_a_relative_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_folder(create=True) is None
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    assert state_folder(create=True) is None


def test_without_create_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_that_another_may_write_to_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "resumekit").mkdir()
    (tmp_path / "resumekit").chmod(mode)
    assert state_folder(create=True) is None


def test_a_link_is_no_folder_of_the_caller_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "resumekit").symlink_to(tmp_path / "elsewhere")
    assert state_folder(create=True) is None
    assert not is_callers(tmp_path / "resumekit", stat.S_IFDIR)


def test_a_file_of_the_group_is_the_callers_but_not_theirs_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    path.chmod(0o664)
    assert is_callers(path) and not is_callers_alone(path)
    path.chmod(0o644)
    assert is_callers_alone(path)
    assert not is_callers_alone(tmp_path / "missing") and not is_callers_alone(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_file_of_another_user_is_not_the_callers(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    os.chown(path, 65534, 65534)
    assert not is_callers(path) and not is_callers_alone(path)


@pytest.fixture
def umask_of_a_group() -> Iterator[None]:
    old = os.umask(0o002)
    yield
    os.umask(old)


@pytest.mark.usefixtures("umask_of_a_group")
def test_every_folder_that_is_made_on_the_way_is_the_callers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = state_folder(create=True)
    assert folder is not None
    for one in (folder, folder.parent, folder.parent.parent):
        assert stat.S_IMODE(os.lstat(one).st_mode) == 0o700, one
    folder.parent.chmod(0o755)
    assert state_folder(create=True) == folder and stat.S_IMODE(os.lstat(folder.parent).st_mode) == 0o755


def test_a_folder_is_made_through_a_link_that_is_there_and_not_through_a_dangling_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    make_private(tmp_path / "link" / "one" / "two")
    assert (tmp_path / "real/one/two").is_dir()
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(OSError):
        make_private(tmp_path / "dangling" / "one")
    assert not (tmp_path / "nowhere").exists()
