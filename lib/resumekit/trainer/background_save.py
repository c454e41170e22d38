"""A save beside the training: its values are copied, then a thread writes them while training goes on.

One save at most is in flight; the next save, and the end of the interpreter, wait for it. What it has to say, and what
it raised, comes with the next optimizer step, the next save or the end, in the thread of the training. A thread and no
process: it dies with the trainer, and costs no more memory than the copy (docs/checkpoints.md has the measurement).
Try it: `save_checkpoint("checkpoints", step, model=model, optimizer=optimizer, background=True)`
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import io
import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from weakref import WeakSet

from ..base import process_details
from ..base.errors import KitError
from ..base.imports import Any
from ..base.terminal import say
from .checkpoint_content import nonfinite
from .save_file import deferred_signals
from .trainer_env import journal_event

# What has to stay free beside the copy: the training's own needs go up and down.
RESERVE_BYTES = 256 << 20
# A thread that has just begun holds the interpreter's lock for 5 ms: the caller is to return first.
_HEAD_START_S = 0.001
# (bytes, whether a GPU writes into it) -> host memory of that kind, kept from one save to the next.
_Kind = tuple[int, bool]
_kept: dict[_Kind, list[Any]] = {}
_in_flight: _Save | None = None
_settling = threading.Lock()
_hooked: WeakSet[Any] = WeakSet()
_is_prepared = False


class TooLittleMemory(Exception):
    """The copy has no room in this machine's memory, or in that of a cgroup; the message has the figures."""


class _Save:
    """One save that a thread writes; `lines` are what it has to say, `error` is what it raised."""

    def __init__(self, step: int, work: Callable[[Callable[[str], Any]], Any], log_fn: Callable[[str], Any]) -> None:
        self.step, self.log_fn = step, log_fn
        self.lines: list[str] = []
        self.error: BaseException | None = None
        self.is_over = False
        self._work: Callable[[Callable[[str], Any]], Any] | None = work
        # A daemon: the end of the interpreter waits by `_at_exit`, which a second Ctrl-C may break off.
        self.thread = threading.Thread(target=self.run, name="resumekit-background-save", daemon=True)

    def run(self) -> None:
        work, self._work = self._work, None
        time.sleep(_HEAD_START_S)
        try:
            if work is not None:
                work(self.lines.append)
        except KitError as error:  # it has been journalled where it was raised
            self.error = error
        except BaseException as error:
            self.error = error
            message = f"step {self.step} was not saved: {type(error).__name__}: {error}"
            journal_event("warning", kind="save_failed", message=message)
            self.lines.append(f"[warn] {message}")
        finally:
            self.is_over = True


def begin(
    step: int, work: Callable[[Callable[[str], Any]], Any], optimizers: Iterable[Any], log_fn: Callable[[str], Any]
) -> None:
    """Have a thread do `work`; the save before it is over (`wait`).

    Args:
        step: what is saved.
        work: takes the function that it gives its lines to.
        optimizers: whose next step says how it went; one without hooks says nothing.
        log_fn: takes the lines, in the thread that steps, saves or ends.
    """
    global _in_flight
    _prepare()
    for optimizer in optimizers:
        with contextlib.suppress(Exception):  # none of torch's, or a wrapper that inherits its methods, not their state
            if optimizer not in _hooked:
                optimizer.register_step_pre_hook(_at_step)
                _hooked.add(optimizer)
    save = _Save(step, work, log_fn)
    with deferred_signals():
        _in_flight = save
        try:
            save.thread.start()
        except RuntimeError:  # there can be no more threads: it is done here and now
            save.run()


def wait() -> None:
    """Wait for the save in flight, if there is one, and say how it went.

    Signals are held back as in a save that blocks; a second Ctrl-C, a second later, ends the waiting.

    Raises:
        KitError: the disk failed twice in a row.
        Exception: whatever else the save raised.
    """
    save = _in_flight
    if save is None:
        return
    if not save.is_over:
        journal_event("saving", step=save.step)  # from here on the training stands for it
        with deferred_signals():
            save.thread.join()
    _settle(save)


def copied(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content with a copy of every value, its tensors in host memory that is kept for the next save.

    torch.save writes the same bytes for it (but that a GPU's tensors are the CPU's): what shares memory shares it in
    the copy too. Blocks until the values are there, also those of a GPU.

    Raises:
        TooLittleMemory: it was not copied.
    """
    import torch  # the trainer has it already

    tensors = _tensors_of(content)
    plain = {key: one for key, one in tensors.items() if _has_memory(one)}
    storages = {storage._cdata: storage for storage in (one.untyped_storage() for one in plain.values())}
    try:
        copies = _into_kept(storages)
    except TooLittleMemory:
        _kept.clear()
        raise
    memo: dict[int, Any] = {}
    for key, tensor in tensors.items():
        if key in plain:
            storage = copies[tensor.untyped_storage()._cdata]
            place = tensor.storage_offset(), tensor.size(), tensor.stride()
            twin = torch.empty(0, dtype=tensor.dtype, device="cpu").set_(storage, *place)
        else:
            twin = tensor if tensor.is_meta else tensor.detach().to("cpu", copy=True)
        if type(tensor) is torch.nn.Parameter:
            twin = torch.nn.Parameter(twin, requires_grad=tensor.requires_grad)
        elif twin is not tensor:
            twin.requires_grad_(tensor.requires_grad)
        if vars(tensor) and twin is not tensor:
            vars(twin).update(copy.deepcopy(vars(tensor), memo))
        memo[key] = twin
    result: dict[str, Any] = copy.deepcopy(content, memo)
    return result


def _tensors_of(content: Any) -> dict[int, Any]:
    """Return every tensor in nested containers by its id."""
    import torch  # as above

    pending, found = [content], {}
    while pending:
        value = pending.pop()
        if isinstance(value, torch.Tensor):
            found[id(value)] = value
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, (list, tuple, set)):
            pending += value
    return found


def _has_memory(tensor: Any) -> bool:
    """Whether a tensor is a view of memory; a sparse, quantized, conjugated or meta one is copied by torch itself."""
    import torch  # as above

    is_odd = tensor.is_quantized or tensor.is_meta or tensor.is_conj() or tensor.is_neg()
    return tensor.layout == torch.strided and not is_odd


def _into_kept(storages: dict[int, Any]) -> dict[int, Any]:
    """Copy the memory of tensors into kept memory; return the copies by the same keys.

    Raises:
        TooLittleMemory: what is missing of it cannot be had; nothing was copied.
    """
    import torch  # as above

    kinds: dict[_Kind, list[int]] = defaultdict(list)
    for key, storage in storages.items():
        kinds[storage.nbytes(), storage.device.type == "cuda"].append(key)
    for kind in [*_kept]:  # what this save does not need is let go
        _kept[kind] = _kept[kind][: len(kinds[kind])] if kind in kinds else []
    missing = Counter({kind: len(keys) - len(_kept.get(kind, ())) for kind, keys in kinds.items()})
    _require_room(sum(_cost(kind) * count for kind, count in missing.items()))
    copies: dict[int, Any] = {}
    for kind, keys in kinds.items():
        own = _kept.setdefault(kind, [])
        own += [_new_memory(kind) for _ in range(missing[kind])]
        for key, memory in zip(keys, own, strict=True):
            memory.copy_(storages[key], non_blocking=kind[1])
            copies[key] = memory
    for device in {storage.device for storage in storages.values() if storage.device.type == "cuda"}:
        torch.cuda.current_stream(device).synchronize()
    return copies


def _require_room(needed: int) -> None:
    room = process_details.available_bytes() if needed else None
    if room is not None and needed > room - RESERVE_BYTES:
        raise TooLittleMemory(
            f"the copy takes {needed / 1e6:,.0f} MB of memory and {RESERVE_BYTES / 1e6:,.0f} MB are to stay free, "
            f"where {room / 1e6:,.0f} MB are available"
        )


def _cost(kind: _Kind) -> int:
    """Return what memory of a kind takes: torch makes a power of two of what a GPU writes into."""
    size, is_pinned = kind
    return 1 << (size - 1).bit_length() if is_pinned and size else size


def _new_memory(kind: _Kind) -> Any:
    import torch  # as above

    size, is_pinned = kind
    try:
        return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=is_pinned).untyped_storage()
    except (RuntimeError, MemoryError) as error:  # torch says so by a RuntimeError
        raise TooLittleMemory(f"{size / 1e6:,.0f} MB for the copy could not be had: {error}") from None


def _at_step(*_arguments: Any) -> None:
    save = _in_flight
    if save is not None and save.is_over:
        _settle(save)


def _settle(save: _Save) -> None:
    """Say what a save that is over has to say, once. Raises what it raised."""
    global _in_flight
    with _settling:
        if _in_flight is not save:
            return
        _in_flight = None
    for line in save.lines:
        save.log_fn(line)
    if save.error is not None:
        raise save.error


def _prepare() -> None:
    """Once in a process: the end waits, a fork has nothing in flight, and the thread imports nothing.

    A module that the thread were importing at a fork would be locked in the child for ever.
    """
    global _is_prepared
    if _is_prepared:
        return
    _is_prepared = True
    import torch  # as above

    values = {"model_state_dict": {"a": torch.zeros(1, device="cpu")}, "optimizer_state_dict": None}
    torch.save(values, io.BytesIO())
    nonfinite({**values, "ema_state_dict": None, "swa_state_dict": None})
    os.register_at_fork(after_in_child=_forget)
    atexit.register(_at_exit)


def _forget() -> None:
    """In a child, a data worker say, no thread writes, and what is copied is the parent's."""
    global _in_flight, _settling
    _in_flight, _settling = None, threading.Lock()
    _kept.clear()


def _at_exit() -> None:
    try:
        wait()
    except KitError as error:
        if sys.stderr is not None:
            say("resumekit", str(error))
