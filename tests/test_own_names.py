"""A trainer with a name of its own for its weights: its business where it loads by itself, else it is told."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from support.commands import Kit
from support.places import TOY
from support.processes import wait_until
from support.runs import events

# The toy, with protocol §6's keys under other names.
TRAINER = f"""
import sys
sys.path.insert(0, {str(TOY.parent)!r})
import toy_trainer
names = {{"model_state_dict": "model", "optimizer_state_dict": "opt", "global_step": "global_step"}}
pickled = toy_trainer._pickled
def own(value, storages):
    if isinstance(value, dict) and "model_state_dict" in value:
        value = {{names[key]: part for key, part in value.items() if key in names}}
    return pickled(value, storages)
toy_trainer._pickled = own
sys.exit(toy_trainer.main())
"""
SENTENCE = (
    "'hrm_arc_step_10.pt' has no 'model_state_dict' (it has: model, opt, global_step): "
    "the trainer must save its weights under that name"
)


def configure(kit: Kit, *more: str, **trainer: Any) -> None:
    script = kit.folder / "train.py"
    script.write_text(TRAINER)
    saves = ["--dir", "{checkpoints_dir}", "--steps", "{training.max_steps}", "--save-every", "5", *more]
    kit.config(
        training={"max_steps": 60}, status={"interval_s": 1}, checkpoint={"keep_last": None},
        trainer={"command": ["{python}", str(script).replace("{", "{{").replace("}", "}}"), *saves], **trainer},
    )  # fmt: skip


def test_such_a_trainer_is_resumed_from_its_own_file(kit: Kit):
    configure(kit)
    kit("run", "T-1", code=137, env={"TOY_ARGS": "--at 12 kill"})
    plan = json.loads(kit("resume", "T-1", "--dry-run", "--json").stdout)
    assert (plan["step"], plan["verdict"], plan["refusals"]) == (10, "ready", [])
    assert plan["components"]["weights"]["action"] == "load", "'model' is a name that is known"
    assert plan["components"]["optimizer"]["action"] == "absent", "'opt' is not"
    assert plan["components"]["optimizer"]["why"].endswith("what the trainer saves it loads by itself")
    assert "it loads by itself" in " ".join(kit("resume", "T-1", "--dry-run").stdout.split())
    kit("resume", "T-1")
    run = kit.run_dirs()[-1]
    assert events(run, "step")[0]["step"] == 11 and kit.status(run)["state"] == "finished"


def test_such_a_trainer_is_taken_up_by_its_launcher(kit: Kit):
    configure(kit, "--delay", "0.03")
    launcher = kit.popen("run", "T-1", "--set", "recover.enabled=true")
    first = kit.started()
    wait_until(lambda: any(event["step"] >= 12 for event in events(first, "step")), "step 12")
    os.kill(events(first, "launched")[0]["trainer"]["pid"], signal.SIGKILL)
    launcher.communicate(timeout=60)
    second = kit.run_dirs()[-1]
    assert launcher.returncode == 0 and json.loads((second / "run.json").read_text())["parent_step"] >= 10
    assert events(first, "recovery")[0]["outcome"] == "resumed"


def test_where_the_kit_is_to_load_it_is_said_under_which_name(kit: Kit):
    configure(kit)
    kit("run", "T-1", code=137, env={"TOY_ARGS": "--at 12 kill"})
    refused = kit("resume", "T-1", "--set", "trainer.loads_with_kit=true", code=6).stderr
    assert SENTENCE in refused
    configure(kit, loads_with_kit=True)
    kit("run", "T-2", code=137, env={"TOY_ARGS": "--at 12 kill"})
    none = kit("resume", "T-2", code=3).stderr
    assert SENTENCE.replace("' has no", "': it has no") in none


def test_what_such_a_trainer_is_told_to_start_anew_still_needs_consent(kit: Kit):
    """It cannot be seen whether it does, whatever the names in its file."""
    configure(kit)
    kit("run", "T-1", code=137, env={"TOY_ARGS": "--at 12 kill"})
    said = kit("resume", "T-1", "--set", "resume.optimizer=reset", code=None).stderr
    assert "this trainer loads by itself: whether it does 'optimizer: reset' cannot be seen" in said
