"""What one sequential reading of a checkpoint's bytes tells: digest, checksums, and which tensors are not finite.

The digest of a big file is computed in a thread of its own, beside the look at the values, which takes a fifth of its
time, of 16-bit numbers a third. What a pass found is remembered in the caller's own state folder, by the file's device,
inode, size and times, for a day and until the machine is started anew: a dry run and the resume after it read the bytes
once. Writes nothing else.
Measure it: `python benchmarks/bench.py 11 --quick`
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from ..base import answer_cache, processes, terminal
from ..base.files import UnreadableFile
from ..base.imports import TYPE_CHECKING, Any, NamedTuple
from ..base.values import items, string
from . import archive, layout
from .archive import BUFFER_BYTES, Record
from .torch_names import ITEM_BYTES, Tensor

if TYPE_CHECKING:
    from .dcp_values import Shard

NAN, INFINITE = "NaN", "infinite"


class Form(NamedTuple):
    """How a dtype shows that a number is not finite.

    Args:
        width: bytes of a number; of a complex one those of its half.
        markers: values of its last byte that a number which is not finite may have.
        exponent: (byte, mask): bits that are all ones in a number that is not finite.
        mantissa: (byte, mask): bits of which one is set in a NaN, and none in an infinity; none: there is no infinity.
    """

    width: int
    markers: bytes
    exponent: tuple[tuple[int, int], ...]
    mantissa: tuple[tuple[int, int], ...]


def _lowest(number: int) -> tuple[tuple[int, int], ...]:
    return tuple((byte, 0xFF) for byte in range(number))


_BOTH_SIGNS = b"\x7f\xff"
_FIVE_BITS = bytes(range(0x7C, 0x80)) + bytes(range(0xFC, 0x100))
_FLOAT16 = Form(2, _FIVE_BITS, ((1, 0x7C),), ((1, 0x03), (0, 0xFF)))
_FLOAT32 = Form(4, _BOTH_SIGNS, ((3, 0x7F), (2, 0x80)), ((2, 0x7F), *_lowest(2)))
_FLOAT64 = Form(8, _BOTH_SIGNS, ((7, 0x7F), (6, 0xF0)), ((6, 0x0F), *_lowest(6)))
FORMS = {
    "float16": _FLOAT16, "float32": _FLOAT32, "float64": _FLOAT64,
    "bfloat16": Form(2, _BOTH_SIGNS, ((1, 0x7F), (0, 0x80)), ((0, 0x7F),)),
    "complex32": _FLOAT16, "complex64": _FLOAT32, "complex128": _FLOAT64,
    "float8_e5m2": Form(1, _FIVE_BITS, ((0, 0x7C),), ((0, 0x03),)),
    "float8_e4m3fn": Form(1, _BOTH_SIGNS, ((0, 0x7F),), ()),
}  # fmt: skip
# One byte value is NaN, and there is no infinity; its form has no bits to be looked at.
_ONE_NAN = {"float8_e4m3fnuz": b"\x80", "float8_e5m2fnuz": b"\x80", "float8_e8m0fnu": b"\xff"}


def width_of(dtype: str) -> int:
    """Return the bytes of a number of this dtype; 0 where every number of it is finite, or it is unknown."""
    return FORMS[dtype].width if dtype in FORMS else int(dtype in _ONE_NAN)


def may_hold_nonfinite(buffer: bytes | bytearray, first: int, end: int, begin: int, dtype: str) -> bool:
    """Whether some number in a piece of a tensor's bytes may be NaN or infinite; False is sure.

    Args:
        buffer: holds the piece, from `first` to `end`, from wherever it was cut.
        begin: how many of the tensor's bytes are before it; a number begins at each multiple of its width.
        dtype: one of which `width_of` is not 0.
    """
    form = FORMS.get(dtype)
    if form is None:
        return _ONE_NAN[dtype] in buffer[first:end]
    last = buffer[first + (form.width - 1 - begin) % form.width : end : form.width]
    return any(marker in last for marker in form.markers)  # one search of a byte for each: faster than a table


def nonfinite_kinds(data: bytes, dtype: str) -> frozenset[str]:
    """Return which of NAN and INFINITE some number is.

    Args:
        data: whole numbers, one behind the other.
        dtype: one of which `width_of` is not 0.
    """
    form = FORMS.get(dtype)
    if form is None:
        return frozenset({NAN} if _ONE_NAN[dtype] in data else ())
    # One bit for each number, in a whole number of as many bytes: the operations below are one for all of them.
    ones = -1
    for byte, mask in form.exponent:
        ones &= _flags(data, form.width, byte, bytes(value & mask == mask for value in range(256)))
    nan = 0
    for byte, mask in form.mantissa:
        nan |= _flags(data, form.width, byte, bytes(value & mask != 0 for value in range(256)))
    nan = ones & nan if form.mantissa else ones
    return frozenset(({NAN} if nan else set()) | ({INFINITE} if ones != nan else set()))


def _flags(data: bytes, width: int, byte: int, table: bytes) -> int:
    """Return a bit for each number: of its byte of this place, the table says which."""
    return int.from_bytes(data[byte::width].translate(table), "little")


# So long a pass may take before it says how far it is, and so often it says it.
PROGRESS_S = 3.0
# From this size on the digest is computed in a thread of its own: to start one costs more than it saves below.
_THREAD_FROM_BYTES = 64 << 20
# A tensor in more pieces than this is looked at as if it had no gaps.
_MAX_RUNS = 1_000_000
# What was found is kept for so long.
KEPT_S = 86_400
_KEPT = "checked_checkpoints.json"


class Found(NamedTuple):
    """What a pass found; None for what it was not asked for.

    Args:
        sha256: of all bytes.
        fault: the record whose checksum is not the archive's, in a few words; '' for none. Archives that were saved
            with torch's checksums switched off hold none, and have no fault.
        nonfinite: name of a tensor -> NAN or INFINITE.
        untold: the first item whose values cannot be told; '' for none.
        told_by: what a shard's items were told by (`Shard.key`); None of any other file.
    """

    sha256: str | None = None
    fault: str | None = None
    nonfinite: dict[str, str] | None = None
    untold: str | None = None
    told_by: str | None = None


class Span(NamedTuple):
    """A stretch of the file that is looked at: a record of an archive.

    Args:
        name: for what is said of it.
        record: the record.
        begin: the byte of the file at which its own bytes begin.
        has_sum: its archive was saved with checksums.
        tensors: those in it of which is to be known whether they are finite, by name.
        dtypes: theirs.
    """

    name: str
    record: Record
    begin: int
    has_sum: bool
    tensors: tuple[tuple[str, Tensor], ...]
    dtypes: frozenset[str]

    @property
    def end(self) -> int:
        return self.begin + self.record.size


def read(
    descriptor: int, name: str, *, digest: bool = False, checksums: bool = False,
    records: Collection[Record] | None = None, tensors: Mapping[str, Tensor] | None = None,
    shard: Shard | None = None, mb_per_s: float | None = None, keeps: bool = True,
) -> Found:  # fmt: skip
    """Read an open checkpoint once, from its first byte to its last; or take what was found before.

    Args:
        descriptor: of the file.
        name: of the file, for what is said meanwhile.
        digest: compute the SHA-256.
        checksums: compare those of the archive's records.
        records: those of the archive, in the order of the file, where they are known; else they are read.
        tensors: those of which is to be known whether they are finite, by name; None for none.
        shard: says records and tensors of a file that is no archive itself; its tensors are looked at.
        mb_per_s: read no faster than this, in 10^6 bytes a second; None for no limit.
        keeps: remember what is found. Not what a process beside the training finds, which has just written the file:
            that is the page cache, and a resume is to read the drive.

    Raises:
        UnreadableFile: it was cut short, or its archive is damaged.
        OSError: it cannot be read.
    """
    key = _key(descriptor)
    known = _found(answer_cache.recall(_KEPT, key, KEPT_S))
    if shard is not None and known.told_by != shard.key:
        known = Found(known.sha256)
    has_values = tensors is not None or shard is not None
    asked = known.sha256 if digest else "", known.fault if checksums else "", known.nonfinite if has_values else {}
    if None not in asked:
        return known
    has_spans = checksums or tensors or shard is not None
    spans = _spans(descriptor, records, tensors or {}, shard) if has_spans else ()
    found = _Pass(descriptor, name, mb_per_s, spans, digest=digest, checksums=checksums, values=has_values).run()
    if shard is not None:
        found = found._replace(untold=shard.untold, told_by=shard.key)
    if keeps and _key(descriptor) == key:
        both = (old if new is None else new for old, new in zip(known, found, strict=True))
        answer_cache.keep(_KEPT, key, list(both))
    return found


class _Pass:
    def __init__(
        self, descriptor: int, name: str, mb_per_s: float | None, spans: Iterable[Span], *, digest: bool,
        checksums: bool, values: bool,
    ) -> None:  # fmt: skip
        self._descriptor, self._name = descriptor, name
        self._has_digest, self._has_checksums, self._spans = digest, checksums, iter(spans)
        self._size = layout.identity(descriptor).size
        self._pace = _Pace(mb_per_s, name, self._size)
        self._crc, self._fault = 0, "" if checksums else None
        self._suspects: list[tuple[int, int]] = []  # of the record at hand: the bytes in it that need a second look
        self._nonfinite: dict[str, str] | None = {} if values else None

    def run(self) -> Found:
        import hashlib  # late, see base/file_identity

        hasher = hashlib.sha256()
        self._look(hasher.update if self._has_digest else None)
        return Found(hasher.hexdigest() if self._has_digest else None, self._fault, self._nonfinite)

    def _look(self, update: Callable[[memoryview], None] | None) -> None:
        buffer, following = bytearray(BUFFER_BYTES), bytearray(BUFFER_BYTES)
        span, at, count = next(self._spans, None), 0, self._fill(buffer, 0)
        with _hashing(update, self._size) as begin_to_hash:
            while at < self._size:
                view = memoryview(buffer)
                wait_for_hash = begin_to_hash(view[:count])
                # The next block is read meanwhile; a thread that hashes this one begins as Python's lock is let go.
                count_of_next = self._fill(following, at + count)
                while span is not None and span.begin < at + count:
                    first, end = max(span.begin - at, 0), min(span.end - at, count)
                    self._look_at(span, buffer, view, first, end, at + first - span.begin)
                    if at + end < span.end:
                        break
                    self._look_again(span)
                    span = next(self._spans, None)
                wait_for_hash()
                at += count
                buffer, following, count = following, buffer, count_of_next
                self._pace.keep(at)

    def _fill(self, buffer: bytearray, at: int) -> int:
        """Read the block that begins at a byte of the file; return how many bytes it has, 0 at the end."""
        count = os.preadv(self._descriptor, [buffer], at) if at < self._size else 0
        if not count and at < self._size:
            raise UnreadableFile("it was cut short while it was read")
        return count

    def _look_at(self, span: Span, buffer: bytearray, view: memoryview, first: int, end: int, begin: int) -> None:
        """Look at a piece of a record, in the buffer from `first` to `end`, behind `begin` bytes of it."""
        if self._has_checksums and span.has_sum:
            self._crc = zlib.crc32(view[first:end], self._crc if begin else 0)
            if begin + end - first == span.record.size and self._crc != span.record.crc and not self._fault:
                self._fault = f"record '{span.name}' differs from its checksum"
        if any(may_hold_nonfinite(buffer, first, end, begin, dtype) for dtype in span.dtypes):
            self._suspects.append((begin, begin + end - first))

    def _look_again(self, span: Span) -> None:
        """Look at the numbers of a record themselves, where some byte may be of one that is not finite."""
        suspects, self._suspects = self._suspects, []
        found = self._nonfinite
        if not suspects or found is None:
            return
        for name, tensor in span.tensors:
            if kinds := kinds_in(self._descriptor, tensor, span.record, suspects):
                add(found, {name: NAN if NAN in kinds else INFINITE})


@contextlib.contextmanager
def _hashing(
    update: Callable[[memoryview], None] | None, size: int
) -> Iterator[Callable[[memoryview], Callable[[], None]]]:
    """Yield what begins to hash a block and returns what waits for its end; of a big file in a thread of its own."""

    def in_place(block: memoryview) -> Callable[[], None]:
        if update is not None:
            update(block)
        return lambda: None

    if update is None or size < _THREAD_FROM_BYTES:
        yield in_place
        return
    from concurrent.futures import ThreadPoolExecutor  # late: most files are small, or hashed before

    with ThreadPoolExecutor(1) as pool:
        yield lambda block: pool.submit(update, block).result


def add(nonfinite: dict[str, str], more: Mapping[str, str]) -> None:
    """Add what was found of further pieces of tensors, of which some may be there: a NaN is worse than an infinity."""
    for name, kind in more.items():
        if nonfinite.get(name) != NAN:
            nonfinite[name] = kind


def kinds_in(
    descriptor: int, tensor: Tensor, record: Record, ranges: Iterable[tuple[int, int]] | None = None
) -> set[str]:  # fmt: skip
    """Return which of NAN and INFINITE an open checkpoint's tensor holds; once a NaN is seen, at least it.

    Args:
        descriptor: of the file.
        tensor: its elements alone are looked at.
        record: the record that they lie in.
        ranges: the bytes of the record that are looked at, each small enough to be read at once; None for all.
    """
    width, begin = width_of(tensor.dtype), archive.data_offset(descriptor, record)
    if ranges is None:
        ranges = [(first, first + BUFFER_BYTES) for first in range(0, record.size, BUFFER_BYTES)]
    kinds: set[str] = set()
    for first, end in _runs(tensor):
        for low, high in ranges:
            # Whole numbers: those that lie across a border are in both ranges.
            low, high = max(first, low // width * width), min(end, -(-high // width) * width)
            if low < high:
                data = os.pread(descriptor, high - low, begin + low)
                kinds |= nonfinite_kinds(data, tensor.dtype)
            if NAN in kinds:
                return kinds
    return kinds


class _Pace:
    """Holds a reading to a rate, and says at times how far it is."""

    def __init__(self, mb_per_s: float | None, name: str, size: int) -> None:
        self._bytes_per_s = mb_per_s * 1e6 if mb_per_s else None
        self._name, self._size = name, size
        self._begun_s = self._told_s = time.monotonic()

    def keep(self, done: int) -> None:
        now = time.monotonic()
        if self._bytes_per_s is not None and (early_s := done / self._bytes_per_s - (now - self._begun_s)) > 0:
            time.sleep(early_s)
        if terminal.progress is not None and now - self._told_s >= PROGRESS_S:
            self._told_s = now
            terminal.progress(f"reading '{self._name}': {done / self._size:.0%} of {self._size / 1e9:,.1f} GB")


def _spans(
    descriptor: int, records: Collection[Record] | None, tensors: Mapping[str, Tensor], shard: Shard | None
) -> Iterator[Span]:
    if shard is not None:
        yield from shard.spans(descriptor)
        return
    records = archive.records(descriptor) if records is None else records
    held: dict[str, list[tuple[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        held.setdefault(f"data/{tensor.storage.key}", []).append((name, tensor))
    has_sums = any(record.crc for record in records)  # else none was saved
    for record in records:
        inside = held.get(record.name.partition("/")[2], ())
        yield span_of(record.name, record, archive.data_offset(descriptor, record), inside, has_sum=has_sums)


def span_of(name: str, record: Record, begin: int, held: Iterable[tuple[str, Tensor]], *, has_sum: bool) -> Span:
    """Return the span of a record; of the tensors that it holds those count whose numbers may be not finite."""
    tensors = tuple(one for one in held if width_of(one[1].dtype))
    return Span(name, record, begin, has_sum, tensors, frozenset(tensor.dtype for _, tensor in tensors))


def _runs(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Yield (first, end) in bytes of each stretch of its record in which a tensor's elements lie side by side."""
    width = ITEM_BYTES.get(tensor.dtype, 1)
    # Inner dimensions first; a dimension of one element, or an expanded one, adds none.
    sizes = sorted((step, length) for length, step in zip(tensor.shape, tensor.stride, strict=True) if length != 1)
    if any(length == 0 for _, length in sizes):
        return
    run = 1
    outer: list[tuple[int, int]] = []
    for step, length in sizes:
        if step == 0:
            continue
        if step <= run and not outer:
            run = (length - 1) * step + run
        else:
            outer.append((step, length))
    firsts = [tensor.offset]
    if math.prod(length for _, length in outer) > _MAX_RUNS:  # what lies between them counts too
        run, outer = sum((length - 1) * step for step, length in outer) + run, []
    for step, length in outer:
        firsts = [first + index * step for index in range(length) for first in firsts]
    for first in firsts:
        yield first * width, (first + run) * width


def _key(descriptor: int) -> list[Any]:
    return [processes.boot_id(), *layout.identity(descriptor)]


def _found(known: Any) -> Found:
    """Return what was kept; nothing where it is not of that form."""
    if len(items(known)) != len(Found._fields):
        return Found()
    sha256, fault, nonfinite, untold, told_by = known
    return Found(
        string(sha256), string(fault), nonfinite if isinstance(nonfinite, dict) else None, string(untold),
        string(told_by),
    )  # fmt: skip
