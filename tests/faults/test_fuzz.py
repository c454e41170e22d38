"""Whatever a file or a word of the command line holds, its reader returns or says one sentence, in bounded time."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reliability.fuzz_targets import TARGETS, outcome

# The long version of this is reliability/campaign_fuzz.py.
EXAMPLES = 80
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example, HealthCheck.filter_too_much]


@pytest.mark.fault("K13", by="every reader: bounded size, depth and time")
@pytest.mark.fault("K2", by="every reader: types are checked, nothing is run")
@pytest.mark.parametrize("name", TARGETS)
def test_no_reader_ends_in_a_traceback_or_hangs(name: str) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET)
    @given(TARGETS[name].examples)
    def check(example: object) -> None:
        outcome(TARGETS[name], example)

    check()


def test_the_fuzz_would_notice_a_reader_that_raises_or_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The alarm rings."""
    from reliability import fuzz_targets

    monkeypatch.setattr(fuzz_targets, "LIMIT_S", 0.2)
    bad = fuzz_targets.Target("bad", st.none(), lambda example, _folder: example[1])
    with pytest.raises(IndexError):
        outcome(bad, "")
    with pytest.raises(fuzz_targets.Hang):
        outcome(bad._replace(read=lambda _example, _folder: [None for _ in iter(int, 1) if _]), "")
