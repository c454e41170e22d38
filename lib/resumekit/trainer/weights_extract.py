"""The winning weights of a checkpoint alone, under the names of the model: what `artifacts/best@<N>/weights.pt` holds.

A process of its own beside the training, started by the sidecar under the trainer's Python: at a low priority, on
one thread, without the GPU, and the first to go where memory runs out. Reads a checkpoint from descriptor 0, writes one
new file, and prints one line of JSON.

    python lib/resumekit/trainer/weights_extract.py weights.pt raw < checkpoints/hrm_arc_best.pt
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run by path: its own folder would shadow a lab's modules, the package is found above it
    _HERE = Path(__file__).resolve().parent
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder or ".") != str(_HERE)]
    sys.path.append(str(_HERE.parents[1]))
    __package__ = "resumekit.trainer"

from resumekit.basics.files import UnreadableFile
from resumekit.proving import archive
from resumekit.proving.parameter_paths import plain_path
from resumekit.proving.proof import digest

# After this the process ends itself, also where nobody watches it any more.
LIMIT_S = 600
# Where trainers keep their weights: the protocol's name (§6) first.
RAW_KEYS = ("model_state_dict", "state_dict", "model")


def main(argv: list[str]) -> int:
    """Extract the weights of one checkpoint.

    Args:
        argv: OUT KIND [SHA256]: the file to make, 'raw', 'ema' or 'swa', and the digest that the checkpoint must have.

    Returns:
        0, with a line {"source_sha256", "sha256", "size", "tensors", "from_raw"} on stdout; or 1, with {"error"}.
    """
    _step_back()
    out, kind, expected = Path(argv[0]), argv[1], "".join(argv[2:])
    try:
        answer = extract(out, kind, expected or None)
    except (UnreadableFile, OSError) as error:
        answer = {"error": str(error)}
    except Exception as error:  # torch raises many kinds for a file that it can't load
        answer = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    print(json.dumps(answer), flush=True)
    return 1 if "error" in answer else 0


def extract(out: Path, kind: str, expected: str | None, descriptor: int = 0) -> dict[str, Any]:
    """Write the weights of the open checkpoint to `out`, durably.

    Raises:
        UnreadableFile: its bytes are not the expected ones, it is unsafe, or it has no such weights.
        OSError: the file could not be written.
    """
    before = _shape(descriptor)
    source_sha256 = digest(descriptor)
    if expected is not None and source_sha256 != expected:
        raise UnreadableFile("the checkpoint's digest differs from its manifest")
    if unsafe := archive.summarize(descriptor).unsafe:
        raise UnreadableFile(f"it holds '{unsafe[0]}', which loading with weights_only=True refuses")
    try:
        import torch  # the trainer's; the digest comes before it
    except ImportError as error:
        raise UnreadableFile(f"'{sys.executable}' has no torch (trainer.python says which Python it is)") from error
    torch.set_num_threads(1)
    path = f"/proc/self/fd/{descriptor}"
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    weights, from_raw = winning_weights(content, kind)
    with open(out, "xb") as file:
        torch.save(weights, file)
        file.flush()
        os.fsync(file.fileno())
    if _shape(descriptor) != before:
        raise UnreadableFile("it changed while it was read")
    with open(out, "rb") as file:
        sha256 = digest(file.fileno())
    size = os.stat(out).st_size
    return {"source_sha256": source_sha256, "sha256": sha256, "size": size, "tensors": len(weights),
            "from_raw": from_raw}  # fmt: skip


def winning_weights(content: Any, kind: str) -> tuple[dict[str, Any], list[str]]:
    """Return (weights by the model's own names, the names among them that the average does not have).

    Args:
        content: a checkpoint's content.
        kind: 'raw'; or 'ema' or 'swa': the average's tensors by name, whatever it wraps them in; what it does not keep
            (buffers, mostly) comes from the raw weights.

    Raises:
        UnreadableFile: there are no such weights, or two that could be meant.
    """
    raw = _raw_weights(content)
    if kind == "raw":
        return {name: _compact(value) for name, value in raw.items()}, []
    average: dict[str, Any] = {}
    _collect(content.get(f"{kind}_state_dict"), average)
    weights, from_raw = {}, []
    for name, value in raw.items():
        winner = average.get(plain_path(name))
        if winner is None or getattr(winner, "shape", None) != getattr(value, "shape", ()):
            winner = value
            from_raw.append(name)
        weights[name] = _compact(winner)
    if len(from_raw) == len(raw):
        raise UnreadableFile(f"its '{kind}_state_dict' has none of the model's weights by name")
    return weights, from_raw


def _raw_weights(content: Any) -> Mapping[str, Any]:
    if isinstance(content, Mapping):
        for found in (*(content.get(key) for key in RAW_KEYS), content):
            if isinstance(found, Mapping) and any(map(_is_tensor, found.values())):
                return found
    raise UnreadableFile("it has no 'model_state_dict'")


def _collect(state: Any, found: dict[str, Any]) -> None:
    """Take every tensor of a state by its plain name, from parts of it too ({'shadow': {...}})."""
    for name, value in state.items() if isinstance(state, Mapping) else ():
        if isinstance(value, Mapping):
            _collect(value, found)
        elif _is_tensor(value):
            path = plain_path(str(name))
            if path in found:
                raise UnreadableFile(f"it has two averages of '{path}', and nobody can tell which one is meant")
            found[path] = value


def _compact(value: Any) -> Any:
    """Return a tensor without the rest of a larger storage that it is a view of: torch.save would write all of that."""
    is_view = _is_tensor(value) and value.untyped_storage().nbytes() > value.numel() * value.element_size()
    return value.clone() if is_view else value


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "untyped_storage")


def _shape(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _step_back() -> None:
    """Let the training have the machine; none of this may fail it."""
    signal.alarm(LIMIT_S)
    os.environ.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    with contextlib.suppress(OSError):
        os.nice(10)  # 19 would take minutes for the import of torch where every core is busy
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
