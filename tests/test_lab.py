"""A day in a lab: two users share one runs folder. What should go on goes on, and no word of the other is executed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lab_users
from conftest import events, wait_until
from lab_users import Member
from test_run import record
from test_watch import kill_all_of

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
    """Start, go on from each other's run, look at all of them, be looked after by one's own watcher."""
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
    # (A stop that is asked for through the folder, which the run's own launcher obeys, has its place here.)


def test_each_watcher_takes_up_its_own_users_run_though_the_group_may_write_to_it(lab: Lab) -> None:
    alice, bob = lab
    # The toy's checkpoints are read by the kit alone: what it looks like from outside is a trainer with the helpers.
    configure(
        alice, "--delay", "0.03", recover={"enabled": True, "backoff_s": 1}, trainer={"env": ["RESUMEKIT_TEST_MARK"]}
    )
    alice("run", "T-1", "--detach", "--set", "training.max_steps=99999")
    run = alice.started()
    wait_until(lambda: list(run.glob("checkpoints/*.pt.json")), "a checkpoint that is witnessed")
    kill_all_of(run)
    left = bob("abort-watch", code=None)
    assert "Traceback" not in left.stderr and bob.run_dirs() == [run]
    alice("abort-watch", code=None)
    child = alice.started(2)
    assert owner(child) == alice.uid and record(child)["recovery"]["cause"] == "died"
    wait_until(lambda: events(child, "step"), "it trains")


HOSTILE = ("command", "python", "describe_args", "notify", "settings")


def test_what_a_member_of_the_group_writes_into_a_run_is_not_executed_for_its_owner(lab: Lab) -> None:
    """Every file of hers is 0664: Bob may edit it in place, and it stays hers by its owner."""
    alice, bob = lab
    configure(
        alice, "--delay", "0.03", recover={"enabled": True, "backoff_s": 1}, trainer={"env": ["RESUMEKIT_TEST_MARK"]}
    )
    alice("run", "T-1", "--detach", "--set", "training.max_steps=99999")
    run = alice.started()
    wait_until(lambda: list(run.glob("checkpoints/*.pt.json")), "a checkpoint that is witnessed")
    kill_all_of(run)
    program = bob.runs / "program"
    edit = (
        "import json, sys, pathlib; run, program = map(pathlib.Path, sys.argv[1:]);"
        "program.write_text('#!/bin/sh\\necho ran >>\"$0.log\"\\n'); program.chmod(0o775);"
        "file = run / 'resolved_config.json'; config = json.loads(file.read_text());"
        "config['trainer'].update(command=[str(program)], python=str(program), describe_args=['x']);"
        "config['notify'] = {'command': [str(program)]};"
        "config['resume']['weights'] = 'partial';"
        "file.write_text(json.dumps(config));"
        "file = run / 'run.json'; own = json.loads(file.read_text()); del own['resolved_sha256'];"
        "own['environment']['values']['PATH'] = str(program.parent); file.write_text(json.dumps(own))"
    )
    done = bob.do(bob.env["PYTHON"], "-c", edit, str(run), str(program))
    assert done.returncode == 0, done.stderr
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
