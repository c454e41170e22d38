"""What a run's record says of the incident that it recovers from: `recovery` in run.json, and nothing for other runs.

Reads run.json, as the table of runs has it; a record may be anybody's, so every value is checked.
Try it: `grep -A9 '"recovery"' runs/<run_id>/run.json`
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..basics.causes import CAUSES
from .event_values import count, number, text
from .runs import Run, RunTable

# A chain is followed so far back: more than any budget needs.
MAX_CHAIN = 64


class Recovery(NamedTuple):
    """One recovery.

    Args:
        cause: of the incident, one of basics/causes.
        attempt: 1 for the first one in a row without progress, 2 for the next.
        first_bad_step: of the incident; None where any step is as good.
        lr_factor: what the learning rate is multiplied by on top of what the run before had; 1.0 for no cut.
        skip_data_steps: optimizer steps whose data are left out after the checkpoint.
        skip_eval_step: the evaluation that is left out once, by the step it belongs to; None for none.
    """

    cause: str
    attempt: int = 1
    first_bad_step: int | None = None
    lr_factor: float = 1.0
    skip_data_steps: int = 0
    skip_eval_step: int | None = None

    def as_fields(self) -> dict[str, Any]:
        """Return it as run.json has it."""
        return self._asdict()


def of(run: Run) -> Recovery | None:
    """Return what a run recovers from; None where it was started by a person, or its record makes no sense."""
    fields = run.record.get("recovery")
    if not isinstance(fields, dict) or text(fields.get("cause")) not in CAUSES or not count(fields.get("attempt")):
        return None
    factor = number(fields.get("lr_factor"))
    return Recovery(
        fields["cause"], fields["attempt"], count(fields.get("first_bad_step")), 1.0 if factor is None else factor,
        count(fields.get("skip_data_steps")) or 0, count(fields.get("skip_eval_step")),
    )  # fmt: skip


def chain(run: Run, table: RunTable) -> Iterator[Run]:
    """Yield a run and those that it recovers, one after the other, up to the one that a person started."""
    seen: set[str] = set()
    while run.run_id not in seen and len(seen) < MAX_CHAIN:
        yield run
        seen.add(run.run_id)
        parent = table.parent(run)
        if of(run) is None or parent is None:
            return
        run = parent
