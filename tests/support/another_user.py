"""Another user, where root runs the tests: what the kit does for one who may not read, signal or fork.

Try it: `python -m pytest tests/test_shim.py -k no_process_left`
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

UID = GID = 65534
SETPRIV = ("setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups")
_LIB = Path(__file__).resolve().parents[2] / "lib"


@cache
def python() -> str | None:
    """Return a Python that another user can start and that can import the kit; None where there is none."""
    return next((path for path in (sys.executable, "/usr/bin/python3") if _may_read_kit(path)), None)


def why_not() -> str | None:
    """Return why no process here can be another user's, None where one can."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return "needs root to start a process as another user"
    return None if python() else "another user can read neither this kit nor a Python here"


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Make a folder of that user's, in a place that is open to all (pytest's own are not)."""
    with tempfile.TemporaryDirectory() as place:
        os.chown(place, UID, GID)
        yield Path(place)


def _may_read_kit(path: str) -> bool:
    imports = f"import sys; sys.path.append({str(_LIB)!r}); import resumekit.commands"
    # Through a shell: setpriv itself still has root's rights when it starts the first program.
    argv = [*SETPRIV, "sh", "-c", 'exec "$0" "$@"', path, "-c", f"{imports}; sys.exit(sys.version_info < (3, 10))"]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0
