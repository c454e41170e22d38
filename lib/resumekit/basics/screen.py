"""A terminal that is drawn on again and again, and is as it was before when that ends.

Draws on the terminal's second page, so that what stood on the first is there again afterwards. Each picture is one
write from the top left corner, over the one before it: nothing is cleared first, so nothing flickers.
Try it: `bin/runs.sh --watch`
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
from collections.abc import Sequence
from typing import Any

from .errors import UsageError
from .terminal import plain

# Second page, no cursor, and a line that is too long ends at the edge; then the way back.
_ENTER, _LEAVE = b"\x1b[?1049h\x1b[?25l\x1b[?7l", b"\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME, _TO_END_OF_LINE, _TO_END_OF_PAGE = "\x1b[H", "\x1b[K", "\x1b[J"


class Screen:
    """The terminal of stdout, for as long as the `with` lasts; INT, TERM and Ctrl-Z leave it as it was."""

    def __enter__(self) -> Screen:
        if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
            raise UsageError("--watch draws on a terminal, and there is none: leave it out to list the runs once")
        self._has_keys = sys.stdin is not None and sys.stdin.isatty()
        self._wakes, self._wake = os.pipe()
        for end in (self._wakes, self._wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, handler) for number, handler in self._handlers().items()}
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, termios.error):  # the terminal may be gone
            self._give_back()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(self._wakes)
        os.close(self._wake)

    @property
    def height(self) -> int:
        """How many lines there are now; a terminal that does not say has 24."""
        return self._size().lines or 24

    def show(self, lines: Sequence[str]) -> None:
        """Draw the lines over those of before; what does not fit is not shown, control characters neither."""
        size = self._size()
        width = size.columns or 80
        shown = [_cut(plain(line), width) + _TO_END_OF_LINE for line in lines[: size.lines or 24]]
        frame = (_HOME + "\r\n".join(shown) + _TO_END_OF_PAGE).encode(sys.stdout.encoding or "utf-8", "replace")
        _write(frame)

    def wait(self, seconds: float) -> bool:
        """Wait, or until the window has another size; False if a person has typed 'q'."""
        deadline = time.monotonic() + seconds
        while (left_s := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([self._wakes, *([0] if self._has_keys else [])], [], [], left_s)
            if self._wakes in ready:
                os.read(self._wakes, 4096)
                return True
            if 0 in ready:
                typed = os.read(0, 4096)
                self._has_keys = bool(typed)
                if b"q" in typed or b"Q" in typed:
                    return False
        return True

    def _handlers(self) -> dict[int, Any]:
        return {
            signal.SIGWINCH: lambda *_: None,  # to be woken by it is enough
            signal.SIGTERM: lambda number, _frame: sys.exit(128 + number),
            signal.SIGTSTP: self._stop,
        }

    def _stop(self, number: int, _frame: object) -> None:
        """Ctrl-Z: the shell gets its terminal as it was, and on `fg` we take it again."""
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._stop)
        self._take()

    def _take(self) -> None:
        if self._has_keys:
            self._modes = termios.tcgetattr(0)
            modes = termios.tcgetattr(0)
            modes[3] &= ~(termios.ECHO | termios.ICANON)  # what is typed is not to be seen, and comes at once
            termios.tcsetattr(0, termios.TCSADRAIN, modes)
        _write(_ENTER)

    def _give_back(self) -> None:
        _write(_LEAVE)
        if self._has_keys:
            termios.tcsetattr(0, termios.TCSADRAIN, self._modes)

    def _size(self) -> os.terminal_size:
        try:
            return os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            return os.terminal_size((80, 24))


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def _write(data: bytes) -> None:
    descriptor, view = sys.stdout.fileno(), memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
