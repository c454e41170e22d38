"""Death at every point of a recovery: a launcher that is killed at its k-th command, a helper at its k-th deed.

`launcher(...)` gives the environment in which `lib/launcher.sh` KILLs itself before its k-th simple command (Bash's
DEBUG trap, through BASH_ENV). `python(...)` makes an interpreter whose helper of one verb KILLs itself, or the launcher
first and then itself, before its k-th call that opens for writing, makes, moves, links, removes, locks, syncs, starts
or signals (an audit hook; and os.write, os.fsync, fcntl.flock, which have no audit event).
Try it: `python -m pytest -m long tests/faults/test_g_killed.py -k killed_at`
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What changes something outside of the process.
DEEDS = frozenset({
    "os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.truncate", "os.utime", "os.chmod",
    "subprocess.Popen", "os.kill", "os.posix_spawn", "os.fork", "shutil.copyfile", "shutil.rmtree",
})  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def launcher(folder: Path, point: int) -> dict[str, str]:
    """Return what the environment needs for a Bash that dies before its `point`-th simple command, 1 for the first.

    Args:
        folder: where a script is put; Bash expands the value of BASH_ENV, so its name has to be plain.
        point: the command.
    """
    assert str(folder).isascii() and not set(str(folder)) & set("$`'\"\\ \n")
    script = folder / "bash_env"
    # One Bash alone counts: it takes the variable out of its children's environment. A subshell has another BASHPID.
    script.write_text(
        "unset BASH_ENV\nset -T\nKIT_POINT=0\n"
        f"trap '[[ $BASHPID != $$ ]] || (( ++KIT_POINT < {point} )) || kill -KILL $$' DEBUG\n"
    )
    return {"BASH_ENV": str(script)}


def python(folder: Path, verb: str, point: int, *, launcher_too: bool = False) -> Path:
    """Make an interpreter that is the tests' own, but for the helper of one verb, which dies before its k-th deed.

    Args:
        folder: where it is put, with `points`, the number of deeds that were counted.
        verb: of resumekit_cli.py.
        point: 1 for the first deed.
        launcher_too: KILL the process that asks first.
    """
    path = folder / f"python_{verb}"
    own = [sys.executable, "-I", Path(__file__).resolve(), point, int(launcher_too), folder / "points"]
    words = shlex.join(map(str, own))
    path.write_text(
        f'#!/bin/sh\nfor word; do\n  if [ "$word" = {verb} ]; then exec {words} "$@"; fi\ndone\n'
        f'exec {shlex.quote(sys.executable)} "$@"\n'
    )
    path.chmod(0o755)
    return path


class _Count:
    """Dies at the k-th deed, and keeps count in a file of those before."""

    def __init__(self, point: int, launcher_too: bool, points: str) -> None:
        self.point, self.launcher_too, self.done, self.is_off = point, launcher_too, 0, False
        self.log = os.open(points, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self.plain_write = os.write

    def deed(self, name: str) -> None:
        if self.is_off:
            return
        self.is_off = True
        self.done += 1
        self.plain_write(self.log, f"{self.done} {name}\n".encode())
        if self.done == self.point:
            if self.launcher_too:
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        self.is_off = False

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event in DEEDS:
            self.deed(f"{event} {args[:2]!r}")
        elif event == "open" and isinstance(args[2], int) and args[2] & WRITES:
            self.deed(f"open {args[0]!r}")

    def before(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if name != "write" or args[0] > 2:
                self.deed(name)
            return original(*args, **kwargs)

        return counted


def main(argv: list[str]) -> int:
    """Become resumekit_cli.py with what stands behind the first three arguments."""
    import fcntl

    point, launcher_too, points = int(argv[0]), argv[1] == "1", argv[2]
    script = next(word for word in argv[3:] if word.endswith("resumekit_cli.py"))
    arguments = argv[argv.index(script) + 1 :]
    sys.path.append(str(Path(script).parent))
    from resumekit.commands import main as command

    count = _Count(point, launcher_too, points)
    os.write, os.fsync = count.before("write", os.write), count.before("fsync", os.fsync)
    fcntl.flock = count.before("flock", fcntl.flock)
    sys.addaudithook(count.hear)
    return command(arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
