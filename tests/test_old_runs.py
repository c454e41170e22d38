"""Run folders that the version before made are listed, resumed and recovered as they stand.

tests/recorded/old_run/ is a lineage of two that version c83810b left when everything of the second run was killed at
once; recorded/make_old_run.sh made it. What names the machine of that time is put in here: the processes of a run are
looked for on its own host and boot, a recovery wants the versions of its interpreter, and a marker holds its own inode.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resumekit.base import processes
from support.commands import Kit
from support.places import ROOT
from support.processes import wait_until
from support.recoveries import watch_as_cron
from support.runs import events

OLD = ROOT / "tests" / "recorded" / "old_run"
FIRST, SECOND = sorted(path.name for path in OLD.glob("T-1*"))


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Kit]:
    """The lab of that time, with its two runs, on this machine."""
    lab = tmp_path / "lab"
    kit = Kit(lab)
    shutil.copy(OLD / "train.py", lab)
    shutil.copy(OLD / "config.yaml", kit.config_file)
    here = {"@LAB@": str(lab), "@PYTHON@": sys.executable, "@HOST@": processes.host_name(),
            "@BOOT@": processes.boot_id(), "@PIDS@": str(processes.pid_namespace())}  # fmt: skip
    for name in (FIRST, SECOND):
        shutil.copytree(OLD / name, kit.runs / name)
        for path in (kit.runs / name).rglob("*"):
            if path.is_file() and path.suffix not in (".pt",):
                text = path.read_text()
                for word, value in here.items():
                    text = text.replace(word, value)
                path.write_text(text)
        record = json.loads((kit.runs / name / "run.json").read_text())
        record["versions"] = dict.fromkeys(record["versions"])  # of another interpreter than this one
        copy = (kit.runs / name / "config.yaml").read_bytes()  # other bytes, with the places of this machine in them
        record["environment"]["values"]["HOME"] = str(lab)  # of a user who has no seals yet, as after an upgrade
        record["config_sha256"] = hashlib.sha256(copy).hexdigest()
        (kit.runs / name / "run.json").write_text(json.dumps(record))
    marker = kit.runs / ".live" / SECOND
    marker.parent.mkdir()
    marker.touch()
    marker.write_text(f"{marker.stat().st_ino}\n")
    yield kit
    kit.clean_up()


def test_they_are_listed_with_their_lineage(old: Kit) -> None:
    rows = {row["run_id"]: row for row in json.loads(old("runs", "T-1", "--json").stdout)}
    assert rows[FIRST]["state"] == "failed" and rows[SECOND]["state"] == "lost"
    step = int(SECOND.partition("@")[2].partition("_")[0])
    assert rows[SECOND]["parent_run_id"] == FIRST and rows[SECOND]["parent_step"] == step


def test_they_are_resumed_by_hand(old: Kit) -> None:
    page = old("resume", "T-1", "--dry-run").stdout
    assert f"continuing '{SECOND}' at step " in page and "verdict: ready" in page
    old("resume", "T-1")
    last = old.run_dirs()[-1]
    assert json.loads((last / "run.json").read_text())["parent_run_id"] == SECOND
    assert old.status(last)["state"] == "finished"


def test_a_pass_of_the_watcher_takes_up_the_one_that_was_killed(old: Kit) -> None:
    watch_as_cron(old)
    wait_until(lambda: len(old.run_dirs()) == 3 and events(old.run_dirs()[2], "exited"), "a child has ended")
    child = old.run_dirs()[2]
    record = json.loads((child / "run.json").read_text())
    assert record["parent_run_id"] == SECOND and record["recovery"]["cause"] == "died" and record["parent_step"] >= 20
    wait_until(lambda: old.status(child)["state"] == "finished", "the child has finished")
