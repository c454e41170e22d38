"""The folder of a new run: made under a name that is free, and removed again where the start fails.

Plain mkdir makes it this process's alone. In a runs folder without the sticky bit another user can rename it and put
another one in its place: so it is known by its inode from then on (`ownership.MadeFolder`), and no other is removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from ..base import ownership
from ..base.errors import KitError
from ..base.files import write_new
from ..base.ownership import MadeFolder
from ..base.paths import RunPaths
from . import live_marker

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_NUMBERS = 10_000


def make(wanted: RunPaths) -> tuple[RunPaths, MadeFolder]:
    """Make the folder of a new run: under its id, or with a number behind it where that is taken.

    Args:
        wanted: the files of the run, under its id alone.

    Returns:
        (the run's files, by what its folder is known from now on).

    Raises:
        KitError: no folder can be made there, or no name is free.
    """
    runs_dir, run_id = wanted.run_dir.parent, wanted.run_dir.name
    try:
        make_runs_dir(runs_dir)
        for number in range(1, _MOST_NUMBERS):
            paths = wanted if number == 1 else wanted._replace(run_dir=runs_dir / f"{run_id}-{number}")
            if live_marker.is_there(paths):
                continue  # of a run whose folder was moved, and which may still train under this id
            with contextlib.suppress(FileExistsError):
                paths.run_dir.mkdir()
                return paths, _just_made(paths.run_dir)
    except OSError as error:
        raise KitError(f"no run folder can be made in '{runs_dir}': {error.strerror}") from error
    raise KitError(f"no free name for '{run_id}' in '{runs_dir}'")


def _just_made(folder: Path) -> MadeFolder:
    """Return what the folder is that this process has just made; OSError where another one lies there by now."""
    descriptor = os.open(folder, _FOLDER)
    try:
        if os.listdir(descriptor):
            raise OSError(errno.ESTALE, "it was exchanged as soon as it was made", str(folder))
        return ownership.made_folder_of(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def make_runs_dir(runs_dir: Path) -> None:
    """Make the folder of all runs if it is not there, and tell the lab's git to leave it alone, as pytest's cache does.

    One that is there is the lab's to decide on.
    """
    is_new = not os.path.lexists(runs_dir)
    runs_dir.mkdir(parents=True, exist_ok=True)
    if is_new:
        with contextlib.suppress(OSError):
            write_new(runs_dir / ".gitignore", b"# made by resumekit: checkpoints are not for git\n*\n")


def remove(folder: Path, made: MadeFolder) -> bool:
    """Remove the folder that was made, and no other one that was moved to its name; False where something is left.

    What lies in it is removed through its descriptor, and rmdir takes away what is empty alone.
    """
    try:
        descriptor = os.open(folder, _FOLDER)
    except OSError:
        return not os.path.lexists(folder)
    try:
        if not made.is_at(os.fstat(descriptor)):
            return False
        for name in os.listdir(descriptor):
            _remove_entry(f"/proc/self/fd/{descriptor}/{name}")
        os.rmdir(folder)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _remove_entry(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        import shutil  # late: a start that succeeds removes nothing

        shutil.rmtree(path)
    else:
        os.unlink(path)
