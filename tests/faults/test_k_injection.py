"""A command in any text or path that a person or a file can give is never run (K1): no canary, for every payload.

A sample of the payloads is in `make test`, each in all of its fields at once; `make faults` takes them all.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resumekit.base.errors import KitError
from resumekit.config import config, schema
from resumekit.run.run_table import RunTable
from resumekit.watch import inspection
from support.commands import Kit, said_by
from support.hostile_names import COMMANDS, PAYLOADS, canaries, plan
from support.places import LIVE
from support.runs import events

KIT = schema.load()
# A place or a program: a run that starts needs a real one. They are taken one by one, in a dry run.
PLACES = ("trainer.cwd", "trainer.python", "data.path", "paths.root", "paths.runs", "trainer.command",
          "trainer.describe_args", "trainer.checkpoint_in", "checkpoint.pattern", "notify.command")  # fmt: skip
# These hold a list of texts; a text that is no number, word of a list, or name of a variable is refused by the schema.
LISTS = ("experiment.tags", "trainer.extra_args", "trainer.resume_args", "trainer.env", "abort.oom_set",
         "trainer.command", "trainer.describe_args", "notify.command", "recover.cut_lr_on")  # fmt: skip
# What a run records of its environment and needs nothing of.
VARIABLES = ("SLURM_JOB_ID", "SLURM_JOB_PARTITION", "VIRTUAL_ENV", "CONDA_PREFIX", "NCCL_DEBUG", "CUDA_VISIBLE_DEVICES",
             "RANK", "TZ")  # fmt: skip
SAMPLE = COMMANDS[::24]
EACH = [
    pytest.param(payload, marks=[] if payload in SAMPLE else [pytest.mark.long], id=str(number))
    for number, payload in enumerate(COMMANDS)
]


def quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def test_the_corpus_is_large_and_says_nothing_twice() -> None:
    assert len(set(PAYLOADS)) == len(PAYLOADS) >= 100 and len(COMMANDS) >= 70


def test_the_canary_sings_where_a_payload_is_run(kit: Kit) -> None:
    """The alarm rings: given to a shell, these payloads do make the file."""
    for payload in COMMANDS[:3]:
        subprocess.run(["sh", "-c", f"echo {payload}"], cwd=kit.folder, capture_output=True, check=False)
        assert canaries(kit) != [], payload
        (kit.folder / "pwned").unlink()


def text_keys() -> list[str]:
    """Every key of the config that takes any text, or a list of texts."""
    kinds = {key: node.get("type", "string") for key, node in KIT.leaves.items() if not node.get("enum")}
    return [key for key, kind in kinds.items() if {"string", "array"} & ({kind} if isinstance(kind, str) else {*kind})]


def accepted(resolved: dict[str, Any], payload: str) -> list[str]:
    """The settings by which a payload comes into every key that takes it and is no place."""
    taken = []
    for key in text_keys():
        text = f"{key[6]} {payload}" if key in ("paths.checkpoints", "paths.status") else payload  # three places
        setting = f"{key}={quoted([text] if key in LISTS else text)}"
        with contextlib.suppress(KitError):
            config.override(resolved, [setting], KIT)
            if key not in PLACES:
                taken.append(setting)
    return taken


@pytest.mark.fault("K1", by="settings, command: every value is one argument, no shell sees it")
@pytest.mark.parametrize("payload", EACH)
def test_a_payload_in_every_key_of_the_config_and_in_the_environment_starts_a_run_and_is_not_run(
    kit: Kit, payload: str
) -> None:
    entry = {"name": "toy", "notes": payload, "lineage": payload, "tags": [payload]}
    kit.config(trainer={"command": ["sh", "-c", 'printf "<%s>" "$@"', "-"]}, experiments={"T-1": entry})
    file = config.load_config(kit.config_file)
    settings = accepted(config.resolve(file.document, "T-1", schema=file.schema), payload)
    assert len(settings) >= 12, settings
    for key in PLACES:
        code, said = plan(kit, "--experiment=T-1", f"--set={key}={quoted([payload] if key in LISTS else payload)}")
        assert "Traceback" not in said and (code in (0, 2, 4) or code == 127), (key, code, said)
    words = [word for setting in settings for word in ("--set", setting)]
    done = kit("run", "T-1", *words, code=None, env=dict.fromkeys(VARIABLES, payload))
    assert "Traceback" not in done.stderr and done.returncode == 0, (payload, done.stderr)
    assert canaries(kit) == [] and len(kit.run_dirs()) == 1
    assert f"<{payload}>" in done.stdout or not payload.isprintable()
    for command in (["runs"], ["runs", "--json"], ["resume", "T-1", "--dry-run"]):
        assert "Traceback" not in kit(*command, code=None).stderr
    assert canaries(kit) == []


def poisoned(value: Any, payload: str, kept: tuple[str, ...], name: str = "") -> Any:
    """Return a value with the payload in place of every text and number, but for the fields `kept`."""
    if name in kept or isinstance(value, bool) or value is None:
        return value
    if isinstance(value, dict):
        return {key: poisoned(item, payload, kept, key) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item, payload, kept, name) for item in value]
    return payload


# Without these a file is passed over as a whole, and its other fields are not reached.
KEPT = {
    "run.json": ("run_id", "experiment"), "resume_plan.json": ("version", "step", "action"),
    ".sidecar.json": ("run_id",), "resolved_config.json": ("pattern", "best_pattern"), "exit.json": ("code",),
    "claims/continued.json": (), "quarantine.json": (), "status.json": (), "heartbeat.json": (),
    "checkpoint_proof.json": ("verdict",),
}  # fmt: skip


def poison(run: Path, payload: str, only: str | None = None) -> None:
    """Put the payload into every field of the files of a run folder, or of one of them."""
    for name, kept in KEPT.items():
        path = run / name
        if path.is_file() and only in (None, name):
            path.write_text(json.dumps(poisoned(json.loads(path.read_text()), payload, kept)))
    if only in (None, "journal.jsonl"):
        lines = [poisoned(event, payload, ("event", "run_id")) for event in events(run)]
        (run / "journal.jsonl").write_text("".join(f"\n{json.dumps(line)}\n" for line in lines))


@pytest.mark.fault("K1", by="runs, status: typed values, NUL-separated answers")
@pytest.mark.fault("F8", by="values: a number is a number or nothing")
@pytest.mark.parametrize("payload", EACH)
def test_a_payload_in_every_field_of_a_run_folder_is_shown_or_refused_and_not_run(
    kit: Kit, payload: str, killed_run: Path
) -> None:
    run = killed_run
    kit("resume", "T-1", code=137, env={"TOY_ARGS": "--at 14 kill"})
    child = kit.run_dirs()[-1]
    (child / "heartbeat.json").write_text(json.dumps({"global_step": 1, "optimizer": "x", "lr": 0.1}))
    (child / "quarantine.json").write_text(json.dumps([{"file": "x.pt", "is": [1, 2, 3], "reason": "y", "at": "z"}]))
    (kit.runs / LIVE / child.name).touch()
    for one in (run, child):
        poison(one, payload)
    commands = (
        ["runs"], ["runs", "--json"], ["abort-watch", "--observe"], ["abort-watch"], ["run", "T-1", "--dry-run"],
        ["resume", child.name, "--dry-run"], ["resume", "T-1", "--step", "5", "--from", run.name],
    )  # fmt: skip
    for command in commands:
        done = kit(*command, code=None)
        assert "Traceback" not in done.stderr, (command, done.stderr)
        assert all(line.isprintable() for line in (done.stdout + done.stderr).splitlines()), command
        assert canaries(kit) == [], command
    assert RunTable(kit.runs).get(child.name) is not None


@pytest.mark.fault("K1", by="runs, status: typed values, NUL-separated answers")
@pytest.mark.parametrize("name", [*KEPT, "journal.jsonl"])
def test_payloads_in_one_file_of_a_run_alone_are_not_run(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, name: str, killed_run: Path
) -> None:
    """The others are whole, so that more of what reads it is reached than where everything is foreign."""
    kit("resume", "T-1", code=137, env={"TOY_ARGS": "--at 14 kill"})
    run = kit.run_dirs()[-1]
    (run / "heartbeat.json").write_text(json.dumps({"global_step": 1, "optimizer": "x", "lr": 0.1}))
    (run / "quarantine.json").write_text(json.dumps([{"file": "x.pt", "is": [1, 2, 3], "reason": "y", "at": "z"}]))
    monkeypatch.setattr(inspection, "SECOND_LOOK_S", 0.0)
    places = (f"--config={kit.config_file}", f"--runs={kit.runs}")
    for payload in SAMPLE[:3]:
        poison(run, payload, only=name)
        for words in (["runs", "--json"], ["watch", "--observe"], ["resume", "--experiment=T-1", "--dry-run"]):
            assert "Traceback" not in said_by([*words, *places]), words
        assert canaries(kit) == [], payload
    assert "Traceback" not in kit("resume", "T-1", code=None).stderr and canaries(kit) == []


@pytest.mark.fault("K1", by="train_log, log_patterns: lines are bytes")
@pytest.mark.fault("F8", by="log_patterns: a number is a number or nothing")
def test_every_payload_in_the_trainer_s_log_and_its_own_status_is_text(kit: Kit) -> None:
    """One trainer says all of them: as steps, as losses, as lines, as fields of heartbeat.json; then it dies."""
    script = kit.folder / "says.py"
    script.write_text(
        "import json, os, sys, time\n"
        "for number, text in enumerate(json.load(open(sys.argv[1])), 1):\n"
        "    print(f'step {number} loss {text}\\nstep {text} loss 1\\n{text}', flush=True)\n"
        "    with open(sys.argv[2] + '.new', 'w') as file:\n"
        "        json.dump(dict.fromkeys(['global_step', 'lr', 'optimizer', 'phase', text], text), file)\n"
        "    os.replace(sys.argv[2] + '.new', sys.argv[2])\n"
        "time.sleep(1.5)\n"
        "sys.exit(text)\n"
    )
    said = kit.folder / "said.json"
    said.write_text(json.dumps(PAYLOADS))
    kit.config(trainer={"command": ["{python}", str(script).replace("{", "{{").replace("}", "}}"),
                                    str(said).replace("{", "{{").replace("}", "}}"), "{heartbeat_json}"]},
               status={"interval_s": 1}, recover={"enabled": False})  # fmt: skip
    kit("run", "T-1", code=1)
    [run] = kit.run_dirs()
    steps = [event["step"] for event in events(run, "step")]
    assert steps == sorted(steps) and len(steps) >= len(PAYLOADS) // 2 and set(map(type, steps)) == {int}
    log = (run / "logs/train.log").read_text()
    assert "\x1b" not in log and f"$({COMMANDS[0][2:-1]})" in log
    for command in (["runs"], ["runs", "--json"], ["abort-watch", "--observe"]):
        kit(*command, code=None)
    assert canaries(kit) == []


IN_A_UTS_NAMESPACE = """
import os, socket, sys
name, cwd, *argv = sys.argv[1:]
socket.sethostname(os.fsencode(name))
os.chdir(cwd)
os.execvp(argv[0], argv)
"""


@pytest.mark.fault("K1", by="processes: the host's name is a text in JSON")
@pytest.mark.parametrize("payload", [one for one in EACH if len(one.values[0]) <= 64])
def test_a_host_may_be_called_anything(kit: Kit, payload: str) -> None:
    if subprocess.run(["unshare", "-ru", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    head = ["unshare", "-ru", sys.executable, "-c", IN_A_UTS_NAMESPACE, payload, str(kit.folder)]
    done = subprocess.run(
        [*head, *kit.argv("run", "T-1")], env=kit.env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    [run] = kit.run_dirs()
    assert json.loads((run / "run.json").read_text())["host"] == payload
    for command in (["runs"], ["abort-watch", "--observe"]):
        seen = kit(*command, code=None)
        assert all(line.isprintable() for line in (seen.stdout + seen.stderr).splitlines())
    assert canaries(kit) == [] and os.listdir(kit.runs / LIVE) in ([], [".watch.lock"])
