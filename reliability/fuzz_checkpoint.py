"""The checkpoint reader under fuzz: any bytes are read or refused, in bounded time and memory, and nothing else.

A process of its own, since atheris takes over the interpreter. Led by coverage where atheris is installed, else plain
mutation. The first byte of an input says what the rest is: a whole file, or the pickle inside one.
Try it: `python reliability/fuzz_checkpoint.py CORPUS_FOLDER 60 1`
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "lib"))

try:
    import atheris
except ImportError:
    atheris = None

if atheris:
    with atheris.instrument_imports(include=["resumekit"]):
        from resumekit.base.files import UnreadableFile
        from resumekit.checkpoint import archive, finiteness, one_pass, pickled, weights_extract
else:
    from resumekit.base.files import UnreadableFile
    from resumekit.checkpoint import archive, finiteness, one_pass, pickled, weights_extract

MAX_BYTES = 16_384
MEMORY_MB = 1024
LIMIT_S = 10


class Fits(int):
    """The size of a record that is as large as whatever is claimed of it: what lies behind that check is reached."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


STORAGES = {str(number): Fits(4096) for number in range(20)}

_folder = Path(tempfile.mkdtemp(prefix="fuzz-checkpoint-"))


def one_input(data: bytes) -> str:
    """Read one input; returns 'read' or 'refused', and raises whatever else comes of it."""
    try:
        if data[:1] < b"\x80":
            _whole_file(data[1:])
        else:
            value, _ = pickled.read_pickle(data[1:], STORAGES)
            assert value is None or isinstance(repr(type(value)), str)
    except UnreadableFile as error:
        assert len(str(error)) < 5000
        return "refused"
    return "read"


def _whole_file(data: bytes) -> None:
    path, out = _folder / "x.pt", _folder / "out.pt"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        archive.summarize(descriptor)
        tensors = finiteness.tensors_of(archive.content(descriptor)[0])
        one_pass.read(descriptor, path.name, digest=True, checksums=True, tensors=tensors, keeps=False)
        weights_extract.extract(out, "raw", None, descriptor)
        archive.summarize(out)  # what is taken out of a checkpoint is one
    finally:
        os.close(descriptor)
        out.unlink(missing_ok=True)


def by_mutation(corpus: list[bytes], seconds: float, seed: int) -> int:
    """Mutate the corpus for a while; returns how many inputs were read or refused."""
    dice, until, count = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < until:
        data = bytearray(dice.choice(corpus))
        for _ in range(dice.randint(1, 8)):
            at = dice.randrange(1, len(data))
            how = dice.randrange(4)
            if how == 0:
                data[at] = dice.randrange(256)
            elif how == 1:
                data[at] ^= 1 << dice.randrange(8)
            elif how == 2:
                other = dice.choice(corpus)
                start = dice.randrange(len(other))
                data[at : at + 8] = other[start : start + dice.randint(1, 40)]
            else:
                del data[at : at + dice.randint(1, 8)]
                data += b"\0"
        one_input(bytes(data))
        count += 1
    return count


def main(folder: Path, seconds: int, seed: int) -> None:
    """Fuzz for `seconds`; ends with another code than 0 at the first input that is neither read nor refused."""
    corpus = [path.read_bytes() for path in sorted(folder.iterdir())]
    started = [one_input(data) for data in corpus]
    print(f"checkpoint   {len(corpus)} files to begin with: {started.count('read')} read", flush=True)
    if atheris is None:
        print(
            f"checkpoint   {by_mutation(corpus, seconds, seed):,} inputs by mutation alone (atheris is not installed)"
        )
        return
    options = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={MAX_BYTES}", f"-timeout={LIMIT_S}",
               f"-rss_limit_mb={MEMORY_MB}", f"-artifact_prefix={_folder}/", "-print_final_stats=1"]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(folder)], lambda data: one_input(data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
