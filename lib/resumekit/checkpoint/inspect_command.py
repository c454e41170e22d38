"""`resume_helper.py --inspect PATH`: what is inside a checkpoint of any kind, for a person.

Reads its bytes once, for its digest or checksums and for values that are not finite; imports no torch, changes nothing.
The page goes to stdout; exit code 3, with the one reason, where it is not whole.
"""

from __future__ import annotations

import argparse
import collections
import math
from pathlib import Path

from ..base.errors import DONE, NoStableCheckpoint, report
from ..base.files import UnreadableFile, to_json
from ..base.imports import Any
from ..base.paths import manifest_path
from ..base.terminal import plain, show_json
from ..base.values import mapping
from . import form, grades, kinds, layout
from .dry_run import config_of
from .form import Form
from .grades import Grade
from .kinds import Inside

# So many tensors, keys and files are shown, the largest first.
SHOWN = 8


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code (3: it is no whole checkpoint)."""
    parser = argparse.ArgumentParser(prog="resume_helper.py", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--inspect", required=True, metavar="PATH", help="the checkpoint, a file or a folder")
    parser.add_argument("--json", action="store_true", help="print it as JSON, every tensor and file")
    return report(lambda: _main(parser.parse_args(argv)), "resume_helper.py")


def _main(arguments: argparse.Namespace) -> int:
    place = Path(arguments.inspect)
    named = form.of(mapping(config_of(place.parent)).get("checkpoint"))
    try:
        found = inspected(place, named)
    except UnreadableFile as error:
        raise NoStableCheckpoint(f"'{plain(str(place))}' is no whole checkpoint: {error}") from None
    if arguments.json:
        show_json(to_json(found).decode().rstrip("\n"))
    else:
        print("\n".join(plain(line) for line in page(found)))
    return DONE


def inspected(place: Path, named: Form) -> dict[str, Any]:
    """Return what is known of a checkpoint, as `--json` prints it. Raises UnreadableFile."""
    inside = kinds.look_inside(place, named)
    has_manifest = manifest_path(place).exists()
    how: dict[str, Any] = {"run_id": None, "needs": frozenset(), "weights_only": False, "named": named}
    try:
        grade = grades.examine(place, name_step=named.step_of(place.name), has_manifest=has_manifest, **how)
    except grades.Unattested:
        grade = grades.examine(place, name_step=named.step_of(place.name), has_manifest=False, **how)
    with layout.open_checkpoint(place, named.companions_of(place.name), named.follow_links) as opened:
        files = {name: seen.size for name, seen in opened.files.items()}
    return _fields(place, inside, grade, files)


def _fields(place: Path, inside: Inside, grade: Grade, files: dict[str, int]) -> dict[str, Any]:
    summary, known = inside.summary, grade.known
    return {
        "path": str(place), "kind": inside.kind, "grade": grade.name, "notes": list(grade.notes), "step": grade.step,
        "epoch": summary.epoch, "size": summary.total_bytes, "files": files, "keys": list(summary.keys),
        "tensors": {name: {"shape": list(shape), "dtype": dtype} for name, (shape, dtype) in summary.tensors.items()},
        "optimizers": {
            name: {"groups": groups, "parameters": number} for name, (groups, number) in summary.optimizers.items()
        },
        "finite": grade.finite, "best": summary.best, "world_size": summary.world_size,
        "not_plain_data": list(summary.unsafe),
        "manifest": None if known is None else {
            "writer": known.writer, "sha256": known.sha256, "run_id": known.run_id, "finite": known.finite,
            "created_at": known.created_at,
        },
    }  # fmt: skip


def page(found: dict[str, Any]) -> list[str]:
    """Return what `inspected` has found as lines for a person."""
    files, tensors = found["files"], found["tensors"]
    of_files = f" in {len(files)} files" if len(files) > 1 else ""
    rows = [
        ("kind", f"{found['kind']}, {found['size']:,} bytes{of_files}"),
        ("grade", "; ".join([found["grade"], *found["notes"]])),
        ("step", found["step"]),
        ("epoch", found["epoch"]),
        ("keys", _first(found["keys"])),
        ("weights", _weights(tensors)),
        ("largest", _first(_largest(tensors))),
        ("optimizer", "; ".join(
            f"{name or 'one'}: {one['groups']} groups, {one['parameters']:,} parameters"
            for name, one in found["optimizers"].items()
        )),
        ("values", {True: "finite", None: "not told whether finite"}[found["finite"]]),
        ("best", found["best"]),
        ("ranks", found["world_size"]),
        ("not plain", _first(found["not_plain_data"])),
        ("files", _first(f"{name} {size:,}" for name, size in files.items()) if len(files) > 1 else None),
        ("manifest", found["manifest"] and _manifest(found["manifest"])),
    ]  # fmt: skip
    return [
        f"{Path(found['path']).name}",
        *(f"  {name:<10} {value}" for name, value in rows if value not in (None, "")),
    ]


def _weights(tensors: dict[str, Any]) -> str:
    numbers: collections.Counter[str] = collections.Counter()
    for one in tensors.values():
        numbers[one["dtype"]] += math.prod(one["shape"])
    of_dtypes = ", ".join(f"{number:,} of {dtype}" for dtype, number in numbers.most_common())
    return f"{len(tensors):,} tensors, {sum(numbers.values()):,} numbers ({of_dtypes})" if tensors else "none by name"


def _largest(tensors: dict[str, Any]) -> list[str]:
    ordered = sorted(tensors, key=lambda name: -math.prod(tensors[name]["shape"]))
    return [f"{name} {'x'.join(map(str, tensors[name]['shape'])) or 'a number'}" for name in ordered]


def _manifest(known: dict[str, Any]) -> str:
    is_finite = {True: "finite", False: "not finite", None: "not told whether finite"}[known["finite"]]
    run = f", of '{known['run_id']}'" if known["run_id"] else ""
    return f"by {known['writer']}, {known['created_at']}{run}, {is_finite}, SHA-256 {known['sha256'][:16]}..."


def _first(names: Any) -> str:
    listed = list(names)
    more = f", and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(map(str, listed[:SHOWN])) + more
