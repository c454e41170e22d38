"""The faults that no test shows, each with its reason. One that has a test by now must not stand here."""

from __future__ import annotations

_ONE_MACHINE = "the kit starts one trainer process on one machine; several ranks are not there yet"
_NO_SCHEDULER = "the kit asks no scheduler; a job script is one more caller of run.sh"

LEFT_OUT = {
    "J1": _ONE_MACHINE,
    "J2": _ONE_MACHINE,
    "J3": _ONE_MACHINE,
    "J4": _ONE_MACHINE,
    "J6": "the kit opens no port; a rendezvous is the trainer's own",
    "J7": "the kit knows TERM and INT; a job script asks its scheduler for those (--signal=B:TERM@60)",
    "J9": _NO_SCHEDULER,
    "J10": _NO_SCHEDULER,
    "K3": "nothing of the kit unpacks an archive to disk: checkpoints are read in place, run folders are plain files",
    "K5": "the kit writes no HTML",
    "K6": "the kit writes no CSV or spreadsheet",
}
