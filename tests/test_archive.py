"""Reading a checkpoint without torch: what it tells, what it refuses, and that nothing in the file ever runs."""

from __future__ import annotations

import collections
import gzip
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from resumekit.base.files import UnreadableFile
from resumekit.checkpoint import archive, one_pass
from support.checkpoint_tools import Payload, pickle_zip, pickled, save_steps, small_model, stored_zip
from support.places import LIB

pytestmark = pytest.mark.usefixtures("one_thread")


def check_crcs(descriptor: int) -> None:
    """Read every byte once; UnreadableFile where a record's checksum is another one."""
    if fault := one_pass.read(descriptor, "x.pt", checksums=True, keeps=False).fault:
        raise UnreadableFile(fault)


def refused(path: Path, content: bytes, match: str) -> None:
    """Assert that a file with `content` is refused for a reason that matches, in less than two seconds."""
    path.write_bytes(content)
    started = time.monotonic()
    with pytest.raises(UnreadableFile, match=match):
        archive.summarize(path)
    assert time.monotonic() - started < 2


def test_a_summary_tells_step_epoch_keys_shapes_dtypes_and_optimizer_groups(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).to(torch.bfloat16)
    groups = [{"params": [model[0].weight]}, {"params": [model[0].bias, *model[1].parameters()], "lr": 0.5}]
    optimizers = {"main": torch.optim.AdamW(groups), "other": torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])}
    path = tmp_path / "x.pt"
    state = {name: one.state_dict() for name, one in optimizers.items()}
    torch.save(
        {
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": state,
            "global_step": 7,
            "epoch": 2,
            "lr": 0.1,
        },
        path,
    )
    found = archive.summarize(path)
    assert (found.step, found.epoch, found.total_bytes) == (7, 2, path.stat().st_size)
    assert found.keys == ("model_state_dict", "optimizer_state_dict", "global_step", "epoch", "lr")
    wanted = {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in model.state_dict().items()}
    assert found.tensors == wanted
    assert found.optimizers == {"main": (2, 4), "other": (1, 1)}
    assert found.counters == {"global_step": 7, "epoch": 2, "lr": 0.1}


def test_everything_that_weights_only_loads_is_readable(tmp_path: Path) -> None:
    value = {
        "model_state_dict": {"w": torch.nn.Parameter(torch.zeros(2)), "n": torch.tensor(3), "e": torch.zeros(0, 4)},
        "dtypes": [torch.zeros(2, dtype=d) for d in (torch.float16, torch.bool, torch.int8, torch.complex64)],
        "new": [torch.zeros(3, dtype=torch.float8_e4m3fn), torch.zeros(3, dtype=torch.uint16)],
        "view": torch.arange(12.0).reshape(3, 4).t()[1:, ::2],
        "plain": [None, True, 2**70, -5, 1.5, "ü\ud800", b"b", (1, 2, 3, 4), {1, 2}, bytearray(b"x"), 1j],
        "types": [torch.float32, torch.device("cpu"), torch.Size([1, 2]), torch.strided],
        "maps": [collections.OrderedDict(a=1), collections.Counter("aab"), {(1, 2): 3, 5: 6}],
        "rng": [random.getstate(), torch.get_rng_state()],
        "many": list(range(5000)),
        "global_step": 1,
    }
    path = tmp_path / "x.pt"
    torch.save(value, path)
    torch.load(path, weights_only=True)
    found = archive.summarize(path)
    assert found.step == 1
    assert found.unsafe == ()
    assert found.tensors["e"] == ((0, 4), "float32")


def test_data_types_that_weights_only_refuses_are_read_and_named(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "x.pt"
    torch.save({"global_step": 5, "best": numpy.float64(1.5), "d": collections.defaultdict(list)}, path)
    found = archive.summarize(path)
    assert found.step == 5
    assert any("scalar" in name for name in found.unsafe) and "collections.defaultdict" in found.unsafe


def test_reading_costs_the_same_for_a_large_file(tmp_path: Path) -> None:
    """A sparse file of 6 GiB with 64-bit offsets in its directory is told from its directory and data.pkl alone."""
    path = tmp_path / "x.pt"
    storage = torch.UntypedStorage.from_file(str(tmp_path / "big"), shared=True, nbytes=6 << 30)
    head = {"w": torch.tensor([], dtype=torch.uint8).set_(storage)}
    torch.serialization.set_crc32_options(False)
    try:
        with torch.serialization.skip_data():
            torch.save({"model_state_dict": head, "global_step": 3}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    started = time.monotonic()
    found = archive.summarize(path)
    assert time.monotonic() - started < 0.5
    assert found.tensors == {"w": ((6 << 30,), "uint8")} and found.total_bytes > 6 << 30


def test_the_reader_imports_neither_torch_nor_pickle(tmp_path: Path) -> None:
    (path,) = save_steps(tmp_path, 3)
    program = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "for name in ('torch', 'numpy', 'pickle', '_pickle', 'zipfile'): sys.modules[name] = None\n"
        "from pathlib import Path; from resumekit.checkpoint.archive import summarize\n"
        "print(summarize(Path(sys.argv[2])).step)"
    )
    command = [sys.executable, "-I", "-c", program, str(LIB), str(path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "3\n"


def test_the_restricted_reader_stays_under_200_lines() -> None:
    assert len((LIB / "resumekit" / "checkpoint" / "pickled.py").read_text().splitlines()) < 200


@pytest.mark.fault("C1", by="archive: the zip directory at its end")
def test_c1_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    (path,) = save_steps(tmp_path, 1)
    data = path.read_bytes()
    cut = tmp_path / "cut.pt"
    for length in random.Random(1).sample(range(len(data)), 200):
        cut.write_bytes(data[:length])
        with pytest.raises(UnreadableFile):
            archive.summarize(cut)


@pytest.mark.fault("C2", by="archive: size and first bytes")
def test_c2_empty_and_zeroed_files_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "x.pt", b"", "empty: 0 bytes")
    refused(tmp_path / "x.pt", bytes(100_000), "it begins with zeros")


@pytest.mark.fault("C3", by="archive: structure and checksums")
def test_c3_one_flipped_bit_anywhere_is_found_by_structure_and_checksums_or_hurts_no_record(tmp_path: Path) -> None:
    (path,) = save_steps(tmp_path, 1)
    torch.save(torch.load(path, weights_only=True), path)  # plain torch.save: with the archive's checksums
    good = path.read_bytes()
    whole = archive.summarize(path)
    dice = random.Random(2)
    flipped = tmp_path / "flipped.pt"
    accepted = 0
    for _ in range(400):
        data = bytearray(good)
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        flipped.write_bytes(data)
        descriptor = os.open(flipped, os.O_RDONLY)
        try:
            found = archive.summarize(descriptor)
            check_crcs(descriptor)
        except UnreadableFile:
            continue
        finally:
            os.close(descriptor)
        accepted += 1  # padding, a local header's unused field: every record is what it was
        assert vars(found) == vars(whole)
    assert accepted < 400 * 0.5


@pytest.mark.fault("C3", by="archive: the directory's attributes")
def test_c3_a_record_that_is_marked_as_a_folder_is_refused(tmp_path: Path) -> None:
    """One flipped bit in the directory, which no checksum covers: torch.load then hands out memory as it finds it."""
    (path,) = save_steps(tmp_path, 1)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"archive/data/1PK") - 8] |= 0x10
    refused(tmp_path / "x.pt", bytes(data), "record 'archive/data/1' is marked as a folder")


@pytest.mark.fault("C4", by="archive: the zip directory at its end")
def test_c4_bytes_behind_the_archive_are_refused(tmp_path: Path) -> None:
    (path,) = save_steps(tmp_path, 1)
    refused(tmp_path / "x.pt", path.read_bytes() + b"x", "bytes were appended")


@pytest.mark.fault("C5", by="archive: first bytes and record names")
def test_c5_other_files_are_refused_with_what_they_are(tmp_path: Path) -> None:
    refused(tmp_path / "x.pt", b"<html>404</html>", "not a file of torch.save")
    refused(tmp_path / "x.pt", gzip.compress(b"x" * 1000), "a gzip file")
    refused(tmp_path / "x.pt", b"PK\x03\x04" + bytes(1000), "no zip directory at its end")
    refused(tmp_path / "x.pt", stored_zip({"hello.txt": b"hello"}), "is none that torch.save writes")


@pytest.mark.fault("C6", by="archive: every storage has its record")
def test_c6_a_finalised_archive_with_missing_records_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in torch.save: it finalises the archive on its way out, and every zip test passes."""
    path = tmp_path / "x.pt"
    written = []

    def interrupted(storage: torch.UntypedStorage) -> int:
        written.append(storage)
        if len(written) > 1:
            raise KeyboardInterrupt
        return 40

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.UntypedStorage, "nbytes", interrupted)
        torch.save({"global_step": 1, "a": torch.ones(10), "b": torch.ones(100)}, path)
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
    refused(path, path.read_bytes(), "missing")
    complete = pickle_zip(_tensor_pickle("0", 1, (1,), (1,)), s0=b"1234")
    (tmp_path / "y.pt").write_bytes(complete)
    assert archive.summarize(tmp_path / "y.pt").tensors == {"w": ((1,), "float32")}
    refused(tmp_path / "x.pt", pickle_zip(_tensor_pickle("0", 1, (1,), (1,))), "record 'data/0' is missing")


@pytest.mark.fault("C9", by="archive: zip only, pickle protocol 2 only")
def test_c9_old_formats_are_refused_with_a_hint(tmp_path: Path) -> None:
    value = {"global_step": 1, "w": torch.ones(2)}
    path = tmp_path / "x.pt"
    torch.save(value, path, _use_new_zipfile_serialization=False)
    refused(path, path.read_bytes(), "old torch format.*save it anew")
    refused(path, pickle.dumps({"global_step": 1}, protocol=4), "old torch format")
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("pickle"))
    refused(path, path.read_bytes(), "old torch format")
    torch.save(value, path, pickle_protocol=4)
    refused(path, path.read_bytes(), "its pickle protocol is not 2")


@pytest.mark.fault("C13", by="pickled: a name is never called")
@pytest.mark.fault("K2", by="pickled: a name is never called")
def test_c13_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bomb = Payload(canary)
    for value in ({"a": bomb}, bomb, {"optimizer_state_dict": {"state": {0: [bomb]}}}):
        refused(
            tmp_path / "x.pt", pickle_zip(pickled(value)), r"it holds '(posix|os)\.system', which is not plain data"
        )
    torch.save({"a": bomb}, tmp_path / "y.pt")
    refused(tmp_path / "x.pt", (tmp_path / "y.pt").read_bytes(), "which is not plain data")
    assert not canary.exists()


@pytest.mark.fault("C13", by="torch_names: a list of plain names")
@pytest.mark.parametrize(
    "name",
    ["builtins eval", "builtins getattr", "os system", "posix system", "subprocess Popen", "torch.hub load",
     "torch.serialization load", "pickle loads", "builtins __import__", "torch.jit load", "numpy.testing runstring",
     "torch._utils _rebuild_wrapper_subclass", "torch float32.x", "torch.storage x.UntypedStorage", "os", ""],
)  # fmt: skip
def test_c13_only_names_of_plain_data_are_known(tmp_path: Path, name: str) -> None:
    module, _, attribute = name.partition(" ")
    data = b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b"X\x01\x00\x00\x00x\x85R."
    refused(tmp_path / "x.pt", pickle_zip(data), "which is not plain data")


@pytest.mark.fault("C15", by="archive: stored records only")
def test_c15_a_compressed_record_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", pickled({"global_step": 1}))
        file.writestr("a/version", "3")
        file.writestr("a/data/0", bytes(10_000_000))
    refused(tmp_path / "x.pt", (tmp_path / "z.zip").read_bytes(), "is compressed; torch.save never does that")


@pytest.mark.fault("C15", by="archive: the sizes add up to the file's")
def test_c15_records_that_claim_more_than_the_file_or_overlap_are_refused(tmp_path: Path) -> None:
    good = stored_zip({"data.pkl": pickled({}), "version": b"3", "data/0": b"x" * 100})
    entry = good.rindex(b"PK\x01\x02")
    claims = bytearray(good)
    struct.pack_into("<2L", claims, entry + 20, 10**9, 10**9)
    refused(tmp_path / "x.pt", bytes(claims), "claim more bytes than the file has")
    overlaps = bytearray(good)
    struct.pack_into("<L", overlaps, entry + 42, 3)
    refused(tmp_path / "x.pt", bytes(overlaps), "overlaps another one")
    many = bytearray(good)
    struct.pack_into("<2H", many, len(many) - 14, 65000, 65000)
    refused(tmp_path / "x.pt", bytes(many), "zip directory is damaged")


def with_extra(archive_bytes: bytes, name: str, offset: int, extra: bytes) -> bytes:
    """Return a zip whose directory has another offset and other extra fields for one record."""
    content = bytearray(archive_bytes)
    at = content.rindex(name.encode()) - 46
    assert content[at : at + 4] == b"PK\x01\x02"
    struct.pack_into("<H", content, at + 30, len(extra))
    struct.pack_into("<L", content, at + 42, offset)
    content[at + 46 + len(name) : at + 46 + len(name)] = extra
    length = struct.unpack_from("<L", content, len(content) - 10)[0]
    struct.pack_into("<L", content, len(content) - 10, length + len(extra))
    return bytes(content)


def test_a_record_for_which_two_readers_find_two_places_is_refused(tmp_path: Path) -> None:
    """Of two zip64 fields torch takes the first, which may lead to another pickle than the one that was looked at."""
    good = stored_zip({"data.pkl": pickled({"global_step": 1}), "version": b"3"})
    with zipfile.ZipFile(io.BytesIO(good)) as file:
        place, name = next((one.header_offset, one.filename) for one in file.infolist() if "data.pkl" in one.filename)
    full, here = 0xFFFFFFFF, struct.pack("<HHQ", 1, 8, place)
    (tmp_path / "one.pt").write_bytes(with_extra(good, name, full, here))
    assert archive.summarize(tmp_path / "one.pt").step == 1
    for extra in (
        here * 2,
        struct.pack("<HHQQ", 1, 16, place, place),
        struct.pack("<HHL", 1, 4, place),
        b"",
        here[:-1],
    ):
        refused(tmp_path / "x.pt", with_extra(good, name, full, extra), "extra fields")
    refused(tmp_path / "x.pt", with_extra(good, name, place, here), "extra fields")
    renamed = good.replace(name.encode(), name.replace("data", "eval").encode(), 1)
    refused(tmp_path / "x.pt", renamed, "is not where the directory says")


@pytest.mark.parametrize(
    "name", ["constants.pkl\0x", "CONSTANTS.pkl", "code/__torch__/m.py", "data/0x1", "data/", "Version"]
)
def test_a_record_that_torch_save_does_not_write_is_refused(tmp_path: Path, name: str) -> None:
    """torch takes an archive for a program by such a name, cut at a NUL, and finds it whatever its case."""
    content = stored_zip({"data.pkl": pickled({}), "version": b"3", "Q" * len(name): b"x"})
    refused(tmp_path / "x.pt", content.replace(b"Q" * len(name), name.encode()), "is none that torch.save writes")


@pytest.mark.fault("C16", by="torch_names: a tensor fits its storage")
def test_c16_an_expanded_tensor_is_refused(tmp_path: Path) -> None:
    """839 bytes of this made torch allocate 5 GiB."""
    for shape, stride in [
        ((10**12,), (0,)),
        ((10**6, 10**6), (0, 0)),
        ((2,), (1,)),
        ((1,) * 65, (1,) * 65),
        ((-1,), (1,)),
    ]:
        data = _tensor_pickle("0", 1, shape, stride)
        refused(tmp_path / "x.pt", pickle_zip(data, s0=b"1234"), "a tensor claims|impossible shape")
    refused(
        tmp_path / "x.pt", pickle_zip(_tensor_pickle("0", 10**12, (1,), (1,)), s0=b"1234"), "has 4 bytes, not 4,000"
    )
    refused(
        tmp_path / "x.pt", pickle_zip(_tensor_pickle("0", 10**40, (1,), (1,)), s0=b"1234"), "unknown kind of storage"
    )
    (tmp_path / "y.pt").write_bytes(b"")
    torch.save({"w": torch.ones(1).expand(10**12)}, tmp_path / "y.pt")
    refused(tmp_path / "x.pt", (tmp_path / "y.pt").read_bytes(), "a tensor claims 1,000,000,000,000 elements")


BOMBS = {
    "five gibibytes of bytearray": (b"c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x40\x01\x85R.", "damaged"),
    "a memo index of four thousand million": (b"Nr\xff\xff\xff\xff.", "dict at its top"),
    "a string longer than the file": (b"X\xff\xff\xff\xffx.", "damaged"),
    "three million opcodes": (b"N0" * 1_500_000 + b".", "opcode 0x30"),
    "three million nulls": (b"N" * 3_000_000 + b".", "more than 2,000,000 opcodes"),
    "nesting without end": (b"(" * 1000 + b".", "nests deeper than 100"),
    "lists in lists": (b"]" * 500_000 + b"a" * 499_999 + b".", "dict at its top"),
    "a key of tuples in tuples": (b"})" + b"q\x00h\x00\x86" * 60 + b"Ns.", "nothing"),
    "a key of tuples in a storage's name": (b")" + b"q\x00h\x00\x86" * 60 + b"q\x05NN\x87Q.", "damaged"),
    "a size of 100,000 made 100,000 times": (
        b"(" + b"N" * 100_000 + b"t\x85q\x00ctorch\nSize\nq\x01" + b"h\x01h\x00R" * 100_000 + b".",
        "damaged",
    ),
    "a dict copied again and again": (
        b"(" + b"".join(b"X\x01\x00\x00\x00" + bytes([65 + n]) for n in range(26)) * 2 + b"]}"
        b"\x85q\x00ccollections\nOrderedDict\nq\x01" + b"h\x01h\x00R" * 100_000 + b"t.",
        "damaged|dict at its top",
    ),
    "an empty pickle": (b"", "damaged"),
    "a stack that is empty": (b"R.", "damaged"),
    "a global without an end": (b"c" + b"x" * 5000, "damaged"),
    "an unknown opcode": (b"\x93.", "opcode 0x93"),
}


@pytest.mark.fault("C17", by="pickled: caps on size, count and depth")
@pytest.mark.fault("K13", by="pickled: caps on size, count and depth")
@pytest.mark.parametrize("name", sorted(BOMBS))
def test_c17_a_pickle_made_to_exhaust_is_refused_or_read_in_bounded_time_and_memory(tmp_path: Path, name: str) -> None:
    data, reason = BOMBS[name]
    path = tmp_path / "x.pt"
    path.write_bytes(pickle_zip(b"\x80\x02" + data))
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "sys.path.append(sys.argv[1]); from pathlib import Path\n"
        "from resumekit.checkpoint.archive import summarize; from resumekit.base.files import UnreadableFile\n"
        "try: summarize(Path(sys.argv[2])); print('nothing')\n"
        "except UnreadableFile as error: print(error)"
    )
    command = [sys.executable, "-I", "-c", program, str(LIB), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr[-500:]
    assert any(part in done.stdout for part in reason.split("|")), done.stdout


def test_a_directory_that_claims_too_many_records_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "x.pt", stored_zip({"data.pkl": b"", "version": b"3"})[:-22] + struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**31, 0, 0), "damaged|records")  # fmt: skip


@pytest.mark.fault("C3", by="archive: every read is checked")
def test_damaged_archives_of_every_kind_never_raise_anything_but_unreadable(tmp_path: Path) -> None:
    """800 files of random damage in directory and pickle."""
    model, optimizer = small_model()
    torch.save(
        {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}, tmp_path / "a.pt"
    )
    good = (tmp_path / "a.pt").read_bytes()
    directory, pickle_end = good.index(b"PK\x01\x02"), good.index(b"data.pkl") + 3000
    dice = random.Random(3)
    path = tmp_path / "x.pt"
    for _ in range(800):
        data = bytearray(good)
        for _ in range(dice.randint(1, 6)):
            low, high = (directory, len(data)) if dice.random() < 0.5 else (0, pickle_end)
            data[dice.randrange(low, high)] = dice.randrange(256)
        path.write_bytes(data)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            archive.summarize(descriptor)
            check_crcs(descriptor)
        except UnreadableFile:
            pass
        finally:
            os.close(descriptor)


def _tensor_pickle(key: str, elements: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """Return a pickle of {'model_state_dict': {'w': a float tensor with this claim}}."""

    def push(value: Any) -> bytes:
        return pickled(value)[2:-1]

    storage = b"(" + push("storage") + b"ctorch\nFloatStorage\n" + push(key) + push("cpu") + push(elements) + b"tQ"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + push(0) + push(shape) + push(stride)
    tensor = rebuild + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + push("model_state_dict") + b"}" + push("w") + tensor + b"ss."
