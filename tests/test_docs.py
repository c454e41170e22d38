"""The documents cannot rot: links resolve, commands exist, the tour's options are known, each warning is listed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.places import ROOT

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


def test_every_kind_of_warning_that_is_journaled_is_named_where_the_kinds_are_listed() -> None:
    """What a person finds in `last_warning` of a status.json is looked up there."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "lib" / "resumekit").rglob("*.py")]
    constants = dict(pair for text in texts for pair in re.findall(r'^([A-Z_0-9]+) = "([a-z_0-9]+)"', text, re.M))
    pattern = r'(?:"warning",[^)]*?\bkind=|"kind": |\b_warn\(\s*(?:run, )?)(?:"([a-z_0-9]+)"|([A-Z_0-9]+))'
    found = {word or constants[name] for text in texts for word, name in re.findall(pattern, text)}
    assert len(found) > 15, found
    page = (ROOT / "docs" / "watch.md").read_text(encoding="utf-8")
    listed = page[page.index("Warnings: ") : page.index("What is **usual**")]
    assert sorted(kind for kind in found if f"`{kind}`" not in listed) == []


def test_every_code_with_which_a_recovery_waits_is_named_beside_its_warning() -> None:
    """Of the errors, each has one; the others are words in recovering.py."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "lib" / "resumekit").rglob("*.py")]
    codes = {code for text in texts for code in re.findall(r'^    code = "([a-z_]+)"', text, re.M)}
    recovering = (ROOT / "lib" / "resumekit" / "watch" / "recovering.py").read_text(encoding="utf-8")
    codes |= {*re.findall(r'_wait\(run, state, "([a-z_]+)"', recovering), "os_error"}
    codes -= {"nothing_to_do"}  # of a start in a scheduler's job, which no recovery makes
    assert {"kit_incomplete", "budget", "leftovers", "failed"} <= codes, codes
    page = (ROOT / "docs" / "watch.md").read_text(encoding="utf-8")
    begun = page.index("(its `code` says for what:")
    assert set(re.findall(r"`([a-z_]+)`", page[begun : page.index(")", begun)])) - {"code"} == codes
