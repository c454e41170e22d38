"""A checkpoint into another folder: copied, as a trainer's own to begin from, or held by hard links.

Reads a checkpoint; writes below the folder that is given. Of a folder the kit removes nothing but hard links that it
made itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from ..base.files import UnreadableFile, fsync_directory, open_regular
from . import links
from .layout import FOLDER_FLAGS, identity, open_checkpoint

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_COPY_BYTES = 1 << 20


def open_in_folder(checkpoint: Path, *, follow_links: bool | None = None) -> int:
    """Open one that was looked at as a file of its own folder, as `open_one` does.

    A link that has come into its place since may lead to what the caller alone may read, and is not followed.

    Raises:
        UnreadableFile: it is missing, no regular file, may not be read, or is a link as for `refuse_link_out`.
    """
    refuse_link_out(checkpoint, follow_links=follow_links)
    return open_regular(Path(os.path.realpath(checkpoint)), follow_links=False)


def refuse_link_out(checkpoint: Path, *, follow_links: bool | None = None) -> None:
    """Raise UnreadableFile where a checkpoint that was looked at is a link out of its folder by now.

    Args:
        follow_links: `checkpoint.follow_links`: those of the caller's to what is the caller's are no reason.
    """
    if Path(os.path.realpath(checkpoint)).parent == Path(os.path.realpath(checkpoint.parent)):
        return
    if not follow_links:
        raise UnreadableFile("it is a link out of its folder by now")
    links.followed(checkpoint)


def copy(opened: int, folder: int, name: str) -> None:
    """Copy an open checkpoint into an open folder, under a name that nothing has there.

    Args:
        opened: what `open_one` or `open_in_folder` returned.
        folder: a descriptor.

    Raises:
        OSError: the copy cannot be written; what there is of it is left.
    """
    import shutil  # late: few starts copy anything

    new = os.open(name, _NEW_FILE, 0o666, dir_fd=folder)
    with os.fdopen(new, "wb") as made, os.fdopen(opened, "rb", closefd=False) as original:
        shutil.copyfileobj(original, made, _COPY_BYTES)


def copy_whole(
    checkpoint: Path, folder: int, name: str, companions: tuple[str, ...] = (), follow_links: bool | None = None
) -> None:  # fmt: skip
    """Copy a checkpoint of any kind, with what belongs to it, into an open folder.

    Args:
        checkpoint: it is looked at as one of its own folder (`open_in_folder`).
        folder: a descriptor; nothing in it has the name.
        name: of the copy; a file that belongs to it keeps its own.
        companions, follow_links: as for `open_checkpoint`.

    Raises:
        UnreadableFile: it cannot be read.
        OSError: the copy cannot be written; what there is of it is left.
    """
    if not os.path.isdir(checkpoint):
        for own, target in ((checkpoint.name, name), *((one, one) for one in companions)):
            opened = open_in_folder(checkpoint.with_name(own), follow_links=follow_links)
            try:
                copy(opened, folder, target)
            finally:
                os.close(opened)
        return
    refuse_link_out(checkpoint, follow_links=follow_links)
    os.mkdir(name, dir_fd=folder)
    with open_checkpoint(checkpoint, follow_links=follow_links) as whole:
        for file in whole.files:
            source = whole.open_file(file)
            try:
                target_folder = _made_inside(os.open(name, FOLDER_FLAGS, dir_fd=folder), file.split("/")[:-1])
                try:
                    copy(source, target_folder, file.rpartition("/")[2])
                finally:
                    os.close(target_folder)
            finally:
                os.close(source)


def copy_below(
    checkpoint: Path, top: Path, target: Path, companions: tuple[str, ...] = (), *, follow_links: bool | None = None
) -> None:
    """Copy a checkpoint of any kind to a path below a folder; no link on the way there is followed.

    Args:
        checkpoint, companions, follow_links: as for `copy_whole`.
        top: the folder; those between it and `target` that are not there are made.
        target: the path of the copy.

    Raises:
        UnreadableFile: it cannot be read, or is a link out of its folder by now: nothing is made then.
        OSError: the copy cannot be written; what there is of it is left.
    """
    refuse_link_out(checkpoint, follow_links=follow_links)
    folder = _made_inside(os.open(top, FOLDER_FLAGS), target.relative_to(top).parent.parts)
    try:
        copy_whole(checkpoint, folder, target.name, companions, follow_links)
    finally:
        os.close(folder)


def _made_inside(folder: int, names: Sequence[str]) -> int:
    """Return a descriptor of a folder inside an open one, which is closed; each that is not there is made."""
    for name in names:
        outer = folder
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=outer)
            folder = os.open(name, FOLDER_FLAGS, dir_fd=outer)
        finally:
            os.close(outer)
    return folder


def link_whole(checkpoint: Path, folder: Path, companions: tuple[str, ...] = ()) -> None:
    """Give each file of a checkpoint of any kind a second name below another folder: hard links, never a copy.

    Args:
        folder: nothing in it has the checkpoint's name, nor that of a file that belongs to it.
        companions: as for `open_checkpoint`.

    Raises:
        UnreadableFile: it cannot be read, or its files were exchanged meanwhile; nothing of it is left.
        OSError: a link cannot be made, on another file system say; nothing of it is left.
    """
    target = folder / checkpoint.name
    with open_checkpoint(checkpoint, companions, follow_links=True) as opened:
        source, below = (checkpoint, target) if opened.is_folder else (checkpoint.parent, folder)
        try:
            places = {folder}
            for name, seen in opened.files.items():
                link = below / name
                link.parent.mkdir(parents=True, exist_ok=True)
                places.add(link.parent)
                os.link(os.path.realpath(source / name), link)
                if identity(link).version != seen.version:
                    raise UnreadableFile(f"'{name}' changed while it was linked")
            for place in places:
                fsync_directory(place)
        except BaseException:
            remove_links(checkpoint.name, folder, companions)
            raise


def remove_links(name: str, folder: Path, companions: tuple[str, ...] = ()) -> None:
    """Remove what `link_whole` made of a checkpoint of this name; what is not there is no error. Raises OSError."""
    opened = os.open(folder, FOLDER_FLAGS)  # no link that comes into its place is followed
    try:
        own = f"/proc/self/fd/{opened}/{name}"
        if os.path.isdir(own) and not os.path.islink(own):
            import shutil  # late: few runs hold a folder

            shutil.rmtree(own)
            return
        for one in (name, *companions):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(one, dir_fd=opened)
    finally:
        os.close(opened)
