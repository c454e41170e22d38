"""The ranks of one training: which one this process is, and how all of them agree on one answer.

What they tell each other goes through the store of torch.distributed's process group, which gloo and nccl both have: no
tensor is sent, no device is used, and each wait is bounded. Try it: `exchange("the count", 1, act=sum)` in each rank
"""

from __future__ import annotations

import io
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..base import errors
from ..base.errors import KitError
from ..base.imports import Any
from ..base.terminal import plain
from .weights import first_line

ALL = "all"
# The store's server closes the connection above 8 MiB.
MAX_BYTES = 4 << 20
_LONGEST_PAUSE_S = 0.2
# How long an answer is kept for ranks that have not read it: they look five times a second.
_READ_S = 5.0
# Of each process group its place in the store, and how many exchanges this process has begun: all ranks count alike.
_begun: weakref.WeakKeyDictionary[Any, tuple[str, int]] = weakref.WeakKeyDictionary()
_groups = 0


def rank() -> int:
    """Return this process's number among the ranks of one training; 0 where it is alone."""
    if _has_group():
        own: int = sys.modules["torch"].distributed.get_rank()
        return own
    # A lone RANK, without the number of all, is a scheduler's or a user's own.
    return _number("RANK", 0) if _number("WORLD_SIZE", 1) > 1 else 0


def world_size() -> int:
    """Return the number of ranks of this training; 1 where it is alone."""
    if _has_group():
        size: int = sys.modules["torch"].distributed.get_world_size()
        return size
    return _number("WORLD_SIZE", 1)


def _number(variable: str, otherwise: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isascii() and text.isdigit() else otherwise


def are_all(caller: str, ranks: str | None) -> bool:
    """Return whether a call is one of all ranks together, as its argument `ranks` says.

    Args:
        caller: the function that a trainer has called.
        ranks: 'all'; None for a call of this rank alone.

    Raises:
        KitError: it is neither, or there are several ranks and no process group by which they could talk.
    """
    if ranks not in (None, ALL):
        raise KitError(
            f"{caller}: ranks={ranks!r} is unknown: 'all' where every rank makes this call, else leave it out"
        )
    if ranks == ALL and world_size() > 1 and not _has_group():
        raise KitError(
            f"{caller}: ranks='all' in one of {world_size()} ranks, and torch.distributed is not initialised: call "
            f"torch.distributed.init_process_group before it"
        )
    return ranks == ALL


def exchange(
    what: str,
    value: Any = None,
    *,
    act: Callable[[list[Any]], Any] | None = None,
    refusal: BaseException | None = None,
    timeout_s: float | None = None,
) -> Any:
    """Bring one value of every rank together; all ranks call it, in the same order. Of one rank alone it costs nothing.

    Args:
        what: what is done, alike in all ranks, for messages: 'the save of step 100'.
        value: plain values and tensors, 4 MiB at most.
        act: called in rank 0 alone, with the values of all ranks in their order; its result, plain values and tensors,
            is returned in every rank. None returns the values.
        refusal: why this rank cannot; then nothing is done, and every rank raises.
        timeout_s: how long a rank waits for the others, and then for what rank 0 does, twice this at most; None for the
            process group's own timeout.

    Returns:
        What `act` returned, else the list of all ranks' values.

    Raises:
        KitError: a rank refused, `act` failed, or a rank did not come in time, in every rank with the same sentence,
            which names the rank; of the class that the rank raised, where it is one of the kit's. An error of another
            kind is raised as it is where it happened.
    """
    if world_size() == 1 or not _has_group():
        if refusal is not None:
            raise refusal
        return [value] if act is None else act([value])
    try:
        shared = _Exchange(what, timeout_s)
        message = {"what": what, "value": value, "refusal": _told(refusal)}
        answer, own_error = shared.lead(message, act) if shared.rank == 0 else (shared.follow(message), None)
    except RuntimeError as error:  # of the store: rank 0 has ended, or torchrun, which holds it
        raise KitError(f"{what}: the other ranks cannot be reached any more: {first_line(error)}") from error
    for own in (refusal, own_error):
        if own is not None and not isinstance(own, KitError):
            raise own
    if answer["refusal"] is not None:
        raise _raised(answer["refusal"], what)
    return answer["value"]


@contextmanager
def agreed(what: str, *, is_of_all: bool = True, timeout_s: float | None = None) -> Iterator[dict[str, Any]]:
    """Run a block in every rank, and go on behind it only where it succeeded in all of them.

    Args:
        what, timeout_s: as in `exchange`.
        is_of_all: False runs the block for this rank alone.

    Yields:
        A dict for what must be alike in all ranks, plain values by their names: {'step': 3}.

    Raises:
        KitError: the block raised in one rank, or what must be alike is not: in every rank, as in `exchange`.
    """
    alike: dict[str, Any] = {}
    try:
        yield alike
    except Exception as error:
        if is_of_all:
            exchange(what, refusal=error, timeout_s=timeout_s)
        raise
    if is_of_all:
        exchange(what, alike, act=_refuse_unlike, timeout_s=timeout_s)


def accumulation(global_batch: int, micro_batch: int) -> int:
    """Return how many micro-batches make an optimizer step of this number of ranks, so that the batch stays the same.

    Args:
        global_batch: examples of an optimizer step, of all ranks together.
        micro_batch: examples of a forward pass of one rank.

    Raises:
        KitError: they do not divide.
    """
    in_each_pass = micro_batch * world_size()
    if min(global_batch, micro_batch) < 1 or global_batch % in_each_pass:
        raise KitError(
            f"a global batch of {global_batch} is no multiple of {in_each_pass}, which {world_size()} ranks with "
            f"micro-batches of {micro_batch} make in one pass: take another micro-batch or number of ranks"
        )
    return global_batch // in_each_pass


class _Unlike(KitError):
    """Ranks do not do the same; the sentence names them."""


def _refuse_unlike(values: list[dict[str, Any]]) -> None:
    for number, one in enumerate(values):
        if one != values[0]:
            names = sorted(name for name in {*one, *values[0]} if one.get(name) != values[0].get(name))
            own, first = (", ".join(f"{name} {side.get(name)}" for name in names) for side in (one, values[0]))
            raise _Unlike(f"the ranks do not do the same: rank {number} has {own}, and rank 0 {first}")


class _Exchange:
    """One exchange: its place in the store, and its deadline.

    Every rank writes its own key. Rank 0 reads them, acts, and sets the answer; a rank that gives up sets it too. Who
    is first holds, for all: a rank that was late does what the others have done.
    """

    def __init__(self, what: str, timeout_s: float | None) -> None:
        import torch  # the trainer has it already

        group = torch.distributed.group.WORLD
        self.what, self.rank, self.size = what, rank(), world_size()
        self._store = torch.distributed.distributed_c10d._get_default_store()
        place, begun = _begun.get(group) or (_new_place(), 0)
        self._place, self._number = _begun[group] = place, begun + 1
        self._wait_s = self._store.timeout.total_seconds() if timeout_s is None else timeout_s

    def lead(self, message: dict[str, Any], act: Callable[[list[Any]], Any] | None) -> tuple[Any, BaseException | None]:
        """Gather, act and answer, as rank 0; returns the answer and what `act` raised."""
        self._store.set(self._key(0), b"here")
        others = [self._key(one) for one in range(1, self.size)]
        own_error: BaseException | None = None
        answer: dict[str, Any] = {"value": None, "refusal": None}
        if not self._wait(others, self._wait_s, or_key=self._key("answer")):
            answer["refusal"] = self._absent([one for one, key in enumerate(others, 1) if not self._store.check([key])])
        elif not self._store.check([self._key("answer")]):  # else one has given up before this rank came
            messages = [message, *(_unpacked(self._store.get(key)) for key in others)]
            answer["refusal"] = self._refusal_in(messages)
            if answer["refusal"] is None:
                values = [one["value"] for one in messages]
                try:
                    answer["value"] = values if act is None else act(values)
                except BaseException as error:  # the others must not wait for what will not come
                    own_error, answer["refusal"] = error, {**_told(error), "rank": 0}
        held = self._answer(answer)
        self._wait_for_readers()
        return held, own_error

    def follow(self, message: dict[str, Any]) -> Any:
        """Hand this rank's value over and wait for the answer."""
        try:
            packed = _packed(message)
        except KitError as error:
            packed = _packed({**message, "value": None, "refusal": _told(error)})
        self._store.set(self._key(self.rank), packed)
        answer = self._key("answer")
        if not self._wait([self._key(0)], self._wait_s, or_key=answer):
            held = self._answer({"value": None, "refusal": self._absent([0])})
        elif not self._wait([answer], 2 * self._wait_s):
            why = f"{self.what}: rank 0 was not done with it within {2 * self._wait_s:g} s"
            held = self._answer({"value": None, "refusal": _refusal(0, why)})
        else:
            held = _unpacked(self._store.get(answer))
        with suppress(RuntimeError):  # it is read; that rank 0 has not waited for this one changes nothing
            self._store.delete_key(self._key(self.rank))
            self._store.add(self._key("read"), 1)
        return held

    def _wait_for_readers(self) -> None:
        """Stay until the others have read the answer: rank 0 may hold the store, and end with its training now."""
        read, begun = self._key("read"), time.monotonic()
        while self._store.add(read, 0) < self.size - 1:
            if time.monotonic() - begun >= _READ_S:  # one has ended, or has never come
                return
            time.sleep(0.001)
        for key in (self._key(0), self._key("answer"), read):
            with suppress(RuntimeError):  # a store that cannot delete keeps it
                self._store.delete_key(key)

    def _key(self, name: int | str) -> str:
        return f"{self._place}/{self._number}/{name}"

    def _wait(self, keys: list[str], seconds: float, or_key: str | None = None) -> bool:
        """Wait until all keys are there, or the other one.

        Not with the store's own wait, during which no signal handler of Python runs.
        """
        begun = time.monotonic()
        while not self._store.check(keys):
            if or_key is not None and self._store.check([or_key]):
                return True
            waited_s = time.monotonic() - begun
            if waited_s >= seconds:
                return False
            time.sleep(min(max(0.001, waited_s / 10), _LONGEST_PAUSE_S, seconds - waited_s))
        return True

    def _answer(self, answer: dict[str, Any]) -> Any:
        """Set the answer where there is none yet; returns the one that holds."""
        try:
            packed = _packed(answer)
        except KitError as error:
            packed = _packed({"value": None, "refusal": {**_told(error), "rank": self.rank}})
        return _unpacked(self._store.compare_set(self._key("answer"), b"", packed))

    def _refusal_in(self, messages: list[dict[str, Any]]) -> dict[str, Any] | None:
        for number, one in enumerate(messages):
            if one["refusal"] is not None:
                return {**one["refusal"], "rank": number}
        for number, one in enumerate(messages):
            if one["what"] != self.what:
                why = (
                    f"rank {number} is at {one['what']}, and rank 0 at {self.what}: with ranks='all' every rank makes "
                    f"the same calls in the same order"
                )
                return _refusal(number, why)
        return None

    def _absent(self, numbers: list[int]) -> dict[str, Any]:
        who = f"rank{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:8]))}{', ...' * (len(numbers) > 8)}"
        why = (
            f"{who} of {self.size} did not come to {self.what} within {self._wait_s:g} s (the process group's timeout, "
            f"unless told otherwise): with ranks='all' every rank makes this call"
        )
        return _refusal(numbers[0] if numbers else 0, why)


def _new_place() -> str:
    """Return where in the store a process group's exchanges are.

    torchrun keeps one store over the restarts of all ranks, and what the dead ones have told is still in it.
    """
    global _groups
    _groups += 1
    return f"resumekit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{_groups}"


def _has_group() -> bool:
    torch: Any = sys.modules.get("torch")  # without it, there is no group of torch's
    return bool(torch and torch.distributed.is_available() and torch.distributed.is_initialized())


def _refusal(number: int, sentence: str) -> dict[str, Any]:
    return {"rank": number, "error": KitError.__name__, "message": sentence, "is_whole": True}


def _told(error: BaseException | None) -> Any:
    """Return an error as it is told to the other ranks."""
    if error is None:
        return None
    message = str(error) if isinstance(error, KitError) else f"{type(error).__name__}: {str(error)[:1000]}"
    return {"error": type(error).__name__, "message": plain(message), "is_whole": isinstance(error, _Unlike)}


def _raised(refusal: dict[str, Any], what: str) -> KitError:
    """Return the error of a rank, as it is raised in all; `is_whole` ones name the rank already."""
    kind = getattr(errors, str(refusal["error"]), KitError)
    is_ours = isinstance(kind, type) and issubclass(kind, KitError)
    message = refusal["message"]
    if not refusal["is_whole"]:
        message = f"no rank goes on with {what}, for rank {refusal['rank']} cannot: {message}"
    return kind(message) if is_ours else KitError(message)


def _packed(value: Any) -> bytes:
    import torch  # the trainer has it already

    file = io.BytesIO()
    try:
        torch.save(value, file)
        _unpacked(file.getvalue())
    except Exception as error:  # an object of a class, which only pickle could carry
        raise KitError(
            f"what rank {rank()} tells the others must be plain values and tensors: {first_line(error)}"
        ) from error
    if file.tell() > MAX_BYTES:
        raise KitError(
            f"what rank {rank()} tells the others takes {file.tell() / 1e6:,.1f} MB, and "
            f"{MAX_BYTES / 1e6:,.1f} MB is the most: keep its data_state smaller"
        )
    return file.getvalue()


def _unpacked(data: bytes) -> Any:
    """Return what another rank has told; nothing in the store is executed, whatever process wrote it."""
    import torch  # the trainer has it already

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
