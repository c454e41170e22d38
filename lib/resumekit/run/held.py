"""The checkpoint that a run was resumed from, held by hard links in its own folder until it has one of its own.

A parent's claims keep the kit from pruning it (`claims.pin_step`); the framework of a parent that still lives knows no
claim, and rotates (`save_total_limit`). The files of what it wrote get a second name, `held/<name>`, with the manifest
beside it. It is a candidate of the run's history; the links, which the kit made, are removed once the run has an
attested or proven checkpoint of its own. Try it: `ls -l runs/<run_id>/held`
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from ..base.files import UnreadableFile
from ..base.imports import TYPE_CHECKING, Any
from ..base.paths import RunPaths, manifest_path
from ..base.values import string
from ..checkpoint import layout, manifest, transfer
from ..checkpoint.grades import ATTESTED
from ..checkpoint.selection import CheckpointFolder, select
from .quarantine import quarantined_names
from .run_folder import Run

if TYPE_CHECKING:
    from ..checkpoint.manifest import Manifest


def hold(checkpoint: Path, companions: tuple[str, ...], known: Manifest | None, paths: RunPaths) -> None:
    """Hold a checkpoint in the folder of a run that is being made.

    Args:
        checkpoint: the parent's, or what the parent holds.
        companions: names of the files that belong to it.
        known: its manifest.
        paths: of the new run; it holds nothing yet.

    Raises:
        UnreadableFile, OSError: it cannot be held; nothing is left of it.
    """
    paths.held.mkdir()
    try:
        transfer.link_whole(checkpoint, paths.held, companions)
        if known is not None:
            manifest.write(paths.held / checkpoint.name, known._replace(file=checkpoint.name))
    except BaseException:
        _remove(paths.held / checkpoint.name, companions)
        raise


def of(run: Run) -> Path | None:
    """Return the checkpoint that a run holds; None where it holds none."""
    found = origin(run)
    path = None if found is None else run.paths.held / found.name
    return path if path and not os.path.islink(run.paths.held) and os.path.lexists(path) else None


def origin(run: Run) -> Path | None:
    """Return where the checkpoint that a run was resumed from lay then; it may be gone by now."""
    record = string(run.record.get("checkpoint"))
    if record is None or "\0" in record:
        return None
    path = run.paths.run_dir / record
    return Path(os.path.realpath(path.parent)) / path.name if path.name != ".." else None


def origin_of(checkpoint: Path, run: Run | None) -> Path:
    """Return where a checkpoint lay first: of one that a run holds its parent's, else its own path.

    Args:
        run: the run whose folder it lies in.
    """
    own = of(run) if run else None
    is_held = own is not None and os.path.realpath(own) == os.path.realpath(checkpoint)
    return (origin(run) if run and is_held else None) or checkpoint


def step(run: Run) -> int | None:
    """Return the step of the checkpoint that a run holds; None where it holds none."""
    return None if of(run) is None else run.parent_step


def words(run: Run) -> str | None:
    """Return what is said of the checkpoint that a run holds, with its bytes; None where it holds none."""
    path = of(run)
    if path is None:
        return None
    with contextlib.suppress(OSError):
        return f"holds '{path.name}' of its parent ({size_of(path, run.form.companions_of(path.name)) / 1e6:,.1f} MB)"
    return f"holds '{path.name}' of its parent"


def size_of(checkpoint: Path, companions: tuple[str, ...]) -> int:
    """Return the bytes of all its files. Raises UnreadableFile and OSError."""
    with layout.open_checkpoint(checkpoint, companions, follow_links=True) as opened:
        return sum(seen.size for seen in opened.files.values())


def own_folder(run: Run, limit: int | None, *, would_attest: bool = False) -> CheckpointFolder:
    """Return a run's own checkpoints as a part of a history that left it at step `limit`."""
    own = run.paths
    return CheckpointFolder(
        folder=own.checkpoints, run_id=run.run_id, form=run.form, max_step=limit, quarantined=quarantined_names(own),
        would_attest=would_attest,
    )  # fmt: skip


def folders_along(
    history: Sequence[tuple[Run, int | None]], *, follow_links: bool = False, would_attest: str | None = None
) -> list[CheckpointFolder]:
    """Return where the checkpoints of a history lie, newest run first: of each run its own, and what it holds.

    What is held counts where the run that wrote it belongs to the history, or has lost its folder, and only as long as
    the files are not in their first place any more: there it is the same checkpoint.

    Args:
        follow_links: `checkpoint.follow_links` of the config that a new run is made with. It and that of the newest run
            hold for the whole history: an older one may have been made before the key was set.
        would_attest: the id of the run whose checkpoints a dry run counts as attested.
    """
    follow_links = follow_links or any(run.form.follow_links for run, _ in history[:1])
    found = []
    for run, limit in history:
        found.append(own_folder(run, limit, would_attest=would_attest == run.run_id))
        path, first = of(run), origin(run)
        if path is None or first is None:
            continue
        writers = [one for one in history if os.path.realpath(one[0].paths.checkpoints) == str(first.parent)]
        writer, left_at = writers[0] if writers else (None, None)
        form = (writer or run).form
        if _is_in_place(path, first, form.companions_of(path.name)) or (not writer and os.path.isdir(first.parent)):
            continue
        limits = [one for one in (limit, left_at, run.parent_step) if one is not None]
        found.append(
            CheckpointFolder(
                folder=path.parent, run_id=writer.run_id if writer else None, form=form,
                max_step=min(limits, default=None),
                quarantined=quarantined_names(run.paths) | (quarantined_names(writer.paths) if writer else frozenset()),
            )
        )  # fmt: skip
    return [one._replace(form=one.form._replace(follow_links=True)) for one in found] if follow_links else found


def _is_in_place(path: Path, first: Path, companions: tuple[str, ...]) -> bool:
    """Whether the files of a checkpoint that is held lie in their first place too."""
    try:
        with (
            layout.open_checkpoint(path, companions, True) as held,
            layout.open_checkpoint(first, companions, True) as there,
        ):
            own = {name: seen.file for name, seen in held.files.items()}
            return own == {name: seen.file for name, seen in there.files.items() if name in own}
    except (OSError, UnreadableFile):
        return False


class Holding:
    """Lets go of what a run holds when it may have a checkpoint of its own; its sidecar calls `look` often."""

    def __init__(self, run: Run) -> None:
        self._run, self._looked_at = run, None

    def look(self, state: dict[str, Any]) -> str:
        """Return what is said where the links were removed; '' where they stay, or are gone already.

        Args:
            state: what the journal comes to.
        """
        if (newest := state.get("last_checkpoint_step")) == self._looked_at:
            return ""
        self._looked_at = newest
        return let_go(self._run) or ""


def let_go(run: Run) -> str | None:
    """Remove the links of the checkpoint that a run holds, once it has an attested or proven one of its own.

    Returns:
        What is said of it; None where nothing was removed.
    """
    path, said = of(run), words(run)
    if path is None or said is None:
        return None
    own = select(
        [own_folder(run, None)], needs=frozenset(), prove=False, weights_only=False, minimum=ATTESTED
    ).chosen  # fmt: skip
    if own is None:
        return None
    try:
        _remove(path, run.form.companions_of(path.name))
    except OSError:
        return None
    return f"{said} no longer: '{own.name}' of its own is {own.grade}"


def _remove(path: Path, companions: tuple[str, ...]) -> None:
    transfer.remove_links(path.name, path.parent, companions)
    manifest_path(path).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a person has put a file in it: that stays
        path.parent.rmdir()
