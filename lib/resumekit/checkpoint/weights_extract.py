"""The winning weights of a checkpoint alone, under the names of the model: what `artifacts/best@<N>/weights.pt` holds.

A process of its own beside the training, started by the sidecar: at a low priority, and the first to go where memory
runs out. It needs no torch. Reads a checkpoint from descriptor 0, writes one new file, and prints one line of JSON.

    python -I -S lib/resumekit/checkpoint/weights_extract.py weights.pt raw < checkpoints/model_best.pt
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

if __package__ in (None, ""):  # run by path: the package is found beside this file, last on the path
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    __package__ = "resumekit.checkpoint"

from resumekit.base.files import UnreadableFile
from resumekit.base.imports import Any
from resumekit.checkpoint import archive, layout, one_pass, weights_file
from resumekit.checkpoint.parameters import plain_path
from resumekit.checkpoint.torch_names import Tensor

# After this the process ends itself, also where nothing watches it any more.
LIMIT_S = 600
# Where trainers keep their weights: the protocol's name (§6) first.
RAW_KEYS = ("model_state_dict", "state_dict", "model")


def main(argv: list[str]) -> int:
    """Extract the weights of one checkpoint.

    Args:
        argv: OUT KIND [SHA256]: the file to make, 'raw', 'ema' or 'swa', and the digest that the checkpoint must have.

    Returns:
        0, with a line {"source_sha256", "sha256", "size", "tensors", "from_raw", "left_out"} on stdout; or 1, with
        {"error"}.
    """
    _step_back()
    out, kind, expected = Path(argv[0]), argv[1], "".join(argv[2:])
    try:
        answer = extract(out, kind, expected or None)
    except (UnreadableFile, OSError) as error:
        answer = {"error": str(error)}
    except Exception as error:  # a fault of ours must not pass for a process that was killed
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
    return 1 if "error" in answer else 0


def extract(out: Path, kind: str, expected: str | None, descriptor: int = 0) -> dict[str, Any]:
    """Write the weights of the open checkpoint to `out`, durably.

    Raises:
        UnreadableFile: its bytes are not the expected ones, it is unsafe, or it has no such weights.
        OSError: the file could not be written.
    """
    before = layout.identity(descriptor).version
    source_sha256 = one_pass.read(descriptor, "", digest=True, keeps=False).sha256
    if expected is not None and source_sha256 != expected:
        raise UnreadableFile("the checkpoint's digest differs from its manifest")
    content, unsafe, records = archive.content(descriptor)
    if unsafe:
        raise UnreadableFile(f"it holds '{unsafe[0]}', which loading with weights_only=True refuses")
    weights, from_raw, left_out = winning_weights(content, kind)
    weights_file.write(out, weights, descriptor, records)
    if layout.identity(descriptor).version != before:
        raise UnreadableFile("it changed while it was read")
    with open(out, "rb") as file:
        sha256 = one_pass.read(file.fileno(), "", digest=True, keeps=False).sha256
        size = os.fstat(file.fileno()).st_size
    return {"source_sha256": source_sha256, "sha256": sha256, "size": size, "tensors": len(weights),
            "from_raw": from_raw, "left_out": left_out}  # fmt: skip


def winning_weights(content: dict[Any, Any], kind: str) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return (weights by the model's own names, those that the average does not have, what is no tensor).

    Args:
        content: a checkpoint's content.
        kind: 'raw'; or 'ema' or 'swa': the average's tensors by name, whatever it wraps them in; what it does not keep
            (buffers, mostly) comes from the raw weights.

    Raises:
        UnreadableFile: there are no such weights, or two that could be meant.
    """
    state = _raw_state(content)
    raw = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    left_out = [str(name) for name in state if name not in raw]
    if kind == "raw":
        return raw, [], left_out
    average = _tensors_in(content.get(f"{kind}_state_dict"))
    weights, from_raw = {}, []
    for name, value in raw.items():
        winner = average.get(plain_path(name))
        if winner is None or winner.shape != value.shape:
            winner = value
            from_raw.append(name)
        weights[name] = winner
    if len(from_raw) == len(raw):
        raise UnreadableFile(f"its '{kind}_state_dict' has none of the model's weights by name")
    return weights, from_raw, left_out


def _raw_state(content: dict[Any, Any]) -> dict[Any, Any]:
    for found in (*(content.get(key) for key in RAW_KEYS), content):
        if isinstance(found, dict) and any(isinstance(name, str) and isinstance(found[name], Tensor) for name in found):
            return found
    raise UnreadableFile("it has no 'model_state_dict'")


def _tensors_in(state: Any) -> dict[str, Tensor]:
    """Return every tensor of a state by its plain name, of parts of it too ({'shadow': {...}})."""
    found: dict[str, Tensor] = {}
    left, seen = [state], set()
    while left:
        part = left.pop()
        if not isinstance(part, dict) or id(part) in seen:  # one that holds itself has no end
            continue
        seen.add(id(part))
        for name, value in part.items():
            if isinstance(value, Tensor):
                path = plain_path(str(name))
                if path in found:
                    raise UnreadableFile(f"it has two averages of '{path[:200]}': which one is meant?")
                found[path] = value
            else:
                left.append(value)
    return found


def _step_back() -> None:
    """Let the training have the machine; none of this may fail it."""
    signal.alarm(LIMIT_S)
    with contextlib.suppress(OSError):
        os.nice(10)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
