"""The weights of a checkpoint, copied without torch: torch loads the same numbers, and no hostile file does harm."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from resumekit.base.files import UnreadableFile
from resumekit.checkpoint import archive, one_pass, weights_extract, weights_file
from support.checkpoint_tools import pickle_zip, save_steps
from support.places import ROOT

PROGRAM = ROOT / "lib" / "resumekit" / "checkpoint" / "weights_extract.py"
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.uint16, torch.uint32, torch.uint64,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
]  # fmt: skip
torch.set_num_threads(1)


def extracted(path: Path, kind: str = "raw") -> tuple[Path, dict[str, Any]]:
    """Return the file of weights beside a checkpoint, and what was said of it."""
    out = path.with_name("weights.pt")
    out.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return out, weights_extract.extract(out, kind, None, descriptor)
    finally:
        os.close(descriptor)


def loaded(path: Path) -> dict[str, torch.Tensor]:
    """Load a file of weights both ways, read and mapped; return it when they agree."""
    one = torch.load(path, weights_only=True)
    two = torch.load(path, weights_only=True, mmap=True)
    assert_same(one, two)
    return one


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Same names in the same order, shapes, types, steps, and bit for bit the same numbers."""
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert torch.equal(bits(found[name]), bits(value)), name


def bits(value: torch.Tensor) -> torch.Tensor:
    return value.detach().contiguous().reshape(-1).view(torch.uint8)


def save(folder: Path, model: dict[str, Any], **more: Any) -> Path:
    path = folder / "best.pt"
    torch.save({"model_state_dict": model, "global_step": 3, **more}, path)
    return path


def test_every_type_of_number_comes_back_bit_for_bit(tmp_path: Path) -> None:
    raw = torch.randint(0, 256, (48,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = {str(dtype): raw.clone().view(dtype).reshape(-1, 1) for dtype in DTYPES if dtype != torch.bool}
    model["torch.bool"] = raw > 100
    assert len(model) == len(DTYPES)
    out, said = extracted(save(tmp_path, model))
    assert_same(loaded(out), model)
    assert (said["tensors"], said["from_raw"], said["left_out"]) == (len(DTYPES), [], [])
    assert (said["sha256"], said["size"]) == (hashlib.sha256(out.read_bytes()).hexdigest(), out.stat().st_size)


def test_scalars_empty_tensors_and_views_come_back_with_their_steps(tmp_path: Path) -> None:
    base = torch.arange(60.0).reshape(3, 4, 5)
    model = {
        "scalar": torch.tensor(7), "of one": base.flatten()[17], "empty": torch.zeros(0, 4), "none": base[:0, 1:],
        "part": base[1], "turned": base[1].t(), "permuted": base.permute(2, 0, 1), "strided": base[:, ::2, 1:],
        "repeated": torch.arange(9.0)[4].expand(3), "a parameter": torch.nn.Parameter(torch.ones(2)), "ü\ud800": base,
    }  # fmt: skip
    out, _ = extracted(save(tmp_path, model))
    found = loaded(out)
    assert_same(found, model)
    for name in ("turned", "permuted", "strided", "repeated"):
        assert found[name].stride() == model[name].stride()
    assert type(found["a parameter"]) is torch.Tensor


def test_a_view_is_saved_without_the_rest_of_its_storage(tmp_path: Path) -> None:
    """Every parameter of a model that trains on one flat storage is such a view."""
    flat = torch.randn(1_000_000)
    model = {"a": flat[10:14], "b": flat[20:32].reshape(3, 4).t()}
    out, said = extracted(save(tmp_path, model, optimizer=flat))
    assert_same(loaded(out), model)
    assert said["size"] < 10_000


def test_tied_weights_stay_tied_and_are_written_once(tmp_path: Path) -> None:
    table = torch.randn(1000, 8)
    flat = torch.randn(9000)
    model = {"in": table, "head": table, "turned": table.t(), "one": flat[:8000], "two": flat[:8000], "other": flat[1:]}
    out, said = extracted(save(tmp_path, model, optimizer=torch.zeros(20_000)))
    found = loaded(out)
    assert_same(found, model)
    assert found["in"].data_ptr() == found["head"].data_ptr() == found["turned"].data_ptr() != found["one"].data_ptr()
    assert found["one"].data_ptr() == found["two"].data_ptr() and said["size"] < 4 * (8000 + 8000 + 9000) + 4000


def test_every_record_begins_at_a_multiple_of_64_and_has_its_checksum(tmp_path: Path) -> None:
    out, _ = extracted(save(tmp_path, {f"w{n}": torch.randn(n) for n in range(70)}))
    assert zipfile.ZipFile(out).testzip() is None
    with open(out, "rb") as file:
        found = archive.records(file.fileno())
        assert [archive.data_offset(file.fileno(), record) % 64 for record in found] == [0] * 73
        assert one_pass.read(file.fileno(), "", checksums=True, keeps=False).fault == ""
        assert len(archive.content(file.fileno())[0]) == 70


@pytest.mark.campaign  # it writes 4 GiB
def test_a_record_beyond_4_gib_is_found_again(tmp_path: Path) -> None:
    """A sparse checkpoint; the copy goes through sizes and offsets of 64 bits."""
    big = torch.UntypedStorage.from_file(str(tmp_path / "big"), shared=True, nbytes=(4 << 30) + 8)
    model = {"big": torch.tensor([], dtype=torch.uint8).set_(big), "last": torch.arange(5)}
    torch.serialization.set_crc32_options(False)
    try:
        with torch.serialization.skip_data():
            path = save(tmp_path, model)
    finally:
        torch.serialization.set_crc32_options(True)
    descriptor, out = os.open(path, os.O_RDWR), tmp_path / "weights.pt"
    try:
        value, _, records = archive.content(descriptor)
        for record in records.values():
            if record.name.endswith("data/1"):
                os.pwrite(descriptor, struct.pack("<5q", *range(5)), archive.data_offset(descriptor, record))
        weights_file.write(out, value["model_state_dict"], descriptor, records)
    finally:
        os.close(descriptor)
    found = torch.load(out, weights_only=True, mmap=True)
    assert found["big"].shape == ((4 << 30) + 8,) and found["last"].tolist() == [0, 1, 2, 3, 4]
    for large in (path, out, tmp_path / "big"):
        large.unlink()


@pytest.mark.parametrize("is_compiled", [False, True])
def test_an_average_is_found_under_the_names_of_averaged_model(tmp_path: Path, is_compiled: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    average = torch.optim.swa_utils.AveragedModel(model)
    torch.nn.init.constant_(model[0].weight, 5)
    state = average.state_dict()
    if is_compiled:
        state = {name.replace("module.", "module._orig_mod."): value for name, value in state.items()}
    out, said = extracted(save(tmp_path, model.state_dict(), ema_state_dict=state), "ema")
    assert_same(loaded(out), dict(average.module.state_dict()))
    assert said["from_raw"] == [] and not torch.equal(loaded(out)["0.weight"], model[0].weight)
    model.load_state_dict(loaded(out))


def test_an_average_is_found_by_name_however_it_is_wrapped(tmp_path: Path) -> None:
    raw = {"a.weight": torch.zeros(2), "a.count": torch.tensor(7), "b": torch.zeros(3)}
    ones = {"a.weight": torch.ones(2), "b": torch.ones(3), "a.count": torch.ones(9)}
    for state in ({"shadow": ones, "decay": 0.99}, {f"module.{name}": value for name, value in ones.items()}):
        out, said = extracted(save(tmp_path, raw, ema_state_dict=state), "ema")
        found = loaded(out)
        assert list(found) == list(raw) and said["from_raw"] == ["a.count"]
        assert found["b"].tolist() == [1, 1, 1] and found["a.count"] == 7
    two = {"shadow": ones, "backup": dict(ones)}
    for state, words in ((two, "two averages"), ({"x": torch.ones(2)}, "none of the model's"), (None, "none of the")):
        with pytest.raises(UnreadableFile, match=words):
            extracted(save(tmp_path, raw, ema_state_dict=state), "ema")


def test_what_is_no_tensor_is_left_out_and_named(tmp_path: Path) -> None:
    odd = collections.OrderedDict({"w": torch.ones(2), "fp8._extra_state": {"scale": 1.0}, 5: torch.ones(1)})
    out, said = extracted(save(tmp_path, odd))
    assert_same(loaded(out), {"w": torch.ones(2)})
    assert said["left_out"] == ["fp8._extra_state", "5"]
    path = tmp_path / "bare.pt"
    torch.save({"w": torch.ones(2), "global_step": 3, "optimizer": {"m": torch.ones(2)}}, path)
    out, said = extracted(path)
    assert_same(loaded(out), {"w": torch.ones(2)})
    assert said["left_out"] == ["global_step", "optimizer"]


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_what_cannot_be_written_is_refused_by_its_name(tmp_path: Path) -> None:
    wanted = {
        "its weight 'w' is a negated or conjugated view": torch.ones(2, dtype=torch.complex64).conj(),
        "not plain data": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "_rebuild_sparse_tensor": torch.eye(3).to_sparse(),
        "its weight 'w' is a float4_e2m1fn_x2": torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "no 'model_state_dict'": 5,
    }
    for words, value in wanted.items():
        with pytest.raises(UnreadableFile, match=words):
            extracted(save(tmp_path, {"w": value}))
        assert not (tmp_path / "weights.pt").exists()


def test_a_checkpoint_of_the_kit_gives_its_own_models_weights(tmp_path: Path) -> None:
    (path,) = save_steps(tmp_path, 3)
    out, said = extracted(path)
    assert_same(loaded(out), torch.load(path, weights_only=True)["model_state_dict"])
    assert said["source_sha256"] == json.loads((tmp_path / f"{path.name}.json").read_text())["sha256"]


def test_the_process_needs_no_torch_and_says_one_line(tmp_path: Path) -> None:
    (path,) = save_steps(tmp_path, 3)

    def run(out: str, sha256: str) -> tuple[int, dict[str, Any]]:
        with open(path, "rb") as stdin:
            argv = [sys.executable, "-I", "-S", str(PROGRAM), str(tmp_path / out), "raw", sha256]
            done = subprocess.run(argv, stdin=stdin, capture_output=True, text=True, timeout=60)
        assert done.stderr == ""
        return done.returncode, json.loads(done.stdout)

    code, said = run("one.pt", "")
    assert code == 0 and said["tensors"] == 4 and loaded(tmp_path / "one.pt").keys() == {
        "0.weight", "0.bias", "2.weight", "2.bias",
    }  # fmt: skip
    assert run("two.pt", said["source_sha256"])[0] == 0
    assert run("three.pt", "0" * 64) == (1, {"error": "the checkpoint's digest differs from its manifest"})
    assert run("one.pt", "")[0] == 1  # what is there is not written over


@pytest.mark.parametrize("limit", [0, 10, 1000, 5000])
def test_a_disk_that_is_full_is_said_as_such(tmp_path: Path, limit: int) -> None:
    """Wherever the writing ends: in the first record, in a later one, at the end."""
    path = save(tmp_path, {"a": torch.zeros(100), "b": torch.zeros(1000)})
    argv = ["-I", "-S", str(PROGRAM), str(tmp_path / "weights.pt"), "raw"]
    program = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
    program += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    with open(path, "rb") as stdin:
        command = [sys.executable, "-c", program, *argv]
        done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, '{"error": "[Errno 27] File too large"}\n'), done.stderr
    assert done.stderr == ""


def test_weights_that_claim_the_same_bytes_again_and_again_do_not_fill_the_disk(tmp_path: Path) -> None:
    """A thousand views of one record, each a byte further on: a hundred kilobytes would become a hundred megabytes."""
    flat = torch.zeros(100_000, dtype=torch.uint8)
    path = save(tmp_path, {str(n): flat[n : n + 99_000] for n in range(1000)})
    with pytest.raises(UnreadableFile, match="claim more bytes than it has"):
        extracted(path)
    assert not (tmp_path / "weights.pt").exists()


def test_dicts_that_hold_each_other_have_an_end(tmp_path: Path) -> None:
    """Two to the hundredth averages, one inside the other, and one that holds itself."""
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    tensor += b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00))\x89ccollections\nOrderedDict\n)RtR"
    nested = b"}q\x00X\x01\x00\x00\x00mh\x00s"
    for n in range(1, 100):
        one, two = bytes([n - 1]), bytes([n])
        nested += b"}q" + two + b"(X\x01\x00\x00\x00ah" + one + b"X\x01\x00\x00\x00bh" + one + b"u"
    data = b"\x80\x02}(X\x10\x00\x00\x00model_state_dict}X\x01\x00\x00\x00w" + tensor + b"s"
    data += b"X\x04\x00\x00\x00made(" + nested + b"tX\x0e\x00\x00\x00ema_state_dicth" + two + b"u."
    path = tmp_path / "best.pt"
    path.write_bytes(pickle_zip(data, s0=b"1234"))
    assert list(loaded(extracted(path)[0])) == ["w"]
    started = time.monotonic()
    with pytest.raises(UnreadableFile, match="none of the model's"):
        extracted(path, "ema")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.campaign)])
def test_mutants_are_refused_or_copied_as_torch_would_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Up to eight bits or bytes anywhere, in data.pkl, in the zip directory; nothing but a refusal escapes."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    (path,) = save_steps(tmp_path, 3)
    good = path.read_bytes()
    start = good.index(b"\x80\x02}")
    parts = [(0, len(good)), (start, good.index(b"PK\x03\x04", start)), (good.index(b"PK\x01\x02"), len(good))]
    dice, mutant, counts = random.Random(count), tmp_path / "mutant.pt", collections.Counter()
    for number in range(count):
        data = bytearray(good)
        for _ in range(dice.choice((1, 1, 2, 8))):
            first, last = parts[number % 3]
            at = dice.randrange(first, last)
            if dice.random() < 0.5:
                data[at] = dice.randrange(256)
            else:
                data[at] ^= 1 << dice.randrange(8)
        mutant.write_bytes(data)
        started = time.monotonic()
        try:
            out, said = extracted(mutant)
        except UnreadableFile:
            counts["refused"] += 1
            continue
        finally:
            assert time.monotonic() - started < 5
        counts["copied"] += 1
        assert said["size"] < 2 * len(good)
        found = loaded(out)
        try:
            wanted = torch.load(mutant, weights_only=True)["model_state_dict"]
        except Exception:  # what torch raises of such a file can be anything
            continue
        counts["compared"] += 1
        assert_same(found, {name: wanted[name] for name in found})
    assert min(counts["refused"], counts["compared"]) > count / 5, counts
