"""Which of the steps that a log tells are new ones: pure, for trainers that journal none themselves.

A sidecar's successor reads lines again; a line may speak of an older step ("saved step 400"); and some trainers count
anew in each epoch, which is progress.
Try it: `python -m pytest tests/test_sidecar.py -k anew`
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class StepOrder:
    """Remembers a step that lay behind the last one, until the next shows whether the trainer goes on from there.

    Args:
        repeats_until: byte offset in the output up to which lines may have been dealt with by a predecessor.
    """

    def __init__(self, repeats_until: int) -> None:
        self._repeats_until = repeats_until
        self._behind: int | None = None

    def new(self, found: Iterable[dict[str, Any]], last: int, read_from: int) -> list[dict[str, Any]]:
        """Return those of the found steps that are to be journaled.

        Args:
            found: fields of `step` events, in the order of the log.
            last: the step that was told last; -1 before the first.
            read_from: byte offset in the output from which on they were read.
        """
        result = []
        for fields in found:
            step = fields["step"]
            counts_anew = self._behind is not None and self._behind < step and read_from >= self._repeats_until
            if step > last or (counts_anew and step < last):
                result.append(fields)
                last, self._behind = step, None
            elif step < last:
                self._behind = step
        return result
