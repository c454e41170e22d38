"""The choice on trees that the kit did not make: protocol §5's, and a bare folder of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import Kit
from test_run import record, tree
from toy_trainer import write_checkpoint

EXPERIMENTS = {"EXP-03": {"name": "droppath_base"}, "EXP-04": {"name": "next"}}


def save_as_the_protocol_does(path: Path, step: int) -> None:
    """Write a checkpoint with plain torch.save and protocol §6's keys."""
    import torch  # only the tests of a real tree pay for it

    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "scheduler_state_dict": {"last_epoch": step},
            "scaler_state_dict": {},
            "global_step": step,
            "epoch": 3,
            "best_val_loss": 0.25,
        },
        path,
    )


@pytest.fixture
def theirs(kit: Kit) -> Path:
    """Protocol §5's tree, with logs and status.json of their own and no file of ours in it."""
    base, resumed = kit.runs / "EXP-03_droppath_base", kit.runs / "EXP-03_droppath_base_resume@40000"
    for step in (30000, 40000):
        save_as_the_protocol_does(base / f"checkpoints/hrm_arc_step_{step}.pt", step)
    (base / "checkpoints/hrm_arc_best.pt").write_bytes((base / "checkpoints/hrm_arc_step_30000.pt").read_bytes())
    save_as_the_protocol_does(resumed / "checkpoints/hrm_arc_step_42000.pt", 42000)
    for run, step in ((base, 40000), (resumed, 42000)):
        (run / "logs").mkdir()
        (run / "logs/train.log").write_text(f"their own log, up to step {step}\n")
        (run / "status.json").write_text(json.dumps({"run_id": run.name, "global_step": step, "steps_per_sec": 3.5}))
    kit.config(experiments=EXPERIMENTS, training={"max_steps": 50000})
    return kit.runs


def only_allowed_changes(before: dict, after: dict) -> None:
    """Assert the rule: a child changes no file of its parent; a claim or pin, and the lock, may be added."""
    for name in before:
        if not name.endswith(("base", "40000", ".")):  # folders that got a claims/ beside their files
            assert after[name] == before[name], name
    theirs = [n for n in after if n not in before and n.startswith("EXP-03_droppath_base") and "/" in n]
    ours = [n for n in theirs if n.split("/")[0] in before]
    assert all(n.split("/")[1] in ("claims", "lock") for n in ours), ours


def test_the_users_own_tree_is_resumed_at_step_40000(kit: Kit, theirs: Path):
    before = tree(theirs)
    page = kit("resume", "EXP-03", "--step", "40000", "--dry-run", "--json").stdout
    assert tree(theirs) == before
    shown = json.loads(page)
    assert shown["checkpoint"]["step"] == 40000 and shown["checkpoint"]["grade"] == "plausible"
    assert shown["parent_run_id"] == "EXP-03_droppath_base" and shown["relation"] == "branch"
    said = kit("resume", "EXP-03", "--step", "40000", code=1).stderr  # the toy trainer cannot read torch's pickle
    [run] = kit.run_dirs()
    own = record(run)
    assert run.name.startswith("EXP-03_droppath_base_resume@40000_") and own["parent_step"] == 40000
    assert own["argv"][-1] == str(theirs / "EXP-03_droppath_base/checkpoints/hrm_arc_step_40000.pt")
    assert "has no resolved config: 'config.yaml' as it is now is used" in said
    only_allowed_changes(before, tree(theirs))


def test_the_users_own_tree_continues_from_its_newest_head_and_has_a_lineage(kit: Kit, theirs: Path):
    shown = json.loads(kit("resume", "EXP-03", "--dry-run", "--json").stdout)
    assert [(c["step"], c["run_id"]) for c in shown["candidates"]] == [
        (42000, "EXP-03_droppath_base_resume@40000"),
        (40000, "EXP-03_droppath_base"),
        (30000, "EXP-03_droppath_base"),
    ]
    best = json.loads(kit("resume", "EXP-03", "--best", "--dry-run", "--json").stdout)
    assert best["checkpoint"]["path"].endswith("EXP-03_droppath_base/checkpoints/hrm_arc_best.pt")
    listed = kit("runs").stdout.splitlines()
    assert [line.split()[:2] for line in listed] == [
        ["EXP-03_droppath_base", "unknown"],
        ["└", "EXP-03_droppath_base_resume@40000"],
    ]
    assert "'EXP-03_droppath_base_resume@40000' has checkpoints" in kit("run", "EXP-03", "--dry-run").stdout


def test_a_folder_of_checkpoints_alone_is_a_run(kit: Kit):
    kit.config("--save-every", "5", training={"max_steps": 20}, experiments=EXPERIMENTS)
    for step in (9000, 10000):
        write_checkpoint(kit.runs / f"EXP-03/checkpoints/hrm_arc_step_{step}.pt", step)
    kit("resume", "EXP-03", "--set", "training.max_steps=10002")
    own = record(kit.run_dirs()[0])
    assert (own["parent_run_id"], own["parent_step"]) == ("EXP-03", 10000), "10000 is after 9000, whatever sorts first"
    assert sorted(p.name for p in (kit.runs / "EXP-03").iterdir()) == ["checkpoints", "claims"]


def test_a_folder_with_a_name_of_ours_and_nothing_in_it_is_no_run_to_resume(kit: Kit):
    (kit.runs / "T-1_notes").mkdir(parents=True)
    (kit.runs / "T-1_notes/thoughts.md").write_text("not a run")
    assert "starting T-1 anew" in kit("run", "T-1").stderr


def test_checkpoints_of_a_renamed_run_are_taken_only_where_they_are_named(kit: Kit):
    kit.config("--save-every", "5", training={"max_steps": 20})
    kit("run", "T-1", code=137, env={"TOY_ARGS": "--at 7 kill"})
    [run] = kit.run_dirs()
    moved = run.rename(kit.runs / "T-1_moved")
    said = kit("resume", "T-1_moved", code=3).stderr
    assert f"its manifest names another run, '{run.name}'" in said
    kit("resume", "T-1_moved", "--checkpoint", str(moved / "checkpoints/hrm_arc_step_5.pt"))


def test_a_parent_that_is_not_here_is_no_error(kit: Kit):
    kit.config("--save-every", "5", training={"max_steps": 20})
    kit("run", "T-1", code=137, env={"TOY_ARGS": "--at 7 kill"})
    kit("resume", "T-1", code=137, env={"TOY_ARGS": "--at 12 kill"})
    first, second = kit.run_dirs()
    first.rename(kit.folder / "elsewhere")
    assert f"continuing '{second.name}' at step 10" in kit("resume", "T-1").stderr
    assert next(line.split()[0] for line in kit("runs").stdout.splitlines()) == second.name


@pytest.mark.parametrize(
    "record_text",
    ["", "[]", '{"run_id": 5}', '{"run_id": "T-1_a", "parent_run_id": ["x"], "created_at": 7, "name": {}}'],
)
def test_a_run_json_of_the_wrong_shape_is_no_traceback(kit: Kit, record_text: str):
    write_checkpoint(kit.runs / "T-1_a/checkpoints/hrm_arc_step_5.pt", 5)
    (kit.runs / "T-1_a/run.json").write_text(record_text)
    (kit.runs / "T-1_a/journal.jsonl").write_text("\n")
    for command in (["resume", "T-1", "--dry-run"], ["runs"], ["runs", "T-1_a"]):
        result = kit(*command, code=None)
        assert result.returncode in (0, 2, 4) and "Traceback" not in result.stderr


def test_parents_in_a_circle_end(kit: Kit):
    for name, parent in (("T-1_a", "T-1_b"), ("T-1_b", "T-1_a")):
        write_checkpoint(kit.runs / name / "checkpoints/hrm_arc_step_5.pt", 5)
        own = {"run_id": name, "experiment": "T-1", "parent_run_id": parent, "parent_step": 5}
        (kit.runs / name / "run.json").write_text(json.dumps(own))
        (kit.runs / name / "journal.jsonl").write_text("\n")
    assert len(kit("runs").stdout.splitlines()) == 2
    assert "there is no run" in kit("resume", "T-1", code=2).stderr
    kit("resume", "T-1_a", "--dry-run", "--set", "training.max_steps=9")
