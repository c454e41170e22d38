"""Why a run is ended or taken up again: the classes of causes, and what is done about each.

The words stand in the `abort` and `recovery` events, in status.json and in `recover.cut_lr_on`. Reads nothing.
Source: protocol §12; docs/watch.md has the table for people.
"""

from __future__ import annotations

# What the rules find in a live run, and stop it for.
NONFINITE, DIVERGED, THROUGHPUT, OOM, EVAL, HANG = "nonfinite", "diverged", "throughput", "oom", "eval", "hang"
# What is found of a trainer that ended by itself.
DIED, CRASH_LOOP = "died", "crash_loop"
# What a resumed run was stopped for that its plan did not hold for.
CHECKS_FAILED = "checks_failed"

ENDED_BY_ITSELF = frozenset({DIED, CRASH_LOOP})
CAUSES = frozenset({NONFINITE, DIVERGED, THROUGHPUT, OOM, EVAL, HANG, CHECKS_FAILED}) | ENDED_BY_ITSELF
# The training itself went wrong: a recovery begins from before the first bad step.
REPLAYED = frozenset({NONFINITE, DIVERGED})
# Nothing goes on by itself from here: the same would happen again, or it is not known what happened.
NEVER_RECOVERED = frozenset({CRASH_LOOP, CHECKS_FAILED})
