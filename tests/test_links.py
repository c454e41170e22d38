"""Links of checkpoints to another disk: followed where the config says so, and link and target are the caller's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from resumekit.base.files import UnreadableFile
from resumekit.checkpoint import form, grades, inspect_command, layout, links, manifest, transfer
from resumekit.checkpoint.form import Form
from resumekit.checkpoint.selection import CheckpointFolder, select
from resumekit.process.attest import Attester
from resumekit.run import held
from resumekit.run.run_folder import Run, open_run
from support.commands import Kit
from support.folder_trainer import PATTERN, save
from support.places import ROOT
from support.runs import record

WITHOUT = form.of({"pattern": PATTERN, "follow_links": False})
WITH = form.of({"pattern": PATTERN, "follow_links": True})
WAY_OUT = "(checkpoint.follow_links: true follows those of your own)"


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Return (a folder of checkpoints, a folder on the larger disk)."""
    for name in ("run/checkpoints", "scratch"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path / "run/checkpoints", tmp_path / "scratch"


def whole(folder: Path, scratch: Path) -> Path:
    (folder / "checkpoint-4").symlink_to(save(scratch, 4))
    return folder / "checkpoint-4"


def whole_by_two_links(folder: Path, scratch: Path) -> Path:
    (scratch / "latest").symlink_to(save(scratch, 4).name)
    (folder / "checkpoint-4").symlink_to(scratch / "latest")
    return folder / "checkpoint-4"


def one_file_of_it(folder: Path, scratch: Path) -> Path:
    own = save(folder, 4)
    (own / "optimizer.pt").rename(scratch / "optim")
    (own / "optimizer.pt").symlink_to("../../../scratch/optim")
    return own


def why(folder: Path, named: Form) -> str | None:
    """Return why the checkpoint in a folder is passed over; None where it is taken."""
    found = select([CheckpointFolder(folder, form=named)], needs=frozenset(), weights_only=False)
    return None if found.chosen else found.candidates[0].reason


@pytest.mark.parametrize("make", [whole, whole_by_two_links, one_file_of_it])
def test_ones_own_are_followed_where_the_config_says_so_and_else_told_of_it(
    make: Callable[[Path, Path], Path], places: tuple[Path, Path], tmp_path: Path
) -> None:
    path = make(*places)
    said = why(path.parent, WITHOUT)
    assert said and said.endswith(WAY_OUT) and "a link" in said
    assert why(path.parent, WITH) is None
    known = grades.attest(path, 4, named=WITH)
    assert known.sha256 == grades.measured(save(tmp_path / "plain", 4), 4).sha256, "of what it leads to"
    assert select([CheckpointFolder(path.parent, form=WITH)], needs=frozenset(), weights_only=False).chosen.grade == (
        "attested"
    )
    target = Path(os.path.realpath(path / "optimizer.pt"))
    target.write_bytes(target.read_bytes()[:-1])
    assert why(path.parent, WITH), "and so is what happens to it"


def test_a_file_and_what_belongs_to_it_may_be_links(places: tuple[Path, Path]) -> None:
    folder, scratch = places
    for name in ("model_4.safetensors", "optim_4.pt"):
        (scratch / name).write_bytes((ROOT / "tests/recorded/foreign/pair" / name).read_bytes())
        (folder / name).symlink_to(scratch / name)
    section = {"pattern": "model_{step}.safetensors", "with": ["optim_{step}.pt"]}
    assert why(folder, form.of(section)).endswith(WAY_OUT)
    assert why(folder, form.of({**section, "follow_links": True})) is None
    (folder / "model_4.safetensors").unlink()
    (scratch / "model_4.safetensors").rename(folder / "model_4.safetensors")
    said = why(folder, form.of(section))
    assert said == f"'optim_4.pt', which belongs to it (checkpoint.with): a link {WAY_OUT}"


@pytest.mark.parametrize(
    ("make", "whose", "says"),
    [
        (whole, "run/checkpoints/checkpoint-4", "a link of another user's: it is not followed"),
        (whole, "scratch/checkpoint-4", "a link to what is another user's: it is not followed"),
        (whole_by_two_links, "scratch/latest", "a link of another user's: it is not followed"),
        (one_file_of_it, "checkpoint-4/optimizer.pt", "'optimizer.pt' in it is a link of another user's"),
        (one_file_of_it, "scratch/optim", "'optimizer.pt' in it is a link to what is another user's"),
    ],
)
def test_no_link_of_or_to_another_users_is_followed(
    make: Callable[[Path, Path], Path], whose: str, says: str, places: tuple[Path, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path, look = make(*places), os.lstat
    (theirs,) = [one for one in tmp_path.rglob(os.path.basename(whose)) if str(one).endswith(whose)]

    def seen(place: str | Path) -> os.stat_result:
        found = look(place)
        if found[1:3] == look(theirs)[1:3]:
            found = os.stat_result((*found[:4], found.st_uid + 1, *found[5:]))
        return found

    monkeypatch.setattr(links.os, "lstat", seen)
    assert (why(path.parent, WITH) or "").startswith(says)


def to_a_fifo(path: Path) -> None:
    os.mkfifo(path.parent / "fifo")
    path.symlink_to(path.parent / "fifo")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (to_a_fifo, "not a regular file (fifo)"),
        (lambda path: path.symlink_to(path.parent / "gone"), "a link to nothing"),
        (lambda path: path.symlink_to(path), "a link that leads to itself, or over more than 8 others"),
    ],
)
def test_what_leads_to_no_file_is_refused_with_the_true_reason(
    make: Callable[[Path], None], says: str, places: tuple[Path, Path]
) -> None:
    folder, scratch = places
    make(scratch / "odd")
    (folder / "checkpoint-4").symlink_to(scratch / "odd")
    assert why(folder, WITH) == says
    (folder / "checkpoint-4").unlink()
    (save(folder, 4) / "extra").symlink_to(scratch / "odd")
    assert why(folder, WITH) == f"'extra' in it is {says}"


def test_a_folder_that_is_a_link_in_a_checkpoint_is_not_followed(places: tuple[Path, Path]) -> None:
    folder, scratch = places
    (save(folder, 4) / "more").symlink_to(scratch)
    assert why(folder, WITH) == "'more' in it is a link to a folder"


def test_a_file_that_a_link_leads_to_since_is_not_read(places: tuple[Path, Path]) -> None:
    own = one_file_of_it(*places)
    with layout.open_checkpoint(own, follow_links=True) as opened:
        (places[1] / "private").write_bytes(b"secret")
        (own / "optimizer.pt").unlink()
        (own / "optimizer.pt").symlink_to(places[1] / "private")
        with pytest.raises(UnreadableFile, match="changed while it was read"):
            opened.open_file("optimizer.pt")


def linked_run(places: tuple[Path, Path], **section: object) -> Run:
    folder, scratch = places
    run = folder.parent
    (run / "run.json").write_text(json.dumps({"run_id": run.name, "experiment": "T-1"}))
    (run / "resolved_config.json").write_text(
        json.dumps({"paths": {"checkpoints": "checkpoints"}, "checkpoint": {"pattern": PATTERN, **section}})
    )
    whole(folder, scratch)
    return open_run(run)


def test_the_sidecar_attests_it_and_again_when_its_target_is_written_again(places: tuple[Path, Path]) -> None:
    run = linked_run(places, follow_links=True)
    path = run.paths.checkpoints / "checkpoint-4"
    attester = Attester(run)
    attester.look_last()
    first = manifest.read(path)
    target = places[1] / "checkpoint-4/config.json"
    target.write_text(target.read_text() + "\n")
    attester.look_last()
    assert manifest.read(path).sha256 != first.sha256


def test_the_key_of_the_newest_config_holds_for_runs_from_before_it(places: tuple[Path, Path]) -> None:
    run = linked_run(places)
    (before,) = held.folders_along([(run, None)])
    (after,) = held.folders_along([(run, None)], follow_links=True)
    assert (before.form.follow_links, after.form.follow_links) == (False, True)


def test_one_is_inspected_by_the_key_of_its_run(places: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    run = linked_run(places, follow_links=True)
    path = run.paths.checkpoints / "checkpoint-4"
    assert inspect_command.main(["--inspect", str(path)]) == 0
    assert "grade" in capsys.readouterr().out


def test_a_copy_for_the_trainer_is_made_of_what_ones_own_link_leads_to(places: tuple[Path, Path]) -> None:
    path, folder = whole(*places), os.open(places[0], os.O_RDONLY)
    with pytest.raises(UnreadableFile, match="a link out of its folder by now"):
        transfer.copy_whole(path, folder, "copy")
    transfer.copy_whole(path, folder, "copy", follow_links=True)
    os.close(folder)
    assert sorted(os.listdir(places[0] / "copy")) == sorted(os.listdir(path))
    assert not (places[0] / "copy").is_symlink()


def test_a_run_whose_checkpoints_are_links_is_resumed_by_the_key(kit: Kit) -> None:
    command = ["{python}", str(ROOT / "tests/support/folder_trainer.py"), "--dir", "{checkpoints_dir}"]
    command += ["--steps", "{training.max_steps}"]
    kit.config(trainer={"command": command}, training={"max_steps": 8}, checkpoint={"pattern": PATTERN})
    kit("run", "T-1")
    (run,) = kit.run_dirs()
    scratch = kit.folder / "scratch"
    (run / "checkpoints").rename(scratch)
    (run / "checkpoints").mkdir()
    for path in scratch.iterdir():
        (run / "checkpoints" / path.name).symlink_to(path)
    assert WAY_OUT in kit("resume", "T-1", "--step", "4", code=3).stderr
    kit("resume", "T-1", "--step", "4", "--set", "checkpoint.follow_links=true")
    child = kit.run_dirs()[-1]
    assert record(child)["argv"][-1] == str(run / "checkpoints/checkpoint-4")
