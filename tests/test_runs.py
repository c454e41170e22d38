"""bin/runs.sh: which runs there are, their state, and which came from which."""

from __future__ import annotations

import json
import os
import pty
import struct
import termios
from fcntl import ioctl
from pathlib import Path

import jsonschema
import pytest

from resumekit.base import journal
from resumekit.run import listing
from resumekit.run.run_table import RunTable
from support.commands import Kit, killed
from support.long_tests import long
from support.places import ROOT, TOY
from support.runs import tree
from support.toy_trainer import write_checkpoint


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


def generations(folder: Path, count: int, **own: dict[str, object]) -> list[str]:
    """Write so many runs, each the continuation of the one before; `own` has other fields for some of them."""
    names = [f"G-1_x_20261122-{number:04d}" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        record = {"run_id": name, "experiment": "G-1", "name": "x", "created_at": f"{number:08d}"}
        record |= {"relation": "continue", "parent_run_id": names[number - 1], "parent_step": 2} if number else {}
        (folder / name / "run.json").write_text(json.dumps(record | own.get(f"of_{number}", {})))
    return names


def shown(folder: Path, wanted: str | None = None, width: int | None = None) -> list[str]:
    return listing.show(RunTable(folder), wanted, width).splitlines()


def read_ids(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that takes the id of each run whose state is read from now on."""
    read: list[str] = []
    real = listing.state_of
    monkeypatch.setattr(listing, "state_of", lambda run: read.append(run.run_id) or real(run))
    return read


def test_of_many_generations_the_first_and_the_last_are_shown_and_no_other_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    names, read, asked = generations(tmp_path, 300), read_ids(monkeypatch), []
    real = RunTable.parent
    monkeypatch.setattr(RunTable, "parent", lambda table, run: asked.append(run.run_id) or real(table, run))
    lines = shown(tmp_path)
    assert [line.split()[-2 if "more" in line else 0 if number == 0 else 1] for number, line in enumerate(lines)] == [
        names[0], "297", names[-2], names[-1],
    ]  # fmt: skip
    assert lines[1] == "└ … 297 more" and lines[2].startswith("  └ ")
    assert read == [names[0], *names[-2:]]
    assert len(asked) < 5 * len(names), "the work grows with the runs, not with their square"


def test_the_run_that_is_asked_for_stands_there_with_its_lines_of_both_sides(tmp_path: Path):
    names = generations(tmp_path, 30)
    lines = shown(tmp_path, names[15])
    assert [names[15] in line for line in lines].count(True) == 1
    assert [line.strip("│├└ ") for line in lines if "more" in line] == ["… 13 more", "… 11 more"]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_few_generations_are_all_shown(tmp_path: Path, count: int):
    assert len(shown(generations(tmp_path, count) and tmp_path)) == count


def test_a_run_that_branches_off_or_that_has_a_branch_is_not_folded(tmp_path: Path):
    names = generations(tmp_path, 30, of_10={"relation": "branch"})
    lines = " ".join(shown(tmp_path))
    assert names[9] in lines and names[10] in lines and "… 7 more" in lines and "… 17 more" in lines
    write = {"run_id": "G-1_y", "experiment": "G-1", "relation": "branch", "parent_run_id": names[20]}
    (tmp_path / "G-1_y").mkdir()
    (tmp_path / "G-1_y/run.json").write_text(json.dumps(write))
    lines = " ".join(shown(tmp_path))
    assert names[20] in lines and "G-1_y" in lines


def test_json_has_every_generation(tmp_path: Path):
    names = generations(tmp_path, 12)
    assert [run.run_id for run, _ in listing.choose(RunTable(tmp_path), None)] == names


def test_branches_of_branches_are_drawn_no_wider_than_a_terminal(tmp_path: Path):
    own = {f"of_{number}": {"relation": "branch"} for number in range(1, 60)}
    names = generations(tmp_path, 60, **own)
    lines = shown(tmp_path)
    assert all(name in line for name, line in zip(names, lines, strict=True))
    assert max(len(line.split(names[number])[0]) for number, line in enumerate(lines)) <= 24


def test_a_long_reason_goes_on_below_its_run_where_the_terminal_is_narrow(tmp_path: Path):
    names = generations(tmp_path, 2)
    reason = "'checkpoints/ckpt.pt' looks like a checkpoint and matches no pattern " * 4
    journal.append(
        tmp_path / names[1] / "journal.jsonl", "recovery", names[1], outcome="needs_attention", reason=reason
    )
    table = RunTable(tmp_path)
    rows = listing.choose(table, None)
    rows[1][1].update(state="needs_attention", recovery={"outcome": "needs_attention", "reason": reason})
    lines = listing.as_text(table, rows, 80).splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) > 3
    assert " ".join(" ".join(lines).split()).count("matches no pattern") == 4, "nothing of it is left out"
    assert lines[1].startswith(f"└ {names[1]}") and "needs_attention" in lines[1] and lines[2].startswith("    '")
    assert max(map(len, listing.as_text(table, rows, 30).splitlines())) <= 30
    assert len(listing.as_text(table, rows).splitlines()) == 2, "a program's lines are one for each run"


def test_on_a_terminal_the_table_has_its_width(kit: Kit):
    generations(kit.runs, 1, of_0={"parent_step": 1, "relation": "branch"})
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 30, 0, 0))
    process = kit.popen("runs", stdout=theirs)
    assert process.wait(timeout=60) == 0
    os.close(theirs)
    lines = os.read(ours, 65536).decode().splitlines()
    assert lines[0] == "G-1_x_20261122-0000" and "never_started" in lines[1] and max(map(len, lines)) <= 30


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
def test_values_from_another_user_s_files_are_shown_only_if_they_are_numbers(kit: Kit):
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


@pytest.mark.parametrize("count", [1_000, long(10_000)])
def test_many_folders_are_listed_and_only_those_of_the_experiment_are_opened(tmp_path: Path, monkeypatch, count: int):
    for number in range(count):
        (tmp_path / f"MANY-{number % (count // 10):03d}_x_20261122-{number:04d}").mkdir()
    write_checkpoint(tmp_path / "T-1/checkpoints/hrm_arc_step_5.pt", 5)
    table, opened = RunTable(tmp_path), []
    from resumekit.run import run_table

    real = run_table.open_run
    monkeypatch.setattr(run_table, "open_run", lambda folder: opened.append(folder.name) or real(folder))
    assert [run.run_id for run in table.heads("T-1")] == ["T-1"] and opened == ["T-1"]
    assert len(listing.choose(table, "MANY-007")) == 10 and len(opened) == 11
    rows = listing.choose(table, None)
    assert len(rows) == count + 1 and {seen["state"] for _, seen in rows} == {"never_started", "unknown"}


TELLS = 'echo "told $RESUMEKIT_ROOT_RUN_ID/$1/$2/$3/$4"; shift 4; exec "$@"'


def test_a_trainer_is_told_where_its_run_comes_from(kit: Kit):
    """A dashboard shows all resumes as one run under the id of the first; no placeholder and no variable had it."""
    names = ["{run_id}", "{parent_run_id}", "{parent_step}", "{root_run_id}"]
    toy = ["{python}", str(TOY), "--dir", "{checkpoints_dir}", "--steps", "{training.max_steps}", "--save-every", "5"]
    kit.config(trainer={"command": ["sh", "-c", TELLS, "sh", *names, *toy]}, training={"max_steps": 20})
    kit("run", "T-1", code=137, env={"TOY_ARGS": "--at 7 kill"})
    kit("resume", "T-1", code=137, env={"TOY_ARGS": "--at 12 kill", "RESUMEKIT_ROOT_RUN_ID": "of_another_run"})
    kit("resume", "T-1", env={"RESUMEKIT_ROOT_RUN_ID": "of_another_run"})
    root, child, grandchild = (run.name for run in kit.run_dirs())
    lines = [(kit.runs / name / "logs/output.log").read_text().splitlines()[0] for name in (root, child, grandchild)]
    assert lines == [
        f"told {root}/{root}///{root}",
        f"told {root}/{child}/{root}/5/{root}",
        f"told {root}/{grandchild}/{child}/10/{root}",
    ]
    assert f"export RESUMEKIT_ROOT_RUN_ID={root}" in (kit.runs / child / "command.sh").read_text()


def test_the_root_of_a_lineage_is_what_the_records_say_and_then_where_they_lead(tmp_path: Path):
    def record(run_id: str, **fields: object) -> None:
        (tmp_path / run_id).mkdir()
        written = {"run_id": run_id, "experiment": "T-1", "created_at": "2026-11-22T17:35:51.123456Z", **fields}
        (tmp_path / run_id / "run.json").write_text(json.dumps(written))

    record("T-1_b", parent_run_id="T-1_a", parent_step=5)  # whose own parent's folder was removed
    record("T-1_c", parent_run_id="T-1_b", parent_step=9)  # as a run of before `root_run_id` has it
    record("T-1_d", parent_run_id="T-1_c", parent_step=9, root_run_id="T-1_first")
    record("T-1_e", root_run_id="../x")  # no name of a run
    table = RunTable(tmp_path)
    roots = {name: table.root_id(table.get(f"T-1_{name}")) for name in "bcde"}
    assert roots == {"b": "T-1_a", "c": "T-1_a", "d": "T-1_first", "e": "T-1_e"}
