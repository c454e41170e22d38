#!/usr/bin/env python3
"""The entry point for trainers: save and load checkpoints, beat, write into the journal. Re-exports, no logic.

In a trainer:
    from resume_helper import load_resume_bundle, check_resume, save_checkpoint, heartbeat_writer, make_run_id
    from resume_helper import seal_checkpoint  # for what a framework saves
On the command line, without torch:
    python lib/resume_helper.py --ckpt_dir runs/EXP-01_.../checkpoints --dry-run
    python lib/resume_helper.py --inspect runs/EXP-01_.../checkpoints/checkpoint-100
and with it:
    python lib/resume_helper.py --compare RUN_OR_CHECKPOINT_A RUN_OR_CHECKPOINT_B
"""

import os
import sys

# Last, never first: a lab's own schema.py or config.py must stay what its trainer imports.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != _HERE] + [_HERE]

from resumekit.trainer.averages import SwaCycle, SwaTail, average_of  # noqa: E402
from resumekit.trainer.heartbeat import heartbeat_writer, make_status_payload  # noqa: E402
from resumekit.trainer.learning_rate import used_lr  # noqa: E402
from resumekit.trainer.loading import ResumeBundle, load_resume_bundle  # noqa: E402
from resumekit.trainer.ranks import accumulation  # noqa: E402
from resumekit.trainer.resume_checks import check_resume  # noqa: E402
from resumekit.trainer.sampler import StepSampler  # noqa: E402
from resumekit.trainer.saving import save_checkpoint  # noqa: E402
from resumekit.trainer.sealing import seal_checkpoint  # noqa: E402
from resumekit.trainer.sharded import save_sharded  # noqa: E402
from resumekit.trainer.trainer_env import journal_event, make_run_id  # noqa: E402

__all__ = [
    "ResumeBundle",
    "StepSampler",
    "SwaCycle",
    "SwaTail",
    "accumulation",
    "average_of",
    "check_resume",
    "heartbeat_writer",
    "journal_event",
    "load_resume_bundle",
    "make_run_id",
    "make_status_payload",
    "save_checkpoint",
    "save_sharded",
    "seal_checkpoint",
    "used_lr",
]

if __name__ == "__main__":
    if any(word.partition("=")[0] == "--inspect" for word in sys.argv[1:]):
        from resumekit.checkpoint.inspect_command import main
    elif "--compare" in sys.argv[1:]:
        from resumekit.trainer.comparison import main
    else:
        from functools import partial

        from resumekit.checkpoint import dry_run
        from resumekit.run.unattested import may_be_attested_in

        main = partial(dry_run.main, may_be_attested=may_be_attested_in)

    raise SystemExit(main())
