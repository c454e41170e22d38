"""A Slurm that answers what a test has written down: `scontrol` and `scancel` as scripts on the PATH.

What `scontrol show job` prints lies in `jobs/<id>`; without that file the job is not known. What Slurm was told lies in
`told`, one command a line. The real one is tried by `make cluster`. Try it: `python -m pytest tests/test_job_end.py`
"""

from __future__ import annotations

import os
from pathlib import Path

_SCONTROL = """#!/bin/sh
case "$1 $2" in
"show job")
  if [ -e "{folder}/down" ]; then echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; fi
  if [ -e "{folder}/jobs/$4" ]; then cat "{folder}/jobs/$4"; exit 0; fi
  echo "slurm_load_jobs error: Invalid job id specified" >&2
  exit 1 ;;
"show config") echo "ClusterName             = fake" ;;
*)
  echo "scontrol $*" >>"{folder}/told" ;;
esac
"""
_SCANCEL = """#!/bin/sh
echo "scancel $*" >>"{folder}/told"
"""
# One line of `scontrol show job -o` of Slurm 22.05 with SLURM_TIME_FORMAT=%s, shortened.
LINE = (
    "JobId={job} JobName=j.sh UserId=ada(1001) GroupId=ada(1001) MCS_label=N/A Priority=4294901758 Nice=0 "
    "JobState={state} Reason={reason} Dependency=(null) Requeue={requeue} Restarts={restarts} BatchFlag=1 Reboot=0 "
    "ExitCode=0:0 RunTime=00:00:01 TimeLimit=00:10:00 TimeMin=N/A SubmitTime={submit} EligibleTime={submit} "
    "StartTime={submit} EndTime={end} Deadline=N/A PreemptEligibleTime={submit} PreemptTime={preempt} SuspendTime=None "
    "SecsPreSuspend=0 Partition=low NodeList=n1 BatchHost=n1 Command=/home/ada/j.sh WorkDir=/home/ada Power= \n"
)


class FakeSlurm:
    """The scripts, in a folder of the test's own.

    Args:
        folder: it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        (folder / "jobs").mkdir()
        for name, text in (("scontrol", _SCONTROL), ("scancel", _SCANCEL)):
            script = folder / "bin" / name
            script.write_text(text.replace("{folder}", str(folder)))
            script.chmod(0o755)

    def environment(self, job: str = "77", restarts: int = 0, **more: str) -> dict[str, str]:
        """Return what is set in a batch script of a job."""
        return {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": job, "SLURM_CLUSTER_NAME": "fake",
            **({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}), **more,
        }  # fmt: skip

    def says(
        self, job: str = "77", *, state: str = "RUNNING", reason: str = "None", restarts: int = 0, requeue: int = 1,
        submit: int = 1796081441, end: int | str = 4000000000, preempt: int | str = "None",
    ) -> None:  # fmt: skip
        """Let `scontrol show job` say this of a job from now on."""
        line = LINE.format(
            job=job, state=state, reason=reason, restarts=restarts, requeue=requeue, submit=submit, end=end,
            preempt=preempt,
        )  # fmt: skip
        new = self.folder / "jobs" / f".{job}"
        new.write_text(line)
        new.replace(self.folder / "jobs" / job)

    def is_down(self) -> None:
        """Let no controller answer from now on."""
        (self.folder / "down").touch()

    @property
    def told(self) -> list[str]:
        """What Slurm was told, one command each."""
        path = self.folder / "told"
        return path.read_text().splitlines() if path.exists() else []
