"""A folder that was copied: seen for a copy, said once, no head; and one user's interpreter in a shared config."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from resumekit.base.paths import manifest_path
from resumekit.checkpoint import manifest, pruning
from resumekit.run.run_folder import open_run
from resumekit.run.run_table import RunTable
from resumekit.watch.acting import environment_of
from support.checkpoint_tools import save_plain
from support.commands import Kit
from support.runs import events
from support.schemas import assert_valid

LATER = "T-1_toy_20991122-1735"


def ended(kit: Kit) -> Path:
    kit.config("--save-every", "5", training={"max_steps": 9})
    kit("run", "T-1", env={"TOY_ARGS": "--at 7 raise"}, code=1)
    (run,) = kit.run_dirs()
    return run


def test_a_copy_of_a_run_beside_it_is_no_head_and_is_said_to_be_a_copy(kit: Kit) -> None:
    run = ended(kit)
    shutil.copytree(run, kit.runs / LATER, symlinks=True)
    shutil.copytree(run, kit.runs / f"{run.name} (copy)", symlinks=True)
    sentence = f"'{LATER}' is a copy of '{run.name}': not taken into account"
    for command in ("run", "resume"):
        done = kit(command, "T-1", "--dry-run")
        page = " ".join(done.stdout.split())
        assert f"'{run.name}' at step 5" in page and page.count(sentence) == 1
    row = next(line for line in kit("runs", "T-1").stdout.splitlines() if LATER in line)
    assert f"a copy of '{run.name}'" in row and "unknown" in row
    done = kit("run", "T-1")
    assert done.stderr.count(sentence) == 1
    (child,) = [path for path in kit.run_dirs() if "resume@5" in path.name]
    assert events(child, "step")[-1]["step"] == 9
    # An explicit step is on one branch, not on the copy too.
    kit("resume", "T-1", "--step", "5", "--name", "again", "--dry-run")


def test_a_folder_that_was_renamed_or_that_the_kit_did_not_make_stays_a_run(kit: Kit) -> None:
    """What has no original beside it is never passed over without a word: a start at 0 would follow."""
    run = ended(kit)
    run.rename(kit.runs / LATER)
    (head,) = RunTable(kit.runs).heads("T-1")
    assert (head.run_id, head.copy_of, head.other_id) == (LATER, None, run.name)
    foreign = kit.runs / "T-2_theirs_20261122-1735"
    save_plain(foreign / "checkpoints" / "model_7.pt", 7)
    assert [one.run_id for one in RunTable(kit.runs).heads("T-2")] == [foreign.name]


@pytest.mark.parametrize("run_id", [None, 3, "../x", "x" * 300, "", ["a"]])
def test_a_run_id_that_is_none_makes_no_folder_a_copy(tmp_path: Path, run_id: object) -> None:
    run = tmp_path / LATER
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"run_id": run_id}))
    assert (open_run(run).other_id, open_run(run).copy_of, open_run(run).is_ours) == (None, None, False)


def test_a_copied_runs_folder_is_continued_as_ever(kit: Kit) -> None:
    """All there is to know about a run lies in its folder: copied elsewhere, every command still understands it."""
    run = ended(kit)
    copy = kit.folder / "elsewhere"
    shutil.copytree(kit.runs, copy, symlinks=True)
    kit.runs = copy
    kit("run", "T-1")
    assert kit.run_dirs()[0].name == run.name and len(kit.run_dirs()) == 2


# manifests whose checkpoint is gone


def manifested(folder: Path, step: int, run_id: str | None = "own", writer: str = manifest.SAVE_CHECKPOINT) -> Path:
    path = folder / f"m_{step}.pt"
    path.write_bytes(b"weights")
    fields = {"writer": writer, "file": path.name, "size": 7, "sha256": "0" * 64, "step": step,
              "created_at": "2026-11-22T17:35:51.123456Z", "versions": {}, "run_id": run_id, "finite": True,
              "step_completed": True}  # fmt: skip
    manifest.write(path, manifest.Manifest(**fields))
    return path


def test_a_manifest_whose_checkpoint_is_gone_is_swept_and_no_file_of_another_hand(tmp_path: Path) -> None:
    kept = [manifested(tmp_path, 50), manifested(tmp_path, 60)]
    gone = [manifested(tmp_path, 10), manifested(tmp_path, 20, writer=manifest.SIDECAR)]
    others = [manifested(tmp_path, 30, run_id="another's")]
    for path in (*gone, *others):
        path.unlink()
    foreign = [tmp_path / name for name in ("m_40.pt.json", "notes.pt.json", "m_x.pt.json", "m_45.json")]
    for path in foreign:
        path.write_text('{"mine": true}')
    moved = manifested(tmp_path, 70)
    moved.rename(tmp_path / "elsewhere")
    moved.symlink_to(tmp_path / "nowhere")  # a link that leads nowhere now is a name all the same
    linked = tmp_path / "m_80.pt.json"
    linked.symlink_to(manifest_path(kept[0]))
    names = {"run_id": "own", "claims": None, "pattern": "m_{step}.pt", "best_name": "best.pt"}
    assert pruning.prune(tmp_path, pruning.Keep(None, None), **names) == []
    assert not any(os.path.lexists(manifest_path(path)) for path in gone)
    assert all(manifest_path(path).exists() for path in (*kept, *others, moved))
    assert all(path.exists() for path in (*foreign, *kept)) and linked.is_symlink()


# one user's interpreter


def own_python(kit: Kit) -> Path:
    """Make another name for this Python; what runs under it says so in sys.executable."""
    python = kit.folder / "own venv" / "python3"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    return python


def test_a_users_own_interpreter_goes_before_that_of_a_shared_config(kit: Kit) -> None:
    kit.config(trainer={"python": "/of/a/colleague/python"})
    python = own_python(kit)
    env = {"RESUMEKIT_TRAINER_PYTHON": str(python)}
    words = f"the trainer's Python is '{python}' (RESUMEKIT_TRAINER_PYTHON), not '/of/a/colleague/python'"
    shown = kit("run", "T-1", "--dry-run", env=env).stdout
    assert "RESUMEKIT_TRAINER_PYTHON" in shown and "/of/a/colleague/python" in shown
    assert words.replace("\n", "\\n") in kit("run", "T-1", env=env).stderr
    (run,) = kit.run_dirs()
    record = json.loads((run / "run.json").read_text())
    assert record["argv"][0] == str(python)
    assert record["environment"]["values"]["RESUMEKIT_TRAINER_PYTHON"] == str(python)
    assert_valid("run", record)
    # The watcher takes it up in an environment of its own, with what the run has recorded.
    assert environment_of(open_run(run))["RESUMEKIT_TRAINER_PYTHON"] == str(python)
    refused = kit("run", "T-1", "--fresh", env={"RESUMEKIT_TRAINER_PYTHON": "/not/there"}, code=127)
    assert "'/not/there' is not there or not executable (RESUMEKIT_TRAINER_PYTHON" in refused.stderr
    assert kit.run_dirs() == [run]
