"""What of a repository counts as code: what a trainer can see. Documentation and the kit's own front are none.

Left out are `*.md`, `docs/`, of the kit its commands, schemas and settings, its `lib/` where the trainer does not load
with it, and what `recover.not_code` lists. What the command names counts all the same
(`command_files.named_files`). Reads nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..base.imports import Any, NamedTuple
from ..base.paths import KIT_ROOT
from ..base.values import mapping, strings

_DOCUMENTATION = ("docs", ".github")
# Of the kit, relative to its folder; config.yaml is one run's resolved copy by the time a trainer starts.
_FRONT = ("bin", "schemas", "docs", "config.yaml", "resumekit.mk", "VERSION", "CHANGELOG.md")
# Named one by one: where the kit lies in a repository's root, its lib/ may hold the lab's modules too.
_LIBRARY = (
    "lib/resumekit", "lib/systemd", "lib/command_line.sh", "lib/launcher.sh", "lib/watch_installer.sh",
    "lib/resume_helper.py", "lib/config_resolver.py", "lib/resumekit_cli.py",
)  # fmt: skip


class Scope(NamedTuple):
    """What is left out.

    Args:
        folders: files and folders, relative to the root, that are no code with all that is in them.
        patterns: `recover.not_code`: globs in which `*` goes across folders, or the name of a folder.
    """

    folders: frozenset[str] = frozenset(_DOCUMENTATION)
    patterns: tuple[str, ...] = ()

    def has(self, path: str) -> bool:
        """Whether a file counts as code, by its path relative to the root."""
        if path.lower().endswith((".md", ".gitignore")):
            return False
        parts = path.split("/")
        if any("/".join(parts[:depth]) in self.folders for depth in range(1, len(parts) + 1)):
            return False
        return not self.leaves_out(path)

    def leaves_out(self, path: str) -> bool:
        """Whether `recover.not_code` lists a file."""
        if not self.patterns:
            return False
        import fnmatch  # late: few configs list anything

        return any(
            fnmatch.fnmatchcase(path, pattern) or path.startswith(pattern.rstrip("/") + "/")
            for pattern in self.patterns
        )


def of(resolved: Mapping[str, Any], root: Path) -> Scope:
    """Return what counts as code for a run.

    Args:
        resolved: its config, which may be another user's.
        root: the folder that its code is looked for in.
    """
    with_kit = mapping(resolved.get("trainer")).get("loads_with_kit") is True
    patterns = tuple(filter(None, strings(mapping(resolved.get("recover")).get("not_code"))))
    kit = os.path.relpath(KIT_ROOT, os.path.realpath(root))
    if kit == ".." or kit.startswith("../"):
        return Scope(patterns=patterns)  # the kit is no part of this repository
    before = "" if kit == "." else f"{kit}/"
    parts = (*_FRONT, *(() if with_kit else _LIBRARY))
    return Scope(frozenset({*_DOCUMENTATION, *(before + part for part in parts)}), patterns)
