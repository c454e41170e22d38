"""Which checkpoints lie in a folder, and of which step: by their names, and by the content where all have one name.

One listing; files are opened only for a name without a step. Writes nothing.
Try it: `python lib/resume_helper.py --ckpt_dir checkpoints --dry-run`
"""

from __future__ import annotations

import collections
import contextlib
import os
from pathlib import Path

from ..base.files import UnreadableFile
from ..base.paths import ANYTHING, MANIFEST_SUFFIX, MANIFESTS, STEP
from . import layout
from .form import Form


def names_in(folder: Path) -> frozenset[str]:
    """Return all names in a folder; none where it cannot be read."""
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def with_manifest(folder: Path, names: frozenset[str]) -> frozenset[str]:
    """Return the names that have a manifest: beside them, or of folders in `manifests/` (`paths.manifest_path`).

    Args:
        names: all names in the folder.
    """
    beside = names_in(folder.parent / MANIFESTS)
    return frozenset(name for name in names if name + MANIFEST_SUFFIX in names or name + MANIFEST_SUFFIX in beside)


def steps_in(folder: Path, form: Form) -> list[tuple[int, str]]:
    """Return (step, name) of each checkpoint in a folder, in no order. Raises OSError where it cannot be listed."""
    names = frozenset(os.listdir(folder))
    return [*_named_steps(names, form), *_fixed_step(folder, names, form)]


def sorted_names(folder: Path, names: frozenset[str], form: Form) -> tuple[list[tuple[int, str]], list[str]]:
    """Return the checkpoints of a folder as (step, name), newest first, and the names that are none and look alike.

    Those are step_-1, step_1e5, Arabic digits, a newline at the end and their like. Of two checkpoints of one step
    (`model_100.pt`, `model_00100.pt`) the one that was written later is first.

    Args:
        names: all names in the folder.
    """
    steps = [*_named_steps(names, form), *_fixed_step(folder, names, form)]
    before, _, after = form.step_pattern.partition(STEP)
    before, after = before.partition(ANYTHING)[0], after.rpartition(ANYTHING)[2]
    known = {name for _, name in steps}
    odd = [
        name
        for name in names
        if name not in known and not name.endswith(MANIFEST_SUFFIX)
        and name.startswith(before) and name.rstrip().endswith(after)
    ]  # fmt: skip
    return _newest_first(steps, folder), sorted(odd)


def _named_steps(names: frozenset[str], form: Form) -> list[tuple[int, str]]:
    return [
        (step, name)
        for name in names
        if (step := form.step_of(name)) is not None
        and not (name.endswith(MANIFEST_SUFFIX) and name.removesuffix(MANIFEST_SUFFIX) in names)
    ]


def _fixed_step(folder: Path, names: frozenset[str], form: Form) -> list[tuple[int, str]]:
    """Return the checkpoint that bears the one name of all steps, with the step inside; none where that is unknown."""
    if not form.is_fixed or form.pattern not in names:
        return []
    from . import kinds  # late: few trainers write one name again and again

    try:
        step = kinds.look_inside(folder / form.pattern, form).summary.step
    except UnreadableFile:
        step = None
    return [] if step is None else [(step, form.pattern)]


def _newest_first(steps: list[tuple[int, str]], folder: Path) -> list[tuple[int, str]]:
    number = collections.Counter(step for step, _ in steps)

    def place(one: tuple[int, str]) -> tuple[int, int, str]:
        written_ns = 0
        if number[one[0]] > 1:
            with contextlib.suppress(OSError):
                written_ns = layout.identity(folder / one[1], follow_links=False).mtime_ns
        return one[0], written_ns, one[1]

    return sorted(steps, key=place, reverse=True)
