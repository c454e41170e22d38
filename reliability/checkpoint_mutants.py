"""Mutants of a checkpoint and its manifest, each with what the selection must say of it.

Three proven checkpoints lie in a folder; one mutant replaces the newest. Whatever the mutation, altered content must
never be taken as proven, and the next older one is taken for the right reason.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from resumekit.checkpoint.selection import CheckpointFolder, select
from support.checkpoint_tools import save_steps

RUN_ID = "T-1_20260101-0000"
STEPS = (10, 20, 30)
KINDS = ("none", "bit", "block", "zeros", "cut", "append", "swap", "other", "manifest", "no manifest", "manifest bit")

_SIZE = r"truncated: [0-9,]+ of [0-9,]+ bytes"
_DIGEST = "digest differs from its manifest$"
_EDITS: dict[str, tuple[object, str]] = {
    "sha256": ("0" * 64, "digest differs from its manifest"),
    "size": (10**9, _SIZE),
    "step": (29, "step 30 in the name, 29 in its manifest"),
    "file": ("../hrm_arc_step_30.pt", "its manifest is not usable: the field 'file'"),
    "finite": (False, "not finite"),
    "step_completed": (False, "its optimizer step was not completed"),
    "writer": ("another", "its manifest is not usable: the field 'writer'"),
    "weights": (["ema"], "it has no raw weights"),
    "version": (2, "its manifest is not usable: written by a newer version"),
    "run_id": ("T-9_20250101-0000", "its manifest names another run"),
    "created_at": (5, "its manifest is not usable: the field 'created_at'"),
}


@dataclass(frozen=True)
class Mutant:
    """The newest checkpoint as mutated.

    Args:
        kind: one of KINDS.
        data, manifest: the two files; None for a missing manifest.
        taken: the step that must be chosen, None where either may be (the bytes decide).
        reason: what the newest's reason must match.
    """

    kind: str
    data: bytes
    manifest: bytes | None
    taken: int | None
    reason: str


class Nursery:
    """A folder with three proven checkpoints whose newest is replaced by one mutant after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = save_steps(folder, *STEPS)
        for path in paths:
            self._sign(path.with_name(f"{path.name}.json"))
        self.newest = paths[-1]
        self.beside = self.newest.with_name(f"{self.newest.name}.json")
        self.data, self.manifest = self.newest.read_bytes(), self.beside.read_bytes()
        self.other = paths[0].read_bytes()

    def mutants(self, count: int, seed: int) -> Iterator[Mutant]:
        """Yield `count` mutants, the kinds in turn."""
        dice = random.Random(seed)
        for number in range(count):
            yield self._mutant(KINDS[number % len(KINDS)], dice)

    def judge(self, mutant: Mutant) -> str | None:
        """Put the mutant in place and select; return what is wrong with the choice, or None."""
        self.newest.write_bytes(mutant.data)
        self.beside.unlink(missing_ok=True)
        if mutant.manifest is not None:
            self.beside.write_bytes(mutant.manifest)
        found = select([CheckpointFolder(self.folder, RUN_ID)])
        if found.chosen is None:
            return "nothing was chosen"
        if found.chosen.step == 30 and mutant.data != self.data:
            return f"altered content was taken as {found.chosen.grade}"
        if mutant.taken is not None and found.chosen.step != mutant.taken:
            return f"step {found.chosen.step} was chosen: {found.candidates[0]}"
        if found.chosen.step == 20 and found.chosen.grade != "proven":
            return f"the older one is only {found.chosen.grade}"
        if not re.match(mutant.reason, found.candidates[0].reason):
            return f"the reason is '{found.candidates[0].reason}', not '{mutant.reason}'"
        return None

    def _sign(self, path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), "run_id": RUN_ID}))

    def _mutant(self, kind: str, dice: random.Random) -> Mutant:
        data, size = bytearray(self.data), len(self.data)
        if kind == "none":
            return Mutant(kind, self.data, self.manifest, 30, "newest stable$")
        if kind == "no manifest":
            return Mutant(kind, self.data, None, 20, "plausible only")
        if kind == "manifest":
            name = dice.choice(sorted(_EDITS))
            value, reason = _EDITS[name]
            return Mutant(kind, self.data, json.dumps({**json.loads(self.manifest), name: value}).encode(), 20, reason)
        if kind == "manifest bit":
            return self._manifest_bit(dice)
        if kind == "cut":
            return Mutant(kind, self.data[: dice.randrange(size)], self.manifest, 20, _SIZE)
        if kind == "append":
            tail = dice.randbytes(dice.randint(1, 5000))
            return Mutant(kind, self.data + tail, self.manifest, 20, "[0-9,]+ bytes longer than its manifest says$")
        if kind == "bit":
            data[dice.randrange(size)] ^= 1 << dice.randrange(8)
        elif kind in ("block", "zeros"):
            at, length = dice.randrange(size), dice.randint(1, 4096)
            piece = bytes(length) if kind == "zeros" else dice.randbytes(length)
            data[at : at + length] = piece[: size - at]
            if data == self.data:
                return self._mutant("bit", dice)
        elif kind == "swap":
            data = self._swapped(dice)
        elif kind == "other":
            data = bytearray(self.other.ljust(size, b"\0")[:size])
        return Mutant(kind, bytes(data), self.manifest, 20, _DIGEST)

    def _manifest_bit(self, dice: random.Random) -> Mutant:
        """One bit of the manifest: the bytes may still be the proven ones, if the bit was in a note."""
        manifest = bytearray(self.manifest)
        manifest[dice.randrange(len(manifest))] ^= 1 << dice.randrange(8)
        return Mutant("manifest bit", self.data, bytes(manifest), None, "")

    def _swapped(self, dice: random.Random) -> bytearray:
        """Two tensor records of the same size exchange their bytes."""
        with zipfile.ZipFile(BytesIO(self.data)) as archive:
            tensors = [entry for entry in archive.infolist() if "/data/" in entry.filename and entry.file_size > 8]
        pairs = [
            (one, two)
            for one, two in itertools.combinations(tensors, 2)
            if one.file_size == two.file_size and self._bytes_of(one) != self._bytes_of(two)
        ]
        first, second = dice.choice(pairs)
        one, two, size = self._place(first), self._place(second), first.file_size
        data = bytearray(self.data)
        data[one : one + size], data[two : two + size] = self.data[two : two + size], self.data[one : one + size]
        return data

    def _bytes_of(self, entry: zipfile.ZipInfo) -> bytes:
        return self.data[self._place(entry) :][: entry.file_size]

    def _place(self, entry: zipfile.ZipInfo) -> int:
        name_size, extra_size = struct.unpack_from("<2H", self.data, entry.header_offset + 26)
        return entry.header_offset + 30 + name_size + extra_size
