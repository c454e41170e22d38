"""The process that takes the winning weights out of a checkpoint, under the trainer's own Python; nobody waits for it.

The sidecar imports no torch; what needs it is trainer/weights_extract.py, which does the work and says how it went.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from ..basics.files import UnreadableFile, read_bounded
from ..basics.paths import KIT_ROOT
from ..planning import interpreter
from ..run_folder.runs import Run
from . import artifact_folder

EXTRACTOR = KIT_ROOT / "lib" / "resumekit" / "trainer" / "weights_extract.py"
MAX_SAID_BYTES = 1 << 20


def start(run: Run, descriptor: int, folder: Path, weights: str, sha256: str | None) -> subprocess.Popen:
    """Start the process that writes `weights.pt` into `folder`.

    Args:
        run: whose trainer's Python it runs under.
        descriptor: the open checkpoint; the process has it as its stdin, whatever becomes of the name.
        folder: an unfinished snapshot.
        weights: 'raw', 'ema' or 'swa'.
        sha256: the digest that the checkpoint must have, where its manifest says one.

    Raises:
        OSError: the Python cannot be started.
    """
    argv = [python_of(run), str(EXTRACTOR), str(folder / artifact_folder.WEIGHTS), weights, sha256 or ""]
    own = {name: value for name, value in os.environ.items() if not name.startswith("RESUMEKIT_")}
    environment = {**own, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with open(folder / artifact_folder.SAID, "xb") as said:
        return subprocess.Popen(argv, stdin=descriptor, stdout=said, stderr=said, cwd="/", env=environment)


def python_of(run: Run) -> str:
    """Return the interpreter that a run's trainer runs under, as its run.json and config say."""
    root, cwd, argv = (run.record.get(name) for name in ("root", "cwd", "argv"))
    settings = {"trainer": {"python": run.setting("trainer", "python")}}
    python = interpreter.configured(settings, Path(str(root)))
    return interpreter.of_trainer(argv, Path(str(cwd)), python) if isinstance(argv, list) and argv else python


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
