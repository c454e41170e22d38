"""Read a checkpoint's `data.pkl` as plain values and tensor shapes, executing nothing.

An interpreter of the few opcodes that torch.save writes (pickle_machine), in which a class or function is only a name.
Tensors become (shape, dtype); a name that is not plain data is refused, and so is one in another form than it is saved
(pickle_forms). Bounded as pickle_machine; only strings and small numbers are hashed.
"""

from __future__ import annotations

from ..base.files import UnreadableFile
from ..base.imports import Any
from . import torch_names
from .pickle_forms import Forms
from .pickle_machine import PLAIN_ACTIONS, Machine


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
    machine = _TorchFile(data, storages)
    return machine.read(), tuple(sorted(machine.unsafe))


class _TorchFile(Machine):
    """What torch.save writes.

    Args:
        storages: as for `read_pickle`.
        unsafe: what it returns.
    """

    def __init__(self, data: bytes, storages: dict[str, int]) -> None:
        super().__init__(data)
        self.storages = storages
        self.unsafe: set[str] = set()
        self.forms = Forms()

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
            raise self.damaged()
        if not isinstance(target, dict):
            return
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a nested tuple can take for ever, and so can whole numbers chosen to collide: those are left out.
            if isinstance(key, str) or (isinstance(key, int) and abs(key) < 1 << 53):
                target[key] = value
            else:
                self.forms.odd[id(target)] = target

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


_TorchFile.actions = {
    **PLAIN_ACTIONS,
    0x80: _TorchFile.protocol,
    ord("c"): _TorchFile.global_name,
    ord("R"): _TorchFile.reduce,
    0x81: _TorchFile.new_object,
    ord("b"): _TorchFile.build,
    ord("Q"): lambda m: m.stack.append(torch_names.storage(m.stack.pop(), m.storages)),
}
