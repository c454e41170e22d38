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
