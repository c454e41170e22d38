"""Whether the code that a run was started with is still there: which files a recovery would find otherwise.

Compared by content with the commit that the run recorded, so that a commit of what was there already changes
nothing, and only what counts as code (`code_scope`). Asks git once; reads changed files; writes nothing. Try it:
`python -I lib/resumekit_cli.py code-changed runs/<run_id>`
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..base import git
from ..base.background_command import Question
from ..base.errors import KitError
from ..base.imports import Any, NamedTuple
from ..base.terminal import first_few
from ..base.values import mapping
from ..run.run_folder import Run
from . import code_scope, code_state, command_files

_SHOWN = 4


class Asked(NamedTuple):
    """The comparison under way: of which run, in which folder, and git's answer to come."""

    run: Run
    root: Path
    question: Question | None = None


class CodeUnknown(KitError):
    """Git does not say now which code there is; it may later."""

    code = "code_unknown"


def ask(run: Run) -> Asked:
    """Start comparing; git works while something else is done."""
    root, commit = Path(str(run.record.get("root"))), _git_of(run).get("commit")
    return Asked(run, root, git.ask_changed(root, commit) if isinstance(commit, str) else None)


def answer(asked: Asked) -> list[str]:
    """Return the files of code that are not as the run found them, sorted; none where all is as it was.

    Raises:
        CodeUnknown: git does not answer now.
    """
    run, root = asked.run, asked.root
    scope = code_scope.of(run.config, root)
    recorded = mapping(mapping(run.record.get("code")).get("files"))
    files = [name for name in command_files.named_files_changed(recorded, root) if not scope.leaves_out(name)]
    if not isinstance(_git_of(run).get("commit"), str):
        return files  # there was nothing that git could be asked about
    now = code_state.changed_files(root, asked.question, scope)
    if now is None:
        raise CodeUnknown("git does not say which code there is")
    if "code" not in run.record:
        return _since_the_version_before(run, root, now)
    then = mapping(mapping(run.record["code"]).get("changed"))
    then = {name: sha256 for name, sha256 in then.items() if scope.has(name)}
    tracked = [name for name in {*then, *now} if (name in then, then.get(name)) != (name in now, now.get(name))]
    # What was not tracked when the run began, and has been committed since, is known by its own digest.
    tracked = [name for name in tracked if recorded.get(name) != now.get(name, "") or now.get(name) is None]
    return sorted({*tracked, *files})


def sentence(names: list[str]) -> str:
    """Say which files have changed."""
    return f"the code has changed since the run began: {first_few(names, _SHOWN)}"


def _since_the_version_before(run: Run, root: Path, now: Mapping[str, Any]) -> list[str]:
    """Compare as a run can be compared whose record has the digest of one long diff, and none of its files."""
    then = _git_of(run).get("diff_sha256")
    if then is None:
        return sorted(now)
    diff = git.old_diff(root, str(_git_of(run)["commit"]))
    if diff == "unknown":
        raise CodeUnknown("git does not say which code there is")
    return [] if diff == then else sorted(now) or ["tracked files are not as they were"]


def _git_of(run: Run) -> Mapping[str, Any]:
    return mapping(run.record.get("git"))
