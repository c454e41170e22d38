"""The choice on trees that the kit did not make: protocol §5's, and a bare folder of checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from resumekit.base.errors import KitError, UsageError
from resumekit.base.terminal import plain
from resumekit.run import listing
from resumekit.run.run_folder import open_run
from resumekit.run.run_table import RunTable
from resumekit.start import choice, plan_report, preflight
from resumekit.start.request import Request, parse
from resumekit.watch import inspection
from support.commands import Kit
from support.runs import record, tree
from support.toy_trainer import write_checkpoint

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


def bare(kit: Kit, folder: str, *steps: int, pattern: str = "model_{step}.pt") -> Path:
    """Leave a folder of checkpoints that the kit did not make, as the experiment EXP-03 of a config with names."""
    names = {"checkpoint": {"pattern": pattern}, "experiments": EXPERIMENTS}
    kit.config("--save-every", "5", training={"max_steps": 2000}, **names)
    for step in steps:
        write_checkpoint(kit.runs / "EXP-03_droppath_base" / folder / pattern.format(step=step), step)
    return kit.runs / "EXP-03_droppath_base"


def planned(kit: Kit, *command: str) -> dict:
    return json.loads(kit(*command, "--dry-run", "--json").stdout)


@pytest.mark.parametrize("command", [("run", "EXP-03"), ("resume", "EXP-03"), ("resume", "EXP-03_droppath_base")])
def test_a_folder_that_the_kit_did_not_make_is_read_by_the_names_of_the_config(kit: Kit, command: tuple):
    bare(kit, "checkpoints", 100, 1000)
    assert planned(kit, *command)["checkpoint"]["path"].endswith("/model_1000.pt")
    assert planned(kit, "resume", "EXP-03", "--step", "100")["step"] == 100


def test_the_experiment_s_own_names_and_its_own_folder_count(kit: Kit):
    bare(kit, "saves", 7)
    names = {"checkpoint": {"pattern": "model_{step}.pt"}, "paths": {"checkpoints": "saves"}}
    kit.config(training={"max_steps": 20}, experiments={"EXP-03": {"name": "droppath_base", **names}})
    assert planned(kit, "run", "EXP-03")["step"] == 7
    assert planned(kit, "resume", "EXP-03", "--step", "7")["step"] == 7


def test_a_recovery_reads_such_a_parent_by_the_config_of_its_child(kit: Kit):
    """The child has died before its first save; the table of a recovery knows of no config but the runs' own."""
    bare(kit, "checkpoints", 10)
    kit("resume", "EXP-03", code=137, env={"TOY_ARGS": "--at 12 kill --save-every 0"})
    table = RunTable(kit.runs)
    [child] = kit.run_dirs()
    history = table.history(table.get(child.name))
    assert [(run.form.pattern, limit) for run, limit in history] == [("model_{step}.pt", None), ("model_{step}.pt", 10)]


def test_a_step_that_is_not_there_is_answered_with_those_that_are(kit: Kit):
    run = bare(kit, "checkpoints", *range(50, 1001, 50))
    said = kit("resume", "EXP-03", "--step", "77", code=3).stderr
    assert "no checkpoint found of step 77" in said
    assert "the steps that are there: 50, 100, 150, 200, 250, 300, 350, 400, 450, 500 and 10 more\n" in said
    assert "looked for" not in said, "the pattern has found them"
    assert len(said.replace(run.name, "x" * 40)) <= 4 * 80, "four lines of a terminal"


def test_where_nothing_is_found_the_folder_and_the_name_that_were_looked_for_are_said(kit: Kit):
    run = bare(kit, "checkpoints", 5)
    where = plain(str(run / "checkpoints"))
    said = kit("resume", "EXP-03", "--best", code=3).stderr
    assert f"looked for 'hrm_arc_best.pt' (checkpoint.best_pattern) in '{where}'" in said
    said = kit("resume", "EXP-03", "--set", "checkpoint.pattern=net_{step}.pt", code=3).stderr
    assert f"looked for 'net_{{step}}.pt' (checkpoint.pattern) in '{where}'" in said
    assert "checkpoint.pattern 'model_{step}.pt' would fit it" in said


def test_a_folder_that_the_kit_did_not_make_is_not_begun_over_whatever_its_name(kit: Kit):
    """`EXP-03` has no name, the config's experiment has one: it is the same experiment all the same."""
    bare(kit, "checkpoints")
    write_checkpoint(kit.runs / "EXP-03/checkpoints/weights_7.pth", 7)
    said = kit("run", "EXP-03", code=6).stderr
    assert "checkpoint.pattern 'weights_{step}.pth' would fit it" in said and "--fresh" in said


def test_a_run_goes_on_from_a_step_that_is_a_time_in_milliseconds(kit: Kit):
    step = 1_732_300_000_000
    bare(kit, "checkpoints", 370, step)
    kit("resume", "EXP-03", "--set", f"training.max_steps={step + 2}")
    [run] = kit.run_dirs()
    assert f"_resume@{step}_" in run.name and record(run)["parent_step"] == step
    assert kit.status(run)["global_step"] == step + 2 and kit.status(run)["state"] == "finished"


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
        assert result.returncode in (0, 2, 4, 5) and "Traceback" not in result.stderr


def test_parents_in_a_circle_end(kit: Kit):
    for name, parent in (("T-1_a", "T-1_b"), ("T-1_b", "T-1_a")):
        write_checkpoint(kit.runs / name / "checkpoints/hrm_arc_step_5.pt", 5)
        own = {"run_id": name, "experiment": "T-1", "parent_run_id": parent, "parent_step": 5}
        (kit.runs / name / "run.json").write_text(json.dumps(own))
        (kit.runs / name / "journal.jsonl").write_text("\n")
    assert len(kit("runs").stdout.splitlines()) == 2
    assert "there is no run" in kit("resume", "T-1", code=2).stderr
    kit("resume", "T-1_a", "--dry-run", "--set", "training.max_steps=9")


def test_a_start_and_a_resume_warn_of_settings_that_train_and_are_hardly_meant(theirs: Path):
    config_file = theirs.parent / "config.yaml"

    def said(choose: Callable[[Request], choice.Choice], *words: str) -> str:
        return "\n".join(choose(parse([*words, f"--config={config_file}", f"--runs={theirs}"]).request()).said)

    warning = "warning: schedule.warmup_steps is 60000 and training.max_steps 50000"
    assert warning in said(choice.choose_start, "--experiment=EXP-04", "--set=warmup_steps=60000")
    request = parse(["--experiment=EXP-04", f"--config={config_file}", "--set=warmup_steps=60000"]).request()
    assert "\n  warning      schedule.warmup_steps is 60000" in plan_report.as_text(choice.choose_start(request), None)
    assert warning in said(choice.choose_resume, "--experiment=EXP-03", "--set=warmup_steps=60000")
    assert "warning" not in said(choice.choose_start, "--experiment=EXP-04")


def test_experiments_with_underscores_have_runs_of_their_own(kit: Kit):
    """`net` and `net_big`, each with a run; `net_big` begins like a run id of `net`."""
    kit.config(
        "--save-every", "5", experiments={"net": {"name": "big_one"}, "net_big": {"name": "one"}, "net_big_new": {}}
    )
    kit("run", "net")
    kit("run", "net_big")
    one, two = kit.run_dirs()
    assert (open_run(one).experiment, open_run(two).experiment) == ("net", "net_big")
    listed = {name: kit("runs", name).stdout for name in ("net", "net_big", one.name, two.name)}
    assert [f"{one.name} " in text for text in listed.values()] == [True, False, True, False]
    assert [f"{two.name} " in text for text in listed.values()] == [False, True, False, True]
    table = RunTable(kit.runs)
    assert (
        inspection.chosen(table, table.names, ["net"]) == [one.name]
        and inspection.without_a_run(kit.runs, ["net_big"]) == []
    )

    def asked(name: str, *more: str) -> Request:
        return parse([f"--experiment={name}", f"--config={kit.config_file}", f"--runs={kit.runs}", *more]).request()

    assert choice.choose_start(asked("net_big_new")).experiment == "net_big_new", "anew, under its own name"
    for name, parent in (("net", one), (one.name, one), ("net_big", two), (two.name, two)):
        made = choice.choose_resume(asked(name, "--set=max_steps=9"))
        assert (made.parent.run_id, made.experiment) == (parent.name, open_run(parent).experiment)
    kit.config(experiments={"other": {}})
    assert choice.choose_resume(asked("net_big", "--set=max_steps=9")).parent.run_id == two.name, "its record has it"


@pytest.mark.parametrize("name", ["T-42", "T_42", "T-1_toy_20991122-1735"])
def test_what_names_neither_an_experiment_nor_a_run_is_refused_with_the_experiments_there_are(kit: Kit, name: str):
    words = [f"--experiment={name}", f"--config={kit.config_file}", f"--runs={kit.runs}"]
    for choose in (choice.choose_start, choice.choose_resume):
        with pytest.raises(UsageError, match=r"there is no (experiment|run) '" + name) as refused:
            choose(parse(words).request())
        assert "T-1, T-2" in str(refused.value)
    with pytest.raises(UsageError, match=r"the experiments of the config are T-1, T-2"):
        listing.runs_of(RunTable(kit.runs, experiments=("T-1", "T-2")), name)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~/{0}", "{HOME}/{0}"),
        ("$HOME/{0}", "{HOME}/{0}"),
        ("${{HOME}}/{0}", "{HOME}/{0}"),
        ("${{oc.env:HOME}}/{0}", "{HOME}/{0}"),
        ("${{oc.env:HOME,/tmp}}/{0}", "{HOME}/{0}"),
        ("$NO_SUCH_NAME/{0}", "the whole path"),
        ("${{hydra:runtime.cwd}}/{0}", "the whole path"),
    ],
)
@pytest.mark.parametrize("key", ["paths.root", "paths.runs", "data.path", "trainer.cwd"])
def test_a_path_that_a_shell_would_expand_is_refused_with_what_to_write_and_nothing_is_made(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, key: str, written: str, meant: str
):
    monkeypatch.setenv("HOME", "/home/user")
    section, name = key.split(".")
    kit.config(**{section: {name: written.format("own")}})
    before = sorted(os.listdir(kit.folder))
    with pytest.raises(KitError) as refused:
        request = parse(["--experiment=T-1", f"--config={kit.config_file}"]).request()
        preflight.check(choice.choose_start(request), request)
    said = str(refused.value)
    assert key in said and "are not expanded here" in said and meant.format("own", HOME="/home/user") in said
    assert sorted(os.listdir(kit.folder)) == before


def test_a_folder_of_that_very_name_is_taken_as_it_is(kit: Kit):
    """Earlier versions made one."""
    (kit.folder / "~" / "runs").mkdir(parents=True)
    kit.config(paths={"runs": "~/runs"})
    assert parse([f"--config={kit.config_file}"]).request().runs_dir == kit.folder / "~" / "runs"


@pytest.mark.parametrize("option", ["--runs", "--config"])
def test_a_tilde_that_the_shell_has_left_alone_is_refused(kit: Kit, option: str):
    with pytest.raises(UsageError, match=rf"{option} is '~/own'; '~' and .* are not expanded here: write '/"):
        parse([f"--config={kit.config_file}"] * (option == "--runs") + [f"{option}=~/own"]).request()
