#!/usr/bin/env python3
"""A trainer that stands in for the GPU: it trains nothing, knows nothing of the kit, and fails on demand.

Its checkpoints are real archives in torch.save's format, written without torch (`write_checkpoint`), so that a test's
trainer starts in milliseconds. What it is to do comes as arguments, more of them from $TOY_ARGS. It saves when it is
stopped; a second signal ends it unsaved. --kind workers: its batches come from two data workers, which die of a TERM as
torch's do; deaf: from two that ignore it (worker_init_fn); ranks: it is one of torchrun's, which agree over gloo on the
step after which all stop; a second signal changes nothing there, for torchrun hands one on to each rank that a
scheduler has signalled as well.

    python toy_trainer.py --steps 20 --save-every 5 --dir checkpoints --at 7 kill
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import itertools
import json
import math
import os
import shlex
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PATTERN = "hrm_arc_step_{step}.pt"


def main() -> int:
    options = _options()
    if options.ignore:
        for name in options.ignore.split(","):
            signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_IGN)
    asked, numbers = _heard(options.kind)
    rank, agree = _ranks(asked) if options.kind == "ranks" else (0, lambda: bool(asked))
    batches = _batches(options.kind, numbers)
    step = read_step(options.resume) if options.resume else 0
    if options.resume:
        _tell_the_load(step, options.resume)
    if options.resume and step == options.die_on_load:
        _act("segv")
    if options.init_from:
        print(f"weights of step {read_step(options.init_from)}", flush=True)
    print(f"toy trainer, from step {step}, arguments {sys.argv[1:]!r}", flush=True)
    while step < options.steps:
        step += 1
        next(batches)
        if rank == 0:
            is_nan = options.nan_from <= step <= options.nan_until and (options.lr or 0) >= options.nan_lr
            rate = "" if options.lr is None else f" lr {options.lr / (1 + step / 1000):.6g}"
            print(f"step {step} loss {'nan' if is_nan else f'{1 / step:.4f}'}{rate}", flush=True)
        time.sleep(options.delay)
        for at, action in options.at:
            if int(at) == step:
                _act(action)
        is_stopping = agree()
        if rank == 0 and (is_stopping or (options.save_every and step % options.save_every == 0)):
            time.sleep(options.save_s)
            next(batches)  # what a save may need of its workers
            write_checkpoint(options.dir / PATTERN.format(step=step), step)
            print(f"saved step {step}", flush=True)
        if is_stopping:
            return 128 + (asked or [signal.SIGTERM])[0]
    print(f"done at step {step}", flush=True)
    return options.exit


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds per step")
    parser.add_argument("--save-every", type=int, default=0)
    parser.add_argument("--save-s", type=float, default=0.0, help="seconds of a save")
    parser.add_argument("--kind", choices=("plain", "workers", "deaf", "ranks"), default="plain")
    parser.add_argument("--dir", type=Path, default=Path("checkpoints"))
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--init-from", type=Path, help="a checkpoint whose weights alone are taken: the step stays 0")
    parser.add_argument("--exit", type=int, default=0, help="the exit code at the end")
    parser.add_argument("--die-on-load", type=int, help="die of a signal when a checkpoint of this step is loaded")
    parser.add_argument("--nan-from", type=float, default=math.inf, help="the loss is NaN from this step on")
    parser.add_argument("--nan-until", type=float, default=math.inf, help="and no longer than to this one")
    parser.add_argument("--nan-lr", type=float, default=0.0, help="only while its rate is at least this")
    parser.add_argument(
        "--lr", type=float, help="its peak rate, which falls with the step and is printed beside the loss"
    )
    parser.add_argument("--ignore", help="signals to ignore: TERM,INT")
    parser.add_argument("--at", nargs=2, action="append", default=[], metavar=("STEP", "ACTION"))
    return parser.parse_args(sys.argv[1:] + shlex.split(os.environ.get("TOY_ARGS", "")))


def _heard(kind: str) -> tuple[list[int], list[int]]:
    """Take TERM and INT where they are not ignored; return the list of those that come, and which are taken."""
    asked: list[int] = []

    def ask(got: int, _frame: object) -> None:
        if asked and kind != "ranks":
            os._exit(128 + got)
        asked.append(got)

    numbers = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) != signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, ask)
    return asked, numbers


def _batches(kind: str, numbers: list[int]) -> Iterator[object]:
    """Yield batches: from two data workers where there are some, of which the deaf ones ignore these signals."""
    if kind not in ("workers", "deaf"):
        return itertools.repeat(None)
    import torch

    def ignore(_worker: int) -> None:
        for number in numbers if kind == "deaf" else []:
            signal.signal(number, signal.SIG_IGN)

    return iter(torch.utils.data.DataLoader(range(10**6), num_workers=2, worker_init_fn=ignore))


def _ranks(asked: list[int]) -> tuple[int, Callable[[], bool]]:
    """Join torchrun's ranks; return (rank, whether one of them was asked to stop: all call it after each step)."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    atexit.register(dist.destroy_process_group)  # else a thread of it may abort the process at its end

    def agree() -> bool:
        flag = torch.tensor([float(bool(asked))])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    return dist.get_rank(), agree


def _tell_the_load(step: int, path: Path) -> None:
    """Journal the load as load_resume_bundle does, where the config says that this trainer uses it."""
    run_dir = os.environ.get("RESUMEKIT_RUN_DIR")
    if run_dir is None or "RESUMEKIT_PLAN" not in os.environ:
        return
    config = json.loads(Path(run_dir, "resolved_config.json").read_bytes())
    if not config["trainer"].get("loads_with_kit"):
        return
    at = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
    event = {"event": "resumed", "at": at, "mono_s": time.monotonic(), "run_id": os.environ["RESUMEKIT_RUN_ID"]}
    event |= {"step": step, "checkpoint": str(path), "report": {"weights": "load"}}
    with open(Path(run_dir, "journal.jsonl"), "a", encoding="ascii") as file:
        file.write(json.dumps(event) + "\n")


def _act(action: str) -> None:
    """Do one thing: a signal (kill, term, int, segv), raise, hang, exit=CODE, nan, once=FILE:ACTION, ..."""
    name, _, value = action.partition("=")
    if name == "once":  # once=FILE:ACTION: where FILE can be made
        file, _, then = value.partition(":")
        with contextlib.suppress(FileExistsError):
            os.close(os.open(file, os.O_CREAT | os.O_EXCL))
            _act(then)
    elif name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name in ("term", "int"):  # as a trainer without a handler dies of it
        signal.signal(number := signal.Signals[f"SIG{name.upper()}"], signal.SIG_DFL)
        os.kill(os.getpid(), number)
    elif name == "deaf":  # as a trainer whose last step takes longer than a scheduler waits
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif name == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif name == "raise":
        raise RuntimeError("the toy trainer was told to fail")
    elif name == "hang":
        while True:
            time.sleep(60)
    elif name == "exit":
        sys.exit(int(value))
    elif name == "nan":
        print("loss nan", flush=True)
    elif name == "bar":
        for i in range(int(value)):
            sys.stdout.write(f"\r{i * 100 // int(value):3d}%|####      | {i}/{value} [00:01<00:02, 99.9it/s]")
            sys.stdout.flush()
        print(flush=True)
    elif name == "raw":
        os.write(1, bytes.fromhex(value))
    elif name == "long":
        print("x" * int(value), flush=True)
    elif name == "lines":
        os.write(1, b"".join(b"line %09d %s\n" % (i, b"." * 100) for i in range(int(value))))
    elif name == "wait":  # until a test makes this file: a test's way to hold the trainer at a step
        while not os.path.exists(value):
            time.sleep(0.01)
    elif name == "child":  # a data worker: it outlives a parent that is killed, and ignores TERM
        subprocess.Popen(["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"])
    else:
        raise SystemExit(f"toy trainer: no action '{action}'")


def write_checkpoint(path: Path, step: int, **more: Any) -> None:
    """Write a small checkpoint as `torch.save` would: temp and rename, as careful people do.

    Args:
        path: the final name; its folder is made.
        step: goes into `global_step`.
        more: further top-level entries, or other values for the usual ones; plain values, lists, dicts and Tensor.
    """
    content = {
        "model_state_dict": {"weight": Tensor([float(step), 2.0, 3.0, 4.0])},
        "optimizer_state_dict": {"state": {0: {"step": step}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "scheduler_state_dict": {"last_epoch": step},
        "global_step": step,
        "epoch": 0,
        "best_val_loss": 1 / (step + 1),
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f"{path.name}.part")
    storages: list[bytes] = []
    pickle = b"\x80\x02" + _pickled(content, storages) + b"."
    with zipfile.ZipFile(temp, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", "little")
        for key, data in enumerate(storages):
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    os.replace(temp, path)


class Tensor(list):
    """Floats that are written as a one-dimensional float32 tensor."""


def read_step(path: Path) -> int:
    """Return `global_step` of a checkpoint that `write_checkpoint` made (the step of its name, for any other)."""
    with zipfile.ZipFile(path) as archive:
        data = archive.read("archive/data.pkl")
    _, found, rest = data.partition(_pickled("global_step", []))
    if not found:
        raise SystemExit(f"toy trainer: '{path}' has no step")
    return struct.unpack("<i", rest[1:5])[0] if rest[:1] == b"J" else struct.unpack("<q", rest[2:10])[0]


def _pickled(value: Any, storages: list[bytes]) -> bytes:
    """Return `value` in the opcodes of pickle protocol 2 that torch.save writes; tensors go to `storages`."""

    def inner(*values: Any) -> bytes:
        return b"".join(_pickled(v, storages) for v in values)

    if isinstance(value, Tensor):
        storages.append(struct.pack(f"<{len(value)}f", *value))
        storage = b"(" + inner("storage") + b"ctorch\nFloatStorage\n"
        storage += inner(str(len(storages) - 1), "cpu", len(value)) + b"tQ"
        sizes = inner(0, len(value)) + b"\x85" + inner(1) + b"\x85"
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + sizes + b"\x89ccollections\nOrderedDict\n)RtR"
    if isinstance(value, dict):
        return b"}(" + b"".join(inner(k, v) for k, v in value.items()) + b"u"
    if isinstance(value, (list, tuple)):
        return b"](" + inner(*value) + b"e"
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        is_short = -(1 << 31) <= value < 1 << 31
        return b"J" + struct.pack("<i", value) if is_short else b"\x8a\x08" + struct.pack("<q", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    text = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(text)) + text


if __name__ == "__main__":
    raise SystemExit(main())
