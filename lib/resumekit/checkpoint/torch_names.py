"""What the names in a torch.save pickle stand for: which are plain data, what a tensor may claim to be, and in
which form numpy writes its own.
"""

from __future__ import annotations

from ..base.files import UnreadableFile
from ..base.imports import TYPE_CHECKING, Any

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


# In which form numpy writes its dtypes, arrays and scalars into a pickle; another form may reach any memory.
#
# A dtype is made of a kind and a size and given its state once; an array is made empty and given shape, dtype and
# data once; a scalar is made of a dtype and bytes. Nothing is looked up or called. Used by `pickle_forms`.

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPE, ARRAY = "numpy dtype", "numpy ndarray"
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
MAKERS = frozenset(f"{module} _reconstruct" for module in _MODULES)
SCALARS = frozenset(f"{module} scalar" for module in _MODULES)
_NUMPY_KINDS, _SIZED = "biufcmMSUVO", "SUV"
_OBJECT_FLAGS = 63
# "Needs to be filled", "needs the interpreter's lock" and "aligned": none of them says that its bytes are pointers.
_PLAIN_FLAGS = 8 | 16 | 128
_MAX_DIMENSIONS, _MAX_DEPTH = 64, 16


class NumpyDtype(Opaque):
    """A dtype: its kind, its size in bytes, how deep dtypes lie in it, and whether it is of a field alone."""

    __slots__ = ("depth", "is_subarray", "letter", "size")

    def __init__(self, letter: str, size: int) -> None:
        super().__init__(DTYPE)
        self.letter, self.size, self.depth, self.is_subarray = letter, size, 0, False


def numpy_dtype(arguments: tuple[Any, ...]) -> NumpyDtype:
    """Check dtype('f8', False, True): a copy, since the state that follows must not change numpy's own one."""
    text, is_aligned, is_copy = arguments
    need(
        type(text) is str and text[:1] in _NUMPY_KINDS and text[1:].isascii() and text[1:].isdigit() and len(text) < 12
    )
    need(type(is_aligned) in (bool, int) and not is_aligned and type(is_copy) in (bool, int) and is_copy)
    need(text[0] != "O" or text == "O8")
    return NumpyDtype(text[0], int(text[1:]) * (4 if text[0] == "U" else 1))


def set_numpy_dtype(made: NumpyDtype, state: Any, keep: Callable[[dict[Any, Any]], None]) -> None:
    """Check (version, byte order, subarray, names, fields, size, alignment, flags), and of a time its unit.

    Args:
        made: what the state is given to; once.
        keep: called with a dict that the dtype goes on using, which must not change any more.
    """
    _version, order, base, names, fields, size, alignment, flags = state[:8]
    need(type(state) is tuple and not made.is_whole)
    need(order == "|" if made.letter in "SVO" else order in ("<", ">", "|", "="))
    need(_are_numpy_counts((size + 1, alignment + 1)) and type(flags) is int and -128 <= flags < 256)
    if made.letter in "mM":
        need(state[0] == 4 and len(state) == 9)
        metadata, unit = state[8]
        _time_unit(metadata, unit, keep)
    else:
        need(state[0] == 3 and len(state) == 8)
    if made.letter in _SIZED:
        need(size == made.size and alignment in (1, 2, 4, 8, 16))
    else:
        need(size == alignment == -1)
    bits = flags & 0xFF  # numpy 1 writes one signed byte
    need(bits == _OBJECT_FLAGS if made.letter == "O" else not bits & ~_PLAIN_FLAGS)
    need((base is None and names is None and fields is None) or made.letter == "V")
    if base is not None:
        need(names is None and fields is None)
        _subarray(made, *base)
    if fields is not None or names is not None:
        _fields(made, names, fields, keep)
    made.is_whole = True


def _time_unit(metadata: Any, unit: Any, keep: Callable[[dict[Any, Any]], None]) -> None:
    need(metadata is None or (type(metadata) is dict and not metadata))
    if metadata is not None:
        keep(metadata)
    need(
        type(unit) is tuple and is_bytes(unit[0]) and _are_numpy_counts(unit[1:]) and unit[1] > 0 and unit[2:] == (1, 1)
    )


def _subarray(made: NumpyDtype, base: Any, shape: Any) -> None:
    need(_is_shape(shape))
    size = _part(made, base)
    for length in shape:
        size *= length
    need(size == made.size)
    made.is_subarray = True


def _fields(made: NumpyDtype, names: Any, fields: Any, keep: Callable[[dict[Any, Any]], None]) -> None:
    """Check the fields of a structured dtype: each lies inside its record. Titles are not read."""
    need(type(names) is tuple and type(fields) is dict)
    keep(fields)
    need(len(names) == len(fields) and all(type(name) is str for name in names) and set(names) == set(fields))
    for entry in fields.values():
        part, offset = entry
        need(type(entry) is tuple and _are_numpy_counts((offset,)) and offset + _part(made, part) <= made.size)


def _part(made: NumpyDtype, part: Any) -> int:
    """Return the size of a dtype inside another one: it has its state, and no objects."""
    need(type(part) is NumpyDtype and part.is_whole and part.letter != "O")
    made.depth = max(made.depth, part.depth + 1)
    need(made.depth <= _MAX_DEPTH)
    size: int = part.size
    return size


def numpy_array(arguments: tuple[Any, ...]) -> Opaque:
    """Check _reconstruct(ndarray, (0,), b'b'): an empty array."""
    kind, shape, letter = arguments
    need(type(kind) is Name and kind.text == ARRAY and type(shape) is tuple and is_bytes(letter))
    need(len(shape) == 1 and type(shape[0]) is int and shape[0] == 0)
    return Opaque(ARRAY)


def set_numpy_array(made: Opaque, state: Any) -> None:
    """Check (1, shape, dtype, is in Fortran's order, bytes): objects are a list as long as the shape says."""
    version, shape, kind, is_fortran, data = state
    need(type(state) is tuple and not made.is_whole and version == 1 and type(is_fortran) in (bool, int))
    need(_is_shape(shape) and _is_ready(kind))
    if kind.letter == "O":
        count = 1
        for length in shape:
            count *= length
        need(type(data) is list and len(data) == count)
    else:
        need(is_bytes(data))
    made.is_whole = True


def numpy_scalar(arguments: tuple[Any, ...]) -> Opaque:
    """Check scalar(dtype, bytes)."""
    kind, data = arguments
    need(_is_ready(kind) and kind.letter != "O" and is_bytes(data))
    return Opaque("numpy scalar")


def _is_ready(kind: Any) -> bool:
    """Whether a value is a dtype that an array or a scalar may have."""
    return type(kind) is NumpyDtype and kind.is_whole and not kind.is_subarray


def _is_shape(shape: Any) -> bool:
    return type(shape) is tuple and len(shape) <= _MAX_DIMENSIONS and _are_numpy_counts(shape)


def _are_numpy_counts(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 62 for value in values)
