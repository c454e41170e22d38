"""Files that look like checkpoints and match no pattern: a run that has left some is not begun again from step 0.

Nor is it silently gone on from an older one. Looks in the run's folder and in the folders that the trainer's command
names, at names, sizes and times alone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from ..basics.paths import step_of_name
from .event_values import seconds_of
from .run_state import State
from .runs import Run

_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".tar", ".pkl", ".npz", ".msgpack",
             ".h5", ".distcp", ".metadata")  # fmt: skip
# Not the folder of a data set or of a cache, into which a trainer may have downloaded weights.
_SAVES_THERE = re.compile("^-.*(?:out|save|ckpt|checkpoint|work|exp|run)", re.IGNORECASE)
# torchtitan's step-10/, Transformers' checkpoint-500/: a step's files lie in a folder of their own.
_STEP_FOLDER = re.compile("(?:[a-z_-]*(?:step|iter|epoch|checkpoint|ckpt))?[-_=]?[0-9]{1,12}", re.IGNORECASE)
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
    """

    path: str
    pattern: str | None
    is_folder: bool = False

    @property
    def has_other_numbers(self) -> bool:
        """Whether the name has a number beside its step: `epoch=2-step=120.ckpt`."""
        return any(sign.isdigit() for sign in os.path.splitext(self.pattern or "")[0])

    @property
    def words(self) -> str:
        fits = "its name has no step, which checkpoint.pattern needs"
        if self.is_folder:
            fits = f"it is a part of a folder '{self.pattern}', and checkpoint.pattern fits the name of one file"
        elif self.pattern:
            others = ", and others only where their other numbers are the same" if self.has_other_numbers else ""
            fits = f"checkpoint.pattern '{self.pattern}' would fit it{others}"
        return f"'{self.path}' looks like a checkpoint, was written by this run, and matches no pattern ({fits})"


def newest(run: Run) -> Stray | None:
    """Return the newest file that looks like a checkpoint of this run and that no pattern matches; None without one."""
    begun_s = seconds_of(run.created_at) - CLOCK_SLACK_S
    found: tuple[float, str] | None = None
    for path in _files(run):
        try:
            seen = os.lstat(path)
        except OSError:
            continue
        if seen.st_size and seen.st_mtime >= begun_s and (found is None or seen.st_mtime > found[0]):
            found = seen.st_mtime, path
    if found is None:
        return None
    inside = os.fspath(run.paths.run_dir) + os.sep
    path = found[1].removeprefix(inside)
    folder = os.path.basename(os.path.dirname(path))
    if _STEP_FOLDER.fullmatch(folder):
        return Stray(path, _pattern(folder), is_folder=True)
    return Stray(path, _pattern(os.path.basename(path)))


def lost(run: Run, state: State) -> str | None:
    """Return what would be lost by beginning anew where a run has trained for long and no checkpoint of it is found."""
    trained_s = state.get("step_mono_s", 0.0) - state.get("first_step_mono_s", 0.0)
    if trained_s <= MAX_LOST_S:
        return None
    where = f"'{run.paths.checkpoints_name}' by checkpoint.pattern '{run.step_pattern}'"
    return (
        f"it has trained for {trained_s / 3600:.1f} h, to step {state['step']}, and no checkpoint of it is found in "
        f"{where}"
    )


def newer(run: Run, step: int, chosen: os.PathLike[str]) -> Stray | None:
    """Return a file that looks like a later checkpoint than the chosen one and that no pattern matches; else None.

    One whose number is higher, and that was written after it, in the run's folder of checkpoints. A file without a
    number, such as last.ckpt, is often written beside the others, and says nothing.

    Args:
        step: of the chosen checkpoint.
        chosen: its file.
    """
    folder = run.paths.checkpoints
    found: tuple[int, str, bool] | None = None
    try:
        since_s = os.lstat(chosen).st_mtime
        names = os.listdir(folder)
    except OSError:
        return None
    for name in names:
        is_folder = _STEP_FOLDER.fullmatch(name) is not None
        if not (is_folder or name.lower().endswith(_SUFFIXES)) or step_of_name(name, run.step_pattern) is not None:
            continue
        number = _last_number(name)
        if number is None or number <= max(step, found[0] if found else 0) or name == run.best_pattern:
            continue
        with contextlib.suppress(OSError):
            if os.lstat(folder / name).st_mtime > since_s:
                found = number, name, is_folder and os.path.isdir(folder / name)
    return Stray(f"{run.paths.checkpoints_name}/{found[1]}", _pattern(found[1]), found[2]) if found else None


def _files(run: Run) -> Iterator[str]:
    left = MAX_ENTRIES
    own = os.fspath(run.paths.run_dir)
    for folder in dict.fromkeys((own, *_named_folders(run))):
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
    return name.startswith(".") or (place == own and name in ("artifacts", "claims", "dataset"))


def _named_folders(run: Run) -> Iterator[str]:
    """Yield the folders that the trainer's command saves in, by the names of its options, beside the run's own."""
    argv, cwd = run.record.get("argv"), run.record.get("cwd")
    runs = os.path.realpath(run.paths.run_dir.parent)
    words = [word for word in argv if isinstance(word, str)] if isinstance(argv, list) and isinstance(cwd, str) else []
    for before, word in itertools.pairwise(words):
        option, _, name = word.partition("=") if word.startswith("-") else (before, "", word)
        if not name or "\0" in name or not _SAVES_THERE.search(option):
            continue
        path = os.path.realpath(os.path.join(cwd, name))
        is_too_wide = path == os.path.realpath(cwd) or runs == path or runs.startswith(path + os.sep)
        if os.path.isdir(path) and not is_too_wide and not path.startswith(runs + os.sep):
            yield path


def _numbers(name: str) -> list[re.Match[str]]:
    return list(re.finditer("[0-9]{1,12}", os.path.splitext(name)[0]))


def _last_number(name: str) -> int | None:
    numbers = _numbers(name)
    return int(numbers[-1][0]) if numbers else None


def _pattern(name: str) -> str | None:
    """Return a name with its last number taken for the step."""
    numbers = _numbers(name)
    if not numbers:
        return None
    start, end = numbers[-1].span()
    return f"{name[:start]}{{step}}{name[end:]}"
