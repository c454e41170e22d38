"""A reader of checkpoints run in a process of its own that has little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.places import LIB

MEMORY_BYTES = 1 << 30
_PROGRAM = """
import os, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
sys.path.append(sys.argv[2])
from resumekit.base.files import UnreadableFile
from resumekit.checkpoint import {module}
try:
    {call}
    print("read")
except UnreadableFile as error:
    print(error)
"""


def read_in_small_memory(call: str, path: Path) -> str:
    """Return what a call of a reader says of a file: the reason of its refusal, or 'read'.

    Args:
        call: begins with the name of the module; the file's path is `sys.argv[1]`.
        path: the file.
    """
    program = _PROGRAM.format(limit=MEMORY_BYTES, module=call.partition(".")[0], call=call)
    command = [sys.executable, "-I", "-c", program, str(path), str(LIB)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout
