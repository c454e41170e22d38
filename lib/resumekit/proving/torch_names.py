"""What the names in a torch.save pickle stand for: which are plain data, and what a tensor may claim to be.

Nothing is looked up or called; torch is not imported. Reads and writes nothing. Used by `pickled`.
"""

from __future__ import annotations

from ..basics.files import UnreadableFile

TYPE_CHECKING = False  # see archive
if TYPE_CHECKING:
    from typing import Any

MAX_DIMENSIONS = 64
MAX_ELEMENTS = 1 << 50

_KINDS = {
    "Double": ("float64", 8), "Float": ("float32", 4), "Half": ("float16", 2), "BFloat16": ("bfloat16", 2),
    "Long": ("int64", 8), "Int": ("int32", 4), "Short": ("int16", 2), "Char": ("int8", 1), "Byte": ("uint8", 1),
    "Bool": ("bool", 1), "ComplexDouble": ("complex128", 16), "ComplexFloat": ("complex64", 8),
    "Untyped": ("uint8", 1),
}  # fmt: skip
_STORAGES = {f"{module} {kind}Storage": what for kind, what in _KINDS.items() for module in ("torch", "torch.storage")}
# Bytes of an element. Those of the second line have no kind of storage of their own.
ITEM_BYTES = dict(_KINDS.values()) | {
    "uint16": 2, "uint32": 4, "uint64": 8, "complex32": 4, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip
STORAGE_KINDS = {dtype: kind for kind, (dtype, _) in _KINDS.items() if kind != "Untyped"}
_DTYPES = ("int", "uint", "float", "bfloat", "complex")

DICTS = frozenset({"collections OrderedDict", "collections Counter"})
SIZE = "torch Size"
PARAMETERS = frozenset({"torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state"})
TENSORS = frozenset({f"torch._utils _rebuild_tensor{version}" for version in ("", "_v2", "_v3")})
SUBCLASS = "torch._tensor _rebuild_from_type_v2"
TENSOR_TYPES = frozenset({"torch Tensor", "torch.nn.parameter Parameter"})
ENCODE = "_codecs encode"
_PLAIN = TENSOR_TYPES | {
    "__builtin__ set", "__builtin__ bytearray", "__builtin__ complex", "torch device", ENCODE,
    "torch.serialization _get_layout",
}  # fmt: skip
# In the form that `pickle_forms` knows they carry no code; weights_only=True refuses them: named to the caller.
UNSAFE_DATA = frozenset({
    "numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct", "numpy ndarray", "numpy dtype",
    "numpy.core.multiarray scalar", "numpy._core.multiarray scalar", "argparse Namespace", "__builtin__ list",
    "__builtin__ int", "__builtin__ float", "__builtin__ frozenset", "collections defaultdict",
    "pathlib PosixPath", "pathlib._local PosixPath", "datetime datetime", "datetime timedelta",
})  # fmt: skip
_KNOWN = DICTS | PARAMETERS | TENSORS | _PLAIN | UNSAFE_DATA | {SIZE, SUBCLASS}


# Plain classes: a checkpoint has thousands of these, and making a named tuple's class costs half a millisecond.
class Name:
    """A class or function in the pickle, as 'module name'."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class Opaque:
    """A value that is of no interest: a set, a device, a numpy array.

    Args:
        kind: what it is.
        is_whole: (set later) it has been given its state.
    """

    __slots__ = ("is_whole", "kind")

    def __init__(self, kind: str) -> None:
        self.kind, self.is_whole = kind, False


class Storage:
    """A tensor record that the archive really holds."""

    __slots__ = ("dtype", "item_bytes", "key", "size_bytes")

    def __init__(self, key: str, dtype: str, item_bytes: int, size_bytes: int) -> None:
        self.key, self.dtype, self.item_bytes, self.size_bytes = key, dtype, item_bytes, size_bytes


class Tensor:
    """A tensor's shape and dtype, and where it lies; its values were not read.

    Args:
        storage, offset, stride: its record, and its first element and steps in it, in elements.
        bits: what torch notes of a tensor that is to be read negated or conjugated; for all others nothing true.
    """

    __slots__ = ("bits", "dtype", "offset", "shape", "storage", "stride")

    def __init__(self, shape: tuple[int, ...], dtype: str, held: Storage, offset: int, stride: Any, bits: Any) -> None:
        self.shape, self.dtype, self.storage = shape, dtype, held
        self.offset, self.stride, self.bits = offset, stride, bits


def is_known(text: str) -> bool:
    """Whether 'module name' is a name of plain data or of tensors."""
    if text in _KNOWN:
        return True
    module, _, name = text.partition(" ")
    is_storage = module in ("torch", "torch.storage") and name.endswith("Storage")
    return is_dtype(text) or (is_storage and _is_word(name))


def is_dtype(text: str) -> bool:
    """Whether 'module name' is a dtype's: its kind and its bits, as in float8_e5m2; not torch.float_power."""
    module, _, name = text.partition(" ")
    if module != "torch" or name != name.lower() or not _is_word(name):
        return False
    return name == "bool" or any(name.startswith(kind) and name[len(kind) :][:1].isdigit() for kind in _DTYPES)


def _is_word(name: str) -> bool:
    return name.isascii() and name.replace("_", "").isalnum()


def is_bytes(value: Any) -> bool:
    """Whether a value stands for bytes, which a pickle of protocol 2 holds as encoded text."""
    return type(value) is Opaque and value.kind == ENCODE


def need(condition: Any) -> None:
    """Raise ValueError where a condition of a form is not met."""
    if not condition:
        raise ValueError


def storage(reference: Any, sizes: dict[str, int]) -> Storage:
    """Check a reference to a tensor record, ('storage', type, key, location, number of elements).

    Raises:
        UnreadableFile: the record is missing or has another size; ValueError, TypeError: it is no such reference.
    """
    kind, storage_type, key, location, elements = reference
    dtype, item_bytes = _STORAGES.get(storage_type.text, ("", 0))
    need(type(reference) is tuple and type(storage_type) is Name and type(kind) is type(location) is str)
    if kind != "storage" or not item_bytes or type(key) is not str or not _are_counts((elements,)):
        raise UnreadableFile("its data.pkl refers to an unknown kind of storage")
    if key not in sizes:
        raise UnreadableFile(f"record 'data/{key[:40]}' is missing: the save was cut short")
    if elements * item_bytes != sizes[key]:
        raise UnreadableFile(f"record 'data/{key}' has {sizes[key]:,} bytes, not {elements * item_bytes:,}")
    return Storage(key, dtype, item_bytes, sizes[key])


def tensor(arguments: tuple[Any, ...], name: str) -> Tensor:
    """Check a tensor's claim against its storage.

    Raises:
        UnreadableFile: it claims more elements than its storage has (an expanded tensor would fill the memory).
    """
    held, offset, shape, stride = arguments[:4]
    need(type(held) is Storage and type(shape) is type(stride) is tuple)
    dtype, item_bytes, bits = held.dtype, held.item_bytes, arguments[6:]
    if name.endswith("_v3"):
        dtype, bits = arguments[6].text.removeprefix("torch "), arguments[7:]
        item_bytes = ITEM_BYTES.get(dtype, 1)
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS or not _are_counts(numbers):
        raise UnreadableFile("its data.pkl has a tensor of an impossible shape")
    elements, last = 1, offset
    for length, step in zip(shape, stride, strict=True):
        elements *= length
        last += (length - 1) * step
    if elements and max(elements, last + 1) * item_bytes > held.size_bytes:
        raise UnreadableFile(f"a tensor claims {elements:,} elements on a record of {held.size_bytes:,} bytes")
    return Tensor(tuple(shape), dtype, held, offset, tuple(stride), bits)


def _are_counts(values: tuple[Any, ...]) -> bool:
    for value in values:  # noqa: SIM110 (all() takes twice as long, and a checkpoint has thousands)
        if type(value) is not int or not 0 <= value < MAX_ELEMENTS:
            return False
    return True
