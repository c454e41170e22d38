"""Files that look like checkpoints and match no pattern: a run that has left some is not begun again from step 0.

Nor is it silently gone on from an older one. Looks in the run's folder and in the folders that the trainer's command
names, at names, sizes and times alone.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..base.imports import NamedTuple
from ..base.paths import HELD, STEP_DIGITS
from ..base.values import epoch_s, string, strings
from ..checkpoint import layout
from ..checkpoint.form import likely_pattern
from .journal_fold import State
from .run_folder import Run

_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".tar", ".pkl", ".npz", ".msgpack",
             ".h5", ".distcp", ".metadata")  # fmt: skip
# An option of the command that names a place for saves (`--output_dir X`, Hydra's `trainer.save_dir=X`). A word without
# an option is known by its own name, `out`. Not the folder of a data set or cache: weights may be downloaded there.
_SAVES_THERE = "(?i)out|save|ckpt|checkpoint|work|exp|run"
# torchtitan's step-10/, Transformers' checkpoint-500/: a step's files lie in a folder of their own.
_STEP_FOLDER = "(?i)(?:[a-z_-]*(?:step|iter|epoch|checkpoint|ckpt))?[-_=]?[0-9]+"
MAX_ENTRIES = 5000
MAX_DEPTH = 4
# Clocks of a network drive and of its host may differ by so much.
CLOCK_SLACK_S = 5.0
# What has trained for longer has saved somewhere, or should have: a person looks before it begins at 0.
MAX_LOST_S = 3600.0


class Stray(NamedTuple):
    """A file that looks like a checkpoint.

    Args:
        path: where it lies, relative to the run's folder where it lies in there.
        pattern: the `checkpoint.pattern` that would fit its name; None where its name has no number.
        is_folder: its step is in the name of the folder that it lies in, and the pattern is that folder's.
        meant: why it is not found though its name fits; '' for any other.
    """

    path: str
    pattern: str | None
    is_folder: bool = False
    meant: str = ""

    @property
    def has_other_numbers(self) -> bool:
        """Whether the name has a number beside its step: `epoch=2-step=120.ckpt`."""
        return any(sign.isdigit() for sign in os.path.splitext(self.pattern or "")[0])

    @property
    def words(self) -> str:
        begin = f"'{self.path}' looks like a checkpoint, was written by this run, and"
        if self.meant:
            return f"{begin} {self.meant}"
        name = os.path.basename(self.path)
        fits = f"its name has no step: checkpoint.pattern '{name}' takes it where its step stands inside"
        if any(sign.isdigit() for sign in name):
            fits = f"its name has no step, a number of at most {STEP_DIGITS} digits"
        if self.is_folder:
            fits = f"checkpoint.pattern '{self.pattern}' would fit the folder that it is a part of"
        elif self.pattern:
            others = ", and others only where their other numbers are the same" if self.has_other_numbers else ""
            fits = f"checkpoint.pattern '{self.pattern}' would fit it{others}"
        return f"{begin} matches no pattern ({fits})"


def newest(run: Run) -> Stray | None:
    """Return the newest file that looks like a checkpoint of this run and is none by `checkpoint.pattern`; else None.

    A file whose name fits, but which lies in another folder, is none either; nor is the best, which has no step.
    """
    begun_s = epoch_s(run.created_at) - CLOCK_SLACK_S
    found: tuple[float, str] | None = None
    folder, copy = os.fspath(run.paths.checkpoints), _copy_to_begin_from(run)
    for path in _files(run):
        if path.startswith(f"{folder}{os.sep}") and run.form.is_part(path[len(folder) + 1 :].partition(os.sep)[0]):
            continue  # a checkpoint, or a file in one that is a folder
        try:
            seen = layout.identity(Path(path), follow_links=False)
        except OSError:
            continue
        written_s = seen.mtime_ns / 1e9
        if copy is not None and path == copy[0] and written_s <= copy[1]:
            continue
        if seen.size and written_s >= begun_s and (found is None or written_s > found[0]):
            found = written_s, path
    return None if found is None else _stray(run, found[1])


def _copy_to_begin_from(run: Run) -> tuple[str, float] | None:
    """Return where the kit put the checkpoint that a run began from (`trainer.checkpoint_in`), and when it was whole.

    The trainer may write a checkpoint of its own there, later. The shim takes the session's lock after the copy.
    """
    place = string(run.setting("trainer", "checkpoint_in"))
    if place is None:
        return None
    launched_s = math.inf  # a run of before this lock: nothing tells the copy from what was written over it
    with contextlib.suppress(OSError):
        launched_s = os.lstat(run.paths.session_lock).st_mtime_ns / 1e9
    return os.path.abspath(run.paths.run_dir / place), launched_s


def _stray(run: Run, file: str) -> Stray:
    """Return what is said of a file that `newest` has found."""
    path = file.removeprefix(os.fspath(run.paths.run_dir) + os.sep)
    folder, name = os.path.basename(os.path.dirname(path)), os.path.basename(path)
    if name == run.form.best_pattern and path == f"{run.paths.checkpoints_name}/{name}":
        return Stray(path, None, meant="is the best by its name, which resume.sh --best takes")
    if run.form.step_of(name) is not None or name == run.form.pattern:
        where = f"does not lie in '{run.paths.checkpoints_name}', where the kit looks for it"
        return Stray(
            path, likely_pattern(name), meant=f"{where} ({{checkpoints_dir}} in trainer.command names that folder)"
        )
    if re.fullmatch(_STEP_FOLDER, folder):
        return Stray(path, likely_pattern(folder), is_folder=True)
    return Stray(path, likely_pattern(name))


def lost(run: Run, state: State) -> str | None:
    """Return what would be lost by beginning anew where a run has trained for long and no checkpoint of it is found."""
    trained_s = state.get("step_mono_s", 0.0) - state.get("first_step_mono_s", 0.0)
    if trained_s <= MAX_LOST_S:
        return None
    where = f"'{run.paths.checkpoints_name}' by checkpoint.pattern '{run.form.pattern}'"
    return (
        f"it has trained for {trained_s / 3600:.1f} h, to step {state['step']}, and no checkpoint of it is found in "
        f"{where}"
    )


def newer(run: Run, step: int, chosen: Path) -> Stray | None:
    """Return a file that looks like a later checkpoint than the chosen one and that no pattern matches; else None.

    One whose number is higher, and that was written after it, in the run's folder of checkpoints. A file without a
    number, such as last.ckpt, is often written beside the others, and says nothing; but where the run has no checkpoint
    of its own and goes on from an ancestor's, it is all that there is of the run.

    Args:
        step: of the chosen checkpoint.
        chosen: its file.
    """
    folder = run.paths.checkpoints
    found: tuple[int, str, bool] | None = None
    try:
        since_ns = layout.identity(chosen, follow_links=False).mtime_ns
        names = os.listdir(folder)
    except OSError:
        return None
    for name in names:
        is_folder = re.fullmatch(_STEP_FOLDER, name) is not None
        if not (is_folder or name.lower().endswith(_SUFFIXES)) or run.form.is_part(name):
            continue
        number = _last_number(name)
        if number is None or number <= max(step, found[0] if found else 0) or name == run.form.best_pattern:
            continue
        with contextlib.suppress(OSError):
            if layout.identity(folder / name, follow_links=False).mtime_ns > since_ns:
                found = number, name, is_folder and os.path.isdir(folder / name)
    if found is None:
        return newest(run) if os.fspath(folder) != os.path.dirname(os.path.abspath(chosen)) else None
    return Stray(f"{run.paths.checkpoints_name}/{found[1]}", likely_pattern(found[1]), found[2])


def _files(run: Run) -> Iterator[str]:
    left = MAX_ENTRIES
    own = os.fspath(run.paths.run_dir)
    for folder in dict.fromkeys((own, *_named_places(run))):
        if folder.lower().endswith(_SUFFIXES) and os.path.isfile(folder):
            yield folder
        for place, folders, names in os.walk(folder):
            depth = place.removeprefix(folder).count(os.sep)
            is_cut = depth >= MAX_DEPTH
            folders[:] = [] if is_cut else sorted(one for one in folders if not _is_no_place(place, one, own))
            for name in names:
                left -= 1
                if left < 0:
                    return
                if name.lower().endswith(_SUFFIXES):
                    yield os.path.join(place, name)


def _is_no_place(place: str, name: str, own: str) -> bool:
    return name.startswith(".") or (place == own and name in ("artifacts", "claims", "dataset", HELD))


def _named_places(run: Run) -> Iterator[str]:
    """Yield the folders and files that the trainer's command saves in, by its words, beside the run's own folder."""
    words, cwd = strings(run.record.get("argv")), string(run.record.get("cwd"))
    if cwd is None:
        return
    runs = os.path.realpath(run.paths.run_dir.parent)
    for before, word in itertools.pairwise(words):
        name = _saved_in(before, word)
        if not name or "\0" in name:
            continue
        path = os.path.realpath(os.path.join(cwd, name))
        is_too_wide = path == os.path.realpath(cwd) or runs == path or runs.startswith(path + os.sep)
        if os.path.exists(path) and not is_too_wide and not path.startswith(runs + os.sep):
            yield path


def _saved_in(before: str, word: str) -> str | None:
    """Return the place that a word of a command names for what is saved; None where it names none."""
    if "=" in word:
        option, _, name = word.partition("=")
        return name if re.search(_SAVES_THERE, option) else None
    if word.startswith("-"):
        return None
    if before.startswith("-"):
        return word if re.search(_SAVES_THERE, before) else None
    return word if re.match(_SAVES_THERE, os.path.basename(word.rstrip("/"))) else None


def _numbers(name: str) -> list[re.Match[str]]:
    return list(re.finditer("[0-9]+", os.path.splitext(name)[0]))


def _last_number(name: str) -> int | None:
    numbers = _numbers(name)
    return int(numbers[-1][0]) if numbers else None
