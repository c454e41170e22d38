"""The words that records share: components and what is done with them, causes of an end, verdicts of a check."""

from __future__ import annotations

from collections.abc import Mapping

from .imports import Any, NamedTuple
from .terminal import plain
from .values import one_of

LOAD = "load"
PARTIAL = "partial"  # by name and shape
REDERIVE = "rederive"  # the trainer works it out from the step
REFIT = "refit"  # a new function of the step, which is kept
FRESH = "fresh"  # from the weights just loaded
RESET = "reset"  # as newly made
SWAP = "swap"  # another optimizer takes over, its predecessor's state is left
ABSENT = "absent"  # not in the checkpoint, or not used any more

# The further to the right, the less of the checkpoint is used: of two changes the one that keeps less decides.
KEEPS_LESS = (LOAD, REDERIVE, PARTIAL, REFIT, FRESH, RESET, SWAP, ABSENT)

COUNTERS = ("global_step", "epoch", "best_val_loss")
# Each component, and the checkpoint's keys that hold it (protocol §6; one of the counters is enough).
KEYS: dict[str, tuple[str, ...]] = {
    "weights": ("model_state_dict",),
    "optimizer": ("optimizer_state_dict",),
    "scheduler": ("scheduler_state_dict",),
    "scaler": ("scaler_state_dict",),
    "ema": ("ema_state_dict",),
    "swa": ("swa_state_dict",),
    "counters": COUNTERS,
    "rng": ("rng_state",),
    "data_position": ("data_state",),
}
# Words in x-on-resume that choose between several effects, instead of being one.
DIRECTIONS = ("enable", "disable", "increase", "decrease", "otherwise")
# What a plan may say of each.
ALLOWED: dict[str, tuple[str, ...]] = {
    "weights": (LOAD, PARTIAL, RESET),
    "optimizer": (LOAD, PARTIAL, RESET, SWAP, ABSENT),
    "scheduler": (LOAD, REFIT, RESET, ABSENT),
    "scaler": (LOAD, RESET, ABSENT),
    "ema": (LOAD, PARTIAL, FRESH, RESET, ABSENT),
    "swa": (LOAD, PARTIAL, FRESH, RESET, ABSENT),
    "counters": (LOAD, RESET, ABSENT),
    "rng": (LOAD, RESET, ABSENT),
    "data_position": (LOAD, REDERIVE, RESET, ABSENT),
}
# How parameters that a checkpoint lacks begin: as their module made them, or by kaiming_uniform_ (protocol §6).
NEW_PARAMS = ("module", "kaiming")


# Why a run is ended or taken up again: the classes of causes, and what is done about each.
#
# The words stand in the `abort` and `recovery` events, in status.json and in `recover.cut_lr_on`. Reads nothing.
# Source: protocol §12; docs/watch.md has the table for people.

# What the rules find in a live run, and stop it for.
NONFINITE, DIVERGED, THROUGHPUT, OOM, EVAL, HANG = "nonfinite", "diverged", "throughput", "oom", "eval", "hang"
# What is found of a trainer that ended by itself.
DIED, CRASH_LOOP = "died", "crash_loop"
# What a resumed run was stopped for that its plan did not hold for.
CHECKS_FAILED = "checks_failed"
# The kind of the warning that no step of a trainer is read: the sidecar says it, else the watcher.
UNSEEN = "unseen"
# The kind of the warning that a trainer goes on from a checkpoint of its own run, not from what it was told.
RESTARTED = "restarted_in_place"

ENDED_BY_ITSELF = frozenset({DIED, CRASH_LOOP})
CAUSES = frozenset({NONFINITE, DIVERGED, THROUGHPUT, OOM, EVAL, HANG, CHECKS_FAILED}) | ENDED_BY_ITSELF
# The training itself went wrong: a recovery begins from before the first bad step.
REPLAYED = frozenset({NONFINITE, DIVERGED})
# Nothing goes on by itself from here: the same would happen again, or it is not known what happened.
NEVER_RECOVERED = frozenset({CRASH_LOOP, CHECKS_FAILED})


# One check of a resumed run: what was expected, what was found, and the verdict.
#
# The trainer's helpers and the sidecar write each as a `check` event into the journal; the status adds them up.
# Reads nothing. Source: protocol §4.

PASSED, WARNED, FAILED, NOT_TOLD = "passed", "warned", "failed", "not_told"
VERDICTS = (PASSED, WARNED, FAILED, NOT_TOLD)
# How an older kit wrote NOT_TOLD.
_OLD_NOT_TOLD = "unknown"
_verdict = one_of(VERDICTS)
# What the losses were compared by, the strongest first.
EXACT, STEPWISE, BAND = "bit for bit", "step by step", "band"
# In the order in which a run comes by them. 'resume' is the last: the verdict on all of them together.
NAMES = (
    "rng", "data_position", "buffers", "dry_batch", "fast_eval", "weights", "optimizer", "scheduler", "scaler",
    "averages", "lr", "step", "data", "phase", "loss", "throughput", "resume",
)  # fmt: skip
WHOLE = "resume"
# Another step or checkpoint than the planned one is never right: a failure of this one ends the run, whatever
# `resume.strict_checks` says, and no recovery goes on from it.
ALWAYS_STRICT = "step"
# What no loss of a training step shows, and what only losses that were compared step by step show where it could not
# be compared by itself.
_NEVER_IN_LOSSES = frozenset(("buffers", "averages"))
_IN_LOSSES = frozenset(("rng", "data_position", "optimizer", "scheduler", "scaler"))


class Check(NamedTuple):
    """The outcome of one check.

    Args:
        name: one of NAMES.
        verdict: 'passed'; 'warned' (worth a look); 'failed' (what happened is not what was planned: with
            `resume.strict_checks` the run ends); 'not_told' (nothing to compare with, or too little to say).
        expected, found: plain values or short texts; None where there is none.
        why: the reason, in a sentence; empty where the two say it.
        compared: EXACT, STEPWISE or BAND, where losses were compared; '' otherwise.
    """

    name: str
    verdict: str
    expected: Any = None
    found: Any = None
    why: str = ""
    compared: str = ""

    def as_fields(self) -> dict[str, Any]:
        """Return it as the `check` event has it."""
        return self._asdict()

    def sentence(self) -> str:
        """Say it in a printable line: 'check lr failed: expected 0.001, found 0.0008 (...)'."""
        if self.name == WHOLE:
            words = f"the checks after the resume: {shown_value(self.verdict)}, {self.found}"
            return plain(words + (f" ({self.why})" if self.why else ""))
        compared = f"expected {self.expected}, found {self.found}" if self.expected is not None else str(self.found)
        why = f" ({self.why})" if self.why else ""
        return plain(f"check {self.name} {shown_value(self.verdict)}: {compared}{why}")


def shown_value(verdict: str) -> str:
    """Return a verdict as people read it: 'not told'."""
    return verdict.replace("_", " ")


def verdict_of(value: object) -> str | None:
    """Return the verdict that a file holds, in today's word; None for what is none."""
    return _verdict(NOT_TOLD if value == _OLD_NOT_TOLD else value)


def overall_verdict(parts: Mapping[str, str], *, is_stepwise: bool = False) -> str:
    """Return the verdict on all checks together: the worst.

    'passed' needs the step, and either the weights or losses that were compared step by step. It is 'not_told' with
    less, and where a component that was loaded could not be compared and no other comparison shows it.

    Args:
        parts: name -> verdict.
        is_stepwise: the losses were compared step by step.
    """
    found = set(parts.values())
    if found & {FAILED, WARNED}:
        return FAILED if FAILED in found else WARNED
    has_losses = is_stepwise and parts.get("loss") == PASSED
    unseen = _NEVER_IN_LOSSES if has_losses else _NEVER_IN_LOSSES | _IN_LOSSES
    is_seen = not any(parts.get(name) == NOT_TOLD for name in unseen)
    has_weights = parts.get("weights") == PASSED or has_losses
    return PASSED if parts.get("step") == PASSED and has_weights and is_seen else NOT_TOLD


def checks_summary(verdicts: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the status's `checks`: the verdict and the checks' names by verdict; None where there were none.

    Args:
        verdicts: name -> verdict, as a journal adds them up. The verdict is 'running' until WHOLE is among them.
    """
    if not verdicts:
        return None
    known = {name: verdict_of(verdict) or NOT_TOLD for name, verdict in verdicts.items()}
    parts = {name: verdict for name, verdict in known.items() if name != WHOLE}
    by_verdict = {one: [name for name in parts if parts[name] == one] for one in VERDICTS}
    return {"verdict": known.get(WHOLE, "running"), **by_verdict}
