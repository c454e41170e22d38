"""The state of the lab's code at a run's start: its commit, and the uncommitted diff of tracked files.

Asks git, beside the rest; untracked files are never looked at, and secrets are taken out of what is kept.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..basics import answers
from ..basics.redaction import redact

MAX_PATCH_BYTES = 10 << 20
TIMEOUT_S = 20.0


class Code(NamedTuple):
    """The state of the lab's code.

    Args:
        commit: git commit, or None outside a repository.
        patch: the uncommitted diff of tracked files, secrets taken out; b'' if there is none.
        diff_sha256: of the diff as it was; None without one.
        redacted: how many secrets were taken out.
        is_known: git has answered, or there is no repository to ask about.
    """

    commit: str | None
    patch: bytes
    diff_sha256: str | None
    redacted: int
    is_known: bool = True


class Snapshot(NamedTuple):
    """The questions under way, about the repository that `root` lies in; None where it lies in none."""

    root: Path
    head: answers.Question | None = None
    diff: answers.Question | None = None


def start_snapshot(root: Path) -> Snapshot:
    """Start asking git about the repository that `root` lies in."""
    if "GIT_DIR" not in os.environ and not any(os.path.lexists(f / ".git") for f in (root, *root.parents)):
        return Snapshot(root)  # no repository, no process
    # No external diff or text conversion: a repository's own settings must not run programs here.
    # And the form that `git apply` takes, whatever the person's own settings say about prefixes and context.
    diff = ["diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/",
            "--dst-prefix=b/", "--no-relative", "-U3", "--", "."]  # fmt: skip
    return Snapshot(root, _git(root, ["rev-parse", "--verify", "HEAD"]), _git(root, diff))


def finish_snapshot(snapshot: Snapshot) -> Code:
    """Wait for git's answers; a git that is missing, fails or takes too long is 'unknown', not an error."""
    head = answers.collect(snapshot.head, 1000, TIMEOUT_S).kept.strip().decode("ascii", "replace")
    diff = answers.collect(snapshot.diff, MAX_PATCH_BYTES, TIMEOUT_S)
    commit = head if head.isalnum() else None
    if not diff.size:
        return Code(commit, b"", None, 0, is_known=snapshot.diff is None or diff.sha256 is not None)
    if diff.size > MAX_PATCH_BYTES:
        note = f"# the diff has {diff.size} bytes, more than {MAX_PATCH_BYTES}: not kept; its SHA-256 is in run.json\n"
        return Code(commit, note.encode(), diff.sha256, 0)
    patch, redacted = redact(diff.kept)
    return Code(commit, patch, diff.sha256, redacted)


def _git(root: Path, arguments: list[str]) -> answers.Question | None:
    command = ["git", "-C", str(root), "-c", "core.fsmonitor=false", "-c", "core.quotePath=true", *arguments]
    return answers.ask(command, {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"})
