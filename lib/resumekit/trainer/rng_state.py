"""The random number generators that make the next step what it is: Python's, numpy's, torch's and each GPU's.

Plain values and tensors only, so that they load with weights_only=True (numpy's own state tuple would not).
"""

from __future__ import annotations

import random
import sys
from typing import Any

_KEYS = {"python", "torch", "numpy", "cuda"}


def capture() -> dict[str, Any]:
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


def is_known(state: Any) -> bool:
    """Whether `state` is what `capture` returns, as far as its keys say."""
    return isinstance(state, dict) and {"python", "torch"} <= state.keys() and state.keys() <= _KEYS


def restore(state: dict[str, Any]) -> str:
    """Set every generator back; call this last, because building and loading things draws random numbers.

    Args:
        state: what `capture` returned.

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
