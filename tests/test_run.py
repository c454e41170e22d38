"""bin/run.sh: one command for the first start and for the hundredth."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.commands import Kit, killed
from support.lab_repo import git
from support.places import LIVE, TOY
from support.processes import wait_until
from support.recoveries import answers_of, askers
from support.runs import events, record, tree
from support.toy_trainer import write_checkpoint

FRESH_FILES = {
    "trainer.lock",
    "run.json", "resolved_config.yaml", "resolved_config.json", "config.yaml", "journal.jsonl", "status.json", "logs",
    "checkpoints", "command.sh", "exit.json",
}  # fmt: skip


def test_the_first_start_makes_a_run_folder_with_everything_in_it(kit: Kit):
    kit.config("--save-every", "5")
    result = kit("run", "T-1", "--notes", "first try", "--set", "training.max_steps=7", "--", "--delay", "0")
    [run] = kit.run_dirs()
    assert re.fullmatch(r"T-1_toy_[0-9]{8}-[0-9]{4}", run.name)
    assert "run.sh: starting T-1 anew" in result.stderr and f"run.sh: run {run.name}" in result.stderr
    assert {p.name for p in run.iterdir() if not p.name.startswith(".")} == FRESH_FILES
    assert (run / "config.yaml").read_bytes() == kit.config_file.read_bytes()
    assert json.loads((run / "resolved_config.json").read_text())["training"]["max_steps"] == 7
    own = record(run)
    assert (own["notes"], own["relation"], own["parent_run_id"], own["settings"]) == (
        "first try", "fresh", None, ["training.max_steps=7"],
    )  # fmt: skip
    assert own["argv"][-2:] == ["--delay", "0"]
    assert "plan" not in " ".join(p.name for p in run.iterdir())


@pytest.mark.parametrize("is_there", [False, True])
def test_git_leaves_a_runs_folder_that_the_kit_made_alone(kit: Kit, is_there: bool):
    """One that was there is the lab's to decide on."""
    git(kit.folder, "init", "-q")
    if is_there:
        kit.runs.mkdir()
    kit("run", "T-1")
    assert (kit.runs / ".gitignore").exists() != is_there
    assert ("runs/" in git(kit.folder, "status", "--porcelain").split()) == is_there


def test_continues_a_killed_run_from_its_latest_checkpoint_and_says_so(kit: Kit, killed_run: Path):
    first = killed_run
    result = kit("run", "T-1")
    second = kit.run_dirs()[-1]
    assert (
        f"'{first.name}' has checkpoints: resuming it as resume.sh does (run.sh --fresh begins anew)" in result.stderr
    )
    assert re.fullmatch(r"T-1_toy_resume@10_[0-9]{8}-[0-9]{4}", second.name)
    own = record(second)
    assert (own["parent_run_id"], own["parent_step"], own["relation"]) == (first.name, 10, "continue")
    assert own["checkpoint"] == f"../{first.name}/checkpoints/hrm_arc_step_10.pt"
    assert own["argv"][-2:] == ["--resume", str(first / "checkpoints/hrm_arc_step_10.pt")]
    assert next(e["step"] for e in events(second, "step")) == 11


def test_fresh_begins_anew_whatever_there_is(kit: Kit, killed_run: Path):
    kit("run", "T-1", "--fresh")
    newest = kit.run_dirs()[-1]
    assert record(newest)["relation"] == "fresh" and "resume@" not in newest.name


@pytest.mark.fault("H2", by="make_folder: plain mkdir, a number behind")
def test_a_second_run_of_the_same_minute_gets_a_number(kit: Kit):
    for _ in range(3):
        kit("run", "T-1", "--fresh", "--set", "training.max_steps=1")
    stamps = {run.name[:21] for run in kit.run_dirs()}
    if len(stamps) == 1:  # all in one minute, but for the one time in a hundred
        assert sorted(run.name[21:] for run in kit.run_dirs()) == ["", "-2", "-3"]
    assert len(kit.run_dirs()) == 3


@pytest.mark.parametrize("place", ["a run of this folder", "no run at all"])
def test_resume_takes_the_named_file(kit: Kit, place: str, killed_run: Path):
    first = killed_run
    named = first / "checkpoints/hrm_arc_step_5.pt"
    if place == "no run at all":
        elsewhere = kit.folder / "from a friend.pt"
        shutil.copy(named, elsewhere)
        named = elsewhere
    kit("run", "T-1", "--resume", str(named))
    newest = kit.run_dirs()[-1]
    own = record(newest)
    assert own["argv"][-1] == str(named) and own["parent_step"] == 5 and own["relation"] == "branch"
    assert own["parent_run_id"] == (first.name if place == "a run of this folder" else None)


@pytest.mark.fault("C20", by="choice: exit 3, two sentences")
def test_no_checkpoint_and_no_stable_checkpoint_are_two_sentences_with_one_code(kit: Kit):
    kit("run", "T-1")  # saves nothing
    [run] = kit.run_dirs()
    none = kit("resume", "T-1", code=3).stderr
    assert f"no checkpoint found along the history of '{run.name}'" in none
    (run / "checkpoints/hrm_arc_step_5.pt").write_bytes(b"PK\x03\x04 torn")
    unstable = kit("run", "T-1", code=3).stderr
    assert f"no stable checkpoint along the history of '{run.name}': 'hrm_arc_step_5.pt': " in unstable
    assert len(kit.run_dirs()) == 1


def test_a_run_without_checkpoints_is_begun_anew_and_that_is_said(kit: Kit):
    kit("run", "T-1", code=1, env={"TOY_ARGS": "--at 2 raise"})
    first = kit.run_dirs()[-1]
    shown = json.loads(kit("run", "T-1", "--dry-run", "--json").stdout)
    assert (shown["relation"], shown["parent_run_id"], shown["checkpoint"]) == ("continue", first.name, None)
    assert f"'{first.name}' has no checkpoint: beginning anew" in kit("run", "T-1", "--set", "training.seed=7").stderr
    second = kit.run_dirs()[-1]
    own = record(second)
    assert (own["relation"], own["parent_run_id"], own["parent_step"], own["checkpoint"]) == (
        "continue", first.name, 0, None,
    )  # fmt: skip
    assert json.loads((first / "claims" / "continued.json").read_text())["run_id"] == second.name
    assert own["settings"] == ["training.seed=7"] and events(second, "step")[0]["step"] == 1
    assert json.loads((second / "resolved_config.json").read_text())["training"]["seed"] == 7


def test_under_another_name_a_run_without_checkpoints_is_left_to_itself(kit: Kit):
    kit("run", "T-1", code=1, env={"TOY_ARGS": "--at 2 raise"})
    [first] = kit.run_dirs()
    kit("run", "T-1", "--name", "second")
    assert record(kit.run_dirs()[-1])["relation"] == "fresh" and not (first / "claims").exists()


def crashes(kit: Kit, backoff_s: float) -> Path:
    """T-1 in its pause before it is taken up again: it fails in its first step, and its launcher waits; its folder."""
    gate = kit.folder / "mended"
    script = '[ -e "$1" ] || exit 1; shift; exec "$@"'
    toy = ["{python}", str(TOY).replace("{", "{{").replace("}", "}}"), "--steps", "{training.max_steps}"]
    command = ["sh", "-c", script, "-", str(gate).replace("{", "{{").replace("}", "}}"), *toy, "--delay", "0.05"]
    kit.config(
        trainer={"command": command}, training={"max_steps": 10},
        recover={"enabled": True, "backoff_s": backoff_s, "max_attempts": 5},
    )  # fmt: skip
    kit("run", "T-1", "--detach")
    run = kit.started()
    wait_until(lambda: events(run, "abort"), "the incident")
    gate.touch()
    return run


def test_a_person_who_begins_anew_and_a_recovery_that_waits_do_not_both_train(kit: Kit):
    """The person is first: the launcher that waits finds its head taken, and ends."""
    first = crashes(kit, backoff_s=2)
    launcher = events(first, "launched")[0]["launcher"]["pid"]
    kit("run", "T-1")
    wait_until(lambda: not os.path.exists(f"/proc/{launcher}"), "the launcher that waited has ended")
    _, second = kit.run_dirs()
    assert record(second)["recovery"] is None and events(first, "abort") and not events(first, "recovery")
    assert kit.status(second)["state"] == "finished"


@pytest.mark.parametrize("later_s", [0, 0.5])
def test_of_a_recovery_and_a_person_at_once_one_begins(kit: Kit, later_s: float):
    """Two people and eight askers as launchers, at once or just behind: one child comes of it, whichever was first."""
    first = crashes(kit, backoff_s=1)
    os.kill(events(first, "launched")[0]["launcher"]["pid"], signal.SIGKILL)
    time.sleep(1.1)  # the pause is over
    people = [kit.popen("run", "T-1") for _ in range(2)]
    time.sleep(later_s)
    asked = askers(kit, first, 8)
    ready = answers_of(asked)
    said = [person.communicate(timeout=120)[1].decode() for person in people]
    for asker in asked:
        asker.communicate("")
    began = [run for run in kit.run_dirs()[1:] if events(run, "launched")]
    assert len(ready) + len(began) == 1, (ready, began, said)
    assert sorted(person.returncode for person in people) == ([6, 6] if ready else [0, 6]), said


def test_only_a_best_checkpoint_is_not_begun_anew_over(kit: Kit):
    kit("run", "T-1", code=1, env={"TOY_ARGS": "--at 2 raise"})
    [run] = kit.run_dirs()
    write_checkpoint(run / "checkpoints/hrm_arc_best.pt", 2)
    assert "'hrm_arc_best.pt' is there, resume.sh --best takes it" in kit("run", "T-1", code=3).stderr
    kit("resume", "T-1", "--best")
    assert record(kit.run_dirs()[-1])["parent_step"] == 2


@pytest.mark.fault("H4", by="search: refused with what to do")
def test_a_finished_run_is_not_continued(kit: Kit):
    kit.config("--save-every", "5", training={"max_steps": 5})
    kit("run", "T-1")
    [run] = kit.run_dirs()
    said = kit("run", "T-1", code=6).stderr
    assert (
        f"'{run.name}' has finished at step 5: --set training.max_steps=N goes on from there to a step N above 5"
        in said
    )
    assert "run.sh --fresh begins anew" in said
    assert kit.run_dirs() == [run]
    more = kit("run", "T-1", "--set", "max_steps=7", "--accept").stderr
    assert f"branching from '{run.name}' at step 5" in more


@pytest.mark.fault("H4", by="choice: refused with what to do")
def test_a_finished_run_without_a_checkpoint_is_not_begun_again_by_itself(kit: Kit):
    """A job that is requeued calls run.sh: it must not train for ever what has trained to its end."""
    kit.config("--save-every", "0", training={"max_steps": 5})
    kit("run", "T-1")
    [run] = kit.run_dirs()
    for switch in ((), ("--dry-run",)):
        said = kit("run", "T-1", *switch, code=6).stderr
        assert f"'{run.name}' has finished, and has no checkpoint to go on from: run.sh --fresh begins anew" in said
    kit("run", run.name, "--name", "beside")
    kit("run", "T-1", "--fresh")
    assert len(kit.run_dirs()) == 3


@pytest.mark.fault("H3", by="search: pid and host of the live one")
@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_live_run_is_refused_with_pid_and_host(kit: Kit, has_checkpoint: bool):
    gate = kit.folder / "gate"
    kit.config("--save-every", "2" if has_checkpoint else "0", "--at", "3", f"wait={gate}")
    process = kit.popen("run", "T-1")
    run = kit.started()
    trainer = events(run, "launched")[0]["trainer"]
    while has_checkpoint and not (run / "checkpoints/hrm_arc_step_2.pt").exists():
        assert process.poll() is None
    said = kit("run", "T-1", code=6).stderr
    assert f"'{run.name}' is alive (" in said and f"pid {trainer['pid']} on {trainer['host']}" in said
    gate.touch()
    process.communicate(timeout=60)
    assert len(kit.run_dirs()) == 1


def test_a_dry_run_makes_nothing_not_even_the_runs_folder(kit: Kit):
    said = kit("run", "T-1", "--dry-run").stdout
    assert said.startswith("starting T-1 anew\n") and not kit.runs.exists()
    shown = json.loads(kit("run", "T-1", "--dry-run", "--json").stdout)
    assert (shown["relation"], shown["checkpoint"], shown["candidates"]) == ("fresh", None, [])
    killed(kit)
    before = tree(kit.runs)
    kit("run", "T-1", "--dry-run")
    assert tree(kit.runs) == before


@pytest.mark.fault("H16", by="preflight: the target is named")
@pytest.mark.fault("J12", by="preflight: the target is named")
def test_the_dataset_is_linked_and_a_dangling_one_refused_before_anything_is_made(kit: Kit):
    data = kit.folder / "data"
    data.symlink_to("/mnt/gone/arc")
    kit.config(data={"path": "data"})
    said = kit("run", "T-1", code=4).stderr
    assert "data.path is '" in said and "a link to '/mnt/gone/arc'" in said and not kit.runs.exists()
    data.unlink()
    data.mkdir()
    kit("run", "T-1")
    assert os.readlink(kit.run_dirs()[0] / "dataset") == str(data)


@pytest.mark.fault("H17", by="preflight: the program is looked for")
def test_a_missing_program_is_refused_before_anything_is_made(kit: Kit):
    kit.config(trainer={"command": ["no-such-trainer", "--x"]})
    assert "the trainer's program 'no-such-trainer' is not there" in kit("run", "T-1", code=127).stderr
    assert not kit.runs.exists()


def test_a_notifier_that_is_not_there_is_refused_at_the_start_and_leaves_nothing(kit: Kit) -> None:
    kit.config(notify={"command": ["no-such-mailer"]})
    for more in ((), ("--dry-run",)):
        said = kit("run", "T-1", *more, code=4).stderr
        assert "the program 'no-such-mailer' is not there or not executable (notify.command" in said
    assert kit.run_dirs() == []
    kit("run", "T-1", "--set", "notify.command=null")


@pytest.mark.fault("H8", by="preflight: the folder is looked at")
@pytest.mark.parametrize("kind", ["a file", "a dangling link"])
def test_a_runs_folder_that_is_none_is_refused_with_its_path(kit: Kit, kind: str):
    if kind == "a file":
        kit.runs.write_text("")
    else:
        kit.runs.symlink_to("/nowhere/at/all")
    said = kit("run", "T-1", code=None)
    assert said.returncode in (1, 2) and "runs'" in said.stderr and "Traceback" not in said.stderr


@pytest.mark.fault("H8", by="paths: a link to a folder is a folder")
def test_a_linked_runs_folder_works(kit: Kit):
    real = kit.folder / "a disk"
    real.mkdir()
    kit.runs.symlink_to(real)
    killed(kit)
    kit("run", "T-1")
    assert len(list(real.glob("T-1*"))) == 2


def on_a_small_disk(kit: Kit, options: str) -> subprocess.CompletedProcess:
    """Start T-1 in a namespace of its own where the runs folder is a small tmpfs; stdout lists it afterwards."""
    kit.runs.mkdir()
    mount = 'mount -t tmpfs -o "$1" none "$2"'
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount, "-", options, str(kit.runs)]).returncode:
        pytest.skip("no user namespaces here")
    script = mount + '; runs=$2; shift 2; "$@" || echo "code $?"; ls -A "$runs"'
    argv = ["unshare", "-rm", "sh", "-c", script, "-", options, str(kit.runs), *kit.argv("run", "T-1")]
    return subprocess.run(argv, env=kit.env, capture_output=True, text=True, timeout=60)


@pytest.mark.fault("H7", by="preflight: room and inodes; launch takes its folder away")
@pytest.mark.fault("H8", by="preflight: read-only")
@pytest.mark.fault("I15", by="make_folder: written before the start")
@pytest.mark.parametrize(
    "options, words",
    [
        ("size=16k", "is full"),
        ("size=8m,nr_inodes=5", "no space left on device"),
        ("size=8m,nr_inodes=1", "is full (no inodes"),
        ("ro,size=8m", "read-only file system"),
    ],
)
def test_a_disk_without_room_is_refused_and_nothing_is_left(kit: Kit, options: str, words: str):
    result = on_a_small_disk(kit, options)
    assert words in result.stderr.lower() and "Traceback" not in result.stderr, result.stderr
    assert result.stdout in ("code 1\n", "code 4\n"), "an exit code before the start, and an empty folder"


@pytest.mark.fault("H19", by="launcher.sh: umask o-w")
@pytest.mark.fault("K9", by="launcher.sh: umask o-w")
def test_no_other_user_may_write_into_a_run_whatever_the_umask_says(kit: Kit):
    argv = ["bash", "-c", 'umask 000; "$@"', "-", *kit.argv("run", "T-1")]
    assert subprocess.run(argv, env=kit.env, capture_output=True).returncode == 0
    [run] = kit.run_dirs()
    for name in (".", "run.json", "command.sh", "resolved_config.json", "config.yaml", "checkpoints", "logs"):
        assert not (run / name).stat().st_mode & 0o002, name
    assert (run / "command.sh").stat().st_mode & 0o111


def test_a_failed_start_takes_its_folder_away_again(kit: Kit):
    kit.config(trainer={"checkpoint_in": "config.yaml/last.pt"})  # collides with the copy of the config
    write_checkpoint(kit.folder / "one.pt", 3)
    assert kit("run", "T-1", "--resume", str(kit.folder / "one.pt"), code=1).stderr.count("\n") <= 3
    assert not list(kit.runs.glob("T-1*")) and not list((kit.runs / LIVE).glob("*"))


@pytest.mark.fault("H1", by="make_folder: one start at a time, by a lock")
@pytest.mark.fault("J11", by="make_folder: one start at a time, by a lock")
def test_of_two_first_starts_at_once_one_begins_and_the_other_is_refused(kit: Kit):
    kit.config("--delay", "0.3", training={"max_steps": 10})
    both = [kit.popen("run", "T-1") for _ in range(2)]
    ends = [(process.communicate(timeout=120)[1].decode(), process.returncode) for process in both]
    assert sorted(code for _, code in ends) == [0, 6]
    assert len(kit.run_dirs()) == 1
    (refused,) = (said for said, code in ends if code == 6)
    assert "is just being started by another command" in refused or "is alive" in refused


def test_a_relative_python_works_wherever_the_trainer_runs(kit: Kit):
    (kit.folder / "py").mkdir()
    (kit.folder / "py/python").symlink_to(sys.executable)
    done = kit("run", "T-1", env={"PYTHON": "py/python"}, cwd=kit.folder)
    assert "done at step 5" in done.stdout


@pytest.mark.long  # a process that asks for the trainer waits ten seconds for it
def test_a_shim_that_cannot_start_ends_the_launcher_with_a_sentence(kit: Kit):
    """No process may wait for ever for a trainer that never came."""
    broken = kit.folder / "python"
    broken.write_text(f'#!/bin/sh\ncase "$*" in *shim.py*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    broken.chmod(0o755)
    said = kit("run", "T-1", code=127, env={"PYTHON": str(broken)}).stderr
    assert "the trainer was never started" in said


def idle_said(kit: Kit, *command: str) -> list[str]:
    """Return the notes of a plan that say of a key that it has no effect."""
    plan = json.loads(kit(*command, "--dry-run", "--json").stdout)
    return [note for note in plan["notes"] if "has no effect" in note]


@pytest.mark.parametrize(("key", "value"), [("keep_last", 3), ("keep_every", 100)])
def test_a_key_that_does_nothing_with_this_trainer_is_said_at_the_start(kit: Kit, key: str, value: int):
    said = idle_said(kit, "run", "T-1", "--set", f"checkpoint.{key}={value}")
    assert len(said) == 1 and f"checkpoint.{key} is {value} and has no effect" in said[0]
    assert "trainer.loads_with_kit: false" in said[0]
    kit("run", "T-1", "--set", f"checkpoint.{key}={value}", code=137, env={"TOY_ARGS": "--save-every 2 --at 3 kill"})
    assert len(idle_said(kit, "resume", "T-1")) == 1, "a resume says it too"


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"checkpoint": {"keep_last": None}},
        {"checkpoint": {"keep_last": 3}, "trainer": {"loads_with_kit": True}},
        {"checkpoint": {"keep_last": 3}, "trainer": {"command": ["{python}", "x.py", "--keep={checkpoint.keep_last}"]}},
    ],
)
def test_a_key_that_was_not_set_or_that_the_trainer_gets_is_not(kit: Kit, sections: dict):
    (kit.folder / "x.py").touch()
    kit.config(**{"recover": {"enabled": False}, **sections})
    assert idle_said(kit, "run", "T-1") == []
