"""Read, age and seal the run folders that a test has made."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def events(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Return the events in a run's journal, all or those of one kind."""
    with contextlib.suppress(FileNotFoundError):
        lines = (run / "journal.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [event for event in found if kind in (None, event["event"])]
    return []


def age(run: Path, seconds: float = 3600.0) -> None:
    """Let all files of a run be of an hour ago: nothing of it changes any more."""
    then = time.time() - seconds
    for path in [run, *run.rglob("*")]:
        os.utime(path, (then, then), follow_symlinks=False)


@contextlib.contextmanager
def put_back(*folders: Path) -> Iterator[None]:
    """Let every file below these folders be as it was: of a run that several tests look at, and change."""

    def files() -> list[Path]:
        return [path for folder in folders for path in folder.rglob("*") if path.is_file()]

    before = {path: path.read_bytes() for path in files()}
    yield
    for path in files():
        if path not in before:
            path.unlink()
    for path, content in before.items():
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)
    for folder in folders:
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def reseal(run: Path) -> None:
    """Seal a run anew after a test has edited its records by hand, in the state folder that this process has."""
    from resumekit.base.paths import RunPaths
    from resumekit.run import seals

    record = json.loads((run / "run.json").read_text())
    record["resolved_sha256"] = hashlib.sha256((run / "resolved_config.json").read_bytes()).hexdigest()
    (run / "run.json").write_text(json.dumps(record))
    contents = {path.name: path.read_bytes() for path in seals.records(RunPaths(run)) if path.exists()}
    command = json.loads(contents["resolved_config.json"]).get("notify", {}).get("command")
    seals.keep(RunPaths(run), {"token": None, "root": None, **record}, contents, command)


def record(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def tree(folder: Path) -> dict[str, tuple]:
    """Return every path below a folder with type, mode, size, times and inode: what touching anything would change."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        s = path.lstat()
        found[str(path.relative_to(folder))] = (s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino)
    return found
