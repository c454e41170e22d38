"""Where the tests find the kit, its library and the toy trainer; what a live marker lies in."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIB = ROOT / "lib"
TOY = Path(__file__).resolve().parent / "toy_trainer.py"
# The folder of this user's live markers, in a runs folder.
LIVE = f".live.{os.geteuid()}"
