"""A trainer of two ranks of gloo, what it can be made to do, and how torchrun starts it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from support.places import TOY

# Each step is one sum over both ranks; rank 0 tells it and saves. A file beside the script is rank 1's to take away,
# once: with `hang` it sleeps for ever, and no TERM ends it, as none ends a rank whose interpreter waits for its device;
# with `raise`, `memory` or `kill` it ends so. With a file `code` TERM ends each rank with that code; with `save_s`
# each saves for so many seconds first.
RANK = """
import datetime, os, signal, sys, time
from pathlib import Path

sys.path.append({toys!r})
import toy_trainer
import torch
import torch.distributed as dist

torch.set_num_threads(1)
folder, steps = Path(sys.argv[1]), int(sys.argv[2])
begun = toy_trainer.read_step(Path(sys.argv[4])) if "--resume" in sys.argv else 0
dist.init_process_group("gloo", timeout=datetime.timedelta(minutes=30))
rank = dist.get_rank()
print(f"rank {{rank}} is {{os.getpid()}}\\n", end="", flush=True)  # in one piece: two of them print at once
code, save_s = (Path(__file__).with_name(name) for name in ("code", "save_s"))


def end(*_):
    if save_s.exists():
        time.sleep(float(save_s.read_text()))
        Path(__file__).with_name(f"saved-{{rank}}").touch()
    os._exit(int(code.read_text()))


if code.exists():
    signal.signal(signal.SIGTERM, end)


def told(name):
    file = Path(__file__).with_name(name)
    if rank != 1 or not file.exists():
        return False
    file.unlink()
    return True


for step in range(begun + 1, steps + 1):
    if told("hang"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(10**6)
    if told("raise"):
        raise ValueError("a bad batch")
    if told("memory"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    if told("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    both = torch.ones(1)
    dist.all_reduce(both)
    assert both.item() == 2.0
    if rank == 0:
        print("step", step, "loss", 1 / step, flush=True)
        if step % 10 == 0:
            toy_trainer.write_checkpoint(folder / f"hrm_arc_step_{{step}}.pt", step)
    time.sleep(0.02)
dist.destroy_process_group()
"""

# torchrun ends its ranks with TERM, and with KILL 30 s later: who gives it less leaves them behind.
GRACE_S = 45


def sections_of(script: Path, *, is_launched: bool) -> dict[str, Any]:
    """Write the script, and return the config's sections for two ranks of it.

    Args:
        script: where it goes.
        is_launched: by trainer.launcher; else the command says torchrun.
    """
    script.write_text(RANK.format(toys=str(TOY.parent)))
    name = str(script).replace("{", "{{").replace("}", "}}")
    command, trainer = [name, "{checkpoints_dir}", "{training.max_steps}"], {}
    if is_launched:
        trainer["launcher"] = {"kind": "torchrun", "nproc": 2}
    else:
        command[:0] = ["{python}", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return {
        "trainer": {"command": command, "resume_args": ["--resume", "{checkpoint}"], **trainer},
        "training": {"max_steps": 100_000},
        "abort": {"grace_s": GRACE_S},
    }


def ranks_of(run: Path) -> dict[int, int]:
    """Return rank -> pid, as each has said it."""
    said = re.findall(rb"rank (\d) is (\d+)", (run / "logs" / "output.log").read_bytes())
    return {int(rank): int(pid) for rank, pid in said}


def are_gone(*pids: int) -> bool:
    """Whether none of these processes is left, but for one that nobody has waited for."""

    def is_gone(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
        except OSError:
            return True

    return all(map(is_gone, pids))
