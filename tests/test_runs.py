"""bin/runs.sh: which runs there are, their state, and which came from which."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from conftest import ROOT, Kit
from resumekit.basics import journal
from resumekit.run_folder import listing
from resumekit.run_folder.runs import RunTable
from test_run import killed, tree
from toy_trainer import write_checkpoint


def lineage(kit: Kit) -> list[Path]:
    """Make a root that was killed, its continuation, a branch of the root, and a run of another experiment."""
    killed(kit)
    kit("resume", "T-1")
    kit("resume", "T-1", "--step", "5", "--name", "side", code=137, env={"TOY_ARGS": "--at 7 kill"})
    kit("run", "T-2", "--set", "training.max_steps=2")
    return kit.run_dirs()


def test_the_tree_shows_state_step_and_parent_and_touches_nothing(kit: Kit):
    root, child, branch, other = lineage(kit)
    before = tree(kit.folder)
    lines = kit("runs").stdout.splitlines()
    assert tree(kit.folder) == before
    assert [line.split()[0 if line[0] == "T" else 1] for line in lines] == [
        root.name,
        child.name,
        branch.name,
        other.name,
    ]
    assert [line[:2] for line in lines] == ["T-", "├ ", "└ ", "T-"]
    assert "failed" in lines[0] and "step 12/20" in lines[0] and "exit 137" in lines[0]
    assert "finished" in lines[1] and "step 20/20" in lines[1]
    assert "branch" in lines[2] and "failed" in lines[2]


@pytest.mark.parametrize(
    ("depths", "drawn"),
    [
        ([], []),
        ([0, 0], ["", ""]),
        ([0, 1, 2, 1], ["", "├ ", "│ └ ", "└ "]),
        ([0, 1, 2, 3, 2, 1, 0, 1], ["", "├ ", "│ ├ ", "│ │ └ ", "│ └ ", "└ ", "", "└ "]),
        ([0, 1, 2, 3, 2], ["", "└ ", "  ├ ", "  │ └ ", "  └ "]),
        ([0, 2, 1], ["", "│ └ ", "└ "]),
    ],
)
def test_the_branches_of_the_tree_are_drawn_to_the_next_sibling(depths: list[int], drawn: list[str]):
    assert listing._branches(depths) == drawn


def test_one_experiment_or_one_run_with_what_it_came_from_and_what_came_of_it(kit: Kit):
    root, child, branch, other = lineage(kit)

    def listed(*args: str) -> set[str]:
        return {status["run_id"] for status in json.loads(kit("runs", *args, "--json").stdout)}

    assert listed("T-1") == {root.name, child.name, branch.name}
    assert listed(root.name) == {root.name, child.name, branch.name}
    assert listed(branch.name) == {root.name, branch.name}
    assert listed(other.name) == listed("T-2") == {other.name}
    assert listed() == {root.name, child.name, branch.name, other.name}


def test_json_is_one_status_object_per_run(kit: Kit):
    lineage(kit)
    write_checkpoint(kit.runs / "T-9_theirs/checkpoints/hrm_arc_step_5.pt", 5)
    rows = json.loads(kit("runs", "--json").stdout)
    assert len(rows) == 5 and {row["state"] for row in rows} == {"failed", "finished", "unknown"}
    schema = ROOT / "schemas/status.schema.json"
    for row in rows:
        if row["state"] != "unknown":  # what the kit did not make has no status by the schema
            jsonschema.Draft202012Validator(json.loads(schema.read_text())).validate(row)


def test_an_empty_folder_and_a_missing_one_are_two_answers(kit: Kit):
    assert "there is no runs folder" in kit("runs", code=2).stderr
    kit.runs.mkdir()
    assert kit("runs").stdout == "no runs\n" and kit("runs", "--json").stdout == "[]\n"


@pytest.mark.fault("H15", by="listing: numbers only")
def test_values_from_somebody_s_files_are_shown_only_if_they_are_numbers(kit: Kit):
    run = killed(kit)
    state = json.loads((run / ".sidecar.json").read_text())
    bad = "\x1b[31m"
    state["state"].update(best_eval_acc=bad, best_step=bad, step=bad, steps_per_sec=[bad], phase=bad)
    (run / ".sidecar.json").write_text(json.dumps(state))
    config = json.loads((run / "resolved_config.json").read_text())
    config["training"]["max_steps"] = bad
    (run / "resolved_config.json").write_text(json.dumps(config))
    result = kit("runs")
    assert "\x1b" not in result.stdout and "Traceback" not in result.stderr and run.name in result.stdout


def test_a_recovery_is_shown_in_the_run_that_goes_on_and_the_reason_where_none_does(kit: Kit):
    root, child, branch, _ = lineage(kit)
    told = {"cause": "nonfinite", "parent_run_id": root.name, "child_run_id": child.name, "step": 10, "attempt": 1}
    for run in (root, child):
        journal.append(run / "journal.jsonl", "recovery", run.name, outcome="resumed", **told)
    why = "three starts in a row\x1b[31m came to nothing"
    journal.append(branch / "journal.jsonl", "recovery", branch.name, outcome="needs_attention", reason=why)
    lines = kit("runs").stdout.splitlines()
    assert ["taken up (nonfinite)" in line for line in lines] == [False, True, False, False]
    assert "needs_attention" in lines[2] and "three starts in a row\\x1b[31m came to nothing" in lines[2]


def test_ten_thousand_folders_are_listed_and_only_those_of_the_experiment_are_opened(tmp_path: Path, monkeypatch):
    for number in range(10_000):
        (tmp_path / f"MANY-{number % 1000:03d}_x_20261122-{number:04d}").mkdir()
    write_checkpoint(tmp_path / "T-1/checkpoints/hrm_arc_step_5.pt", 5)
    table, opened = RunTable(tmp_path), []
    from resumekit.run_folder import runs

    real = runs.open_run
    monkeypatch.setattr(runs, "open_run", lambda folder: opened.append(folder.name) or real(folder))
    assert [run.run_id for run in table.heads("T-1")] == ["T-1"] and opened == ["T-1"]
    assert len(listing.choose(table, "MANY-007")) == 10 and len(opened) == 11
    rows = listing.choose(table, None)
    assert len(rows) == 10_001 and {seen["state"] for _, seen in rows} == {"never_started", "unknown"}
