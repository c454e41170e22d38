"""Whether two runs or two checkpoints are equal bit for bit; if not, what differs first and by how much.

Two runs: every journaled step, evaluation and new best, and their last checkpoints. Two checkpoints of any kind: files
of torch.save, safetensors, folders of them, DCP. Reads; writes nothing and runs nothing of what it reads.
Try it: `python lib/resume_helper.py --compare runs/RUN_A runs/RUN_B`
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ..base.errors import DONE, FAILED, InvalidFile, ToolMissing, UsageError, report
from ..base.files import UnreadableFile, to_json
from ..base.imports import Any
from ..base.terminal import first_few, plain, show_json, show_text
from ..checkpoint import catalog, layout
from ..checks.comparison import COUNTERS, OTHER, Comparison, Difference, compare_journals, component_of
from ..run.run_folder import Run, open_run
from ..run.run_table import RunTable
from .checkpoint_values import Opaque, Pieces, pieces_of

# Numbers of a tensor that are looked at at once, as 64-bit ones.
_AT_ONCE = 1 << 22
# What a framework pickles of its own arguments, the output folder and its time among them.
_NOT_COMPARED = frozenset({"training_args.bin"})


class TensorComparison(Comparison):
    """A comparison that knows tensors, and what of a file cannot be read."""

    def _compare_leaves(self, one: Any, other: Any, where: str, component: str) -> None:
        import torch  # the trainer has it already

        one, other = _as_tensor(one), _as_tensor(other)
        if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
            if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
                one, other = (_form(value) for value in (one, other))
            super()._compare_leaves(one, other, where, component)
            return
        self.tensors += 1
        if (difference := _of_tensors(one.detach(), other.detach(), where, component)) is not None:
            self.add(difference)


def compare(one: Path | str, other: Path | str) -> Comparison:
    """Compare two run folders, or two checkpoints: files or folders.

    Raises:
        UsageError: one is a run, the other a checkpoint.
        InvalidFile: one of them is not there, damaged, or nothing that can be compared.
    """
    paths = [Path(one), Path(other)]
    for path in paths:
        if not os.path.lexists(path):
            raise InvalidFile(f"there is no '{path}' to compare")
    runs = [os.path.lexists(path / "run.json") for path in paths]
    if runs[0] != runs[1]:
        names = f"'{paths[0]}' is {_KINDS[runs[0]]} and '{paths[1]}' {_KINDS[runs[1]]}"
        raise UsageError(f"{names}: name two runs or two checkpoints")
    found = TensorComparison()
    if runs[0]:
        left, right = (open_run(Path(os.path.realpath(path))) for path in paths)
        _compare_runs(left, right, found)
    else:
        _compare_checkpoints(paths[0], paths[1], (), found)
    if not found.values and not found.tensors:
        raise InvalidFile(f"neither '{paths[0]}' nor '{paths[1]}' holds a value that could be compared")
    return found


def compare_values(one: Any, other: Any) -> Comparison:
    """Compare two nested values in memory, tensors and plain ones."""
    found = TensorComparison()
    found.compare(one, other)
    return found


_KINDS = {True: "a run", False: "a checkpoint"}


def _compare_runs(one: Run, other: Run, found: Comparison) -> None:
    compare_journals(one, other, found)
    left, right = _last_checkpoint(one), _last_checkpoint(other)
    if left is None or right is None:
        if left is not right:
            found.add_missing("a checkpoint", COUNTERS, is_first=left is not None)
        else:
            found.notes.append("neither run has a checkpoint: only the journals were compared")
    elif left[0] != right[0]:
        where = "the last checkpoint"
        found.add(Difference(where, COUNTERS, f"of step {left[0]:,} and of step {right[0]:,}; not compared"))
    else:
        companions = one.form.companions_of(left[1].name)
        follow_links = one.form.follow_links and other.form.follow_links
        _compare_checkpoints(left[1], right[1], companions, found, follow_links=follow_links)


def _last_checkpoint(run: Run) -> tuple[int, Path] | None:
    """Return (step, path) of the last one; a run that had nothing left to do has its parent's. None without one."""
    for part, limit in RunTable(run.paths.run_dir.parent).history(run):
        try:
            steps = catalog.steps_in(part.paths.checkpoints, part.form)
        except OSError:
            continue
        if within := [(step, name) for step, name in steps if limit is None or step <= limit]:
            step, name = max(within)
            return step, part.paths.checkpoints / name
    return None


def _compare_checkpoints(
    one: Path, other: Path, companions: tuple[str, ...], found: Comparison, *, follow_links: bool | None = None
) -> None:  # fmt: skip
    """Compare two checkpoints of any kind, and the files beside them that belong to the first one's step."""
    for left, right in ((one, other), *((one.with_name(name), other.with_name(name)) for name in companions)):
        path = left
        try:
            with layout.open_checkpoint(left, follow_links=follow_links) as opened:
                path = right
                with layout.open_checkpoint(right, follow_links=follow_links) as beside:
                    _compare_pieces(pieces_of(opened), pieces_of(beside), found)
        except UnreadableFile as error:
            raise InvalidFile(f"'{path}' cannot be compared: {error}") from None


def _compare_pieces(one: Pieces, other: Pieces, found: Comparison) -> None:
    """Compare piece by piece, so that no more than two of them are in memory."""
    left_out = {name for name in one.keys() | other.keys() if os.path.basename(name) in _NOT_COMPARED}
    for name in [*one, *(name for name in other if name not in one)]:
        if name in left_out:
            continue
        if name not in one or name not in other:
            found.add_missing(name, _component_of_file(name, None), is_first=name in one)
            continue
        left, right = one[name](), other[name]()
        if isinstance(left, Opaque) and isinstance(right, Opaque):
            found.values += 1
            if left.sha256 != right.sha256:
                why = f" ({left.why})" if left.why else ""
                found.add(Difference(name, _component_of_file(name, None) or OTHER, f"other bytes{why}"))
        else:
            is_named = name and isinstance(left, (dict, list, tuple))
            found.compare(left, right, f"{name}:" if is_named else name, _component_of_file(name, left))
    if left_out:
        found.notes.append(f"not compared: {first_few(sorted(left_out), 3)} (the framework's own arguments)")


def _component_of_file(name: str, content: Any) -> str | None:
    """Return the component that all of a file is; None where the names inside say it.

    Args:
        name: of the piece; '' for a checkpoint of one file.
        content: what it holds; a dict of tensors alone is weights, unless its name says another one.
    """
    import torch  # the trainer has it already

    stem, dot, suffix = name.rpartition(".")
    if suffix == "json":
        return None
    by_name = component_of(stem if dot and "/" not in suffix else name) if name else None
    values = [value for key, value in content.items() if key != "__metadata__"] if isinstance(content, dict) else []
    return by_name or ("weights" if values and all(isinstance(value, torch.Tensor) for value in values) else None)


# Two tensors.


def _as_tensor(value: Any) -> Any:
    """Return an array of numbers of numpy as a tensor, and whatever else as it is."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, (numpy.ndarray, numpy.generic)) or value.dtype.hasobject:
        return value
    import torch

    try:
        return torch.from_numpy(numpy.ascontiguousarray(value))
    except TypeError:  # text, times
        return value.tobytes()


def _form(value: Any) -> str:
    """Return what a value is where it stands against one of another kind."""
    shape = getattr(value, "shape", None)
    return repr(value) if shape is None else f"{str(value.dtype).removeprefix('torch.')} {tuple(shape)}"


def _bits(tensor: Any) -> Any:
    """Return a tensor's bytes, (numbers, bytes of each): so NaN equals NaN, and 0.0 differs from -0.0."""
    import torch

    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).reshape(flat.numel(), -1) if flat.numel() else flat


def _dense(tensor: Any) -> Any:
    import torch

    tensor = tensor.cpu().resolve_conj().resolve_neg()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _of_tensors(one: Any, other: Any, where: str, component: str) -> Difference | None:
    """Return how two tensors differ; None where they are equal bit for bit."""
    import torch

    if one.dtype != other.dtype or one.shape != other.shape or one.layout != other.layout:
        return Difference(where, component, f"{_form(one)} and {_form(other)}")
    left, right = (_dense(tensor).reshape(-1) for tensor in (one, other))
    if torch.equal(_bits(left), _bits(right)):
        return None
    differing, nan, absolute, relative = 0, 0, 0.0, 0.0
    for begin in range(0, left.numel(), _AT_ONCE):
        pair = [tensor[begin : begin + _AT_ONCE] for tensor in (left, right)]
        is_other = (_bits(pair[0]) != _bits(pair[1])).any(dim=1)
        differing += int(is_other.sum())
        a, b = (_wide(tensor[is_other]) for tensor in pair)
        is_nan = a.isnan() != b.isnan()
        nan += int(is_nan.sum())
        size, scale = (a - b).abs(), torch.maximum(a.abs(), b.abs())
        finite = size.isfinite() & (size > 0)
        if size.isinf().any():
            absolute = relative = float("inf")
        if finite.any():
            absolute = max(absolute, float(size[finite].max()))
            relative = max(relative, float((size[finite] / scale[finite]).max()))
    words = f"{differing:,} of {left.numel():,} numbers differ"
    if nan:
        return Difference(where, component, f"{words}, {nan:,} of them NaN in one of the two")
    if not absolute:
        words += ": equal as numbers, their bits differ"
    return Difference(where, component, words, absolute, relative)


def _wide(tensor: Any) -> Any:
    import torch

    return tensor if tensor.is_complex() else tensor.to(torch.float64)


# The command.


def main(argv: list[str] | None = None) -> int:
    """Run `resume_helper.py --compare A B`; returns 0 for equal, 1 for different, else an error's code."""
    arguments = _parser().parse_args(argv)
    return report(lambda: _main(arguments), "resume_helper.py")


def _main(arguments: argparse.Namespace) -> int:
    try:
        import torch  # noqa: F401 (whether it is there)
    except ImportError as error:
        raise ToolMissing(f"--compare needs torch ({error}): run it with the Python that trains") from None
    found = compare(*arguments.compare)
    if arguments.json:
        show_json(to_json(as_json(found)).decode().rstrip("\n"))
    else:
        show_text(found.sentence())
    return DONE if found.is_equal else FAILED


def as_json(found: Comparison) -> dict[str, Any]:
    """Return a comparison as `--compare --json` prints it."""
    return {
        "equal": found.is_equal, "values": found.values, "tensors": found.tensors, "counts": dict(found.counts),
        "differences": [{name: _strict(value) for name, value in one._asdict().items()} for one in found.differences],
        "notes": [plain(note) for note in found.notes],
        "of_bar": dict(zip(("both", "seen"), found.of_bar, strict=True)) if found.of_bar else None,
    }  # fmt: skip


def _strict(value: Any) -> Any:
    return "inf" if value == float("inf") else plain(value) if isinstance(value, str) else value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="resume_helper.py --compare", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--compare", nargs=2, required=True, metavar=("A", "B"), help="two run folders or checkpoints")
    parser.add_argument("--json", action="store_true", help="print the differences as JSON")
    return parser
