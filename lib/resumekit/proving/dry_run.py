"""`resume_helper.py --ckpt_dir DIR --dry-run`: which checkpoint would be taken, and why not each other one.

Reads the folder, imports no torch, changes nothing. stdout is the chosen path alone (or JSON), the table goes to
stderr.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..basics.errors import DONE, NO_STABLE_CHECKPOINT, report
from ..basics.files import to_json
from ..basics.paths import BEST_PATTERN, STEP_PATTERN
from .checkpoints import CHOSEN, Candidate, CheckpointFolder, Selection, require, select

SHOWN_OLDER = 3


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code (3: no checkpoint found, or none stable)."""
    return report(lambda: _main(_parser().parse_args(argv)), "resume_helper.py")


def as_json(selection: Selection) -> dict[str, Any]:
    """Return the selection as `--dry-run --json` prints it: checkpoint, and candidates newest first."""
    return {
        "checkpoint": None if selection.chosen is None else str(selection.chosen.path),
        "candidates": [
            {
                "step": candidate.step,
                "path": str(candidate.path),
                "run_id": candidate.run_id,
                "verdict": candidate.verdict,
                "grade": candidate.grade,
                "reason": candidate.reason,
            }
            for candidate in selection.candidates
        ],
    }


def table(selection: Selection) -> str:
    """Return the candidates as lines for a person; of the older ones only the first few."""
    lines, older = [], 0
    for candidate in selection.candidates:
        if candidate.verdict == "older":
            older += 1
            if older > SHOWN_OLDER:
                continue
        lines.append(_line(candidate))
    if older > SHOWN_OLDER:
        lines.append(f"  ... and {older - SHOWN_OLDER} older ones")
    return "\n".join(lines)


def _line(candidate: Candidate) -> str:
    mark = "->" if candidate.verdict == CHOSEN else "  "
    step = "-" if candidate.step is None else str(candidate.step)
    grade = f"{candidate.grade}: " if candidate.grade else ""
    # Names come from a folder that anybody may have filled: control characters must not reach the terminal.
    name = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in candidate.path.name)
    return f"{mark} {step:>12}  {candidate.verdict:<7} {name}  ({grade}{candidate.reason})"


def _main(arguments: argparse.Namespace) -> int:
    folder = CheckpointFolder(Path(arguments.ckpt_dir), None, arguments.pattern, arguments.best_pattern)
    selection = select([folder], step=arguments.step, best=arguments.best, weights_only=not arguments.unsafe_data)
    if arguments.json:
        sys.stdout.write(to_json(as_json(selection)).decode())
        return DONE if selection.chosen else NO_STABLE_CHECKPOINT
    if selection.candidates:
        print(table(selection), file=sys.stderr)
    print(require(selection, f"in '{arguments.ckpt_dir}'").path)
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="resume_helper.py", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--ckpt_dir", "--ckpt-dir", required=True, help="the checkpoint folder")
    parser.add_argument("--dry-run", action="store_true", required=True, help="say what would be taken, change nothing")
    parser.add_argument("--step", type=int, help="only this step")
    parser.add_argument("--best", action="store_true", help="the best checkpoint instead of the latest")
    parser.add_argument("--pattern", default=STEP_PATTERN, help="file names, with {step} (default: %(default)s)")
    parser.add_argument("--best-pattern", default=BEST_PATTERN, help="(default: %(default)s)")
    parser.add_argument("--unsafe-data", action="store_true", help="for a trainer that loads without weights_only=True")
    parser.add_argument("--json", action="store_true", help="print checkpoint and candidates as JSON")
    return parser
