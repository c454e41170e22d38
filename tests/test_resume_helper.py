"""The door for trainers, and its command: the selection without torch, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.checkpoint_tools import save_plain, save_steps
from support.places import ROOT

DOOR = ROOT / "lib" / "resume_helper.py"
# torch, and whatever else a fresh machine does not have, can't be imported.
BLOCKED = "import sys, runpy; [sys.modules.__setitem__(n, None) for n in ('torch', 'numpy', 'yaml', 'jsonschema')]; "
RUN = "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


pytestmark = pytest.mark.usefixtures("one_thread")


def door(*arguments: Any, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python resume_helper.py ARGUMENTS`, with torch blocked."""
    command = [sys.executable, "-I", "-c", BLOCKED + RUN, str(DOOR), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)


def test_the_dry_run_prints_the_path_on_stdout_and_the_reasons_on_stderr_without_torch(tmp_path: Path) -> None:
    paths = save_steps(tmp_path, 10, 20, 30)
    paths[2].write_bytes(b"<html>")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = door("--ckpt_dir", tmp_path, "--dry-run")
    size = json.loads((tmp_path / "hrm_arc_step_30.pt.json").read_text())["size"]
    assert (done.returncode, done.stdout) == (0, f"{paths[1]}\n")
    assert done.stderr.splitlines() == [
        f"             30  passed over  hrm_arc_step_30.pt  (truncated: 6 of {size:,} bytes)".replace(" ", " "),
        "->           20  chosen       hrm_arc_step_20.pt  (proven: newest stable)",
        "             10  older        hrm_arc_step_10.pt  (older than the chosen one)",
    ]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_same_as_json(tmp_path: Path) -> None:
    paths = save_steps(tmp_path, 10, 20)
    paths[1].write_bytes(b"")
    done = door("--ckpt_dir", tmp_path, "--dry-run", "--json")
    assert done.returncode == 0 and done.stderr == ""
    value = json.loads(done.stdout)
    assert value["checkpoint"] == str(paths[0])
    assert [(one["step"], one["path"], one["verdict"]) for one in value["candidates"]] == [
        (20, str(paths[1]), "passed"),
        (10, str(paths[0]), "chosen"),
    ]
    assert value["candidates"][0]["reason"].startswith("truncated: 0 of ")


def test_none_found_and_none_stable_are_two_sentences_both_with_exit_3(tmp_path: Path) -> None:
    done = door("--ckpt_dir", tmp_path, "--dry-run")
    assert (done.returncode, done.stdout, done.stderr) == (
        3,
        "",
        f"resume_helper.py: no checkpoint found in '{tmp_path}'\n",
    )
    (tmp_path / "hrm_arc_step_5.pt").touch()
    done = door("--ckpt_dir", tmp_path, "--dry-run")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines()[-1] == (
        f"resume_helper.py: no stable checkpoint in '{tmp_path}': 1 found, none usable; "
        "the newest, 'hrm_arc_step_5.pt': empty: 0 bytes"
    )
    done = door("--ckpt_dir", tmp_path, "--dry-run", "--json")
    assert done.returncode == 3 and json.loads(done.stdout)["checkpoint"] is None


def test_step_best_and_pattern_choose_otherwise(tmp_path: Path) -> None:
    save_steps(tmp_path, 10, 20)
    shutil.copy(tmp_path / "hrm_arc_step_10.pt", tmp_path / "hrm_arc_best.pt")
    save_plain(tmp_path, 7).rename(tmp_path / "net-7.ckpt")
    assert door("--ckpt_dir", tmp_path, "--dry-run", "--step", 10).stdout.endswith("hrm_arc_step_10.pt\n")
    assert door("--ckpt_dir", tmp_path, "--dry-run", "--best").stdout.endswith("hrm_arc_best.pt\n")
    assert door("--ckpt_dir", tmp_path, "--dry-run", "--pattern", "net-{step}.ckpt").stdout.endswith("net-7.ckpt\n")


def test_the_files_of_a_run_are_known_by_the_names_in_its_config(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "EXP-01_baseline_20261122-2237" / "kept" / "models"
    save_plain(folder, 10).rename(folder / "model_10.pt")
    shutil.copy(folder / "model_10.pt", folder / "top.pt")
    config = {
        "paths": {"checkpoints": "kept/models"},
        "checkpoint": {"pattern": "model_{step}.pt", "best_pattern": "top.pt"},
    }
    resolved = folder.parent.parent / "resolved_config.json"
    resolved.write_text(json.dumps(config))
    assert door("--ckpt_dir", folder, "--dry-run").stdout == f"{folder / 'model_10.pt'}\n"
    assert door("--ckpt_dir", folder, "--dry-run", "--best").stdout == f"{folder / 'top.pt'}\n"
    assert door("--ckpt_dir", "models", "--dry-run", cwd=folder.parent).stdout == "models/model_10.pt\n"
    assert door("--ckpt_dir", folder, "--dry-run", "--pattern", "x_{step}.pt").returncode == 3
    hostile = ({}, [], {"paths": {"checkpoints": 3}}, {**config, "checkpoint": []}, {"paths": {"checkpoints": "\0"}})
    for content in (
        *hostile,
        {**config, "paths": {"checkpoints": "kept"}},
        {**config, "checkpoint": {"pattern": "/x"}},
    ):
        resolved.write_text(json.dumps(content))
        done = door("--ckpt_dir", folder, "--dry-run")
        assert done.returncode == 3 and "hrm_arc_step_<step>.pt" in done.stderr and "Traceback" not in done.stderr


def test_files_of_other_names_are_shown_with_the_option_that_finds_them(tmp_path: Path) -> None:
    for name in ("model_20.pt", "model_9.pt", "model_9.pt.json", ".model_3.pt.tmp", "best.pt"):
        (tmp_path / name).write_text("{}")
    done = door("--ckpt_dir", tmp_path, "--dry-run")
    assert (done.returncode, done.stderr) == (
        3,
        f"resume_helper.py: no file named hrm_arc_step_<step>.pt in '{tmp_path}' (3 others: best.pt, model_9.pt, "
        "model_20.pt): give --pattern 'model_{step}.pt'\n",
    )
    assert (
        "no checkpoint found"
        in door("--ckpt_dir", tmp_path, "--dry-run", "--pattern", "model_{step}.pt", "--step", 7).stderr
    )
    assert "give --best-pattern" in door("--ckpt_dir", tmp_path, "--dry-run", "--best").stderr
    assert "'model_*.pt' has no {step}" in door("--ckpt_dir", tmp_path, "--dry-run", "--pattern", "model_*.pt").stderr
    done = door("--ckpt_dir", tmp_path / "nowhere", "--dry-run")
    assert (done.returncode, done.stderr) == (
        3, f"resume_helper.py: '{tmp_path / 'nowhere'}' cannot be read: No such file or directory\n",
    )  # fmt: skip


def test_names_with_control_characters_do_not_reach_the_terminal_and_run_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a b'c\n$(touch canary)"
    save_steps(folder, 10)
    (folder / "hrm_arc_step_\x1b[2J$(touch canary).pt").touch()
    done = door("--ckpt_dir", folder, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == f"{folder / 'hrm_arc_step_10.pt'}\n"
    assert "\x1b" not in done.stderr and r"\x1b[2J" in done.stderr
    assert not list(tmp_path.rglob("canary"))


@pytest.mark.parametrize(
    "arguments", [[], ["--dry-run"], ["--ckpt_dir", "x"], ["--ckpt_dir", "x", "--dry-run", "--stpe", "1"]]
)
def test_a_usage_error_has_exit_code_2(arguments: list[str]) -> None:
    done = door(*arguments)
    assert done.returncode == 2 and "usage: resume_helper.py" in done.stderr and "Traceback" not in done.stderr


def test_help_names_every_option() -> None:
    text = door("--help").stdout
    assert all(option in text for option in ("--ckpt_dir", "--dry-run", "--step", "--best", "--pattern", "--json"))


def test_the_door_puts_its_folder_last_so_that_a_labs_own_modules_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "resolver.py").write_text("mine = True\n")
    program = "import resume_helper, sys; print(sys.path[-1] == sys.argv[1], sys.path.count(sys.argv[1]))"
    env = {**os.environ, "PYTHONPATH": str(DOOR.parent)}
    done = subprocess.run([sys.executable, "-c", program, str(DOOR.parent)], capture_output=True, text=True, env=env)
    assert done.stdout == "True 1\n", done.stderr


def test_importing_the_door_imports_no_torch_and_offers_the_protocols_names() -> None:
    program = (
        "import sys; sys.path.append(sys.argv[1]); sys.modules['torch'] = None\n"
        "import resume_helper; print(sorted(resume_helper.__all__))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program, str(DOOR.parent)], capture_output=True, text=True)
    assert done.stdout.strip() == str(sorted((
        "ResumeBundle", "StepSampler", "SwaCycle", "SwaTail", "accumulation", "average_of", "check_resume",
        "heartbeat_writer", "journal_event", "load_resume_bundle", "make_run_id", "make_status_payload",
        "save_checkpoint", "save_sharded", "seal_checkpoint", "used_lr",
    ))), done.stderr  # fmt: skip


def test_under_the_launcher_the_run_has_the_id_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another id was made, of the minute of the call: it named no folder."""
    import resume_helper

    monkeypatch.setenv("RESUMEKIT_RUN_ID", "EXP-03_base_resume@40_20261122-1735-2")
    for arguments in (("EXP-03", None, None), ("EXP-03", "EXP-03_base_20261122-0900", 40), ("EXP-03", "x", None)):
        assert resume_helper.make_run_id(*arguments) == "EXP-03_base_resume@40_20261122-1735-2"
    monkeypatch.delenv("RESUMEKIT_RUN_ID")
    made = resume_helper.make_run_id("EXP-03", "EXP-03_base_20261122-0900", 40)
    assert re.fullmatch("EXP-03_base_resume@40_[0-9]{8}-[0-9]{4}", made)


def test_the_snippet_of_the_protocol_works_as_written(tmp_path: Path) -> None:
    """Protocol §13, in a trainer of its own, started by hand."""
    program = f"""
import sys; sys.path.append({str(DOOR.parent)!r})
import argparse, torch
from resume_helper import *
args = argparse.Namespace(exp_name="EXP-03", resume=sys.argv[1], status_json_path=sys.argv[2])
model = torch.nn.Linear(2, 1); optimizer = torch.optim.AdamW(model.parameters()); scaler = None
scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
run_id = make_run_id(args.exp_name, parent_run_id=None, resume_step=None)
def current_payload_dict(): return make_status_payload(run_id=run_id, global_step=bundle.global_step)
bundle = load_resume_bundle(model, optimizer, scheduler, scaler, ckpt_path=args.resume, allow_partial_weights=False,
                            optimizer_policy="load", schedule_policy="load", log_fn=print)
write_status = heartbeat_writer(args.status_json_path, lambda: current_payload_dict(), 60)
save_checkpoint(sys.argv[3], bundle.global_step + 1, model=model, optimizer=optimizer, scheduler=scheduler)
write_status(); write_status.close()
"""
    status, folder = tmp_path / "status.json", tmp_path / "checkpoints"
    twice = f"import sys\nfor sys.argv[1] in sys.argv[1], sys.argv[4]: exec({program!r})"
    command = [sys.executable, "-c", twice, "", str(status), str(folder), str(folder / "hrm_arc_step_1.pt")]
    env = {name: value for name, value in os.environ.items() if not name.startswith("RESUMEKIT")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.glob("*.json")} == {f"hrm_arc_step_{step}.pt.json" for step in (1, 2)}
    assert "\nLoaded checkpoint @step=1, epoch=0, best_val=inf, lr=" in done.stdout
    value = json.loads(status.read_text())
    assert value["global_step"] == 1 and re.fullmatch(r"EXP-03_[0-9]{8}-[0-9]{4}", value["run_id"])
