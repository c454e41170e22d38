"""Row 11: the one pass over the bytes of a plain checkpoint, against the digest of the same file by hashlib alone.

A pass for a plan that takes an attested file: digest, and whether every value is finite. Shown beside it: the pass of a
file without a manifest (checksums and values), and the sidecar's, which attests one (all three). Of 1 GB in float32
and bfloat16, and of 8 GB; warm, and with the file out of the page cache.
11f and 11g: folders, 200 of them: one is chosen by what tells that it is whole, and the newest, of 1 GB, is attested.
Try it: `python benchmarks/bench.py 11 --quick`
"""

from __future__ import annotations

import hashlib
import os
import shutil
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

from resumekit.checkpoint import archive, finiteness, form, grades, one_pass, selection

GOAL = 1.2
PLAIN, WITNESS = "checksums and values", "digest, checksums and values"
FILES = (("11a", 1000, "float32", False), ("11b", 1000, "bfloat16", False), ("11c", 1000, "float32", True),
         ("11d", 8000, "float32", False), ("11e", 8000, "float32", True))  # fmt: skip
FOLDERS = (("11f", "hf", "checkpoint-{step}"), ("11g", "dcp", "step-{step}"))
NEWEST = 200
CHOICE = "the choice alone"
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
    for row, kind, pattern in FOLDERS:
        folder = _folders(settings.scratch / f"{kind}_folders", kind, pattern)
        named = form.of({"pattern": pattern})
        samples = measure(_folder_variants(folder, named), settings.rounds, f"row {row}", lambda: None)
        found.samples[f"row {row}"] = samples
        title = f"choosing among 200 folders of {kind} and attesting one of 1 GB, against the digest of its bytes alone"
        found.comparisons.append(compare(row, title, samples, GOAL, peers=(CHOICE,)))
    return found


def _folders(folder: Path, kind: str, pattern: str) -> Path:
    """Return a folder of 200 checkpoints, of 1 MB but for the newest."""
    if not folder.exists():
        for step, megabytes in ((1, 1), (NEWEST, 1000)):
            words = [str(PROGRAMS / "folder_save.py"), kind, str(folder / pattern.format(step=step)), str(megabytes)]
            timed([sys.executable, *words], cwd=PROGRAMS, env=clean_environment())
        for step in range(2, NEWEST):
            made = shutil.copytree(folder / pattern.format(step=1), folder / pattern.format(step=step))
            if kind == "hf":
                (made / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    return folder


def _folder_variants(folder: Path, named: form.Form) -> list[Variant]:
    def chosen() -> selection.Candidate:
        found = selection.select(
            [selection.CheckpointFolder(folder, form=named)], needs=frozenset(), weights_only=False, prove=False
        ).chosen
        assert found is not None and found.step == NEWEST
        return found

    def attested() -> Sample:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        grades.measured(chosen().path, NEWEST, named=named)
        return Sample(time.perf_counter() - began_s, time.process_time() - began_cpu_s)

    def choice() -> Sample:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        chosen()
        return Sample(time.perf_counter() - began_s, time.process_time() - began_cpu_s)

    def hashed() -> Sample:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        for path in sorted((folder / named.pattern.format(step=NEWEST)).iterdir()):
            _hashed(path)
        return Sample(time.perf_counter() - began_s, time.process_time() - began_cpu_s)

    return [Variant(OURS, attested), Variant(THEIRS, hashed), Variant(AGAIN, hashed), Variant(CHOICE, choice)]


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
