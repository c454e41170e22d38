"""The laboratory's Slurm, without a Slurm: what its clients print is read, and what is missing is said."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from reliability import cluster
from reliability.cluster_scenarios import SCENARIOS
from reliability.cluster_slurm import CANNOT, SCRIPT, CannotHave, environment, fields, task_of
from reliability.cluster_stage import several

# As Slurm 22.05 prints it, shortened.
JOB = (
    "JobId=7 ArrayJobId=5 ArrayTaskId=2 JobName=job.sh UserId=a b(0) JobState=PENDING Reason=BeginTime "
    "Dependency=(null) Requeue=1 Restarts=3 ExitCode=75:0 "
    "SubmitTime=2026-11-30T23:48:42 NodeList=(null) NtasksPerN:B:S:C=0:0:*:* "
    "Command=/tmp/x y/job.sh WorkDir=/tmp Power="
)


def test_each_value_of_a_job_ends_before_the_next_name() -> None:
    found = fields(JOB)
    assert found["UserId"] == "a b(0)" and found["Command"] == "/tmp/x y/job.sh" and found["Power"] == ""
    assert (found["JobState"], found["Restarts"], found["ExitCode"]) == ("PENDING", "3", "75:0")


def test_a_task_of_an_array_is_known_by_its_number_in_it() -> None:
    assert task_of(fields(JOB)) == "5_2"
    assert task_of(fields("JobId=7 JobState=RUNNING")) is None


def test_the_environment_of_a_slurm_is_what_its_file_sets_and_no_more(tmp_path: Path) -> None:
    file = tmp_path / "env.sh"
    value = "/a b/$(touch canary)/slurm.conf"
    file.write_text(f"export SLURM_CONF={shlex.quote(value)}\nexport PATH=/sbin:$PATH\nexport OTHER=1\n")
    found = environment(file)
    assert set(found) == {"SLURM_CONF", "PATH"} and found["SLURM_CONF"] == value and found["PATH"].startswith("/sbin:")


def test_two_runs_of_one_lineage_are_seen_and_two_processes_of_one_run_are_none() -> None:
    assert several({("a", "a1"), ("b", "b1")}) == []
    assert several({("a", "a1"), ("a", "a2"), ("b", "b1")}) == ["a"]


def test_the_table_has_a_row_for_each_scenario_and_says_what_was_left_out() -> None:
    name = next(iter(SCENARIOS))
    found = {"linuxproc": {name: ("ok", 12.4)}, "cgroup": {}, "other": {name: ("FAILED: it is 6: of 7", 3.0)}}
    *_, row = cluster.table(found, [name]).splitlines()
    assert row.split(" | ")[:4] == [f"| {name}", "ok, 12 s", "left out", "FAILED, 3 s"]


def test_every_scenario_says_what_has_to_hold_and_ci_runs_some_of_them() -> None:
    assert all(one.__doc__ for one in cluster.ALL.values())
    assert set(cluster.QUICK) < set(cluster.ALL)
    assert "make cluster-quick" in (SCRIPT.parents[1] / ".ci" / "run").read_text()


def test_where_there_can_be_no_slurm_one_line_says_so_and_nothing_has_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cannot(*_: object) -> None:
        raise CannotHave("no Slurm is installed")

    monkeypatch.setattr(cluster, "Cluster", cannot)
    assert cluster.main(["--quick", "--tracker", "cgroup"]) == 0
    assert "cluster: left out: cgroup, for no Slurm is installed" in capsys.readouterr().out


def test_a_scenario_that_fails_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"linuxproc": {"requeue": ("FAILED: AssertionError", 1.0)}}
    monkeypatch.setattr(cluster, "of_trackers", lambda *_: (found, {}))
    assert cluster.main(["--scenario", "requeue"]) == 1


def test_without_packages_the_script_says_in_one_sentence_why_there_is_no_slurm(tmp_path: Path) -> None:
    """As in a container without apt-get; a copy, which has no cache beside it."""
    copy = tmp_path / "tools" / "slurm.sh"
    copy.parent.mkdir()
    copy.write_text(SCRIPT.read_text())
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "readlink"):
        (programs / name).symlink_to(Path("/usr/bin") / name)
    if os.path.exists("/usr/sbin/slurmctld"):
        pytest.skip("a Slurm is installed")
    done = subprocess.run(
        ["bash", copy, "up", tmp_path / "slurm"], env={"PATH": str(programs)}, capture_output=True, text=True
    )
    assert done.returncode == CANNOT and done.stdout == "" and not (tmp_path / "slurm").exists()
    (said,) = done.stderr.splitlines()
    assert said.startswith("slurm.sh: no Slurm is installed, and ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no such verb ''"),
        (["up"], "up which DIR?"),
        (["up", "x", "pgid"], "no process tracker 'pgid'"),
        (["cut", "x", "node3"], "no node 'node3'"),
        (["return", "x", "node1"], "no Slurm was brought up in 'x'"),
    ],
)
def test_what_the_script_does_not_know_is_a_usage_error(words: list[str], said: str, tmp_path: Path) -> None:
    done = subprocess.run([SCRIPT, *words], cwd=tmp_path, capture_output=True, text=True)
    first, *usage = done.stderr.splitlines()
    assert (done.returncode, first) == (2, f"slurm.sh: {said}")
    assert usage[0] == "Usage: tools/slurm.sh up DIR [linuxproc | cgroup]" and not list(tmp_path.iterdir())
