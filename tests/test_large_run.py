"""A long life: 500,000 journal events, 1,000 checkpoints, twenty resumes deep, three branches. `make test`: a fifth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from resumekit.checkpoint import selection
from resumekit.checkpoint.grades import attest
from resumekit.run import status
from resumekit.run.listing import DRAWN_LEVELS
from resumekit.run.run_table import RunTable
from resumekit.start import search
from resumekit.start.request import parse
from support.commands import Kit
from support.runs import record
from support.toy_trainer import write_checkpoint


class Size(NamedTuple):
    """How much of each there is: journal events, checkpoints, resumes of resumes, branches."""

    events: int
    checkpoints: int
    depth: int
    branches: int


FIFTH, WHOLE = Size(100_000, 200, 7, 3), Size(500_000, 1_000, 20, 3)


def make(kit: Kit, size: Size) -> list[str]:
    """Let one run end by the kit, then grow it: its journal, its checkpoints, and resumes of resumes of it."""
    kit.config("--save-every", "5", training={"max_steps": 10**6}, checkpoint={"keep_last": None})
    kit("run", "T-1", code=137, env={"TOY_ARGS": "--at 7 kill"})
    [root] = kit.run_dirs()
    _grow_journal(root, size.events)
    for number in range(2, size.checkpoints + 1):
        path = root / f"checkpoints/hrm_arc_step_{number * 5}.pt"
        write_checkpoint(path, number * 5)
        attest(path, number * 5, run_id=root.name)
    names = [root.name]
    for branch in range(size.branches):
        parent, step = root.name, size.checkpoints * 5 - branch
        for depth in range(size.depth):
            names.append(_child(kit, root, parent, step, f"b{branch}-{depth}"))
            parent = names[-1]
    return names


def _grow_journal(root: Path, count: int) -> None:
    """Append step events after the recorded ones, as a trainer of so many steps would have."""
    lines = []
    for step in range(8, count):
        lines.append(
            f'\n{{"event":"step","at":"2026-11-22T18:00:00.000000Z","mono_s":{step}.5,"run_id":"{root.name}",'
            f'"step":{step},"loss":0.5,"lr":0.001}}\n'
        )
    with open(root / "journal.jsonl", "a", encoding="ascii") as file:
        file.write("".join(lines))


def _child(kit: Kit, root: Path, parent: str, step: int, name: str) -> str:
    run_id = f"T-1_{name}_resume@{step}_20261122-1800"
    folder = kit.runs / run_id
    (folder / "checkpoints").mkdir(parents=True)
    own = {
        **record(root), "run_id": run_id, "name": name, "parent_run_id": parent, "parent_step": step,
        "relation": "branch", "created_at": f"2025-11-23T00:{len(list(kit.runs.iterdir())):02d}:00.000000Z",
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(own))
    for file in ("resolved_config.json", "exit.json"):
        (folder / file).write_bytes((root / file).read_bytes())
    with open(root / "journal.jsonl", encoding="ascii") as file:
        launched = next(line for line in file if '"launched"' in line)
    (folder / "journal.jsonl").write_text("\n" + launched.replace(root.name, run_id))
    return run_id


SIZES = [pytest.param(FIFTH, id="a fifth"), pytest.param(WHOLE, id="whole", marks=pytest.mark.long)]


@pytest.mark.parametrize("size", SIZES)
def test_a_large_run_is_listed_resumed_and_goes_on_by_opening_what_it_needs(
    kit: Kit, size: Size, monkeypatch: pytest.MonkeyPatch
):
    names = make(kit, size)
    listed = kit("runs").stdout
    assert len(listed.splitlines()) == 1 + size.branches * size.depth
    assert f"step {size.events - 1}/1000000" in listed.splitlines()[0]
    deepest, levels = listed.splitlines()[size.depth], size.depth - 1
    indent = 2 * levels if levels <= DRAWN_LEVELS else len("…") + 2 * DRAWN_LEVELS
    assert deepest.index("└ ") == indent, "so deep, and no wider than a terminal"

    page = json.loads(kit("resume", "T-1", "--dry-run", "--json").stdout)
    newest_step = size.checkpoints * 5 - (size.branches - 1)
    assert page["parent_run_id"] == names[-1] and len(page["candidates"]) == newest_step // 5
    assert page["checkpoint"]["step"] == newest_step // 5 * 5 and page["checkpoint"]["run_id"] == names[0]

    opened, folded = [], []
    examine, fold = selection.examine, status.fold
    monkeypatch.setattr(selection, "examine", lambda path, **more: opened.append(path) or examine(path, **more))
    monkeypatch.setattr(status, "fold", lambda state, events: folded.append(list(events)) or fold(state, folded[-1]))
    words = ["--experiment=T-1", f"--config={kit.config_file}", f"--runs={kit.runs}"]
    request = parse(words).request()
    found = search.search(request, RunTable(kit.runs))
    assert found.selection.chosen.step == newest_step // 5 * 5
    assert len(opened) == 1, "the chosen one, of all"
    status.current(found.head)
    assert sum(map(len, folded)) <= 2, "the head's own journal, not its ancestor's"

    kit("resume", "T-1", code=137, env={"TOY_ARGS": f"--at {page['checkpoint']['step'] + 1} kill"})
    child = record(kit.run_dirs()[-1])
    assert child["parent_run_id"] == names[-1] and child["parent_step"] == page["checkpoint"]["step"]
    assert json.loads((kit.runs / child["run_id"] / "status.json").read_text())["state"] == "failed"
