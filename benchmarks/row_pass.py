"""Row 11: the one pass over the bytes of a plain checkpoint, against the digest of the same file by hashlib alone.

A pass for a plan that takes an attested file: digest, and whether every value is finite. Shown beside it: the pass of a
file without a manifest (checksums and values), and the sidecar's, which attests one (all three). Of 1 GB in float32
and bfloat16, and of 8 GB; warm, and with the file out of the page cache.
Try it: `python benchmarks/bench.py 11 --quick`
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from comparison import compare
from harness import AGAIN, OURS, THEIRS, Sample, Variant, measure
from lab import KIT, PROGRAMS
from many_runs import drop_from_memory
from processes import clean_environment, timed
from settings import Findings, Settings

sys.path.append(str(KIT / "lib"))

from resumekit.checkpoint import archive, finiteness, one_pass

GOAL = 1.2
PLAIN, WITNESS = "checksums and values", "digest, checksums and values"
FILES = (("11a", 1000, "float32", False), ("11b", 1000, "bfloat16", False), ("11c", 1000, "float32", True),
         ("11d", 8000, "float32", False), ("11e", 8000, "float32", True))  # fmt: skip
LARGE_ROUNDS = 5
BUFFER_BYTES = 1 << 20


def run(settings: Settings) -> Findings:
    """Measure row 11."""
    found = Findings()
    for row, megabytes, dtype, is_cold in FILES:
        if settings.is_quick and megabytes > 1000:
            continue
        path = settings.scratch / f"{megabytes}_{dtype}.pt"
        if not path.exists():
            for other in settings.scratch.glob("*.pt"):
                other.unlink()
            words = [str(PROGRAMS / "plain_save.py"), str(path), str(megabytes), dtype]
            timed([sys.executable, *words], cwd=PROGRAMS, env=clean_environment())
        rounds = min(settings.rounds, LARGE_ROUNDS) if megabytes > 1000 else settings.rounds
        before = (lambda path=path: drop_from_memory(iter([path]))) if is_cold else (lambda: None)
        samples = measure(_variants(path), rounds, f"row {row}", before)
        found.samples[f"row {row}"] = samples
        title = (
            f"digest and values of {megabytes} MB, {dtype}, {'cold' if is_cold else 'warm'}, against its digest alone"
        )
        found.comparisons.append(compare(row, title, samples, GOAL, peers=(PLAIN, WITNESS)))
    return found


def _variants(path: Path) -> list[Variant]:
    return [
        Variant(OURS, lambda: _passed(path, digest=True)),
        Variant(THEIRS, lambda: _hashed(path)),
        Variant(AGAIN, lambda: _hashed(path)),
        Variant(PLAIN, lambda: _passed(path, checksums=True)),
        Variant(WITNESS, lambda: _passed(path, digest=True, checksums=True)),
    ]


def _passed(path: Path, **asked: Any) -> Sample:
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    descriptor = os.open(path, os.O_RDONLY)
    tensors = finiteness.tensors_of(archive.content(descriptor)[0])
    one_pass.read(descriptor, path.name, tensors=tensors, keeps=False, **asked)
    os.close(descriptor)
    return Sample(time.perf_counter() - began_s, time.process_time() - began_cpu_s)


def _hashed(path: Path) -> Sample:
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    hasher, buffer = hashlib.sha256(), memoryview(bytearray(BUFFER_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
    return Sample(time.perf_counter() - began_s, time.process_time() - began_cpu_s)
