"""The long run of the fuzz tests: every reader, the two YAML readers against each other, the checkpoint reader.

Prints for each what came of its examples, and exits with 1 if any ended in a traceback, a hang or two different values.
The checkpoint reader is fuzzed by atheris, led by coverage, where that is installed (it is no dependency: pip install
atheris into a venv of its own), else by mutation alone.
Try it: `python -m reliability.campaign_fuzz --seed 1`
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis

from reliability.fuzz_targets import TARGETS, Target, outcome
from resumekit.base.errors import InvalidFile
from resumekit.checkpoint import archive
from resumekit.config import yaml_document
from support import yaml_documents

HERE = Path(__file__).resolve().parent
MAX_SHOWN = 3


def fuzz(target: Target, count: int, seed: int) -> tuple[collections.Counter[str], list[str]]:
    """Read `count` examples; returns (outcomes, the kinds of wrong ones with an example each)."""
    found: collections.Counter[str] = collections.Counter()
    wrong: dict[str, str] = {}

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )  # fmt: skip
    @hypothesis.given(target.examples)
    def read(example: object) -> None:
        try:
            found[outcome(target, example)] += 1
        except Exception as error:
            kind = f"{type(error).__name__}: {error}"
            found["wrong"] += 1
            place = next((f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in _frames(error)), "?")
            wrong.setdefault(f"{type(error).__name__} at {place}", f"{kind[:200]}\n      {example!r:.400}")

    read()
    return found, [f"{kind}: {shown}" for kind, shown in wrong.items()]


def differing_yaml(count: int, seed: int) -> tuple[collections.Counter[str], list[str]]:
    """Read `count` documents with both YAML readers; what the subset reader accepts must be the same."""
    dice = random.Random(seed)
    found: collections.Counter[str] = collections.Counter()
    wrong = []
    for _ in range(count):
        text = yaml_documents.document(dice)
        try:
            ours = yaml_document.load(text, "c", reader="subset")
        except InvalidFile:
            found["refused"] += 1
            continue
        same = repr(yaml_document.load(text, "c", reader="pyyaml")) == repr(ours)
        found["same" if same else "wrong"] += 1
        if not same:
            wrong.append(repr(text))
    return found, wrong


def _frames(error: Exception) -> Iterator[object]:
    """Yield the places that an error came through, the innermost of the kit's first."""
    import traceback

    return (frame for frame in reversed(traceback.extract_tb(error.__traceback__)) if "resumekit" in frame.filename)


def _show(name: str, found: collections.Counter[str], wrong: list[str], started: float) -> None:
    counts = ", ".join(f"{count:,} {what}" for what, count in sorted(found.items()))
    print(f"{name:12} {sum(found.values()):>8,} examples: {counts} ({time.monotonic() - started:.0f} s)", flush=True)
    for one in wrong[:MAX_SHOWN]:
        print(f"    {one}")


def main(argv: list[str] | None = None) -> int:
    """Run the campaign; returns 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--examples", type=int, default=3000, help="for each reader (default: %(default)s)")
    parser.add_argument("--documents", type=int, default=100_000, help="for the YAML readers (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=120, help="for the checkpoint reader (default: %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="one with atheris, for the checkpoint reader")
    parser.add_argument("--only", action="append", help=f"one of {', '.join([*TARGETS, 'yaml', 'checkpoint'])}")
    options = parser.parse_args(argv)
    names = options.only or [*TARGETS, "yaml", "checkpoint"]
    is_bad = False
    for name in names:
        started = time.monotonic()
        if name == "checkpoint":
            is_bad |= _checkpoints(options.python, options.seconds, options.seed) != 0
            continue
        if name == "yaml":
            found, wrong = differing_yaml(options.documents, options.seed)
        else:
            found, wrong = fuzz(TARGETS[name], options.examples, options.seed)
        _show(name, found, wrong, started)
        is_bad |= bool(wrong)
    return 1 if is_bad else 0


def _checkpoints(python: str, seconds: int, seed: int) -> int:
    """Fuzz the checkpoint reader in a process of its own: atheris never returns, and takes over the interpreter."""
    with tempfile.TemporaryDirectory() as name:
        _fill_corpus(Path(name))
        argv = [python, str(HERE / "fuzz_checkpoint.py"), name, str(seconds), str(seed)]
        return subprocess.run(argv, check=False).returncode


def _fill_corpus(folder: Path) -> None:
    """Put whole checkpoints there and the pickles inside them, each behind the byte that says which it is."""
    import torch  # late, with what imports it: the other readers do without

    from support.checkpoint_tools import save_plain, save_steps

    small = folder / "small.pt"
    weights = {"w": torch.ones(2, 3)[:, 1], "h": torch.ones(2).half()}
    torch.save({"global_step": 1, "model_state_dict": weights}, small)
    files = [(path, path.read_bytes()) for path in (*save_steps(folder / "a", 1), save_plain(folder / "b", 2), small)]
    for path, data in files:
        descriptor = os.open(path, os.O_RDONLY)
        [record] = [one for one in archive.records(descriptor) if one.name.endswith("data.pkl")]
        start = archive.data_offset(descriptor, record)
        os.close(descriptor)
        (folder / f"{path.stem}_file").write_bytes(b"\x00" + data)
        (folder / f"{path.stem}_pickle").write_bytes(b"\x80" + data[start : start + record.size])
    small.unlink()
    shutil.rmtree(folder / "a")
    shutil.rmtree(folder / "b")


if __name__ == "__main__":
    sys.exit(main())
