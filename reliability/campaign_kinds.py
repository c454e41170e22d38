"""Checkpoints of every kind: killed in the middle of saves, and with one thing changed behind a manifest.

For a Python that has the frameworks (`make frameworks` sets one up in .venv-frameworks); with torch alone `--only dcp
fixed`. A checkpoint that is taken is read by its framework: each number in it has to be its step. Prints what was
found, and exits with 1 if anything torn or altered was taken, or a whole one refused.
Try it: `PYTHONPATH=.:lib:tests .venv-frameworks/bin/python -m reliability.campaign_kinds --kills 300 --mutants 2000`
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from reliability.kind_savers import KINDS, Saver, emptied, killed_in
from resumekit.base.paths import RunPaths
from resumekit.checkpoint import form, grades
from resumekit.checkpoint.selection import Candidate, CheckpointFolder, select
from resumekit.process import kept_copies

MUTATIONS = ("bit", "block", "zeros", "cut", "append", "gone", "other step's", "link")


def chosen(folder: Path, saver: Saver) -> tuple[Candidate | None, dict[str, str]]:
    """Return what a resume would take, and the reasons of the others."""
    folders = [CheckpointFolder(folder, form=form.of(saver.section))]
    found = select(folders, needs=frozenset(), weights_only=False)
    return found.chosen, {one.name: one.reason for one in found.candidates if one.verdict == "passed"}


def kills(saver: Saver, folder: Path, count: int, dice: random.Random) -> collections.Counter[str]:
    """Kill saves at random moments; after each, what is taken has to be whole, and what is whole is taken."""
    found: collections.Counter[str] = collections.Counter()
    place = emptied(folder / "checkpoints")
    begun = time.monotonic()
    assert killed_in(saver.save, place, 1, None)
    save_s, step = time.monotonic() - begun, 1
    run = SimpleNamespace(
        paths=RunPaths(folder), run_id=None, form=form.of(saver.section), max_read_mb_per_s=None,
        setting=lambda section, key: 2,
    )  # fmt: skip
    while found["kills"] < count:
        if run.form.is_fixed:  # the sidecar's part: it has come to rest, and will be written over
            kept_copies.keep(run, place / "ckpt.pt", grades.attest(place / "ckpt.pt", None, named=run.form))
        begun = time.monotonic()
        is_done = killed_in(saver.save, place, step + 1, dice.uniform(0, 1.2 * save_s))
        save_s = 0.7 * save_s + 0.3 * (time.monotonic() - begun) if is_done else save_s  # as busy as the machine is
        found["kills"] += not is_done
        found["saves that were done"] += is_done
        taken, reasons = chosen(place, saver)
        if taken is None or taken.step not in (step, step + 1):
            found[f"LOST: {taken and taken.step} instead of {step}: {reasons}"] += 1
            break
        if saver.values(taken.path) != {float(taken.step)}:
            found[f"TORN: step {taken.step} was taken"] += 1
        if is_done and taken.step != step + 1 and not run.form.is_fixed:
            found[f"REFUSED: a whole step {step + 1}: {reasons}"] += 1
        found["the newest was taken unfinished, and whole" if not is_done and taken.step > step else "the older"] += 1
        if not is_done:
            emptied(place)
            assert killed_in(saver.save, place, step + 1, None)
        step += 1
        for old in place.iterdir():
            if step % 10 == 0 and run.form.step_of(old.name) not in (None, step):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    return found


def mutants(
    saver: Saver, folder: Path, count: int, dice: random.Random, *, has_manifest: bool
) -> collections.Counter[str]:
    """Change one thing of a whole checkpoint; with a manifest it must never be taken."""
    found: collections.Counter[str] = collections.Counter()
    source, named = emptied(folder / "source"), form.of(saver.section)
    for step in (1, 2):
        assert killed_in(saver.save, source, step, None)
        if named.is_fixed and step == 1:
            os.rename(source / "ckpt.pt", source / "other.pt")
    whole, other = source / saver.name.replace("{step}", "2"), source / saver.name.replace("{step}", "1")
    other = source / "other.pt" if named.is_fixed else other
    place = folder / "checkpoints"
    for number in range(count):
        emptied(place)
        shutil.rmtree(folder / "manifests", ignore_errors=True)
        parts = [whole.name, *named.companions_of(whole.name)]
        for name in parts:
            (shutil.copytree if whole.is_dir() else shutil.copy2)(source / name, place / name)
        if has_manifest:
            grades.attest(place / whole.name, 2, named=named)
        targets = sorted(path for name in parts for path in (place / name).rglob("*") if path.is_file())
        targets = targets or [place / name for name in parts]
        target, how = dice.choice(targets), MUTATIONS[number % len(MUTATIONS)]
        twin = other / target.name if other.is_dir() else source / target.name.replace("2", "1")
        if not mutated(target, how, dice, other if named.is_fixed else twin):
            continue
        taken, _ = chosen(place, saver)
        is_read = taken is not None and saver_reads(saver, taken.path)
        found[
            "refused" if taken is None else f"TAKEN: {how} of {target.name}" if has_manifest else f"taken: {how}"
        ] += 1
        found["of these, read by the framework as step 2"] += bool(is_read and not has_manifest)
    return found


def saver_reads(saver: Saver, path: Path) -> bool:
    """Whether the framework reads every number as that of the step all the same."""
    try:
        return saver.values(path) == {2.0}
    except KeyboardInterrupt:
        raise
    except BaseException:  # as torch's CheckpointException is; whatever it raises, it does not read it
        return False


def mutated(target: Path, how: str, dice: random.Random, twin: Path) -> bool:
    """Change a file, and set its time to what it was; False where nothing changes."""
    data, seen = bytearray(target.read_bytes()), target.stat()
    before = bytes(data)
    if how == "gone":
        target.unlink()
        return True
    if how == "link":
        target.unlink()
        target.symlink_to("/etc/passwd")
        return True
    if not data:
        return False
    at = dice.randrange(len(data))
    if how == "bit":
        data[at] ^= 1 << dice.randrange(8)
    elif how in ("block", "zeros"):
        piece = dice.randbytes(512) if how == "block" else bytes(512)
        data[at : at + 512] = piece[: len(data) - at]
    elif how == "cut":
        del data[at:]
    elif how == "append":
        data += dice.randbytes(dice.randint(1, 99))
    elif how == "other step's":
        data = bytearray(twin.read_bytes())
    target.write_bytes(data)
    os.utime(target, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    return bytes(data) != before


def main(argv: list[str] | None = None) -> int:
    """Run the campaign; returns 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*KINDS], default=[*KINDS], help="(default: all)")
    parser.add_argument("--kills", type=int, default=300, help="of each kind (default: %(default)s)")
    parser.add_argument("--mutants", type=int, default=2000, help="of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    options = parser.parse_args(argv)
    is_bad = False
    for kind in options.only:
        saver = KINDS[kind]()
        with tempfile.TemporaryDirectory() as name:
            for what in ("kills", "changed, with a manifest", "changed, without one"):
                begun, dice, folder = time.monotonic(), random.Random(options.seed), Path(name)
                if what == "kills":
                    found = kills(saver, folder, options.kills, dice)
                else:
                    has_manifest = what.endswith("a manifest")
                    count = options.mutants if has_manifest else options.mutants // 5
                    found = mutants(saver, folder, count, dice, has_manifest=has_manifest)
                is_bad |= any(key.split(":")[0] in ("LOST", "TORN", "REFUSED", "TAKEN") for key in found)
                seconds = time.monotonic() - begun
                print(f"{kind}, {what}, seed {options.seed}: {dict(found)} ({seconds:.0f} s)", flush=True)
    return int(is_bad)


if __name__ == "__main__":
    raise SystemExit(main())
