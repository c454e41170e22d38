"""Which run `run.sh` goes on with: the newest of its name; another name is another run, and steps are never lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from resumekit.base.errors import Refused
from resumekit.run.run_table import RunTable
from resumekit.start import search
from support.commands import Kit
from support.named_runs import made
from support.processes import wait_until
from support.runs import events, record


def stopped(kit: Kit, *args: str) -> Path:
    """Train the toy to a checkpoint of step 4, and stop it there; its folder."""
    kit("run", "T-1", *args, code=137, env={"TOY_ARGS": "--save-every 2 --at 5 kill"})
    return kit.run_dirs()[-1]


def test_heads_of_one_name_are_those_that_no_run_of_that_name_came_from(tmp_path: Path) -> None:
    made(tmp_path, "T-1_a_1", "a")
    made(tmp_path, "T-1_a_2", "a", parent="T-1_a_1", step=4)
    made(tmp_path, "T-1_b_1", "b", parent="T-1_a_2", step=4)
    table = RunTable(tmp_path)
    assert [run.run_id for run in table.heads("T-1")] == ["T-1_b_1"]
    assert [run.run_id for run in table.heads("T-1", lambda run: run.name == "a")] == ["T-1_a_2"]
    assert [run.run_id for run in table.heads("T-1", lambda run: run.name is None)] == []


def test_another_name_begins_anew_and_the_same_name_goes_on_with_its_own(kit: Kit) -> None:
    first = stopped(kit, "--name", "lr1", "--set", "optimizer.lr=1e-4")
    third = kit("run", "T-1", "--name", "lr3", "--set", "optimizer.lr=3e-4", code=137,
                env={"TOY_ARGS": "--save-every 2 --at 3 kill"})  # fmt: skip
    assert "'lr3' is a new name of T-1, beside 'lr1' ('" + first.name + "'): it begins anew" in third.stderr
    own = record(kit.run_dirs()[-1])
    assert (own["relation"], own["parent_run_id"], own["settings"]) == ("fresh", None, ["optimizer.lr=3e-4"])
    for name, step in (("lr1", 4), ("lr3", 2)):
        shown = json.loads(kit("run", "T-1", "--name", name, "--dry-run", "--json").stdout)
        assert (shown["relation"], shown["step"]) == ("continue", step)
        assert shown["parent_run_id"].startswith(f"T-1_{name}_")


def test_a_new_name_needs_no_consent_for_other_arguments_of_the_trainer(kit: Kit) -> None:
    stopped(kit, "--name", "lr1")
    assert "starting T-1 anew" in kit("run", "T-1", "--name", "lr3", "--dry-run", "--", "--noise", "1").stdout
    assert "needs consent" in kit("run", "T-1", "--name", "lr1", "--dry-run", "--", "--noise", "1", code=5).stdout


def test_without_a_name_it_is_the_name_of_the_config_and_of_others_alone_a_person_is_asked(kit: Kit) -> None:
    other = stopped(kit, "--name", "lr1")
    page = kit("run", "T-1", "--dry-run", code=5).stdout
    assert "the name 'toy'" in page and other.name in "".join(page.split()) and "resume.sh RUN_ID" in page
    asked = kit("run", "T-1", code=5).stderr
    assert f"of which there is no run, only 'lr1' ('{other.name}')" in asked and len(kit.run_dirs()) == 1
    kit("run", "T-1", "--accept", code=137, env={"TOY_ARGS": "--save-every 2 --at 3 kill"})
    own = record(kit.run_dirs()[-1])
    assert (own["name"], own["relation"]) == ("toy", "fresh")
    kit("resume", "T-1", "--name", "side", "--step", "2", code=137, env={"TOY_ARGS": "--save-every 2 --at 5 kill"})
    page = kit("run", "T-1", "--dry-run").stdout
    assert f"continuing '{own['run_id']}' at step 2" in page, "a branch of another name is not gone on with"
    assert "T-1_side_" in kit("resume", "T-1", "--dry-run").stdout, "resume.sh takes the newest of any name"


def test_runs_of_several_names_start_at_the_same_time(kit: Kit) -> None:
    """While one trains, another name begins; the same name is refused."""
    live = {"TOY_ARGS": "--delay 0.05 --steps 100000"}
    kit("run", "T-1", "--name", "lr1", "--detach", env=live)
    kit("run", "T-1", "--name", "lr3", "--detach", env=live)
    kit.started(2)
    assert "is alive" in kit("run", "T-1", "--name", "lr1", code=6).stderr
    names = sorted(record(run)["name"] for run in kit.run_dirs())
    assert names == ["lr1", "lr3"]


def test_a_run_that_is_just_starting_holds_up_its_own_name_alone(tmp_path: Path, monkeypatch) -> None:
    from resumekit.start import choice

    made(tmp_path, "T-1_lr1_1", "lr1").paths.journal.unlink()
    table = RunTable(tmp_path)
    monkeypatch.setattr(choice.status, "current", lambda run: {"state": "starting"})
    choice._refuse_starting(table, "T-1", search.Lineage("lr3", True))
    with pytest.raises(Refused, match="just being started"):
        choice._refuse_starting(table, "T-1", search.Lineage("lr1", True))
    assert [run.name for run in search.siblings(table, "T-1", search.Lineage("lr3", True))] == ["lr1"]


def test_a_live_run_whose_folder_was_moved_holds_up_its_own_name_alone(kit: Kit) -> None:
    kit("run", "T-1", "--name", "lr1", "--detach", env={"TOY_ARGS": "--delay 0.05 --steps 100000"})
    run = kit.started()
    wait_until(lambda: events(run, "step"), "a step is seen")
    run.rename(kit.folder / "elsewhere")
    assert "its folder was moved" in kit("run", "T-1", "--name", "lr1", code=6).stderr
    kit("run", "T-1", "--name", "lr3")


@pytest.mark.parametrize(
    ("parent", "step", "words"),
    [
        ("T-1_gone_1", 4, "it went on from step 4 of 'T-1_gone_1', whose folder is not in"),
        ("T-1_base_1", 4, "it went on from step 4 of 'T-1_base_1', and no checkpoint up to it is there any more"),
        (None, 4, "it went on from step 4 of the file"),
        ("T-1_gone_1", 0, None),
        (None, None, None),
    ],
)
def test_steps_that_a_run_went_on_from_are_not_lost(
    tmp_path: Path, parent: str | None, step: int | None, words: str | None
) -> None:
    made(tmp_path, "T-1_base_1", "base")
    child = made(tmp_path, "T-1_base_2", "base", parent=parent, step=step)
    if words is None:
        search.refuse_to_lose_steps(child, RunTable(tmp_path), {})
        return
    with pytest.raises(Refused, match=words):
        search.refuse_to_lose_steps(child, RunTable(tmp_path), {})


def test_the_missing_one_may_be_further_up(tmp_path: Path) -> None:
    made(tmp_path, "T-1_base_2", "base", parent="T-1_base_1", step=4)
    child = made(tmp_path, "T-1_base_3", "base", parent="T-1_base_2", step=4)
    assert RunTable(tmp_path).missing_parent(child) == "T-1_base_1"


def test_run_sh_does_not_begin_at_0_where_the_parent_s_folder_is_gone(kit: Kit) -> None:
    parent = stopped(kit)
    kit("resume", "T-1", code=1, env={"TOY_ARGS": "--at 5 raise"})
    child = kit.run_dirs()[-1]
    shutil.move(parent, kit.folder / "elsewhere")
    assert f"continuing '{child.name}' at step 4" in kit("run", "T-1", "--dry-run").stdout, "it holds that checkpoint"
    shutil.rmtree(child / "held")
    said = kit("run", "T-1", "--dry-run", code=6).stderr
    assert f"'{child.name}' would be begun anew from step 0, but it went on from step 4 of '{parent.name}'" in said
    assert kit("run", "T-1", code=6).stderr and kit.run_dirs() == [child]
    assert f"'{parent.name}', which it descends from, is not in" in kit("resume", "T-1", code=3).stderr
    shutil.move(kit.folder / "elsewhere", parent)
    assert f"continuing '{child.name}' at step 4" in kit("run", "T-1", "--dry-run").stdout
