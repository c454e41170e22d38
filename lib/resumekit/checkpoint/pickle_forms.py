"""In which form each name of a torch.save pickle is used: the arguments and the state that are really written for it.

A name of plain data with other arguments is no plain data: attributes, hooks and buffers that are set by hand can run
code when the file is unpickled. Whatever is not written by torch, numpy or Python's own types is refused.
Nothing is looked up or called. Used by `pickled`; numpy's forms are in `torch_names`.
"""

from __future__ import annotations

import functools

from ..base.files import UnreadableFile
from ..base.imports import TYPE_CHECKING, Any
from . import torch_names
from .torch_names import Name, Opaque, Tensor, is_bytes, need

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CHECKED = 2_000_000
NAMESPACE, DEFAULTDICT = "argparse Namespace", "collections defaultdict"
_BUILTIN_TYPES = frozenset(f"__builtin__ {name}" for name in ("list", "int", "float", "set", "frozenset"))
_FACTORIES = _BUILTIN_TYPES | torch_names.DICTS | {DEFAULTDICT}
# What torch keeps in places of its own, never among the attributes that it saves.
_SET_BY_TORCH = frozenset({
    "data", "grad", "_grad", "grad_dtype", "_grad_fn", "grad_fn", "_base", "_cdata", "_backward_hooks",
    "_post_accumulate_grad_hooks", "requires_grad", "names", "real", "imag", "volatile", "retains_grad", "output_nr",
})  # fmt: skip
# How many arguments a tensor has; those of the later versions may be followed by one, of bits.
_FEWEST = {f"torch._utils _rebuild_tensor{version}": count for version, count in (("", 4), ("_v2", 6), ("_v3", 7))}
_OF_DICTS = frozenset({*dir(dict), "move_to_end"})


class Ordered(dict[Any, Any]):
    """An OrderedDict, whose attributes are set once at most."""

    is_whole = False


class Forms:
    """Checks what one pickle calls, builds and fills.

    Args:
        kept: by id, the dicts that an object goes on using after it was made of them: they must not change any more.
        odd: by id, the dicts with keys that the reader has left out.
        checked: how many arguments and attributes were gone through.
    """

    def __init__(self) -> None:
        self.kept: dict[int, Any] = {}
        self.odd: dict[int, Any] = {}
        self.checked = 0

    def call(self, function: Any, arguments: Any) -> Any:
        """Return what stands for the value of a call of a name. Raises UnreadableFile for an unknown form."""
        try:
            if (
                type(function) is not Name or type(arguments) is not tuple
            ):  # not `need`: of thousands of calls it is half
                raise ValueError
            self.checked += len(arguments)
            if self.checked > MAX_CHECKED:
                self.count(0)
            return _CALLS[function.text](self, arguments)
        except UnreadableFile:
            raise
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise _unknown_form(function) from error

    def new(self, function: Any, arguments: Any) -> Any:
        """Return what stands for an object made without its `__init__`: of the known names a Namespace alone."""
        if type(function) is not Name or function.text != NAMESPACE:
            raise _unknown_form(function)
        return self.call(function, arguments)

    def build(self, target: Any, state: Any) -> None:
        """Check the state that an object is given, once and after it was made. Raises UnreadableFile."""
        try:
            if type(target) is Ordered:
                need(not target.is_whole and id(target) not in self.kept)
                self._attributes(state, _OF_DICTS)
                target.is_whole = True
            elif type(target) is torch_names.NumpyDtype:
                torch_names.set_numpy_dtype(target, state, self.keep)
            elif type(target) is Opaque and target.kind == torch_names.ARRAY:
                torch_names.set_numpy_array(target, state)
            else:
                need(type(target) is Opaque and target.kind == NAMESPACE and not target.is_whole)
                self._attributes(state, frozenset(), _BUILTIN_TYPES)
                target.is_whole = True
        except UnreadableFile:
            raise
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise _unknown_form(target) from error

    def takes_items(self, target: Any) -> bool:
        """Whether items may be set: of a dict that nothing uses yet, or a defaultdict."""
        return id(target) not in self.kept if isinstance(target, dict) else is_of(target, DEFAULTDICT)

    def count(self, number: int) -> None:
        """Count what is gone through: a state that is used again and again must not take for ever."""
        self.checked += number
        if self.checked > MAX_CHECKED:
            raise UnreadableFile(f"its data.pkl gives more than {MAX_CHECKED:,} arguments")

    def keep(self, held: dict[Any, Any]) -> None:
        """Let a dict change no more; all of its keys must be texts that the reader knows."""
        need(id(held) not in self.odd)
        self.count(len(held))
        self.kept[id(held)] = held

    def _attributes(self, state: Any, taken: frozenset[str], types: frozenset[str] = frozenset()) -> None:
        """Check attributes: texts and values; no special name, none of `taken`, and nothing that can be called."""
        need(isinstance(state, dict) and id(state) not in self.odd)
        self.count(len(state))
        for key, value in state.items():
            need(type(key) is str and key[:2] != "__" and key not in taken)
            need(type(value) is not Name or torch_names.is_dtype(value.text) or value.text in types)

    def _no_hooks(self, hooks: Any) -> None:
        if type(hooks) is not Ordered or hooks or id(hooks) in self.odd:
            raise ValueError
        self.kept[id(hooks)] = hooks

    def tensor(self, arguments: tuple[Any, ...], name: str) -> Tensor:
        """Check (storage, offset, shape, stride), of later versions also whether it has a gradient, hooks and more."""
        fewest, given = _FEWEST[name], len(arguments)
        if fewest > 4:
            need(given >= fewest and type(arguments[4]) is bool)
            self._no_hooks(arguments[5])
        if given != fewest or fewest == 7:
            self._later_arguments(arguments, fewest)
        return torch_names.tensor(arguments, name)

    def _later_arguments(self, arguments: tuple[Any, ...], fewest: int) -> None:
        """Check the dtype that the third version gives, and the bits that may stand behind all of the later ones'."""
        need(fewest <= len(arguments) <= fewest + (fewest > 4))
        if fewest == 7:
            need(type(arguments[6]) is Name and torch_names.is_dtype(arguments[6].text))
        if len(arguments) > fewest and (bits := arguments[-1]) is not None:
            need(type(bits) is dict and all(type(key) is str and type(bits[key]) is bool for key in bits))
            self.keep(bits)

    def counter(self, arguments: tuple[Any, ...]) -> Any:
        """Return the dict that a Counter is a copy of, which must not change any more: the copy would not."""
        (counts,) = arguments
        need(type(counts) is dict)
        self.kept[id(counts)] = counts
        return counts

    def parameter(self, arguments: tuple[Any, ...]) -> Tensor:
        made: Tensor
        made, has_gradient, hooks = arguments
        need(type(made) is Tensor and type(has_gradient) is bool)
        self._no_hooks(hooks)
        return made

    def parameter_with_state(self, arguments: tuple[Any, ...]) -> Tensor:
        self._tensor_state(arguments[3])
        need(len(arguments) == 4)
        return self.parameter(arguments[:3])

    def with_type(self, arguments: tuple[Any, ...]) -> Tensor:
        """Check (function, type, its arguments, state): a tensor that has attributes."""
        function, kind, own, state = arguments
        need(type(function) is Name and function.text in torch_names.TENSORS and type(own) is tuple)
        need(type(kind) is Name and kind.text in torch_names.TENSOR_TYPES)
        self._tensor_state(state)
        return self.tensor(own, function.text)

    def _tensor_state(self, state: Any) -> None:
        parts = state if type(state) is tuple else (state,)
        need(len(parts) == 1 + (type(state) is tuple))
        for part in parts:
            if part is not None:
                self._attributes(part, _SET_BY_TORCH)


def is_of(value: Any, kind: str) -> bool:
    """Whether a value is an opaque one of this kind."""
    return type(value) is Opaque and value.kind == kind


def _unknown_form(what: Any) -> UnreadableFile:
    text = what.text if type(what) is Name else getattr(what, "kind", None)
    name = f"'{text.replace(' ', '.')}'" if text else "a value"
    return UnreadableFile(f"its data.pkl is damaged or made by hand: {name} is not used as it is saved")


def _ordered() -> Ordered:
    return Ordered()


def _size(lengths: Any) -> Any:
    need(type(lengths) is tuple and len(lengths) <= torch_names.MAX_DIMENSIONS)
    need(all(type(length) is int for length in lengths))
    return lengths


def _opaque(kind: str, *forms: tuple[Callable[[Any], bool], ...]) -> Callable[[Forms, tuple[Any, ...]], Opaque]:
    """Return the check of a name whose arguments have one of some forms, and whose value is of no interest."""

    def call(_: Forms, arguments: tuple[Any, ...]) -> Opaque:
        need(any(_fits(arguments, form) for form in forms))
        return Opaque(kind)

    return call


def _fits(arguments: tuple[Any, ...], form: tuple[Callable[[Any], bool], ...]) -> bool:
    return len(arguments) == len(form) and all(is_it(one) for is_it, one in zip(form, arguments, strict=True))


def _path(_: Forms, parts: tuple[Any, ...]) -> Opaque:
    need(all(_is_text(part) for part in parts))
    return Opaque("path")


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_whole_number(value: Any) -> bool:
    return type(value) is int


def _is_float(value: Any) -> bool:
    return type(value) is float


def _is_list(value: Any) -> bool:
    return type(value) is list


def _is_latin1(value: Any) -> bool:
    return type(value) is str and value in ("latin1", "latin-1")


def _is_factory(value: Any) -> bool:
    return type(value) is Name and value.text in _FACTORIES


# By name: what is made of the arguments.
_CALLS: dict[str, Callable[[Forms, tuple[Any, ...]], Any]] = {
    **{name: functools.partial(Forms.tensor, name=name) for name in torch_names.TENSORS},
    torch_names.SUBCLASS: Forms.with_type,
    "torch._utils _rebuild_parameter": Forms.parameter,
    "torch._utils _rebuild_parameter_with_state": Forms.parameter_with_state,
    torch_names.SIZE: lambda _, arguments: _size(*arguments),
    "torch device": _opaque("device", (_is_text,), (_is_text, _is_whole_number)),
    "torch.serialization _get_layout": _opaque("layout", (_is_text,)),
    "collections OrderedDict": lambda _, arguments: _ordered(*arguments),
    "collections Counter": Forms.counter,
    DEFAULTDICT: _opaque(DEFAULTDICT, (), (_is_factory,)),
    torch_names.ENCODE: _opaque(torch_names.ENCODE, (_is_text, _is_latin1)),
    "__builtin__ bytearray": _opaque("bytearray", (), (is_bytes,), (_is_text, _is_latin1)),
    "__builtin__ set": _opaque("set", (_is_list,)),
    "__builtin__ frozenset": _opaque("frozenset", (_is_list,)),
    "__builtin__ complex": _opaque("complex", (_is_float, _is_float)),
    NAMESPACE: _opaque(NAMESPACE, ()),
    "pathlib PosixPath": _path,
    "pathlib._local PosixPath": _path,
    "datetime datetime": _opaque("datetime", (is_bytes,)),
    "datetime timedelta": _opaque("timedelta", (_is_whole_number, _is_whole_number, _is_whole_number)),
    torch_names.DTYPE: lambda _, arguments: torch_names.numpy_dtype(arguments),
    **dict.fromkeys(torch_names.MAKERS, lambda _, arguments: torch_names.numpy_array(arguments)),
    **dict.fromkeys(torch_names.SCALARS, lambda _, arguments: torch_names.numpy_scalar(arguments)),
}
