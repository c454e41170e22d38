"""Which checkpoint a new run holds by hard links (`run/held`), and why one that should be held cannot be.

Held is what a framework may remove: not what `save_checkpoint` wrote, which a pin in the parent's claims keeps, nor
what is written over under one name, whose copies are pinned likewise. Reads what stat says; `hold` makes the links.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..base.errors import Refused
from ..base.files import UnreadableFile
from ..base.imports import NamedTuple
from ..base.paths import RunPaths
from ..base.terminal import HELD, Note
from ..checkpoint import layout
from ..checkpoint.manifest import SAVE_CHECKPOINT
from ..run import held, status
from ..run.run_folder import Run
from . import preflight
from .choice import Choice


class Foreseen(NamedTuple):
    """What is to be held.

    Args:
        path: the checkpoint.
        companions: names of the files that belong to it.
        writer: the run that wrote it.
        why_not: in a few words, why it cannot be held; None where it can, as far as is seen.
    """

    path: Path
    companions: tuple[str, ...]
    writer: Run
    why_not: str | None


def foreseen(choice: Choice) -> Foreseen | None:
    """Return what a start of this choice has to hold; None where nothing, or a pin is enough."""
    parent, candidate = choice.parent, choice.candidate
    if parent is None or candidate is None or (candidate.known and candidate.known.writer == SAVE_CHECKPOINT):
        return None
    writer, path = choice.holder, preflight.chosen_file(choice)
    if writer is None or writer.form.is_fixed or writer.form.step_of(path.name) is None:
        return None
    companions = writer.form.companions_of(path.name)
    return Foreseen(path, companions, writer, _why_not(path, companions, writer, choice.table.runs_dir))


def _why_not(path: Path, companions: tuple[str, ...], writer: Run, runs_dir: Path) -> str | None:
    if not writer.is_ours:
        return "the kit did not make that folder, and changes nothing in it"
    try:
        if layout.owners(path, companions) != {os.geteuid()}:
            return "it belongs to another user"
        devices = {seen.st_dev for seen in layout.files_of(path, companions).values()}
        if devices != {os.stat(runs_dir).st_dev}:
            return "it lies on another file system"
    except OSError as error:
        return error.strerror or str(error)
    return None


def said(choice: Choice) -> Iterator[str]:
    """Yield what a person is told: which checkpoint the new run will hold, and of how many bytes, or why none."""
    found = foreseen(choice)
    if found is None:
        return
    if found.why_not is not None:
        yield _not_held(found, found.why_not)
        return
    try:
        size = held.size_of(found.path, found.companions)
    except (OSError, UnreadableFile):
        return
    yield Note(HELD, f"the checkpoint is held by links ({size / 1e6:,.1f} MB), until the new run has one of its own")


def hold(choice: Choice, paths: RunPaths) -> tuple[str | None, Path | None]:
    """Hold the checkpoint of a choice in the folder of the new run.

    Returns:
        (the sentence that says why it is not held, though that was foreseen; None for any other,
        what is held where the trainer is to load that; None where it loads the chosen one).

    Raises:
        Refused: it was removed meanwhile.
    """
    found = foreseen(choice)
    if found is None or found.why_not is not None:
        return None, None
    try:
        held.hold(found.path, found.companions, choice.chosen.known, paths)
    except (OSError, UnreadableFile) as error:
        if not os.path.lexists(found.path):
            raise Refused(f"'{found.path}' was removed while this resume was being made: try again") from error
        return _not_held(found, getattr(error, "strerror", None) or str(error)), None
    return None, paths.held / found.path.name if _is_for_trainer(choice, found.writer) else None


def _is_for_trainer(choice: Choice, writer: Run) -> bool:
    """Whether the trainer is to load what is held: the run that wrote it lives, and may remove its own.

    Not where that has ended: a trainer that is started again by its own launcher (torchrun) may look for the
    checkpoint when it is held no longer.
    """
    trainer = choice.config["trainer"]
    loads_another = trainer["loads_with_kit"] or trainer.get("checkpoint_in")
    return not loads_another and status.current(writer)["state"] in status.LIVE


def _not_held(found: Foreseen, why: str) -> str:
    return (
        f"'{found.path.name}' is not held ({why}): if the framework of '{found.writer.run_id}' removes it before the "
        "new run has a checkpoint of its own, a recovery begins from an older one"
    )
