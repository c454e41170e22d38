#!/usr/bin/env python3
"""A trainer that stands in for the GPU: it trains nothing, knows nothing of the kit, and fails on demand.

Its checkpoints are real archives in torch.save's format, written without torch (`write_checkpoint`), so that a test's
trainer starts in milliseconds. What it is to do comes as arguments, more of them from $TOY_ARGS.

    python toy_trainer.py --steps 20 --save-every 5 --dir checkpoints --at 7 kill
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

PATTERN = "hrm_arc_step_{step}.pt"


def main() -> int:
    options = _options()
    if options.ignore:
        for name in options.ignore.split(","):
            signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_IGN)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda got, _frame: os._exit(128 + got) if asked else asked.append(got))
    step = read_step(options.resume) if options.resume else 0
    if options.resume and step == options.die_on_load:
        _act("segv")
    print(f"toy trainer, from step {step}, arguments {sys.argv[1:]!r}", flush=True)
    while step < options.steps:
        step += 1
        print(
            f"step {step} loss {'nan' if options.nan_from <= step <= options.nan_until else f'{1 / step:.4f}'}",
            flush=True,
        )
        time.sleep(options.delay)
        for at, action in options.at:
            if int(at) == step:
                _act(action)
        if asked or (options.save_every and step % options.save_every == 0):
            write_checkpoint(options.dir / PATTERN.format(step=step), step)
            print(f"saved step {step}", flush=True)
        if asked:
            return 128 + asked[0]
    print(f"done at step {step}", flush=True)
    return options.exit


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds per step")
    parser.add_argument("--save-every", type=int, default=0)
    parser.add_argument("--dir", type=Path, default=Path("checkpoints"))
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--exit", type=int, default=0, help="the exit code at the end")
    parser.add_argument("--die-on-load", type=int, help="die of a signal when a checkpoint of this step is loaded")
    parser.add_argument("--nan-from", type=float, default=math.inf, help="the loss is NaN from this step on")
    parser.add_argument("--nan-until", type=float, default=math.inf, help="and no longer than to this one")
    parser.add_argument("--ignore", help="signals to ignore: TERM,INT")
    parser.add_argument("--at", nargs=2, action="append", default=[], metavar=("STEP", "ACTION"))
    return parser.parse_args(sys.argv[1:] + shlex.split(os.environ.get("TOY_ARGS", "")))


def _act(action: str) -> None:
    """Do one thing: kill, segv, raise, hang, exit=CODE, nan, bar=N, raw=HEX, long=BYTES, lines=N, wait=PATH, child."""
    name, _, value = action.partition("=")
    if name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
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
    elif name == "wait":  # until another_user makes this file: a test's way to hold the trainer at a step
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
    _, found, rest = data.partition(_pickled("global_step", []) + b"J")
    if not found:
        raise SystemExit(f"toy trainer: '{path}' has no step")
    return struct.unpack("<i", rest[:4])[0]


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
        return b"J" + struct.pack("<i", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    text = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(text)) + text


if __name__ == "__main__":
    raise SystemExit(main())
