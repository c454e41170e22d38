"""What git says of a folder: asked in a process of its own, beside our work, with a limit on time and size.

A repository's own settings run no program here (no external diff, no text conversion, no monitor), and git writes
nothing but the worktrees that it is told to make. A git that is missing, fails or takes too long gives no answer, and
that is no error.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from . import answer_cache, background_command, file_identity
from .background_command import Answer, Question
from .paths import find_program

MAX_PATCH_BYTES = 10 << 20
# Of a list of changed files; a tree in which more than some 50,000 differ is none that can be compared.
MAX_LIST_BYTES = 16 << 20
TIMEOUT_S = 20.0
# So long a start waits for the names of untracked files.
UNTRACKED_S = 2.0
# So long git may take to check a tree out.
WRITE_S = 600.0
_SUBMODULE = b"160000"
_COMMIT = "[0-9a-f]{40,64}"


def has_repository(root: Path) -> bool:
    """Whether a folder lies in a repository; reads names alone."""
    return "GIT_DIR" in os.environ or any(os.path.lexists(folder / ".git") for folder in (root, *root.parents))


def ask_changed(root: Path, commit: str) -> Question | None:
    """Start asking git which tracked files differ from a commit ('HEAD', or one of a record).

    By content: a new commit that changes nothing differs in nothing. One call, which reads no file that has not been
    touched.
    """
    if commit != "HEAD" and not re.fullmatch(_COMMIT, commit):
        return None
    words = ["-c", "core.fileMode=false", "diff", "--raw", "-z", "--no-abbrev", "--no-renames", "--no-ext-diff",
             "--relative", "--ignore-submodules=none", commit, "--", "."]  # fmt: skip
    return _git(root, words)


def listing(question: Question | None) -> Answer:
    """Wait for the answer to `ask_changed`; `entries` reads it."""
    return background_command.result(question, MAX_LIST_BYTES, TIMEOUT_S)


def entries(listed: Answer) -> list[tuple[bool, str]] | None:
    """Return (whether it is a submodule, path) of each changed file, sorted; None where git does not say them all."""
    if listed.sha256 is None or listed.size > MAX_LIST_BYTES:
        return None
    fields = listed.kept.split(b"\0")
    return sorted(
        (_SUBMODULE in modes.lstrip(b":").split(b" ")[:2], os.fsdecode(name))
        for modes, name in zip(fields[::2], fields[1::2], strict=False)
    )


def ask_untracked(root: Path) -> Question | None:
    """Start asking git which files it does not track, and is not told to ignore."""
    return _git(root, ["ls-files", "--others", "--exclude-standard", "-z", "--", "."])


def untracked(question: Question | None) -> list[str] | None:
    """Return the answer to `ask_untracked`, by path relative to the root; None where git does not say it in time."""
    answer = background_command.result(question, MAX_LIST_BYTES, UNTRACKED_S)
    if answer.sha256 is None or answer.size > MAX_LIST_BYTES:
        return None
    return [os.fsdecode(name) for name in answer.kept.split(b"\0") if name]


def top_folder(root: Path) -> Path | None:
    """Return the folder of the repository that `root` lies in; None where there is none, or git does not say."""
    if not has_repository(root):
        return None
    text = _told(root, ["rev-parse", "--show-toplevel"])
    return Path(os.fsdecode(text.rstrip(b"\n"))) if text else None


def others(top: Path) -> list[str] | None:
    """Return what git does not track below a repository's folder, ignored or not, folders as a whole; None: not known.

    A folder has a '/' at its end. git reads no folder of which it tracks nothing.
    """
    return _names(top, ["ls-files", "--others", "--directory", "-z"])


def submodules(top: Path) -> list[str] | None:
    """Return the folders of a repository's submodules; None where git does not say."""
    lines = _names(top, ["ls-files", "--stage", "-z"])
    if lines is None:
        return None
    return [name for line in lines if line.startswith(_SUBMODULE.decode()) for name in [line.partition("\t")[2]]]


def add_worktree(top: Path, folder: Path, commit: str) -> bool:
    """Check a commit out into a new folder, as a worktree of the repository; False where git does not do it.

    git writes `.git/worktrees/` of the repository, and runs none of its hooks.
    """
    # Locked: what git cannot see for a while, on a disk that is not mounted, is not forgotten.
    words = ["worktree", "add", "--lock", "--detach", "--quiet", str(folder), commit]
    return _told(top, ["-c", "core.hooksPath=/dev/null", *words], timeout_s=WRITE_S) is not None


def remove_worktree(top: Path, folder: Path) -> None:
    """Remove a worktree with all that is in it, as far as git does."""
    _told(top, ["worktree", "remove", "--force", "--force", str(folder)], timeout_s=WRITE_S)


def take_into_index(folder: Path, names: Sequence[str]) -> bool:
    """Let a worktree's index have some files as they lie there now, or not have those that are gone."""
    listed = b"".join(os.fsencode(name) + b"\0" for name in names)
    words = ["update-index", "--add", "--remove", "-z", "--stdin"]
    return not names or _told(folder, words, listed, WRITE_S) is not None


def _names(top: Path, words: list[str]) -> list[str] | None:
    text = _told(top, words)
    return None if text is None else [os.fsdecode(name) for name in text.split(b"\0") if name]


def _told(root: Path, words: list[str], stdin: bytes = b"", timeout_s: float = TIMEOUT_S) -> bytes | None:
    """Return what git prints; None where it fails, takes too long or prints more than MAX_LIST_BYTES."""
    answer = background_command.result(_git(root, words, stdin), MAX_LIST_BYTES, timeout_s)
    return None if answer.sha256 is None or answer.size > MAX_LIST_BYTES else answer.kept


def ask_diff(root: Path) -> Question | None:
    """Start asking git for the text of what differs from HEAD, as `git apply` takes it."""
    # No external diff or text conversion: a repository's own settings must not run programs here.
    # And one form, whatever the person's own settings say about prefixes and context.
    # A large file is binary to git then: it is neither read whole nor compared line by line.
    words = ["-c", "core.bigFileThreshold=4m", "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color",
             "--no-renames", "--src-prefix=a/", "--dst-prefix=b/", "--no-relative", "-U3", "--", "."]  # fmt: skip
    return _git(root, words)


def diff(question: Question | None) -> Answer:
    """Wait for the answer to `ask_diff`, of which MAX_PATCH_BYTES are kept."""
    return background_command.result(question, MAX_PATCH_BYTES, TIMEOUT_S)


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


def without_binaries(patch: bytes) -> tuple[bytes, list[str]]:
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


def ask_head(root: Path, names: Sequence[str]) -> Question | None:
    """Ask git for the commit, and which of some files its index has, in one call."""
    inside = [f":./{name}" for name in names if _may_be_tracked(name)]
    lines = os.fsencode("\n".join(["HEAD", *inside, ""]))
    return _git(root, ["cat-file", "--batch-check=%(objectname)"], lines)


def head(question: Question | None, names: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """Return the answer to `ask_head`: (the commit, the names of the files that git does not track)."""
    lines = background_command.result(question, MAX_LIST_BYTES, TIMEOUT_S).kept.split(b"\n")
    commit = lines[0].decode("ascii", "replace")
    if len(lines) < 2:
        return None, ()  # git does not say
    known = iter(lines[1:])
    tracked = {name for name in names if _may_be_tracked(name) and next(known, b"").isalnum()}
    return commit if commit.isalnum() else None, tuple(name for name in names if name not in tracked)


def _may_be_tracked(name: str) -> bool:
    return not name.startswith("/") and "\n" not in name


def why_silent(root: Path) -> str:
    """Return why git does not say the commit of a repository that is there, for people; '' where that is not known."""
    if find_program("git") is None:
        return "there is no 'git' in PATH"
    asked = background_command.start(
        [*background_command.WITH_ERRORS, *_command(root), "rev-parse", "--verify", "HEAD"], _environ()
    )
    said = background_command.result(asked, 1 << 16, TIMEOUT_S).kept.decode("utf-8", "replace")
    if "dubious ownership" in said:
        top = next((folder for folder in (root, *root.parents) if os.path.lexists(folder / ".git")), root)
        lets = shlex.join(["git", "config", "--global", "--add", "safe.directory", str(top)])
        return f"the repository belongs to another user; `{lets}` lets git read it"
    if "Needed a single revision" in said:
        return "the repository has no commit yet"
    return said.partition("\n")[0].removeprefix("fatal: ")[:300] if said.startswith("fatal: ") else ""


def first_commit(root: Path) -> str | None:
    """Return the first commit of the repository that `root` lies in; None where there is none, or git does not say."""
    if not has_repository(root):
        return None
    commit, _ = head(ask_head(root, ()), ())
    return first_commit_below(root, commit, TIMEOUT_S) if commit else None


def first_commit_below(root: Path, commit: str, timeout_s: float) -> str | None:
    """Return the first commit below HEAD, which is `commit`; git walks them all, so the answer is kept for that one."""
    # A shallow clone begins where it was cut off: it cannot say where its repository does.
    if any(os.path.lexists(folder / ".git" / "shallow") for folder in (root, *root.parents)):
        return None
    name = f"first_commit-{file_identity.sha256(os.fsencode(root))[:12]}"
    return answer_cache.value(name, commit, lambda: _ask_first(root, timeout_s))


def _ask_first(root: Path, timeout_s: float) -> str | None:
    """Return the last line of git's answer: of several beginnings, where histories were joined, the oldest."""
    asked = _git(root, ["rev-list", "--max-parents=0", "HEAD"])
    lines = background_command.result(asked, 1 << 20, timeout_s).kept.decode("ascii", "replace").split()
    return lines[-1] if lines and lines[-1].isalnum() else None


def _git(root: Path, arguments: list[str], stdin: bytes = b"") -> Question | None:
    return background_command.start([*_command(root), *arguments], _environ(), stdin)


def _command(root: Path) -> list[str]:
    return ["git", "-C", str(root), "-c", "core.fsmonitor=false", "-c", "core.quotePath=true"]


def _environ() -> dict[str, str]:
    return {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
