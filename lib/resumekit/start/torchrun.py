"""The command line that starts the ranks of a training (trainer.launcher): torchrun's, on several machines behind srun.

Reads the environment of a Slurm job; starts nothing. Under which Python it runs says `interpreter`.
Try it: `python -m pytest tests/test_torchrun_command.py`
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping

from ..base.errors import InvalidFile
from ..base.imports import Any
from ..config.launcher_rules import TORCHRUN

_NODELIST = ("SLURM_JOB_NODELIST", "SLURM_NODELIST")
# Of several nodes the ranks have numbers of their own: torchrun's usual prefix has the local one, alike on each node.
_PREFIX = "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE=[rank${rank}]:"
# Alike on each of so many nodes: `16(x2)`; where they differ, srun's own default holds.
_CPUS = re.compile(r"([0-9]+)(?:\(x[0-9]+\))?")

# torchrun's own name for how long it waits for its ranks between TERM and KILL, and what it waits without it.
SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
_OWN_TIMEOUT_S = 30
# In the place of the nodes of a job that is still to be submitted: what it gets is known when it starts.
NODES_TO_COME = "FIRST_NODE_OF_THE_JOB"
# So much of the grace is left for torchrun's own end.
_MARGIN_S = 5


@contextlib.contextmanager
def nodes_to_come() -> Iterator[None]:
    """Let a command for several nodes be planned where there is no job yet: its first node has a name in capitals."""
    if any(os.environ.get(name) for name in _NODELIST):
        yield
        return
    os.environ[_NODELIST[0]] = NODES_TO_COME
    try:
        yield
    finally:
        os.environ.pop(_NODELIST[0], None)


def ranks_grace_s(config: Mapping[str, Any]) -> int | None:
    """Return for how many seconds torchrun is to wait for its ranks at a stop; None where its own 30 s do.

    The lab's command may start it too; what is no torchrun has no use for it.
    """
    wanted = int(config["abort"]["grace_s"]) - _MARGIN_S
    return wanted if wanted > _OWN_TIMEOUT_S else None


def is_launched(config: Mapping[str, Any]) -> bool:
    """Whether the kit starts the ranks itself."""
    return (config["trainer"].get("launcher") or {}).get("kind") == TORCHRUN


def node_words(config: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return what starts one torchrun on each machine: srun, with all of a node's CPUs; nothing on a single one.

    Args:
        config: the resolved config.
        environment: of the job.
    """
    number = config["trainer"]["launcher"]["nnodes"] if is_launched(config) else 1
    if number == 1:
        return []
    words = ["srun", f"--nodes={number}", f"--ntasks={number}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    # A step does not take over the job's number of CPUs (Slurm 22.05 and later): all ranks of a node would have one.
    cpus = _CPUS.fullmatch(environment.get("SLURM_JOB_CPUS_PER_NODE", ""))
    return [*words, *([f"--cpus-per-task={cpus[1]}"] if cpus else []), f"--export=ALL,{_PREFIX}"]


def torchrun_words(
    config: Mapping[str, Any], values: Mapping[str, str], args: list[str], environment: Mapping[str, str] = os.environ
) -> list[str]:
    """Return torchrun's own words, from its Python on; the script follows them.

    Args:
        config: the resolved config, with a launcher.
        values: the run's own placeholders: python, run_id, logs_dir.
        args: trainer.launcher.args, filled in.
        environment: of the job.

    Raises:
        InvalidFile: several machines, and no job that has them.
    """
    launcher = config["trainer"]["launcher"]
    words = [values["python"], "-m", "torch.distributed.run", *_rendezvous(launcher["nnodes"], values, environment)]
    # The kit recovers a run. Each rank's output goes through torchrun, which writes whole lines, each with its rank.
    words += [f"--nproc-per-node={launcher['nproc']}", "--max-restarts=0", "--tee=3"]
    return [*words, f"--log-dir={os.path.join(values['logs_dir'], TORCHRUN)}", *args]


def _rendezvous(nodes: int, values: Mapping[str, str], environment: Mapping[str, str]) -> list[str]:
    if nodes == 1:
        return ["--standalone"]  # a free port, which torchrun itself takes: two runs never meet
    listed = next((environment[name] for name in _NODELIST if environment.get(name)), None)
    if listed is None:
        raise InvalidFile(
            f"trainer.launcher.nnodes is {nodes}, and there is no Slurm job around this command that has them "
            f"({_NODELIST[0]} is not set): start it in the batch script of one (sbatch --nodes={nodes})"
        )
    endpoint = f"{first_host(listed)}:{_free_port()}"
    return [
        f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", f"--rdzv-id={values['run_id']}",
    ]  # fmt: skip


def first_host(listed: str) -> str:
    """Return the first host of a Slurm job's list, on which its batch script runs: 'n[07-09,12],m1' -> 'n07'."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", listed)
    return re.sub(r"\[([0-9]+)[^\]]*\]", r"\1", first[0] if first else listed)


def _free_port() -> int:
    """Return a port that is free on this machine, the first of the job, a moment before torchrun takes it."""
    import socket  # late: one machine needs no port from here

    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
