"""A trainer that loads model and optimizer, says how long that took, and how long the checks after it do.

python load_pieces.py --out FILE --width N --resume CKPT [--bare] [--cold]

Under the kit its run folder (RESUMEKIT_RUN_DIR) holds the launcher's proof of the checkpoint already. With --bare it
loads as most trainers do: torch.load and load_state_dict. With --cold the file is dropped from the page cache first.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
from stack import make_optimizer, make_stack


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--out", "--width", "--resume"):
        parser.add_argument(name)
    for name in ("--bare", "--cold"):
        parser.add_argument(name, action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    width = int(args.width)
    stack = make_stack(width)
    optimizer = make_optimizer(stack, has_stepped=False)
    import resume_helper  # before the clock: what is measured is the load
    from resumekit.trainer import verification

    if args.cold:
        drop_from_cache(args.resume)
    started = time.monotonic()
    if args.bare:
        content = torch.load(args.resume, map_location="cpu", weights_only=True)
        stack.load_state_dict(content["model_state_dict"])
        optimizer.load_state_dict(content["optimizer_state_dict"])
        found = {"load_s": time.monotonic() - started}
    else:
        bundle = resume_helper.load_resume_bundle(stack, optimizer, ckpt_path=args.resume, log_fn=lambda _: None)
        found = {"load_s": time.monotonic() - started}
        started = time.monotonic()
        batch = torch.zeros(8, width)
        # Each layer on its own: through all of them these weights grow without end.
        assert resume_helper.check_resume(bundle, stack, dry_batch=lambda: [layer(batch) for layer in stack])
        checks = list(verification.verify(bundle.loaded))
        found["checks_s"] = time.monotonic() - started
        assert {one.verdict for one in checks} == {"passed"}, checks
    Path(args.out).write_text(json.dumps(found), encoding="utf-8")


def drop_from_cache(path: str) -> None:
    """Let the next read of a file go to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


if __name__ == "__main__":
    main()
