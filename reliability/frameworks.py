"""Every recipe of examples/ through every scenario: first run, status, kills, torn checkpoints, the watcher, a NaN.

The recipes that need torch alone run in the Python that runs this; the others in --python, which `make frameworks` sets
up. What is missing there is left out, and said. Prints a table; ends with 1 where anything failed.
Try it: `python -m reliability.frameworks --only plain_loop`
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reliability.framework_recipes import RECIPES, Recipe
from reliability.framework_scenarios import SCENARIOS, NotApplicable
from reliability.framework_stage import Stage
from support.places import ROOT

FAILURES = (AssertionError, pytest.fail.Exception, OSError, ValueError, KeyError, IndexError, StopIteration)


def missing_packages(python: str, recipe: Recipe) -> list[str]:
    """Return what of a recipe's packages an interpreter does not have; all of them where there is none."""
    code = "import importlib.util as u, sys; print(*(n for n in sys.argv[1:] if not u.find_spec(n)))"
    try:
        done = subprocess.run([python, "-c", code, *recipe.needs], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return list(recipe.needs)
    return done.stdout.split()


def put_through(
    recipe: Recipe, python: str, names: Sequence[str], folder: Path, end_s: float = float("inf")
) -> dict[str, str]:
    """Run the scenarios of these names on one recipe; none is begun behind `end_s` of the monotonic clock.

    Returns:
        scenario -> 'ok', '-: why' or 'FAILED: what'; one that was not begun is not there.
    """
    stage = Stage(folder / recipe.name, recipe, python)
    outcomes: dict[str, str] = {}
    try:
        for name in names:
            began = time.monotonic()
            if began > end_s:
                break
            outcomes[name] = outcome(SCENARIOS[name], stage)
            said = outcomes[name].splitlines()
            print(
                f"{recipe.name:13} {name:12} {time.monotonic() - began:6.1f} s  {said[0]}",
                *said[1:],
                sep="\n",
                flush=True,
            )
    finally:
        stage.clean_up()
    return outcomes


def outcome(scenario: Callable[[Stage], None], stage: Stage) -> str:
    try:
        scenario(stage)
    except NotApplicable as reason:
        return f"-: {reason}"
    except FAILURES as error:
        return f"FAILED: {type(error).__name__}: {error}"
    return "ok"


def table(found: dict[str, dict[str, str]], names: Sequence[str]) -> str:
    """Return the table as Markdown: a row for each recipe, a column for each scenario."""
    rows = [["recipe", *names], ["---"] * (len(names) + 1)]
    for recipe, outcomes in found.items():
        rows.append([recipe, *(outcomes.get(name, "left out").partition(":")[0] for name in names)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--only", action="append", choices=[one.name for one in RECIPES], help="this recipe; repeatable"
    )
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS), help="this scenario; repeatable")
    parser.add_argument("--python", default=str(ROOT / ".venv-frameworks" / "bin" / "python"))
    parser.add_argument("--jobs", type=int, default=2, help="recipes at a time")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="what is not begun by then is left out")
    parser.add_argument("--keep", type=Path, help="where the runs are kept; else they are removed")
    args = parser.parse_args(argv)
    recipes = [one for one in RECIPES if not args.only or one.name in args.only]
    names = args.scenario or list(SCENARIOS)
    began = time.monotonic()
    end_s = began + args.minutes * 60
    left_out = {one.name: missing_packages(args.python, one) for one in recipes if one.needs}
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pool = stack.enter_context(ThreadPoolExecutor(args.jobs))
        futures = {
            one.name: pool.submit(put_through, one, args.python if one.needs else sys.executable, names, folder, end_s)
            for one in recipes
            if not left_out.get(one.name)
        }
        found = {name: future.result() for name, future in futures.items()}
    print(f"\n{table(found, names)}\n")
    for name, packages in left_out.items():
        if packages:
            print(f"left out: {name}, for {args.python} has no {', '.join(packages)}")
    outcomes = [one for of_recipe in found.values() for one in of_recipe.values()]
    not_begun = len(found) * len(names) - len(outcomes)
    if not_begun:
        print(f"left out: {not_begun} scenarios, for {args.minutes:.0f} minutes were over")
    for reason in sorted({one for one in outcomes if one.startswith("-")}):
        print(reason)
    failed, passed = (sum(one.startswith(word) for one in outcomes) for word in ("FAILED", "ok"))
    print(f"{time.monotonic() - began:.0f} s")
    print(f"frameworks: {passed} passed, {failed} failed, {len(outcomes) - passed - failed + not_begun} skipped")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
