"""Files that are made to exhaust their reader (K13), found by the fuzz; each with the reader that it ended."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from resumekit.base import journal
from resumekit.base.errors import InvalidFile
from resumekit.base.paths import RunPaths
from resumekit.checkpoint.selection import CheckpointFolder, select
from resumekit.checks import expectations, journal_rules
from resumekit.run import status
from resumekit.run.run_folder import Run, open_run
from resumekit.trainer import decisions
from support.checkpoint_tools import save_steps
from support.commands import Kit, killed
from support.places import LIB
from support.schemas import assert_valid

SUMMARIZE = """
import resource, sys
sys.path.append(sys.argv[1])
from resumekit.base.files import UnreadableFile
from resumekit.checkpoint import archive
resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))
try:
    archive.summarize(sys.argv[2])
except UnreadableFile as error:
    print(error)
"""


@pytest.mark.fault("K13", by="archive: the zip directory has a limit")
@pytest.mark.fault("C17", by="archive: the zip directory has a limit")
def test_k13_a_sparse_file_whose_directory_claims_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for length in (1 << 30, 3 << 30, (4 << 30) - 1):
        with open(path, "wb") as file:
            file.write(b"PK\x03\x04")
            file.seek(4 + length)
            file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, length, 4, 0))
        done = subprocess.run(
            [sys.executable, "-c", SUMMARIZE, str(LIB), str(path)], capture_output=True, text=True, check=False
        )
        assert done.stdout == "its zip directory is damaged\n", done.stderr


@pytest.mark.fault("K13", by="journal: no deeper than 32")
@pytest.mark.parametrize("one, other", ["[]", ('{"a":', "}")], ids=["lists", "objects"])
def test_k13_a_heartbeat_file_nested_as_deep_as_a_parser_goes_ends_no_sidecar(kit: Kit, one: str, other: str) -> None:
    script = kit.folder / "beats.py"
    deep = one * 900 + ("1" if one != "[" else "") + other * 900
    script.write_text(
        f"import sys, time\nopen(sys.argv[1], 'w').write('{{\"global_step\": 3, \"x\": {deep}}}')\n"
        "time.sleep(1.5)\nprint('step 5 loss 1', flush=True)\n"
    )
    quoted = str(script).replace("{", "{{").replace("}", "}}")
    kit.config(trainer={"command": ["{python}", quoted, "{heartbeat_json}"]}, status={"interval_s": 1})
    done = kit("run", "T-1")
    assert "Traceback" not in done.stderr
    [run] = kit.run_dirs()
    [beat] = [event for event, _ in journal.read(run / "journal.jsonl") if event["event"] == "heartbeat"]
    assert beat["global_step"] == 3 and len(json.dumps(beat)) < 1000
    assert_valid("status", kit.status(run))


@pytest.mark.fault("F7", by="values: a speed is not below zero")
def test_f7_a_negative_speed_is_none(kit: Kit) -> None:
    run = killed(kit)
    journal.append(run / "journal.jsonl", "heartbeat", run.name, global_step=11, steps_per_sec=-5.0)
    assert_valid("status", status.current(open_run(run)))


PLANS = {
    "an action that is a list": {"components": {"weights": {"action": ["load"]}}},
    "a path with half a character": {"checkpoint": {"path": "\ud800", "run_id": "T-1"}},
    "rates that are a number": {"learning_rates": 5},
    "a rate that is too large": {"learning_rates": [{"key": "optimizer.lr", "after": [10**400]}]},
    "rates of a rate": {"learning_rates": [{"key": "optimizer.lr", "after": 5}]},
    "changes that are a number": {"changes": 5},
}


@pytest.mark.fault("K2", by="trainer_plan, expectations: every field's type")
@pytest.mark.parametrize("kind", PLANS)
def test_k2_a_plan_of_wrong_types_is_one_sentence_to_the_trainer_and_nothing_to_the_sidecar(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"version": 1, "step": 4, "components": {"weights": {"action": "load"}}, **PLANS[kind]}
    path = RunPaths(tmp_path).resume_plan
    path.write_text(json.dumps(plan))
    monkeypatch.setenv(decisions.VARIABLE, str(path))
    expected = expectations.read(Run(RunPaths(tmp_path), {}))
    try:
        found = decisions.read_plan()
    except InvalidFile as error:
        assert "can't be carried out, and nothing was loaded" in str(error) and expected is None
    else:
        assert found is not None and kind == "a path with half a character"
        assert expected is not None and expected.step == 4


@pytest.mark.fault("C18", by="manifest: a number that a float can hold")
@pytest.mark.parametrize("field", ["best_score", "last_fast_eval"])
def test_c18_a_manifest_with_a_number_of_four_hundred_digits_is_passed_over(tmp_path: Path, field: str) -> None:
    newest = save_steps(tmp_path, 10, 20)[-1].with_suffix(".pt.json")
    huge = {"best_score": 10**400, "last_fast_eval": {"step": 20, "accuracy": -(10**400)}}[field]
    newest.write_text(json.dumps({**json.loads(newest.read_text()), field: huge}))
    found = select([CheckpointFolder(tmp_path)])
    assert found.chosen is not None and found.chosen.step == 10
    assert found.candidates[0].reason == f"its manifest is not usable: the field '{field}' is not what it must be"


@pytest.mark.fault("K2", by="expectations, journal_rules: every value's type")
def test_k2_a_parent_s_journal_of_wrong_types_ends_no_sidecar(tmp_path: Path) -> None:
    parent, child = tmp_path / "T-1_a", tmp_path / "T-1_b"
    for folder in (parent, child):
        folder.mkdir()
    odd = ([], {}, 10**400, "4", True, None, 1e308)
    lines = [{"event": "step", "step": 4, "mono_s": 1.0, "loss": 0.5}]
    lines += [{"event": "phase", "phase": one, "mono_s": one} for one in odd]
    lines += [{"event": "step", "step": one, "mono_s": two, "loss": two} for one in (4, 5, *odd) for two in odd]
    (parent / "journal.jsonl").write_text("".join(f"\n{json.dumps(line)}\n" for line in lines))
    components = {"weights": {"action": "load"}}
    plan = {"version": 1, "step": 4, "components": components, "checkpoint": {"run_id": parent.name}}
    (child / "resume_plan.json").write_text(json.dumps(plan))
    expected = expectations.read(open_run(child))
    assert expected is not None and expected.losses[4] in (0.5, 1e308)
    rules = journal_rules.Rules(expected, 0.15, 0.5, {})
    for line in lines:
        rules.see(line)
    assert list(rules.verdicts(1e6, has_ended=True))
