"""The house keeps its shape: which folder may import which, how long a module is, who touches torch."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT

KIT = ROOT / "lib" / "resumekit"
# Each folder, and the ones that it may import from: arrows go one way.
FOLDERS = {
    "basics": set(),
    "configuration": {"basics"},
    "proving": {"basics"},
    "run_folder": {"basics", "configuration", "proving"},
    "planning": {"basics", "configuration", "proving", "run_folder"},
    "supervision": {"basics", "configuration", "proving", "run_folder", "planning"},
    "watching": {"basics", "configuration", "proving", "run_folder", "planning", "supervision"},
    "recovery": {"basics", "configuration", "proving", "run_folder", "planning", "supervision", "watching"},
    "trainer": {"basics", "proving", "run_folder"},
}


def modules() -> list[Path]:
    return sorted(KIT.rglob("*.py"))


def folders_imported(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.level == 2:
                yield node.module.split(".")[0]
            elif node.module.startswith("resumekit."):
                yield node.module.split(".")[1]


def test_arrows_between_folders_go_one_way() -> None:
    assert {path.parent.name for path in modules() if path.parent != KIT} == set(FOLDERS)
    for module in modules():
        if module.parent != KIT:
            own = module.parent.name
            assert set(folders_imported(module)) <= FOLDERS[own] | {own}, module.relative_to(KIT)


def test_no_module_is_too_long_for_one_noun() -> None:
    """A module has 450 lines at most: one subject in one file beats five files of sixty lines."""
    for module in modules():
        assert len(module.read_text(encoding="utf-8").splitlines()) <= 450, module.name


def test_every_module_stands_in_the_table_of_the_design() -> None:
    table = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    for module in modules():
        if module.stem != "__init__":
            assert f"`{module.stem}`" in table, module.relative_to(KIT)


def test_only_the_trainers_folder_imports_torch() -> None:
    for module in modules():
        if module.parent.name != "trainer":
            assert not re.search(r"^\s*(import torch|from torch)", module.read_text(encoding="utf-8"), re.MULTILINE)


def test_nothing_of_ours_says_torch_load_without_weights_only() -> None:
    for path in [*(ROOT / "lib").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            if "torch.load(" in line and not line.strip().startswith("#"):
                assert "weights_only=True" in line, f"{path.name}: {line}"
