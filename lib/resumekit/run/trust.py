"""Whose word a run folder is: what may be executed because it stands in there. By its seal, else by owners and modes.

Reads the run's records, through one descriptor of its folder; writes nothing. Source: docs/security.md, decision 0014.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from ..base import file_identity, ownership
from ..base.files import UnreadableFile, parse_json
from ..base.imports import Any, NamedTuple
from ..base.ownership import MadeFolder
from ..base.paths import RunPaths
from ..base.values import mapping
from . import seals
from .run_folder import Run, open_run, run_of
from .seals import MAX_RECORD_BYTES, Seal

SEALED, OWN, OTHERS = "sealed", "own", "others"
_WITHOUT_LINKS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Standing(NamedTuple):
    """Whose word the records of a run are.

    Args:
        kind: SEALED, as the caller's launcher wrote them; OWN, no other user can have written them; or OTHERS.
        reason: of OTHERS, what it is by, for a message: "it belongs to user 'alice'".
    """

    kind: str
    reason: str = ""

    @property
    def is_callers(self) -> bool:
        return self.kind != OTHERS


class Examined(NamedTuple):
    """A run as it was read in one go, for an unattended recovery.

    Args:
        run: its record and config are those that `standing` is about; `notify.command` is the sealed one, or none,
            where that is OTHERS.
        standing: OTHERS also where its folder is a link or another user's.
        config_copy: the bytes of its config.yaml; None where they cannot be read.
    """

    run: Run
    standing: Standing
    config_copy: bytes | None = None


class _Folder(NamedTuple):
    """What was read of a run folder: its own stat, and of each record its stat and its bytes, or what kept it."""

    found: os.stat_result
    stats: Mapping[str, os.stat_result]
    contents: Mapping[str, bytes]
    faults: Mapping[str, str]


def standing(run: Run) -> Standing:
    """Return whose word the record and the config are that `run` was read with.

    For a start that a person asks for. The folder may be another user's, or a link: the bytes of a record that
    fit the seal are the caller's own, wherever they lie.
    """
    if not run.is_ours:
        return Standing(OTHERS, _no_record(run) or "it was not made by this kit")
    try:
        folder = _read(run.paths, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return Standing(OTHERS, f"it cannot be read: {error.strerror}")
    found = _of(run, folder, seals.read(run.record))
    if found.is_callers and not _is_what_was_read(run, folder):
        return Standing(OTHERS, "it changes while it is being read")
    return found


def against_checkpoint(run: Run, checkpoint: Path) -> str | None:
    """Return why a checkpoint in a run's folder is not the caller's word; None where it is.

    It is where the run's records are. A folder without a record of any kit, of before it was used, has the folder and
    the file themselves to go by: the caller's, not writable by others, and older than the caller's first seal.

    Raises:
        OSError: the folder or the file is gone.
    """
    if run.is_ours or run.other_id is not None:
        found = standing(run)
        return None if found.is_callers else found.reason
    from ..checkpoint import layout  # late: few checkpoints lie in a folder without any record

    files = layout.files_of(checkpoint, run.form.companions_of(checkpoint.name))
    folder = os.stat(run.paths.run_dir)
    own = _Folder(folder, files, {}, {})
    since = seals.since()
    is_new = since is not None and any(file.st_ctime >= since for file in files.values())
    return _foreign(own) or _not_safe(own) or ("it has no record of a launcher's" if is_new else None)


def examine(run_dir: Path) -> Examined:
    """Read a run for a recovery: through one descriptor of its folder, which must be the caller's and no link.

    Args:
        run_dir: below the runs folder that was named; a link there is not followed.
    """
    try:
        folder = _read(RunPaths(run_dir), os.O_DIRECTORY | _WITHOUT_LINKS)
    except OSError:
        run = open_run(run_dir)  # for a message alone
        is_link = os.path.islink(run_dir)
        _take_notifier_of(run, None)
        return Examined(run, Standing(OTHERS, "it is a link" if is_link else "it cannot be opened as a folder"))
    run = _run_in(run_dir, folder)
    seal = seals.read(run.record) if run.is_ours else None
    is_own = folder.found.st_uid == os.geteuid()
    found = _of(run, folder, seal) if is_own else Standing(OTHERS, f"it belongs to {user_of(folder.found.st_uid)}")
    if not found.is_callers:
        _take_notifier_of(run, seal)
    return Examined(run, found, folder.contents.get(run.paths.config_copy.name))


def examine_made(run_dir: Path, made: MadeFolder) -> Examined:
    """Read a run for a process that its launcher starts: what was made, and as it was written, needs no seal.

    A folder of the caller's with the very records counts under another inode too: some network drives change them.

    Args:
        run_dir: its folder; a link there is not followed.
        made: what the launcher has handed on.

    Raises:
        Exchanged: another folder lies there by now.
        OSError: there is none, or it cannot be read.
    """
    if os.path.islink(run_dir):
        raise ownership.exchanged(run_dir)
    folder = _read(RunPaths(run_dir), os.O_DIRECTORY | _WITHOUT_LINKS)
    is_whole = not folder.faults and seals.digest(folder.contents) == made.records
    if not made.is_at(folder.found) and not (is_whole and folder.found.st_uid == os.geteuid()):
        raise ownership.exchanged(run_dir)
    standing = Standing(SEALED) if is_whole else Standing(OTHERS, "its records are not as its launcher wrote them")
    return Examined(_run_in(run_dir, folder), standing, folder.contents.get(RunPaths(run_dir).config_copy.name))


def _run_in(run_dir: Path, folder: _Folder) -> Run:
    """Return the run as it was read through the descriptor: nothing of it is read by its path, now or later."""
    try:
        run = run_of(run_dir, parse_json(folder.contents["run.json"]))
    except (KeyError, UnreadableFile):
        run = Run(RunPaths(run_dir), {})
    run.config = _config_in(folder)
    return run


def _take_notifier_of(run: Run, seal: Seal | None) -> None:
    """Let a run whose records are not the caller's word tell only whom the seal names: that was the caller's own."""
    if not run.is_ours:
        return
    run.config = {**run.config, "notify": {"command": seal.notify if seal else None}}
    run.record["root"] = seal.root if seal else None


def _of(run: Run, folder: _Folder, seal: Seal | None) -> Standing:
    reason = _not_sealed(run, folder, seal) if seal is not None else None
    if seal is not None and reason is None:
        return Standing(SEALED)
    if not run.is_ours:
        return Standing(OTHERS, _no_record(run) or "it has no run.json of this kit")
    if (foreign := _foreign(folder)) is not None:
        return Standing(OTHERS, foreign)
    if reason is None:
        reason = _not_safe(folder) or _not_recorded(run, folder) or _newer_than_seals(folder)
    return Standing(OTHERS, reason) if reason else Standing(OWN)


def _no_record(run: Run) -> str | None:
    return f"its '{run.foreign_link}' is a link of another user's" if run.foreign_link else None


def _not_sealed(run: Run, folder: _Folder, seal: Seal) -> str | None:
    """Return which record is another than the sealed one."""
    for path in seals.records(run.paths):
        name = path.name
        if name in folder.faults:
            return f"its {name} {folder.faults[name]}"
        content = folder.contents.get(name)
        digest = None if content is None else file_identity.sha256(content)
        if digest != seal.sha256.get(name):
            return f"its {name} is not as this user's launcher sealed it"
    return None


def _foreign(folder: _Folder) -> str | None:
    """Return whose the folder or one of its records is, where it is not the caller's."""
    me = os.geteuid()
    if folder.found.st_uid != me:
        return f"it belongs to {user_of(folder.found.st_uid)}"
    found = next(((name, one) for name, one in folder.stats.items() if one.st_uid != me), None)
    return f"its {found[0]} belongs to {user_of(found[1].st_uid)}" if found else None


def _not_safe(folder: _Folder) -> str | None:
    """Return what another user may have written, where there is no seal that would show it."""
    for name, fault in folder.faults.items():
        return f"its {name} {fault}"
    for name, one in (("its folder", folder.found), *folder.stats.items()):
        for bit, who in ((stat.S_IWOTH, "every user"), (stat.S_IWGRP, "its group")):
            if one.st_mode & bit:
                return f"{who} may write to {name}, and there is no seal of it"
    return None


def _not_recorded(run: Run, folder: _Folder) -> str | None:
    """Compare the config's bytes with the digests in run.json; records of older kits have none."""
    for key, name in (("resolved_sha256", "resolved_config.json"), ("config_sha256", "config.yaml")):
        digest, content = run.record.get(key), folder.contents.get(name)
        if isinstance(digest, str) and content is not None and file_identity.sha256(content) != digest:
            return f"its {name} is not the one that run.json has the digest of"
    return None


def _newer_than_seals(folder: _Folder) -> str | None:
    """Say of a run that was written after this user's first seal that it should have one.

    By the time that the kernel keeps (ctime), which no user can set: a copy is new, whatever its files say.
    """
    since, record = seals.since(), folder.stats["run.json"]
    if since is None or record.st_ctime < since:
        return None
    return "it has no seal: another user started it, it was copied here, or its seal could not be kept"


def _read(paths: RunPaths, flags: int) -> _Folder:
    """Read every record of a run through a descriptor of its folder. Raises OSError where there is no such folder."""
    descriptor = os.open(paths.run_dir, flags)
    try:
        stats: dict[str, os.stat_result] = {}
        contents: dict[str, bytes] = {}
        faults: dict[str, str] = {}
        for path in seals.records(paths):
            try:
                stats[path.name], contents[path.name] = _record(path.name, descriptor)
            except FileNotFoundError:
                continue
            except (UnreadableFile, OSError) as error:
                faults[path.name] = str(error) if isinstance(error, UnreadableFile) else "is a link or cannot be read"
        return _Folder(os.fstat(descriptor), stats, contents, faults)
    finally:
        os.close(descriptor)


def _record(name: str, folder: int) -> tuple[os.stat_result, bytes]:
    descriptor = os.open(name, _WITHOUT_LINKS, dir_fd=folder)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableFile("is no regular file")
        if found.st_size > MAX_RECORD_BYTES:
            raise UnreadableFile(f"is larger than {MAX_RECORD_BYTES} bytes")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return found, file.read(MAX_RECORD_BYTES)
    finally:
        os.close(descriptor)


def _is_what_was_read(run: Run, folder: _Folder) -> bool:
    try:
        return parse_json(folder.contents["run.json"]) == run.record and _config_in(folder) == run.config
    except (KeyError, UnreadableFile):
        return False


def _config_in(folder: _Folder) -> dict[str, Any]:
    try:
        return mapping(parse_json(folder.contents["resolved_config.json"]))
    except (KeyError, UnreadableFile):
        return {}


def user_of(uid: int) -> str:
    """Return a user for a message, by name where the system knows it."""
    import pwd  # it may ask the network: only where a message needs it

    try:
        return f"user '{pwd.getpwuid(uid).pw_name}'"
    except (KeyError, OverflowError):
        return f"user {uid}"
