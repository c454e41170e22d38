"""Alive, dead or unknown: every combination of what can be seen (resumekit.run.liveness), and the real cases.

Hosts, boots and containers are namespaces: a host name of its own, a boot id that is mounted over the kernel's, a
numbering of processes of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import claims, process_details, processes, run_ties
from resumekit.base.claims import FREE, HELD, MISSING, UNASKED
from resumekit.base.processes import ALIVE, DEAD, UNKNOWN
from resumekit.process import stopping
from resumekit.run import life_signs, status
from resumekit.run.liveness import (  # fmt: skip
    BOOT,
    COPY,
    HELPERS,
    HERE,
    HOST,
    JOB,
    NAMESPACE,
    OURS,
    UNSEEN,
    Evidence,
    judge,
)
from resumekit.run.run_folder import open_run
from support.commands import Kit
from support.places import LIB
from support.processes import marked_pids, wait_until
from support.runs import age, events

PROBES = (ALIVE, DEAD, UNKNOWN)
VALUES: dict[str, tuple[Any, ...]] = {
    "place": (HERE, NAMESPACE, BOOT, HOST),
    "is_launched": (True, False),
    "is_ended": (False, True),
    "trainer": PROBES,
    "shim": PROBES,
    "launcher": PROBES,
    "whose": (OURS, COPY, UNSEEN),
    "members": (0, 2),
    "session_lock": (HELD, FREE, MISSING, UNASKED, HELPERS),
    "status_lock": (HELD, FREE, MISSING, UNASKED),
    "is_fresh": (False, True),
    "has_word": (False, True),
    "moves_on": (False, True),
}
RANK = {DEAD: 0, UNKNOWN: 1, ALIVE: 2}


def combinations() -> Iterator[Evidence]:
    """Yield everything that can be seen; of another place the probes say nothing (life_signs.examine)."""
    for values in itertools.product(*VALUES.values()):
        seen = Evidence(**dict(zip(VALUES, values, strict=True)))
        if seen.place == HERE or (seen.trainer, seen.shim, seen.launcher, seen.whose) == (UNKNOWN,) * 3 + (OURS,):
            yield seen


@cache
def all_seen() -> tuple[Evidence, ...]:
    return tuple(combinations())


def signs_of_life(seen: Evidence) -> list[str]:
    """Return what says that this run's trainer may live.

    Where its processes are seen, the sidecar's lock and a file that has just changed are none: a trainer that has died
    leaves both for a moment.
    """
    is_its_own = seen.whose != COPY
    signs = {
        "process": seen.place == HERE and seen.trainer == ALIVE and is_its_own,
        "shim": seen.place == HERE and seen.shim == ALIVE and not seen.is_ended and seen.is_launched,
        "members": seen.members > 0,
        "session_lock": seen.session_lock == HELD,
    }
    if not seen.is_ended and seen.is_launched and (seen.place != HERE or seen.trainer == UNKNOWN):
        signs |= {"status_lock": seen.status_lock == HELD, "fresh": seen.is_fresh}
    if not seen.is_launched and not seen.is_ended:
        signs |= {"launcher": seen.launcher == ALIVE, "fresh": seen.launcher == UNKNOWN and seen.is_fresh}
    return [name for name, is_there in signs.items() if is_there]


def test_never_dead_while_there_is_a_sign_of_life() -> None:
    """A person's word outweighs a lock that was held when it was given, and nothing else."""
    for seen in all_seen():
        signs = signs_of_life(seen)
        if seen.has_word and seen.place != NAMESPACE:
            signs = [name for name in signs if name not in ("session_lock", "status_lock")]
        if seen.place == HERE and seen.trainer == ALIVE and seen.whose == COPY and seen.has_word:
            signs = []  # all of it is the original's
        if seen.is_ended and not seen.members and seen.has_word:
            signs = [name for name in signs if name != "session_lock"]
        if seen.place == HERE and seen.trainer == ALIVE and seen.whose == UNSEEN and seen.is_ended:
            continue  # its end is written down, and what runs under its pid is not seen to be its own
        if signs:
            assert judge(seen).what != DEAD, (signs, seen, judge(seen))


def test_no_second_trainer_without_proof_or_word() -> None:
    proofs = {"ended", "no_trainer", "processes", "reboot", "lock_free", "word"}
    for seen in all_seen():
        verdict = judge(seen)
        if verdict.what == DEAD:
            assert verdict.code in proofs, (seen, verdict)
        if verdict.code == "processes":
            assert (seen.place, seen.trainer) == (HERE, DEAD)
        if verdict.code == "lock_free":
            assert seen.place == NAMESPACE and seen.session_lock in (FREE, HELPERS) and not seen.is_fresh
        if verdict.code == "reboot":
            assert seen.place == BOOT and seen.session_lock not in (HELD, UNASKED) and not seen.is_fresh
        if seen.place == HOST and verdict.what == DEAD:
            assert verdict.code in ("word", "ended", "no_trainer")
        if verdict.code == "word":
            assert seen.has_word and not (seen.is_fresh and seen.place in (NAMESPACE, BOOT, HOST) and not seen.is_ended)


def test_a_scheduler_s_word_is_proof_where_processes_cannot_be_seen_and_nowhere_else() -> None:
    """Of another host or boot its locks and files are no sign then: a network drive keeps locks, and files are late."""
    for seen in all_seen():
        before, after = judge(seen), judge(seen._replace(is_job_over=True))
        if seen.place == HERE or seen.members:
            assert after == before, (seen, after)
        if seen.place in (BOOT, HOST) and not seen.members:
            assert after.what == DEAD, (seen, after)
        if seen.place == NAMESPACE and HELD in (seen.session_lock, seen.status_lock):
            assert after == before, (seen, after)
        assert after.what == before.what or (after.what == DEAD and not seen.members), (seen, after)
        if after.code == JOB:
            moving = judge(seen._replace(is_job_over=True, is_moving=True))
            assert moving.what == UNKNOWN and moving.way_out and not moving.can_take_over, (seen, moving)


def test_unknown_always_has_a_way_out_and_words() -> None:
    for seen in all_seen():
        verdict = judge(seen)
        assert verdict.words and verdict.code
        assert bool(verdict.way_out) == (verdict.what == UNKNOWN), (seen, verdict)
        assert not verdict.can_take_over or (verdict.what == UNKNOWN and "--take-over" in verdict.way_out)


def test_a_persons_word_is_enough_once_nothing_changes_any_more() -> None:
    """No run stays unknown for good: what a person may say leads to *dead*, and the rest waits, or is seen to run."""
    for seen in all_seen():
        verdict = judge(seen)
        if verdict.can_take_over:
            assert judge(seen._replace(has_word=True)).what == DEAD, (seen, verdict)
        elif verdict.what == UNKNOWN:
            is_seen = seen.place == HERE and seen.trainer == ALIVE
            assert (
                is_seen
                or judge(seen._replace(is_fresh=False, members=0)).what in (DEAD, ALIVE)
                or (judge(seen._replace(is_fresh=False, members=0)).can_take_over)
            ), seen


STRONGER: dict[str, tuple[tuple[Any, Any], ...]] = {
    "trainer": ((DEAD, ALIVE), (DEAD, UNKNOWN), (UNKNOWN, ALIVE)),
    "shim": ((DEAD, ALIVE),),
    "members": ((0, 2),),
    "session_lock": ((FREE, HELD), (MISSING, HELD), (UNASKED, HELD), (HELPERS, HELD), (FREE, MISSING)),
    "status_lock": ((FREE, HELD), (MISSING, HELD)),
    "is_fresh": ((False, True),),
    "launcher": ((DEAD, ALIVE),),
    "moves_on": ((False, True),),
}


def test_one_more_sign_of_life_never_moves_the_verdict_towards_dead() -> None:
    known = {seen: judge(seen).what for seen in all_seen()}
    for seen, what in known.items():
        for name, steps in STRONGER.items():
            for weaker, stronger in steps:
                if getattr(seen, name) == weaker and (more := seen._replace(**{name: stronger})) in known:
                    is_no_sign = more.whose != OURS and more.trainer == ALIVE
                    assert is_no_sign or RANK[known[more]] >= min(RANK[what], RANK[UNKNOWN]), (name, seen, more)
                    if what == UNKNOWN:
                        assert is_no_sign or known[more] != DEAD, (name, seen, more)


def test_the_table_of_the_rules() -> None:
    """The cases by name, as docs/design.md has them."""
    seen = Evidence(HERE)
    for changes, what, code in (
        ({"trainer": ALIVE}, ALIVE, "process"),
        ({"trainer": ALIVE, "whose": COPY}, UNKNOWN, "copy"),
        ({"trainer": ALIVE, "whose": UNSEEN}, UNKNOWN, "elsewhere"),
        ({"trainer": DEAD}, DEAD, "processes"),
        ({"trainer": DEAD, "is_fresh": True}, DEAD, "processes"),
        ({"trainer": DEAD, "shim": ALIVE}, ALIVE, "ending"),
        ({"trainer": DEAD, "members": 1}, ALIVE, "members"),
        ({"trainer": DEAD, "session_lock": HELD}, UNKNOWN, "session_lock"),
        ({"trainer": DEAD, "session_lock": HELPERS}, DEAD, "processes"),
        ({"trainer": UNKNOWN}, UNKNOWN, "hidden"),
        ({"trainer": UNKNOWN, "is_fresh": True}, ALIVE, "fresh"),
        ({"place": BOOT}, DEAD, "reboot"),
        ({"place": BOOT, "session_lock": MISSING}, DEAD, "reboot"),
        ({"place": BOOT, "session_lock": HELD}, UNKNOWN, "session_lock"),
        ({"place": BOOT, "status_lock": HELD}, UNKNOWN, "status_lock"),
        ({"place": BOOT, "is_fresh": True}, UNKNOWN, "fresh"),
        ({"place": NAMESPACE}, DEAD, "lock_free"),
        ({"place": NAMESPACE, "session_lock": HELD}, ALIVE, "session_lock"),
        ({"place": NAMESPACE, "session_lock": MISSING}, UNKNOWN, "no_lock"),
        ({"place": NAMESPACE, "session_lock": MISSING, "status_lock": HELD}, ALIVE, "status_lock"),
        ({"place": HOST}, UNKNOWN, "place"),
        ({"place": HOST, "session_lock": HELD}, UNKNOWN, "place"),
        ({"place": HOST, "is_fresh": True}, ALIVE, "fresh"),
        ({"place": HOST, "has_word": True}, DEAD, "word"),
        ({"place": HOST, "has_word": True, "is_fresh": True}, ALIVE, "fresh"),
        ({"place": HOST, "is_ended": True}, DEAD, "ended"),
    ):
        verdict = judge(seen._replace(**changes))
        assert (verdict.what, verdict.code) == (what, code), changes


# the real cases

NO_NAMESPACES = os.geteuid() != 0 or bool(
    subprocess.run(["unshare", "-mpuf", "--mount-proc", "true"], capture_output=True, check=False).returncode
)
needs_namespaces = pytest.mark.skipif(NO_NAMESPACES, reason="needs root and namespaces for processes, mounts and names")
# A container of this host: a numbering of processes of its own. Its first process ends with its last word.
CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", '"$@"; exit "$?"', "sh")
# The same name, another boot of another kernel: a machine that was cloned, or started anew.
CLONE = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"')
# Another name and another boot of another kernel; the file's content is the same each time.
OTHER_HOST = (
    "unshare", "--uts", "--mount", "sh", "-c",
    'file=$(mktemp) && echo 00000000-0000-4000-8000-000000000001 > "$file" &&'
    'mount --bind "$file" /proc/sys/kernel/random/boot_id && rm "$file" && hostname elsewhere && exec "$@"', "sh",
)  # fmt: skip


def within(where: tuple[str, ...], kit: Kit, command: str, *args: str, code: int | None = 0) -> str:
    """Run a command of the kit in a container, on a clone or on another host; return all that it said."""
    argv = [*where, *kit.argv(command, *args)]
    done = subprocess.run(argv, env=kit.env, capture_output=True, text=True, timeout=120, check=False)
    assert code in (None, done.returncode), f"exit {done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def clone_of(kit: Kit) -> tuple[str, ...]:
    boot_id = kit.folder / "boot_id"
    boot_id.write_text("00000000-0000-4000-8000-000000000000\n")
    return (*CLONE, str(boot_id))


def live(kit: Kit, *toy_args: str, **sections: Any) -> Path:
    """Start a run that goes on for as long as the test, and has a checkpoint."""
    steps = {"max_steps": 10**6}
    kit.config("--delay", "0.02", "--save-every", "5", *toy_args, training=steps, **sections)
    kit("run", "T-1", "--detach")
    return with_a_checkpoint(kit.started())


def with_a_checkpoint(run: Path) -> Path:
    wait_until(lambda: list(run.glob("checkpoints/*.pt")), "a checkpoint")
    return run


def in_a_container(kit: Kit) -> tuple[subprocess.Popen, Path]:
    """Start a live run in a container; return its first process's and the run's folder."""
    kit.config("--delay", "0.02", "--save-every", "5", training={"max_steps": 10**6})
    script = '"$@" >&2; exec sleep 1000'
    argv = [*CONTAINER[:-2], script, "sh", *kit.argv("run", "T-1", "--detach")]
    process = subprocess.Popen(argv, env=kit.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return process, with_a_checkpoint(kit.started())


def pids(kit: Kit, *words: bytes) -> list[int]:
    """Return the test's processes whose command line has one of these words, wherever they were started."""
    found = []
    for pid in marked_pids(f"RESUMEKIT_TEST_MARK={kit.mark}"):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if any(word in command for word in words):
                found.append(pid)
    return found


def signal_all(pids: list[int], *numbers: int) -> None:
    for number in numbers:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def trainers(kit: Kit) -> list[int]:
    """Return the processes that train: those that run the toy trainer, not those that have it in their own arguments.

    By the place of the word alone: of a process that is ending, /proc may show a part of the arguments.
    """
    found = []
    for pid in pids(kit, b"toy_trainer.py"):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if any(word.endswith(b"toy_trainer.py") for word in words[1:3]):
                found.append(pid)
    return found


def all_but_trainers(kit: Kit) -> list[int]:
    spared = set(trainers(kit))
    return [pid for pid in pids(kit, b"") if pid not in spared]


@needs_namespaces
def test_a_trainer_alone_in_another_container_is_seen_by_its_lock(kit: Kit) -> None:
    """Its launcher, shim and sidecar are killed; run.sh in a second container of this host begins no other trainer."""
    container, run = in_a_container(kit)
    first = int(Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()[0])
    family = [pid for pid in all_but_trainers(kit) if pid not in (container.pid, first)]
    signal_all(family, signal.SIGSTOP, signal.SIGKILL)
    wait_until(lambda: len(trainers(kit)) == 1, "the trainer is alone")
    (trainer,) = trainers(kit)
    age(run)  # and it says nothing for a while
    os.kill(trainer, signal.SIGSTOP)
    age(run)
    said = within(CONTAINER, kit, "run", "T-1", code=6)
    assert "is alive" in said, said
    assert "remote" in within(CONTAINER, kit, "abort-watch", code=0)
    assert kit.run_dirs() == [run] and trainers(kit) == [trainer]
    said = kit("run", "T-1", code=6).stderr  # from outside of all containers, where its token is seen too
    assert "is alive" in said
    container.kill()
    container.wait()


@needs_namespaces
def test_a_container_that_was_started_again_takes_its_run_up(kit: Kit) -> None:
    container, run = in_a_container(kit)
    signal_all(pids(kit, b""), signal.SIGSTOP, signal.SIGKILL)
    container.wait()
    said = within(CONTAINER, kit, "run", "T-1", code=6)
    assert "cannot be told alive or dead" in said and "its files are changing" in said, said
    age(run)
    assert "lost" in within(CONTAINER, kit, "runs", "T-1")
    said = within(CONTAINER, kit, "abort-watch", "--observe", code=8)
    assert "lost" in said and "died" in said, said
    said = within(CONTAINER, kit, "run", "T-1", "--dry-run")
    assert f"continuing '{run.name}'" in said


@needs_namespaces
def test_a_clone_of_this_machine_starts_no_second_trainer_and_stops_none(kit: Kit) -> None:
    """The same host name, another boot: a reboot, most of the time, but not while the lock is held."""
    run = live(kit)
    clone = clone_of(kit)
    signal_all(pids(kit, b""), signal.SIGSTOP)
    age(run)
    said = within(clone, kit, "run", "T-1", code=6)
    assert "a process holds its trainer's lock" in said and "--take-over" in said, said
    assert "unknown" in within(clone, kit, "abort-watch", code=0)
    signal_all(pids(kit, b""), signal.SIGCONT)
    (run / "status.json").touch()
    said = within(clone, kit, "run", "T-1", "--take-over", code=6)
    assert "cannot be told alive or dead" in said
    assert kit.run_dirs() == [run] and not events(run, "recovery") and not events(run, "abort")
    signal_all(pids(kit, b""), signal.SIGSTOP, signal.SIGKILL)
    wait_until(lambda: claims.lock_state(run / "trainer.lock") == FREE, "the kernel has freed its lock")
    assert "its files are changing" in within(clone, kit, "run", "T-1", code=6)
    age(run)
    assert "lost" in within(clone, kit, "runs", "T-1")


def cut_off(kit: Kit, run: Path) -> None:
    """Let a host be gone: nothing of the run moves any more, and nothing of it is seen."""
    signal_all(pids(kit, b""), signal.SIGSTOP)
    age(run)


@needs_namespaces
def test_a_run_whose_host_is_gone_is_gone_on_from_by_a_persons_word_and_fenced(kit: Kit) -> None:
    run = live(kit)
    assert f"on host {processes.host_name()}" in within(OTHER_HOST, kit, "runs", "T-1")
    said = within(OTHER_HOST, kit, "run", "T-1", "--take-over", code=6)
    assert "is alive" in said, "its files are changing"
    cut_off(kit, run)
    shown = within(OTHER_HOST, kit, "runs", "T-1")
    host = processes.host_name()
    assert "alive or dead? last heard of" in shown and f"on host {host}" in shown and "left" not in shown
    said = within(OTHER_HOST, kit, "run", "T-1", code=6)
    assert "last heard of" in said and f"on host {host}" in said and "--take-over" in said, said
    dry = within(OTHER_HOST, kit, "run", "T-1", "--take-over", "--dry-run")
    assert f"continuing '{run.name}'" in dry and not events(run, "taken_over") and not (run / "claims").exists()
    within(OTHER_HOST, kit, "run", "T-1", "--take-over", "--detach")
    child = kit.run_dirs()[-1]
    (word,) = events(run, "taken_over")
    assert (word["host"], word["child_run_id"]) == ("elsewhere", child.name)
    claim = json.loads((run / "claims" / "continued.json").read_text())
    assert (claim["run_id"], claim["taken_over"]) == (child.name, True)
    wait_until(lambda: events(child, "step"), "it trains")
    shown = within(OTHER_HOST, kit, "runs", run.name)
    old = next(line for line in shown.splitlines() if line.startswith(run.name))
    assert "taken over by" in old and "left" not in old and "running" not in old, shown
    # The host was cut off, not gone: its sidecar finds the claim and ends its trainer.
    signal_all(pids(kit, b""), signal.SIGCONT)
    wait_until(lambda: (run / "exit.json").exists(), "the one that came back has ended")
    (stopped,) = events(run, "stopped")
    assert child.name in stopped["asked_by"] and "taken this run over" in stopped["asked_by"]
    assert len(events(child, "abort")) == 0 and not (child / "exit.json").exists()


@pytest.mark.parametrize("call", ["save", "beat"])
def test_a_trainer_that_comes_back_saves_and_beats_nothing_more(tmp_path: Path, call: str) -> None:
    """One with the helpers ends itself: an unaware one is ended by its sidecar."""
    run = tmp_path / "EXP-01_x"
    (run / "claims").mkdir(parents=True)
    (run / "claims" / "continued.json").write_text(json.dumps({"run_id": "EXP-01_y", "taken_over": True}))
    code = {
        "save": "from resume_helper import save_checkpoint; save_checkpoint('checkpoints', 5, model=None)",
        "beat": "from resume_helper import heartbeat_writer; heartbeat_writer('s.json', dict, 60)",
    }[call]
    env = {**os.environ, "PYTHONPATH": str(LIB), "RESUMEKIT_RUN_DIR": str(run), "RESUMEKIT_RUN_TOKEN": "t"}
    command = [sys.executable, "-c", f"{code}; print('went on')"]
    done = subprocess.run(command, env=env, cwd=run, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (6, "")
    assert "was taken over by 'EXP-01_y': this trainer ends" in done.stderr and done.stderr.count("\n") == 1
    assert not (run / "checkpoints").exists()
    (warning,) = events(run)
    assert warning["kind"] == "fenced"
    del env["RESUMEKIT_RUN_TOKEN"]  # by hand, with command.sh: no trainer of the kit's
    code = "from resume_helper import heartbeat_writer; heartbeat_writer('s.json', dict, 60); print('went on')"
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=run, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "went on\n")


def test_a_copy_of_a_live_run_stops_and_starts_nothing_of_the_original(kit: Kit) -> None:
    run = live(kit)
    (trainer,) = trainers(kit)
    original, copied = kit.runs, kit.folder / "copied"
    being_written = shutil.ignore_patterns(".*.tmp-*")  # gone before it is copied, perhaps
    shutil.copytree(original, copied, symlinks=True, ignore=being_written, copy_function=shutil.copy)
    logs = [folder / run.name / "logs" / "output.log" for folder in (original, copied)]
    wait_until(lambda: os.stat(logs[0]).st_size > os.stat(logs[1]).st_size, "the original has gone on")
    kit.runs = copied
    said = kit("abort-watch", "--stop", "T-1", code=1).stderr
    assert "this is a copy of a live run" in said and f"pid {trainer}" in said and str(run)[:20] in said, said
    said = kit("run", "T-1", code=6).stderr
    assert "this is a copy of a live run" in said and "go on with the original" in said
    kit("abort-watch", code=0)
    kit.runs = original
    assert trainers(kit) == [trainer] and not events(run, "stopped") and not events(copied / run.name, "stopped")
    kit("abort-watch", "--stop", "T-1")
    assert events(run, "stopped")


def test_a_folder_that_was_moved_while_its_run_lives_is_no_copy(kit: Kit) -> None:
    run = live(kit)
    moved = kit.folder / "moved"
    kit.runs.rename(moved)
    kit.runs = moved
    seen = open_run(moved / run.name)
    assert life_signs.examine(seen, status.read_state(seen)).evidence.whose == OURS
    kit("abort-watch", "--stop", "T-1")
    assert trainers(kit) == []


def test_a_link_under_the_logs_name_makes_no_other_run_ones_own(kit: Kit) -> None:
    """A planted folder names a live trainer of the caller's, and its output.log leads to that one's."""
    run = live(kit)
    planted = kit.folder / "planted" / run.name
    shutil.copytree(run, planted, ignore=shutil.ignore_patterns(".*.tmp-*"))  # it is being saved meanwhile
    (planted / "logs" / "output.log").unlink()
    (planted / "logs" / "output.log").symlink_to(run / "logs" / "output.log")
    assert stopping.stop(planted, "TERM") == 1
    assert len(trainers(kit)) == 1 and not events(planted, "stopped")
    # A hard link is no proof either; the true folder is known by what its trainer was given at its start.
    (planted / "logs" / "output.log").unlink()
    os.link(run / "logs" / "output.log", planted / "logs" / "output.log")
    assert stopping.stop(planted, "TERM") == 1
    assert len(trainers(kit)) == 1 and not events(planted, "stopped")
    assert life_signs.examine(open_run(run), status.read_state(open_run(run))).evidence.whose == OURS


@pytest.mark.parametrize("token", [None, ""])
def test_a_trainer_without_a_token_is_no_process_that_may_be_signalled(kit: Kit, token: str | None) -> None:
    """A journal of another user's names a process of the caller's: a trainer of the kit's always has a token."""
    kit("run", "T-1")
    (run,) = kit.run_dirs()
    (run / "exit.json").unlink()
    with open(run / "logs/output.log", "ab") as log:
        victim = subprocess.Popen(["sleep", "300"], stdout=log)
    try:
        (launched,) = events(run, "launched")
        known = processes.identify(victim.pid)
        assert known is not None
        launched["trainer"] = {**known.as_fields(), "token": token}
        (run / "journal.jsonl").write_text(json.dumps(launched) + "\n")
        for name in (".sidecar.json", "status.json"):
            (run / name).unlink(missing_ok=True)
        seen = open_run(run)
        assert life_signs.examine(seen, status.read_state(seen)).evidence.trainer == UNKNOWN
        assert [stopping.stop(run, "TERM", is_now=is_now) for is_now in (True, False)] == [1, 1]
        assert stopping.stop(run, "TERM", is_aborted=True) == 1
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_when_a_live_runs_folder_is_removed_launcher_and_sidecar_end_with_the_trainer(kit: Kit) -> None:
    kit.config("--delay", "0.02", "--exit", "3", "--at", "5", f"wait={kit.folder}/go", training={"max_steps": 30})
    process = kit.popen("run", "T-1")
    run = kit.started()
    wait_until(lambda: len(events(run, "step")) >= 5, "it waits")
    sidecars = pids(kit, b"sidecar")
    shutil.rmtree(run)
    (trainer,) = trainers(kit)
    time.sleep(1.5)
    assert trainers(kit) == [trainer], "the trainer is not harmed"
    (kit.folder / "go").touch()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3, said
    assert b"was removed while its trainer ran, which has ended with code 3" in said
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in sidecars), "its sidecar has ended")
    assert not run.exists()


def test_the_lock_is_the_trainers_sessions_alone(kit: Kit) -> None:
    """Launcher, shim, sidecar and watcher do not hold it; a child of the trainer does, until it ends too."""
    run = live(kit, "--at", "3", "child")
    lock = run / "trainer.lock"
    (trainer,) = trainers(kit)
    assert claims.lock_state(lock) == HELD and trainer in process_details.lock_holders(lock)
    kit("abort-watch")
    sessions = {os.getsid(pid) for pid in process_details.lock_holders(lock)}
    assert sessions == {os.getsid(trainer)}
    signal_all(all_but_trainers(kit), signal.SIGSTOP, signal.SIGKILL)
    os.kill(trainer, signal.SIGKILL)
    wait_until(lambda: process_details.lock_holders(lock) == [], "all of its session have ended")
    assert claims.lock_state(lock) == FREE


def test_a_trainer_that_the_status_names_is_alive_without_journal_and_lock(kit: Kit) -> None:
    """The journal was lost, and its trainer has closed every descriptor that it inherited, as a daemon does."""
    kit.config("--delay", "0.02", training={"max_steps": 10**6})
    document = json.loads(kit.config_file.read_text())
    closing = 'exec 900>&-; exec "$@"'
    document["trainer"]["command"] = ["bash", "-c", closing, "bash", *document["trainer"]["command"]]
    kit.config_file.write_text(json.dumps(document))
    kit("run", "T-1", "--detach")
    run = kit.started()
    wait_until(lambda: (run / "status.json").exists() and kit.status(run)["state"] == "running", "it runs")
    signal_all(all_but_trainers(kit), signal.SIGSTOP, signal.SIGKILL)
    assert claims.lock_state(run / "trainer.lock") == FREE
    for name in ("journal.jsonl", ".sidecar.json"):
        (run / name).unlink()
    seen = open_run(run)
    assert life_signs.examine(seen, status.read_state(seen)).verdict.what == ALIVE
    kit("run", "T-1", code=6)
    signal_all(trainers(kit), signal.SIGKILL)
    wait_until(lambda: life_signs.examine(seen, status.read_state(seen)).verdict.what == DEAD, "it is seen to be gone")


def test_a_helper_that_was_started_to_outlive_its_trainer_is_no_sign_of_life(kit: Kit) -> None:
    """`env -u RESUMEKIT_RUN_TOKEN`: it inherits the lock all the same, and is no sign of the trainer's life."""
    script = 'env -u RESUMEKIT_RUN_TOKEN setsid sleep 1000 & exec "$@"'
    kit.config("--delay", "0.02", "--save-every", "5", training={"max_steps": 10**6})
    document = json.loads(kit.config_file.read_text())
    document["trainer"]["command"] = ["sh", "-c", script, "sh", *document["trainer"]["command"]]
    kit.config_file.write_text(json.dumps(document))
    kit("run", "T-1", "--detach")
    run = with_a_checkpoint(kit.started())
    (helper,) = wait_until(lambda: pids(kit, b"sleep\x001000"), "its helper")
    (trainer,) = trainers(kit)
    os.kill(trainer, signal.SIGKILL)
    wait_until(lambda: (run / "exit.json").exists(), "its end")
    assert claims.lock_state(run / "trainer.lock") == HELD
    assert "ready" in kit("run", "T-1", "--dry-run").stdout
    os.kill(helper, signal.SIGKILL)


def test_a_daemon_that_holds_the_lock_of_a_trainer_that_is_gone_is_named_with_a_way_out(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = live(kit)
    signal_all(pids(kit, b""), signal.SIGSTOP, signal.SIGKILL)
    lock = run / "trainer.lock"
    wait_until(lambda: claims.lock_state(lock) == FREE, "it is free")
    daemon = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, 2); print(flush=True); "
         "time.sleep(1000)", str(lock)], stdout=subprocess.PIPE,
    )  # fmt: skip
    assert daemon.stdout is not None and daemon.stdout.readline()
    try:
        seen = open_run(run)
        verdict = life_signs.examine(seen, status.read_state(seen)).verdict
        assert (verdict.what, verdict.code) == (UNKNOWN, "session_lock")
        said = kit("run", "T-1", code=6).stderr
        assert "trainer.lock" in said and "--take-over" in said and "last heard of" in said, said
        assert "continuing" in kit("run", "T-1", "--take-over", "--dry-run").stdout
    finally:
        daemon.kill()
        daemon.communicate()
    assert "continuing" in kit("run", "T-1", "--dry-run").stdout


def test_a_trainer_that_is_seen_to_run_costs_two_stats_more(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    run = live(kit)
    seen = open_run(run)
    state = status.read_state(seen)
    monkeypatch.setattr(life_signs, "_more", lambda *_args, **_more: pytest.fail("locks, files and /proc were asked"))
    asked: list[Any] = []
    real = run_ties.file_at
    monkeypatch.setattr(run_ties, "file_at", lambda *args: asked.append(args) or real(*args))
    assert life_signs.examine(seen, state).verdict.what == ALIVE
    assert len(asked) == 2


@pytest.mark.parametrize(("changed_s_ago", "ahead_s", "is_fresh"), [
    (10, 0, True), (3600, 0, False), (3600, -3590, True), (10, 3600, True), (-10**9, 0, False), (-100, 0, True),
])  # fmt: skip
def test_a_change_is_told_by_the_file_systems_own_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed_s_ago: float, ahead_s: float, is_fresh: bool
) -> None:
    """A network drive's clock may be behind or ahead; a time that was set far into the future is no change at all."""
    run = open_run(tmp_path)
    monkeypatch.setitem(life_signs._clock_offsets, os.stat(tmp_path).st_dev, ahead_s)
    assert life_signs._is_fresh(run, life_signs.Sign(time.time() - changed_s_ago, "output.log")) is is_fresh


def test_the_file_systems_clock_is_asked_and_leaves_nothing_behind(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "T-1_x"
    run.mkdir(parents=True)
    assert abs(life_signs._offset(open_run(run))) < 60
    assert os.listdir(tmp_path / "runs") == ["T-1_x"]
