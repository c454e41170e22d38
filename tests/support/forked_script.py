"""A test's own script as a trainer that fork_server.py can fork; what such scripts import is imported already.

Try it: `python -m pytest tests/test_protocol.py`
"""

from __future__ import annotations

import contextlib
import runpy
import sys

import torch  # noqa: F401 (imported once for every script, as is what follows)

import resume_helper  # noqa: F401
from resumekit.trainer import heartbeat, loading, saving, verification  # noqa: F401

with contextlib.suppress(ImportError):
    import lion_pytorch  # noqa: F401


def main(argv: list[str]) -> int:
    """Run the script that `argv` begins with, as its own command line would."""
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")
    return 0
