"""Overlays over the config's schema: the example's, which a copy of the kit may lack, and a lab's on top of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from resumekit.base import paths
from resumekit.base.errors import InvalidFile
from resumekit.config import config, rules, schema, yaml_document
from resumekit.policy import config_diff
from support.commands import Kit
from support.lab_repo import copy_kit
from support.places import ROOT
from support.processes import wait_until
from support.recoveries import over
from support.runs import events

EXAMPLE = "examples/hrm_arc/config.schema.json"
KIT = schema.load()
LISTED: dict[str, dict[str, Any]] = KIT.tree["x-overlays"]
# What the protocol names stays in the kit, with all of these sections.
SECTIONS_OF_THE_PROTOCOL = {
    "experiment", "trainer", "training", "optimizer", "schedule", "ema", "swa", "validation", "checkpoint", "status",
    "resume", "abort", "recover", "notify", "paths",
}  # fmt: skip
KEYS_OF_THE_PROTOCOL = {
    "data.name", "data.path", "model.name", "model.seq_len", "model.hidden_size", "model.layers", "model.droppath_h",
    "model.aux_rule_head",
}  # fmt: skip
# A config's sections with keys of the example, beside keys of the kit's own.
OLD_SECTIONS = {"data": {"max_grid": 10, "workers": 0}, "model": {"hidden_size": 64, "heads": 2, "expansion": 4.0}}
# An experiment's whole number where the schema has a number: it is hashed as one.
OLD_TEXT = "data: {max_grid: 10, workers: 0}\nmodel: {hidden_size: 64, heads: 2, expansion: 4}\n"


@pytest.fixture
def without_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> schema.Schema:
    """The schema of a copy of the kit that lacks the example."""
    monkeypatch.setattr(paths, "KIT_ROOT", tmp_path / "kit")
    return schema.load()


def resolved(text: str, known: schema.Schema, *settings: str, experiment: str | None = None) -> dict[str, Any]:
    document = yaml_document.load("trainer: {command: [x]}\n" + text, "c.yaml")
    return config.resolve(document, experiment, settings, schema=known)


def refusal(text: str, known: schema.Schema, *settings: str) -> str:
    with pytest.raises(InvalidFile) as caught:
        resolved(text, known, *settings)
    return str(caught.value)


def test_the_kits_schema_lists_the_keys_of_each_overlay_and_none_that_the_protocol_names() -> None:
    assert set(LISTED) == {EXAMPLE}
    tree = json.loads((ROOT / EXAMPLE).read_text())
    Draft202012Validator.check_schema(tree)
    own = schema.Schema(tree).leaves
    assert {key: node["type"] for key, node in own.items()} == LISTED[EXAMPLE]
    assert all(key.count(".") == 1 for key in own), "each is a key of a section, which is the kit's"
    assert not {key.partition(".")[0] for key in own} & SECTIONS_OF_THE_PROTOCOL
    assert not set(own) & KEYS_OF_THE_PROTOCOL and set(KIT.leaves) >= KEYS_OF_THE_PROTOCOL
    assert all("default" not in KIT.leaves[key] for key in own), "a default would change the hash of a lab's runs"


def test_the_code_names_neither_the_example_nor_its_keys() -> None:
    # The others of its keys are words of English and of Python.
    names = {key for key in (key.rpartition(".")[2] for key in LISTED[EXAMPLE]) if "_" in key}
    words = re.compile(rf"hrm_arc|\b({'|'.join(names)})\b")
    modules = [path for path in (ROOT / "lib").rglob("*") if path.suffix in (".py", ".sh")]
    found = [path.name for path in modules if words.search(path.read_text(encoding="utf-8"))]
    assert (found, len(modules) > 100) == ([], True)


def test_a_config_of_the_example_is_taken_as_it_was_where_the_overlay_is_there() -> None:
    shipped = config.load_config()
    small = config.resolve(shipped.document, "EXP-01", schema=shipped.schema)
    assert small["model"]["halt_max_steps"] == 4 and small["data"]["max_grid"] == 10
    assert config.config_hash(small).startswith("8d819c286f09"), "as before its keys were an overlay"


def said_of(made: dict[str, Any], known: schema.Schema) -> list[str]:
    return list(rules.unchecked(made, known))


def test_a_key_of_an_overlay_that_is_not_here_is_taken_and_said_in_one_sentence(without_example: schema.Schema) -> None:
    """A config of the version before works on: its hash is the same, and what is not known of its keys is said."""
    made = resolved(OLD_TEXT, without_example, "l_cycles=3")
    assert made == resolved(OLD_TEXT, KIT, "l_cycles=3")
    assert config.config_hash(made, without_example) == config.config_hash(made, KIT)
    assert said_of(made, without_example) == [
        f"the schema '{EXAMPLE}' of data.max_grid, model.heads, model.expansion, model.l_cycles is not in this copy of"
        f" the kit: only their types are checked, and a change of them needs consent; copy that file out of resumekit's"
        f" repository to '{paths.KIT_ROOT / EXAMPLE}', or take the keys out of the config"
    ]
    assert said_of(made, KIT) == [] == said_of(resolved("model: {layers: 2}\n", without_example), without_example)


def test_its_type_is_checked_all_the_same_and_other_unknown_keys_are_answered_as_ever(
    without_example: schema.Schema,
) -> None:
    says = "'model.heads' is 'two', a text, and must be a whole number ('c.yaml', line 2)"
    assert refusal("model: {heads: two}\n", without_example) == says
    assert "no key 'h_cycle' in section 'model'" in refusal("model: {h_cycle: 2}\n", without_example)
    assert "the nearest known is 'batch_size'" in refusal("training: {batchsize: 2}\n", without_example)


def test_a_run_that_began_with_the_overlay_goes_on_without_it(without_example: schema.Schema) -> None:
    """A change of such a key is not free because nothing is known of it."""
    old = resolved(OLD_TEXT, KIT)
    now = config.override(old, ["training.max_steps=9"], without_example)
    assert now == {**old, "training": {"max_steps": 9}}
    assert config_diff.changes(old, config.override(old, (), without_example), without_example) == []
    (change,) = config_diff.changes(old, config.override(old, ["heads=4"], without_example), without_example)
    assert (change.key, change.consent) == ("model.heads", f"its schema '{EXAMPLE}' is not in this copy of the kit")


def lab_file(tmp_path: Path, section: str, **keys: dict[str, Any]) -> Path:
    path = tmp_path / "lab.schema.json"
    path.write_text(json.dumps({"properties": {section: {"properties": keys}}}))
    return path


def test_the_overlay_of_a_lab_lies_over_the_one_of_the_example(tmp_path: Path) -> None:
    width = {"type": "integer", "default": 3, "x-on-resume": {"refuse": "another shape"}, "x-hash": True}
    both = schema.load(lab_file(tmp_path, "model", rope_width=width))
    assert set(both.leaves) == {*KIT.leaves, "model.rope_width"}
    made = resolved("model: {h_cycles: 2}\n", both, "rope_width=4")
    assert made["model"] == {"rope_width": 4, "h_cycles": 2}
    assert resolved("", both)["model"] == {"rope_width": 3}


def test_the_overlay_of_a_lab_cannot_change_a_key_of_the_example(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile) as caught:
        schema.load(lab_file(tmp_path, "model", heads={"type": "string"}))
    assert f"the key 'model.heads' is declared in '{EXAMPLE}' already; leave it to one of the two" in str(caught.value)


def test_a_lab_without_the_example_may_have_a_key_of_that_name(tmp_path: Path, without_example: schema.Schema) -> None:
    own = schema.load(lab_file(tmp_path, "model", heads={"type": "integer"}))
    assert resolved("model: {heads: 3, hidden_size: 64}\n", own)["model"]["heads"] == 3, "and it divides nothing"
    assert "x-absent" in own.leaves["model.h_cycles"] and "x-absent" not in own.leaves["model.heads"]


def test_a_key_may_say_that_it_divides_another(tmp_path: Path) -> None:
    groups = {"type": "integer", "x-divides": "training.batch_size"}
    own = schema.load(lab_file(tmp_path, "lab", groups=groups))
    says = "training.batch_size 8 cannot be divided among lab.groups 3: take a multiple of 3"
    assert says in refusal("training: {batch_size: 8}\nlab: {groups: 3}\n", own)
    assert refusal("training: {batch_size: 8}\n", own, "groups=3") == f"{says} (--set 'groups=3')"
    assert resolved("training: {batch_size: 9}\n", own, "groups=3")["lab"] == {"groups": 3}
    assert resolved("", own, "groups=3")["lab"] == {"groups": 3}, "an absent key breaks no rule"
    with pytest.raises(InvalidFile, match=r"'x-divides' of the key 'lab.groups' is not the name of a key"):
        schema.load(lab_file(tmp_path, "lab", groups={"x-divides": 3}))


# --- the names of checkpoints where there is no config


def chosen_by(kit_folder: Path, folder: Path) -> subprocess.CompletedProcess:
    argv = [sys.executable, str(kit_folder / "lib" / "resume_helper.py"), "--ckpt_dir", str(folder), "--dry-run"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def test_without_a_config_checkpoints_have_the_names_that_the_schema_gives(tmp_path: Path) -> None:
    copy_kit(tmp_path / "kit")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    recorded = next((ROOT / "tests" / "recorded" / "old_run").glob("T-1_toy_2*")) / "checkpoints"
    for name in ("hrm_arc_step_20.pt", "model_15.pt"):
        source = recorded / name.replace("model_", "hrm_arc_step_")
        (folder / name).write_bytes(source.read_bytes())
    assert chosen_by(ROOT, folder).stdout == f"{folder}/hrm_arc_step_20.pt\n"
    path = tmp_path / "kit" / "schemas" / "config.schema.json"
    path.write_text(path.read_text().replace('"hrm_arc_step_{step}.pt"', '"model_{step}.pt"'))
    assert chosen_by(tmp_path / "kit", folder).stdout == f"{folder}/model_15.pt\n"
    path.unlink()
    refused = chosen_by(tmp_path / "kit", folder)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (4, "", 1)
    assert f"the names of checkpoints are not known: '{path}' cannot be read" in refused.stderr


# --- a lab that has copied the kit without the example, and has configs and runs of the version before


@pytest.fixture
def lab(kit: Kit) -> Kit:
    """A config of before, and beside it a copy of the kit without the example, for `in_the_copy`."""
    copy_kit(kit.folder / "copied")
    recover = {"enabled": True, "backoff_s": 1}
    trainer = {"env": ["RESUMEKIT_TEST_MARK"]}
    slowly = ("--save-every", "5", "--delay", "0.05")
    kit.config(*slowly, training={"max_steps": 40}, recover=recover, trainer=trainer, **OLD_SECTIONS)
    return kit


def in_the_copy(kit: Kit, command: str, *args: str) -> subprocess.CompletedProcess:
    argv = [str(kit.folder / "copied" / "bin" / f"{command}.sh"), *kit.argv(command, *args)[1:]]
    return subprocess.run(argv, env=kit.env, capture_output=True, text=True, timeout=120)


def killed_run(kit: Kit) -> Path:
    """A run of a kit with the example, whose launcher and trainer were killed at once behind step 12."""
    kit("run", "T-1", "--detach")
    run = kit.started()
    wait_until(lambda: any(event["step"] >= 12 for event in events(run, "step")), "step 12")
    (launched,) = events(run, "launched")
    for name in ("launcher", "trainer"):
        os.kill(launched[name]["pid"], signal.SIGKILL)
    return run


def test_such_a_config_starts_and_its_runs_are_listed_and_resumed(lab: Kit) -> None:
    run = killed_run(lab)
    listed = json.loads(in_the_copy(lab, "runs", "T-1", "--json").stdout)
    assert [row["run_id"] for row in listed] == [run.name]
    done = in_the_copy(lab, "resume", "T-1")
    child = lab.run_dirs()[-1]
    assert (done.returncode, lab.status(child)["state"]) == (0, "finished"), done.stderr
    records = [json.loads((folder / "run.json").read_text()) for folder in (run, child)]
    assert records[1]["parent_run_id"] == run.name and records[0]["config_hash"] == records[1]["config_hash"]
    fresh = in_the_copy(lab, "run", "T-2", "--dry-run")
    said = f"warning the schema '{EXAMPLE}' of data.max_grid, model.heads, model.expansion is not in this copy"
    assert (fresh.returncode, " ".join(fresh.stdout.split()).count(said)) == (0, 1), fresh.stdout


def test_such_a_run_is_recovered(lab: Kit) -> None:
    run = killed_run(lab)
    watcher = str(lab.folder / "copied" / "bin" / "abort-watch.sh")
    env = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "RESUMEKIT_TEST_MARK": lab.mark, "HOME": str(lab.folder),
           "XDG_STATE_HOME": lab.env["XDG_STATE_HOME"]}  # fmt: skip
    argv = [watcher, "--runs", str(lab.runs), "--config", str(lab.config_file)]

    def taken_up() -> bool:
        subprocess.run(argv, env=env, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
        return len(lab.run_dirs()) == 2 and bool(events(lab.run_dirs()[1], "exited"))

    wait_until(taken_up, "a child has ended")
    child = lab.run_dirs()[1]
    assert json.loads((child / "run.json").read_text())["parent_run_id"] == run.name
    over(lab, child, "finished")
    assert json.loads((child / "resolved_config.json").read_text())["model"] == OLD_SECTIONS["model"]
