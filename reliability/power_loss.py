"""The power cut, without cutting the power: every disk that recorded calls could leave behind.

The model is weaker than any real disk. At every point of a recording, any subset of the directory operations that no
fsync of their folder has made durable yet may have happened (in order), and of every file whose content was not synced
there is all, nothing, half, zeros of the full length, or half and then zeros. A rename is one operation.
Try it: `python -m reliability.campaign_saves --power`
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from reliability.syscalls import Call

# In how many ways the waiting operations and contents may be combined at one point before some of them are drawn.
MAX_WAYS, DRAWN = 20_000, 200
MAX_WAYS_THIN, DRAWN_THIN = 256, 3


# Relative path -> the bytes of a file, None for a folder, text for what a symlink says.
Tree = dict[str, bytes | str | None]


class State(NamedTuple):
    """One disk that could be found after a power cut.

    Args:
        marks: the words that the process had said by then, in order.
        tree: what is there.
    """

    marks: tuple[str, ...]
    tree: Tree


class Replay:
    """The states of a recording.

    Args:
        root: the folder that was watched.
        before: what was in it when the recording began, all of it durable (`scan`).
        is_thin: of many writes to one file in a row, only stop at the first, the middle and the last one; and draw
            sooner, and less.
        seed: of what is drawn where there are too many ways for all.

    Attributes:
        is_whole: whether every way was tried.
    """

    def __init__(self, root: Path, before: Tree, *, is_thin: bool = False, seed: int = 1) -> None:
        self._root = os.path.normpath(root)
        self._durable = {path: _node(value) for path, value in before.items()}
        self._now = dict(self._durable)
        self._waiting: list[tuple[str, tuple[_Change, ...]]] = []
        self._handles: dict[tuple[int, int], _Node | str] = {}
        self._is_thin, self._dice, self.is_whole = is_thin, random.Random(seed), True
        self._max_ways, self._drawn = (MAX_WAYS_THIN, DRAWN_THIN) if is_thin else (MAX_WAYS, DRAWN)

    def states(self, calls: Sequence[Call]) -> Iterator[State]:
        """Yield every state once, by what had been said until then."""
        seen: set[bytes] = set()
        marks: list[str] = []
        stops = _stops(calls) if self._is_thin else None
        for position, call in enumerate(calls):
            if call.name == "mark":
                marks.append(call.path)
            elif not self._apply(call) or (stops is not None and position not in stops):
                continue
            for tree in self._trees():
                state = State(tuple(marks), tree)
                key = _digest(state)
                if key not in seen:
                    seen.add(key)
                    yield state

    def drawn(self, calls: Sequence[Call], count: int) -> Iterator[State]:
        """Yield one state at each of `count` calls; calls and states are drawn."""
        marks: list[str] = []
        stops = set(self._dice.sample(range(len(calls)), min(count, len(calls))))
        for position, call in enumerate(calls):
            if call.name == "mark":
                marks.append(call.path)
            else:
                self._apply(call)
            if position in stops:
                yield State(tuple(marks), self._dice.choice(list(self._trees())))

    def _apply(self, call: Call) -> bool:
        """Let one call happen; whether that changed what could be found."""
        if call.error or call.name in ("read", "stat", "opendir", "flock"):
            return False
        path = self._relative(call.path)
        handle = (call.pid, call.descriptor)
        if call.name in ("open", "openr"):
            return self._open(path, handle, call.flags)
        if call.name == "close":
            self._handles.pop(handle, None)
        elif call.name == "write":
            assert len(call.data) == call.result, "a write without its data (sendfile?) cannot be replayed"
            self._handles[handle].write(call.offset, call.data)
        elif call.name == "truncate":
            self._handles[handle].content = self._handles[handle].content[: call.flags]
        elif call.name == "fsync":
            self._sync(self._handles[handle])
        else:
            self._change(call, path)
        return call.name != "close"

    def _open(self, path: str, handle: tuple[int, int], flags: int) -> bool:
        node = self._now.get(path)
        has_changed = False
        if node is None and path != ".":
            node = _File()
            self._later(path, ("set", path, node))
            has_changed = True
        elif isinstance(node, _File) and flags & os.O_TRUNC:
            node.content, has_changed = b"", True
        self._handles[handle] = node if isinstance(node, _File) else path
        return has_changed

    def _change(self, call: Call, path: str) -> None:
        to = self._relative(call.to) if call.name in ("link", "rename") else ""
        if call.name == "link":
            self._later(to, ("set", to, self._now[path]))
        elif call.name == "rename":
            assert os.path.dirname(path) == os.path.dirname(to), "a rename across folders is not modelled"
            self._later(to, ("del", path, None), ("set", to, self._now[path]))
        elif call.name in ("unlink", "rmdir"):
            self._later(path, ("del", path, None))
        elif call.name == "mkdir":
            self._later(path, ("set", path, _FOLDER))
        elif call.name == "symlink":
            self._later(path, ("set", path, call.to))
        else:
            raise AssertionError(f"'{call.name}' is not modelled")

    def _later(self, path: str, *changes: _Change) -> None:
        self._waiting.append((os.path.dirname(path), changes))
        _do(self._now, changes)

    def _sync(self, what: _Node | str) -> None:
        if isinstance(what, _File):
            what.durable = what.content
            return
        folder = "" if what == "." else what
        for _, changes in (one for one in self._waiting if one[0] == folder):
            _do(self._durable, changes)
        self._waiting = [one for one in self._waiting if one[0] != folder]

    def _trees(self) -> Iterator[Tree]:
        waiting = [changes for _, changes in self._waiting]
        nodes = [*self._durable.values(), *(node for changes in waiting for _, _, node in changes)]
        dirty = list({id(node): node for node in nodes if isinstance(node, _File) and node.is_dirty}.values())
        variants = [file.variants() for file in dirty]
        ways = 2 ** len(waiting) * math.prod(map(len, variants))
        if ways <= self._max_ways:
            choices = itertools.product(_masks(len(waiting)), itertools.product(*variants))
        else:
            self.is_whole = False
            choices = self._some(len(waiting), variants)
        for mask, forms in choices:
            tree = dict(self._durable)
            for changes in itertools.compress(waiting, mask):
                _do(tree, changes)
            content = dict(zip(map(id, dirty), forms, strict=True))
            yield {p: content.get(id(n), n.content) if isinstance(n, _File) else None if n is _FOLDER else n
                   for p, n in tree.items() if _is_reachable(p, tree)}  # fmt: skip

    def _some(self, count: int, variants: list[list[bytes]]) -> Iterator[tuple[Sequence[bool], Sequence[bytes]]]:
        """Draw some where there are too many ways.

        All, none, all but one, only one and the first few of the operations, with every file in the same form; then
        any of them with any forms.
        """
        numbers = range(count)
        masks = {(True,) * count, (False,) * count}
        masks |= {tuple((i == one) == is_alone for i in numbers) for one in numbers for is_alone in (True, False)}
        masks |= {tuple(i < end for i in numbers) for end in numbers}
        for mask, form in itertools.product(sorted(masks), range(5)):
            yield mask, [some[min(form, len(some) - 1)] for some in variants]
        for _ in range(self._drawn):
            yield [self._dice.random() < 0.5 for _ in numbers], [self._dice.choice(some) for some in variants]

    def _relative(self, path: str) -> str:
        return os.path.relpath(os.path.normpath(path), self._root)


class _File:
    """A file's content as the process sees it, and what of it is durable."""

    def __init__(self, durable: bytes = b"") -> None:
        self.content = self.durable = durable

    @property
    def is_dirty(self) -> bool:
        return self.content != self.durable

    def write(self, offset: int, data: bytes) -> None:
        self.content = self.content[:offset].ljust(offset, b"\0") + data + self.content[offset + len(data) :]

    def variants(self) -> list[bytes]:
        """Return what could be found of it: all, nothing new, half of what is new, zeros, half and zeros."""
        kept = self.durable if self.content.startswith(self.durable) else b""
        new = self.content[len(kept) :]
        half = new[: len(new) // 2]
        forms = [self.content, self.durable, kept + half, kept + bytes(len(new)), kept + half.ljust(len(new), b"\0")]
        return list(dict.fromkeys(forms))


_FOLDER = object()
_Node = object  # a _File, _FOLDER, or the text of a symlink
_Change = tuple[str, str, _Node]


def _masks(count: int) -> Iterator[Sequence[bool]]:
    return itertools.product((True, False), repeat=count)


def scan(root: Path) -> Tree:
    """Return what is in a folder now, as the beginning of a replay."""
    found: Tree = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = None if path.is_dir() else path.read_bytes()
    return found


def _node(value: bytes | str | None) -> _Node:
    return _FOLDER if value is None else _File(value) if isinstance(value, bytes) else value


def materialize(state: State, folder: Path) -> None:
    """Make `folder` what the state says; whatever was in it is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in sorted(state.tree, key=lambda name: name.count("/")):
        value = state.tree[name]
        if value is None:
            (folder / name).mkdir()
        elif isinstance(value, str):
            (folder / name).symlink_to(value)
        else:
            (folder / name).write_bytes(value)


def _do(tree: dict[str, _Node], changes: Sequence[_Change]) -> None:
    for what, path, node in changes:
        if what == "set":
            tree[path] = node
        else:
            tree.pop(path, None)


def _is_reachable(path: str, tree: dict[str, _Node]) -> bool:
    folder = os.path.dirname(path)
    return not folder or (tree.get(folder) is _FOLDER and _is_reachable(folder, tree))


def _stops(calls: Sequence[Call]) -> set[int]:
    """Return the positions to stop at: all but the inner ones of a row of writes to one file, and one in its middle."""
    seen = [i for i, call in enumerate(calls) if call.name not in ("read", "stat", "opendir", "openr", "close")]
    stops = set(range(len(calls)))
    for _, row in itertools.groupby(seen, key=lambda i: (calls[i].name == "write", calls[i].pid, calls[i].descriptor)):
        positions = list(row)
        if calls[positions[0]].name == "write":
            stops -= {*positions[1:-1]} - {positions[len(positions) // 2]}
    return stops


def _digest(state: State) -> bytes:
    parts = hashlib.blake2b(digest_size=16)
    parts.update(repr(state.marks).encode())
    for name, value in sorted(state.tree.items()):
        content = value if isinstance(value, bytes) else repr(value).encode()
        parts.update(f"{name}\0{type(value).__name__}\0{len(content)}\0".encode(errors="surrogateescape"))
        parts.update(content)
    return parts.digest()
