"""A model and optimizers whose values are spread over ranks, told by name and in whole shapes.

FSDP2 and tensor parallel keep DTensors, which know their whole shape: such a model is what it is. FSDP1 keeps flat
pieces, and a ZeroRedundancyOptimizer the moments of some parameters alone: here both are given the names and shapes
that they have in a checkpoint. What is asked of FSDP1 is collective, as torch's own functions for it are.
Reads and writes no file.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ..base.errors import InvalidFile, KitError
from ..base.imports import Any
from ..checkpoint.parameters import pair_paths

_WRAPPER = "_fsdp_wrapped_module."
_ZERO = "ZeroRedundancyOptimizer"


class FlatModel:
    """A model under FSDP1 as a checkpoint has it: each name with its whole shape, its values in pieces over the ranks.

    Args:
        module: wrapped in FullyShardedDataParallel with use_orig_params=True, itself or parts of it.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self._form: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return name -> tensor, sharded along its first dimension; collective."""
        from torch.distributed.checkpoint.state_dict import get_model_state_dict  # the trainer has torch already

        with quiet():
            state = dict(get_model_state_dict(self.module))
            self._form = {name: _without_values(value) for name, value in state.items()}
        return state

    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> None:
        """Load what `state_dict` returns; collective."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        with quiet():
            set_model_state_dict(self.module, state, options=StateDictOptions(strict=strict))

    def named_parameters(self, **how: Any) -> Iterator[tuple[str, Any]]:
        """Yield (name, this rank's flat piece)."""
        for name, parameter in self.module.named_parameters(**how):
            yield name.replace(_WRAPPER, ""), parameter

    def named_buffers(self) -> Iterator[tuple[str, Any]]:
        """Yield (name, buffer); FSDP1 shards none."""
        for name, buffer in self.module.named_buffers():
            yield name.replace(_WRAPPER, ""), buffer

    def form(self) -> dict[str, Any]:
        """Return what `state_dict` returned last, without its values; not collective."""
        return self._form or {name: _without_values(value) for name, value in self.state_dict().items()}


def _without_values(value: Any) -> Any:
    import torch  # the trainer has it already

    return torch.empty(tuple(value.shape), dtype=value.dtype, device="meta") if hasattr(value, "shape") else value


def form_of(model: Any) -> dict[str, Any]:
    """Return the names and shapes of a model's state; asked of a model that `seen` returned. Waits for no other rank
    where the state was asked for before.
    """
    state: dict[str, Any] = model.form() if isinstance(model, FlatModel) else model.state_dict()
    return state


def seen(model: Any) -> Any:
    """Return the model as its state is saved and loaded: itself, or what tells an FSDP1 one by names.

    Raises:
        KitError: FSDP1 without use_orig_params, whose flat parameters have no names.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    units = fsdp.FullyShardedDataParallel.fsdp_modules(model) if fsdp and hasattr(model, "named_modules") else []
    if not units:
        return model
    if not all(getattr(one, "_use_orig_params", False) for one in units):
        raise KitError(
            "the model is sharded by FullyShardedDataParallel without use_orig_params=True, and its optimizer knows no "
            "parameter by its name: wrap it with use_orig_params=True, or use fully_shard"
        )
    return FlatModel(model)


def unseen(model: Any) -> Any:
    """Return the trainer's own model of what `seen` returned."""
    return model.module if isinstance(model, FlatModel) else model


def is_spread(model: Any, optimizers: Any = ()) -> bool:
    """Whether a rank holds a part of the values alone.

    Args:
        model: as `seen` returns it.
        optimizers: the trainer's.
    """
    if isinstance(model, FlatModel) or any(map(is_zero, optimizers)):
        return True
    return hasattr(model, "parameters") and any(map(is_dtensor, model.parameters()))


def is_dtensor(value: Any) -> bool:
    """Whether it is a tensor of torch's that is spread over ranks and knows its whole shape."""
    return hasattr(value, "to_local") and hasattr(value, "device_mesh")


def is_zero(optimizer: Any) -> bool:
    """Whether it is torch's ZeroRedundancyOptimizer, of which each rank steps some of the parameters."""
    return any(kind.__name__ == _ZERO for kind in type(optimizer).__mro__)


def class_name(optimizer: Any) -> str:
    """Return the name of an optimizer's class; of a ZeroRedundancyOptimizer that of the one which it spreads."""
    return type(optimizer.optim if is_zero(optimizer) else optimizer).__name__


def local(value: Any) -> Any:
    """Return this rank's part of a tensor: of one that is not spread, itself; None where it has none."""
    if is_dtensor(value):
        return value.to_local()
    if hasattr(value, "local_shards"):
        return next((shard.tensor for shard in value.local_shards()), None)
    return value


def with_whole_shapes(optimizer: Any, model: Any) -> Any:
    """Return what stands for an optimizer where its parameters' shapes and its arguments are asked for.

    Args:
        optimizer: the trainer's.
        model: as `seen` returns it.
    """
    if is_zero(optimizer):
        stand_in = copy.copy(optimizer.optim)
        stand_in.param_groups = optimizer.param_groups
        return stand_in
    if not isinstance(model, FlatModel):
        return optimizer
    import torch  # the trainer has it already

    shapes = {name: tuple(value.shape) for name, value in model.form().items() if hasattr(value, "shape")}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    stand_in = copy.copy(optimizer)
    stand_in.param_groups = [
        {**group, "params": [torch.empty(shapes.get(names.get(id(one), ""), one.shape), device="meta")
                             for one in group["params"]]}
        for group in optimizer.param_groups
    ]  # fmt: skip
    return stand_in


def optimizer_state(optimizer: Any, model: Any, names: list[list[str]]) -> dict[str, Any]:
    """Return an optimizer's state dict, its parameters numbered over all groups; of a ZeRO one this rank's part.

    Collective under FSDP1.

    Args:
        model: as `seen` returns it.
        names: of its parameters, one list per group.
    """
    if is_zero(optimizer):
        own = optimizer.optim.state
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = {number: dict(own[one]) for number, one in enumerate(parameters) if one in own}
        return {"state": state, "param_groups": _numbered(optimizer.param_groups)}
    if not isinstance(model, FlatModel):
        whole: dict[str, Any] = optimizer.state_dict()
        return whole
    if not optimizer.state:  # torch's own function would step once to make one
        return {"state": {}, "param_groups": _numbered(optimizer.param_groups)}
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict  # the trainer has torch already

    held: Any = get_optimizer_state_dict(model.module, optimizer)["state"]
    flat = [name for group in names for name in group]
    state = {number: held[name] for number, name in enumerate(flat) if name in held}
    return {"state": state, "param_groups": _numbered(optimizer.param_groups)}


def live_state(optimizer: Any) -> Any:
    """Return parameter -> what an optimizer keeps for it in this rank."""
    return optimizer.optim.state if is_zero(optimizer) else optimizer.state


def spread(content: dict[str, Any], model: Any) -> dict[str, Any]:
    """Return the content of a file with its weights and moments spread as the model's: each rank takes its own part.

    Nothing is sent: every rank has the file. A model without DTensors takes it as it is.

    Args:
        content: as `save_checkpoint` writes it.
        model: as `seen` returns it.

    Raises:
        InvalidFile: it is under FSDP1, which cannot take a whole one over.
    """
    if isinstance(model, FlatModel):
        raise InvalidFile(
            "a whole file of save_checkpoint cannot be loaded into a model under FullyShardedDataParallel, and nothing "
            "was loaded: load it before the model is wrapped, use fully_shard, or go on from a folder of save_sharded"
        )
    live = model.state_dict()
    if not any(map(is_dtensor, live.values())):
        return content
    weights: Any = content["model_state_dict"]
    like = {old: live[own] for own, old in pair_paths(live, weights).items() if is_dtensor(live[own])}
    parts = copy.copy(weights)  # torch keeps the modules' versions beside the tensors
    parts.update({name: _spread(weights[name], one) for name, one in like.items()})
    states = content.get("optimizer_state_dict")
    names = content.get("parameter_names")
    if isinstance(states, dict) and "param_groups" in states:
        states = _spread_state(states, names, like)
    elif isinstance(states, dict):
        by_key = names if isinstance(names, dict) else {}
        states = {key: _spread_state(one, by_key.get(key), like) for key, one in states.items()}
    return {**content, "model_state_dict": parts, "optimizer_state_dict": states}


def _spread_state(state: dict[str, Any], names: Any, like: dict[str, Any]) -> dict[str, Any]:
    flat = [name for group in names for name in group] if isinstance(names, list) else []
    held = {}
    for number, kept in state["state"].items():
        own = like.get(flat[number]) if isinstance(number, int) and number < len(flat) else None
        held[number] = {key: _spread(value, own) for key, value in kept.items()} if isinstance(kept, dict) else kept
    return {**state, "state": held}


def _spread(value: Any, like: Any) -> Any:
    """Return this rank's part of a whole tensor; what has another shape as it is."""
    if like is None or getattr(value, "shape", None) != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor  # the trainer has torch already

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_optimizer(optimizer: Any, model: Any, state: dict[str, Any]) -> None:
    """Load a state dict whose parameters are numbered over all groups; collective under FSDP1.

    Args:
        model: as `seen` returns it.
    """
    if not isinstance(model, FlatModel):
        optimizer.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [by_id[id(one)] for group in optimizer.param_groups for one in group["params"]]
    groups = [{**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
    values = {names[number]: one for number, one in state["state"].items() if isinstance(number, int)}
    whole: Any = {"state": values, "param_groups": groups}
    with quiet():
        set_optimizer_state_dict(model.module, optimizer, whole, options=StateDictOptions(strict=False))


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what torch warns of its own insides (ShardedTensor, no process group), which no trainer can change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*_get_pg_default_device.*|.*Multiple backends.*")
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _numbered(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    numbered, first = [], 0
    for group in groups:
        numbered.append({**group, "params": list(range(first, first + len(group["params"])))})
        first += len(group["params"])
    return numbered
