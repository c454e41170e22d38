"""A pseudo terminal for a test: a command in its foreground, keys pressed, what it shows.

Try it: `python -m pytest tests/test_launcher.py -k ctrl_c`
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios

from support.commands import Kit
from support.processes import wait_until


class Terminal:
    """A pseudo terminal with a command in its foreground."""

    def __init__(
        self, kit: Kit, *args: str, env: dict[str, str] | None = None, hangup: signal.Handlers = signal.SIG_DFL
    ) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            with contextlib.suppress(OSError):
                signal.signal(signal.SIGHUP, hangup)  # not as the tests were started: by hand, by nohup
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 117, 0, 0))
                os.execve(kit.argv(*args)[0], kit.argv(*args), {**kit.env, "TERM": "xterm-256color", **(env or {})})
            os._exit(127)
        self.shown = b""

    def read_on(self, timeout_s: float = 0.05) -> None:
        if select.select([self.master], [], [], timeout_s)[0]:
            with contextlib.suppress(OSError):  # EIO: no process has it open
                self.shown += os.read(self.master, 65536)

    def wait(self) -> int:
        """Read until the command has ended; return its exit code."""

        def ended() -> tuple[int, int] | None:
            self.read_on()
            found = os.waitpid(self.pid, os.WNOHANG)
            return found if found[0] else None

        _, status = wait_until(ended, "the command in the terminal ended")
        self.read_on()
        return os.waitstatus_to_exitcode(status)

    def wait_for(self, text: bytes) -> None:
        wait_until(lambda: self.read_on() or text in self.shown, f"{text!r} on the terminal")

    def press(self, key: bytes) -> None:
        os.write(self.master, key)
