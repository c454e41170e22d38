"""Mistakes that a recovery could make, put into it on purpose: a replay that finds them all right is blind.

Each is a patch of the kit that holds in the recorded process and in all passes after it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from resumekit.base import claims, files, journal
from resumekit.base.files import write_all
from resumekit.process import shim
from resumekit.run import live_marker, run_folder, status
from resumekit.start import make_folder
from resumekit.watch import eligibility, escalation


class Mistake(NamedTuple):
    """One mistake.

    Args:
        scene: where it shows, of recovery_power.NAMES.
        patches: (where, name, what is put there).
    """

    scene: str
    patches: tuple[tuple[Any, str, Any], ...]


@contextlib.contextmanager
def made(mistake: Mistake) -> Iterator[None]:
    """Make it, and take it back."""
    before = [(where, name, getattr(where, name)) for where, name, _ in mistake.patches]
    for where, name, new in mistake.patches:
        setattr(where, name, new)
    try:
        yield
    finally:
        for where, name, old in before:
            setattr(where, name, old)


def _nothing(*_arguments: Any, **_options: Any) -> None:
    return None


def _without(event: str) -> tuple[Any, str, Any]:
    return journal, "DURABLE_EVENTS", journal.DURABLE_EVENTS - {event}


class _Unsynced(files.TempFile):
    def sync(self) -> None:
        pass


def _unsynced_marker(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    write_all(descriptor, b"%d\n" % os.fstat(descriptor).st_ino)
    os.close(descriptor)


def _half_an_event_counts(path: Path) -> bool:
    return path.exists() and b'"event":"launched"' in path.read_bytes()


@contextlib.contextmanager
def _claims_afterwards(head: str, run_id: str) -> Iterator[None]:
    yield
    with contextlib.suppress(OSError):
        os.mkdir(f"{head}/claims")
    claims._write_claim(Path(head, "claims", "continued.json"), {"run_id": run_id})


def _marker_first(run: Any, fields: dict[str, Any], **_options: Any) -> None:
    status.write(run, status.current(run))
    run.paths.live_marker.unlink(missing_ok=True)
    escalation._notify(run, fields)


def _only_claims(folder: Path) -> None:
    if folder.name == "claims":
        files.fsync_directory(folder)


# The one that is seen soonest.
QUICK = "the marker goes before a person is told"
MISTAKES: dict[str, Mistake] = {
    "the claim is empty after a power cut": Mistake("recovery", ((claims, "TempFile", _Unsynced),)),
    "the folder of the claims is gone": Mistake("recovery", ((claims, "fsync_directory", _only_claims),)),
    "claims are not exclusive": Mistake("recovery", ((claims, "held_by_other", _nothing),)),
    "the trainer before the claim": Mistake(
        "recovery", ((make_folder, "_claim_head", _nothing), (shim, "_claim", _claims_afterwards))
    ),
    "the abort event is not synced": Mistake("recovery", (_without("abort"),)),
    "the launched event is not synced": Mistake("recovery", (_without("launched"),)),
    "half a launched event counts": Mistake("recovery", ((run_folder, "_was_launched", _half_an_event_counts),)),
    "the journal's name is not synced": Mistake("recovery", ((shim, "fsync_directory", _nothing),)),
    "config and plan are not synced": Mistake("recovery", ((make_folder, "_make_durable", _nothing),)),
    "the marker is not synced": Mistake("recovery", ((live_marker, "make", _unsynced_marker),)),
    "every cause cuts the rate": Mistake("recovery", ((eligibility, "is_cut", lambda _run, _incident: True),)),
    "the call for a person is not synced": Mistake("attention", (_without("recovery"),)),
    QUICK: Mistake("attention", ((escalation, "_tell", _marker_first),)),
    "the account of a lost journal is believed": Mistake("account", ((journal, "tail", _nothing),)),
}
