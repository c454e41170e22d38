"""The state of the lab's code at a run's start: its commit, and what of the tracked files differs from that.

Asks git (`base/git`), beside the rest. Changed files are recorded by digest, whatever their size; the patch beside it
holds the text of those that are text, with keys in a known form taken out. Of untracked files only the names are asked
for; those that the command names are looked at in `command_files`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..base import file_identity, git
from ..base.background_command import Answer, Question
from ..base.files import UnreadableFile, open_regular
from ..base.imports import TYPE_CHECKING, NamedTuple
from ..base.redaction import redact_patch
from ..base.terminal import WARNING, Note, first_few

if TYPE_CHECKING:
    from .code_scope import Scope

# A larger changed file is recorded by size and time, and so is what comes after so many bytes in all.
MAX_HASHED_BYTES = 512 << 20
MAX_HASHED_IN_ALL = 2 << 30
# A longer list is recorded as one digest: run.json stays small enough to be read.
MAX_RECORDED_BYTES = 300_000
# git walks every commit for the first one, some 100,000 in a second: a start does not wait for more.
FIRST_COMMIT_S = 0.5
# So many names of untracked files are recorded.
MAX_UNTRACKED = 500
_BINARY_NAMED = 100
# So many names stand in a sentence.
_NAMED = 3
_CHUNK = 1 << 20

Changed = dict[str, "str | None"]


class Code(NamedTuple):
    """The state of the lab's code.

    Args:
        commit: git commit, or None outside a repository.
        patch: the uncommitted diff of tracked text files, keys taken out; b'' if there is none.
        diff_sha256: of the diff as it was; None without one.
        redacted: where keys were taken out of it, '<file> line <number>'.
        is_known: git has answered, or there is no repository to ask about.
        changed: the tracked files that differ from the commit, each with the digest of its content; None for one that
            is gone. None as a whole where git did not say.
        binary: how many of them are recorded by digest alone.
        files: the digests of the files that the trainer's command names.
        untracked: those of them that git knows nothing of.
        left_out: the untracked files of the repository that count as code, in no patch; None where git did not say.
        applies: the patch fits the commit: no key was taken out of a line that is compared with it.
        first_commit: the repository's first one, the same in every clone; None where git does not say it in time.
        unknown: why git does not say the commit of a repository that is there; None where it does, or there is none.
    """

    commit: str | None
    patch: bytes
    diff_sha256: str | None
    redacted: tuple[str, ...]
    is_known: bool = True
    changed: Changed | None = None
    binary: int = 0
    files: dict[str, str] = {}  # noqa: RUF012 (never changed)
    untracked: tuple[str, ...] = ()
    first_commit: str | None = None
    left_out: tuple[str, ...] | None = None
    applies: bool = True
    unknown: str | None = None

    @property
    def said(self) -> list[str]:
        """What a start says of it: what is compared at a recovery in another way than by git."""
        lines = self.warnings
        if self.binary:
            files = "1 changed binary file is" if self.binary == 1 else f"{self.binary} changed binary files are"
            lines.append(f"{files} recorded by digest, and not in code.patch")
        if self.untracked:
            lines.append(f"code outside git, recorded by digest: {first_few(self.untracked, _NAMED)}")
        if self.left_out:
            names = sorted(self.left_out, key=lambda name: (not name.endswith(".py"), name))
            lines.append(
                f"untracked, so in no commit and not in code.patch: {first_few(names, _NAMED)}; run.json lists them"
            )
        if self.redacted:
            where = "" if self.applies else "; it does not apply there, since such a line is compared with the commit"
            lines.append(
                f"code.patch has '[redacted]' in the place of a key: {first_few(self.redacted, _NAMED)}{where}"
            )
        return lines

    @property
    def warnings(self) -> list[str]:
        """What a dry run says of it too."""
        if self.unknown is None:
            return []
        reason = f": {self.unknown}" if self.unknown else ""
        return [
            Note(
                WARNING,
                "warning: git does not say which code this is, so that no commit is recorded, and a recovery compares "
                f"the files alone that the command names{reason}",
            )
        ]


class Snapshot(NamedTuple):
    """The questions under way, about the repository that `root` lies in; None where it lies in none."""

    root: Path
    changed: Question | None = None
    untracked: Question | None = None


def start_snapshot(root: Path) -> Snapshot:
    """Start asking git about the repository that `root` lies in."""
    if not git.has_repository(root):
        return Snapshot(root)
    untracked = git.ask_untracked(root)
    return Snapshot(root, git.ask_changed(root, "HEAD"), untracked)


def finish_snapshot(snapshot: Snapshot, scope: Scope | None = None, files: Mapping[str, str] | None = None) -> Code:
    """Wait for git's answers; a git that is missing, fails or takes too long is 'unknown', not an error.

    Args:
        scope: of the changed files only what counts as code there; None for every file.
        files: the digests of the files that the trainer's command names, by path relative to the root.
    """
    root, files = snapshot.root, dict(files or {})
    if not git.has_repository(root):
        return Code(None, b"", None, (), files=files, untracked=tuple(files))
    asked = git.ask_head(root, list(files))
    listed = git.listing(snapshot.changed)
    asked_diff = git.ask_diff(root) if listed.size else None  # beside the digests of the changed files
    entries = git.entries(listed)
    commit, untracked = git.head(asked, list(files))
    first = git.first_commit_below(root, commit, FIRST_COMMIT_S) if commit else None
    changed = _digests(root, entries, scope)
    left_out = git.untracked(snapshot.untracked)
    diff = git.diff(asked_diff)
    if left_out is not None:
        # A link to a folder, of data or an environment, is no file of code.
        is_code = [name for name in left_out if not os.path.isdir(root / name)]
        left_out = sorted(name for name in is_code if scope is None or scope.has(name))
    code = Code(
        commit=commit, patch=b"", diff_sha256=None, redacted=(), changed=changed, files=files, untracked=untracked,
        is_known=snapshot.changed is None or changed is not None, first_commit=first,
        left_out=None if left_out is None else tuple(left_out), unknown=None if commit else git.why_silent(root),
    )  # fmt: skip
    return _with_patch(code, diff)


def _with_patch(code: Code, diff: Answer) -> Code:
    """Return the state of the code with the text of what has changed."""
    if not diff.size:
        return code
    if diff.size > git.MAX_PATCH_BYTES:
        note = (
            f"# the diff has {diff.size} bytes, more than {git.MAX_PATCH_BYTES}: not kept; its SHA-256 is in run.json\n"
        )
        return code._replace(patch=note.encode(), diff_sha256=diff.sha256)
    text, binary = git.without_binaries(diff.kept)
    found = redact_patch(text)
    patch = _named_binaries(binary, code.changed or {}) + found.patch
    return code._replace(
        patch=patch, diff_sha256=diff.sha256, redacted=found.places, applies=found.applies, binary=len(binary)
    )


def changed_files(root: Path, question: Question | None, scope: Scope | None = None) -> Changed | None:
    """Return the answer to `git.ask_changed`: each changed file with the digest of what it holds now.

    Args:
        scope: only what counts as code there; None for every file.

    Returns:
        By path relative to `root`; None for a file that is gone. None as a whole where git does not answer.
    """
    entries = git.entries(git.listing(question))
    return _digests(root, entries, scope)


def _digests(root: Path, entries: Sequence[tuple[bool, str]] | None, scope: Scope | None) -> Changed | None:
    if entries is None:
        return None
    left, found = MAX_HASHED_IN_ALL, Changed()
    for is_submodule, name in entries:
        if scope is not None and not scope.has(name):
            continue
        if is_submodule:
            found[name] = _submodule(root / name)
        else:
            found[name], size = _content_of(root / name, min(left, MAX_HASHED_BYTES))
            left -= size
    return _folded(found)


def _folded(changed: Changed) -> Changed:
    """Return a list that is too long for run.json as one digest of the whole."""
    if sum(len(os.fsencode(name)) + len(digest or "") + 8 for name, digest in changed.items()) <= MAX_RECORDED_BYTES:
        return changed
    whole = "".join(f"{name}\0{digest}\0" for name, digest in changed.items())
    return {f"{len(changed)} changed files": file_identity.sha256(os.fsencode(whole))}


def _content_of(path: Path, limit_bytes: int) -> tuple[str | None, int]:
    """Return (the digest of a file's content, how many bytes were read); what is larger by its size and time."""
    try:
        found = os.lstat(path)
        if os.path.islink(path):
            return "link:" + file_identity.sha256(os.fsencode(os.readlink(path))), 0
        if found.st_size > limit_bytes:
            return f"stat:{found.st_size}:{found.st_mtime_ns}", 0
        descriptor = open_regular(path)
    except (OSError, UnreadableFile):
        return None, 0
    import hashlib  # late, see base/file_identity; a changed file may be large

    hasher, size = hashlib.sha256(), 0
    try:
        while chunk := os.read(descriptor, _CHUNK):
            hasher.update(chunk)
            size += len(chunk)
    except OSError:
        return None, size
    finally:
        os.close(descriptor)
    return hasher.hexdigest(), size


def _submodule(folder: Path) -> str | None:
    """Return the commit of a submodule and what differs from it, as one word."""
    if not os.path.isdir(folder):
        return None
    commit, _ = git.head(git.ask_head(folder, ()), ())
    question = git.ask_changed(folder, "HEAD")
    changed = changed_files(folder, question) or {}
    inside = "".join(f"{name}\0{digest}\0" for name, digest in changed.items())
    return f"commit:{commit or ''}:{file_identity.sha256(os.fsencode(inside))}"


def _named_binaries(binary: Sequence[str], changed: Changed) -> bytes:
    """Return the lines in front of a patch, which `git apply` passes over."""
    if not binary:
        return b""
    names = [f"#   {name!r} {_by_end(changed, name)}" for name in binary[:_BINARY_NAMED]]
    more = [f"#   and {len(binary) - _BINARY_NAMED} more"] if len(binary) > _BINARY_NAMED else []
    lines = ["# changed binary files, not in this patch, with the SHA-256 of their content:", *names, *more, ""]
    return "\n".join(lines).encode("utf-8", "backslashreplace")


def _by_end(changed: Changed, name: str) -> str:
    """Return the digest of a file that the patch names from the repository's root, and the list from the run's."""
    return next(
        (str(sha256) for path, sha256 in changed.items() if path == name or name.endswith(f"/{path}")), "no code"
    )
