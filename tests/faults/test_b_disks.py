"""Section B of the catalogue on disks that are really full, really read-only, and really slow."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import journal
from resumekit.checkpoint.selection import CheckpointFolder, select
from resumekit.run.journal_fold import fold
from resumekit.trainer.saving import save_checkpoint
from resumekit.watch import rules
from resumekit.watch.rules import HANG, SICK, Limits, Observation
from support import namespaces
from support.checkpoint_tools import leftovers, os_calls, save_steps, small_model

pytestmark = pytest.mark.usefixtures("in_a_new_process", "warm")
needs_namespaces = pytest.mark.skipif(bool(namespaces.why_not()), reason=str(namespaces.why_not()))


@pytest.fixture(scope="module")
def warm() -> None:
    """What torch imports at a first step is imported once, and not in every child."""
    small_model()


def save(folder: Path, step: int, said: list[str]) -> Path | None:
    model, optimizer = small_model()
    return save_checkpoint(folder, step, model=model, optimizer=optimizer, log_fn=said.append)


def until_full(folder: Path, make_room: Callable[[], None], sentence: str) -> None:
    """Save until the disk is full, then go on: nothing older is touched, and with room again it saves again."""
    said: list[str] = []
    steps = range(1, 200)
    full_at = next(step for step in steps if save(folder, step, said) is None)
    assert full_at > 2, "some were saved before"
    assert f"step {full_at} was not saved to" in said[-1] and sentence in said[-1], said[-1]
    assert leftovers(folder) == []
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for step in range(full_at + 1, full_at + 4):  # training goes on
        assert save(folder, step, said) is None
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    chosen = select([CheckpointFolder(folder)]).chosen
    assert chosen is not None and (chosen.step, chosen.grade) == (full_at - 1, "proven")
    make_room()
    assert save(folder, full_at + 4, said) is not None
    chosen = select([CheckpointFolder(folder)]).chosen
    assert chosen is not None and (chosen.step, chosen.grade) == (full_at + 4, "proven")


@needs_namespaces
@pytest.mark.fault("B3", by="saving.py: temp file, cause named by errors.py; on a real tmpfs of 256 KB")
def test_b3_a_disk_that_is_really_full_costs_only_the_saves_that_do_not_fit(tmp_path: Path) -> None:
    filler = tmp_path / "filler"

    def work() -> None:
        filler.write_bytes(bytes(100_000))
        until_full(tmp_path / "checkpoints", filler.unlink, "no space: need 0.0 MB, have 0.0 MB")

    namespaces.on_small_disk(tmp_path, "size=256k", work)


@needs_namespaces
@pytest.mark.fault("B4", by="errors.py: no space with free blocks is no inodes; on a real tmpfs of 20")
def test_b4_a_disk_without_inodes_is_named_as_that(tmp_path: Path) -> None:
    filler = [tmp_path / f"filler-{number}" for number in range(4)]

    def work() -> None:
        for path in filler:
            path.touch()
        until_full(tmp_path / "checkpoints", lambda: [p.unlink() for p in filler] and None, "no inodes left")

    namespaces.on_small_disk(tmp_path, "size=4m,nr_inodes=20", work)


@needs_namespaces
@pytest.mark.fault("B10", by="saving.py: an OSError is said and training goes on; on a real read-only tmpfs")
def test_b10_a_disk_that_becomes_read_only_is_said_and_forgotten_when_it_is_writable_again(tmp_path: Path) -> None:
    def work() -> None:
        said: list[str] = []
        folder = tmp_path / "checkpoints"
        save_steps(folder, 1, 2)
        namespaces.remount(tmp_path, read_only=True)
        for step in (3, 4, 5):
            assert save(folder, step, said) is None and "Read-only file system" in said[-1]
        chosen = select([CheckpointFolder(folder)]).chosen
        assert chosen is not None and (chosen.step, chosen.grade) == (2, "proven")
        namespaces.remount(tmp_path, read_only=False)
        assert save(folder, 6, said) is not None and leftovers(folder) == []

    namespaces.on_small_disk(tmp_path, "size=4m", work)


# A hang is called after 0.3 s here, and the save takes 1 s; the rules know only minutes.
QUICK = Limits(hang_minutes=0.3 / 60)
SAVE_S = 1.0


def watched_save(run_dir: Path, limits: Limits, *, tells_phase: bool) -> set[str]:
    """Save on a disk that takes its time, as the example does it; return what a watcher called it meanwhile."""
    path = run_dir / "journal.jsonl"
    found: set[str] = set()
    is_done = threading.Event()

    def watch() -> None:
        while not is_done.wait(0.02):
            state = fold({}, (event for event, _ in journal.read(path)))
            sight = Observation(time.monotonic(), run_state="running")
            found.update(one.cause for one in rules.findings(state, limits, sight) if one.verdict == SICK)

    def slow(_k: int, name: str, _arguments: object, seen: list[str] = []) -> None:  # noqa: B006
        seen.append(name)
        if name == "fsync" and seen.count("fsync") == 1:
            time.sleep(SAVE_S)

    journal.append(path, "launched", "r")
    for step in range(1, 6):
        journal.append(path, "step", "r", step=step, loss=0.5 + step / 100)
    if tells_phase:
        journal.append(path, "phase", "r", phase="checkpoint")
    watcher = threading.Thread(target=watch)
    watcher.start()
    with os_calls(slow):
        assert save_steps(run_dir / "checkpoints", 5)[0] is not None
    is_done.set()
    watcher.join()
    return found


CASES: list[tuple[str, Limits, bool, set[str]]] = [
    ("a save has a limit of its own", QUICK, True, set()),
    ("that limit is one", QUICK._replace(save_minutes=0.3 / 60), True, {HANG}),
    ("a save without an event is no step for too long", QUICK, False, {HANG}),
]


@pytest.mark.fault("B16", by="rules.py: abort.save_minutes while the phase is 'checkpoint'")
@pytest.mark.parametrize(("limits", "tells_phase", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_b16_a_save_that_takes_longer_than_the_hang_limit_is_no_hang(
    tmp_path: Path, limits: Limits, tells_phase: bool, expected: set[str]
) -> None:
    assert watched_save(tmp_path, limits, tells_phase=tells_phase) == expected


@pytest.mark.fault("B11", by="save_file.py: the temp file lies beside its target; a refused link is never a copy")
def test_b11_every_name_is_given_within_one_folder(tmp_path: Path) -> None:
    pairs: list[tuple[Any, ...]] = []
    with os_calls(lambda _k, _name, arguments: pairs.append(arguments), ("link", "rename", "replace")):
        save_steps(tmp_path, 1, 2, best={"score": 1.0})
    assert len(pairs) > 3
    assert {os.path.dirname(path) for pair in pairs for path in pair[:2]} == {str(tmp_path)}
