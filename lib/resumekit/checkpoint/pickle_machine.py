"""Interpret a pickle of plain values, in which a class or function is only a name: nothing is looked up or called.

`Machine` knows the opcodes that plain values are written with and how they are put together. What may be named and
called is its subclasses' (`pickled`: what torch.save writes; `dcp_metadata`: what torch.distributed.checkpoint writes).
Bounded: one object per opcode, capped; no recursion; nothing copied.
"""

from __future__ import annotations

import struct

from ..base.files import UnreadableFile
from ..base.imports import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_OPCODES = 2_000_000
# Every nested container of more than one item opens a mark; a checkpoint has five or so inside each other.
MAX_DEPTH = 100
MAX_NAME_BYTES = 256
_LONG_BINPUT, _BINGET, _BININT1, _MARK, _TUPLE, _BININT2, _EMPTY_TUPLE, _STOP = b"rhK(tM)."
_uint16, _uint32 = struct.Struct("<H").unpack_from, struct.Struct("<I").unpack_from


class Machine:
    """Interprets one pickle.

    Args:
        data: the whole of it.
        what, writer: (of the class) what is read and what writes such a one, for the reasons of a refusal.
        max_opcodes: (of the class) with more it is refused.
        actions: (of the class) by opcode, those that `run` does not do itself.
    """

    what, writer, max_opcodes = "data.pkl", "torch.save", MAX_OPCODES
    actions: dict[int, Callable[[Any], None]]

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Return the value at the top. Raises UnreadableFile: it has what its writer does not write."""
        try:
            return self.run()
        except UnreadableFile:
            raise
        except (LookupError, ValueError, TypeError, AttributeError, struct.error) as error:
            raise self.damaged() from error

    def damaged(self) -> UnreadableFile:
        return UnreadableFile(f"its {self.what} is damaged")

    def run(self) -> Any:
        data, memo, marks, stack, at = self.data, self.memo, self.marks, self.stack, 0
        for _ in range(self.max_opcodes):
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
                    raise UnreadableFile(f"its {self.what} nests deeper than {MAX_DEPTH}")
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
                self.at = at
                return value
            else:
                self.stack, self.at = stack, at
                if (action := self.actions.get(code)) is None:
                    raise UnreadableFile(f"its {self.what} has opcode 0x{code:02x}, which {self.writer} does not write")
                action(self)
                stack, at = self.stack, self.at
        raise UnreadableFile(f"its {self.what} has more than {self.max_opcodes:,} opcodes")

    def take(self, count: int) -> bytes:
        chunk = self.data[self.at : self.at + count]
        if len(chunk) != count:
            raise self.damaged()
        self.at += count
        return chunk

    def text(self) -> None:
        begin = self.at + 4
        self.at = begin + _uint32(self.data, self.at)[0]
        if self.at > len(self.data):
            raise self.damaged()
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

    def append_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise self.damaged()
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Put keys and values, one behind the other, into the dict on the stack."""
        raise NotImplementedError


# By opcode: plain values, and how they are put together.
PLAIN_ACTIONS: dict[int, Callable[[Any], None]] = {
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
    ord("X"): Machine.text,
    ord("q"): lambda m: m.memo.__setitem__(m.number("<B"), m.stack[-1]),
    ord("j"): lambda m: m.stack.append(m.memo[m.number("<I")]),
    ord("s"): lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    ord("u"): lambda m: m.set_items(m.close_mark()),
    ord("a"): lambda m: m.append_items([m.stack.pop()]),
    ord("e"): lambda m: m.append_items(m.close_mark()),
}
