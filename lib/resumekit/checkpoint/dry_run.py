"""`resume_helper.py --ckpt_dir DIR --dry-run`: which checkpoint would be taken, and why not each other one.

Reads the folder, and the config of the run that it belongs to for how the files are named; imports no torch, changes
nothing. stdout is the chosen path alone (or JSON), the table goes to stderr.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from ..base.errors import DONE, NO_STABLE_CHECKPOINT, NoStableCheckpoint, UsageError, report
from ..base.files import UnreadableFile, read_json, to_json
from ..base.imports import Any
from ..base.paths import MANIFEST_SUFFIX, STEP, RunPaths, default_patterns
from ..base.terminal import note_text, plain, show_json, show_path
from ..base.values import mapping, string
from . import catalog
from .form import Form, likely_pattern
from .form import of as form_of
from .grades import WEIGHTS
from .selection import CHOSEN, PASSED, Candidate, CheckpointFolder, Selection, require, select

SHOWN_OLDER = 3
SHOWN_OTHERS = 3
# `paths.checkpoints` may be a folder in a folder.
_MOST_LEVELS = 4
_MAX_CONFIG_BYTES = 4 << 20
# A verdict as a person reads it; JSON has the word itself.
_WORDS = {PASSED: "passed over"}


def main(argv: list[str] | None = None, may_be_attested: Callable[[Path], bool] = lambda _folder: False) -> int:
    """Run the command; returns its exit code (3: no checkpoint found, or none stable).

    Args:
        argv: the command line; None for that of the process.
        may_be_attested: whether a command that goes on from the run of a folder of checkpoints attests them first.
    """

    def run() -> int:
        return _main(_parser(*default_patterns()).parse_args(argv), may_be_attested)

    return report(run, "resume_helper.py")


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


def config_of(folder: Path) -> dict[str, Any]:
    """Return the resolved config of the run that a folder of checkpoints belongs to; {} for one that lies in no run."""
    real = Path(os.path.realpath(folder))
    for run_dir in [real, *real.parents][1:_MOST_LEVELS]:
        with contextlib.suppress(UnreadableFile, ValueError):
            config = mapping(read_json(RunPaths(run_dir).resolved_json, _MAX_CONFIG_BYTES))
            named = string(mapping(config.get("paths")).get("checkpoints"))
            paths = RunPaths(run_dir, named or "checkpoints")
            if named and real in (Path(os.path.realpath(paths.checkpoints)), paths.held):
                return config
    return {}


def _line(candidate: Candidate) -> str:
    mark = "->" if candidate.verdict == CHOSEN else "  "
    step = "-" if candidate.step is None else str(candidate.step)
    grade = f"{candidate.grade}: " if candidate.grade else ""
    # Names come from a folder that others may have filled: control characters must not reach the terminal.
    verdict = _WORDS.get(candidate.verdict, candidate.verdict)
    return plain(f"{mark} {step:>12}  {verdict:<11}  {candidate.path.name}  ({grade}{candidate.reason})")


def _main(arguments: argparse.Namespace, may_be_attested: Callable[[Path], bool]) -> int:
    where, config = Path(arguments.ckpt_dir), config_of(Path(arguments.ckpt_dir))
    form = form_of(config.get("checkpoint"))
    form = form._replace(
        pattern=arguments.pattern or form.pattern, best_pattern=arguments.best_pattern or form.best_pattern
    )
    if form.is_fixed and not os.path.lexists(where / form.pattern):
        raise UsageError(f"--pattern '{plain(form.pattern)}' has no {{step}} in it, which stands for the number")
    is_default = not (arguments.pattern or arguments.best_pattern or arguments.best) and arguments.step is None
    folder = CheckpointFolder(where, None, form, would_attest=is_default and may_be_attested(where))
    with_kit = mapping(config.get("trainer")).get("loads_with_kit") if config else not _is_a_frameworks(where, form)
    selection = select(
        [folder], step=arguments.step, best=arguments.best, needs=WEIGHTS if with_kit else frozenset(),
        weights_only=not arguments.unsafe_data and bool(with_kit or not config),
    )  # fmt: skip
    if arguments.json:
        show_json(to_json(as_json(selection)).decode().rstrip("\n"))
        return DONE if selection.chosen else NO_STABLE_CHECKPOINT
    if selection.candidates:
        note_text(table(selection))
    else:
        _refuse_other_names(folder, best=arguments.best)
    show_path(require(selection, f"in '{arguments.ckpt_dir}'").path)
    return DONE


def _is_a_frameworks(folder: Path, form: Form) -> bool:
    """Whether checkpoints that lie in no run are folders or safetensors, which load_resume_bundle does not load."""
    names = [name for name in catalog.names_in(folder) if form.is_part(name)]
    return any(name.endswith(".safetensors") or os.path.isdir(folder / name) for name in names)


def _refuse_other_names(folder: CheckpointFolder, *, best: bool) -> None:
    """Raise where there are files, but none of the wanted name: with the option that would find them."""
    names, form = _file_names(folder.folder), folder.form
    if not names or any(name == form.best_pattern if best else form.is_part(name) for name in names):
        return
    others = ", ".join(map(plain, names[:SHOWN_OTHERS])) + (", ..." if len(names) > SHOWN_OTHERS else "")
    wanted = form.best_pattern if best else "<step>".join(form.pattern.split(STEP))
    option = "--best-pattern" if best else f"--pattern {_likely_pattern(names)}"
    raise NoStableCheckpoint(
        f"no file named {plain(wanted)} in '{plain(str(folder.folder))}' ({len(names)} others: {others}): give {option}"
    )


def _file_names(folder: Path) -> list[str]:
    """Return what may be checkpoints, by name, shorter ones first: model_9 stands before model_10."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise NoStableCheckpoint(f"'{plain(str(folder))}' cannot be read: {error.strerror}") from None
    kept = (name for name in names if not name.startswith(".") and not name.endswith(MANIFEST_SUFFIX))
    return sorted(kept, key=lambda name: (len(name), name))


def _likely_pattern(names: list[str]) -> str:
    """Return the pattern of most names, quoted for a shell."""
    forms = [form for name in names if name.isprintable() and (form := likely_pattern(name))]
    counted = collections.Counter(forms)
    return shlex.quote(counted.most_common(1)[0][0]) if counted else "NAME, with {step} where the number stands"


def _parser(pattern: str, best_pattern: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="resume_helper.py", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "resume_helper.py --inspect PATH says what is inside one checkpoint of any kind; --compare A B whether two "
        "runs, or two checkpoints, are equal bit for bit (it needs torch)."
    )
    parser.add_argument("--ckpt_dir", "--ckpt-dir", required=True, help="the checkpoint folder")
    parser.add_argument("--dry-run", action="store_true", required=True, help="say what would be taken, change nothing")
    parser.add_argument("--step", type=int, help="only this step")
    parser.add_argument("--best", action="store_true", help="the best checkpoint instead of the latest")
    parser.add_argument(
        "--pattern", help=f"names, {{step}} is the number (default: of the folder's run, else {pattern})"
    )
    parser.add_argument("--best-pattern", help=f"(default: the run's own, else {best_pattern})")
    parser.add_argument("--unsafe-data", action="store_true", help="for a trainer that loads without weights_only=True")
    parser.add_argument("--json", action="store_true", help="print checkpoint and candidates as JSON")
    return parser
