"""A trainer that falls sick on demand: the small training of small_trainer.py, at the pace that a test asks for.

`--at STEP ACTION`, or more of them in $NIGHT. What is sick once leaves a file in --once: loss=VALUE (from there on),
spike=VALUE (that step alone), average (NaN in the EMA: the loss does not show it), hang (under a living heartbeat), gil
(a hang that holds the interpreter's lock), oom, memory, files, worker, die=SIGNAL. Every time: poison (the loss, when
that step's data are trained on), raise=TEXT, eval, evalhang, read=PATH, wait=PATH. Started by the launcher through
support/fork_server.py. $FORGET=schedule: the schedule's state is lost at a load.
Try it: `python tests/support/night_trainer.py --dir /tmp/night --once /tmp/night --steps 30 --at 12 loss=nan`
"""

from __future__ import annotations

import argparse
import math
import os
import random
import re
import resource
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from support import small_trainer
from support.small_trainer import SAMPLES, Small, kit


class Night(Small):
    """The small training, with data of which some steps are left out."""

    def __init__(self, steps: int, delay_s: float) -> None:
        random.seed(3)
        np.random.seed(3)
        super().__init__(steps)
        self.delay_s, self.data_step = delay_s, 0
        self.rates: list[float] = []
        # Told instead of the loss: from a step on (who trains on with NaN has it in the next step too), or once.
        self.told: float | None = None
        self.told_once: float | None = None
        small_trainer.SLOW_S = 0.0

    def position(self) -> dict[str, int | str]:
        return {**super().position(), "data_step": self.data_step}

    def load(self, path: str | None) -> None:
        super().load(path)
        if place := self.bundle.extra.get("data_state"):
            self.data_step = place["data_step"]
        if path and os.environ.get("FORGET") == "schedule":
            for group in self.optimizer.param_groups:
                group["lr"] = group.pop("initial_lr")
            self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, self.steps)
        for _ in range(self.bundle.skip_data_steps):
            self.next_batch()
        # The rate that the weights are really moved by: asked inside the step, behind the kit's own hook.
        self.optimizer.register_step_pre_hook(lambda optimizer, *_: self.rates.append(optimizer.param_groups[0]["lr"]))

    def next_batch(self) -> torch.Tensor:
        self.data_step += 1
        return super().next_batch()


ONCE = frozenset({"loss", "spike", "average", "hang", "gil", "oom", "memory", "files", "worker", "die"})


def act(action: str, job: Night, once: Path) -> None:
    """Do one thing before a step."""
    name, _, value = action.partition("=")
    if name in ONCE:
        try:
            (once / f"{name}.done").touch(exist_ok=False)
        except FileExistsError:
            return
    ACTIONS[name](job, value)


def lose(job: Night, value: str) -> None:
    job.told = float(value)


def spike(job: Night, value: str) -> None:
    job.told_once = float(value)


def average(job: Night, _value: str) -> None:
    with torch.no_grad():
        next(job.ema.module.parameters()).view(-1)[0] = float("nan")


def hang(job: Night, _value: str) -> None:
    def beat() -> None:
        while True:
            kit.journal_event("heartbeat", global_step=job.step)
            time.sleep(0.2)

    threading.Thread(target=beat, daemon=True).start()
    time.sleep(10**6)


def gil(_job: Night, _value: str) -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")  # for longer than the universe has been there, and nothing else may run


def oom(job: Night, value: str) -> None:
    for _ in range(int(value or 3)):
        kit.journal_event("oom", step=job.step)


def memory(_job: Night, _value: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    bytearray(1 << 40)


def files(_job: Night, _value: str) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = []
    while True:
        held.append(open(os.devnull))  # noqa: SIM115 - they are meant to pile up


def worker(_job: Night, _value: str) -> None:
    batches = torch.utils.data.DataLoader(range(10**6), num_workers=1)
    for batch in (loading := iter(batches)):
        if batch == 0:
            os.kill(loading._workers[0].pid, signal.SIGKILL)


def die(_job: Night, value: str) -> None:
    os.kill(os.getpid(), signal.Signals[f"SIG{value}"])


def fail(_job: Night, value: str) -> None:
    raise RuntimeError(value or "the trainer was told to fail")


def crash_eval(job: Night, _value: str) -> None:
    if job.bundle.skip_eval_step != job.step:
        kit.journal_event("eval_crashed", step=job.step, kind="fast", message="the evaluation was told to fail")
        raise RuntimeError("the evaluation was told to fail")


def hang_in_eval(job: Night, _value: str) -> None:
    if job.bundle.skip_eval_step != job.step:
        kit.journal_event("phase", phase="fast_eval")
        time.sleep(10**6)


def read(_job: Night, value: str) -> None:
    Path(value).read_bytes()


def wait(_job: Night, value: str) -> None:
    while not os.path.exists(value):
        time.sleep(0.01)


ACTIONS: dict[str, Callable[[Night, str], None]] = {
    "loss": lose, "spike": spike, "average": average, "hang": hang, "gil": gil, "oom": oom, "memory": memory,
    "files": files, "worker": worker, "die": die, "raise": fail, "eval": crash_eval, "evalhang": hang_in_eval,
    "read": read, "wait": wait,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--once", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--delay", type=float, default=0.002, help="seconds per step")
    parser.add_argument("--resume")
    parser.add_argument("--at", nargs=2, action="append", default=[], metavar=("STEP", "ACTION"))
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args([*words, *shlex.split(os.environ.get("NIGHT", ""))])
    torch.set_num_threads(1)
    stops: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _frame: stops.append(got))
    job = Night(args.steps, args.delay)
    kit.journal_event("data", fingerprint=job.fingerprint(), name="numbers", tasks=1, examples=SAMPLES)
    job.load(args.resume)
    job.check()
    while job.step < job.steps and not stops:
        time.sleep(job.delay_s)
        for at, action in args.at:
            if action == "poison" and int(at) == job.data_step + 1:
                job.told = math.nan
            elif action != "poison" and int(at) == job.step + 1:
                act(action, job, args.once)
        loss = job.train_step()
        told = next((one for one in (job.told_once, job.told) if one is not None), loss)
        job.told_once = None
        kit.journal_event("step", step=job.step, epoch=job.epoch, loss=told, lr=(job.rates or [None])[-1])
        print(f"step {job.step} loss {told:.6f}", flush=True)
        if job.step % args.every == 0 or job.step == job.steps or stops:
            save(job, args.dir, told)
    return 128 + stops[0] if stops else 0


def save(job: Night, folder: Path, loss: float) -> None:
    """Save as Small does, with the loss, as a careful trainer would."""
    kit.save_checkpoint(
        folder, job.step, model=job.model, optimizer=job.optimizer, scheduler=job.schedule, scaler=job.scaler,
        ema=job.ema, data_state=job.position(), loss=loss,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
