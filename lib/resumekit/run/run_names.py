"""The names of runs: `EXP-03_droppath_base_resume@40000_20261122-1735`, made and read.

Protocol §3: a fresh run is `<EXP>[_<name>]_<stamp>`, a resumed one `<EXP>[_<base name>]_resume@<step>_<stamp>`. The
stamp is local time, as `date` gives it; nothing is ever ordered by it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection

from ..base.errors import UsageError
from ..base.imports import NamedTuple
from ..base.paths import STEP_DIGITS

_NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"
# Up to its first underscore, which separates it from the name: what a folder's name alone says of an experiment.
_FIRST_PART = "[A-Za-z0-9][A-Za-z0-9.-]*"
_EXPERIMENT = f"{_FIRST_PART}(?:_{_NAME})?"
_STAMP = r"[0-9]{8}-[0-9]{4}(?:-[0-9]+)?"
_RUN_ID = re.compile(
    f"(?P<experiment>{_FIRST_PART}?)(?:_(?P<name>{_NAME}?))??(?:_resume@(?P<step>[0-9]{{1,{STEP_DIGITS}}}))?(?:_(?P<stamp>{_STAMP}))?"
)
# A folder's name may have 255 bytes; the rest is for what is put before and behind it (temp names, pins).
MAX_NAME = 80


class RunName(NamedTuple):
    """What a run folder's name says.

    Args:
        experiment: 'EXP-03'.
        name: 'droppath_base', or None.
        step: the step that it was resumed at, or None.
        stamp: '20261122-1735', or None in a folder that the kit did not make.
    """

    experiment: str
    name: str | None = None
    step: int | None = None
    stamp: str | None = None

    def __str__(self) -> str:
        parts = [self.experiment, self.name, None if self.step is None else f"resume@{self.step}", self.stamp]
        return "_".join(part for part in parts if part)

    @property
    def base(self) -> str:
        """The folder name of the run it says it was resumed from: everything before `_resume@`."""
        return str(RunName(self.experiment, self.name))


def parse_run_name(text: str, experiments: Collection[str] = ()) -> RunName | None:
    """Read a run folder's name; None if it is not of the protocol's form.

    Args:
        text: the name.
        experiments: the known ones: the longest that the name begins with is its experiment. Without one it is what
            stands before the first underscore.
    """
    match = _RUN_ID.fullmatch(text)
    if not match:
        return None
    step = match["step"]
    read = RunName(match["experiment"], match["name"], int(step) if step else None, match["stamp"])
    known = [name for name in experiments if f"{read.base}_".startswith(f"{name}_")]
    longest = max(known, key=len, default=read.experiment)
    return read._replace(experiment=longest, name=read.base[len(longest) + 1 :] or None)


def check_experiment(text: str) -> str:
    """Return `text` if it may name an experiment; UsageError otherwise, so that nothing can leave `runs/`."""
    if len(text) > MAX_NAME or not re.fullmatch(_EXPERIMENT, text):
        raise UsageError(
            f"'{_shown(text)}' is not an experiment name: letters, digits, '.', '_' and '-', beginning with a letter "
            f"or digit, also behind the first '_', at most {MAX_NAME} long"
        )
    return text


def check_name(text: str, origin: str = "--name") -> str:
    """Return `text` if it may name a run; UsageError, with where it was given, otherwise."""
    if len(text) > MAX_NAME or not re.fullmatch(_NAME, text):
        raise UsageError(
            f"'{_shown(text)}' is not a run name: letters, digits, '.', '_' and '-', beginning with a letter or digit, "
            f"at most {MAX_NAME} long ({origin})"
        )
    return text


def make_run_id(exp_name: str, parent_run_id: str | None = None, resume_step: int | None = None) -> str:
    """Make a run id by protocol §3; the folder is claimed by the process that makes it, with plain mkdir.

    Args:
        exp_name: the experiment, 'EXP-03', or the experiment and a name, 'EXP-03_droppath_base'.
        parent_run_id: the run that is resumed; its name, without step and stamp, becomes the base name.
        resume_step: the step that is resumed at, in optimizer steps; needed with `parent_run_id`.

    Returns:
        'EXP-01_20261122-1735' or 'EXP-03_droppath_base_resume@40000_20261122-1735'.

    Raises:
        UsageError: a name that could not be a folder of ours, or a parent without a step.
    """
    own = parse_run_name(exp_name)
    if own is None or own.step is not None or own.stamp is not None:
        check_experiment(exp_name)
        own = RunName(exp_name)
    stamp = time.strftime("%Y%m%d-%H%M")
    if parent_run_id is None and resume_step is None:
        return str(RunName(own.experiment, own.name, None, stamp))
    if resume_step is None or resume_step < 0:
        raise UsageError(f"make_run_id: resuming '{parent_run_id}' needs resume_step, the step it is resumed at")
    parent = parse_run_name(parent_run_id) if parent_run_id else None
    name = own.name or (parent.name if parent else None)
    return str(RunName(own.experiment, name, resume_step, stamp))


def _shown(text: str) -> str:
    """Return another user's text so that it can do nothing to a terminal."""
    shown = text.encode("unicode_escape", "backslashreplace").decode()
    return shown if len(shown) <= 60 else shown[:57] + "..."
