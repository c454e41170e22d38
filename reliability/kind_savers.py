"""Checkpoints of each kind, saved by the frameworks' own code in a process that may be killed, and read back by it.

Every number in the checkpoint of step N is N, so that a mix of two steps is seen. The frameworks are imported once;
what saves is a fork. For a Python that has them (`make frameworks`); dcp and fixed need torch alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

WIDTH = 96


class Saver(NamedTuple):
    """One kind.

    Args:
        section: `checkpoint` of a config that finds its checkpoints.
        name: of the checkpoint of a step.
        save: writes the checkpoint of a step into a folder.
        values: every number of a checkpoint, by the framework's own reader.
    """

    section: dict[str, Any]
    name: str
    save: Callable[[Path, int], None]
    values: Callable[[Path], set[float]]


def filled(step: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Return a model and its optimizer in which every number is the step."""
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    model(torch.ones(1, WIDTH)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(step)
            for value in optimizer.state[parameter].values():
                value.fill_(step)
    return model, optimizer


def numbers(state: Any) -> set[float]:
    """Return every number in the tensors of nested dicts and lists."""
    if isinstance(state, torch.Tensor):
        return set(state.flatten().tolist())
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return set().union(*map(numbers, parts)) if parts else set()


def _hf() -> Saver:
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint  # noqa: F401  (what a save imports late)

    config = GPT2Config(vocab_size=16, n_positions=8, n_embd=32, n_layer=1, n_head=2)

    def save(folder: Path, step: int) -> None:
        arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True)
        trainer = Trainer(model=GPT2LMHeadModel(config), args=arguments)
        trainer.create_optimizer_and_scheduler(10)
        model, optimizer = trainer.model, trainer.optimizer
        sum(parameter.sum() for parameter in model.parameters()).backward()
        optimizer.step()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
            for state in optimizer.state.values():
                for value in state.values():
                    value.fill_(step)
        trainer.state.global_step = step
        trainer._save_checkpoint(model, trial=None)

    def values(place: Path) -> set[float]:
        from safetensors.torch import load_file

        optimizer = torch.load(place / "optimizer.pt", weights_only=True)["state"]
        return numbers(load_file(place / "model.safetensors")) | numbers(optimizer)

    return Saver({"pattern": "checkpoint-{step}"}, "checkpoint-{step}", save, values)


def _accelerate() -> Saver:
    from accelerate import Accelerator
    from safetensors.torch import load_file

    accelerator = Accelerator(cpu=True)

    def save(folder: Path, step: int) -> None:
        accelerator.free_memory()
        accelerator.prepare(*filled(step))
        accelerator.save_state(str(folder / f"step_{step}"))

    def values(place: Path) -> set[float]:
        optimizer = torch.load(place / "optimizer.bin", weights_only=True)["state"]
        return numbers(load_file(place / "model.safetensors")) | numbers(optimizer)

    return Saver({"pattern": "step_{step}"}, "step_{step}", save, values)


def _dcp() -> Saver:
    import torch.distributed.checkpoint as dcp

    def state_of(step: int) -> dict[str, Any]:
        model, optimizer = filled(step)
        return {"model": model.state_dict(), "optim": optimizer.state_dict()}

    def save(folder: Path, step: int) -> None:
        dcp.save(state_of(step), checkpoint_id=str(folder / f"step-{step}"))

    def values(place: Path) -> set[float]:
        state = state_of(0)
        dcp.load(state, checkpoint_id=str(place))
        return numbers(state["model"]) | numbers(state["optim"]["state"])

    return Saver({"pattern": "step-{step}"}, "step-{step}", save, values)


def _pair() -> Saver:
    from safetensors.torch import load_file, save_file

    def save(folder: Path, step: int) -> None:
        model, optimizer = filled(step)
        save_file(model.state_dict(), folder / f"model_{step}.safetensors", metadata={"step": str(step)})
        torch.save(optimizer.state_dict(), folder / f"optim_{step}.pt")

    def values(place: Path) -> set[float]:
        step = place.stem.rpartition("_")[2]
        optimizer = torch.load(place.with_name(f"optim_{step}.pt"), weights_only=True)["state"]
        return numbers(load_file(place)) | numbers(optimizer)

    section = {"pattern": "model_{step}.safetensors", "with": ["optim_{step}.pt"]}
    return Saver(section, "model_{step}.safetensors", save, values)


def _fixed() -> Saver:
    def save(folder: Path, step: int) -> None:
        model, optimizer = filled(step)
        content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iter_num": step}
        torch.save(content, folder / "ckpt.pt")

    def values(place: Path) -> set[float]:
        content = torch.load(place, weights_only=True)
        return numbers(content["model"]) | numbers(content["optimizer"]["state"])

    return Saver({"pattern": "ckpt.pt"}, "ckpt.pt", save, values)


KINDS = {"hf": _hf, "accelerate": _accelerate, "dcp": _dcp, "pair": _pair, "fixed": _fixed}


def killed_in(save: Callable[[Path, int], None], folder: Path, step: int, after_s: float | None) -> bool:
    """Save in a process of its own, and kill it after a time; return whether the save was done before.

    Args:
        after_s: seconds from the moment in which the save begins; None: it is let go on to its end.
    """
    begun, begins = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(begun)
            torch.set_num_threads(1)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            warnings.simplefilter("ignore")
            os.write(begins, b"1")
            save(folder, step)
            code = 0
        finally:
            os._exit(code)
    os.close(begins)
    os.read(begun, 1)
    os.close(begun)
    if after_s is not None:
        end = time.monotonic() + after_s
        while time.monotonic() < end:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return _was_done(status)
            time.sleep(0.0005)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return _was_done(status)


def _was_done(status: int) -> bool:
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the save failed by itself")
    return os.WIFEXITED(status)


def emptied(folder: Path) -> Path:
    """Return a folder with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
