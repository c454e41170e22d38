"""Whether time went by for the training: a machine that slept, a paused virtual machine, a trainer in state T.

The sidecar beats several times a second. If hours lie between two beats, nothing else ran either, and the journal says
so: what stood still meanwhile did not hang. (On Linux the monotonic clock stands still while a laptop sleeps; that of a
paused virtual machine may go on.)
Try it: `python -m pytest tests/test_watch.py -k slept`
"""

from __future__ import annotations

from collections.abc import Callable

from ..base.imports import Any
from ..run.journal_fold import CLOCK_GAP, TRAINER_SUSPENDED, State
from ..run.liveness import TRAINER

# A beat takes half a second and a few files; a disk that holds it up longer holds up a trainer as well.
GAP_S = 60.0


class ClockGap:
    """Compares each beat with the last."""

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._paused_s: float | None = None

    def beat(self, now_s: float, append: Callable[..., bool]) -> None:
        """Journal a gap if there was one.

        Args:
            now_s: the monotonic clock.
            append: (event, **fields) writes into the run's journal.
        """
        last_s, self._last_s = self._last_s, now_s
        if last_s is not None and now_s - last_s > GAP_S:
            message = f"nothing ran for {now_s - last_s:.0f} s: the machine slept, or was held up"
            append("warning", kind=CLOCK_GAP, message=message, seconds=now_s - last_s)

    def rest(self, now_s: float, append: Callable[..., bool], *, is_paused: bool) -> None:
        """Journal that a person has taken the file `paused` away: what stood still while it was there did not hang.

        Args:
            now_s, append: as in `beat`.
            is_paused: the file is there.
        """
        if is_paused:
            self._paused_s = now_s if self._paused_s is None else self._paused_s
        elif self._paused_s is not None:
            paused_s = now_s - self._paused_s
            message = f"the file 'paused' was in its folder for {paused_s:.0f} s, and is gone"
            if append("warning", kind=CLOCK_GAP, message=message, seconds=paused_s):
                self._paused_s = None

    def see(self, suspended: list[dict[str, Any]], state: State, now_s: float, append: Callable[..., bool]) -> None:
        """Journal that the trainer is suspended, and that it goes on: the first look after CONT is not to see an age.

        Args:
            suspended: the suspended processes, as in status.json.
            state: the folded journal.
            now_s, append: as in `beat`.
        """
        pids = ", ".join(str(one["pid"]) for one in suspended if one["process"] == TRAINER)
        since_s = state.get("suspended_since_s")
        if pids and since_s is None:
            append("warning", kind=TRAINER_SUSPENDED, message=f"the trainer is suspended (state T, pid {pids})")
        elif not pids and since_s is not None:
            message = f"the trainer was suspended (state T) for {now_s - since_s:.0f} s, and goes on"
            append("warning", kind=CLOCK_GAP, message=message, seconds=max(0.0, now_s - since_s))
