"""In which form a checkpoint may hold a name: what torch and numpy really save is read, what runs code is refused."""

from __future__ import annotations

import argparse
import collections
import datetime
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from resumekit.base.files import UnreadableFile
from resumekit.checkpoint import archive
from support.checkpoint_tools import pickle_zip, small_model
from support.places import LIB

numpy = pytest.importorskip("numpy")
SCALAR, ARRAY = "scalar", "_reconstruct"
TIMES = numpy.array(["2026-11-30T02:00"], "M8[ns]")
STRUCTURED = numpy.zeros(2, [("a", "<i4"), ("b", [("x", "<f8"), ("y", "<f4", (2, 3))])])
ALIGNED = numpy.zeros(1, numpy.dtype([("a", "i1"), ("b", "f8")], align=True))


pytestmark = pytest.mark.usefixtures("one_thread")


def with_attributes(tensor: torch.Tensor) -> torch.Tensor:
    """Give a tensor attributes, as libraries do; they are saved with it."""
    tensor.tag, tensor.partition_dim, tensor._no_decay, tensor.kind = "x", [0, {"a": 1}], True, torch.float32  # type: ignore[attr-defined]
    return tensor


def conjugated() -> torch.Tensor:
    return torch.complex(torch.ones(3), torch.ones(3)).conj()


def buffer_and_hooked() -> list[torch.Tensor]:
    hooked = torch.nn.Parameter(torch.ones(2))
    hooked.register_hook(lambda gradient: gradient)
    hooked.grad = torch.ones(2)
    return [torch.nn.Buffer(torch.ones(2)), hooked] if hasattr(torch.nn, "Buffer") else [hooked]


def scheduled() -> dict[str, Any]:
    _, optimizer = small_model()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    averaged = torch.optim.swa_utils.AveragedModel(small_model()[0])
    return {"schedule": schedule.state_dict(), "optimizer": optimizer.state_dict(), "averaged": averaged.state_dict()}


def namespace(**values: Any) -> argparse.Namespace:
    return argparse.Namespace(lr=0.1, betas=(0.9, 0.95), inner=argparse.Namespace(names=["a"]), **values)


def kept_counts() -> collections.defaultdict[str, Any]:
    found: collections.defaultdict[str, Any] = collections.defaultdict(list, {"a": [1], "b": [2.5]})
    return found


# What is saved -> which names in it weights_only=True refuses, by their ends: as the reader said before it knew forms.
SAVED: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "a model": (lambda: torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict(), ()),
    "an optimizer, a schedule and an average": (scheduled, ()),
    "sgd with momentum": (lambda: torch.optim.SGD([torch.ones(1)], lr=0.1, momentum=0.9).state_dict(), ()),
    "a gradient scaler": (lambda: torch.amp.GradScaler("cpu").state_dict(), ()),
    "rng states": (lambda: [random.getstate(), torch.get_rng_state(), torch.Generator().get_state()], ()),
    "numpy's rng state": (lambda: numpy.random.get_state(), (ARRAY, "dtype", "ndarray")),
    "dtypes of tensors": (
        lambda: [
            torch.zeros(2, dtype=getattr(torch, name))
            for name in ("float64", "float16", "bfloat16", "int64", "int8", "uint8", "bool", "complex64", "complex128",
                         "complex32", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
            if hasattr(torch, name)
        ],
        (),
    ),
    "views, scalars, empty and shared ones": (
        lambda: [torch.ones(3, 4).t()[1:, ::2], torch.tensor(3), torch.zeros(0, 4), *[torch.ones(3)] * 2],
        (),
    ),
    "a conjugated and a negated tensor": (lambda: [conjugated(), conjugated().imag], ()),
    "parameters": (lambda: [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), False)], ()),
    "attributes of tensors": (
        lambda: [with_attributes(torch.ones(2)), with_attributes(torch.nn.Parameter(torch.ones(2)))], ()
    ),
    "attributes of a tensor without a storage of its kind": (
        lambda: with_attributes(torch.zeros(2, dtype=torch.float8_e5m2)), ()
    ),
    "a buffer and a parameter with hooks": (buffer_and_hooked, ()),
    "storages": (lambda: [torch.ones(2).untyped_storage(), torch.ones(2).storage()], ()),
    "torch's own types": (
        lambda: [torch.float32, torch.bfloat16, torch.bool, torch.uint8, torch.device("cpu"), torch.device("cuda", 1),
                 torch.Size([1, 2]), torch.Size([]), torch.strided, torch.sparse_coo], ()
    ),
    "plain values": (
        lambda: [None, True, 2**70, -5, 1.5, "\u00fc\ud800", b"b", (1, 2, 3, 4), bytearray(b"x"), bytearray(), 1j],
        (),
    ),
    "sets": (lambda: [{1, "a", (1, 2)}, set()], ()),
    "a frozenset": (lambda: [frozenset({1}), frozenset()], ("frozenset",)),
    "ordered and counted": (
        lambda: [kind(values) for kind in (collections.OrderedDict, collections.Counter) for values in ({"a": 1}, {})],
        (),
    ),
    "keys of every kind": (lambda: {(1, 2): 3, 5: 6, None: 1, 1.5: 2, True: 3, b"b": 4, 2**60: 5}, ()),
    "a defaultdict": (kept_counts, ("defaultdict", "list")),
    "a defaultdict of others": (
        lambda: [collections.defaultdict(kind, {(1, 2): 0}) for kind in (float, set, collections.Counter, None)],
        ("defaultdict", "float"),
    ),
    "a namespace": (namespace, ("Namespace",)),
    "a namespace of types": (
        lambda: namespace(kind=float, dtype=torch.float32, path=Path("/a")), ("Namespace", "PosixPath", "float")
    ),
    "an empty namespace": (argparse.Namespace, ("Namespace",)),
    "paths": (lambda: [Path("/a/b"), Path()], ("PosixPath",)),
    "a time": (lambda: datetime.datetime(2026, 11, 30, 2, 3, 4, 5), ("datetime",)),
    "a duration": (lambda: datetime.timedelta(-1, 2, 3), ("timedelta",)),
    "numpy's scalars": (
        lambda: [numpy.float64(1.5), numpy.float32(1), numpy.int64(3), numpy.bool_(True), numpy.str_("ab"),
                 numpy.complex64(1j), numpy.longdouble(1), TIMES[0], TIMES[0] - TIMES[0], STRUCTURED[0]],
        ("dtype", SCALAR),
    ),
    "numpy's arrays": (
        lambda: [numpy.zeros((2, 3), kind) for kind in ("f8", "f4", "f2", "i1", "u8", "?", "c16", ">i4", "g")],
        (ARRAY, "dtype", "ndarray"),
    ),
    "arrays of texts and bytes": (
        lambda: [numpy.array(["ab", "c"]), numpy.array([b"ab", b"c"]), numpy.zeros(2, "V5")],
        (ARRAY, "dtype", "ndarray"),
    ),
    "arrays of times": (lambda: [TIMES, TIMES - TIMES, numpy.zeros(1, "M8")], (ARRAY, "dtype", "ndarray")),
    "arrays of records": (lambda: [STRUCTURED, STRUCTURED["b"], ALIGNED], (ARRAY, "dtype", "ndarray")),
    "arrays of objects": (
        lambda: [numpy.array([1, None, "x", [2]], dtype=object), numpy.array([[{}, ()]], dtype=object)],
        (ARRAY, "dtype", "ndarray"),
    ),
    "an array in Fortran's order, one of no dimension, and a view": (
        lambda: [numpy.asfortranarray(numpy.ones((2, 3))), numpy.array(3.0), numpy.arange(9)[::2]],
        (ARRAY, "dtype", "ndarray"),
    ),
    "a dtype": (lambda: [numpy.dtype("f4"), numpy.dtype("S3"), STRUCTURED.dtype], ("dtype",)),
}  # fmt: skip


@pytest.mark.parametrize("name", SAVED)
def test_what_torch_and_numpy_save_is_read(tmp_path: Path, name: str) -> None:
    make, unsafe = SAVED[name]
    torch.save({"value": make(), "again": make(), "global_step": 3, "w": torch.ones(2)}, tmp_path / "x.pt")
    found = archive.summarize(tmp_path / "x.pt")
    assert (found.step, found.keys) == (3, ("value", "again", "global_step", "w"))
    assert {one.rpartition(".")[2] for one in found.unsafe} == set(unsafe)
    if not unsafe:
        torch.load(tmp_path / "x.pt", weights_only=True)


def test_numpy_of_before_2_is_read(tmp_path: Path) -> None:
    """It says numpy.core for numpy._core; a dtype 0 and 1 for False and True, {} for None, and its flags are signed."""
    old = at("numpy.core.multiarray _reconstruct", "numpy ndarray", (0,), b"b")
    kind = build(call("numpy dtype", "M8", 0, 1), (4, "<", None, None, None, -1, -1, 0, ({}, (b"ns", 1, 1, 1))))
    aligned = record_dtype({"a": (DOUBLE, 0)}, flags=144 - 256)
    found = read(tmp_path, build(old, (1, (1,), kind, False, bytes(8))), aligned)
    assert found.unsafe == ("numpy.core.multiarray._reconstruct", "numpy.dtype", "numpy.ndarray")


class Code(bytes):
    """Opcodes that push one value."""


def push(value: Any) -> bytes:
    """Assemble the opcodes of a value; Code stands for itself, and a text with a space, in `at`, for a name."""
    if isinstance(value, Code):
        return value
    if isinstance(value, bool) or value is None:
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return call("_codecs encode", value.decode("latin1"), "latin1")
    if isinstance(value, tuple):
        return b"(" + b"".join(map(push, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(push, value)) + b"e"
    return b"}(" + b"".join(push(key) + push(item) for key, item in value.items()) + b"u"


def named(name: str) -> Code:
    return Code(b"c%s\n%s\n" % tuple(name.encode().split()))


def call(name: str, *arguments: Any) -> Code:
    return Code(named(name) + push(arguments) + b"R")


def at(name: str, first: str, *arguments: Any) -> Code:
    """A call whose first argument is a name."""
    return call(name, named(first), *arguments)


def build(made: bytes, state: Any) -> Code:
    return Code(made + push(state) + b"b")


def put(place: int, value: bytes) -> Code:
    return Code(value + b"q" + bytes([place]))


def get(place: int) -> Code:
    return Code(b"h" + bytes([place]))


def read(folder: Path, *values: Any) -> archive.Summary:
    """Summarize a checkpoint that holds these values."""
    (folder / "x.pt").write_bytes(holding(*values))
    return archive.summarize(folder / "x.pt")


def holding(*values: Any) -> bytes:
    content = push({"junk": list(values), "global_step": 1})
    return pickle_zip(b"\x80\x02" + content + b".", s0=bytes(4))


DICT = "collections OrderedDict"
PARAMETER, WITH_STATE = "torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state"
STORAGE = Code(push(("storage", named("torch FloatStorage"), "0", "cpu", 1)) + b"Q")
PARTS = (STORAGE, 0, (1,), (1,), False, call(DICT))
REBUILD, REBUILD_V3 = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"
TENSOR = call(REBUILD, *PARTS)
DOUBLE = build(call("numpy dtype", "f8", False, True), (3, "<", None, None, None, -1, -1, 0))
OBJECT = build(call("numpy dtype", "O8", False, True), (3, "|", None, None, None, -1, -1, 63))
EMPTY = at("numpy._core.multiarray _reconstruct", "numpy ndarray", (0,), b"b")
NAMESPACE = Code(named("argparse Namespace") + push(()) + b"\x81")
FUNCTION = named(WITH_STATE)


def typed(state: Any, *, function: bytes = named(REBUILD), own: Any = PARTS, kind: str = "torch Tensor") -> Code:
    return call("torch._tensor _rebuild_from_type_v2", Code(function), named(kind), own, state)


def record_dtype(fields: Any, *, size: int = 8, flags: int = 16, names: Any = ("a",)) -> Code:
    return build(call("numpy dtype", f"V{size}", False, True), (3, "|", None, names, fields, size, 1, flags))


def test_the_assembler_writes_what_is_read(tmp_path: Path) -> None:
    """Each part of the gallery below is read where it has the right form."""
    good = (
        TENSOR, call(PARAMETER, TENSOR, True, call(DICT)), call(WITH_STATE, TENSOR, True, call(DICT), {"tag": 1}),
        typed({"tag": 1}), build(call(DICT), {"_metadata": call(DICT)}),
    )  # fmt: skip
    assert read(tmp_path, *good).unsafe == ()
    read(tmp_path, build(NAMESPACE, {"lr": 0.1}), build(EMPTY, (1, (1,), DOUBLE, False, bytes(8))))
    read(tmp_path, build(EMPTY, (1, (1,), OBJECT, False, [None])), record_dtype({"a": (DOUBLE, 0)}))


HOSTILE: dict[str, tuple[Any, ...]] = {
    # memory by numpy
    "an array on a buffer": (call("numpy ndarray", (1,), OBJECT, call("__builtin__ bytearray", b"12345678")),),
    "an array of objects from bytes": (build(EMPTY, (1, (1,), OBJECT, False, bytes(8))),),
    "an array of more objects than are given": (build(EMPTY, (1, (9,), OBJECT, False, [None])),),
    "an array that is given its state twice": (
        build(build(EMPTY, (1, (1,), DOUBLE, False, bytes(8))), (1, (1,), OBJECT, False, [None])),
    ),
    "an item of an array": (Code(build(EMPTY, (1, (1,), DOUBLE, False, bytes(8))) + push(0) + NAMESPACE + b"s"),),
    "more items of an array": (Code(EMPTY + b"(" + push(0) + push(1) + b"u"),),
    "an array of another class": (at("numpy._core.multiarray _reconstruct", "__builtin__ list", (0,), b"b"),),
    "a scalar that is an object": (call("numpy._core.multiarray scalar", OBJECT, bytes(8)),),
    "a scalar of a dtype without its state": (
        call("numpy._core.multiarray scalar", call("numpy dtype", "f8", False, True), bytes(8)),
    ),
    "a dtype that is numpy's own": (
        build(call("numpy dtype", "f8", False, False), (3, "<", None, None, None, -1, -1, 63)),
    ),
    "a dtype of two texts": (call("numpy dtype", "f8,O", False, True),),
    "a dtype of objects that says that it has none": (
        build(call("numpy dtype", "O8", False, True), (3, "|", None, None, None, -1, -1, 0)),
    ),
    "a dtype that is larger than it says": (
        build(call("numpy dtype", "S5", False, True), (3, "|", None, None, None, 5000, 1, 0)),
    ),
    "a dtype with objects in it": (record_dtype({"a": (OBJECT, 0)}),),
    "a dtype whose field lies outside": (record_dtype({"a": (DOUBLE, 8)}),),
    "a dtype whose subarray is larger": (
        build(call("numpy dtype", "V8", False, True), (3, "|", (DOUBLE, (9,)), None, None, 8, 1, 0)),
    ),
    "an array of a field's dtype": (
        build(EMPTY, (1, (1,), build(call("numpy dtype", "V8", False, True),
              (3, "|", (DOUBLE, (1,)), None, None, 8, 1, 0)), False, bytes(8))),
    ),
    "a time of no part of a unit": (
        build(call("numpy dtype", "M8", False, True), (4, "<", None, None, None, -1, -1, 0, (None, (b"s", 1, 0, 1)))),
    ),
    "a dtype with more fields than names": (record_dtype({"a": (DOUBLE, 0), 1.5: (OBJECT, 0)}),),
    "a dtype whose fields are changed later": (
        record_dtype(put(1, Code(push({"a": (DOUBLE, 0)})))), Code(get(1) + push("a") + push((OBJECT, 0)) + b"s"),
    ),
    "a dtype that is given its state twice": (build(DOUBLE, (3, "<", None, None, None, -1, -1, 0)),),
    "a number of an object": (call("__builtin__ int", NAMESPACE),),
    "a list of an object": (call("__builtin__ list", NAMESPACE),),
    # attributes
    "a namespace that is an array": (build(NAMESPACE, {"__array_interface__": {"data": (1, False)}}),),
    "a namespace with a state of its own": (build(build(NAMESPACE, {"a": 1}), {"a": FUNCTION}),),
    "a namespace with a function": (build(NAMESPACE, {"get": FUNCTION}),),
    "a namespace of slots": (build(NAMESPACE, (None, {"__class__": 1})),),
    "a namespace of a dict that the reader sees in part": (build(NAMESPACE, {"a": 1, (1, 2): 2}),),
    "a key as bytes": (build(NAMESPACE, Code(b"}U\x13__array_interface__" + push(1) + b"s")),),
    "items of a namespace": (Code(NAMESPACE + push("a") + push(1) + b"s"),),
    "an attribute that is a method": (typed({"as_subclass": FUNCTION}),),
    "an attribute of a parameter that is a method": (
        call(WITH_STATE, TENSOR, True, call(DICT), {"as_subclass": FUNCTION}),
    ),
    "a parameter with a method, as another class": (
        typed(None, function=FUNCTION, own=(TENSOR, False, call(DICT), {"as_subclass": named(DICT)})),
    ),
    "all attributes at once": (typed({"__dict__": {"as_subclass": FUNCTION}}),),
    "attributes in slots": (typed((None, {"as_subclass": FUNCTION})),),
    "hooks as an attribute": (typed({"_backward_hooks": {1: FUNCTION}}),),
    "data as an attribute": (typed({"data": TENSOR}),),
    "hooks of a tensor": (call(REBUILD, *PARTS[:5], {1: FUNCTION}),),
    "hooks of a parameter": (call(PARAMETER, TENSOR, True, Code(call(DICT) + push(1) + FUNCTION + b"s")),),
    "hooks that come later": (
        call(REBUILD, *PARTS[:5], put(1, call(DICT))), Code(get(1) + push(1) + FUNCTION + b"s"),
    ),
    "hooks with a key that is left out": (
        call(PARAMETER, TENSOR, True, Code(call(DICT) + push((1, 2)) + FUNCTION + b"s")),
    ),
    "a tensor made by another name": (typed(None, function=named("__builtin__ list"), own=([],)),),
    "a tensor that becomes no tensor": (typed(None, kind="argparse Namespace"),),
    "a tensor of a function's kind": (call(REBUILD_V3, *PARTS, named("torch _rebuild")),),
    "a parameter of another thing": (call(PARAMETER, NAMESPACE, True, call(DICT)),),
    "a state of a tensor": (build(TENSOR, (TENSOR, 0, (1,), (1,))),),
    "a method of an OrderedDict": (build(call(DICT), {"items": FUNCTION}),),
    "a special name of an OrderedDict": (build(call(DICT), {"__reduce_ex__": 1}),),
    "a function of an OrderedDict": (build(call(DICT), {"other": FUNCTION}),),
    "a state of a dict": (build(push({}), {"a": 1}),),
    "a state of a defaultdict": (build(call("collections defaultdict"), {"a": 1}),),
    # calls
    "a defaultdict that makes anything": (call("collections defaultdict", FUNCTION),),
    "a defaultdict of a function's": (at("collections defaultdict", "torch float_power"),),
    "torch's functions that begin like dtypes": (call("torch complex", TENSOR, TENSOR), call("torch int_repr", TENSOR)),
    "an encoding": (call("_codecs encode", "x", "idna"),),
    "a buffer of any size": (call("__builtin__ bytearray", 1 << 30),),
    "a set of what can be gone through": (call("__builtin__ set", EMPTY),),
    "an OrderedDict of pairs": (call(DICT, [("a", 1)]),),
    "a counter of an object": (call("collections Counter", NAMESPACE),),
    "a counter whose dict changes later": (
        call("collections Counter", put(1, Code(push({"a": 1})))), Code(get(1) + push("b") + push(1) + b"s"),
    ),
    "a duration of floats": (call("datetime timedelta", 0, 0, 1.5),),
    "a time of numbers": (call("datetime datetime", 2026, 11, 30),),
    "a path of an object": (call("pathlib PosixPath", NAMESPACE),),
    "a device of an object": (call("torch device", NAMESPACE),),
    "a size of an object": (call("torch Size", (NAMESPACE,)),),
    "a tensor by its class": (call("torch Tensor"),),
    "a storage by its class": (call("torch.storage UntypedStorage", 8),),
    "a parameter made anew": (Code(named("torch.nn.parameter Parameter") + push((TENSOR,)) + b"\x81"),),
    "a tensor made anew": (Code(named("torch Tensor") + push(()) + b"\x81"),),
    "a text that is called": (Code(push("x") + push(()) + b"R"),),
    "an array that is called": (Code(EMPTY + push(()) + b"R"),),
    "items behind an opaque value": (Code(call("__builtin__ set", []) + push(1) + b"a"),),
    "a storage in a list": (Code(push(["storage", named("torch FloatStorage"), "0", "cpu", 1]) + b"Q"),),
    "a storage at an object": (Code(push(("storage", named("torch FloatStorage"), "0", NAMESPACE, 1)) + b"Q"),),
    # opcodes that torch.save does not write
    **{
        f"opcode {code!r}": (Code(content),)
        for code, content in {
            "INST": b"(iargparse\nNamespace\n", "OBJ": b"(" + named("argparse Namespace") + b"o", "EXT1": b"\x82\x01",
            "PERSID": b"P0\n", "STACK_GLOBAL": push("argparse") + push("Namespace") + b"\x93", "DUP": push(1) + b"20",
            "NEWOBJ_EX": named("argparse Namespace") + push(()) + push({}) + b"\x92", "ADDITEMS": b"\x8f(\x90",
            "GET": b"g0\n", "MEMOIZE": push(1) + b"\x94", "STRING": b"S'x'\n", "BINSTRING": b"T\x01\0\0\0x",
        }.items()
    },
}  # fmt: skip


@pytest.mark.fault("C13", by="pickle_forms: arguments and state of every name")
@pytest.mark.fault("K2", by="pickle_forms: arguments and state of every name")
@pytest.mark.parametrize("name", HOSTILE)
def test_c13_a_known_name_in_another_form_than_it_is_saved_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnreadableFile, match=r"damaged|opcode|not plain data"):
        read(tmp_path, *HOSTILE[name])


@pytest.mark.fault("C13", by="pickle_forms: nothing is looked up or called")
def test_c13_the_gallery_is_refused_where_nothing_in_it_could_be_imported(tmp_path: Path) -> None:
    """In a process without pickle, torch, numpy and argparse: what the files name is never made."""
    for number, values in enumerate(HOSTILE.values()):
        (tmp_path / f"{number}.pt").write_bytes(holding(*values))
    program = (
        "import sys; sys.path.append(sys.argv[1]); from pathlib import Path\n"
        "from resumekit.checkpoint.archive import summarize; from resumekit.base.files import UnreadableFile\n"
        "blocked = ('pickle', '_pickle', 'torch', 'numpy', 'argparse', 'datetime')\n"
        "assert not any(name in sys.modules for name in blocked), sys.modules\n"
        "for name in blocked: sys.modules[name] = None\n"
        "for path in Path(sys.argv[2]).iterdir():\n"
        "    try: print('read', path, summarize(path))\n"
        "    except UnreadableFile: pass"
    )
    command = [sys.executable, "-I", "-c", program, str(LIB), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


@pytest.mark.parametrize("name", ["sparse", "quantized", "nested", "meta"])
def test_tensors_that_the_reader_does_not_know_are_refused_with_their_names(tmp_path: Path, name: str) -> None:
    make: dict[str, Callable[[], torch.Tensor]] = {
        "sparse": lambda: torch.eye(2).to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "meta": lambda: torch.ones(2, device="meta"),
    }
    torch.save({"w": make[name]()}, tmp_path / "x.pt")
    with pytest.raises(UnreadableFile, match=r"it holds 'torch\._utils\._rebuild_\w+', which is not plain data"):
        archive.summarize(tmp_path / "x.pt")


@pytest.mark.fault("C17", by="pickle_forms: what is gone through is counted")
def test_c17_a_state_that_is_given_again_and_again_does_not_take_for_ever(tmp_path: Path) -> None:
    state = put(1, Code(push({f"a{number}": number for number in range(20_000)})))
    with pytest.raises(UnreadableFile, match="more than 2,000,000 arguments"):
        read(tmp_path, Code(state), *[build(NAMESPACE, get(1))] * 1000)
