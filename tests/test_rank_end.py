"""Which rank ended a training, and how, by what torchrun says: its banner, its error file, the lines of each rank.

The recorded ones are real: torch 2.13, two ranks of gloo, rank 1 the one that fails, paths shortened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resumekit.run import rank_end, run_end
from resumekit.run.run_folder import open_run
from resumekit.watch import observe, rules
from resumekit.watch.rules import Limits, Observation
from support.places import ROOT

RECORDED = ROOT / "tests" / "recorded" / "torchrun"
FAILED: dict[str, Any] = {"code": 1, "signal": None}
MEMORY = "CUDA out of memory. Tried to allocate 20.00 MiB"


def judged(run_dir: Path, log: str, error: str | None = None, end: dict[str, Any] = FAILED) -> dict[str, Any]:
    """Return the end of a run with that log and error file."""
    (run_dir / "logs").mkdir(parents=True)
    (run_dir / "logs" / "output.log").write_text(log)
    if error is not None:
        (run_dir / "torchrun_error.json").write_text(error)
    return rank_end.judged_end(open_run(run_dir), dict(end))


def recorded(run_dir: Path, name: str) -> dict[str, Any]:
    error = RECORDED / f"{name}.json"
    log = (RECORDED / f"{name}.log").read_text()
    return judged(run_dir, log, error.read_text() if error.exists() else None)


@pytest.mark.parametrize(
    ("name", "failed", "words"),
    [
        ("killed", {"rank": 1, "signal": 9}, "rank 1 was killed by signal 9"),
        ("killed-tee", {"rank": 1, "signal": 9}, "rank 1 was killed by signal 9"),
        ("raised-tee", {"rank": 1, "code": 1, "error": "ValueError: bad batch of rank 1"}, None),
        ("raised-then-aborted", {"rank": 1, "error": "ValueError: bad batch of rank 1"}, None),
        ("two-nodes-killed", {"rank": 0, "signal": 9}, "rank 0 was killed by signal 9"),
        ("memory-recorded", {"rank": 1, "error": f"OutOfMemoryError: {MEMORY}"}, None),
    ],
)
def test_the_rank_that_failed_is_named_with_its_signal_or_its_exception(
    tmp_path: Path, name: str, failed: dict[str, Any], words: str | None
) -> None:
    end = recorded(tmp_path, name)
    assert end == {**FAILED, "failed_rank": failed}
    assert run_end.rank_words(end) == (words or f"rank 1: {failed['error']}")
    assert run_end.rank_words(end) in run_end.words(end)
    assert run_end.fields(end)["failed_rank"] == failed


def test_a_term_to_torchrun_is_a_stop_by_its_error_file_whatever_stands_behind_it_in_the_log(tmp_path: Path) -> None:
    log, error = ((RECORDED / f"term.{kind}").read_text() for kind in ("log", "json"))
    assert judged(tmp_path / "alone", log)["by"] == "TERM"
    assert judged(tmp_path / "behind", log + "the script goes on\n" * 100, error) == {**FAILED, "by": "TERM"}
    interrupted = error.replace("signal: 15", "signal: 2")
    assert judged(tmp_path / "interrupted", "", interrupted)["by"] == "INT"
    assert judged(tmp_path / "hung up", "", error.replace("signal: 15", "signal: 1")) == FAILED


def test_of_the_torchruns_of_several_nodes_the_first_word_counts(tmp_path: Path) -> None:
    """srun ends those of the other nodes with TERM; and where one is stopped, ranks of another may fail of that."""
    failed, stopped = ((RECORDED / f"{name}.log").read_text() for name in ("killed", "term"))
    assert judged(tmp_path / "stop first", stopped + failed)["by"] == "TERM"
    assert judged(tmp_path / "failure first", failed + stopped)["failed_rank"] == {"rank": 1, "signal": 9}
    run = open_run(tmp_path / "failure first")
    run.config = {"trainer": {"log_patterns": {"step": "^step ([0-9]+)"}}}
    log = tmp_path / "failure first" / "logs" / "output.log"
    log.write_text(failed + "step 4711 loss 0.5\n" + stopped)
    assert rank_end.judged_end(run, dict(FAILED))["by"] == "TERM", "the failure was another torchrun's"


STEPD = "slurmstepd-n1: error: *** STEP 62.0 ON n1 CANCELLED AT 2026-12-01T00:54:10 ***\n"
ENDS = "srun: launch/slurm: _step_signal: Terminating StepId=62.0\n" + STEPD + "srun: error: n2: task 1: Terminated\n"


@pytest.mark.parametrize(
    ("log", "code"),
    [
        ("srun: error: n1: task 0: Exited with exit code 1\n" + ENDS, 1),
        ("srun: error: n1: task 0: Killed\n" + ENDS, 137),
        ("srun: error: n1: task 0: Segmentation fault\n" + ENDS, 1),
        # Slurm ends the step; a rank of it fails of that.
        (STEPD + "srun: error: n1: task 0: Exited with exit code 1\nsrun: error: n2: task 1: Terminated\n", 143),
        ("srun: Job step aborted: Waiting up to 32 seconds\nsrun: error: n1: task 0: Exited with exit code 1\n", 143),
        ("srun: error: n[1-2]: tasks 0-1: Exited with exit code 143\n", 143),
        ("srun: error: n2: task 1: Terminated\nsrun: error: n1: task 0: Exited with exit code 1\n", 143),
        ("step 4 loss 0.5\n", 143),
    ],
)
def test_srun_ends_the_other_tasks_with_term_which_is_no_stop(tmp_path: Path, log: str, code: int) -> None:
    assert judged(tmp_path, "step 3 loss 0.5\n" + log, end={"code": 143, "signal": None})["code"] == code


BANNER = """{log}torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
train.py FAILED
------------------------------------------------------------
Failures:
{others}
------------------------------------------------------------
Root Cause (first observed failure):
{root}
============================================================
"""
FAILURE = """[{number}]:
  time      : {time}
  host      : gpu07
  rank      : {rank} (local_rank: {rank})
  exitcode  : {code} (pid: {pid}) {name}
  error_file: <N/A>
  traceback : {words}"""
KEY = "KeyError: 'x'"
RAISED = {"code": 1, "error": KEY}
LOST = "RuntimeError: Connection closed by peer [10.0.0.1]:4711"


def failure(rank: int, code: int, time: str = "2026-11-30_23:33:55") -> str:
    return FAILURE.format(number=rank, rank=rank, code=code, pid=100 + rank, time=time, name="", words="x")


def told(rank: int, line: str) -> str:
    return f'[rank{rank}]: Traceback (most recent call last):\n[rank{rank}]:   File "x", line 1\n[rank{rank}]: {line}\n'


@pytest.mark.parametrize(
    ("log", "root", "others", "failed"),
    [
        # torchrun's times are whole seconds: rank 0, which lost its connection, stands there as the first.
        (told(0, LOST), failure(0, 1), failure(5, -9), {"rank": 5, "signal": 9}),
        (told(0, LOST) + told(5, KEY), failure(0, 1), failure(5, 1), {"rank": 5, **RAISED}),
        (told(0, LOST), failure(0, 1), failure(5, -15), {"rank": 0, "code": 1, "error": LOST}),
        # A rank that does not hear TERM is killed by torchrun itself.
        (told(0, KEY), failure(0, 1), failure(5, -9, "2026-11-30_23:34:25"), {"rank": 0, **RAISED}),
        (told(0, KEY) + "W Unable to shutdown process 105 via 15, forcefully exiting via 9\n",
         failure(0, 1), failure(5, -9), {"rank": 0, **RAISED}),
        # No line says whose it is.
        (f"Traceback (most recent call last):\n  File x\n{KEY}\n", failure(3, 1), "", {"rank": 3, **RAISED}),
        ("step 7\n", failure(3, 77), "", {"rank": 3, "code": 77}),
        ("step 7\n", failure(3, -11), "", {"rank": 3, "signal": 11}),
    ],
)  # fmt: skip
def test_of_several_ranks_that_failed_the_one_is_named_that_the_others_failed_of(
    tmp_path: Path, log: str, root: str, others: str, failed: dict[str, Any]
) -> None:
    end = judged(tmp_path, BANNER.format(log=log, root=root, others=others or "  <NO_OTHER_FAILURES>"))
    assert end == {**FAILED, "failed_rank": failed}


@pytest.mark.parametrize(
    "error",
    ["", "[", "null", "[1]", '{"message": 3}', '{"message": {"message": [1]}}', '{"message": "x"}', "x" * (1 << 21)],
)
def test_an_error_file_of_any_content_leaves_the_log_s_word(tmp_path: Path, error: str) -> None:
    log = (RECORDED / "killed.log").read_text()
    assert judged(tmp_path, log, error)["failed_rank"] == {"rank": 1, "signal": 9}


@pytest.mark.parametrize("log", ["", "step 7\n", "Traceback (most recent call last):\n  x\nKeyError: 'x'\n"])
def test_without_torchrun_s_banner_no_rank_is_named(tmp_path: Path, log: str) -> None:
    assert judged(tmp_path, log) == FAILED


@pytest.mark.parametrize("failed", [None, 3, {}, {"rank": -1}, {"rank": "1"}, {"signal": 9}])
def test_what_names_no_rank_in_exit_json_is_passed_over(failed: Any) -> None:
    assert run_end.failed_rank({**FAILED, "failed_rank": failed}) == {}


def test_memory_that_one_of_many_ranks_ran_out_of_is_the_cause(tmp_path: Path) -> None:
    """torchrun's banner has eight lines for each rank: the words of the first are not among the log's last ones."""
    line = f"torch.OutOfMemoryError: {MEMORY}"
    others = "\n".join(failure(rank, -15) for rank in range(2, 16))
    end = judged(tmp_path, BANNER.format(log=told(1, line), root=failure(1, 1), others=others))
    run = open_run(tmp_path)
    assert observe.log_ooms(run, 3600) == 0
    seen = Observation(now_s=None, run_state="failed", end=end, log_ooms=observe.ooms_at_end(run, end))
    found = next(iter(rules.findings({"step": 40}, Limits(), seen)))
    assert found.cause == "oom" and f"with code 1: rank 1: {line}" in found.evidence
