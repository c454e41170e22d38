"""The documents cannot rot: links resolve, commands exist, the tour's options are known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def commands_in(text: str) -> list[tuple[str, str]]:
    """Return (command's file name, the line it stands in) for each `bin/X.sh` or `kit/bin/X.sh` in a text."""
    return [(m[1], m[0]) for m in re.finditer(r"bin/([a-z-]+\.sh)[^\n`]*", text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_that_is_shown_exists_and_knows_its_options(page: Path) -> None:
    for command, line in commands_in(page.read_text(encoding="utf-8")):
        path = ROOT / "bin" / command
        assert path.is_file(), line
        manual = path.read_text(encoding="utf-8").split("\nif ((")[0]
        for option in re.findall(r"(?<![\w-])--[a-z]+", line.split(" -- ")[0]):
            assert option in manual or option == "--help", f"{option} in: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_make_target_that_is_shown_exists(page: Path) -> None:
    makefiles = (ROOT / "Makefile").read_text() + (ROOT / "resumekit.mk").read_text()
    targets = set(re.findall(r"^(?:\$\(RESUMEKIT_PREFIX\))?([a-z-]+):", makefiles, re.MULTILINE))
    for target in re.findall(r"`make ([a-z][a-z-]*)", page.read_text(encoding="utf-8")):
        assert target.removeprefix("kit-") in targets, target  # the prefix that docs/adopting.md sets


def test_every_page_under_docs_is_linked_from_another_page() -> None:
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    for page in (ROOT / "docs").glob("*.md"):
        linked = any(page.name in text for other, text in texts.items() if other != page)
        assert linked, page.name


def test_every_test_file_that_the_faults_name_is_there() -> None:
    named = re.findall(r"`(test_[a-z_]+)`", (ROOT / "docs" / "faults.md").read_text(encoding="utf-8"))
    assert named
    for name in named:
        assert (ROOT / "tests" / f"{name}.py").is_file(), name


def test_the_tree_has_no_file_too_long_for_one_noun() -> None:
    """A module of the kit has 300 lines at most; one that grows beyond holds a second noun."""
    for module in (ROOT / "lib" / "resumekit").glob("*.py"):
        assert len(module.read_text(encoding="utf-8").splitlines()) <= 300, module.name


def test_nothing_of_ours_says_torch_load_without_weights_only() -> None:
    for path in [*(ROOT / "lib").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            if "torch.load(" in line and not line.strip().startswith("#"):
                assert "weights_only=True" in line, f"{path.name}: {line}"


def test_the_launch_side_never_imports_torch() -> None:
    trainer_side = {
        "saving.py", "loading.py", "rng_state.py", "checkpoint_content.py", "matching.py", "environment_versions.py",
        "partial_weights.py", "proven_content.py",
    }  # fmt: skip
    for module in (ROOT / "lib" / "resumekit").glob("*.py"):
        if module.name not in trainer_side:
            assert not re.search(r"^\s*(import torch|from torch)", module.read_text(encoding="utf-8"), re.MULTILINE)
