"""bin/resume.sh: which checkpoint, which config, which relation to the run before."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resumekit.base import processes
from support.commands import Kit, killed
from support.places import TOY
from support.processes import wait_until
from support.runs import events, record, reseal, tree
from support.toy_trainer import write_checkpoint


def newest(kit: Kit) -> dict:
    return record(kit.run_dirs()[-1])


def shown(kit: Kit, *args: str, code: int = 0) -> dict:
    return json.loads(kit("resume", *args, "--dry-run", "--json", code=code).stdout)


def damage(checkpoint: Path) -> None:
    """Change one byte of a tensor: size, structure and step stay as they are."""
    data = bytearray(checkpoint.read_bytes())
    at = data.index(b"archive/data/0") + len(b"archive/data/0")
    data[at] ^= 0xFF
    checkpoint.write_bytes(data)


def test_takes_the_latest_stable_checkpoint_and_names_each_one_passed_over(kit: Kit):
    run = killed(kit, at=22, steps=40)
    damage(run / "checkpoints/hrm_arc_step_20.pt")
    (run / "checkpoints/hrm_arc_step_15.pt").write_bytes(b"")
    said = kit("resume", "T-1").stderr
    assert newest(kit)["parent_step"] == 10
    assert "passed over 'hrm_arc_step_20.pt': digest differs from its manifest" in said
    assert "passed over 'hrm_arc_step_15.pt': truncated: 0 of" in said
    assert f"continuing '{run.name}' at step 10 (attested: newest stable)" in said


def test_the_history_of_a_resumed_run_ends_at_the_step_it_was_resumed_at(kit: Kit):
    run = killed(kit, at=22, steps=40)  # 5, 10, 15, 20
    kit("resume", "T-1", "--step", "10", code=137, env={"TOY_ARGS": "--at 12 kill"})
    child = kit.run_dirs()[-1]
    page = shown(kit, "T-1")
    assert (page["checkpoint"]["step"], page["checkpoint"]["run_id"]) == (10, run.name)
    assert page["parent_run_id"] == child.name, "the child is the head, though the checkpoint is its parent's"
    assert [c["step"] for c in page["candidates"]] == [10, 5]


@pytest.mark.parametrize("option", ["--step", "--best", "--checkpoint", "--from"])
def test_each_way_to_name_a_place_is_a_branch_from_it(kit: Kit, option: str, killed_run: Path):
    best = killed_run / "checkpoints/hrm_arc_best.pt"
    shutil.copy(killed_run / "checkpoints/hrm_arc_step_5.pt", best)
    value = {"--step": ["5"], "--best": [], "--checkpoint": [str(best)], "--from": [killed_run.name]}[option]
    kit("resume", "T-1", option, *value)
    own = newest(kit)
    step = 10 if option == "--from" else 5
    assert (own["relation"], own["parent_run_id"], own["parent_step"]) == ("branch", killed_run.name, step)
    assert own["argv"][-1].endswith({"--step": "step_5.pt", "--from": "step_10.pt"}.get(option, "best.pt"))


def test_a_branch_to_another_experiment_keeps_the_name_of_its_base_and_is_compared_with_it(kit: Kit, killed_run: Path):
    kit("resume", "T-2", "--from", killed_run.name)
    own = newest(kit)
    assert own["run_id"].startswith("T-2_toy_resume@10_") and own["parent_run_id"] == killed_run.name
    kit.config("--save-every", "5", experiments={"T-2": {"name": "other", "model": {"hidden_size": 4}}})
    said = kit("resume", "T-2", "--from", killed_run.name, code=6).stderr
    assert "model.hidden_size: null -> 4: the weights have another shape" in said


@pytest.mark.fault("C10", by="plan: the parent's config")
def test_a_checkpoint_of_another_model_is_refused(kit: Kit):
    sizes = {"T-1": {"name": "toy"}, "T-2": {"name": "other", "model": {"hidden_size": 8}}}
    kit.config("--save-every", "5", training={"max_steps": 20}, experiments=sizes)
    kit("run", "T-2", code=137, env={"TOY_ARGS": "--at 7 kill"})
    other = kit.run_dirs()[-1]
    args = ("T-1", "--checkpoint", str(other / "checkpoints/hrm_arc_step_5.pt"))
    assert "model.hidden_size: 8 -> null: the weights have another shape" in kit("resume", *args, code=6).stderr


@pytest.mark.fault("C11", by="config_diff: what each key costs")
@pytest.mark.parametrize(
    "setting, relation",
    [
        ("status.interval_s=7", "continue"),
        ("validation.fast_eval_every=3", "branch"),
        ("training.batch_size=3", "branch"),
    ],
)
def test_changes_that_cost_nothing_or_only_the_data_position_are_made(
    kit: Kit, setting: str, relation: str, killed_run: Path
):
    kit("resume", "T-1", "--set", setting)
    own = newest(kit)
    key, _, value = setting.partition("=")
    section, _, name = key.partition(".")
    resolved = json.loads((kit.run_dirs()[-1] / "resolved_config.json").read_text())
    assert own["relation"] == relation and resolved[section][name] == int(value) and own["settings"] == [setting]


@pytest.mark.fault("C11", by="plan: consent or refusal, key by key")
@pytest.mark.parametrize(
    "args, code, words",
    [
        (["--set", "training.max_steps=30"], 5, "whether it does 'scheduler: refit' cannot be seen"),
        (["--set", "training.seed=9"], 5, "another seed: the curves cannot be compared"),
        (["--set", "resume.optimizer=reset"], 6, "the old schedule goes on at its full learning rate"),
        (["--set", "optimizer.name=lion"], 5, "the checkpoint does not say which optimizer it holds"),
        (["--", "--delay", "0"], 5, "extra arguments of the trainer may change the training"),
    ],
)
def test_a_plan_that_may_not_start_says_why_in_one_sentence(
    kit: Kit, args: list[str], code: int, words: str, killed_run: Path
):
    said = kit("resume", "T-1", *args, code=code).stderr
    assert words in said and said.count("\n") == 1
    page = kit("resume", "T-1", "--dry-run", *args, code=code).stdout
    assert words in " ".join(page.split()) and ("verdict: refused" if code == 6 else "verdict: needs consent") in page
    assert len(kit.run_dirs()) == 1


def test_consent_that_is_given_starts_the_run_and_stands_in_its_plan(kit: Kit, killed_run: Path):
    kit("resume", "T-1", "--accept", "--set", "training.seed=9")
    plan = json.loads((kit.run_dirs()[-1] / "resume_plan.json").read_text())
    assert plan["verdict"] == "needs consent" and "another seed" in plan["consents"][0]


def test_consent_does_not_help_a_refused_plan(kit: Kit, killed_run: Path):
    kit("resume", "T-1", "--accept", "--set", "model.hidden_size=64", code=6)


def test_what_one_resume_was_told_to_reset_the_next_one_is_not(kit: Kit, killed_run: Path):
    told = ["--set", "resume.optimizer=reset", "--set", "resume.scheduler=reset", "--accept"]
    kit("resume", "T-1", *told, code=137, env={"TOY_ARGS": "--at 17 kill"})
    kit("resume", "T-1")
    actions = [
        {name: one["action"] for name, one in json.loads((run / "resume_plan.json").read_text())["components"].items()}
        for run in kit.run_dirs()[1:]
    ]
    assert [(one["optimizer"], one["scheduler"]) for one in actions] == [("reset", "reset"), ("load", "load")]


def test_a_planned_swap_is_refused_at_its_step_and_not_before(kit: Kit, killed_run: Path):
    config = json.loads(kit.config_file.read_text())
    config["optimizer"] = {"name": "adamw", "swap_at": 10, "swap_to": "lion"}
    for name in ("resolved_config.json",):
        own = json.loads((killed_run / name).read_text())
        own["optimizer"].update(config["optimizer"])
        (killed_run / name).write_text(json.dumps(own))
    kit.config_file.write_text(json.dumps(config))
    assert "this trainer sets its own learning rate" in kit("resume", "T-1", code=6).stderr
    kit("resume", "T-1", "--step", "5")


@pytest.mark.fault("I16", by="baseline: the run's own copy")
def test_the_run_s_own_config_rules_over_an_edited_one_unless_asked_otherwise(kit: Kit):
    killed(kit, "--set", "status.interval_s=3")
    kit.config("--save-every", "5", training={"max_steps": 20}, validation={"fast_eval_every": 4})
    assert "says otherwise" not in kit("resume", "T-1", "--dry-run", "--set", "status.interval_s=9").stderr
    page = " ".join(kit("resume", "T-1", "--dry-run").stdout.split())
    assert "'config.yaml' says otherwise by now (validation.fast_eval_every): the run's own config is used" in page
    assert "interval_s" not in page, "what --set said is no edit of the file"
    kit("resume", "T-1", code=137, env={"TOY_ARGS": "--at 12 kill"})
    again = kit("resume", "T-1", "--dry-run").stdout
    assert "says otherwise by now (validation.fast_eval_every)" in again, "and it is said of the next one too"
    kit("resume", "T-1", "--reresolve")
    resolved = json.loads((kit.run_dirs()[-1] / "resolved_config.json").read_text())
    assert resolved["validation"]["fast_eval_every"] == 4 and newest(kit)["relation"] == "branch"


def test_a_name_makes_a_branch_and_the_trainer_s_arguments_are_inherited(kit: Kit):
    kit.config("--save-every", "5", training={"max_steps": 20})
    kit("run", "T-1", "--", "--delay", "0.001", code=137, env={"TOY_ARGS": "--at 12 kill"})
    kit("resume", "T-1", "--name", "calm")
    own = newest(kit)
    assert own["run_id"].startswith("T-1_calm_resume@10_") and own["relation"] == "branch"
    assert own["argv"][-4:-2] != ["--delay", "0.001"] and own["argv"][-2:] == ["--delay", "0.001"]


def test_a_step_of_another_branch_is_taken_if_it_is_there_once_and_listed_if_twice(kit: Kit):
    root = killed(kit, at=22, steps=60)  # 5 10 15 20
    kit("resume", "T-1", "--step", "5", "--name", "a", code=137, env={"TOY_ARGS": "--at 13 kill"})  # 10
    branch = kit.run_dirs()[-1]
    assert shown(kit, "T-1")["checkpoint"]["run_id"] == branch.name
    page = shown(kit, "T-1", "--step", "20")
    assert (page["checkpoint"]["run_id"], page["parent_run_id"]) == (root.name, root.name)
    kit("resume", "T-1", "--step", "5", "--from", root.name, "--name", "b", code=137, env={"TOY_ARGS": "--at 23 kill"})
    other = kit.run_dirs()[-1]
    kit(
        "resume",
        "T-1",
        "--step",
        "10",
        "--from",
        branch.name,
        "--name",
        "c",
        code=137,
        env={"TOY_ARGS": "--at 11 kill"},
    )
    said = kit("resume", "T-1", "--step", "20", code=2).stderr
    assert "step 20 is on several branches" in said and f"'{root.name}'" in said and f"'{other.name}'" in said
    assert shown(kit, "T-1", "--step", "20", "--from", other.name)["checkpoint"]["run_id"] == other.name
    assert "no checkpoint found of step 77" in kit("resume", "T-1", "--step", "77", code=3).stderr


def test_a_step_that_is_broken_on_this_branch_is_not_taken_from_another(kit: Kit):
    root = killed(kit, at=22, steps=60)
    kit("resume", "T-1", "--step", "5", "--name", "a", code=137, env={"TOY_ARGS": "--at 13 kill"})
    damage(kit.run_dirs()[-1] / "checkpoints/hrm_arc_step_10.pt")
    said = kit("resume", "T-1", "--step", "10", code=3).stderr
    assert "no stable checkpoint of step 10" in said and root.name not in said


@pytest.mark.long
def test_resumes_of_resumes_go_twenty_deep(kit: Kit):
    kit.config("--save-every", "1", training={"max_steps": 100})
    kit("run", "T-1", code=137, env={"TOY_ARGS": "--at 2 kill"})
    for depth in range(1, 21):
        kit("resume", "T-1", code=137, env={"TOY_ARGS": f"--at {depth + 2} kill"})
        own = newest(kit)
        assert own["parent_step"] == depth and f"_resume@{depth}_" in own["run_id"]
    runs = kit.run_dirs()
    assert [record(run)["parent_run_id"] for run in runs] == [None, *(run.name for run in runs[:-1])]
    page = shown(kit, "T-1", "--step", "1")
    assert page["checkpoint"]["run_id"] == runs[0].name and page["relation"] == "branch"
    assert [c["step"] for c in shown(kit, "T-1")["candidates"]] == list(range(21, 0, -1))


@pytest.mark.fault("H3", by="claims: a pin spares the step")
def test_a_branch_from_a_live_run_pins_its_step_and_leaves_it_alone(kit: Kit):
    gate = kit.folder / "gate"
    kit.config("--save-every", "5", "--at", "12", f"wait={gate}", training={"max_steps": 20})
    process = kit.popen("run", "T-1")
    run = kit.started()
    wait_until((run / "checkpoints/hrm_arc_step_10.pt").exists, "step 10")
    assert "is alive (" in kit("resume", "T-1", code=6).stderr
    kit("resume", "T-1", "--step", "10", "--", code=137, env={"TOY_ARGS": "--at 11 kill"})
    child = kit.run_dirs()[-1]
    assert (run / f"claims/pin_10_{child.name}.json").is_file() and not (run / "claims/continued.json").exists()
    assert process.poll() is None
    gate.touch()
    process.communicate(timeout=60)


def test_a_dry_run_touches_nothing_and_ends_as_the_real_one_would(kit: Kit):
    run = killed(kit, at=22, steps=40)
    damage(run / "checkpoints/hrm_arc_step_20.pt")
    before = tree(kit.folder)
    page = kit("resume", "T-1", "--dry-run").stdout
    machine = shown(kit, "T-1")
    kit("resume", "T-1", "--step", "99", "--dry-run", code=3)
    kit("resume", "T-1", "--set", "training.seed=1", "--dry-run", "--json", code=5)
    kit("resume", "T-9", "--dry-run", code=2)
    kit("resume", "T-1", "--set", "nothing.of.this=1", "--dry-run", code=4)
    assert tree(kit.folder) == before, "not one name, size or time has changed"
    assert page.splitlines()[0] == f"continuing '{run.name}' at step 15"
    assert "attested: newest stable; SHA-256 as in its manifest" in " ".join(page.split())
    assert "  passed over  hrm_arc_step_20.pt: digest differs from its manifest" in page.splitlines()
    verdicts = [(c["step"], c["verdict"], c["reason"]) for c in machine["candidates"]]
    assert verdicts == [
        (20, "passed", "digest differs from its manifest"),
        (15, "chosen", "newest stable"),
        (10, "older", "older than the chosen one"),
        (5, "older", "older than the chosen one"),
    ]
    assert machine["checkpoint"]["path"] == str(run / "checkpoints/hrm_arc_step_15.pt")


@pytest.mark.fault("H4", by="search: refused, a branch is free")
def test_a_finished_run_can_be_branched_from(kit: Kit):
    kit.config("--save-every", "5", training={"max_steps": 20})
    kit("run", "T-1")
    assert "has finished at step 20" in kit("resume", "T-1", code=6).stderr
    kit("resume", "T-1", "--step", "10")
    assert newest(kit)["relation"] == "branch"


# A trainer that loads as load_resume_bundle does: not before the launcher's proof has a verdict.
GATED = """
import json, os, pathlib, sys, time
checkpoint = sys.argv[2] if len(sys.argv) > 2 else None
print("trainer for", checkpoint, flush=True)
proof = pathlib.Path(os.environ["RESUMEKIT_RUN_DIR"], "checkpoint_proof.json")
deadline = time.monotonic() + 30
while checkpoint and time.monotonic() < deadline:
    if proof.exists() and (verdict := json.loads(proof.read_text())["verdict"]) != "pending":
        sys.exit(0 if verdict in ("equal", "sound") else 3)
    time.sleep(0.01)
"""


@pytest.mark.fault("C3", by="proof: digest beside the start; quarantine")
@pytest.mark.fault("C19", by="quarantine: the next one is taken")
@pytest.mark.parametrize("how", ["EXP", "run id", "detached"])
def test_a_checkpoint_that_fails_its_proof_is_quarantined_and_the_next_one_taken(kit: Kit, how: str):
    run = killed(kit, at=22, steps=40)
    damage(run / "checkpoints/hrm_arc_step_20.pt")
    damage(run / "checkpoints/hrm_arc_step_15.pt")
    own = json.loads((run / "resolved_config.json").read_text())
    own["trainer"]["loads_with_kit"] = True
    own["trainer"]["command"] = ["{python}", "-c", GATED.replace("{", "{{").replace("}", "}}")]
    (run / "resolved_config.json").write_text(json.dumps(own))
    reseal(run)
    result = kit("resume", run.name if how == "run id" else "T-1", *(["--detach"] if how == "detached" else []))

    def good_one() -> dict | None:
        last = newest(kit)
        return last if last["parent_step"] == 10 and (kit.run_dirs()[-1] / "exit.json").exists() else None

    last = wait_until(good_one, "a resume from step 10")
    runs = kit.run_dirs()
    assert [record(r)["parent_step"] for r in runs[1:]] == [20, 15, 10]
    assert [json.loads((r / "exit.json").read_text())["code"] for r in runs[1:]] == [3, 3, 0]
    listed = json.loads((run / "quarantine.json").read_text())
    assert [(e["file"], e["reason"]) for e in listed] == [
        ("hrm_arc_step_20.pt", "digest differs from its manifest"),
        ("hrm_arc_step_15.pt", "digest differs from its manifest"),
    ]
    assert last["relation"] == "continue" and {p.name for p in (run / "checkpoints").glob("*.pt")} == {
        f"hrm_arc_step_{step}.pt" for step in (5, 10, 15, 20)
    }, "nothing is removed"
    if how != "detached":
        assert result.stderr.count("quarantined, taking the next one") == 2


def test_a_damaged_file_that_lies_in_no_run_ends_in_the_trainer_s_code_not_in_a_loop(kit: Kit, killed_run: Path):
    elsewhere = kit.folder / "inbox"
    elsewhere.mkdir()
    for name in ("hrm_arc_step_10.pt", "hrm_arc_step_10.pt.json"):
        shutil.copy(killed_run / "checkpoints" / name, elsewhere)
    damage(elsewhere / "hrm_arc_step_10.pt")
    script = GATED.replace("{", "{{").replace("}", "}}")
    trainer = {"command": ["{python}", "-c", script], "loads_with_kit": True}
    kit.config(trainer=trainer, training={"max_steps": 20})
    named = str(elsewhere / "hrm_arc_step_10.pt")
    assert "Traceback" not in kit("resume", "T-1", "--checkpoint", named, "--reresolve", code=3).stderr
    assert {p.name for p in elsewhere.iterdir()} == {"hrm_arc_step_10.pt", "hrm_arc_step_10.pt.json"}
    assert not (kit.folder / "quarantine.json").exists()


def test_a_trainer_without_the_helpers_is_started_on_proven_bytes_only(kit: Kit, killed_run: Path):
    damage(killed_run / "checkpoints/hrm_arc_step_10.pt")
    kit("resume", "T-1")
    assert newest(kit)["parent_step"] == 5 and len(kit.run_dirs()) == 2, "no trainer saw the damaged one"


def test_a_trainer_that_reads_a_fixed_name_gets_a_copy_of_its_own(kit: Kit, killed_run: Path):
    own = kit.run_dirs()[0]
    config = json.loads((own / "resolved_config.json").read_text())
    config["trainer"].update(checkpoint_in="checkpoints/last.pt", resume_args=["--resume", "{checkpoint}"])
    (own / "resolved_config.json").write_text(json.dumps(config))
    reseal(own)
    kit("resume", "T-1")
    child = kit.run_dirs()[-1]
    copy = child / "checkpoints/last.pt"
    assert record(child)["argv"][-1] == str(copy)
    assert copy.read_bytes() == (own / "checkpoints/hrm_arc_step_10.pt").read_bytes() and copy.stat().st_nlink == 1


def test_a_trainer_that_is_never_told_is_refused(kit: Kit, killed_run: Path):
    said = kit("resume", "T-1", "--set", "trainer.resume_args=[]", code=4).stderr
    assert "this trainer is never told which checkpoint to load" in said


def test_a_checkpoint_that_does_not_say_its_step_counts_as_step_zero(kit: Kit):
    path = kit.folder / "model.pt"
    write_checkpoint(path, 7, global_step=None)
    assert "global_step is not a whole number" in kit("resume", "T-1", "--checkpoint", str(path), code=3).stderr
    environ = {**kit.env, "PYTHONPATH": str(TOY.parent)}
    subprocess.run([sys.executable, "-c", _SAVE_WITHOUT_STEP, str(path)], check=True, env=environ)
    said = kit("run", "T-1", "--resume", str(path), code=1).stderr  # the toy trainer insists on a step
    assert "'model.pt' does not say its step: 0 is taken" in said
    assert newest(kit)["parent_step"] == 0 and "_resume@0_" in newest(kit)["run_id"]


_SAVE_WITHOUT_STEP = """
import sys, pathlib, toy_trainer as toy
pickled = toy._pickled
def without(value, storages):
    if isinstance(value, dict) and "global_step" in value:
        value = {k: v for k, v in value.items() if k != "global_step"}
    return pickled(value, storages)
toy._pickled = without
toy.write_checkpoint(pathlib.Path(sys.argv[1]), 7)
"""


def test_events_of_the_parent_are_left_as_they_were(kit: Kit, killed_run: Path):
    before, journal = tree(killed_run), events(killed_run)
    kit("resume", "T-1")
    after = tree(killed_run)
    added = set(after) - set(before)
    assert {a for a in added if not a.startswith("claims")} <= {"lock"} and events(killed_run) == journal
    changed = {name for name in before if before[name] != after[name]}
    held = "checkpoints/hrm_arc_step_10.pt"
    assert changed <= {".", held}, "only the folder itself, which got the claim and the lock"
    without_ctime = [{**dict(enumerate(seen[held])), 3: None} for seen in (before, after)]
    assert without_ctime[0] == without_ctime[1], "and of what the child holds the number of its links"


def test_a_key_with_a_default_that_a_lab_has_added_since_does_not_make_a_branch_of_a_continuation(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, killed_run: Path
):
    """It changes every hash; a requeued job must still be refused beside the live run, not start a second trainer."""
    run = killed_run
    copied = kit.folder / "kit"
    for part in ("bin", "lib", "schemas", "config.yaml", "VERSION"):
        source = Path(__file__).resolve().parent.parent / part
        shutil.copytree(source, copied / part) if source.is_dir() else shutil.copy(source, copied / part)
    mixup = {"type": "number", "description": "share", "default": 0.0, "x-on-resume": {}, "x-hash": True}
    mixing = {"type": "object", "additionalProperties": False, "properties": {"mixup": mixup}}
    lab = {"properties": {"mixing": mixing}}
    (copied / "schemas" / "lab.schema.json").write_text(json.dumps(lab))
    line = [str(copied / "bin" / "resume.sh"), *kit.argv("resume", "T-1", "--dry-run", "--json")[1:]]
    done = subprocess.run(line, env=kit.env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["relation"] == "continue"
    assert json.loads(done.stdout)["parent_run_id"] == run.name


def test_a_file_that_the_trainer_loads_beside_its_checkpoint_puts_nothing_into_quarantine(kit: Kit):
    """The verdict in the run folder is about one file; a damaged teacher is not the checkpoint that was resumed."""
    from resumekit.base.paths import RunPaths
    from resumekit.checkpoint import proof
    from resumekit.run import quarantine

    run = killed(kit, at=12)
    good, teacher = run / "checkpoints/hrm_arc_step_10.pt", kit.folder / "teacher.pt"
    shutil.copy(good, teacher)
    damage(teacher)
    child = kit.runs / "T-1_toy_resume@10_20260101-0000"
    child.mkdir()
    assert proof.prove_for_run(child, teacher) == 3
    assert quarantine.quarantine_damaged(child, good) is False
    assert quarantine.quarantined_names(RunPaths(run)) == frozenset()


def test_a_checkpoint_put_back_from_a_backup_is_no_longer_in_quarantine(kit: Kit):
    from resumekit.base.paths import RunPaths
    from resumekit.run import quarantine

    run = RunPaths(killed(kit, at=12))
    path = run.checkpoints / "hrm_arc_step_10.pt"
    quarantine.put_in_quarantine(run, path.name, "digest differs")
    assert quarantine.quarantined_names(run) == {path.name}
    shutil.copy(path, kit.folder / "backup.pt")
    path.unlink()
    shutil.copy(kit.folder / "backup.pt", path)
    assert quarantine.quarantined_names(run) == frozenset()


@pytest.mark.long  # the launcher waits for the log that the wrapped trainer holds open
def test_a_trainer_that_outlives_its_wrapper_is_not_joined_by_a_second_one(kit: Kit):
    """The run lives for as long as a hang takes; what hangs beyond that has to be ended first."""
    kit.config("--save-every", "5", training={"max_steps": 20}, abort={"hang_minutes": 0.1, "grace_s": 1})
    own = json.loads(kit.config_file.read_text())
    own["trainer"]["command"] = [
        "bash",
        "-c",
        '"$@"; true',
        "wrapper",
        *own["trainer"]["command"],
        "--at",
        "12",
        "hang",
    ]
    kit.config_file.write_text(json.dumps(own))
    process = kit.popen("run", "T-1")
    run = kit.started()
    wait_until(lambda: (run / "checkpoints/hrm_arc_step_10.pt").exists(), "step 10")
    leader = processes.identity_from(events(run, "launched")[0]["trainer"])
    assert processes.send(leader, signal.SIGKILL)
    wait_until(lambda: processes.probe(leader) == processes.DEAD, "its wrapper has ended")
    assert f"'{run.name}' is alive" in kit("resume", "T-1", code=6).stderr
    process.communicate(timeout=60)
    assert kit.status(run)["state"] == "failed"
    said = kit("resume", "T-1", code=6).stderr
    assert f"'{run.name}' has ended, but processes of its trainer still run (pid " in said
