"""The state of the lab's code at a run's start: its commit, and what of the tracked files differs from that.

Asks git, beside the rest. Changed files are recorded by digest, whatever their size; the patch beside it holds the
text of those that are text, with keys in a known form taken out. Of untracked files only the names are asked
for; those that the command names are looked at in `code_change`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..base import answer_cache, background_command, file_identity
from ..base.files import UnreadableFile, open_regular
from ..base.imports import TYPE_CHECKING, NamedTuple
from ..base.redaction import redact_patch
from ..base.terminal import first_few

if TYPE_CHECKING:
    from .code_scope import Scope

MAX_PATCH_BYTES = 10 << 20
# Of a list of changed files; a tree in which more than some 50,000 differ is none that can be compared.
MAX_LIST_BYTES = 16 << 20
# A larger changed file is recorded by size and time, and so is what comes after so many bytes in all.
MAX_HASHED_BYTES = 512 << 20
MAX_HASHED_IN_ALL = 2 << 30
# A longer list is recorded as one digest: run.json stays small enough to be read.
MAX_RECORDED_BYTES = 300_000
TIMEOUT_S = 20.0
# git walks every commit for the first one, some 100,000 in a second: a start does not wait for more.
FIRST_COMMIT_S = 0.5
# So long a start waits for the names of untracked files, and so many are recorded.
UNTRACKED_S = 2.0
MAX_UNTRACKED = 500
_BINARY_NAMED = 100
# So many names stand in a sentence.
_NAMED = 3
_SUBMODULE = b"160000"
_CHUNK = 1 << 20
_COMMIT = "[0-9a-f]{40,64}"

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

    @property
    def said(self) -> list[str]:
        """What a start says of it: what is compared at a recovery in another way than by git."""
        lines = []
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


class Snapshot(NamedTuple):
    """The questions under way, about the repository that `root` lies in; None where it lies in none."""

    root: Path
    changed: background_command.Question | None = None
    untracked: background_command.Question | None = None


def start_snapshot(root: Path) -> Snapshot:
    """Start asking git about the repository that `root` lies in."""
    if not has_repository(root):
        return Snapshot(root)
    untracked = _git(root, ["ls-files", "--others", "--exclude-standard", "-z", "--", "."])
    return Snapshot(root, ask_changed(root, "HEAD"), untracked)


def finish_snapshot(snapshot: Snapshot, scope: Scope | None = None, files: Mapping[str, str] | None = None) -> Code:
    """Wait for git's answers; a git that is missing, fails or takes too long is 'unknown', not an error.

    Args:
        scope: of the changed files only what counts as code there; None for every file.
        files: the digests of the files that the trainer's command names, by path relative to the root.
    """
    root, files = snapshot.root, dict(files or {})
    if not has_repository(root):
        return Code(None, b"", None, (), files=files, untracked=tuple(files))
    asked = _ask_head(root, list(files))
    answer = background_command.result(snapshot.changed, MAX_LIST_BYTES, TIMEOUT_S)
    diff = _ask_diff(root) if answer.size else None  # beside the digests of the changed files
    changed = _digests(root, answer, scope)
    commit, untracked = _head(asked, list(files))
    is_known = snapshot.changed is None or changed is not None
    first = _first_commit(root, commit, FIRST_COMMIT_S) if commit else None
    left_out = _left_out(snapshot, scope)
    code = Code(
        commit=commit, patch=b"", diff_sha256=None, redacted=(), is_known=is_known, changed=changed, binary=0,
        files=files, untracked=untracked, first_commit=first, left_out=left_out,
    )  # fmt: skip
    return _with_patch(code, diff)


def _left_out(snapshot: Snapshot, scope: Scope | None) -> tuple[str, ...] | None:
    """Return the untracked files, and not ignored ones, that count as code; None where git does not say it in time."""
    answer = background_command.result(snapshot.untracked, MAX_LIST_BYTES, UNTRACKED_S)
    if answer.sha256 is None or answer.size > MAX_LIST_BYTES:
        return None
    names = map(os.fsdecode, filter(None, answer.kept.split(b"\0")))
    return tuple(sorted(name for name in names if scope is None or scope.has(name)))


def _ask_diff(root: Path) -> background_command.Question | None:
    # No external diff or text conversion: a repository's own settings must not run programs here.
    # And the form that `git apply` takes, whatever the person's own settings say about prefixes and context.
    # A large file is binary to git then: it is neither read whole nor compared line by line.
    diff = ["-c", "core.bigFileThreshold=4m", "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color",
            "--no-renames", "--src-prefix=a/", "--dst-prefix=b/", "--no-relative", "-U3", "--", "."]  # fmt: skip
    return _git(root, diff)


def _with_patch(code: Code, question: background_command.Question | None) -> Code:
    """Return the state of the code with the text of what has changed."""
    diff = background_command.result(question, MAX_PATCH_BYTES, TIMEOUT_S)
    if not diff.size:
        return code
    if diff.size > MAX_PATCH_BYTES:
        note = f"# the diff has {diff.size} bytes, more than {MAX_PATCH_BYTES}: not kept; its SHA-256 is in run.json\n"
        return code._replace(patch=note.encode(), diff_sha256=diff.sha256)
    text, binary = _without_binaries(diff.kept)
    found = redact_patch(text)
    patch = _named_binaries(binary, code.changed or {}) + found.patch
    return code._replace(
        patch=patch, diff_sha256=diff.sha256, redacted=found.places, applies=found.applies, binary=len(binary)
    )


def _ask_head(root: Path, names: Sequence[str]) -> background_command.Question | None:
    """Ask git for the commit, and which of some files its index has, in one call."""
    inside = [f":./{name}" for name in names if _may_be_tracked(name)]
    lines = os.fsencode("\n".join(["HEAD", *inside, ""]))
    return _git(root, ["cat-file", "--batch-check=%(objectname)"], lines)


def _head(question: background_command.Question | None, names: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """Return the answer to `_ask_head`: (the commit, the names of the files that git does not track)."""
    lines = background_command.result(question, MAX_LIST_BYTES, TIMEOUT_S).kept.split(b"\n")
    commit = lines[0].decode("ascii", "replace")
    if len(lines) < 2:
        return None, ()  # git does not say
    known = iter(lines[1:])
    tracked = {name for name in names if _may_be_tracked(name) and next(known, b"").isalnum()}
    return commit if commit.isalnum() else None, tuple(name for name in names if name not in tracked)


def _may_be_tracked(name: str) -> bool:
    return not name.startswith("/") and "\n" not in name


def first_commit(root: Path) -> str | None:
    """Return the first commit of the repository that `root` lies in; None where there is none, or git does not say."""
    if not has_repository(root):
        return None
    commit, _ = _head(_ask_head(root, ()), ())
    return _first_commit(root, commit, TIMEOUT_S) if commit else None


def _first_commit(root: Path, head: str, timeout_s: float) -> str | None:
    """Return the first commit below `head`; git walks them all for it, so the answer is kept as long as the head is."""
    # A shallow clone begins where it was cut off: it cannot say where its repository does.
    if any(os.path.lexists(folder / ".git" / "shallow") for folder in (root, *root.parents)):
        return None
    name = f"first_commit-{file_identity.sha256(os.fsencode(root))[:12]}"
    return answer_cache.value(name, head, lambda: _ask_first(root, timeout_s))


def _ask_first(root: Path, timeout_s: float) -> str | None:
    """Return the last line of git's answer: of several beginnings, where histories were joined, the oldest."""
    asked = _git(root, ["rev-list", "--max-parents=0", "HEAD"])
    lines = background_command.result(asked, 1 << 20, timeout_s).kept.decode("ascii", "replace").split()
    return lines[-1] if lines and lines[-1].isalnum() else None


def has_repository(root: Path) -> bool:
    """Whether a folder lies in a repository; reads names alone."""
    return "GIT_DIR" in os.environ or any(os.path.lexists(folder / ".git") for folder in (root, *root.parents))


def ask_changed(root: Path, commit: str) -> background_command.Question | None:
    """Start asking git which tracked files differ from a commit ('HEAD', or one of a record).

    By content: a new commit that changes nothing differs in nothing. One call, which reads no file that has not been
    touched.
    """
    if commit != "HEAD" and not re.fullmatch(_COMMIT, commit):
        return None
    words = ["-c", "core.fileMode=false", "diff", "--raw", "-z", "--no-abbrev", "--no-renames", "--no-ext-diff",
             "--relative", "--ignore-submodules=none", commit, "--", "."]  # fmt: skip
    return _git(root, words)


def changed_files(
    root: Path, question: background_command.Question | None, scope: Scope | None = None
) -> Changed | None:
    """Return the answer to `ask_changed`: each changed file with the digest of what it holds now.

    Args:
        scope: only what counts as code there; None for every file.

    Returns:
        By path relative to `root`; None for a file that is gone. None as a whole where git does not answer.
    """
    return _digests(root, background_command.result(question, MAX_LIST_BYTES, TIMEOUT_S), scope)


def _digests(root: Path, answer: background_command.Answer, scope: Scope | None) -> Changed | None:
    if answer.sha256 is None or answer.size > MAX_LIST_BYTES:
        return None
    left, found = MAX_HASHED_IN_ALL, Changed()
    for is_submodule, name in sorted(_entries(answer.kept)):
        if scope is not None and not scope.has(name):
            continue
        if is_submodule:
            found[name] = _submodule(root / name)
        else:
            found[name], size = _content_of(root / name, min(left, MAX_HASHED_BYTES))
            left -= size
    return _folded(found)


def old_diff(root: Path, commit: str) -> str | None:
    """Return the SHA-256 of a diff as the version before wrote it down, binary files and all; None without one.

    For runs that were started by it, alone. A git that does not answer in time gives 'unknown'.
    """
    if not re.fullmatch(_COMMIT, commit):
        return "unknown"
    words = ["diff", commit, "--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/",
             "--dst-prefix=b/", "--no-relative", "-U3", "--", "."]  # fmt: skip
    answer = background_command.result(_git(root, words), 0, TIMEOUT_S)
    return "unknown" if answer.sha256 is None else answer.sha256 if answer.size else None


def _folded(changed: Changed) -> Changed:
    """Return a list that is too long for run.json as one digest of the whole."""
    if sum(len(os.fsencode(name)) + len(digest or "") + 8 for name, digest in changed.items()) <= MAX_RECORDED_BYTES:
        return changed
    whole = "".join(f"{name}\0{digest}\0" for name, digest in changed.items())
    return {f"{len(changed)} changed files": file_identity.sha256(os.fsencode(whole))}


def _entries(raw: bytes) -> Iterator[tuple[bool, str]]:
    """Yield (whether it is a submodule, path) of each entry of `git diff --raw -z`."""
    fields = raw.split(b"\0")
    for head, name in zip(fields[::2], fields[1::2], strict=False):
        yield _SUBMODULE in head.lstrip(b":").split(b" ")[:2], os.fsdecode(name)


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
    commit, _ = _head(_ask_head(folder, ()), ())
    changed = changed_files(folder, ask_changed(folder, "HEAD")) or {}
    inside = "".join(f"{name}\0{digest}\0" for name, digest in changed.items())
    return f"commit:{commit or ''}:{file_identity.sha256(os.fsencode(inside))}"


def _without_binaries(patch: bytes) -> tuple[bytes, list[str]]:
    """Return (the patch without what it cannot hold, the names of those files): `git apply` would refuse the whole."""
    kept, binary = [], []
    for section in re.split(rb"^(?=diff --git )", patch, flags=re.MULTILINE):
        if re.search(rb"^Binary files .* differ$", section, re.MULTILINE) and b"\n@@" not in section:
            binary.append(_name_in(section.partition(b"\n")[0].removeprefix(b"diff --git ")))
        else:
            kept.append(section)
    return b"".join(kept), binary


def _name_in(names: bytes) -> str:
    """Return the name in 'a/NAME b/NAME', or in two such words with quotes, as C writes them."""
    half = names[: (len(names) - 1) // 2]
    if half.startswith(b'"'):
        escapes = {b"n": b"\n", b"t": b"\t", b"r": b"\r"}
        half = re.sub(
            rb"\\([0-7]{3}|.)",
            lambda match: bytes([int(match[1], 8) & 255]) if len(match[1]) == 3 else escapes.get(match[1], match[1]),
            half[1:-1],
        )
    return os.fsdecode(half.removeprefix(b"a/"))


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


def _git(root: Path, arguments: list[str], stdin: bytes = b"") -> background_command.Question | None:
    command = ["git", "-C", str(root), "-c", "core.fsmonitor=false", "-c", "core.quotePath=true", *arguments]
    return background_command.start(
        command, {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}, stdin
    )
