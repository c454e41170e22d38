"""Events of any kind with any fields, for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

KINDS = ["launched", "resumed", "phase", "step", "eval", "best", "checkpoint", "heartbeat", "warning", "stopped",
         "exited", "data", "nonfinite", "oom", "eval_crashed", "of the future"]  # fmt: skip
FIELDS = ["event", "mono_s", "at", "step", "loss", "lr", "epoch", "phase", "kind", "score", "global_step", "code",
          "signal", "by", "message", "trainer", "shim", "launcher", "source", "lr_scale", "steps_per_sec", "optimizer",
          "best_eval_acc", "last_fast_eval_step", "what", "finite", "size", "message"]  # fmt: skip
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = PLAIN | st.lists(PLAIN, max_size=2) | st.dictionaries(st.text(max_size=4), PLAIN, max_size=2)
GARBAGE = st.builds(
    lambda kind, fields: {**fields, "event": kind},
    st.sampled_from(KINDS),
    st.dictionaries(st.sampled_from(FIELDS), VALUES),
)
