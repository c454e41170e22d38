"""A new run's folder, where other users may rename and plant: resumekit.start.make_folder and run.new_folder."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resumekit.base import ownership
from resumekit.base.errors import KitError
from resumekit.base.ownership import MadeFolder
from resumekit.base.paths import RunPaths
from resumekit.run import new_folder
from resumekit.start import launcher_answer, make_folder, request

NOTHING: Any = SimpleNamespace(parent=None, candidate=None, relation="fresh", step=None)


@pytest.fixture
def made(tmp_path: Path) -> tuple[RunPaths, MadeFolder]:
    """A run folder as it was just made, beside a folder of another run's that has a checkpoint in it."""
    (tmp_path / "other/checkpoints").mkdir(parents=True)
    (tmp_path / "other/checkpoints/step_10.pt").write_text("precious")
    paths = RunPaths(tmp_path / "new")
    paths.run_dir.mkdir()
    return paths, new_folder._just_made(paths.run_dir)


def exchange(paths: RunPaths) -> None:
    other = paths.run_dir.with_name("other")
    paths.run_dir.rename(paths.run_dir.with_name("aside"))
    other.rename(paths.run_dir)


@pytest.mark.fault("K4", by="make_folder: only the folder that was made is taken back")
def test_a_start_that_fails_takes_back_its_own_folder_and_no_exchanged_one(
    made: tuple[RunPaths, MadeFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    paths, identity = made
    exchange(paths)
    make_folder._take_back(NOTHING, paths, None, identity)
    assert (paths.run_dir / "checkpoints/step_10.pt").read_text() == "precious"
    assert f"'{paths.run_dir}' stays as it is" in capsys.readouterr().err


def test_what_is_taken_back_is_gone_whole_and_what_its_links_lead_to_stays(
    made: tuple[RunPaths, MadeFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    paths, identity = made
    other = paths.run_dir.with_name("other")
    (paths.run_dir / "checkpoints/deep").mkdir(parents=True)
    (paths.run_dir / "checkpoints/deep/file").touch()
    (paths.run_dir / "dataset").symlink_to(other)
    make_folder._take_back(NOTHING, paths, None, identity)
    assert not os.path.lexists(paths.run_dir) and (other / "checkpoints/step_10.pt").exists()
    make_folder._take_back(NOTHING, paths, None, identity)
    assert capsys.readouterr().err == "", "one that is gone already is no news"


@pytest.mark.fault("K4", by="make_folder: nothing is written into an exchanged folder")
def test_an_exchanged_folder_is_not_filled(made: tuple[RunPaths, MadeFolder]) -> None:
    paths, identity = made
    ownership.refuse_exchanged(paths.run_dir, identity)
    exchange(paths)
    with pytest.raises(KitError, match="is not the folder that was made for this run"):
        ownership.refuse_exchanged(paths.run_dir, identity)
    with pytest.raises(OSError, match="exchanged"):
        new_folder._just_made(paths.run_dir)


@pytest.fixture
def copying(tmp_path: Path) -> tuple[Any, RunPaths, Path]:
    """A choice whose checkpoint is to be copied to `a/b/last.pt` of a run, and a folder of another user's."""
    (tmp_path / "step_10.pt").write_bytes(b"weights" * 100_000)
    candidate = SimpleNamespace(path=tmp_path / "step_10.pt", step=10)
    config = {"trainer": {"checkpoint_in": "a/b/last.pt"}}
    paths, elsewhere = RunPaths(tmp_path / "run"), tmp_path / "elsewhere"
    paths.run_dir.mkdir()
    elsewhere.mkdir()
    return SimpleNamespace(candidate=candidate, chosen=candidate, config=config, parent=None), paths, elsewhere


def test_a_checkpoint_is_copied_below_folders_that_are_made_for_it(copying: tuple[Any, RunPaths, Path]) -> None:
    choice, paths, _ = copying
    (paths.run_dir / "a").mkdir()
    make_folder._copy_checkpoint(choice, paths)
    assert (paths.run_dir / "a/b/last.pt").read_bytes() == choice.candidate.path.read_bytes()


@pytest.mark.fault("K4", by="checkpoint/layout: no link is followed below the run folder, exclusive create")
@pytest.mark.parametrize("link", ["a", "a/b", "a/b/last.pt"])
def test_a_copy_of_a_checkpoint_follows_no_planted_link(copying: tuple[Any, RunPaths, Path], link: str) -> None:
    choice, paths, elsewhere = copying
    (elsewhere / "b").mkdir()
    (elsewhere / "last.pt").write_text("precious")
    (paths.run_dir / link).parent.mkdir(parents=True, exist_ok=True)
    (paths.run_dir / link).symlink_to(elsewhere / "last.pt" if link.endswith(".pt") else elsewhere)
    opened = os.listdir("/proc/self/fd")
    with pytest.raises(OSError):
        make_folder._copy_checkpoint(choice, paths)
    assert (elsewhere / "last.pt").read_text() == "precious" and not list((elsewhere / "b").iterdir())
    assert len(os.listdir("/proc/self/fd")) == len(opened), "no folder on the way stays open"


@pytest.mark.fault("K4", by="checkpoint/layout: a link that has come into a checkpoint's place is not copied from")
def test_a_link_that_has_come_into_the_place_of_a_checkpoint_is_not_copied_from(
    copying: tuple[Any, RunPaths, Path],
) -> None:
    """Its target may be a file that the caller alone may read, and the copy is read by all."""
    choice, paths, elsewhere = copying
    (elsewhere / "id_rsa").write_text("secret")
    choice.candidate.path.unlink()
    choice.candidate.path.symlink_to(elsewhere / "id_rsa")
    with pytest.raises(KitError, match="it is a link out of its folder by now"):
        make_folder._copy_checkpoint(choice, paths)
    assert not (paths.run_dir / "a").exists()


@pytest.mark.parametrize("kind", ["a FIFO", "nothing"])
def test_a_checkpoint_that_is_no_file_any_more_is_not_waited_for(
    copying: tuple[Any, RunPaths, Path], kind: str
) -> None:
    choice, paths, _ = copying
    choice.candidate.path.unlink()
    if kind == "a FIFO":
        os.mkfifo(choice.candidate.path)
    with pytest.raises(KitError, match="cannot be copied"):
        make_folder._copy_checkpoint(choice, paths)


@pytest.mark.parametrize("wait_s, by_name, by_position", [(0.2, b"WAIT_S=1\0", b"1\0"), (None, b"", b"")])
def test_an_answer_without_a_run_is_read_by_a_launcher_of_each_version(
    capfdbinary: pytest.CaptureFixture[bytes], wait_s: float | None, by_name: bytes, by_position: bytes
) -> None:
    launcher_answer.write(None, wait_s)
    assert capfdbinary.readouterr().out == by_name
    launcher_answer.write(None, wait_s, by_position=True)
    assert capfdbinary.readouterr().out == by_position


def test_words_of_the_trainer_are_kept_as_they_were_typed() -> None:
    words = ["--answer-to=7", "--experiment=T-1", "--", "--answer-to=x", "--launcher-pid=y"]
    assert list(request.parse(words).typed) == words[1:]
