"""Whether a live value is the one that was saved, bit for bit; of a large tensor, at 256 places spread all over it.

Works on tensors without importing torch. Reads and writes nothing.
"""

from __future__ import annotations

from typing import Any

from ..basics.check import FAILED, PASSED, Check

PLACES = 256
MAX_NAMED = 3
# Its multiples, modulo 1, fill an interval evenly and fall in with no row's length: a fixed stride through a matrix
# of 1024 columns would look at its first column alone.
_GOLDEN = 0.6180339887498949


def outcome(name: str, pairs: list[tuple[str, Any, Any]], expected: str) -> Check:
    """Return the check of (what it is, saved value, live value), one for each thing that was loaded."""
    wrong = [key for key, saved, live in pairs if not is_alike(saved, live)]
    found = f"{len(pairs) - len(wrong)} of {len(pairs)}"
    return Check(name, FAILED if wrong else PASSED, f"{len(pairs)} {expected}", found, ", ".join(wrong[:MAX_NAMED]))


def is_alike(saved: Any, live: Any) -> bool:
    """Whether a live value is the saved one."""
    if not hasattr(saved, "reshape") or not hasattr(live, "reshape"):
        return bool(plain(saved) == plain(live))
    if tuple(saved.shape) != tuple(live.shape):
        return False
    mine, theirs = _sample(saved), _sample(live)
    mine = mine.to(theirs.dtype)  # a model in another precision took the weights over in its own
    return bool(((mine == theirs) | ((mine != mine) & (theirs != theirs))).all())


def is_same_state(saved: Any, now: Any) -> bool:
    """Whether two nested values of dicts, lists, tuples, tensors and numbers are alike."""
    if isinstance(saved, dict):
        has_keys = isinstance(now, dict) and saved.keys() == now.keys()
        return has_keys and all(is_same_state(saved[key], now[key]) for key in saved)
    if isinstance(saved, (list, tuple)):
        is_sequence = isinstance(now, (list, tuple)) and len(saved) == len(now)
        return is_sequence and all(is_same_state(*pair) for pair in zip(saved, now, strict=True))
    return is_alike(saved, now)


def plain(value: Any) -> Any:
    """Return the number that a tensor of one element holds; any other value as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "numel", lambda: 1)() == 1 else value


def first_line(error: Exception) -> str:
    """Return an error's first line, or its class where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _sample(tensor: Any) -> Any:
    flat = tensor.detach().reshape(-1)
    count = flat.numel()
    places = [int(number * _GOLDEN % 1.0 * count) for number in range(PLACES)] if count > 2 * PLACES else slice(None)
    return flat[places].cpu()
