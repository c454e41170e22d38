"""How a checkpoint's tensors fit a model's: names without wrappers, shapes, and too small a share is another model."""

from __future__ import annotations

import pytest

from resumekit.checkpoint.parameters import MIN_MATCHED_SHARE, WeightFit, compare_weights


def test_names_are_compared_without_wrappers_and_the_share_is_one_of_numbers() -> None:
    saved = {"module._orig_mod.a.weight": (2, 3), "b": (4,), "gone": (10,)}
    found = compare_weights(saved, {"a.weight": (2, 3), "b": (5,), "new": (1,)})
    assert found == WeightFit(
        {"a.weight": "module._orig_mod.a.weight"}, ("new",), ("gone",), {"b": "(4,) instead of (5,)"}, 6 / 20
    )
    assert found.counts() == "1 of 3 parameters, 1 new, 1 of another shape, 1 left out"
    assert not found.is_whole and compare_weights(saved, saved).is_whole


def test_what_has_no_shape_counts_nothing_and_a_scalar_counts_one() -> None:
    saved = {"extra_state": None, "count": (), "weight": (3,)}
    assert compare_weights(saved, {"extra_state": None, "count": ()}).matched_share == 1 / 4


@pytest.mark.parametrize(
    ("matched", "lost", "is_forced", "said"),
    [
        (5, 5, False, ""),
        (4, 6, False, "only 40% of its numbers fit the model by name and shape, and at least 50% must"),
        (4, 6, True, ""),
        (0, 10, False, "none of its parameters is in the model by name and shape"),
        (0, 10, True, "none of its parameters is in the model by name and shape"),
    ],
)
def test_too_little_in_common_is_another_model_unless_it_was_asked_for(
    matched: int, lost: int, is_forced: bool, said: str
) -> None:
    assert MIN_MATCHED_SHARE == 0.5
    saved = {"lost": (lost,)} | ({"kept": (matched,)} if matched else {})
    assert compare_weights(saved, {"kept": (matched,), "new": (99,)}).refusal(is_forced=is_forced).startswith(said)
    assert bool(compare_weights(saved, {"kept": (matched,), "new": (99,)}).refusal(is_forced=is_forced)) == bool(said)
