"""What goes into a checkpoint: everything that makes the next step what it is, as plain values and tensors.

Collects the state of model, optimizers and their kin, says which values are not finite, and refuses at the save what
loading with weights_only=True would refuse at the resume. Reads and writes no file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ..basics.errors import KitError
from ..proving import optimizer_names
from . import rng_state
from .environment_versions import versions

OWN_KEYS = (
    "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict", "global_step", "epoch",
    "best_val_loss", "optimizer_name", "ema_state_dict", "swa_state_dict", "rng_state", "data_state",
    "parameter_names", "lr_scale", "lr_ramp", "versions",
)  # fmt: skip
MAX_NONFINITE = 8
_PLAIN = ("int", "float", "bool", "str", "bytes", "bytearray", "complex", "NoneType")


def collect(
    step: int,
    *,
    model: Any,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    ema: Any = None,
    swa: Any = None,
    epoch: int = 0,
    best_val_loss: float = math.inf,
    data_state: Any = None,
    extra: dict[str, Any] | None = None,
    lr_scale: float = 1.0,
    lr_ramp: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the checkpoint's content; absent components are None, never an empty dict.

    Raises:
        KitError: `extra` has a name of ours, or a value is neither a plain one nor a tensor; the message names it.
    """
    content = {
        "global_step": int(step),
        "epoch": int(epoch),
        "best_val_loss": float(best_val_loss),
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": _state_by_name(optimizer),
        "optimizer_name": optimizer_name(optimizer),
        "parameter_names": parameter_names(model, optimizer),
        "scheduler_state_dict": _state_of(scheduler),
        "scaler_state_dict": _state_of(scaler) or None,
        "ema_state_dict": _state_of(ema),
        "swa_state_dict": _state_of(swa),
        "rng_state": rng_state.capture(),
        "data_state": data_state,
        "lr_scale": float(lr_scale),
        "lr_ramp": lr_ramp,
        "versions": versions(),
    }
    for name, value in (extra or {}).items():
        if name in OWN_KEYS:
            raise KitError(f"the extra entry '{name}' of save_checkpoint has a name of the kit's own; rename it")
        content[name] = value
    _refuse_unsafe(content)
    return content


def optimizer_name(optimizer: Any) -> str | None:
    """Return 'AdamW', or for several 'model=AdamW,puzzle=SignSGD'; None without one."""
    if optimizer is None:
        return None
    if isinstance(optimizer, dict):
        return optimizer_names.write({name: type(one).__name__ for name, one in optimizer.items()})
    return optimizer_names.write(type(optimizer).__name__)


def parameter_names(model: Any, optimizer: Any) -> Any:
    """Return the name of each optimizer's parameters: one list per group; by name for several optimizers.

    A parameter that is none of the model's is None.
    """
    if optimizer is None:
        return None
    if isinstance(optimizer, dict):
        return {name: parameter_names(model, one) for name, one in optimizer.items()}
    known = {id(tensor): name for name, tensor in model.named_parameters(remove_duplicate=False)}
    return [[known.get(id(tensor)) for tensor in group["params"]] for group in optimizer.param_groups]


def nonfinite(content: dict[str, Any], loss: Any = None) -> tuple[str, ...]:
    """Return the names of the first few values that are NaN or infinite: loss, weights, optimizer, EMA and SWA."""
    import torch  # the trainer has it already

    found = [] if loss is None or math.isfinite(float(loss)) else ["loss"]
    parts = ("model_state_dict", "optimizer_state_dict", "ema_state_dict", "swa_state_dict")
    leaves = [leaf for part in parts for leaf in _walk(content[part], part)]
    named = [(name, value) for name, value in leaves if isinstance(value, torch.Tensor) and _can_be_infinite(value)]
    if _all_finite([tensor for _, tensor in named]):
        return tuple(found)
    for name, tensor in named:
        if len(found) >= MAX_NONFINITE:
            break
        if not torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all():
            found.append(name)
    return tuple(found)


def tensor_bytes(content: Any) -> int:
    """Return how many bytes the tensors in it will take in the file."""
    import torch  # the trainer has it already

    storages = {}
    for _, value in _walk(content, ""):
        if isinstance(value, torch.Tensor):
            held = value.untyped_storage()
            storages[held.data_ptr()] = held.nbytes()
    return sum(storages.values())


def _can_be_infinite(tensor: Any) -> bool:
    return bool((tensor.is_floating_point() or tensor.is_complex()) and tensor.numel())


def _all_finite(tensors: list[Any]) -> bool:
    """Say in one pass that all is finite; False may be a norm of finite values that overflows, or float8.

    One call for all tensors: with several threads a call per tensor waits at a barrier each time.
    """
    if any(tensor.element_size() == 1 for tensor in tensors):
        return False  # float8 has no norm of its own
    from torch.nn.utils import get_total_norm  # the trainer has torch already

    return math.isfinite(get_total_norm([tensor.detach() for tensor in tensors], foreach=True).item())


def _state_by_name(optimizer: Any) -> Any:
    if isinstance(optimizer, dict):
        return {name: one.state_dict() for name, one in optimizer.items()}
    return _state_of(optimizer)


def _state_of(component: Any) -> Any:
    return None if component is None else component.state_dict()


def _walk(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, leaf) of nested dicts, lists and tuples."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _walk(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple, set)):
        for index, item in enumerate(value):
            yield from _walk(item, f"{name}.{index}")
    else:
        yield name, value


def _refuse_unsafe(content: dict[str, Any]) -> None:
    """Refuse by exact type: a subclass of dict or float pickles as a class of its own."""
    import collections  # torch has imported it already

    import torch  # the trainer has it already

    inner = (dict, collections.OrderedDict, collections.Counter, list, tuple, set, torch.Size)
    leaves = (torch.dtype, torch.device, torch.layout)
    pending = list(content.items())
    while pending:
        name, value = pending.pop()
        kind = type(value)
        if kind.__name__ in _PLAIN and kind.__module__ == "builtins":
            continue
        if kind in inner:
            items = value.items() if isinstance(value, dict) else enumerate(value)
            pending += [(f"{name}.{key}", item) for key, item in items]
            if isinstance(value, dict):
                pending += [(f"a key of {name}", key) for key in value if not isinstance(key, (str, int))]
        elif not isinstance(value, leaves) and not _is_plain_tensor(value):
            raise KitError(
                f"the checkpoint's '{name}' is a '{kind.__module__}.{kind.__name__}', which can't be loaded with "
                f"weights_only=True: give save_checkpoint plain numbers, strings, lists, dicts or tensors"
            )


def _is_plain_tensor(value: Any) -> bool:
    import torch  # the trainer has it already

    return type(value) in (torch.Tensor, torch.nn.Parameter) or isinstance(value, torch.nn.Buffer)
