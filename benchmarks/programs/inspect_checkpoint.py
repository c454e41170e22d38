"""Read out of one checkpoint all that a resume must know, without torch: `python -I -S inspect_checkpoint.py FILE`."""

import os
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "lib"))


from resumekit.checkpoint.archive import summarize

found = summarize(sys.argv[1])
if not (found.step and found.tensors and found.optimizers):
    raise SystemExit("nothing was found in it")
