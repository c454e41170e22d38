"""Whether a checkpoint's content fits the objects that it is to be loaded into; asked before anything is loaded.

Compares names, shapes, optimizer groups and kinds. Reads and writes no file. All differences go into one message.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .checkpoint_content import optimizer_name, parameter_names
from .errors import InvalidFile

MAX_SHOWN = 8


def check(content: dict[str, Any], model: Any, report: dict[str, str], parts: dict[str, Any], path: Path) -> None:
    """Compare the checkpoint with the trainer's objects.

    Args:
        content: the checkpoint.
        report: component -> action; only those with 'load' are compared.
        parts: component -> object.
        path: for the message.

    Raises:
        InvalidFile: names are missing or unexpected, shapes differ, or the optimizer is another one.
    """
    problems = state_differences(content["model_state_dict"], model.state_dict())
    for name in ("ema", "swa"):
        if report[name] == "load":
            state = parts[name].state_dict() if hasattr(parts[name], "state_dict") else None
            if state is not None:
                differences = state_differences(content[f"{name}_state_dict"], state)
                problems += [f"{name}: {line}" for line in differences]
    if report["optimizer"] == "load":
        problems += optimizer_differences(content, model, parts["optimizer"])
    if problems:
        raise InvalidFile(f"checkpoint '{path}' does not fit, and nothing was loaded: " + "; ".join(problems))


def state_differences(saved: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return what keeps `saved` from being loaded strictly in the place of `wanted`, one line per kind."""
    lines = []
    if missing := [name for name in wanted if name not in saved]:
        lines.append(f"missing in it: {_listed(missing)}")
    if unexpected := [str(name) for name in saved if name not in wanted]:
        lines.append(f"unexpected in it: {_listed(unexpected)}")
    shapes = [
        f"{name} {tuple(saved[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in saved and getattr(saved[name], "shape", None) != getattr(tensor, "shape", None)
    ]
    if shapes:
        lines.append(f"other shapes: {_listed(shapes)}")
    return lines


def optimizer_differences(content: dict[str, Any], model: Any, optimizer: Any) -> list[str]:
    """Return what keeps the optimizer's state from being loaded by position, one line per kind."""
    saved_name, name = content.get("optimizer_name"), optimizer_name(optimizer)
    if saved_name is not None and saved_name != name:
        return [f"it holds the state of {saved_name}, the trainer uses {name} (swaps come with a later version; "
                f"optimizer_policy='reset' starts the optimizer anew)"]  # fmt: skip
    saved = content["optimizer_state_dict"]
    several = isinstance(optimizer, dict)
    pairs = {key: (saved.get(key), one) for key, one in optimizer.items()} if several else {"": (saved, optimizer)}
    lines = []
    for key, (state, one) in pairs.items():
        label = f"optimizer '{key}'" if key else "optimizer"
        groups = state.get("param_groups") if isinstance(state, dict) else None
        if not isinstance(groups, list):
            lines.append(f"{label}: no state in it")
            continue
        before, now = [len(group["params"]) for group in groups], [len(group["params"]) for group in one.param_groups]
        if before != now:
            lines.append(f"{label}: parameters per group {before} in it, {now} in the trainer")
    names = content.get("parameter_names")
    if not lines and names is not None and names != parameter_names(model, optimizer):
        lines.append("optimizer: the same number of parameters, but other ones or in another order")
    return lines


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return f"{len(names)} ({', '.join(names[:MAX_SHOWN])}{more})"
