"""A stop that came from elsewhere than the kit, and what a lab says about exit codes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reliability import campaign_stops
from resumekit.base import redaction
from resumekit.process import training_end
from support.commands import Kit
from support.long_tests import long
from support.places import LIB
from support.processes import wait_until
from support.recoveries import configure, reached
from support.runs import events

pytestmark = pytest.mark.usefixtures("valid_records")


@pytest.mark.parametrize("name", ["TERM", "INT"])
@pytest.mark.parametrize("job", [None, "48123"], ids=["by hand", "in a job"])
def test_a_signal_to_one_s_own_trainer_is_a_stop_and_nothing_takes_it_up(
    recovered: Kit,
    name: str,
    job: str | None,
) -> None:
    """`kill PID`, or a Ctrl-C that reached it alone: Python dies of KeyboardInterrupt as of SIGINT."""
    script = recovered.folder / "no_handler.py"
    script.write_text(
        "import time\nfor i in range(1, 10**6):\n    print(f'step {i}', flush=True)\n    time.sleep(0.05)\n"
    )
    configure(recovered, trainer={"command": ["{python}", str(script)], "resume_args": []})
    recovered.env |= {"SLURM_JOB_ID": job} if job else {}
    process = recovered.popen("run", "T-1")
    run = recovered.started()
    wait_until(lambda: reached(run, 3), "step 3")
    os.kill(events(run, "launched")[0]["trainer"]["pid"], signal.Signals[f"SIG{name}"])
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.Signals[f"SIG{name}"]
    assert (recovered.status(run)["state"], recovered.run_dirs()) == ("preempted" if job else "stopped", [run])
    assert recovered.status(run)["stopped_by"] == name
    recorded = json.loads((run / "run.json").read_text())["scheduler"]
    assert recorded == ({"name": "slurm", "job": job, "restarts": 0, "cluster": None} if job else None)


def test_a_host_whose_memory_guard_sends_term_says_so(recovered: Kit) -> None:
    once = recovered.folder / "once"
    script = recovered.folder / "once.sh"
    script.write_text(
        '[ -e "$0.done" ] || { touch "$0.done"; exec "$PYTHON" "$@" --at 12 term; }\nexec "$PYTHON" "$@"\n'
    )
    configure(recovered, recover={"always_codes": [143]})
    config = json.loads(recovered.config_file.read_text())
    config["trainer"]["command"][0:1] = ["sh", str(script).replace("{", "{{").replace("}", "}}")]
    recovered.config_file.write_text(json.dumps(config))
    recovered("run", "T-1", code=0)
    first, second = recovered.run_dirs()
    assert [recovered.status(run)["state"] for run in (first, second)] == ["failed", "finished"]
    assert not once.exists()


def test_a_code_that_nothing_goes_on_from_calls_a_person(recovered: Kit) -> None:
    configure(recovered, "--at", "12", "exit=3", recover={"never_codes": [3]})
    recovered("run", "T-1", code=3)
    (run,) = recovered.run_dirs()
    assert recovered.status(run)["state"] == "needs_attention"
    assert "recover.never_codes says" in events(run, "recovery")[-1]["reason"]


@pytest.mark.parametrize("seed", [0, long(1), long(2)])
def test_a_few_stops_lose_no_step(tmp_path: Path, seed: int) -> None:
    """Alone and in scripts, in every way; `campaign_stops.py --stops 100` has torchrun and data workers too."""
    draw = random.Random(100 + seed)
    outcomes = list(campaign_stops.stops(tmp_path, draw, 4, campaign_stops.QUICK))
    assert [outcome for outcome in outcomes if outcome.fault] == []


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        long("torchrun", "TERM"),
        ("torchrun", "all TERM"),
        ("workers", "TERM"),
        long("deaf", "all TERM"),
        ("script with a trap", "all INT"),
        ("script in the background", "all INT"),
    ],
)
def test_a_stop_of_many_processes_loses_no_step(kit: Kit, kind: str, way: str) -> None:
    assert campaign_stops.one_stop(kit, kind, way, random.Random(7)).fault is None


SIGNAL_EXCEPTION = """Traceback (most recent call last):
  File "/x/torch/distributed/elastic/agent/server/api.py", line 709, in run
torch.distributed.elastic.multiprocessing.api.SignalException: Process {pid} got signal: {number}
"""


@pytest.mark.parametrize(("number", "name"), [(15, "TERM"), (2, "INT"), (6, None), (None, None)])
def test_torchrun_ends_with_1_and_says_which_signal_it_was(
    tmp_path: Path, number: int | None, name: str | None
) -> None:
    (tmp_path / "logs").mkdir()
    said = SIGNAL_EXCEPTION.format(pid=4711, number=number) if number else "ValueError: no\n"
    (tmp_path / "logs" / "output.log").write_text("step 1\n" * 5000 + said)
    assert training_end.stopped_by(tmp_path, {"code": 1, "signal": None}) == name


@pytest.mark.parametrize(
    ("environment", "known"),
    [
        ({"SLURM_JOB_ID": "7"}, {"name": "slurm", "job": "7", "restarts": 0, "cluster": None}),
        (
            {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2", "SLURM_CLUSTER_NAME": "gpu"},
            {"name": "slurm", "job": "7", "restarts": 2, "cluster": "gpu"},
        ),
        ({"PBS_JOBID": "7.head"}, {"name": "pbs", "job": "7.head"}),
        ({"LSB_JOBID": "9"}, {"name": "lsf", "job": "9"}),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, {"name": "kubernetes", "job": None}),
        ({"JOB_ID": "5", "SGE_TASK_ID": "undefined"}, {"name": "grid_engine", "job": "5"}),
        ({"JOB_ID": "5"}, None),
        ({"SLURM_JOB_ID": ""}, None),
        ({}, None),
    ],
)
def test_which_scheduler_started_it_is_in_the_environment(environment: dict, known: dict | None) -> None:
    assert redaction.scheduler_variables(environment) == known


def test_a_launcher_that_is_started_from_within_a_run_is_no_part_of_it(kit: Kit) -> None:
    """A trainer that starts another training: the stop of the one must not end the other."""
    kit.env["RESUMEKIT_RUN_TOKEN"] = "0" * 32
    script = 'source "$1/command_line.sh"; kit_setup "$1/../bin/run.sh"; env'
    shown = subprocess.run(
        ["bash", "-c", script, "x", str(LIB)], env=kit.env, capture_output=True, text=True, check=True
    )
    assert "RESUMEKIT_RUN_TOKEN" not in shown.stdout and sys.executable in shown.stdout
