"""How often a run is taken up, how much room that needs, and who is told of ends that are alike."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resumekit.base.errors import DiskFull
from resumekit.base.paths import RunPaths
from resumekit.run.run_folder import Run
from resumekit.run.run_table import RunTable
from resumekit.watch import budget
from support.commands import Kit
from support.places import TOY
from support.processes import wait_until
from support.recoveries import configure, live
from support.runs import events

# It dies seven steps after each start, behind a new checkpoint: every start makes progress, and there is no end of it.
TRAINER = """
import runpy, sys
words = sys.argv[1:]
at = int(words[words.index("--resume") + 1].rpartition("_")[2][:-3]) if "--resume" in words else 0
sys.argv = [%r, *words, "--at", str(at + 7), "exit=5"]
runpy.run_path(%r, run_name="__main__")
"""


def write_trainer(kit: Kit, **sections: dict[str, Any]) -> None:
    (kit.folder / "train.py").write_text(TRAINER % (str(TOY), str(TOY)))
    command = ["{python}", "train.py", "--dir", "{checkpoints_dir}", "--steps", "99", "--save-every", "5"]
    configure(kit, trainer={"command": command}, training={"max_steps": 99}, **sections)


def test_a_run_that_makes_progress_and_dies_is_taken_up_so_often_in_an_hour_and_no_more(kit: Kit) -> None:
    write_trainer(kit, recover={"max_per_hour": 2})
    launcher = kit.popen("run", "T-1")
    wait_until(lambda: len(kit.run_dirs()) == 3 and events(kit.run_dirs()[2], "warning"), "it waits")
    last = kit.run_dirs()[2]
    waits = [event["message"] for event in events(last, "warning") if event["kind"] == "recovery_waits"]
    assert len(waits) == 1 and "it was taken up 2 times within an hour (recover.max_per_hour)" in waits[0]
    assert live(kit) == [last.name], "the watcher goes on with it where the launcher does not"
    launcher.terminate()
    launcher.communicate(timeout=60)


def test_what_is_taken_up_all_day_is_a_person_s_and_the_third_equal_end_is_told(kit: Kit) -> None:
    write_trainer(kit, recover={"max_per_day": 3}, notify={"command": ["tee", "-a", str(kit.folder / "told")]})
    kit("run", "T-1", code=5)
    runs = kit.run_dirs()
    assert len(runs) == 4
    reason = events(runs[3], "recovery")[-1]["reason"]
    assert "it was taken up 3 times within 24 hours (recover.max_per_day)" in reason
    told = [json.loads(line) for line in (kit.folder / "told").read_text().splitlines()]
    assert [(one["event"], one["run_id"]) for one in told] == [("warning", runs[2].name), ("recovery", runs[3].name)]
    assert told[0]["kind"] == "same_end" and "3 ends in a row are alike" in told[0]["message"]


def made_up(tmp_path: Path, ages_s: list[float], **recover: Any) -> tuple[Run, RunTable, float]:
    """Return (the newest run of a chain, its table, now): a person's run, and recoveries of the given ages in s."""
    now, parent = 1_800_000_000.0, None
    for number, age_s in enumerate([max(ages_s) + 60, *ages_s]):
        name = f"T-1_toy_20270101-00{number:02d}"
        folder = tmp_path / name
        folder.mkdir()
        at = budget.time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", budget.time.gmtime(now - age_s))
        record = {"run_id": name, "parent_run_id": parent, "created_at": at}
        record["recovery"] = {"cause": "died", "attempt": 1} if parent else None
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "resolved_config.json").write_text(json.dumps({"recover": recover}))
        parent = name
    table = RunTable(tmp_path)
    return table.get(parent), table, now


@pytest.mark.parametrize(
    ("ages_s", "recover", "wait_s"),
    [
        ([3000, 2000, 1000, 500, 400], {}, None),
        ([3000, 2000, 1000, 500, 400, 300], {}, 600),
        ([4000, 2000, 1000, 500, 400, 300], {}, None),
        ([3000, 2000, 1000, 500, 400, 300], {"max_per_hour": None}, None),
        ([3000, 2000], {"max_per_hour": 1}, 1600),
    ],
)
def test_an_hour_s_budget_is_waited_for(
    tmp_path: Path, ages_s: list[float], recover: dict[str, Any], wait_s: float | None
) -> None:
    run, table, now = made_up(tmp_path, ages_s, **recover)
    over = budget.spent(run, table, now)
    assert (over and over.wait_s) == wait_s


def test_a_day_s_budget_is_a_person_s(tmp_path: Path) -> None:
    ages = [86_000.0 - 3500 * number for number in range(24)]
    run, table, now = made_up(tmp_path, ages)
    assert budget.spent(run, table, now).wait_s is None
    assert budget.spent(run, table, now + 3000) is None


def test_a_take_up_wants_room_for_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(RunPaths(tmp_path / "T-1"), {})
    run.config = {"abort": {"free_mb": 1}}
    disk = SimpleNamespace(f_bavail=300 << 20, f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda _path: disk)
    budget.require_room(run, {"symptoms": {"save_bytes": 200 << 20}}, None)
    with pytest.raises(DiskFull, match="300 MiB left, 416 are wanted"):
        budget.require_room(run, {"symptoms": {"save_bytes": 400 << 20}}, None)
    run.config = {"abort": {"free_mb": 500}}
    with pytest.raises(DiskFull):
        budget.require_room(run, {}, None)


def test_an_hour_that_the_budget_was_waited_for_does_not_count_as_one_in_which_it_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, table, now = made_up(tmp_path, [3700, 3650, 3640], max_per_hour=3)
    monkeypatch.setattr(budget.time, "time", lambda: now)
    assert budget.free_for_s(run, table) == 100
    monkeypatch.setattr(budget, "MAX_PER_HOUR", 6)
    run.config["recover"]["max_per_hour"] = 4
    assert budget.free_for_s(run, table) == float("inf")
