"""bin/submit.sh: what is said before anything waits, the frozen code, what a start of a job does; sweeps and chains."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import processes
from resumekit.base.errors import Refused, UsageError
from resumekit.run import job_folder
from resumekit.run.job_folder import JobFolder
from resumekit.start import job_script, pipeline, submit
from resumekit.start.request import parse
from support.commands import Kit, said_by
from support.fake_sbatch import FakeSbatch
from support.lab_repo import git
from support.places import TOY
from support.processes import DEADLINE_S, wait_until
from support.recoveries import kill_trainer, reached
from support.runs import events, record

COMMAND = ["{python}", "train.py", "--dir", "{checkpoints_dir}", "--steps", "{training.max_steps}", "--save-every", "2"]


class Lab(Kit):
    """A repository with a trainer, ignored data and a file that only the command names; and its jobs."""

    sbatch: FakeSbatch

    def submit(self, *args: str, code: int = 0) -> subprocess.CompletedProcess:
        return self("submit", *args, code=code, env={"PATH": self.sbatch.path})

    def jobs(self) -> list[JobFolder]:
        return [JobFolder(path) for path in sorted((self.runs / ".jobs").glob("*"))]

    def start(self, folder: JobFolder, code: int = 0, toy: str = "", **of_slurm: Any) -> str:
        """Run job.sh to its end, as Slurm would; return what it printed."""
        environ = {**self.env, **self.sbatch.environment(**of_slurm), "TOY_ARGS": toy}
        done = subprocess.run(
            ["bash", folder.script], env=environ, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


def make_lab(folder: Path, *, with_git: bool = True, **sections: Any) -> Lab:
    lab = Lab(folder / "lab")
    lab.sbatch = FakeSbatch(folder / "slurm")
    shutil.copy(TOY, lab.folder / "train.py")
    (lab.folder / "tracked.py").write_text("committed\n")
    (lab.folder / "gone.py").write_text("committed\n")
    (lab.folder / "data").mkdir()
    (lab.folder / "data" / "one").write_text("data\n")
    (lab.folder / "recipe.yaml").write_text("of the command\n")
    (lab.folder / ".gitignore").write_text("runs/\ndata/\nrecipe.yaml\nstate/\n.cache/\n")
    trainer = {"command": COMMAND, "loads_with_kit": False}
    lab.config(**{"trainer": trainer, "data": {"path": "data"}, "training": {"max_steps": 4}, **sections})
    if with_git:
        git(lab.folder, "init", "-q")
        git(lab.folder, "add", ".")
        git(lab.folder, "commit", "-q", "-m", "one")
    return lab


@pytest.fixture
def lab(tmp_path: Path) -> Any:
    made = make_lab(tmp_path)
    yield made
    made.clean_up()


def test_it_prints_the_id_that_sbatch_gives_and_keeps_everything_in_the_jobs_folder(lab: Lab) -> None:
    done = lab.submit("T-1", "--time", "4:00:00", "--set", "training.max_steps=6", "--", "--gres=gpu:1")
    assert done.stdout == "101\n"
    [job] = lab.jobs()
    assert lab.sbatch.told == [f"--parsable {job.script}"]
    kept = job.read()
    assert (kept["experiment"], kept["jobs"], kept["consents"]) == ("T-1", ["101"], [])
    assert kept["config_file"] == str(lab.config_file)
    lines = job.script.read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert options == [
        "--job-name=T-1_toy", f"--output={job.path}/output-%j.log", "--open-mode=append", "--requeue",
        "--signal=B:USR1@60", "--gres=gpu:1", "--time=4:00:00",
    ]  # fmt: skip
    assert not lab.run_dirs(), "a run's folder is made when the job starts"


def test_the_copy_has_the_checkout_as_it_is_and_links_for_what_is_no_code(lab: Lab) -> None:
    lab.config(trainer={"command": [*COMMAND, "--note=recipe.yaml"], "loads_with_kit": False})
    lab.runs.mkdir()
    (lab.runs / "notes.md").write_text("tracked, in the folder of all runs\n")
    git(lab.folder, "add", "-f", "runs/notes.md")
    git(lab.folder, "commit", "-q", "-m", "two", "runs/notes.md")
    (lab.folder / "tracked.py").write_text("edited\n")
    (lab.folder / "gone.py").unlink()
    (lab.folder / "loose.py").write_text("in no commit, and named by nothing\n")
    lab.submit("T-1")
    [job] = lab.jobs()
    assert (job.code / "tracked.py").read_text() == "edited\n"
    assert not (job.code / "gone.py").exists()
    assert not (job.code / "recipe.yaml").is_symlink(), "the command names it"
    assert (job.code / "recipe.yaml").read_text() == "of the command\n"
    assert os.readlink(job.code / "data") == str(lab.folder / "data")
    assert os.readlink(job.code / "loose.py") == str(lab.folder / "loose.py")
    assert os.listdir(job.code / "runs") == ["notes.md"], "the copy does not contain itself"
    code = job.read()["code"]
    assert code["commit"] == git(lab.folder, "rev-parse", "HEAD")
    assert code["changed"] == ["config.yaml", "gone.py", "tracked.py"]
    assert set(code["linked"]) == {"data", "loose.py"}
    changed = git(job.code, "diff", "--name-only", "HEAD").splitlines()
    assert changed == code["changed"], "the copy differs from its commit as the checkout does"


def test_a_job_trains_the_code_of_its_submission_whatever_became_of_the_checkout(lab: Lab) -> None:
    lab.submit("T-1")
    (lab.folder / "train.py").write_text("raise SystemExit(99)\n")
    lab.config_file.write_text("this is no config any more")
    [job] = lab.jobs()
    lab.start(job, code=17, toy="--at 3 exit=17")
    lab.start(job, restarts=1)
    first, second = lab.run_dirs()
    assert record(first)["root"] == record(second)["root"] == str(job.code)
    assert record(second)["parent_run_id"] == first.name
    assert events(second, "exited")[0]["code"] == 0
    assert record(first)["data"] == record(second)["data"], "data.path leads to the lab's own"
    assert record(first)["data"]["files"] == 1
    assert record(first)["code"]["untracked"] == [], "a link to data is no code outside git"


def test_a_run_that_is_taken_up_in_its_job_trains_the_copy_too(lab: Lab) -> None:
    slow = {"command": [*COMMAND, "--delay", "0.05"], "loads_with_kit": False}
    lab.config(trainer=slow, training={"max_steps": 60}, recover={"enabled": True, "backoff_s": 1, "replay_steps": 2})
    lab.submit("T-1")
    [job] = lab.jobs()
    (lab.folder / "train.py").write_text("raise SystemExit(99)\n")
    environ = {**lab.env, **lab.sbatch.environment()}
    process = subprocess.Popen(["bash", job.script], env=environ, stdin=subprocess.DEVNULL)
    first = lab.started()
    wait_until(lambda: reached(first, 6), "the run has steps to lose")
    kill_trainer(first)
    second = lab.started(2)
    assert process.wait(DEADLINE_S) == 0
    assert record(second)["recovery"]["cause"] == "died"
    assert record(second)["root"] == str(job.code)
    assert record(second)["job_folder"] == record(first)["job_folder"] == f"../.jobs/{job.path.name}"


def test_two_jobs_of_one_experiment_wait_for_each_others_start(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a config of its own, the copy: what they lock is the lab's."""
    monkeypatch.setattr(pipeline, "START_WAIT_S", 0.2)
    lab.submit("T-1")
    [job] = lab.jobs()
    words = [f"--config={job.code / 'config.yaml'}", f"--runs={lab.runs}", f"--job={job.path}", "--experiment=T-1"]
    request = parse(words).request()
    with open(lab.config_file) as held, pytest.raises(Refused, match=r"lab/config\.yaml' for more than"):
        fcntl.flock(held, fcntl.LOCK_EX)
        with pipeline.one_start_at_a_time(request):
            pass


def test_two_checkouts_with_one_runs_folder_wait_for_each_others_start(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "START_WAIT_S", 0.2)
    lab.runs.mkdir()
    request = parse([f"--config={lab.config_file}", f"--runs={lab.runs}", "--experiment=T-1"]).request()
    descriptor = os.open(lab.runs, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(Refused, match="runs' for more than"), pipeline.one_start_at_a_time(request):
            pass
    finally:
        os.close(descriptor)
    with pipeline.one_start_at_a_time(request):
        pass


def test_a_run_of_several_nodes_is_planned_before_there_is_a_job(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    launcher = {"kind": "torchrun", "nproc": 1, "nnodes": 2}
    lab.config(trainer={"command": ["train.py"], "loads_with_kit": False, "launcher": launcher}, data={"path": "data"})
    srun = lab.sbatch.folder / "bin" / "srun"
    srun.write_text("#!/bin/sh\nexit 1\n")
    srun.chmod(0o755)
    env = {"PATH": lab.sbatch.path}
    done = lab("submit", "T-1", "--dry-run", code=None, env=env)
    shown = " ".join(done.stdout.split())
    assert "--rdzv-endpoint=FIRST_NODE_OF_THE_JOB:" in shown and "srun --nodes=2" in shown, done.stderr
    assert "SLURM_JOB_NODELIST" in lab("run", "T-1", "--dry-run", code=4, env=env).stderr, "a start needs the nodes"


def test_what_is_executed_is_not_the_groups_to_change(lab: Lab) -> None:
    before = os.umask(0o002)
    try:
        lab.submit("T-1")
    finally:
        os.umask(before)
    [job] = lab.jobs()
    for path in (job.path, job.script, job.code, job.code / "train.py", job.code / "config.yaml"):
        assert not path.stat().st_mode & 0o022, path


def test_a_requeued_job_does_not_begin_anew_though_its_script_says_fresh(lab: Lab) -> None:
    lab("run", "T-1")
    lab.submit("T-1", "--fresh")
    [job] = lab.jobs()
    lab.start(job, code=17, toy="--at 3 exit=17")
    lab.start(job, restarts=1)
    _, fresh, again = lab.run_dirs()
    assert record(fresh)["relation"] == "fresh"
    assert record(again)["parent_run_id"] == fresh.name
    assert record(again)["job_folder"] == f"../.jobs/{job.path.name}"


def test_a_run_that_is_named_is_gone_on_with_and_then_what_came_of_it(lab: Lab) -> None:
    lab("run", "T-1", code=17, env={"TOY_ARGS": "--at 3 exit=17"})
    [first] = lab.run_dirs()
    lab.config(trainer={"command": COMMAND, "loads_with_kit": False}, cluster={"partition": "long"})
    document = json.loads(lab.config_file.read_text())
    del document["experiments"]["T-1"]  # the experiment has left the config meanwhile
    lab.config_file.write_text(json.dumps(document))
    lab.submit(first.name)
    [job] = lab.jobs()
    assert "#SBATCH --partition=long\n" in job.script.read_text()
    lab.start(job, code=17, toy="--at 4 exit=17")
    lab.start(job, restarts=1)
    second, third = lab.run_dirs()[1:]
    assert (record(second)["parent_run_id"], record(third)["parent_run_id"]) == (first.name, second.name)


def test_the_next_link_of_a_chain_goes_on_with_the_run_of_the_one_before(lab: Lab) -> None:
    done = lab.submit("T-1", "--fresh", "--chain", "3")
    [job] = lab.jobs()
    assert done.stdout.split() == job.read()["jobs"] == ["101", "102", "103"]
    assert lab.sbatch.told == [
        f"--parsable {job.script}",
        f"--parsable --dependency=afterany:101 {job.script}",
        f"--parsable --dependency=afterany:102 {job.script}",
    ]
    assert "#SBATCH --no-requeue\n" in job.script.read_text()
    assert "#SBATCH --requeue\n" not in job.script.read_text()
    lab.start(job, code=17, toy="--at 3 exit=17", job="101")
    lab.start(job, job="102")
    first, second = lab.run_dirs()
    assert record(second)["parent_run_id"] == first.name
    assert "has finished" in lab.start(job, job="103")
    assert len(lab.run_dirs()) == 2


def test_a_chain_that_sbatch_does_not_take_whole_is_taken_back(lab: Lab) -> None:
    lab.sbatch.takes(1)
    done = lab.submit("T-1", "--chain", "3", code=1)
    assert "sbatch does not take the job: sbatch: error: QOSMaxSubmitJobPerUserLimit" in done.stderr
    assert lab.sbatch.cancelled == ["101"]
    assert lab.jobs() == []
    assert len(git(lab.folder, "worktree", "list").splitlines()) == 1


def test_a_sweep_is_one_lineage_for_each_value_and_a_task_goes_on_with_its_own(lab: Lab) -> None:
    lab.submit("T-1", "--name", "sweep", "--array-set", "optimizer.lr=1e-4,3e-4", "--set", "training.max_steps=6")
    [job] = lab.jobs()
    assert "#SBATCH --array=0-1\n" in job.script.read_text()
    for task in (0, 1):
        lab.start(job, code=17, toy="--at 3 exit=17", job=f"11{task}", task=task)
    for task in (1, 0):
        lab.start(job, restarts=1, job=f"11{task}", task=task)
    runs = {run.name: record(run) for run in lab.run_dirs()}
    assert sorted(one["name"] for one in runs.values()) == sorted(2 * ["sweep_lr_1e-4", "sweep_lr_3e-4"])
    for one in runs.values():
        assert one["settings"][-1] == f"optimizer.lr={one['name'].rpartition('_')[2]}"
        if one["parent_run_id"]:
            assert runs[one["parent_run_id"]]["name"] == one["name"]
    assert "this is no task of the sweep" in lab.start(job, code=2, task=7)


def test_a_task_is_not_kept_from_its_run_by_one_that_begins_at_the_same_time(lab: Lab) -> None:
    """A requeued array starts all of its tasks at once: each asks for its own name alone."""
    lab.submit("T-1", "--array-set", "optimizer.lr=1e-4,3e-4")
    [job] = lab.jobs()
    for task in (0, 1):
        lab.start(job, code=17, toy="--at 3 exit=17", job=f"11{task}", task=task)
    first, _ = lab.run_dirs()
    starting = lab.runs / first.name.replace("1e-4", "3e-4").replace("_2", "_resume@3_2")
    shutil.copytree(first, starting, ignore=shutil.ignore_patterns("journal.jsonl", "*.json", "checkpoints"))
    fields = {**record(first), "run_id": starting.name, "name": "lr_3e-4"}
    own = processes.identify(os.getpid())
    assert own is not None
    (starting / "run.json").write_text(json.dumps({**fields, "launcher": own.as_fields()}))
    lab.start(job, restarts=1, job="110", task=0)


def test_what_needs_consent_is_agreed_to_at_submission_and_never_asked_by_the_job(lab: Lab) -> None:
    lab("run", "T-1", "--name", "other")
    assert "--accept" in lab.submit("T-1", code=5).stderr
    assert lab.jobs() == []
    lab.submit("T-1", "--accept")
    [job] = lab.jobs()
    [agreed] = job.read()["consents"]
    assert "of which there is no run" in agreed
    assert f"accepted: {agreed}" in lab.start(job)


def test_a_job_that_would_need_another_consent_ends_with_5_and_tells_it_once(lab: Lab) -> None:
    told = lab.folder.parent / "told"
    lab.config(notify={"command": ["sh", "-c", f"cat >>'{told}'"]}, trainer={"command": COMMAND})
    lab.submit("T-1")
    [job] = lab.jobs()
    lab("run", "T-1", "--name", "other")  # while the job waits
    for restarts in (0, 1):
        assert "a job asks no user" in lab.start(job, code=5, restarts=restarts)
    [line] = told.read_text().splitlines()
    event = json.loads(line)
    assert (event["event"], event["experiment"], event["job"]) == ("held", "T-1", "101")
    assert event["job_folder"] == str(job.path)
    assert "of which there is no run" in event["message"]
    assert len(lab.run_dirs()) == 1


def test_consents_that_were_added_to_the_jobs_folder_are_not_taken(lab: Lab) -> None:
    lab("run", "T-1", "--name", "other")
    lab.submit("T-1", "--accept")
    [job] = lab.jobs()
    job.write({**job.read(), "consents": ["anything", *job.read()["consents"]]})
    assert "are not those that the job was submitted with" in lab.start(job, code=4)
    job.script.write_text(job.script.read_text().replace("--agreed", "--notes"))
    assert "the plan needs consent" in lab.start(job, code=5)


def test_a_dry_run_shows_the_plan_and_the_script_and_touches_nothing(lab: Lab) -> None:
    before = sorted(lab.folder.rglob("*"))
    shown = lab("submit", "T-1", "--dry-run", "--nodes", "2").stdout
    assert shown.startswith("starting T-1 anew\n")
    assert "#SBATCH --nodes=2\n" in shown
    assert f"exec {lab.runs}/.jobs/JOB/kit/bin/run.sh T-1 \\\n" in shown
    assert sorted(lab.folder.rglob("*")) == before
    assert len(git(lab.folder, "worktree", "list").splitlines()) == 1


def test_without_sbatch_nothing_is_made(lab: Lab) -> None:
    bare = lab.folder.parent / "bare"
    bare.mkdir()
    for name in ("bash", "readlink", "git", "sh"):
        (bare / name).symlink_to(shutil.which(name) or name)
    done = lab("submit", "T-1", code=127, env={"PATH": str(bare)})
    assert "sbatch is not on the PATH" in done.stderr
    assert not lab.runs.exists()


def test_without_git_the_files_that_the_command_names_are_copied(tmp_path: Path) -> None:
    lab = make_lab(tmp_path, with_git=False)
    lab.submit("T-1")
    (lab.folder / "train.py").write_text("raise SystemExit(99)\n")
    [job] = lab.jobs()
    code = job.read()["code"]
    assert code["commit"] is None
    assert sorted(code["copied"]) == ["config.yaml", "train.py"]
    assert {"data", "tracked.py"} <= set(code["linked"])
    lab.start(job)
    lab.clean_up()


@pytest.mark.parametrize("root", ["absolute", "of another folder"])
def test_code_that_would_not_be_the_copy_is_refused_unless_it_is_said_so(lab: Lab, root: str) -> None:
    if root == "absolute":
        lab.config(paths={"root": str(lab.folder)}, trainer={"command": COMMAND})
    else:
        moved = lab.folder.parent / "config.yaml"
        lab.config(paths={"root": "lab"}, trainer={"command": COMMAND})
        lab.config_file.rename(moved)
        lab.config_file = moved
    assert "the code cannot be frozen" in lab.submit("T-1", code=4).stderr
    lab.submit("T-1", "--unfrozen")
    [job] = lab.jobs()
    assert not job.code.exists()
    lab.start(job)


def test_a_submodule_is_a_link_to_what_is_checked_out(lab: Lab) -> None:
    other = lab.folder.parent / "other"
    other.mkdir()
    (other / "lib.py").write_text("of the submodule\n")
    git(other, "init", "-q")
    git(other, "add", ".")
    git(other, "commit", "-q", "-m", "one")
    git(lab.folder, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(other), "third_party")
    git(lab.folder, "commit", "-q", "-m", "with a submodule")
    lab.submit("T-1")
    [job] = lab.jobs()
    assert os.readlink(job.code / "third_party" / "lib.py") == str(lab.folder / "third_party" / "lib.py")
    assert "third_party" in job.read()["code"]["linked"]
    assert git(job.code, "diff", "--name-only", "--ignore-submodules=none", "HEAD") == ""


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--chain=1"], "--chain takes how many jobs follow each other, 2 to 100, not '1'"),
        (["--chain=2", "--array-set=a.b=1,2"], "--chain and --array-set exclude each other"),
        (["--time=1", "--time=2"], "--time is given twice: '1' and '2'"),
        (["--nodes=x"], "--nodes takes a number of nodes, or a range of it"),
        (["--nodes=0"], "not '0'"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(words: list[str], wrong: str) -> None:
    with pytest.raises(UsageError, match=wrong.replace("(", "[(]")):
        submit.read(["--experiment=T-1", *words])


def test_what_stands_behind_the_second_dashes_goes_to_the_trainer() -> None:
    asked = submit.read(["--experiment=T-1", "--", "--gres=gpu:1", "-c", "2", "--", "--lr", "1"])
    assert asked.given == ("--gres=gpu:1", "-c", "2")
    assert asked.options.extra_args == ("--lr", "1")
    assert submit.read(["--experiment=T-1", "--", "--exclusive"]).options.extra_args is None


def test_of_sbatchs_options_the_last_word_counts_command_line_before_config() -> None:
    cluster = {"time": "1:00:00", "partition": "gpu", "nodes": None, "sbatch": ["--gres=gpu:1", "-A", "lab"]}
    found = job_script.options({"time": "2:00:00"}, cluster, ["--gres", "gpu:4", "-t3", "--no-requeue"], ["--requeue"])
    assert found == ["--time=2:00:00", "--partition=gpu", "--gres=gpu:4", "--account=lab", "--no-requeue"]


@pytest.mark.parametrize("words", [["gpu:1"], ["--x=1", "two"], ["--x=a\nb"]])
def test_what_is_no_option_of_sbatch_is_a_usage_error(words: list[str]) -> None:
    with pytest.raises(UsageError):
        job_script.options({}, {}, words, [])


def test_the_names_of_a_sweep_are_made_of_key_and_value() -> None:
    def named(array_set: str, prefix: str | None = None) -> list[tuple[str, str]]:
        return [tuple(task) for task in job_script.tasks(array_set, prefix)]

    assert named("optimizer.lr=1e-4, 3e-4") == [("lr_1e-4", "optimizer.lr=1e-4"), ("lr_3e-4", "optimizer.lr=3e-4")]
    assert named("optimizer.betas=[0.9, 0.95],[0.9, 0.99]", "b") == [
        ("b_betas_0.9-0.95", "optimizer.betas=[0.9, 0.95]"),
        ("b_betas_0.9-0.99", "optimizer.betas=[0.9, 0.99]"),
    ]
    assert named("a.b=-1,1") == [("b_-1", "a.b=-1"), ("b_1", "a.b=1")]
    for wrong in ("a.b", "a.b=", "a.b=1,,2", "=1,2", "a.b=[1],1"):
        with pytest.raises(UsageError):
            named(wrong)


def test_a_folder_with_any_name_is_one_word_of_the_script(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / 'it\'s a "weird" 100% folder')
    lab.submit("T-1", "--set", "experiment.notes='a b'")
    [job] = lab.jobs()
    [output] = [line for line in job.script.read_text().splitlines() if "--output" in line]
    assert output.startswith('#SBATCH --output="') and '\\"weird\\" 100%% folder' in output
    lab.start(job)
    lab.clean_up()


def test_a_job_whose_folder_is_made_in_the_same_minute_has_a_number_behind_it(tmp_path: Path) -> None:
    made = [job_folder.make(tmp_path / "runs", "T-1_20261122-1735").path.name for _ in range(2)]
    assert made == ["T-1_20261122-1735", "T-1_20261122-1735-2"]
    assert said_by(["runs", f"--runs={tmp_path / 'runs'}"]) == "no runs\n"
