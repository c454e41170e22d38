"""What Slurm says of a job, and what it is told: `scontrol`, `scancel` and `sbatch`, with a limit on time.

Slurm's clients are looked for on the PATH. One that is missing, fails or takes too long gives no answer, and that is no
error: what Slurm has not said is not known. Try it inside of a job: `scontrol show job -o $SLURM_JOB_ID`
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from . import background_command
from .background_command import Question
from .imports import NamedTuple

# A controller of a large site may answer late; what asks has other work that waits.
TIMEOUT_S = 5.0
_MAX_ANSWER_BYTES = 1 << 20
# `scontrol` writes what it does not know to stderr, and ends with 1 as it does where no controller answers.
_WITH_ERRORS = ("/bin/sh", "-c", '"$@" 2>&1 || :', "sh")
_INVALID_JOB = "Invalid job id specified"
# A job in one of these has no process left, by Slurm's word; one that is COMPLETING still has.
ENDED = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "SPECIAL_EXIT", "TIMEOUT",
})  # fmt: skip
# The state of a job that the controller does not know any more.
GONE = "GONE"
# By so much the clocks of two machines of a cluster may differ.
CLOCKS_DIFFER_S = 600.0
RUNNING, PENDING, COMPLETING = "RUNNING", "PENDING", "COMPLETING"


class Allocation(NamedTuple):
    """Which job this process is of.

    Args:
        job: its id; each task of an array has one of its own.
        restarts: how often it had been requeued when this process began.
        cluster: the cluster's name; None where Slurm does not say it.
        task: this process's number among the tasks of its job step; 0 in a batch script.
        tasks: how many tasks the step has; 1 in a batch script.
    """

    job: str
    restarts: int = 0
    cluster: str | None = None
    task: int = 0
    tasks: int = 1


class Job(NamedTuple):
    """What Slurm says of one job, now.

    Args:
        job: its id.
        state: as `scontrol show job` names it, or GONE.
        restarts: how often it was requeued.
        reason: why it waits or ends ('TimeLimit'); 'None' where Slurm gives none.
        may_requeue: whether the site and the user allow that it is requeued.
        end_s: when its time is over, or when it has ended; seconds since the epoch, None where that is not said.
        preempt_s: when it was preempted; None where it was not.
        submit_s: when it was submitted, or requeued last.
    """

    job: str
    state: str
    restarts: int = 0
    reason: str = "None"
    may_requeue: bool = False
    end_s: float | None = None
    preempt_s: float | None = None
    submit_s: float | None = None


def allocation(environ: Mapping[str, str] | None = None) -> Allocation | None:
    """Return which job this process is of, by its environment; None outside of any."""
    known = os.environ if environ is None else environ
    job = known.get("SLURM_JOB_ID", "")
    if not job.isascii() or not job.isdigit():
        return None
    is_step = "SLURM_STEP_ID" in known and "SLURM_STEP_NUM_TASKS" in known
    return Allocation(
        job=job, restarts=_count(known.get("SLURM_RESTART_COUNT")), cluster=known.get("SLURM_CLUSTER_NAME") or None,
        task=_count(known.get("SLURM_PROCID")) if is_step else 0,
        tasks=max(1, _count(known.get("SLURM_STEP_NUM_TASKS"))) if is_step else 1,
    )  # fmt: skip


def start_asking(job: str) -> Question | None:
    """Begin to ask Slurm of a job, beside other work; `answer` waits for it. None where that cannot be."""
    if not _is_job(job):
        return None
    return background_command.start([*_WITH_ERRORS, "scontrol", "show", "job", "-o", job], _environ())


def answer(question: Question | None, job: str, timeout_s: float = TIMEOUT_S) -> Job | None:
    """Return what Slurm says of a job; None where it says nothing within `timeout_s` seconds."""
    text = background_command.result(question, _MAX_ANSWER_BYTES, timeout_s).kept.decode("utf-8", "replace")
    for line in text.splitlines():  # of an array's first task Slurm lists the whole array
        if (found := _job_of(line)) and found.job == job:
            return found
    return Job(job, GONE) if _INVALID_JOB in text else None


def ask(job: str, timeout_s: float = TIMEOUT_S) -> Job | None:
    """Return what Slurm says of a job now; None where it says nothing."""
    return answer(start_asking(job), job, timeout_s)


def cluster_name(timeout_s: float = TIMEOUT_S) -> str | None:
    """Return the name of the cluster whose controller answers here; None where none does."""
    known = allocation()
    if known and known.cluster:
        return known.cluster
    text = _told(["scontrol", "show", "config"], timeout_s) or ""
    match = re.search(r"^ClusterName\s*=\s*(\S+)", text, re.MULTILINE)
    return match[1] if match else None


def requeue(job: str, timeout_s: float = 4 * TIMEOUT_S) -> bool:
    """Have a job put back into the queue; its processes are ended. False where Slurm does not do it."""
    return _is_job(job) and _told(["scontrol", "requeue", job], timeout_s) is not None


def cancel(job: str, timeout_s: float = 4 * TIMEOUT_S) -> bool:
    """Have a job cancelled; False where Slurm does not do it."""
    return _is_job(job) and _told(["scancel", job], timeout_s) is not None


def is_over(job: Job, *, restarts: int, begun_s: float, is_same_cluster: bool) -> bool:
    """Whether Slurm says that what a job ran at an earlier time has ended.

    Args:
        job: what Slurm says of it now.
        restarts: how often it had been requeued at that time.
        begun_s: that time, seconds since the epoch.
        is_same_cluster: whether the controller that was asked is the job's own: another one does not know the job.
    """
    if job.state == GONE:
        return is_same_cluster
    if job.state == COMPLETING or not is_same_cluster:
        return False
    # Requeued, or an id that is used again; the clocks of controller and node may differ.
    is_another = job.submit_s is not None and job.submit_s > begun_s + CLOCKS_DIFFER_S
    return job.state in ENDED or job.restarts > restarts or is_another


def _job_of(line: str) -> Job | None:
    """Return the job of a line of `scontrol show job -o`; None for any other line."""
    known = dict(re.findall(r"(?:^| )([A-Za-z]\w*)=(\S*)", line))
    if "JobId" not in known or "JobState" not in known:
        return None
    return Job(
        job=known["JobId"], state=known["JobState"], restarts=_count(known.get("Restarts")),
        reason=known.get("Reason", "None"), may_requeue=known.get("Requeue") == "1", end_s=_time(known.get("EndTime")),
        preempt_s=_time(known.get("PreemptTime")), submit_s=_time(known.get("SubmitTime")),
    )  # fmt: skip


def _told(argv: Sequence[str], timeout_s: float) -> str | None:
    """Return what a client of Slurm printed; None where it failed."""
    answered = background_command.result(background_command.start(argv, _environ()), _MAX_ANSWER_BYTES, timeout_s)
    return None if answered.sha256 is None else answered.kept.decode("utf-8", "replace")


def _environ() -> dict[str, str]:
    return {**os.environ, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"}


def _is_job(job: str) -> bool:
    return job.isascii() and job.isdigit()


def _count(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 0


def _time(text: str | None) -> float | None:
    """Return a time stamp in seconds since the epoch; None for 'Unknown', 'None' and 'N/A'."""
    return float(text) if text and text.isascii() and text.isdigit() and len(text) < 13 else None
