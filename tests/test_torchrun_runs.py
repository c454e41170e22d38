"""Runs of two ranks under torchrun: what ends them, and what the run says of it. Real starts: a few seconds each."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from support.commands import Kit
from support.long_tests import long
from support.processes import wait_until
from support.ranks import are_gone, ranks_of, sections_of
from support.recoveries import live, watch_as_cron
from support.runs import events

pytestmark = pytest.mark.usefixtures("valid_records")
# As in `recoveries.configure`.
RECOVERED = {"enabled": True, "backoff_s": 1, "replay_steps": 10}


def started(kit: Kit, *, is_launched: bool, job: str | None = None, **sections: Any) -> tuple[Any, Path]:
    """Start two ranks; return (launcher, run) when both train."""
    config = sections_of(kit.folder / "rank.py", is_launched=is_launched)
    kit.config(**{**config, "checkpoint": {"every": 10, "keep_last": None}, **sections})
    process = kit.popen("run", "T-1", env={"SLURM_JOB_ID": job} if job else {})
    run = kit.started()
    wait_until(lambda: len(events(run, "step")) > 20, "both ranks train")
    return process, run


def ended(run: Path) -> dict[str, Any]:
    return json.loads((run / "exit.json").read_text())


@pytest.mark.parametrize(
    ("is_launched", "job", "code", "state"),
    [
        (True, "7", None, "preempted"),
        long(False, None, None, "stopped"),
        long(True, None, "3", "stopped"),
        long(False, "7", "0", "preempted"),
    ],
)
def test_a_term_to_torchrun_alone_is_a_stop_whatever_code_its_ranks_end_with(
    recovered: Kit, is_launched: bool, job: str | None, code: str | None, state: str
) -> None:
    if code is not None:
        (recovered.folder / "code").write_text(code)
    process, run = started(recovered, is_launched=is_launched, job=job, recover=RECOVERED)
    ranks = ranks_of(run)
    os.kill(events(run, "launched")[0]["trainer"]["pid"], signal.SIGTERM)
    process.communicate(timeout=60)
    assert (ended(run)["code"], ended(run)["by"]) == (1, "TERM")
    assert recovered.status(run)["state"] == state and are_gone(*ranks.values())
    watch_as_cron(recovered, code=0)
    assert recovered.run_dirs() == [run] and not events(run, "abort") and live(recovered) == []


@pytest.mark.long
@pytest.mark.parametrize("is_launched", [False, True])
def test_ranks_that_save_for_longer_than_torchrun_s_own_half_minute_have_the_grace(
    recovered: Kit, is_launched: bool
) -> None:
    (recovered.folder / "code").write_text("143")
    (recovered.folder / "save_s").write_text("33")
    process, run = started(recovered, is_launched=is_launched)
    recovered("abort-watch", "--stop", "T-1")
    process.communicate(timeout=90)
    assert {path.name for path in recovered.folder.glob("saved-*")} == {"saved-0", "saved-1"}
    assert recovered.status(run)["state"] == "stopped"


@pytest.mark.parametrize(
    ("is_launched", "what", "cause", "words"),
    [
        (True, "kill", "died", "rank 1 was killed by signal 9"),
        long(True, "raise", "died", "rank 1: ValueError: a bad batch"),
        long(False, "raise", "died", "rank 1: ValueError: a bad batch"),
        long(True, "memory", "oom", "rank 1: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB"),
        long(False, "kill", "died", "rank 1 was killed by signal 9"),
    ],
)
def test_the_rank_that_ends_a_training_is_named_with_what_ended_it(
    recovered: Kit, is_launched: bool, what: str, cause: str, words: str
) -> None:
    process, run = started(recovered, is_launched=is_launched, recover={**RECOVERED, "backoff_s": 600})
    (recovered.folder / what).touch()
    wait_until(lambda: events(run, "abort") or process.poll() is not None, "its end is told")
    (told,) = events(run, "abort")
    assert told["cause"] == cause and f" with code 1: {words}" in told["evidence"]
