"""What the checkpoint tests share: small real checkpoints, zip files made byte by byte, and faults of the os layer."""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from resumekit.checkpoint import manifest
from resumekit.checkpoint.manifest import Manifest
from resumekit.trainer.saving import save_checkpoint

# Every call by which save_checkpoint changes the disk.
WRITING_CALLS = ("open", "write", "fsync", "link", "rename", "replace", "unlink", "mkdir")


def quiet(_line: str) -> None:
    """A log_fn that says nothing."""


def small_model(seed: int = 0) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Return a model of two layers and an AdamW that has done one step."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.1), torch.nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer)
    return model, optimizer


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Do one optimizer step on random numbers; return the loss."""
    optimizer.zero_grad()
    loss = model(torch.randn(5, 4)).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def save_steps(folder: Path, *steps: int, **more: Any) -> list[Path]:
    """Save a small model at each of `steps` with save_checkpoint; return the paths."""
    model, optimizer = small_model()
    usual = {"model": model, "optimizer": optimizer, "log_fn": quiet, **more}
    return [save_checkpoint(folder, s, **{"data_state": {"at": s}, **usual}) for s in steps]


def save_plain(folder: Path, step: int, **more: Any) -> Path:
    """Save a small model as a trainer without the kit does, with torch.save; return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    model, optimizer = small_model()
    content = {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    path = folder / f"hrm_arc_step_{step}.pt"
    torch.save({**content, "global_step": step, "epoch": 0, "best_val_loss": 1.0, **more}, path)
    return path


def stored_zip(records: dict[str, bytes], *, top: str = "archive") -> bytes:
    """Return a zip file as torch.save writes them: stored, no comment; names are put under `top`."""
    body, directory = b"", b""
    for name, data in records.items():
        full = f"{top}/{name}".encode()
        crc = zlib.crc32(data)
        head = struct.pack("<5H3L2H", 0, 0, 0, 0, 0, crc, len(data), len(data), len(full), 0)
        entry = struct.pack(
            "<6H3L5H2L", 0, 0, 0, 0, 0, 0, crc, len(data), len(data), len(full), 0, 0, 0, 0, 0, len(body)
        )
        directory += b"PK\x01\x02" + entry + full
        body += b"PK\x03\x04" + head + full + data
    end = struct.pack("<4H2LH", 0, 0, len(records), len(records), len(directory), len(body), 0)
    return body + directory + b"PK\x05\x06" + end


def pickle_zip(data: bytes, **storages: bytes) -> bytes:
    """Return an archive with `data` as data.pkl and tensor records by key."""
    records = {f"data/{key[1:]}": value for key, value in storages.items()}
    return stored_zip({"data.pkl": data, "byteorder": b"little", **records, "version": b"3\n"})


def pickled(value: Any) -> bytes:
    """Return `value` pickled as torch.save does it, with protocol 2."""
    return pickle.dumps(value, protocol=2)


class Payload:
    """An object whose unpickling makes the file `canary`."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


def leftovers(folder: Path) -> list[str]:
    """Return the temp files in a folder."""
    return sorted(name for name in os.listdir(folder) if ".tmp-" in name)


def edited(known: Manifest, **changes: Any) -> dict[str, Any]:
    """Return a manifest as JSON value with some fields changed."""
    return {**json.loads(manifest.encode(known)), **changes}


@contextmanager
def os_calls(
    act: Callable[[int, str, tuple[Any, ...]], None], names: tuple[str, ...] = WRITING_CALLS
) -> Iterator[None]:
    """Call `act(k, name, arguments)` before the k-th call (from 1) of os functions in `names`; it may raise or exit.

    Opening for reading does not count.
    """
    originals = {name: getattr(os, name) for name in names}
    count = 0

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            if name != "open" or (len(arguments) > 1 and arguments[1] & (os.O_WRONLY | os.O_RDWR)):
                count += 1
                act(count, name, arguments)
            return originals[name](*arguments, **options)

        return call

    for name in names:
        setattr(os, name, wrapped(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


def failing(number: int, only: str, at: int = 1, *, once: bool = False) -> Callable[[int, str, tuple[Any, ...]], None]:
    """Return an `act` that raises errno `number` at the `at`-th call of os function `only`, and at all later ones."""
    seen = 0

    def act(_k: int, name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if name == only:
            seen += 1
            if seen == at or (seen > at and not once):
                raise OSError(number, os.strerror(number), str(arguments[0]))

    return act


NO_SPACE, IO_ERROR, QUOTA, TOO_BIG = errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG
