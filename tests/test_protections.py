"""The campaign that takes out protections finds each of them: its texts and tests are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from campaign_protections import PATCHES, ROOT, Patch


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_what_a_patch_takes_out_stands_once_in_its_file(patch: Patch) -> None:
    assert patch.new != patch.old
    assert (ROOT / "lib" / patch.file).read_text(encoding="utf-8").count(patch.old) == 1


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_the_tests_that_shall_see_it_are_there(patch: Patch) -> None:
    for test in patch.tests:
        file, _, name = test.partition("::")
        text = Path(ROOT, file).read_text(encoding="utf-8")
        assert not name or re.search(rf"^def {re.escape(name.partition('[')[0])}\(", text, re.MULTILINE), test


def test_no_two_patches_have_one_name() -> None:
    assert len({patch.name for patch in PATCHES}) == len(PATCHES)
