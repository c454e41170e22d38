"""What counts as the code of a run, and what of it would be another one at a recovery."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from resumekit.base.files import read_bounded
from resumekit.process import sidecar_warnings
from resumekit.run import live_marker
from resumekit.run.run_folder import open_run
from resumekit.start import code_change, code_scope, command_files
from resumekit.watch import recovering
from support.commands import Kit
from support.lab_repo import git
from support.places import TOY
from support.processes import wait_until
from support.recoveries import configure
from support.runs import events, reseal

COMMAND = ["{python}", "train.py", "--dir", "{checkpoints_dir}", "--steps", "{training.max_steps}", "--save-every", "5",
           "--at", "12", "exit=5"]  # fmt: skip


def write_lab(kit: Kit, *, with_git: bool = True, **more: Any) -> Path:
    """Make a repository with a trainer, a document and a notebook; return its folder."""
    folder = kit.folder
    shutil.copy(TOY, folder / "train.py")
    (folder / "README.md").write_text("read me\n")
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "look.ipynb").write_text("{}\n")
    (folder / ".gitignore").write_text("runs/\nnew.py\nhelper.py\ntold\n")
    configure(kit, trainer={"command": COMMAND, "loads_with_kit": False}, **more)
    if with_git:
        git(folder, "init", "-q")
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", "one")
    return folder


def failed_run(kit: Kit) -> Path:
    """Let a run fail behind two checkpoints, with nothing that takes it up; return its folder."""
    kit("run", "T-1", code=5)
    return kit.run_dirs()[-1]


@pytest.fixture
def paused(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> Kit:
    """A kit whose runs are not taken up before `asked` does it."""
    monkeypatch.setenv("RESUMEKIT_TEST_MARK", kit.mark)
    return kit


def asked(kit: Kit, run: Path) -> recovering.Outcome:
    """Ask once, as a launcher would, whether a run that has failed is taken up."""
    config = json.loads((run / "resolved_config.json").read_text())
    config["recover"]["enabled"] = True
    (run / "resolved_config.json").write_text(json.dumps(config))
    reseal(run)
    reseal(run)
    live_marker.make(open_run(run).paths.live_marker)
    return recovering.recover(run, os.getpid())


def reason(run: Path) -> str:
    return events(run, "recovery")[-1]["reason"]


OFF = {"recover": {"enabled": False}}


def edit_readme(folder: Path) -> None:
    (folder / "README.md").write_text("one more experiment\n")
    (folder / "docs").mkdir()
    (folder / "docs" / "plan.py").write_text("not for the trainer\n")
    git(folder, "add", "docs")


def commit_readme(folder: Path) -> None:
    edit_readme(folder)
    git(folder, "commit", "-qam", "words")


def edit_config(folder: Path) -> None:
    document = json.loads((folder / "config.yaml").read_text())
    document["experiments"]["T-3"] = {"name": "next"}
    (folder / "config.yaml").write_text(json.dumps(document))


@pytest.mark.parametrize("edit", [edit_readme, commit_readme, edit_config], ids=lambda edit: edit.__name__)
def test_an_edit_that_the_trainer_cannot_see_does_not_switch_a_recovery_off(
    paused: Kit, edit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_scope, "KIT_ROOT", paused.folder)
    folder = write_lab(paused, **OFF)
    run = failed_run(paused)
    edit(folder)
    assert asked(paused, run).ready is not None


def test_an_edit_of_the_trainer_needs_a_person_and_the_file_is_named(paused: Kit) -> None:
    folder = write_lab(paused, **OFF)
    run = failed_run(paused)
    with open(folder / "train.py", "a") as file:
        file.write("# another rate\n")
    git(folder, "commit", "-qam", "a rate")
    assert asked(paused, run) == recovering.NOTHING
    assert "the code has changed since the run began: train.py" in reason(run)


def test_a_commit_to_a_file_that_the_command_does_not_name_is_seen(paused: Kit) -> None:
    folder = write_lab(paused, **OFF)
    run = failed_run(paused)
    (folder / "notebooks" / "look.ipynb").write_text('{"cells": 1}\n')
    git(folder, "commit", "-qam", "a notebook")
    assert asked(paused, run) == recovering.NOTHING
    assert "the code has changed since the run began: notebooks/look.ipynb" in reason(run)


def test_a_commit_of_what_was_there_already_changes_nothing(paused: Kit) -> None:
    folder = write_lab(paused, **OFF)
    with open(folder / "train.py", "a") as file:
        file.write("# not committed yet\n")
    run = failed_run(paused)
    git(folder, "commit", "-qam", "as it was")
    assert asked(paused, run).ready is not None


def test_what_recover_not_code_lists_is_no_code(paused: Kit) -> None:
    folder = write_lab(paused, recover={"enabled": False, "not_code": ["notebooks/**"]})
    run = failed_run(paused)
    (folder / "notebooks" / "look.ipynb").write_text('{"cells": 1}\n')
    assert asked(paused, run).ready is not None


@pytest.mark.parametrize("pattern", ["*", "**", "/etc/*", "../x", ":(top)x"])
def test_a_pattern_that_would_leave_everything_out_is_refused(kit: Kit, pattern: str) -> None:
    kit.config(recover={"not_code": [pattern]})
    assert "recover.not_code" in kit("run", "T-1", "--dry-run", code=4).stderr


def test_untracked_code_is_compared_by_its_digest_and_that_is_said(paused: Kit) -> None:
    folder = write_lab(paused, **OFF)
    (folder / "helper.py").write_text("RATE = 1\n")
    (folder / "new.py").write_text(
        (folder / "train.py").read_text().replace("import os\n", "import os\nimport helper\n")
    )
    configure(paused, trainer={"command": ["{python}", "new.py", *COMMAND[2:]], "loads_with_kit": False}, **OFF)
    said = paused("run", "T-1", code=5).stderr
    assert "code outside git, recorded by digest: new.py, helper.py" in said
    (run,) = paused.run_dirs()
    (folder / "helper.py").write_text("RATE = 2\n")
    assert asked(paused, run) == recovering.NOTHING
    assert "the code has changed since the run began: helper.py" in reason(run)


def test_without_git_the_script_is_compared(paused: Kit) -> None:
    folder = write_lab(paused, with_git=False, **OFF)
    run = failed_run(paused)
    (folder / "README.md").write_text("words\n")
    with open(folder / "train.py", "a") as file:
        file.write("# edited\n")
    assert asked(paused, run) == recovering.NOTHING
    assert "train.py" in reason(run)


def test_a_large_changed_file_is_recorded_by_digest_and_said(paused: Kit) -> None:
    folder = write_lab(paused, **OFF)
    (folder / "weights.bin").write_bytes(os.urandom(1 << 20))
    git(folder, "add", "weights.bin")
    git(folder, "commit", "-q", "-m", "weights")
    (folder / "weights.bin").write_bytes(os.urandom(8 << 20))
    with open(folder / "train.py", "a") as file:
        file.write("# and some text\n")
    said = paused("run", "T-1", code=5).stderr
    assert "1 changed binary file is recorded by digest" in said
    (run,) = paused.run_dirs()
    patch = read_bounded(run / "code.patch", 1 << 20)
    assert b"and some text" in patch and b"weights.bin" in patch and b"GIT binary patch" not in patch
    assert set(json.loads((run / "run.json").read_text())["code"]["changed"]) == {"weights.bin", "train.py"}
    with open(folder / "weights.bin", "ab") as file:
        file.write(b"more")
    assert asked(paused, run) == recovering.NOTHING
    assert "weights.bin" in reason(run)


def test_a_run_of_the_version_before_is_compared_as_it_was_recorded(paused: Kit) -> None:
    """Its record has the digest of one long diff; a document that was committed since is no change there either."""
    folder = write_lab(paused, **OFF)
    with open(folder / "train.py", "a") as file:
        file.write("# not committed\n")
    run = failed_run(paused)
    document = json.loads((run / "run.json").read_text())
    del document["code"]
    document["git"]["diff_sha256"] = code_change.git.old_diff(folder, document["git"]["commit"])
    (run / "run.json").write_text(json.dumps(document))
    assert code_change.answer(code_change.ask(open_run(run))) == []
    with open(folder / "train.py", "a") as file:
        file.write("# edited\n")
    assert code_change.answer(code_change.ask(open_run(run))) == ["train.py"]
    document["git"]["diff_sha256"] = None
    (run / "run.json").write_text(json.dumps(document))
    git(folder, "checkout", "-q", "--", "train.py")
    commit_readme(folder)
    assert code_change.answer(code_change.ask(open_run(run))) == []


def test_what_is_code_and_has_changed_is_warned_of_once_while_the_run_lives(paused: Kit) -> None:
    folder = write_lab(paused, **OFF)
    run = failed_run(paused)
    config = json.loads((run / "resolved_config.json").read_text())
    config["recover"]["enabled"] = True
    (run / "resolved_config.json").write_text(json.dumps(config))
    reseal(run)
    reseal(run)
    told: list[str] = []

    def look(times: int) -> None:
        """Look so many times; each waits until the question is answered."""
        for _ in range(times):
            clock[0] += sidecar_warnings.CODE_LOOK_S + sidecar_warnings.FIRST_LOOK_S
            watch.look(clock[0], append)
            wait_until(lambda: watch.look(clock[0], append) or watch._asked is None, "an answer")

    def append(event: str, *, kind: str, message: str) -> None:
        told.append(f"{event} {kind}: {message}")

    clock = [0.0]
    watch = sidecar_warnings.CodeWatch(open_run(run), None, 0.0)
    look(1)
    assert told == []
    (folder / "README.md").write_text("words\n")
    with open(folder / "train.py", "a") as file:
        file.write("# edited\n")
    look(2)
    assert told == [
        "warning code_changed: the code has changed since the run began: train.py; a recovery would need attention"
    ]
    watch = sidecar_warnings.CodeWatch(
        open_run(run), watch.said, clock[0]
    )  # another sidecar, with the account of this one
    look(1)
    assert len(told) == 1


def test_the_kit_s_own_front_is_no_code_and_its_library_is_where_the_trainer_loads_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_scope, "KIT_ROOT", tmp_path / "kit")
    alone = code_scope.of({"trainer": {"loads_with_kit": False}}, tmp_path)
    with_kit = code_scope.of({"trainer": {"loads_with_kit": True}}, tmp_path)
    for name in (
        "kit/bin/run.sh",
        "kit/schemas/run.schema.json",
        "kit/config.yaml",
        "README.md",
        "docs/a.py",
        "a/B.MD",
    ):
        assert not alone.has(name) and not with_kit.has(name), name
    for name in ("train.py", "bin/train.sh", "schemas/x.json", "config.yaml", "lib/model.py", "src/docs.py"):
        assert alone.has(name) and with_kit.has(name), name
    assert with_kit.has("kit/lib/resumekit/trainer/loading.py")
    assert not alone.has("kit/lib/resumekit/trainer/loading.py")


def test_the_files_that_a_command_names(tmp_path: Path) -> None:
    files = {
        "train.py": "from model import Net\nimport os, lab.data as data\n", "model.py": "from . import x\n",
        "lab/__init__.py": "", "lab/data.py": "from .deep import a\n", "lab/deep.py": "", "other.py": "",
        "conf/base.yaml": "a: 1\n", "out.json": "{}", "ds_config.json": "{}", "runs/r/resolved_config.yaml": "",
        "data.txt": "x", "train.sh": "#!/bin/sh\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def named(*argv: str) -> list[str]:
        return sorted(command_files.named_files(argv, tmp_path, tmp_path, tmp_path / "runs"))

    script = ["lab/__init__.py", "lab/data.py", "lab/deep.py", "model.py", "train.py"]
    assert named("python", "train.py", "--out", "out.json", "data.txt") == script
    assert named("python", "-m", "lab") == ["lab/__init__.py", "lab/data.py", "lab/deep.py"]
    assert named("bash", "train.sh", "--config=conf/base.yaml") == ["conf/base.yaml", "train.sh"]
    assert named("python", "other.py", "--deepspeed", "ds_config.json") == ["ds_config.json", "other.py"]
    assert named("python", "other.py", "--config", "runs/r/resolved_config.yaml") == ["other.py"]
    assert named("python", "missing.py") == []


def test_a_repository_that_does_not_answer_is_asked_again_and_calls_no_one(paused: Kit, tmp_path: Path) -> None:
    folder = write_lab(paused, **OFF)
    run = failed_run(paused)
    os.rename(folder / ".git", folder / ".hidden")
    outcome = asked(paused, run)
    assert outcome.ready is None and outcome.wait_s == recovering.TRY_AGAIN_S
    os.rename(folder / ".hidden", folder / ".git")
    assert subprocess.run(["git", "-C", str(folder), "status"], capture_output=True, check=False).returncode == 0
    assert asked(paused, run).ready is not None
