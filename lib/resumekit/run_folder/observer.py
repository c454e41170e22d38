"""How far the sidecar of a run has come: what is not read yet cannot be judged, by age or by speed.

An observer is behind when all that had been printed half a minute ago is not read yet. That is so for one that stands
still or is dead, for a log that cannot be written, for a flood; not for a trainer that merely prints all the time.
Reads `.sidecar.json` and the size of logs/output.log.
Try it: `python -m pytest tests/test_progress.py`
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, NamedTuple

from ..basics.files import UnreadableFile, read_json
from ..basics.terminal import duration
from .event_values import count, seconds
from .run_state import State
from .runs import Run

# A sidecar reads four times a second and keeps account every five seconds; a large digest may hold it up.
BEHIND_S = 30.0


class Observer(NamedTuple):
    """Where the sidecar stands, by its own account.

    Args:
        read_bytes: how far it has read output.log; None where there is no account.
        written_s: when it wrote the account, on the run's monotonic clock; None in one of an older kit.
        caught_up_s: up to which moment all that had been printed was read.
        text_s: when the text that the trainer prints was last another.
        step_line_s: when a line that the step's pattern matches was last another.
        saved_s: when a checkpoint was last new, or renewed.
        age_s: of the account's file, by the wall clock.
    """

    read_bytes: int | None = None
    written_s: float | None = None
    caught_up_s: float | None = None
    text_s: float | None = None
    step_line_s: float | None = None
    saved_s: float | None = None
    age_s: float = 0.0


def read(run: Run) -> Observer:
    """Return the account of a run's sidecar; without one, or with one that is of another run, an empty one."""
    try:
        saved: Any = read_json(run.paths.sidecar_state)
        age_s = max(0.0, time.time() - os.stat(run.paths.sidecar_state).st_mtime)
    except (OSError, UnreadableFile):
        return Observer()
    if not isinstance(saved, dict) or saved.get("run_id") != run.run_id:
        return Observer()
    offset = count(saved.get("read_offset"))
    return Observer(
        read_bytes=count(saved.get("output_offset")) if offset is None else offset,
        written_s=seconds(saved.get("mono_s")),
        caught_up_s=seconds(saved.get("caught_up_s")),
        text_s=seconds(saved.get("text_s")),
        step_line_s=seconds(saved.get("step_line_s")),
        saved_s=seconds(saved.get("saved_s")),
        age_s=age_s,
    )


def behind(run: Run, observer: Observer, state: State, now_s: float) -> str:
    """Say in a sentence that the observer is behind; '' where it is not.

    Args:
        run: the run.
        observer: its account.
        state: the folded journal, for when the run began.
        now_s: the monotonic clock that the account is on.
    """
    size = _size(run)
    if observer.read_bytes is None:
        begun_s = (state.get("launched") or {}).get("mono_s")
        if not size or begun_s is None or now_s - begun_s <= BEHIND_S:
            return ""
        return f"no sidecar has read any of the {size} bytes of its log: nothing can be said of its speed"
    if observer.caught_up_s is None or observer.written_s is None:  # of an older kit: what is unread is all it shows
        is_behind, age_s = observer.age_s > BEHIND_S and size > observer.read_bytes, observer.age_s
    else:
        is_behind, age_s = now_s - observer.caught_up_s > BEHIND_S, now_s - observer.written_s
    if not is_behind:
        return ""
    how_far = f"has read to byte {observer.read_bytes} of {max(size, observer.read_bytes)}"
    return f"the sidecar {how_far}, its account is {duration(age_s)} old: nothing can be said of its speed"


def _size(run: Run) -> int:
    with contextlib.suppress(OSError):
        return os.stat(run.paths.output_log).st_size
    return 0
