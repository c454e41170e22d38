"""Whatever a name, value or folder says, it is accepted safely or refused by a stated rule, and nothing runs it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from resumekit.run.run_names import parse_run_name
from support.commands import Kit
from support.hostile_names import PAYLOADS, canaries, plan
from support.lab_repo import git
from support.places import ROOT
from support.toy_trainer import write_checkpoint

# One of each kind in the normal run; `make campaign` takes all.
SAMPLE = [p for i, p in enumerate(PAYLOADS) if i % 7 == 0] + ["\x1b[31mred\x1b[0m", "../../etc/passwd", "-rf"]


@pytest.mark.fault("H9", by="run_names: one pattern for names")
@pytest.mark.fault("H15", by="terminal: escape bytes are shown as text")
@pytest.mark.parametrize("option", ["experiment", "name"])
def test_every_hostile_name_of_a_run_is_refused_in_one_printable_line_or_is_harmless(kit: Kit, option: str):
    refused = 0
    for payload in PAYLOADS:
        words = [f"--{option}={payload}"] + ([] if option == "experiment" else ["--experiment=T-1"])
        code, said = plan(kit, *words)
        assert all(line.isprintable() for line in said.splitlines()) and "Traceback" not in said, payload
        if code == 0:
            assert re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]*", payload), payload
        else:
            assert code == 2 and said.count("\n") == 1, (payload, said)
            refused += 1
    assert refused >= len(PAYLOADS) - 3 and len(PAYLOADS) >= 60


def start_with(kit: Kit, payload: str) -> None:
    """Start a run with one payload in every field that takes any text, then look at what came of it."""
    usable = payload if payload.strip("./") and "/" not in payload and len(payload.encode()) < 200 else "plain"
    folder = kit.folder / "lab"
    data, own = folder / f"data {usable}", folder / f"config {usable}"
    data.mkdir(parents=True)
    own.mkdir()
    git(folder, "init", "-q")
    with contextlib.suppress(AssertionError):  # git has rules of its own for branches
        git(folder, "checkout", "-q", "-b", payload.replace(" ", "\u00a0"))
    kit.config_file, kit.runs = own / "config.yaml", folder / f"runs {usable}"
    args = ["T-1", f"--notes={payload}", "--set", f"data.name={json.dumps(payload, ensure_ascii=False)}", "--", payload]
    kit.config("--at", "1", "raw=" + b"ok".hex(), paths={"root": ".."}, data={"path": f"data {usable}"},
               trainer={"command": ["sh", "-c", 'printf "<%s>" "$@"', "-"]})  # fmt: skip
    # JSON's surrogate pairs are no YAML.
    written = json.loads(kit.config_file.read_text())
    kit.config_file.write_text(json.dumps(written, ensure_ascii=False), encoding="utf-8")
    done = kit("run", *args, code=None, cwd=folder)
    assert "Traceback" not in done.stderr and canaries(kit) == [], payload
    assert done.returncode == 0, (payload, done.stderr)
    assert f"<{payload}>" in done.stdout.replace("\r", "\n") or not payload.isprintable()
    [run] = kit.run_dirs()
    record = json.loads((run / "run.json").read_text())
    assert record["notes"] == payload and record["argv"][-1] == payload, "kept as it was given"
    assert json.loads((run / "resolved_config.json").read_text())["data"]["name"] == payload
    assert parse_run_name(run.name) and run.stat().st_mode & 0o002 == 0
    assert os.readlink(run / "dataset") == str(data)
    for command in (["runs"], ["resume", "T-1", "--dry-run"]):
        said = kit(*command, code=None, cwd=folder)
        assert all(line.isprintable() for line in (said.stdout + said.stderr).splitlines()), command
    pasted = subprocess.run(["bash", str(run / "command.sh")], env=kit.env, capture_output=True, cwd=folder)
    assert pasted.stdout.decode() == f"<{payload}>" and canaries(kit) == []


@pytest.mark.fault("H9", by="launcher.sh: NUL-separated fields, nothing evaluated")
@pytest.mark.fault("K1", by="launcher.sh: NUL-separated fields, nothing evaluated")
@pytest.mark.parametrize("payload", SAMPLE, ids=range(len(SAMPLE)))
def test_values_and_folders_are_carried_as_they_are_and_never_run(kit: Kit, payload: str):
    start_with(kit, payload)


@pytest.mark.campaign
@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_all_values_and_folders_are_carried_as_they_are_and_never_run(kit: Kit, payload: str):
    start_with(kit, payload)


def through_make(kit: Kit, payload: str) -> None:
    """Give make one payload in every word; each is refused or carried, and neither make nor a shell runs it."""
    words = [f"CONFIG={kit.config_file}", f"RUNS={kit.runs}", "DRY_RUN=1"]
    for word in ("EXP", "NAME", "SET", "NOTES", "STEP", "FROM", "ARGS", "CONFIG", "RUNS"):
        target = "resume" if word in ("STEP", "FROM") else "run"
        given = [w for w in ["EXP=T-1", *words] if not w.startswith(f"{word}=")]
        argv = ["make", "-f", str(ROOT / "resumekit.mk"), target, *given, f"{word}={payload}"]
        done = subprocess.run(argv, env=kit.env, capture_output=True, text=True, cwd=kit.folder, timeout=60)
        assert canaries(kit) == [], (word, payload)
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr, (word, payload, done.stderr)


MAKE_SAMPLE = ["$(shell touch pwned)", "$(eval x:=$(shell touch pwned))", "`touch pwned`", "' ; touch pwned ; '"]


@pytest.mark.fault("K1", by="resumekit.mk: values go through the environment")
@pytest.mark.parametrize("payload", MAKE_SAMPLE, ids=range(4))
def test_make_carries_words_as_they_are_typed_and_never_runs_them(kit: Kit, payload: str):
    through_make(kit, payload)


@pytest.mark.campaign
@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_make_carries_all_words_as_they_are_typed_and_never_runs_them(kit: Kit, payload: str):
    through_make(kit, payload)


@pytest.mark.parametrize("value, is_on", [("0", False), ("no", False), ("false", False), ("1", True), ("yes", True)])
def test_a_switch_of_make_is_off_where_it_says_so(tmp_path: Path, value: str, is_on: bool) -> None:
    command = tmp_path / "bin" / "run.sh"
    command.parent.mkdir()
    command.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    command.chmod(0o755)
    words = [f"RESUMEKIT_DIR={tmp_path}", "EXP=T-1", f"ACCEPT={value}", f"FRESH={value}"]
    argv = ["make", "-s", "-f", str(ROOT / "resumekit.mk"), "run", *words]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["T-1", *(["--fresh", "--accept"] if is_on else [])], done.stderr


def test_make_hands_a_base_on_to_run(tmp_path: Path) -> None:
    command = tmp_path / "bin" / "run.sh"
    command.parent.mkdir()
    command.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    command.chmod(0o755)
    argv = ["make", "-s", "-f", str(ROOT / "resumekit.mk"), "run", f"RESUMEKIT_DIR={tmp_path}", "INIT_FROM=a b.pt"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines() == ["--init-from=a b.pt"], done.stderr


def test_a_switch_of_make_takes_no_other_word(kit: Kit) -> None:
    argv = ["make", "-f", str(ROOT / "resumekit.mk"), "run", "EXP=T-1", "ACCEPT=maybe"]
    done = subprocess.run(argv, env=kit.env, capture_output=True, text=True, cwd=kit.folder)
    assert done.returncode == 2 and "make: ACCEPT is 'maybe': write ACCEPT=1, or leave it out" in done.stderr


def test_make_hands_on_each_word_and_leaves_no_trace_of_itself(kit: Kit):
    kit.config(trainer={"command": ["sh", "-c", 'echo "<$*>"; env | grep -c -e MAKE -e RESUMEKIT_MAKE', "-"]})
    words = [f"CONFIG={kit.config_file}", f"RUNS={kit.runs}", "EXP=T-1", "SET=training.max_steps=9 seed=3"]
    more = ["NOTES=it's $5 and $(HOME)", "NAME=calm", "ARGS=--x * --y", "FRESH=1"]
    argv = ["make", "-f", str(ROOT / "resumekit.mk"), "run", *words, *more]
    done = subprocess.run(argv, env=kit.env, capture_output=True, text=True, cwd=kit.folder, timeout=60)
    [run] = kit.run_dirs()
    record = json.loads((run / "run.json").read_text())
    assert record["notes"] == "it's $5 and $(HOME)" and record["name"] == "calm"
    assert record["settings"] == ["training.max_steps=9", "seed=3"]
    assert done.stdout == "<--x * --y>\n0\n", done.stdout + done.stderr


@pytest.mark.fault("C22", by="selection: full match")
@pytest.mark.fault("H9", by="listing: what is no run name is no run")
@pytest.mark.fault("K1", by="selection: names are data")
def test_files_in_a_checkpoint_folder_may_be_called_anything(kit: Kit):
    run = kit.runs / "T-1_theirs"
    write_checkpoint(run / "checkpoints/hrm_arc_step_5.pt", 5)
    for payload in PAYLOADS:
        if "/" not in payload and len(payload) < 200:
            (run / "checkpoints" / f"hrm_arc_step_{payload}.pt").write_text("")
            (kit.runs / payload).mkdir(exist_ok=True)
    for args in (["--dry-run"], ["--dry-run", "--json"]):
        done = kit("resume", "T-1", "--set", "max_steps=9", *args)
        assert all(line.isprintable() for line in (done.stdout + done.stderr).splitlines())
    listed = kit("runs").stdout
    assert all(line.isprintable() for line in listed.splitlines()) and canaries(kit) == []
    assert {line.split()[0] for line in listed.splitlines()} == {"T-1_theirs", "NaN", "null"}, "the others are no runs"


@pytest.mark.fault("H9", by="request: UTF-8 or refused")
def test_bytes_that_are_no_text_are_refused_or_carried(kit: Kit):
    raw = os.fsdecode(b"caf\xe9")
    (kit.folder / raw).mkdir()
    kit.runs = kit.folder / raw / "runs"
    kit("run", "T-1")
    assert len(kit.run_dirs()) == 1 and "T-1_toy" in kit("runs").stdout
    said = kit("run", "T-1", "--fresh", "--", raw, code=2).stderr
    assert "is not UTF-8, and could not be kept in the config" in said
    for option in (["--name", raw], ["--set", f"data.name={raw}"], ["--step", raw], ["--from", raw]):
        command = "resume" if option[0] in ("--step", "--from") else "run"
        done = kit(command, "T-1", *option, code=None)
        assert done.returncode in (2, 4) and done.stderr.splitlines()[0].isprintable()


MISTAKES = [
    (["run"], 2, "which experiment?"),
    (["run", ""], 2, "the experiment's name is empty"),
    (["run", "T-1", "T-2"], 2, "one experiment at a time"),
    (["run", "NOPE"], 2, "there is no experiment 'NOPE'"),
    (["run", "T-1_nope"], 2, "there is no run 'T-1_nope'"),
    (["run", "T-1", "--stpe", "4"], 2, "unknown option '--stpe'"),
    (["run", "T-1", "--step", "4"], 2, "unknown option '--step'"),
    (["run", "T-1", "--name="], 2, "at most 80 long (--name)"),
    (["runs", "T-1"], 2, "(run.sh starts one)"),
    (["run", "T-1", "--fresh", "--resume", "x"], 2, "--fresh and --resume exclude each other"),
    (["run", "T-1", "--resume", "gone.pt"], 2, "there is no checkpoint 'gone.pt'"),
    (["run", "T-1", "--resume="], 2, "there is no checkpoint ''"),
    (["run", "T-1", "--json"], 2, "--json goes with --dry-run"),
    (["run", "T-1", "--notes", "a", "--notes", "b"], 2, "--notes is given twice"),
    (["run", "T-1", "--set", "no_equals"], 2, "has no '='"),
    (["run", "T-1", "--set", "training.max_stepz=3"], 4, "training.max_steps"),
    (["run", "T-1", "--set", "training.max_steps=many"], 4, "must be a whole number"),
    (["run", "T-1", "--set", "trainer.cwd=gone"], 4, "trainer.cwd '"),
    (["run", "T-1", "--set", "trainer.command=[x, '{run_idd}']"], 4, "did you mean '{run_id}'"),
    (["run", "T-1", "--set", 'trainer.command=["a\\0b"]'], 4, "holds a character that is none"),
    (["run", "T-1", "--set", 'trainer.cwd="a\\0b"'], 4, ""),
    (["run", "T-1", "--set", "paths.logs=../../x"], 4, "inside the run folder"),
    (["run", "T-1", "--", "--api-key=0123456789abcdef"], 2, "'--api-key' (behind --) looks like a secret"),
    (["resume", "T-1"], 2, "there is no run of 'T-1'"),
    (["resume", "T-1", "--step", "ten"], 2, "--step takes a number of optimizer steps, not 'ten'"),
    (["resume", "T-1", "--step", "-1"], 2, "not '-1'"),
    (["resume", "T-1", "--step", "4", "--best"], 2, "exclude each other"),
    (["resume", "T-1", "--from", "T-1_gone"], 2, "there is no run 'T-1_gone'"),
    (["resume", "T-1", "--checkpoint", "gone"], 2, "there is no checkpoint 'gone'"),
    (["runs", "NOPE"], 2, "there is no run"),
    (["runs", "--fresh"], 2, "unknown option '--fresh'"),
]


@pytest.mark.fault("I10", by="schema: the nearest known key")
@pytest.mark.fault("I11", by="settings: form and type")
@pytest.mark.fault("H17", by="request: one sentence before anything is made")
@pytest.mark.parametrize("args, code, words", MISTAKES, ids=[" ".join(a).replace("\\", "") for a, _, _ in MISTAKES])
def test_a_mistake_is_one_sentence_with_its_exit_code_and_nothing_made(
    kit: Kit, args: list[str], code: int, words: str
):
    if args[0] == "runs":
        kit.runs.mkdir()
    said = kit(*args, code=code).stderr
    first, *rest = said.splitlines()
    assert first.startswith(f"{args[0]}.sh: ") and words in first and "Traceback" not in said
    assert not rest
    assert not list(kit.runs.glob("*"))


@pytest.mark.fault("H17", by="config: no such file")
def test_a_config_that_is_not_there_is_one_sentence(kit: Kit):
    kit.config_file = kit.folder / "gone.yaml"
    for command in ("run", "resume"):
        assert kit(command, "T-1", code=4).stderr.count("\n") == 1
