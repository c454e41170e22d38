"""The recipes in examples/: each as short as it is promised to be, and its config is one that the kit takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reliability.framework_recipes import RECIPES, STEPS, Recipe
from reliability.framework_stage import torn
from resumekit.config import config, yaml_document
from support.places import ROOT

EXAMPLES = ROOT / "examples"
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)


def test_every_example_but_the_model_of_ours_is_put_through_the_scenarios() -> None:
    assert {recipe.name for recipe in RECIPES} == {path.parent.name for path in EXAMPLES.glob("*/config.yaml")}


@each_recipe
def test_its_config_is_taken_and_as_short_as_a_lab_would_write_it(recipe: Recipe) -> None:
    path = EXAMPLES / recipe.name / "config.yaml"
    assert len(path.read_text().splitlines()) <= 15
    resolved = config.resolve(config.load_config(path).document, recipe.experiment)
    assert resolved["training"]["max_steps"] == STEPS and resolved["trainer"]["loads_with_kit"] is False
    assert (path.parent / resolved["trainer"]["command"][1]).is_file()


@each_recipe
def test_its_readme_fits_on_a_card_and_says_whether_it_is_exact(recipe: Recipe) -> None:
    text = (EXAMPLES / recipe.name / "README.md").read_text()
    assert len(text.splitlines()) <= 10
    assert ("**Exact**" in text, "**Not exact**" in text) == (recipe.is_exact, not recipe.is_exact)
    assert f"bin/run.sh {recipe.experiment} --config examples/{recipe.name}/config.yaml" in " ".join(text.split())


@each_recipe
def test_nothing_of_ours_is_in_it_but_what_seals(recipe: Recipe) -> None:
    lines = (EXAMPLES / recipe.name / "train.py").read_text().splitlines()
    ours = [line.strip() for line in lines if "resume" in line and "kit" in line and "parser" not in line]
    assert ours == (["import resume_helper as kit"] if recipe.seals else [])


def test_the_plain_loop_has_sixty_lines() -> None:
    assert len((EXAMPLES / "plain_loop" / "train.py").read_text().splitlines()) <= 60


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_what_is_torn_for_a_while_is_the_same_file_again(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "step-5"
    folder.mkdir()
    file = folder / "weights"
    file.write_bytes(b"12345678")
    before = file.stat(), folder.stat().st_mtime_ns
    with torn(folder, file, how, tmp_path / "aside"):
        assert not file.exists() if how == "missing" else file.read_bytes() == b"1234"
    after = file.stat(), folder.stat().st_mtime_ns
    assert (after[0].st_ino, after[0].st_mtime_ns, after[1]) == (before[0].st_ino, before[0].st_mtime_ns, before[1])


def test_each_config_that_the_page_of_frameworks_shows_is_one() -> None:
    page = (ROOT / "docs" / "frameworks.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "trainer:" in block]
    shown = {
        config.resolve(yaml_document.load(block, "frameworks.md"), "EXP-01")["checkpoint"]["pattern"]
        for block in blocks
    }
    recipes = {
        config.load_config(path).document.data["checkpoint"]["pattern"] for path in EXAMPLES.glob("*/config.yaml")
    }
    assert len(blocks) == len(shown) == 5 and shown <= recipes
