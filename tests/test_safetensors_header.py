"""Reading a safetensors file without its package: what its header tells, and what is refused."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from resumekit.base.files import UnreadableFile
from resumekit.checkpoint import safetensors_header
from resumekit.checkpoint.safetensors_header import Region
from support.small_memory import read_in_small_memory

ONE = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


def file_of(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """Return a file; `header` is its text, or what is made JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def read(folder: Path, content: bytes) -> safetensors_header.Header:
    path = folder / "x.safetensors"
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return safetensors_header.read(descriptor)
    finally:
        os.close(descriptor)


def entry(shape: list[Any], begin: int, end: int, dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def test_names_shapes_dtypes_places_and_metadata_are_told(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"step": "4"}, "later": entry([2, 3], 2, 26), "first": entry([1], 0, 2, "BF16"),
        "none": entry([0, 7], 26, 26, "F8_E4M3"), "number": entry([], 26, 34, "I64"),
    }  # fmt: skip
    text = json.dumps(header).encode() + b"  "
    found = read(tmp_path, file_of(text, bytes(34)))
    start = 8 + len(text)
    assert found.metadata == {"step": "4"}
    assert found.tensors == {
        "later": Region("float32", (2, 3), start + 2, start + 26),
        "first": Region("bfloat16", (1,), start, start + 2),
        "none": Region("float8_e4m3fn", (0, 7), start + 26, start + 26),
        "number": Region("int64", (), start + 26, start + 34),
    }
    assert read(tmp_path, file_of({})) == ({}, {})


REFUSED = {
    "nothing": (b"", "too short for a safetensors file: 0 bytes"),
    "seven bytes": (bytes(7), "too short"),
    "zeros": (bytes(400), "header is empty"),
    "a length that lies": (file_of(ONE, b"abcd", length=10_000), "a header of 10,000 bytes in"),
    "a length of all ones": (file_of(ONE, b"abcd", length=2**64 - 1), "a header of 18,446"),
    "a zip": (b"PK\x03\x04" + bytes(400), "header"),
    "no brace": (file_of(b" {}"), "does not begin with"),
    "UTF-16": (file_of("{}".encode("utf-16-le")), "not JSON"),
    "not UTF-8": (file_of(b'{"\xff":1}'), "not JSON"),
    "half a character": (file_of(b'{"\\ud800":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}', b"x"), "not JSON"),
    "not JSON": (file_of(b"{'a':1}"), "not JSON"),
    "two values": (file_of(b"{}{}"), "not JSON"),
    "a name twice": (file_of(b'{"a":{"dtype":"U8"},"a":{"dtype":"I8"}}'), "a name twice"),
    "a field twice": (file_of(b'{"a":{"dtype":"U8","dtype":"I8","shape":[],"data_offsets":[0,1]}}'), "a name twice"),
    "metadata of numbers": (file_of({"__metadata__": {"step": 4}}), "not an object of texts"),
    "metadata of a list": (file_of({"__metadata__": []}), "not an object of texts"),
    "a tensor that is a number": (file_of({"a": 1}), "does not describe 'a'"),
    "a field too few": (file_of({"a": {"dtype": "U8", "shape": []}}), "does not describe 'a'"),
    "a field too many": (file_of({"a": entry([1], 0, 4, x=1)}, b"abcd"), "does not describe 'a'"),
    "an unknown dtype": (file_of({"a": entry([1], 0, 4, "F31")}, b"abcd"), "the unknown dtype 'F31'"),
    "a dtype of a list": (file_of({"a": entry([1], 0, 4, [])}, b"abcd"), "no text"),
    "a shape of floats": (file_of({"a": entry([1.0], 0, 4)}, b"abcd"), "impossible shape"),
    "a shape of booleans": (file_of({"a": entry([True], 0, 4)}, b"abcd"), "impossible shape"),
    "a negative shape": (file_of({"a": entry([-1], 0, 4)}, b"abcd"), "impossible shape"),
    "65 dimensions": (file_of({"a": entry([1] * 65, 0, 4)}, b"abcd"), "impossible shape"),
    "a shape beyond all files": (file_of({"a": entry([2**60] * 60, 0, 4)}, b"abcd"), "impossible shape"),
    "a number of 400 digits": (file_of({"a": entry([10**400], 0, 4)}, b"abcd"), "impossible shape"),
    "three offsets": (file_of({"a": {**ONE["a"], "data_offsets": [0, 4, 4]}}, b"abcd"), "impossible shape"),
    "an end before the beginning": (file_of({"a": entry([1], 4, 0)}, b"abcd"), "impossible shape"),
    "another size than its shape": (file_of({"a": entry([2], 0, 4)}, b"abcd"), "has 4 bytes, .* need 8"),
    "an overlap": (file_of({"a": entry([1], 0, 4), "b": entry([1], 2, 6)}, b"abcdef"), "'b' overlaps"),
    "a gap": (file_of({"a": entry([1], 0, 4), "b": entry([1], 5, 9)}, b"abcdefghi"), "'b' lies behind a gap"),
    "a gap at the beginning": (file_of({"a": entry([1], 1, 5)}, b"abcde"), "'a' lies behind a gap"),
    "a cut": (file_of(ONE, b"abc"), "truncated: its tensors need"),
    "bytes behind it": (file_of(ONE, b"abcdef"), "2 bytes behind its last tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_file_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    content, reason = REFUSED[name]
    with pytest.raises(UnreadableFile, match=reason) as raised:
        read(tmp_path, content)
    assert len(str(raised.value)) < 200


BOMBS = {
    "a header of 40 MB": (lambda: file_of(b"{" + b" " * 40_000_000 + b"}"), "more than 33,554,432"),
    "lists in lists": (lambda: file_of(b'{"a":' + b"[" * 500_000), "not JSON"),
    "a million objects and one": (
        lambda: file_of(b'{"a":[' + b"{}," * 1_000_000 + b"{}]}"),
        "more than 4,000,000 values",
    ),
    "a million lists": (lambda: file_of(b'{"a":[' + b"[]," * 1_000_000 + b"[]]}"), "more than 4,000,000 values"),
    "ten million numbers": (lambda: file_of(b'{"a":[' + b"1," * 10_000_000 + b"1]}"), "more than 4,000,000 values"),
    "30 MB of one text": (lambda: file_of(b'{"a":"' + "\U0001f600".encode() * 7_500_000 + b'"}'), "does not describe"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_header_made_to_exhaust_is_refused_in_bounded_memory(tmp_path: Path, name: str) -> None:
    make, reason = BOMBS[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(make())
    assert reason in read_in_small_memory("safetensors_header.read(os.open(sys.argv[1], os.O_RDONLY))", path)
