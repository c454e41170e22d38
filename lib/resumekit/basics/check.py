"""One check of a resumed run: what was expected, what was found, and the verdict.

The trainer's helpers and the sidecar write each as a `check` event into the journal; the status adds them up. Reads
nothing. Source: protocol §4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .terminal import plain

PASSED, WARNED, FAILED, UNKNOWN = "passed", "warned", "failed", "unknown"
VERDICTS = (PASSED, WARNED, FAILED, UNKNOWN)
# In the order in which a run comes by them. 'resume' is the last: the verdict on all of them together.
NAMES = (
    "rng", "data_position", "buffers", "dry_batch", "fast_eval", "weights", "optimizer", "scheduler", "scaler",
    "averages", "lr", "step", "data", "phase", "loss", "throughput", "resume",
)  # fmt: skip
WHOLE = "resume"


class Check(NamedTuple):
    """The outcome of one check.

    Args:
        name: one of NAMES.
        verdict: 'passed'; 'warned' (worth a look); 'failed' (what happened is not what was planned: with
            `resume.strict_checks` the run ends); 'unknown' (nothing to compare with).
        expected, found: plain values or short texts; None where there is none.
        why: the reason, in a sentence; empty where the two say it.
    """

    name: str
    verdict: str
    expected: Any = None
    found: Any = None
    why: str = ""

    def as_fields(self) -> dict[str, Any]:
        """Return it as the `check` event has it."""
        return self._asdict()

    def sentence(self) -> str:
        """Say it in a printable line: 'check lr failed: expected 0.001, found 0.0008 (...)'."""
        if self.name == WHOLE:
            words = f"the checks after the resume: {self.verdict}, {self.found}"
            return plain(words + (f" ({self.why})" if self.why else ""))
        compared = f"expected {self.expected}, found {self.found}" if self.expected is not None else str(self.found)
        why = f" ({self.why})" if self.why else ""
        return plain(f"check {self.name} {self.verdict}: {compared}{why}")


def overall(verdicts: Iterable[str]) -> str:
    """Return the verdict on several checks: the worst; 'unknown' where none of them could compare anything."""
    found = set(verdicts)
    return next((one for one in (FAILED, WARNED, PASSED) if one in found), UNKNOWN)


def summary(verdicts: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the status's `checks`: the verdict and the checks' names by verdict; None where there were none.

    Args:
        verdicts: name -> verdict, as a journal adds them up. The verdict is 'running' until WHOLE is among them.
    """
    if not verdicts:
        return None
    parts = {name: verdict for name, verdict in verdicts.items() if name != WHOLE}
    by_verdict = {one: [name for name in parts if parts[name] == one] for one in VERDICTS}
    return {"verdict": verdicts.get(WHOLE, "running"), **by_verdict}
