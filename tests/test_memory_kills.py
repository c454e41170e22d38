"""Killed for want of memory: said where the kernel's counter is evidence of it, and nowhere else."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import journal, process_details
from resumekit.run import run_end
from resumekit.watch.rules import Limits, Observation, findings
from support.commands import Kit
from support.places import ROOT
from support.processes import wait_until
from support.runs import events
from support.schemas import assert_valid

V1 = Path("/sys/fs/cgroup/memory")
SHIM = ROOT / "lib" / "resumekit" / "process" / "shim.py"
END = {"code": 137, "signal": 9, "pid": 41233, "at": "2026-11-22T17:35:51.123456Z", "elapsed_s": 12.3}


def cgroups(folder: Path, listing: str, files: dict[str, str]) -> dict[str, Path]:
    """Make a /proc/self/cgroup and a /sys/fs/cgroup."""
    (folder / "listing").write_text(listing)
    for name, content in files.items():
        path = folder / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return {"listing": folder / "listing", "mount": folder / "mount"}


V2_EVENTS = "low 0\nhigh 0\nmax 31\noom 2\noom_kill 2\noom_group_kill 0\n"
PLACES = {
    "v2": ("0::/job.slice/7\n", {"job.slice/7/memory.events": V2_EVENTS}, "job.slice/7/memory.events"),
    "v2, its own count before that of all below": (
        "0::/job\n", {"job/memory.events": V2_EVENTS, "job/memory.events.local": "oom_kill 0\n"},
        "job/memory.events.local",
    ),
    "v2, a cgroup without a memory controller": (
        "0::/user/app\n", {"user/memory.events": V2_EVENTS, "user/app/cgroup.procs": ""}, "user/memory.events",
    ),
    "v2, a container that is the root": ("0::/\n", {"memory.events": V2_EVENTS}, "memory.events"),
    "v1": (
        "9:name=systemd:/\n4:cpuacct,memory:/a/b\n0::/\n",
        {"memory/a/b/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "memory.events": V2_EVENTS},
        "memory/a/b/memory.oom_control",
    ),
    "v1, a container that sees the host's path": (
        "4:memory:/docker/abc\n", {"memory/memory.oom_control": "oom_kill 1\n"}, "memory/memory.oom_control",
    ),
    "v1, a kernel that does not count": ("4:memory:/\n", {"memory/memory.oom_control": "under_oom 0\n"}, None),
    "outside of the namespace": ("0::/../other\n", {"memory.events": V2_EVENTS}, None),
    "no memory controller": ("0::/\n", {"cgroup.procs": ""}, None),
    "no hierarchy": ("", {"memory.events": V2_EVENTS}, None),
    "nonsense": ("\0:\n::\n0::/\0\n", {"memory.events": "oom_kill many\n"}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", PLACES)
def test_the_counter_is_that_of_the_cgroup_that_counts_memory(tmp_path: Path, case: str) -> None:
    listing, files, expected = PLACES[case]
    found = process_details.oom_kill_counter(**cgroups(tmp_path, listing, files))
    assert found == (tmp_path / "mount" / expected if expected else None)
    assert (process_details.oom_kills(found) is None) == (expected is None)


def test_a_missing_listing_is_no_evidence(tmp_path: Path) -> None:
    assert process_details.oom_kill_counter(tmp_path / "none", tmp_path) is None
    assert process_details.oom_kills(None) is None and process_details.oom_kills(tmp_path / "none") is None


MEMINFO = "MemTotal:       16000 kB\nMemAvailable:    8000 kB\n"
KB = 1024
# listing, files, and how many kB are left
ROOM = {
    "v2, its own limit": (
        "0::/job/7\n",
        {"job/7/memory.max": f"{6000 * KB}\n", "job/7/memory.current": f"{5000 * KB}\n",
         "job/7/memory.stat": f"anon 9\ninactive_file {300 * KB}\nactive_file 9\n"},
        1300,
    ),
    "v2, the limit of one above": (
        "0::/job/7\n",
        {"job/7/memory.max": "max\n", "job/7/memory.current": f"{100 * KB}\n",
         "job/memory.max": f"{2000 * KB}\n", "job/memory.current": f"{1500 * KB}\n"},
        500,
    ),
    "v2, the machine has less": (
        "0::/job\n", {"job/memory.max": f"{90000 * KB}\n", "job/memory.current": "0\n"}, 8000,
    ),
    "v2, a limit that is passed": ("0::/job\n", {"job/memory.max": "1000\n", "job/memory.current": "2000\n"}, 0),
    "v1": (
        "4:memory:/a/b\n",
        {"memory/a/b/memory.limit_in_bytes": f"{3000 * KB}\n", "memory/a/b/memory.usage_in_bytes": f"{2900 * KB}\n",
         "memory/a/b/memory.stat": f"inactive_file 1\ntotal_inactive_file {200 * KB}\n"},
        300,
    ),
    "v1, without a limit": (
        "4:memory:/a\n",
        {"memory/a/memory.limit_in_bytes": "9223372036854771712\n", "memory/a/memory.usage_in_bytes": "1\n"},
        8000,
    ),
    "outside of the namespace": ("0::/../other\n", {"memory.max": "1\n", "memory.current": "1\n"}, 8000),
    "nonsense": ("0::/\n", {"memory.max": "much\n", "memory.current": "\n"}, 8000),
}  # fmt: skip


@pytest.mark.parametrize("case", ROOM)
def test_what_is_left_is_what_the_machine_and_each_cgroup_leave(tmp_path: Path, case: str) -> None:
    listing, files, expected = ROOM[case]
    (tmp_path / "meminfo").write_text(MEMINFO)
    places = cgroups(tmp_path, listing, files)
    assert process_details.available_bytes(**places, meminfo=tmp_path / "meminfo") == expected * KB


def test_where_nothing_says_what_is_left_it_is_not_known(tmp_path: Path) -> None:
    assert process_details.available_bytes(tmp_path / "none", tmp_path, tmp_path / "none") is None
    assert process_details.available_bytes() is not None, "this machine says it"


def shim(run_dir: Path, command: str, *, before: str = "") -> dict[str, Any]:
    """Run a shell command as the trainer under the real shim; return exit.json."""
    run_dir.mkdir(exist_ok=True)
    environment = {**os.environ, "RESUMEKIT_RUN_ID": run_dir.name, "RESUMEKIT_RUN_TOKEN": "0" * 32}
    argv = [sys.executable, "-I", "-S", str(SHIM), str(run_dir), str(os.getpid()), "--", "sh", "-c", command]
    line = f'{before} exec "$@"'
    subprocess.run(["sh", "-c", line, "sh", *argv], env=environment, check=False, timeout=60)
    return json.loads((run_dir / "exit.json").read_text())


@pytest.mark.fault("A7", by="shim.py, process_details.py: `oom_kill` in exit.json, from the kernel's own counter")
@pytest.mark.skipif(not os.access(V1, os.W_OK), reason="no memory cgroup may be made here")
def test_a_trainer_that_the_kernel_kills_for_memory_is_said_to_be(tmp_path: Path) -> None:
    """A real kill; another KILL in the same cgroup, whose counter has risen before, is not called so."""
    cgroup = V1 / f"resumekit-{os.getpid()}"
    cgroup.mkdir()
    try:
        (cgroup / "memory.limit_in_bytes").write_text(str(96 << 20))
        inside = f"echo $$ > {cgroup}/cgroup.procs;"
        grow = f"exec {sys.executable} -c 'x = bytearray(1 << 30)'"
        assert shim(tmp_path / "a", grow, before=inside)["oom_kill"] is True
        assert "oom_kill" not in shim(tmp_path / "b", "kill -9 $$", before=inside)
        wrapped = shim(tmp_path / "c", f"sh -c {json.dumps(grow)}; exit $?", before=inside)
        assert (wrapped["code"], wrapped["signal"], wrapped["oom_kill"]) == (137, None, True)
    finally:
        cgroup.rmdir()


def test_a_kill_without_evidence_is_a_signal_and_no_more(tmp_path: Path) -> None:
    end = shim(tmp_path / "run", "kill -9 $$")
    assert (end["code"], end["signal"], "oom_kill" in end) == (137, 9, False)


@pytest.mark.fault("A7", by="run_end.py: the evidence in log and journal; rules.py: cause oom")
def test_the_evidence_goes_into_the_log_the_journal_and_the_cause(tmp_path: Path) -> None:
    killed = {**END, "oom_kill": True}
    assert run_end.words(killed).startswith("ended (code 137; signal 9; killed for want of memory), elapsed 12.3 s")
    for end in (END, killed):
        journal.append(tmp_path / "journal.jsonl", "exited", "r", **run_end.fields(end))
    told = events(tmp_path, "exited")
    assert ["oom_kill" in one for one in told] == [False, True]
    for one in told:
        assert_valid("event", one)
    (found,) = findings({"step": 7}, Limits(), Observation(None, "failed", end=killed))
    assert found.cause == "oom"
    assert found.evidence == (
        "the trainer ended at step 7 by signal 9; the kernel killed a process of its cgroup for want of memory"
    )
    for other in (END, {**END, "oom_kill": "yes"}, None):
        assert [one.cause for one in findings({"step": 7}, Limits(), Observation(None, "failed", end=other))] == [
            "died"
        ]


def has_emptied(cgroup: Path) -> bool:
    """Move what is still in a cgroup out of it and remove it; a process may end, or be forked, meanwhile."""
    for pid in (cgroup / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            (V1 / "cgroup.procs").write_text(pid)
    with contextlib.suppress(OSError):
        cgroup.rmdir()
    return not cgroup.exists()


@pytest.mark.fault("A7", by="eligibility.py: what the kernel killed goes on, with abort.oom_set where there is one")
@pytest.mark.skipif(not os.access(V1, os.W_OK), reason="no memory cgroup may be made here")
@pytest.mark.parametrize("smaller", [[], ["training.batch_size=4"]])
def test_a_run_that_the_kernel_killed_for_memory_is_taken_up(kit: Kit, smaller: list[str]) -> None:
    cgroup, once = V1 / f"resumekit-{kit.mark}", kit.folder / "once"
    cgroup.mkdir()
    try:
        (cgroup / "memory.limit_in_bytes").write_text(str(256 << 20))
        grow = f"exec {sys.executable} -c 'print(\"step 1 loss 1\", flush=True); x = bytearray(1 << 30)'"
        script = f'[ -e "$1" ] || {{{{ touch "$1"; {grow}; }}}}; echo step 1 loss 1; echo step 2 loss 1'
        command = ["sh", "-c", script, "sh", str(once)]
        kit.config(trainer={"command": command, "resume_args": []}, training={"max_steps": 2},
                   abort={"oom_set": smaller}, recover={"enabled": True})  # fmt: skip
        # The launcher is put inside, and so all that it starts; the trainer is the largest.
        process = kit.popen("run", "T-1", preexec_fn=lambda: (cgroup / "cgroup.procs").write_text(str(os.getpid())))
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err.decode()
    finally:
        wait_until(lambda: has_emptied(cgroup), "the cgroup is empty")
    first, second = kit.run_dirs()
    (abort,) = events(first, "abort")
    assert abort["cause"] == "oom" and "the kernel killed" in abort["evidence"]
    assert events(first, "exited")[0]["oom_kill"] is True
    assert kit.status(second)["state"] == "finished"
    assert json.loads((second / "run.json").read_text())["settings"] == smaller
