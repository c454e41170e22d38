"""What goes into a checkpoint: everything that makes the next step what it is, and the versions that its bits
depend on.
"""

from __future__ import annotations

import math
import platform
import random
import sys
import weakref
from collections.abc import Collection, Iterator, Sequence

from ..base.errors import KitError
from ..base.imports import Any
from ..checkpoint import parameters
from ..policy.decide import MACHINE_COSTS, Cost
from .ranks import world_size
from .sharded_state import class_name, is_dtensor, unseen


def versions() -> dict[str, Any]:
    """Return name -> version (text), count (int) or None."""
    import torch  # the trainer has it already

    numpy = sys.modules.get("numpy")
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "numpy": str(numpy.__version__) if numpy is not None else None,
        "threads": torch.get_num_threads(),
        "world_size": world_size(),
    }


def changed_versions(saved: dict[str, Any], now: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    """Return 'name: old at the save, new now' for each of `names` that differs."""
    return [
        f"{name}: {saved[name]} at the save, {now.get(name)} now"
        for name in names
        if name in saved and saved[name] != now.get(name)
    ]


def version_costs(saved: dict[str, Any], now: dict[str, Any]) -> list[Cost]:
    """Return what it costs that this machine is another one than the checkpoint's."""
    return [
        Cost(words, costs) for name, costs in MACHINE_COSTS.items() for words in changed_versions(saved, now, (name,))
    ]


def _driver() -> str | None:
    try:
        with open("/sys/module/nvidia/version") as file:
            return file.read(100).strip()
    except OSError:
        return None


# The random number generators that make the next step what it is: Python's, numpy's, torch's and each GPU's.
#
# Plain values and tensors only, so that they load with weights_only=True (numpy's own state tuple would not).

# What a load reports where there are several ranks: the checkpoint holds the generators of the one that saved it.
RANK_0_ONLY = "rank 0 only"
_KEYS = {"python", "torch", "numpy", "cuda"}


def capture_rng() -> dict[str, Any]:
    """Return the state of every generator in this process.

    numpy's is included if the trainer has imported numpy, the GPUs' if CUDA is in use.
    """
    import torch  # the trainer has it already

    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        name, keys, position, has_gauss, cached = numpy.random.get_state()
        state["numpy"] = {
            "name": str(name),
            "keys": [int(key) for key in keys],
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def is_known_rng_state(state: Any) -> bool:
    """Whether `state` is what `capture_rng` returns, as far as its keys say."""
    return isinstance(state, dict) and {"python", "torch"} <= state.keys() and state.keys() <= _KEYS


def restore_rng(state: dict[str, Any]) -> str:
    """Set every generator back; call this last, because building and loading things draws random numbers.

    Args:
        state: what `capture_rng` returned.

    Returns:
        What was done, in a few words: 'load', or 'load, but for ...'.
    """
    import torch  # the trainer has it already

    left_out = []
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"])
    if "numpy" in state:
        import numpy  # the run that saved it used numpy, so this one will

        saved = state["numpy"]
        keys = numpy.array(saved["keys"], dtype=numpy.uint32)
        numpy.random.set_state((saved["name"], keys, saved["position"], saved["has_gauss"], saved["cached"]))
    if "cuda" in state:
        if torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
            torch.cuda.set_rng_state_all(state["cuda"])
        else:
            now = torch.cuda.device_count() if torch.cuda.is_available() else 0
            left_out.append(f"CUDA: {len(state['cuda'])} devices at the save, {now} now")
    return f"load, but for {'; '.join(left_out)}" if left_out else "load"


# What goes into a checkpoint: everything that makes the next step what it is, as plain values and tensors.
#
# Collects the state of model, optimizers and their kin, says which values are not finite, and refuses at the save
# what loading with weights_only=True would refuse at the resume. Reads and writes no file.

OWN_KEYS = (
    "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict", "global_step", "epoch",
    "best_val_loss", "optimizer_name", "ema_state_dict", "swa_state_dict", "rng_state", "data_state",
    "parameter_names", "lr_scale", "lr_ramp", "versions", "rank_states",
)  # fmt: skip
MAX_NONFINITE = 8
# Of each model, the buffers that were finite in an earlier save of this process.
_finite_buffers: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()
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
        KitError: a component has no state_dict(), `extra` has a name of ours, a value is neither a plain one nor a
            tensor, or this rank holds a part of the model; the message names it.
    """
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema, "swa": swa}
    require_states("save_checkpoint", parts, ("state_dict",), several=("optimizer",))
    weights = model.state_dict()
    _refuse_sharded(model, weights)
    states = {name: _state_of(part) for name, part in parts.items() if name not in ("model", "optimizer")}
    states |= {"model": weights, "optimizer": _state_by_name(optimizer)}
    names = parameter_names(model, optimizer)
    content = {**described(step, states, optimizer, names, epoch, best_val_loss, lr_scale, lr_ramp),
               "rng_state": capture_rng(), "data_state": data_state}  # fmt: skip
    add_extra(content, extra, "save_checkpoint")
    refuse_unsafe(content)
    return content


def described(
    step: int, states: dict[str, Any], optimizer: Any, names: Any, epoch: int, best_val_loss: float, lr_scale: float,
    lr_ramp: dict[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """Return what a checkpoint holds, but for what each rank has of its own.

    Args:
        states: 'model', 'optimizer', 'scheduler', 'scaler', 'ema', 'swa' -> its state; None where there is none.
        optimizer: the trainer's.
        names: of its parameters, as `parameter_names` returns them.
    """
    return {
        "global_step": int(step),
        "epoch": int(epoch),
        "best_val_loss": float(best_val_loss),
        "model_state_dict": states["model"],
        "optimizer_state_dict": states["optimizer"],
        "optimizer_name": optimizer_name(optimizer),
        "parameter_names": names,
        "scheduler_state_dict": states["scheduler"],
        "scaler_state_dict": states["scaler"] or None,
        "ema_state_dict": states["ema"],
        "swa_state_dict": states["swa"],
        "lr_scale": float(lr_scale),
        "lr_ramp": lr_ramp,
        "versions": versions(),
    }


def add_extra(content: dict[str, Any], extra: dict[str, Any] | None, caller: str) -> None:
    """Add a trainer's own entries. Raises KitError for one that has a name of ours."""
    for name, value in (extra or {}).items():
        if name in OWN_KEYS:
            raise KitError(f"the extra entry '{name}' of {caller} has a name of the kit's own; rename it")
        content[name] = value


def require_states(caller: str, parts: dict[str, Any], methods: Sequence[str], several: Collection[str]) -> None:
    """Refuse a component without the methods by which its state is saved and loaded.

    Args:
        caller: the function that a trainer has called.
        parts: components by the names of the caller's arguments; None where there is none.
        methods: state_dict, and at a load load_state_dict.
        several: which of them may be a dict of components.

    Raises:
        KitError: one has not; the message names the argument, the class and the method.
    """
    for name, part in parts.items():
        for one in part.values() if name in several and isinstance(part, dict) else [part]:
            missing = [] if one is None else [method for method in methods if not callable(getattr(one, method, None))]
            if missing:
                raise KitError(
                    f"{caller}: {name} is a '{type(one).__module__}.{type(one).__qualname__}' without {missing[0]}(): "
                    f"give its class state_dict() and load_state_dict(), or pass its state in extra={{...}} of "
                    f"save_checkpoint, and no {name}"
                )


def optimizer_name(optimizer: Any) -> str | None:
    """Return 'AdamW', or for several 'model=AdamW,puzzle=SignSGD'; None without one."""
    if optimizer is None:
        return None
    if isinstance(optimizer, dict):
        return parameters.write_optimizer_names({name: class_name(one) for name, one in optimizer.items()})
    return parameters.write_optimizer_names(class_name(optimizer))


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


def masks_of(model: Any) -> frozenset[str]:
    """Return the names of the buffers in which an infinity is healthy, as in a mask: those that were never finite.

    A buffer that was finite at an earlier call of this process, as the variance of a BatchNorm is, is none.
    """
    if not hasattr(model, "named_buffers"):
        return frozenset()
    buffers = [(name, one) for name, one in model.named_buffers() if _can_be_infinite(one)]
    if not buffers:
        return frozenset()
    known = _finite_buffers.setdefault(unseen(model), set())
    if _all_finite([one for _, one in buffers]):
        known.update(name for name, _ in buffers)
    else:
        known.update(name for name, one in buffers if bool(_widened(one).isfinite().all()))
    return frozenset(name for name, _ in buffers) - known


def nonfinite(content: dict[str, Any], loss: Any = None, masks: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Return the names of the first few values that are not finite: loss, weights, optimizer, EMA and SWA.

    Args:
        content: what is to be saved.
        loss: the last one, or None.
        masks: names of buffers in which, and in their averages, a NaN counts, and an infinity does not.
    """
    import torch  # the trainer has it already

    found = [] if loss is None or math.isfinite(float(loss)) else ["loss"]
    parts = ("model_state_dict", "optimizer_state_dict", "ema_state_dict", "swa_state_dict")
    leaves = [leaf for part in parts for leaf in _walk(content[part], part)]
    named = [(name, value) for name, value in leaves if isinstance(value, torch.Tensor) and _can_be_infinite(value)]
    infinite = {name for name, _ in named if _is_of_mask(name, masks)}
    holds_nan = any(bool(_widened(tensor).isnan().any()) for name, tensor in named if name in infinite)
    if not holds_nan and _all_finite([tensor for name, tensor in named if name not in infinite]):
        return tuple(found)
    for name, tensor in named:
        if len(found) >= MAX_NONFINITE:
            break
        value = _widened(tensor)
        if bool(value.isnan().any()) or not (name in infinite or bool(torch.isfinite(value).all())):
            found.append(name)
    return tuple(found)


def _is_of_mask(name: str, masks: frozenset[str]) -> bool:
    """Whether a tensor is a mask or its average: `model_state_dict.mask`, `ema_state_dict.shadow.mask`."""
    part, _, inner = name.partition(".")
    if part == "optimizer_state_dict" or not masks:
        return False
    words = inner.split(".")
    first = 0 if part == "model_state_dict" else len(words) - 1
    return any(".".join(words[begin:]) in masks for begin in range(first + 1))


def _widened(tensor: Any) -> Any:
    return tensor.float() if tensor.element_size() == 1 else tensor  # float8 cannot be asked


def tensor_bytes(content: Any) -> int:
    """Return how many bytes the tensors in it will take in the file."""
    import torch  # the trainer has it already

    storages = {}
    for _, value in _walk(content, ""):
        if isinstance(value, torch.Tensor):
            held = value.untyped_storage()
            storages[held.data_ptr()] = held.nbytes()
    return sum(storages.values())


def _refuse_sharded(model: Any, weights: Any) -> None:
    """Refuse a model of which this rank holds a part: the state of its optimizer would be that part's alone."""
    if not hasattr(model, "named_parameters"):
        return
    for name, parameter in model.named_parameters():
        saved = weights.get(name.replace("_fsdp_wrapped_module.", ""))
        if is_dtensor(parameter):
            raise KitError(
                f"save_checkpoint: the parameter '{name}' is a DTensor, of which this rank holds a part: save such a "
                f"training (fully_shard, tensor parallel) with save_sharded, in every rank"
            )
        if saved is not None and tuple(saved.shape) != tuple(parameter.shape):
            raise KitError(
                f"save_checkpoint: the parameter '{name}' has shape {tuple(parameter.shape)} in this rank and "
                f"{tuple(saved.shape)} in model.state_dict(): the model is sharded over ranks (FSDP), and its "
                f"optimizer's state here is a part; save such a training with save_sharded, in every rank"
            )


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


def refuse_unsafe(content: dict[str, Any]) -> None:
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
