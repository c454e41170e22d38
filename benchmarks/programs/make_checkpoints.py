"""Make checkpoints to choose among: whole ones with manifests, and ten newer ones that are broken in ten ways.

python make_checkpoints.py FOLDER COUNT      COUNT good ones, then ten broken
python make_checkpoints.py FOLDER COUNT --newest-layers N   the same, the last good one of N layers
python make_checkpoints.py FILE --mb 1000    one of about that size, without a manifest
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import torch
from stack import make_optimizer, make_stack, plain_content, width_for

sys.path.append(str(Path(__file__).resolve().parents[2] / "lib"))

from resumekit.base.files import utc_now
from resumekit.checkpoint import manifest
from resumekit.checkpoint.manifest import Manifest

FIRST_STEP = 1000
# As many tensors as the example's small run has: what counts is the number of records, not their size.
LAYERS, WIDTH = 11, 8


def main(argv: list[str]) -> None:
    target = Path(argv[0])
    torch.set_num_threads(1)
    if argv[1] == "--mb":
        stack = make_stack(width_for(float(argv[2])))
        torch.save(plain_content(stack, make_optimizer(stack, has_stepped=True), FIRST_STEP), target)
        return
    target.mkdir(parents=True)
    stack = make_stack(WIDTH, LAYERS)
    optimizer = make_optimizer(stack, has_stepped=True)
    count = int(argv[1])
    for step in range(FIRST_STEP, FIRST_STEP + count):
        save(target, step, plain_content(stack, optimizer, step))
    if "--newest-layers" in argv:
        large = make_stack(WIDTH, int(argv[argv.index("--newest-layers") + 1]))
        save(target, step, plain_content(large, make_optimizer(large, has_stepped=True), step))
    for number in range(10):
        step = FIRST_STEP + count + number
        known = save(target, step, plain_content(stack, optimizer, step))
        break_it(target / known.file, known, number)


def save(folder: Path, step: int, content: dict) -> Manifest:
    """Save one whole checkpoint with its manifest, without the fsyncs: no power is cut under a benchmark."""
    path = folder / f"hrm_arc_step_{step}.pt"
    torch.save(content, path)
    data = path.read_bytes()
    known = Manifest(
        manifest.SAVE_CHECKPOINT, path.name, len(data), hashlib.sha256(data).hexdigest(), step, utc_now(), {},
        optimizer_name="AdamW", step_completed=True, finite=True,
    )  # fmt: skip
    write(path, known)
    return known


def write(path: Path, known: Manifest) -> None:
    path.with_name(path.name + ".json").write_bytes(manifest.encode(known))


def break_it(path: Path, known: Manifest, way: int) -> None:
    """Break a checkpoint in one of ten ways; its manifest stays beside it."""
    data = path.read_bytes()
    if way == 0:
        path.write_bytes(data[: len(data) // 2])
    elif way == 1:
        path.write_bytes(b"")
    elif way == 2:
        path.write_bytes(data + b"appended")
    elif way == 3:
        path.write_bytes(b"<html>not found</html>".ljust(len(data)))
    elif way == 4:
        path.write_bytes(bytes(len(data)))
    elif way == 5:
        path.unlink()
        os.mkfifo(path)
    elif way == 6:
        path.unlink()
        path.symlink_to("gone.pt")
    elif way == 7:
        path.write_bytes(data[:-200] + bytes(200))
    elif way == 8:
        write(path, known._replace(step=known.step + 1))
    else:
        write(path, known._replace(finite=False))


if __name__ == "__main__":
    main(sys.argv[1:])
