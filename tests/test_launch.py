"""A new run's folder, where other users may rename what lies beside it: resumekit.supervision.launch."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resumekit.basics.errors import KitError
from resumekit.basics.paths import RunPaths
from resumekit.supervision import launch

NOTHING: Any = SimpleNamespace(parent=None, candidate=None, relation="fresh", step=None)


@pytest.fixture
def made(tmp_path: Path) -> tuple[RunPaths, launch.Made]:
    """A run folder as it was just made, beside a folder of another run's that has a checkpoint in it."""
    (tmp_path / "other/checkpoints").mkdir(parents=True)
    (tmp_path / "other/checkpoints/step_10.pt").write_text("precious")
    paths = RunPaths(tmp_path / "new")
    paths.run_dir.mkdir()
    return paths, launch._just_made(paths.run_dir)


def exchange(paths: RunPaths) -> None:
    other = paths.run_dir.with_name("other")
    paths.run_dir.rename(paths.run_dir.with_name("aside"))
    other.rename(paths.run_dir)


@pytest.mark.fault("K4", by="launch: only the folder that was made is taken back")
def test_a_start_that_fails_takes_back_its_own_folder_and_no_exchanged_one(
    made: tuple[RunPaths, launch.Made], capsys: pytest.CaptureFixture[str]
) -> None:
    paths, identity = made
    exchange(paths)
    launch._take_back(NOTHING, paths, None, identity)
    assert (paths.run_dir / "checkpoints/step_10.pt").read_text() == "precious"
    assert f"'{paths.run_dir}' stays as it is" in capsys.readouterr().err


def test_what_is_taken_back_is_gone_whole_and_what_its_links_lead_to_stays(
    made: tuple[RunPaths, launch.Made], capsys: pytest.CaptureFixture[str]
) -> None:
    paths, identity = made
    other = paths.run_dir.with_name("other")
    (paths.run_dir / "checkpoints/deep").mkdir(parents=True)
    (paths.run_dir / "checkpoints/deep/file").touch()
    (paths.run_dir / "dataset").symlink_to(other)
    launch._take_back(NOTHING, paths, None, identity)
    assert not os.path.lexists(paths.run_dir) and (other / "checkpoints/step_10.pt").exists()
    launch._take_back(NOTHING, paths, None, identity)
    assert capsys.readouterr().err == "", "one that is gone already is no news"


@pytest.mark.fault("K4", by="launch: nothing is written into an exchanged folder")
def test_an_exchanged_folder_is_not_filled(made: tuple[RunPaths, launch.Made]) -> None:
    paths, identity = made
    launch._refuse_exchanged(paths, identity)
    exchange(paths)
    with pytest.raises(KitError, match="is not the folder that was made for this run"):
        launch._refuse_exchanged(paths, identity)
    with pytest.raises(OSError, match="exchanged"):
        launch._just_made(paths.run_dir)
