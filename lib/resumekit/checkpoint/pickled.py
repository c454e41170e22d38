"""Read a checkpoint's `data.pkl` as plain values and tensor shapes, executing nothing.

An interpreter of the few opcodes that torch.save writes, in which a class or function is only a name. Tensors become
(shape, dtype); a name that is not plain data is refused, and so is one in another form than it is saved (pickle_forms).
Bounded: one object per opcode, capped; no recursion; nothing copied; only strings and small numbers hashed.
"""

from __future__ import annotations

import struct

from ..base.files import UnreadableFile
from ..base.imports import TYPE_CHECKING, Any
from . import torch_names
from .pickle_forms import Forms

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_OPCODES = 2_000_000
# Every nested container of more than one item opens a mark; a checkpoint has five or so inside each other.
MAX_DEPTH = 100
MAX_NAME_BYTES = 256
_LONG_BINPUT, _BINGET, _BININT1, _MARK, _TUPLE, _BININT2, _EMPTY_TUPLE, _STOP = b"rhK(tM)."
_uint16, _uint32 = struct.Struct("<H").unpack_from, struct.Struct("<I").unpack_from
_DAMAGED = "its data.pkl is damaged"


def read_pickle(data: bytes, storages: dict[str, int]) -> tuple[Any, tuple[str, ...]]:
    """Interpret `data`.

    Args:
        data: the whole of data.pkl.
        storages: sizes in bytes of the archive's tensor records, by key.
    Returns:
        (the value at the top, names of the types in it that weights_only=True would refuse).
    Raises:
        UnreadableFile: it has what torch.save does not write.
    """
    machine = _Machine(data, storages)
    try:
        value = machine.run()
    except UnreadableFile:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise UnreadableFile(_DAMAGED) from error
    return value, tuple(sorted(machine.unsafe))


class _Machine:
    def __init__(self, data: bytes, storages: dict[str, int]) -> None:
        self.data, self.at = data, 0
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.unsafe: set[str] = set()
        self.forms = Forms()

    def run(self) -> Any:
        data, memo, marks, stack, at = self.data, self.memo, self.marks, self.stack, 0
        for _ in range(MAX_OPCODES):
            code = data[at]
            at += 1
            # Seven tenths of all opcodes are these: kept out of the table for speed.
            if code == _LONG_BINPUT:
                memo[_uint32(data, at)[0]] = stack[-1]
                at += 4
            elif code == _BINGET:
                stack.append(memo[data[at]])
                at += 1
            elif code == _BININT1:
                stack.append(data[at])
                at += 1
            elif code == _MARK:
                if len(marks) >= MAX_DEPTH:
                    raise UnreadableFile(f"its data.pkl nests deeper than {MAX_DEPTH}")
                marks.append(stack)
                stack = []
            elif code == _TUPLE:
                items, stack = tuple(stack), marks.pop()
                stack.append(items)
            elif code == _BININT2:
                stack.append(_uint16(data, at)[0])
                at += 2
            elif code == _EMPTY_TUPLE:
                stack.append(())
            elif code == _STOP:
                (value,) = stack
                return value
            else:
                self.stack, self.at = stack, at
                if (action := _ACTIONS.get(code)) is None:
                    raise UnreadableFile(f"its data.pkl has opcode 0x{code:02x}, which torch.save does not write")
                action(self)
                stack, at = self.stack, self.at
        raise UnreadableFile(f"its data.pkl has more than {MAX_OPCODES:,} opcodes")

    def take(self, count: int) -> bytes:
        chunk = self.data[self.at : self.at + count]
        if len(chunk) != count:
            raise UnreadableFile(_DAMAGED)
        self.at += count
        return chunk

    def text(self) -> None:
        begin = self.at + 4
        self.at = begin + _uint32(self.data, self.at)[0]
        if self.at > len(self.data):
            raise UnreadableFile(_DAMAGED)
        self.stack.append(self.data[begin : self.at].decode("utf-8", "surrogatepass"))

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.data.index(b"\n", self.at, self.at + MAX_NAME_BYTES)
        text, self.at = self.data[self.at : end].decode(), end + 1
        return text

    def close_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def protocol(self) -> None:
        if self.take(1) != b"\x02":
            raise UnreadableFile("its pickle protocol is not 2; save it with torch.save's own default")

    def global_name(self) -> None:
        module, name = self.line(), self.line()
        text = f"{'__builtin__' if module == 'builtins' else module} {name}"
        if not torch_names.is_known(text):
            raise UnreadableFile(f"it holds '{module}.{name}', which is not plain data")
        if text in torch_names.UNSAFE_DATA:
            self.unsafe.add(f"{module}.{name}")
        self.stack.append(torch_names.Name(text))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if len(items) % 2 or not self.forms.takes_items(target):
            raise UnreadableFile(_DAMAGED)
        if not isinstance(target, dict):
            return
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a nested tuple can take for ever, and so can whole numbers chosen to collide: those are left out.
            if isinstance(key, str) or (isinstance(key, int) and abs(key) < 1 << 53):
                target[key] = value
            else:
                self.forms.odd[id(target)] = target

    def append_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise UnreadableFile(_DAMAGED)
        target.extend(items)

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.forms.call(function, arguments))

    def new_object(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.forms.new(function, arguments))

    def build(self) -> None:
        """Check and drop the state of an object: an OrderedDict's attributes (torch's `_metadata`), a Namespace's."""
        state = self.stack.pop()
        self.forms.build(self.stack[-1], state)


# By opcode: those that `run` does not do itself.
_ACTIONS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.protocol,
    ord("}"): lambda m: m.stack.append({}),
    ord("]"): lambda m: m.stack.append([]),
    ord("N"): lambda m: m.stack.append(None),
    0x88: lambda m: m.stack.append(True),
    0x89: lambda m: m.stack.append(False),
    0x85: lambda m: m.stack.append((m.stack.pop(),)),
    0x86: lambda m: m.stack.append((m.stack.pop(-2), m.stack.pop())),
    0x87: lambda m: m.stack.append((m.stack.pop(-3), m.stack.pop(-2), m.stack.pop())),
    ord("J"): lambda m: m.stack.append(m.number("<i")),
    ord("G"): lambda m: m.stack.append(m.number(">d")),
    0x8A: lambda m: m.stack.append(int.from_bytes(m.take(m.number("<B")), "little", signed=True)),
    ord("X"): _Machine.text,
    ord("q"): lambda m: m.memo.__setitem__(m.number("<B"), m.stack[-1]),
    ord("j"): lambda m: m.stack.append(m.memo[m.number("<I")]),
    ord("c"): _Machine.global_name,
    ord("R"): _Machine.reduce,
    0x81: _Machine.new_object,
    ord("b"): _Machine.build,
    ord("Q"): lambda m: m.stack.append(torch_names.storage(m.stack.pop(), m.storages)),
    ord("s"): lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    ord("u"): lambda m: m.set_items(m.close_mark()),
    ord("a"): lambda m: m.append_items([m.stack.pop()]),
    ord("e"): lambda m: m.append_items(m.close_mark()),
}
