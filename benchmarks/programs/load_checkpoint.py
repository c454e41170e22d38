"""A trainer that only starts: model and optimizer are made, then loaded; the moment at which they are goes to a file.

python load_checkpoint.py --ready FILE --width N --save FOLDER        saves step 1 with the kit's helper, is killed
python load_checkpoint.py --ready FILE --width N --resume CKPT        loads it with the kit's helper, proven
python load_checkpoint.py --ready FILE --width N --resume CKPT --bare     loads it with torch.load, unproven
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path

import torch
from stack import make_optimizer, make_stack


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--ready", "--width", "--save", "--resume"):
        parser.add_argument(name)
    parser.add_argument("--bare", action="store_true")
    args = parser.parse_args()
    stack = make_stack(int(args.width))
    optimizer = make_optimizer(stack, has_stepped=not args.resume)
    if args.bare:
        content = torch.load(args.resume, map_location="cpu", weights_only=True, mmap=True)
        stack.load_state_dict(content["model_state_dict"])
        optimizer.load_state_dict(content["optimizer_state_dict"])
    else:
        import resume_helper  # late: the bare trainer has nothing of ours

        if args.resume:
            resume_helper.load_resume_bundle(stack, optimizer, ckpt_path=args.resume)
        elif resume_helper.save_checkpoint(args.save, 1, model=stack, optimizer=optimizer) is None:
            raise SystemExit("the checkpoint to load could not be saved")
        else:
            os.kill(os.getpid(), signal.SIGKILL)  # a run that ended well would not be continued
    Path(args.ready).write_text(repr(time.monotonic()), encoding="utf-8")


if __name__ == "__main__":
    main()
