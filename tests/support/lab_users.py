"""Two users of one lab: one group, one runs folder with setgid, umask 0002, and a home of each's own.

Try it: `python -m pytest tests/test_lab.py`
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import another_user
from support.commands import Kit

GID = 65531
ALICE, BOB = 65533, 65532


def why_not() -> str | None:
    """Return why there cannot be two users here, None where there can."""
    return another_user.why_not()


class Member(Kit):
    """The commands as one user of the lab types them; config and runs are the lab's."""

    def __init__(self, lab: Path, uid: int) -> None:
        super().__init__(lab)
        self.uid = uid
        home = lab.parent / f"home-{uid}"
        home.mkdir(mode=0o700)
        os.chown(home, uid, GID)
        del self.env["XDG_STATE_HOME"]
        self.env |= {"HOME": str(home), "PYTHON": str(another_user.python()), "USER": f"user-{uid}"}

    def as_user(self, argv: list[str]) -> list[str]:
        """Return a command line that runs as this user, with the lab's umask."""
        become = ["setpriv", f"--reuid={self.uid}", f"--regid={GID}", "--clear-groups"]
        return [*become, "sh", "-c", 'umask 0002; exec "$0" "$@"', *argv]

    def argv(self, command: str, *args: str) -> list[str]:
        return self.as_user(super().argv(command, *args))

    def do(self, *argv: str, **more: Any) -> subprocess.CompletedProcess:
        """Run any program as this user; its output as text."""
        return subprocess.run(
            self.as_user(list(argv)), env=self.env, capture_output=True, text=True, check=False, **more
        )


@contextlib.contextmanager
def lab() -> Iterator[tuple[Member, Member]]:
    """Make the lab's folder and two of its members, Alice and Bob."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        folder = Path(place) / "lab"
        alice, bob = Member(folder, ALICE), Member(folder, BOB)
        bob.mark = alice.mark
        bob.env["RESUMEKIT_TEST_MARK"] = alice.mark
        folder.chmod(0o755)
        folder.joinpath("runs").mkdir()
        os.chown(folder / "runs", ALICE, GID)
        (folder / "runs").chmod(0o2775)
        try:
            yield alice, bob
        finally:
            alice.clean_up()
