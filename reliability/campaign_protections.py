"""Take one protection out after another, and see that the suite turns red each time.

What each of them is, and which tests must fail then, stands in protections.py. Those tests are run once without any
patch first: one that is red anyway shows nothing and is left out. Works in a copy of the tree.
Try it: `python -m reliability.campaign_protections --only claim`
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reliability.protections import PATCHES, Patch, taken_out
from reliability.source_edits import NoSuchPlace
from support.processes import marked_pids

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(
    ".venv", ".git", "runs", "runs-*", "__pycache__", "results", ".scratch", ".hypothesis"
)
LIMIT_S = 400.0
BEFORE_S = 1800.0
CLEANING_S = 20.0
# What the tests start inherits it: of the kit's own names they are rid.
MARK = "PROTECTIONS_MARK"


def main() -> int:
    """Try every patch; 0 if the suite turned red each time, and was green before."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="WORD", help="only patches whose name has one of these"
    )
    parser.add_argument("--from", type=int, default=1, dest="first", metavar="N", help="only from the Nth patch on")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    chosen = [patch for patch in PATCHES[args.first - 1 :] if any(word in patch.name for word in args.only)]
    began = time.monotonic()
    red = red_anyway(chosen, args.jobs)
    print(f"{len(red)} tests are red without any patch, {time.monotonic() - began:.0f} s", *red, sep="\n  ", flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        seen = list(pool.map(lambda patch: is_seen(patch, red), chosen))
    print(f"{sum(seen)}/{len(seen)} protections are missed when they are gone, {time.monotonic() - began:.0f} s")
    return 0 if all(seen) and not red else 1


def red_anyway(patches: list[Patch], jobs: int) -> list[str]:
    """Return the tests of these patches that fail though nothing was taken out."""
    tests = sorted({test for patch in patches for test in patch.tests})
    with tempfile.TemporaryDirectory(prefix="protection-") as place:
        code, failed = run_tests(_copy(place), ["-n", str(jobs), "--dist", "worksteal", *tests], BEFORE_S)
    if code not in (0, 1):
        raise SystemExit(f"the tests cannot be run at all: pytest ended with {code}; {failed}")
    return failed


def is_seen(patch: Patch, red: list[str]) -> bool:
    """Whether the tests of a protection, but those that are red anyway, fail without it."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="protection-") as place:
        tree = _copy(place)
        try:
            file, text = taken_out(patch, tree)
        except NoSuchPlace as error:
            print(f"?  {patch.name}: {error}", flush=True)
            return False
        file.write_text(text, encoding="utf-8")
        left_out = [f"--deselect={test}" for test in red]
        code, failed = run_tests(tree, ["-x", *left_out, *patch.tests], LIMIT_S)
    # A test failed, or did not end any more. Anything else (nothing collected, an error of pytest) shows nothing.
    has_failed = code in (1, None)
    print(
        f"{'ok' if has_failed else 'NO'} {patch.name} ({time.monotonic() - began:.0f} s) {''.join(failed[:1])}",
        flush=True,
    )
    return has_failed


def _copy(place: str) -> Path:
    tree = Path(place) / "kit"
    shutil.copytree(ROOT, tree, ignore=LEFT_OUT, symlinks=True)
    return tree


def run_tests(tree: Path, args: list[str], limit_s: float) -> tuple[int | None, list[str]]:
    """Run tests in a tree; returns pytest's code, None if it did not end, and what failed."""
    # Cases that are too long for `make test` may be the ones that see it.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "-m",
        "not campaign",
        *args,
    ]
    mark = secrets.token_hex(8)
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", MARK: mark}
    # A file, not a pipe: what a test has left running would hold a pipe open.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=tree, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            has_ended = _ends(process, limit_s)
        finally:
            _end_marked(f"{MARK}={mark}")
            process.wait()
        output.seek(0)
        lines = output.read().decode("utf-8", "replace").splitlines()
    if not has_ended:
        return None, ["did not end"]
    failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return process.returncode, [line.split(" ", 1)[1].split(" - ")[0] for line in failed]


def _ends(process: subprocess.Popen, limit_s: float) -> bool:
    """Whether pytest ends within a limit; behind it the fixtures have CLEANING_S to end what their tests started."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(limit_s)
        return True
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(CLEANING_S)
    return False


def _end_marked(entry: str) -> None:
    """KILL every process that carries this entry in its environment, whatever session it is in."""
    for _ in range(100):
        pids = list(marked_pids(entry))
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not pids:
            return
        time.sleep(0.02)


if __name__ == "__main__":
    raise SystemExit(main())
