"""The example's trainer, with a stamp of the monotonic clock after every step: bare or under the kit, it is the same.

python timed_example.py STAMPS_FILE TRAINER_ARGUMENT...
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "hrm_arc"


def main(stamps_file: str, arguments: list[str]) -> int:
    sys.path.insert(0, str(EXAMPLE))
    import arc_training  # late: its folder is on the path only now
    import train_arc_full_nova

    stamps: list[float] = []
    plain_step = arc_training.Training.step

    def stamped_step(job: Any) -> Any:
        outcome = plain_step(job)
        stamps.append(time.monotonic())
        return outcome

    arc_training.Training.step = stamped_step
    code = train_arc_full_nova.main(arguments)
    temp = f"{stamps_file}.tmp"
    Path(temp).write_text("\n".join(map(repr, stamps)), encoding="utf-8")
    os.replace(temp, stamps_file)
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2:]))
