"""The faults that no test shows, each with its reason. One that has a test by now must not stand here."""

from __future__ import annotations

_ONE_FILE = "a checkpoint is one file, which one rank writes: sets with a file for each rank are not there yet"

LEFT_OUT = {
    "J3": _ONE_FILE,
    "J4": _ONE_FILE,
    "J9": "a job that a scheduler starts again is a person's start: how often is the scheduler's to count",
    "J10": "the kit asks no scheduler, so none can be silent or wrong: who lives is read from /proc",
    "K3": "nothing of the kit unpacks an archive to disk: checkpoints are read in place, run folders are plain files",
    "K5": "the kit writes no HTML",
    "K6": "the kit writes no CSV or spreadsheet",
}
