"""What Slurm says of a job, and what it is told: `scontrol`, `scancel` and `sbatch`, with a limit on time.

Slurm's clients are looked for on the PATH. One that is missing, fails or takes too long gives no answer, and that is no
error: what Slurm has not said is not known. Try it inside of a job: `scontrol show job -o $SLURM_JOB_ID`
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence

from . import background_command
from .background_command import Question
from .imports import Any, NamedTuple
from .values import count, mapping, string

# A controller of a large site may answer late; what asks has other work that waits.
TIMEOUT_S = 5.0
_MAX_ANSWER_BYTES = 1 << 20
# The cluster, then several jobs, one after the other; nothing where there is no Slurm.
_EACH = (
    "/bin/sh", "-c",
    'command -v scontrol >/dev/null || exit 0; scontrol show config; '
    'for job; do echo "=job=$job="; scontrol show job -o "$job" 2>&1; done; :', "sh",
)  # fmt: skip
# So many jobs at once, and for so many seconds what was said of them counts: a picture is drawn anew each two.
MOST_TOGETHER = 200
KEPT_S = 30.0
_INVALID_JOB = "Invalid job id specified"
# A job in one of these has no process left, by Slurm's word; one that is COMPLETING still has.
ENDED = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "SPECIAL_EXIT", "TIMEOUT",
})  # fmt: skip
# The state of a job that the controller does not know any more.
GONE = "GONE"
RUNNING, PENDING, COMPLETING = "RUNNING", "PENDING", "COMPLETING"


class Allocation(NamedTuple):
    """Which job this process is of.

    Args:
        job: its id; each task of an array has one of its own.
        restarts: how often it had been requeued when this process began.
        cluster: the cluster's name; None where Slurm does not say it.
        task: this process's number among the tasks of its job step; 0 in a batch script.
        tasks: how many tasks the step has; 1 in a batch script.
        array_task: 'ARRAY_TASK' of a task of an array, as Slurm's commands name it; None for any other job.
    """

    job: str
    restarts: int = 0
    cluster: str | None = None
    task: int = 0
    tasks: int = 1
    array_task: str | None = None

    def as_fields(self) -> dict[str, str | int | None]:
        """Return what records say of the job: of run.json `scheduler`, and of a claim."""
        return {"name": "slurm", "job": self.job, "restarts": self.restarts, "cluster": self.cluster}


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
        uid: whose it is.
        array_task: as in Allocation.
    """

    job: str
    state: str
    restarts: int = 0
    reason: str = "None"
    may_requeue: bool = False
    end_s: float | None = None
    preempt_s: float | None = None
    submit_s: float | None = None
    uid: int | None = None
    array_task: str | None = None


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
        array_task=_array_task(known.get("SLURM_ARRAY_JOB_ID"), known.get("SLURM_ARRAY_TASK_ID")),
    )  # fmt: skip


def start_asking(job: str) -> Question | None:
    """Begin to ask Slurm of a job, beside other work; `answer` waits for it. None where that cannot be."""
    if not _is_job(job):
        return None
    # It ends with 1 for a job that it does not know, as where no controller answers.
    return background_command.start([*background_command.WITH_ERRORS, "scontrol", "show", "job", "-o", job], _environ())


def answer(question: Question | None, job: str, timeout_s: float = TIMEOUT_S) -> Job | None:
    """Return what Slurm says of a job; None where it says nothing within `timeout_s` seconds."""
    text = background_command.result(question, _MAX_ANSWER_BYTES, timeout_s).kept.decode("utf-8", "replace")
    return _said_of(job, text)


def _said_of(job: str, text: str) -> Job | None:
    """Return a job out of what `scontrol show job` printed; None where that says nothing of it."""
    for line in text.splitlines():  # of an array's first task Slurm lists the whole array
        if (found := _job_of(line)) and found.job == job:
            return found
    return Job(job, GONE) if _INVALID_JOB in text else None


def ask(job: str, timeout_s: float = TIMEOUT_S) -> Job | None:
    """Return what Slurm says of a job now, or has just said to `ask_together`; None where it says nothing."""
    if _together is not None and job in _together.jobs and _together.age_s < KEPT_S:
        return _together.jobs[job]
    return answer(start_asking(job), job, timeout_s)


def ask_together(jobs: Iterable[str], timeout_s: float = TIMEOUT_S) -> None:
    """Ask Slurm of many jobs in one go; for KEPT_S seconds `ask` and `cluster_name` answer from that.

    Asks nothing where all of them have been asked about within that time.

    Args:
        jobs: their ids; of more than MOST_TOGETHER nothing is known of the last ones.
        timeout_s: for all of them; where Slurm does not answer within it, nothing is known of any.
    """
    global _together
    wanted = dict.fromkeys(filter(_is_job, jobs))
    if not wanted or (_together is not None and _together.age_s < KEPT_S and set(wanted) <= set(_together.jobs)):
        return
    asked = background_command.start([*_EACH, *list(wanted)[:MOST_TOGETHER]], _environ())
    text = background_command.result(asked, _MAX_ANSWER_BYTES, timeout_s).kept.decode("utf-8", "replace")
    parts = re.split(r"^=job=([0-9]+)=\n", text, flags=re.MULTILINE)
    said = {job: _said_of(job, of_job) for job, of_job in zip(parts[1::2], parts[2::2], strict=True)}
    _together = _Together({**dict.fromkeys(wanted), **said}, _cluster_in(parts[0]), time.monotonic())


class _Together(NamedTuple):
    """What `ask_together` was told: of each job, None for nothing; the cluster's name; and when."""

    jobs: dict[str, Job | None]
    cluster: str | None
    at_s: float

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.at_s


_together: _Together | None = None


def cluster_name(timeout_s: float = TIMEOUT_S) -> str | None:
    """Return the name of the cluster whose controller answers here; None where none does."""
    known = allocation()
    if known and known.cluster:
        return known.cluster
    if _together is not None and _together.age_s < KEPT_S:
        return _together.cluster
    return _cluster_in(_told(["scontrol", "show", "config"], timeout_s) or "")


def _cluster_in(text: str) -> str | None:
    match = re.search(r"^ClusterName\s*=\s*(\S+)", text, re.MULTILINE)
    return match[1] if match else None


def _named(job: str) -> str:
    """Return how a command names one job alone: of an array's task `10_2`, since 10 may be the whole array too."""
    own = allocation()
    if own is not None and own.job == job:
        return own.array_task or job
    seen = ask(job)
    return (seen.array_task if seen else None) or job


def requeue(job: str, timeout_s: float = 4 * TIMEOUT_S) -> bool:
    """Have a job put back into the queue; its processes are ended. False where Slurm does not do it."""
    return _is_job(job) and _told(["scontrol", "requeue", _named(job)], timeout_s) is not None


def cancel(job: str, timeout_s: float = 4 * TIMEOUT_S) -> bool:
    """Have a job cancelled; False where Slurm does not do it."""
    return _is_job(job) and _told(["scancel", _named(job)], timeout_s) is not None


def is_over(job: Job, *, restarts: int, is_same_cluster: bool) -> bool:
    """Whether Slurm says that what a job ran at an earlier time has ended.

    Args:
        job: what Slurm says of it now.
        restarts: how often it had been requeued at that time.
        is_same_cluster: whether the controller that was asked is the job's own: another one does not know the job.
    """
    if job.state == GONE:
        return is_same_cluster
    if job.state == COMPLETING or not is_same_cluster:
        return False
    # By no time: the clocks of controller and node may differ. An id that is used again is a job that runs.
    return job.state in ENDED or job.restarts > restarts


def says_it_is_over(recorded: Any) -> bool:
    """Whether Slurm says that a recorded job has ended, or was requeued since; False where it says nothing.

    Asks Slurm's controller, which may take some seconds. Of this very job, requeued, the restart count of the
    environment counts only where the controller does not answer: any shell may have it.

    Args:
        recorded: what `Allocation.as_fields` gave; it may be another user's word.
    """
    known = mapping(recorded)
    job, restarts, cluster = string(known.get("job")), count(known.get("restarts")), string(known.get("cluster"))
    if known.get("name") != "slurm" or job is None or restarts is None:
        return False
    if (seen := ask(job)) is None:
        own = allocation()
        is_own = own is not None and (own.job, own.cluster) == (job, cluster)
        return is_own and own is not None and own.restarts > restarts
    is_same_cluster = cluster is not None and cluster_name() == cluster
    return is_over(seen, restarts=restarts, is_same_cluster=is_same_cluster)


def _job_of(line: str) -> Job | None:
    """Return the job of a line of `scontrol show job -o`; None for any other line."""
    known = dict(re.findall(r"(?:^| )([A-Za-z]\w*)=(\S*)", line))
    if "JobId" not in known or "JobState" not in known:
        return None
    return Job(
        job=known["JobId"], state=known["JobState"], restarts=_count(known.get("Restarts")),
        reason=known.get("Reason", "None"), may_requeue=known.get("Requeue") == "1", end_s=_time(known.get("EndTime")),
        preempt_s=_time(known.get("PreemptTime")), submit_s=_time(known.get("SubmitTime")),
        uid=_uid(known.get("UserId")), array_task=_array_task(known.get("ArrayJobId"), known.get("ArrayTaskId")),
    )  # fmt: skip


def _told(argv: Sequence[str], timeout_s: float) -> str | None:
    """Return what a client of Slurm printed; None where it failed."""
    answered = background_command.result(background_command.start(argv, _environ()), _MAX_ANSWER_BYTES, timeout_s)
    return None if answered.sha256 is None else answered.kept.decode("utf-8", "replace")


def _environ() -> dict[str, str]:
    return {**os.environ, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"}


def _array_task(job: str | None, task: str | None) -> str | None:
    """Return 'ARRAY_TASK'; None where it is no single task."""
    is_one = job and task and all(part.isascii() and part.isdigit() for part in (job, task))
    return f"{job}_{task}" if is_one else None


def _is_job(job: str) -> bool:
    return job.isascii() and job.isdigit()


def _count(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 0


def _uid(text: str | None) -> int | None:
    """Return the number in 'ada(1001)'."""
    match = re.search(r"\(([0-9]{1,10})\)$", text or "")
    return int(match[1]) if match else None


def _time(text: str | None) -> float | None:
    """Return a time stamp in seconds since the epoch; None for 'Unknown', 'None' and 'N/A'."""
    return float(text) if text and text.isascii() and text.isdigit() and len(text) < 13 else None
