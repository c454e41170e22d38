"""Row 3: choosing among many checkpoints, and looking into one of 1 GB.

Choosing is measured in this process, against reading the zip directory of each file and walking its entries. Looking
into one is measured as a process, against one that reads the same file's head and tail.
Try it: `python benchmarks/bench.py 3 --quick`
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from arithmetic import growth
from comparison import compare
from harness import AGAIN, OURS, THEIRS, Sample, Samples, Variant, clocked, measure
from lab import KIT, PROGRAMS
from processes import BenchmarkError, clean_environment, timed
from settings import Findings, Settings

sys.path.append(str(KIT / "lib"))

from resumekit.checkpoint.archive import records
from resumekit.checkpoint.selection import CheckpointFolder, Selection, select

GOAL_CHOOSE, GOAL_ENDS, GOAL_SIZE = 0.2, 3.5, 1.15
COUNT, BROKEN = 1000, 10
SIZES, QUICK_SIZES = (10, 100, 1000, 10_000), (10, 100, 1000)
BIG_MB, SMALL_MB = 1000, 10
TORCH_EACH, TORCH_ONE, LISTING = "torch.load of each", "torch.load, mmap", "listing the folder"
BYTES = "reading them without a look"
BARE = "a Python that does nothing"
PEER_EVERY = 7
_END, _LENGTHS = struct.Struct("<4s4H2LH"), struct.Struct("<3H")
_ENTRY_BYTES, _LENGTHS_AT = 46, 28


def run(settings: Settings) -> Findings:
    """Measure row 3."""
    found = Findings()
    _choose(settings, found)
    _inspect(settings, found)
    return found


def _choose(settings: Settings, found: Findings) -> None:
    sizes = QUICK_SIZES if settings.is_quick else SIZES
    folders = _make_folders(settings.scratch / "choose", sizes)
    growing: dict[int, Samples] = {}
    for count, folder in folders.items():
        _check(_chosen(folder), count)
        variants = [
            Variant(OURS, lambda folder=folder: clocked(lambda: _chosen(folder))),
            Variant(THEIRS, lambda folder=folder: clocked(lambda: _read_directories(folder))),
            Variant(AGAIN, lambda folder=folder: clocked(lambda: _read_directories(folder))),
            Variant(BYTES, lambda folder=folder: clocked(lambda: _read_bytes(folder))),
            Variant(LISTING, lambda folder=folder: clocked(lambda: os.listdir(folder))),
        ]
        if count == COUNT:
            variants.append(Variant(TORCH_EACH, lambda folder=folder: _torch_each(settings, folder), PEER_EVERY))
            proven = Variant("ours, digest read", lambda folder=folder: clocked(lambda: _chosen(folder, prove=True)))
            variants.append(proven)
        growing[count] = measure(variants, settings.rounds, f"row 3, {count} checkpoints")
        found.samples[f"row 3, {count} checkpoints"] = growing[count]
    title = f"choosing among {COUNT} checkpoints, the {BROKEN} newest broken, against reading their zip directories"
    peers = (BYTES, TORCH_EACH, "ours, digest read")
    line = compare("3a", title, growing[COUNT], GOAL_CHOOSE, limit=LISTING, peers=peers)
    found.comparisons.append(line)
    found.remarks += [_growth_line(growing, OURS), _growth_line(growing, THEIRS)]


def _inspect(settings: Settings, found: Findings) -> None:
    folder = settings.scratch / "inspect"
    folder.mkdir()
    big, small = folder / "big.pt", folder / "small.pt"
    _make(str(big), "--mb", str(BIG_MB))
    _make(str(small), "--mb", str(SMALL_MB))
    head, tail = _ends(big)
    ends = ["read_ends.py", str(big), str(head), str(tail)]
    variants = [
        Variant(OURS, lambda: _python("inspect_checkpoint.py", str(big))),
        Variant(THEIRS, lambda: _python(*ends)),
        Variant(AGAIN, lambda: _python(*ends)),
        Variant(BARE, lambda: _python("nothing.py")),
        Variant("small", lambda: _python("inspect_checkpoint.py", str(small))),
        Variant("small again", lambda: _python("inspect_checkpoint.py", str(small))),
        Variant(TORCH_ONE, lambda: _python("torch_load.py", str(big), has_site=True), PEER_EVERY),
    ]
    samples = measure(variants, settings.rounds, "row 3, looking into one")
    found.samples["row 3, looking into one"] = samples
    title = f"looking into a checkpoint of {BIG_MB} MB against reading its head and tail ({head + tail:,} bytes)"
    found.comparisons += [
        compare("3b", title, samples, GOAL_ENDS, limit=BARE, peers=(TORCH_ONE,)),
        compare("3c", f"the same against one of {SMALL_MB} MB", samples, GOAL_SIZE, theirs="small", null="small again"),
    ]
    big.unlink()
    small.unlink()


def _make_folders(root: Path, sizes: tuple[int, ...]) -> dict[int, Path]:
    """Make the largest folder; the smaller ones hold hard links to its newest files."""
    largest = root / str(max(sizes))
    root.mkdir()
    _make(str(largest), str(max(sizes)))
    folders = {}
    for count in sizes:
        folders[count] = folder = root / str(count)
        if folder == largest:
            continue
        folder.mkdir()
        names = sorted(os.listdir(largest), key=lambda name: int(name.split("_")[-1].partition(".")[0]))
        for name in names[-2 * (count + BROKEN) :]:
            os.link(largest / name, folder / name, follow_symlinks=False)
    return folders


def _chosen(folder: Path, *, prove: bool = False) -> Selection:
    """Choose as resume.sh does; the digest of the chosen file is read beside the trainer's start."""
    return select([CheckpointFolder(folder)], needs=frozenset({"optimizer_state_dict"}), prove=prove)


def _check(selection: Selection, count: int) -> None:
    passed = [one for one in selection.candidates if one.verdict == "passed"]
    older = [one for one in selection.candidates if one.verdict == "older"]
    if selection.chosen is None or (len(passed), len(older)) != (BROKEN, count - 1):
        raise BenchmarkError(f"of {count} checkpoints, {len(passed)} were passed over and {len(older)} older")


def _read_directories(folder: Path) -> int:
    """Read the zip directory of each checkpoint and walk its entries; return how many entries there were.

    The least that says of a file whether it is whole, for one who looks into all of them.
    """
    return sum(_count_entries(directory) for directory in _directories(folder))


def _read_bytes(folder: Path) -> int:
    """Read the same bytes and do not look at them."""
    return sum(map(len, _directories(folder)))


def _directories(folder: Path) -> Iterator[bytes]:
    for name in os.listdir(folder):
        if name.endswith(".pt"):
            yield _read_directory(os.path.join(folder, name))


def _read_directory(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        size = os.fstat(descriptor).st_size
        if size < _END.size:
            return b""
        mark, *_, length, start, _ = _END.unpack(os.pread(descriptor, _END.size, size - _END.size))
        return os.pread(descriptor, length, start) if mark == b"PK\x05\x06" else b""
    finally:
        os.close(descriptor)


def _count_entries(directory: bytes) -> int:
    count, position = 0, 0
    while position + _ENTRY_BYTES <= len(directory):
        name, extra, comment = _LENGTHS.unpack_from(directory, position + _LENGTHS_AT)
        position += _ENTRY_BYTES + name + extra + comment
        count += 1
    return count


def _ends(path: Path) -> tuple[int, int]:
    """Return how many bytes at the head (to the end of data.pkl) and at the tail (the directory) tell everything."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = {record.name.partition("/")[2]: record for record in records(descriptor)}
        pickle = found["data.pkl"]
        last = max(found.values(), key=lambda record: record.offset)
        head = pickle.offset + pickle.size + 512
        return head, os.fstat(descriptor).st_size - last.offset - last.size
    finally:
        os.close(descriptor)


def _torch_each(settings: Settings, folder: Path) -> Sample:
    seconds = settings.scratch / "seconds"
    _python("torch_load.py", str(folder), str(seconds), has_site=True)
    return Sample(float(seconds.read_text(encoding="utf-8")))


def _make(*arguments: str) -> None:
    _python("make_checkpoints.py", *arguments, has_site=True)


def _python(program: str, *arguments: str, has_site: bool = False) -> Sample:
    flags = [] if has_site else ["-I", "-S"]
    command = [sys.executable, *flags, str(PROGRAMS / program), *arguments]
    return timed(command, cwd=PROGRAMS, env=clean_environment())


def _growth_line(growing: dict[int, Samples], name: str) -> str:
    times = []
    for samples in growing.values():
        seconds = sorted(sample.wall_s for sample in samples[name].values())
        times.append(seconds[len(seconds) // 2])
    shown = ", ".join(f"{count:,}: {time * 1e3:.2f} ms" for count, time in zip(growing, times, strict=True))
    return f"    growth of {name}: {shown}; slope {growth(list(growing), times):.2f} (1: in proportion)"
