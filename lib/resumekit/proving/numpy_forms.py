"""In which form numpy writes its dtypes, arrays and scalars into a pickle; another form may reach any memory.

A dtype is made of a kind and a size and given its state once; an array is made empty and given shape, dtype and data
once; a scalar is made of a dtype and bytes. Nothing is looked up or called. Used by `pickle_forms`.
"""

from __future__ import annotations

from .torch_names import Name, Opaque, is_bytes, need

TYPE_CHECKING = False  # see archive
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

DTYPE, ARRAY = "numpy dtype", "numpy ndarray"
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
MAKERS = frozenset(f"{module} _reconstruct" for module in _MODULES)
SCALARS = frozenset(f"{module} scalar" for module in _MODULES)
_KINDS, _SIZED = "biufcmMSUVO", "SUV"
_OBJECT_FLAGS = 63
# "Needs to be filled", "needs the interpreter's lock" and "aligned": none of them says that its bytes are pointers.
_PLAIN_FLAGS = 8 | 16 | 128
_MAX_DIMENSIONS, _MAX_DEPTH = 64, 16


class Dtype(Opaque):
    """A dtype: its kind, its size in bytes, how deep dtypes lie in it, and whether it is of a field alone."""

    __slots__ = ("depth", "is_subarray", "letter", "size")

    def __init__(self, letter: str, size: int) -> None:
        super().__init__(DTYPE)
        self.letter, self.size, self.depth, self.is_subarray = letter, size, 0, False


def dtype(arguments: tuple[Any, ...]) -> Dtype:
    """Check dtype('f8', False, True): a copy, since the state that follows must not change numpy's own one."""
    text, is_aligned, is_copy = arguments
    need(type(text) is str and text[:1] in _KINDS and text[1:].isascii() and text[1:].isdigit() and len(text) < 12)
    need(type(is_aligned) in (bool, int) and not is_aligned and type(is_copy) in (bool, int) and is_copy)
    need(text[0] != "O" or text == "O8")
    return Dtype(text[0], int(text[1:]) * (4 if text[0] == "U" else 1))


def set_dtype(made: Dtype, state: Any, keep: Callable[[dict[Any, Any]], None]) -> None:
    """Check (version, byte order, subarray, names, fields, size, alignment, flags), and of a time its unit.

    Args:
        made: what the state is given to; once.
        keep: called with a dict that the dtype goes on using, which must not change any more.
    """
    _version, order, base, names, fields, size, alignment, flags = state[:8]
    need(type(state) is tuple and not made.is_whole)
    need(order == "|" if made.letter in "SVO" else order in ("<", ">", "|", "="))
    need(_are_counts((size + 1, alignment + 1)) and type(flags) is int and -128 <= flags < 256)
    if made.letter in "mM":
        need(state[0] == 4 and len(state) == 9)
        _time_unit(*state[8], keep)
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
    need(type(unit) is tuple and is_bytes(unit[0]) and _are_counts(unit[1:]) and unit[1] > 0 and unit[2:] == (1, 1))


def _subarray(made: Dtype, base: Any, shape: Any) -> None:
    need(_is_shape(shape))
    size = _part(made, base)
    for length in shape:
        size *= length
    need(size == made.size)
    made.is_subarray = True


def _fields(made: Dtype, names: Any, fields: Any, keep: Callable[[dict[Any, Any]], None]) -> None:
    """Check the fields of a structured dtype: each lies inside its record. Titles are not read."""
    need(type(names) is tuple and type(fields) is dict)
    keep(fields)
    need(len(names) == len(fields) and all(type(name) is str for name in names) and set(names) == set(fields))
    for entry in fields.values():
        part, offset = entry
        need(type(entry) is tuple and _are_counts((offset,)) and offset + _part(made, part) <= made.size)


def _part(made: Dtype, part: Any) -> int:
    """Return the size of a dtype inside another one: it has its state, and no objects."""
    need(type(part) is Dtype and part.is_whole and part.letter != "O")
    made.depth = max(made.depth, part.depth + 1)
    need(made.depth <= _MAX_DEPTH)
    return part.size


def array(arguments: tuple[Any, ...]) -> Opaque:
    """Check _reconstruct(ndarray, (0,), b'b'): an empty array."""
    kind, shape, letter = arguments
    need(type(kind) is Name and kind.text == ARRAY and type(shape) is tuple and is_bytes(letter))
    need(len(shape) == 1 and type(shape[0]) is int and shape[0] == 0)
    return Opaque(ARRAY)


def set_array(made: Opaque, state: Any) -> None:
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


def scalar(arguments: tuple[Any, ...]) -> Opaque:
    """Check scalar(dtype, bytes)."""
    kind, data = arguments
    need(_is_ready(kind) and kind.letter != "O" and is_bytes(data))
    return Opaque("numpy scalar")


def _is_ready(kind: Any) -> bool:
    """Whether a value is a dtype that an array or a scalar may have."""
    return type(kind) is Dtype and kind.is_whole and not kind.is_subarray


def _is_shape(shape: Any) -> bool:
    return type(shape) is tuple and len(shape) <= _MAX_DIMENSIONS and _are_counts(shape)


def _are_counts(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 62 for value in values)
