"""A day in a lab: two users share one runs folder. What should go on goes on, and no word of the other is executed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import lab_users
from support.lab_users import Member
from support.processes import wait_until
from support.runs import events, record
from support.watched_runs import kill_all_of

pytestmark = pytest.mark.skipif(bool(lab_users.why_not()), reason=str(lab_users.why_not()))
Lab = tuple[Member, Member]
KILLED = {"TOY_ARGS": "--at 12 kill"}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with lab_users.lab() as members:
        yield members


def configure(member: Member, *toy_args: str, **more: Any) -> None:
    member.config("--save-every", "5", *toy_args, training={"max_steps": 20}, **more)
    member.config_file.chmod(0o644)


def owner(path: Path) -> int:
    return path.stat().st_uid


def test_a_day_in_a_lab(lab: Lab) -> None:
    """Start, go on from each other's run and stop it, look at all of them, be looked after by one's own watcher."""
    alice, bob = lab
    configure(alice)
    alice("run", "T-1", code=137, env=KILLED)
    (hers,) = alice.run_dirs()
    assert owner(hers) == alice.uid and (hers / "run.json").stat().st_mode & 0o777 == 0o664
    plan = json.loads(bob("run", "T-1", "--dry-run", "--json").stdout)
    assert (plan["verdict"], plan["relation"]) == ("ready", "continue")
    bob("run", "T-1", code=137, env={"TOY_ARGS": "--at 17 kill"})
    his = bob.run_dirs()[-1]
    assert owner(his) == bob.uid and record(his)["parent_run_id"] == hers.name and record(his)["relation"] == "continue"
    assert (hers / "claims/continued.json").exists()
    alice("run", "T-1", "--set", "training.max_steps=20")
    assert record(alice.run_dirs()[-1])["parent_run_id"] == his.name
    alice("resume", "T-1", "--from", his.name, "--step", "10", "--name", "side")
    for member in lab:
        listed = member("runs").stdout
        assert all(run.name in listed for run in member.run_dirs())
        assert "Traceback" not in member("abort-watch").stderr
    configure(alice, "--delay", "0.02", recover={"enabled": True, "backoff_s": 1})
    for runner, asker in (lab, (bob, alice)):
        assert_stopped_by_request(runner, asker)
    hers, his = alice.run_dirs()[-2:]
    assert record(his)["parent_run_id"] == hers.name and record(his)["relation"] == "continue"
    plant(bob, hers)
    plant(alice, his)
    for member in lab:
        assert "Traceback" not in member("abort-watch").stderr
        assert "Traceback" not in member("runs", "--json").stderr
    assert alice.run_dirs()[-1] == his, "what was stopped is not taken up"
    assert not list(alice.runs.glob("program*.log")), "and nothing that the other one wrote is executed"


def assert_stopped_by_request(runner: Member, asker: Member) -> None:
    """One member's live run, detached, is stopped by the other one through its folder, and saves its last step."""
    before = len(runner.run_dirs())
    runner("run", "T-2", "--detach", "--set", "training.max_steps=99999")
    run = runner.started(before + 1)
    wait_until(lambda: events(run, "step"), "a step")
    launched = events(run, "launched")[0]
    for role in ("trainer", "shim", "launcher"):
        assert owner(Path("/proc", str(launched[role]["pid"]))) == owner(run) == runner.uid
    said = asker("abort-watch", "--stop", "T-2").stderr
    assert "its own launcher is asked to stop it" in said and "is stopping it" in said, said
    wait_until(lambda: (run / "status.json").exists() and runner.status(run)["state"] == "stopped", "it is stopped")
    assert owner(run / "stop_request.json") == asker.uid
    (stopped,) = events(run, "stopped")
    assert (stopped["by"], stopped["now"]) == ("TERM", False) and str(asker.uid) in stopped["asked_by"]
    steps = [line.split()[1] for line in (run / "logs/output.log").read_text().splitlines() if line.startswith("step ")]
    assert (run / "checkpoints" / f"hrm_arc_step_{steps[-1]}.pt").exists()
    assert owner(run / "exit.json") == runner.uid


def died_at_once(member: Member) -> Path:
    """Return a run of theirs of which everything was killed at once, and that may be taken up."""
    # The toy's checkpoints are read by the kit alone: what it looks like from outside is a trainer with the helpers.
    configure(
        member, "--delay", "0.03", recover={"enabled": True, "backoff_s": 1}, trainer={"env": ["RESUMEKIT_TEST_MARK"]}
    )
    member("run", "T-1", "--detach", "--set", "training.max_steps=99999")
    run = member.started()
    wait_until(lambda: list(run.glob("checkpoints/*.pt")) and events(run, "step"), "a checkpoint and a step")
    kill_all_of(run)
    return run


def test_each_watcher_takes_up_its_own_users_run_though_the_group_may_write_to_it(lab: Lab) -> None:
    alice, bob = lab
    run = died_at_once(alice)
    left = bob("abort-watch", code=None)
    assert "Traceback" not in left.stderr and bob.run_dirs() == [run]
    alice("abort-watch", code=None)
    child = alice.started(2)
    assert owner(child) == alice.uid and record(child)["recovery"]["cause"] == "died"
    wait_until(lambda: events(child, "step"), "it trains")


EDIT = """
import json, pathlib, sys
run, program = map(pathlib.Path, sys.argv[1:])
program.write_text('#!/bin/sh\\necho ran >>"$0.log"\\n')
program.chmod(0o775)
file = run / "resolved_config.json"
config = json.loads(file.read_text())
config["trainer"].update(command=[str(program)], python=str(program), describe_args=["x"])
config["notify"] = {"command": [str(program)]}
config["resume"]["weights"] = "partial"
file.write_text(json.dumps(config))
file = run / "run.json"
own = json.loads(file.read_text())
del own["resolved_sha256"]
own["environment"]["values"]["PATH"] = str(program.parent)
file.write_text(json.dumps(own))
"""


def plant(member: Member, run: Path) -> Path:
    """Let a member write a program of their own into the records of another one's run; returns the program."""
    program = member.runs / f"program-{member.uid}"
    done = member.do(member.env["PYTHON"], "-c", EDIT, str(run), str(program))
    assert done.returncode == 0, done.stderr
    return program


def test_what_a_member_of_the_group_writes_into_a_run_is_not_executed_for_its_owner(lab: Lab) -> None:
    """Every file of hers is 0664: Bob may edit it in place, and it stays hers by its owner."""
    alice, bob = lab
    run = died_at_once(alice)
    program = plant(bob, run)
    assert owner(run / "resolved_config.json") == owner(run / "run.json") == alice.uid
    alice("abort-watch", code=None)
    (event,) = wait_until(lambda: events(run, "recovery"), "it needs attention")
    assert event["outcome"] == "needs_attention" and "is not as this user's launcher sealed it" in event["reason"]
    for words in (["run", "T-1", "--dry-run"], ["run", "T-1"], ["resume", "T-1", "--step", "5"]):
        said = alice(*words, code=5)
        assert "trainer.command: " in " ".join((said.stdout + said.stderr).split())
    bob("run", "T-1", "--dry-run", code=5)  # its folder is Alice's, and its words are not those of the config
    assert not Path(f"{program}.log").exists() and alice.run_dirs() == [run]


def test_root_is_a_user_too(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's own cron, or a sudo: the words of a user's run are not root's."""
    alice, _ = lab
    configure(alice)
    alice("run", "T-1", code=137, env=KILLED)
    (run,) = alice.run_dirs()
    monkeypatch.setattr(alice, "as_user", lambda argv: argv)
    monkeypatch.setitem(alice.env, "HOME", str(alice.folder / "root"))
    assert json.loads(alice("run", "T-1", "--dry-run", "--json").stdout)["verdict"] == "ready", "root's words as well"
    configure(alice, "--exit", "3")  # root's config says otherwise: then hers are asked for
    said = " ".join(alice("run", "T-1", "--dry-run", code=5).stdout.split())
    assert "trainer.command: " in said and "belongs to user" in said
    assert alice.run_dirs() == [run] and os.geteuid() == 0
