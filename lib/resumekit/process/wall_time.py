"""The end of a job's time, seen by the sidecar: the run is stopped and saves while there is time for it.

The scheduler is asked each `cluster.poll_s` seconds when the job's time is over, and whether another job takes its
place: a site may lengthen a job, and a preemption with a grace tells the batch script nothing. Reads the sidecar's
state; journals `job_ends`. Try it: `scontrol update JobId=JOB TimeLimit=+5` while `bin/runs.sh EXP-01` shows the run
"""

from __future__ import annotations

import select
import time

from ..base import slurm
from ..base.background_command import Question
from ..base.slurm import Job
from ..base.terms import TIME_LIMIT
from ..base.values import wait_s
from ..run.journal_fold import State
from ..run.run_folder import Run
from . import aborting, job_end

# A save may take longer than the longest one before.
SAVE_FACTOR = 1.5


def of_run(run: Run) -> WallTime | None:
    """Return what watches the end of the run's job; None outside of one, and where cluster.poll_s is 0."""
    own = job_end.own_allocation(run)
    poll_s = wait_s(run.setting("cluster", "poll_s", 60))
    return WallTime(run, own, 60.0 if poll_s is None else float(poll_s)) if own and poll_s != 0 else None


class WallTime:
    """Asks the scheduler of one run's job, beside the sidecar's other work, and has the run stopped in time.

    Args:
        run: the run.
        own: its job, of which this process is.
        poll_s: seconds between two questions.
    """

    def __init__(self, run: Run, own: slurm.Allocation, poll_s: float) -> None:
        self._run, self._own, self._poll_s = run, own, poll_s
        self._question: Question | None = None
        self._asked_s = float("-inf")
        self._known: Job | None = None
        self._is_stopped = False

    def look(self, state: State, now_s: float) -> None:
        """Ask where it is time to; stop the run where its job's time is nearly over.

        Args:
            state: the run's folded journal.
            now_s: seconds on the monotonic clock.
        """
        self._ask(now_s)
        if self._is_stopped or self._known is None or "stopped" in state or "aborted" in state:
            return
        if "launched" in state and (self._known.preempt_s is not None or self._left_s() <= self.needed_s(state)):
            self._is_stopped = True
            cause = TIME_LIMIT if self._known.preempt_s is None else None
            job_end.note(self._run, self._own, self._known, "USR1", cause)
            aborting.stop_beside(self._run.paths.run_dir, "USR1")  # it saves and ends, as on a scheduler's own

    def needed_s(self, state: State) -> float:
        """Return how long before its job's end the run is stopped: `cluster.margin_s`, and the longest save."""
        return job_end.margin_s(self._run) + SAVE_FACTOR * float(state.get("longest_save_s", 0.0))

    def _left_s(self) -> float:
        end_s = self._known.end_s if self._known else None
        return float("inf") if end_s is None else end_s - time.time()

    def _ask(self, now_s: float) -> None:
        if self._question is not None:
            is_ready = bool(select.select([self._question.pipe], [], [], 0)[0])
            if not is_ready and now_s - self._asked_s < slurm.TIMEOUT_S:
                return
            told = slurm.answer(self._question, self._own.job, 1.0 if is_ready else 0.0)
            self._question, self._known = None, told or self._known  # the last word holds while none comes
        elif now_s - self._asked_s >= self._poll_s:
            self._asked_s, self._question = now_s, slurm.start_asking(self._own.job)
