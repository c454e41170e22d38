"""The process that takes the winning weights out of a checkpoint: how it is started, and what it said.

The work is done by `weights_extract`, beside this file; the sidecar does not wait for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ..base.files import UnreadableFile, read_bounded
from ..base.imports import Any
from ..base.paths import KIT_ROOT
from . import artifact_folder

EXTRACTOR = KIT_ROOT / "lib" / "resumekit" / "checkpoint" / "weights_extract.py"
MAX_SAID_BYTES = 1 << 20


def start(descriptor: int, folder: Path, weights: str, sha256: str | None) -> subprocess.Popen[bytes]:
    """Start the process that writes `weights.pt` into `folder`.

    Args:
        descriptor: the open checkpoint; the process has it as its stdin, whatever becomes of the name.
        folder: an unfinished snapshot.
        weights: 'raw', 'ema' or 'swa'.
        sha256: the digest that the checkpoint must have, where its manifest says one.

    Raises:
        OSError: no process can be started.
    """
    out = str(folder / artifact_folder.WEIGHTS)
    argv = [sys.executable, "-I", "-S", str(EXTRACTOR), out, weights, sha256 or ""]
    own = {name: value for name, value in os.environ.items() if not name.startswith("RESUMEKIT_")}
    with open(folder / artifact_folder.SAID, "xb") as said:
        return subprocess.Popen(argv, stdin=descriptor, stdout=said, stderr=said, cwd="/", env=own)


def answer(folder: Path) -> dict[str, Any]:
    """Return what the process said when it had ended: digests, sizes, names (see weights_extract.py).

    Raises:
        UnreadableFile: it failed; the message is its reason.
    """
    said = read_bounded(folder / artifact_folder.SAID, MAX_SAID_BYTES).decode("utf-8", "replace").strip()
    last = said.splitlines()[-1] if said else "the process that extracts its weights was killed"
    try:
        found = json.loads(last)
    except ValueError:
        raise UnreadableFile(last[:300]) from None
    if not isinstance(found, dict) or "source_sha256" not in found:
        raise UnreadableFile(str(found.get("error") if isinstance(found, dict) else last)[:300])
    return found
