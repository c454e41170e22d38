"""The code of a submitted job, frozen: a copy of the checkout in the job's folder, from which every start of it runs.

What git tracks is checked out into a worktree of its own, at the commit of the checkout, and what has changed since is
copied over that. Of what git does not track, the kit, the config and the files that the trainer's command names are
copied; everything else (data, environments, caches, submodules) is a link to the checkout's own, so that relative
paths lead where they did. Without git every file is of the second kind. Writes the job's folder, and the repository's
`.git/worktrees/`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..base import git
from ..base.errors import InvalidFile, KitError
from ..base.imports import Any, NamedTuple
from ..base.paths import KIT_ROOT
from ..base.terminal import first_few
from ..run.job_folder import JobFolder

KIT_PARTS = ("bin", "lib", "schemas", "config.yaml", "resumekit.mk", "VERSION")
# By a name that is no part of a training; the first of them would be the repository itself.
_LEFT_OUT = frozenset({".git", "__pycache__"})
_SHOWN = 4


class Source(NamedTuple):
    """What is frozen.

    Args:
        root: `paths.root`, absolute.
        config_file: the config, absolute.
        runs_dir: the folder of all runs, of which nothing is linked into the copy: a job names it as it is.
        files: the files that the trainer's command names, relative to the root, or absolute where they lie elsewhere.
    """

    root: Path
    config_file: Path
    runs_dir: Path
    files: Sequence[str] = ()


class Frozen(NamedTuple):
    """The copy.

    Args:
        kit: the folder of its kit.
        config_file: its config.
        commit: what it was checked out from; None without git.
        changed: tracked files that were not as in the commit, copied as they were.
        copied: files and folders outside git that were copied.
        linked: what is a link to the checkout's own, and so not frozen.
        size_bytes: of the files of the copy, without what is behind links.
    """

    kit: Path
    config_file: Path
    commit: str | None
    changed: tuple[str, ...]
    copied: tuple[str, ...]
    linked: tuple[str, ...]
    size_bytes: int

    def as_fields(self) -> dict[str, Any]:
        """Return job.json's `code`."""
        return {
            "commit": self.commit, "changed": list(self.changed), "copied": list(self.copied),
            "linked": list(self.linked), "size_bytes": self.size_bytes,
        }  # fmt: skip

    @property
    def words(self) -> str:
        """What is frozen, in a sentence."""
        of = f"commit {self.commit[:12]}" if self.commit else "the kit and the files that the command names"
        if not self.size_bytes:
            return f"{of}, with what has changed since"
        parts = [f"with {len(self.changed)} changed since"] if self.changed else []
        parts += [f"{len(self.copied)} from outside git"] if self.commit and self.copied else []
        links = f"; links, so not frozen: {first_few(self.linked, _SHOWN)}" if self.linked else ""
        return f"{', '.join([of, *parts])}, {self.size_bytes / 1e6:.1f} MB{links}"


def freeze(source: Source, folder: JobFolder) -> Frozen:
    """Copy the code into a job's folder.

    Raises:
        InvalidFile: the config does not lie in what is copied, or `paths.root` leads out of it (`require`).
        KitError: git does not say what there is, or the copy cannot be written.
    """
    top = _top(source)
    place = os.path.relpath(os.path.realpath(source.config_file.parent), top)
    copy = _Copy(top, folder.code, _wanted(source, top))
    commit, changed = _check_out(top, folder.code)
    try:
        changed = copy.put_changed(changed)
        if commit is not None and not git.take_into_index(folder.code, changed):
            raise KitError(f"git does not take the changed files into the copy '{folder.code}'")
        for name in _others(top, commit):
            if not _is_below(str(top / name), os.path.realpath(source.runs_dir)):
                copy.put(name)
        kit = _kit_of(folder, top)
    except (OSError, shutil.Error) as error:
        raise KitError(f"the code cannot be copied to '{folder.code}': {error}") from error
    return Frozen(
        kit=kit, config_file=folder.code / place / source.config_file.name, commit=commit, changed=tuple(changed),
        copied=tuple(copy.copied), linked=tuple(copy.linked), size_bytes=_size(folder.path),
    )  # fmt: skip


def foretold(source: Source, folder: JobFolder) -> Frozen:
    """Return the copy that `freeze` would make, as far as it is known without making it."""
    top = _top(source)
    commit, _ = git.head(git.ask_head(top, ()), ())
    own, place = os.path.realpath(KIT_ROOT), os.path.relpath(os.path.realpath(source.config_file.parent), top)
    return Frozen(
        kit=folder.code / os.path.relpath(own, top) if _is_below(own, str(top)) else folder.kit,
        config_file=folder.code / place / source.config_file.name, commit=commit, changed=(), copied=(), linked=(),
        size_bytes=0,
    )  # fmt: skip


def require(source: Source, root_text: str) -> None:
    """Raise InvalidFile where a copy of the checkout would not be what the job trains with.

    Args:
        root_text: `paths.root` as the config has it.
    """
    top = _top(source)
    advice = "or submit with --unfrozen: the job runs from the checkout as it is then"
    if os.path.isabs(root_text):
        raise InvalidFile(
            f"the code cannot be frozen: paths.root is '{root_text}'; write it relative to the config, {advice}"
        )
    if not _is_below(os.path.realpath(source.config_file.parent), str(top)):
        raise InvalidFile(
            f"the code cannot be frozen: the config '{source.config_file}' lies outside of '{top}', which is copied; "
            f"move it there, {advice}"
        )


def remove(source: Source, folder: JobFolder) -> None:
    """Take a copy away again, of a job that was never submitted."""
    if os.path.lexists(folder.code / ".git"):
        git.remove_worktree(_top(source), folder.code)
    shutil.rmtree(folder.path, ignore_errors=True)


class _Copy:
    """Puts what git does not track into the copy: as a file where it is wanted, else as a link to the checkout's."""

    def __init__(self, top: Path, code: Path, wanted: frozenset[str]) -> None:
        self._top, self._code, self._wanted = top, code, wanted
        self.copied: list[str] = []
        self.linked: list[str] = []

    def put_changed(self, names: Sequence[str]) -> list[str]:
        """Copy tracked files as they are in the checkout; return their names. One that is gone is removed."""
        for name in names:
            target = self._code / name
            if os.path.lexists(target):
                target.unlink()
            if os.path.lexists(self._top / name):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self._top / name, target, follow_symlinks=False)
        return list(names)

    def put(self, name: str) -> None:
        """Put one file or folder, by its path from the top."""
        is_there = os.path.lexists(self._code / name) and not self._is_folder(name)
        if is_there or os.path.basename(name) in _LEFT_OUT:
            return
        if self._is_wanted(name):
            self._copy(name)
        elif self._is_folder(name) and self._has_wanted(name):
            (self._code / name).mkdir(parents=True, exist_ok=True)
            for entry in sorted(os.listdir(self._top / name)):
                self.put(f"{name}/{entry}")
        else:
            self._link(name)

    def _copy(self, name: str) -> None:
        target = self._code / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._is_folder(name):
            shutil.copytree(
                self._top / name, target, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_LEFT_OUT)
            )
        else:
            shutil.copy2(self._top / name, target, follow_symlinks=False)
        self.copied.append(name)

    def _link(self, name: str) -> None:
        target = self._code / name
        if os.path.isdir(target):  # a submodule's folder, which git has made: what is in it is linked
            for entry in sorted(set(os.listdir(self._top / name)) - _LEFT_OUT):
                (target / entry).symlink_to(self._top / name / entry)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(self._top / name)
        self.linked.append(name)

    def _is_folder(self, name: str) -> bool:
        path = self._top / name
        return os.path.isdir(path) and not os.path.islink(path)

    def _is_wanted(self, name: str) -> bool:
        parts = name.split("/")
        return any("/".join(parts[:depth]) in self._wanted for depth in range(1, len(parts) + 1))

    def _has_wanted(self, name: str) -> bool:
        return any(one.startswith(f"{name}/") for one in self._wanted)


def _check_out(top: Path, code: Path) -> tuple[str | None, list[str]]:
    """Make the folder of the copy; return (the commit in it, which tracked files are otherwise in the checkout)."""
    listed = git.ask_changed(top, "HEAD") if git.has_repository(top) else None
    commit, _ = git.head(git.ask_head(top, ()), ())
    changed = git.entries(git.listing(listed))
    if commit is None or changed is None or not git.add_worktree(top, code, commit):
        if git.has_repository(top) and commit is not None:
            raise KitError(
                f"git makes no worktree of '{top}' in '{code}': `git -C {top} worktree add --detach {code}` says why; "
                "--unfrozen submits without a copy"
            )
        code.mkdir()
        return None, []
    return commit, [name for is_submodule, name in changed if not is_submodule]


def _others(top: Path, commit: str | None) -> list[str]:
    """Return what is not checked out, by its path from the top: each file, or folder as a whole."""
    if commit is None:
        return sorted(os.listdir(top))
    others, submodules = git.others(top), git.submodules(top)
    if others is None or submodules is None:
        raise KitError(f"git does not say which files of '{top}' it does not track")
    return sorted({name.rstrip("/") for name in (*others, *submodules)})


def _top(source: Source) -> Path:
    """Return the folder that is copied: the repository that `paths.root` lies in, else that folder itself."""
    return Path(os.path.realpath(git.top_folder(source.root) or source.root))


def _wanted(source: Source, top: Path) -> frozenset[str]:
    """Return what is copied where git does not track it, by its path from the top."""
    files = [source.root / name for name in source.files]
    kit = [KIT_ROOT / part for part in KIT_PARTS if os.path.lexists(KIT_ROOT / part)]
    paths = [os.path.join(os.path.realpath(one.parent), one.name) for one in (*files, *kit, source.config_file)]
    return frozenset(os.path.relpath(path, top) for path in paths if _is_below(path, str(top)))


def _kit_of(folder: JobFolder, top: Path) -> Path:
    """Return the folder of the copy's kit; one that lies outside of the lab's code is copied beside that."""
    own = os.path.realpath(KIT_ROOT)
    if _is_below(own, str(top)):
        return folder.code / os.path.relpath(own, top)
    for part in KIT_PARTS:
        if os.path.isdir(KIT_ROOT / part):
            shutil.copytree(KIT_ROOT / part, folder.kit / part, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        elif os.path.lexists(KIT_ROOT / part):
            folder.kit.mkdir(exist_ok=True)
            shutil.copy2(KIT_ROOT / part, folder.kit / part)
    if os.path.isdir(KIT_ROOT / ".venv"):
        (folder.kit / ".venv").symlink_to(KIT_ROOT / ".venv")
    return folder.kit


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _size(folder: Path) -> int:
    """Return the bytes of all files in a folder, links not followed."""
    return sum(_sizes(str(folder)))


def _sizes(folder: str) -> Iterator[int]:
    for path, _, names in os.walk(folder):
        yield from (os.lstat(os.path.join(path, name)).st_size for name in names)
