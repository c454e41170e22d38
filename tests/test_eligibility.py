"""Why a run is not taken up by itself: another version is a reason, an interpreter that does not answer is none."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from resumekit.base.errors import FAILED
from resumekit.base.paths import RunPaths
from resumekit.base.terms import DIED
from resumekit.run.run_folder import Run
from resumekit.watch import eligibility, recovering
from resumekit.watch.incident import Incident
from support.commands import Kit
from support.processes import wait_until
from support.recoveries import configure
from support.runs import events
from support.watched_runs import kill_all_of

THEN = {"python": "3.11.2", "torch": "2.13.0", "cuda": "12.6", "driver": "560.1"}
SILENT = dict.fromkeys(("python", "torch", "cuda"))


def judged(then: dict[str, Any], **now: Any) -> str | None:
    return eligibility.in_the_versions(Run(RunPaths(Path("T-1")), {"versions": then}), {**THEN, **now})


def test_another_version_is_a_reason() -> None:
    assert judged(THEN) is None
    assert judged(THEN, torch="2.14.0") == "the machine has changed since the run began: torch 2.13.0 -> 2.14.0"
    # A build without CUDA: what is known speaks, what is not does not hide it.
    assert judged(THEN, torch="2.13.0+cpu", cuda=None).endswith("began: torch 2.13.0 -> 2.13.0+cpu")


@pytest.mark.parametrize("now", [SILENT, {"torch": None, "cuda": None}, {"driver": None}], ids=str)
def test_what_cannot_be_seen_is_tried_again(now: dict[str, None]) -> None:
    with pytest.raises(
        eligibility.VersionsUnknown, match="it cannot be seen now whether the trainer would still have"
    ) as caught:
        judged(THEN, **now)
    assert caught.value.exit_code == FAILED, "one that passes by itself, and calls no user"


def test_what_could_not_be_seen_at_the_start_is_not_compared() -> None:
    assert judged({**THEN, **SILENT}) is None
    assert judged({**THEN, **SILENT}, driver="570.2").endswith("driver 560.1 -> 570.2")
    assert judged({**THEN, "torch": None, "cuda": None}).endswith("torch None -> 2.13.0, cuda None -> 12.6")


def journaled(*told: dict[str, Any]) -> str:
    return "".join(json.dumps({"run_id": "T-1", "mono_s": 1.0, **event}) + "\n" for event in told)


@pytest.mark.parametrize(
    ("step", "told", "is_done"),
    [
        (3000, {"source": "log"}, False),  # the bar of an evaluation: 3000/5000
        (1000, {"source": "log"}, False),  # the same, or a step that was not saved
        (1000, {"source": "log", "saved": 900}, False),
        (3000, {"source": "log", "saved": 900}, False),
        (3000, {"source": "log", "saved": 3000}, False),
        (1000, {"source": "log", "saved": 1000}, True),
        (1000, {}, True),  # the trainer's own word
        (1001, {}, True),
        (1000, {"saving": True}, False),  # killed in the save of the last step
        (1000, {"saving": True, "saved": 1000}, True),
        (999, {"saved": 1000}, False),
    ],
)
def test_a_step_of_the_log_proves_no_end_without_a_checkpoint_as_far(
    tmp_path: Path, step: int, told: dict[str, Any], is_done: bool
) -> None:
    run = Run(RunPaths(tmp_path / "T-1"), {"run_id": "T-1"})
    run.paths.logs.mkdir(parents=True)
    run.paths.resolved_json.write_text('{"training": {"max_steps": 1000}}')
    saved = [{"event": "checkpoint", "step": told["saved"], "writer": "sidecar"}] if "saved" in told else []
    source = {"source": told["source"]} if "source" in told else {}
    saved = [{"event": "saving", "step": step}, *saved] if "saving" in told else saved
    run.paths.journal.write_text(journaled({"event": "step", "step": step, **source}, *saved))
    said = eligibility._done(run, Incident(DIED, "it died", step=step))
    assert said == ("it had done its last step; it died" if is_done else None)


@pytest.mark.long
def test_a_run_whose_interpreter_does_not_answer_waits_and_is_taken_up_later(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, broken = kit.folder / "bin" / "python", kit.folder / "broken"
    python.parent.mkdir()
    python.write_text(
        '#!/bin/sh\n[ "$1" = -c ] && [ -e "${0%/bin/python}/broken" ] && exit 1\nexec ' + sys.executable + ' "$@"\n'
    )
    python.chmod(0o755)
    configure(kit, trainer={"python": str(python)}, training={"max_steps": 9999})
    kit("run", "T-1", "--detach")
    run = kit.started()
    wait_until(lambda: list(run.glob("checkpoints/*.pt.json")), "a checkpoint that is attested")
    kill_all_of(run)
    broken.touch()
    monkeypatch.setenv("RESUMEKIT_TEST_MARK", kit.mark)
    for _ in range(2):
        outcome = recovering.recover(run, os.getpid())
        assert outcome.ready is None and outcome.wait_s == recovering.TRY_AGAIN_S
    (waits,) = [event for event in events(run, "warning") if event["kind"] == "recovery_waits"]
    assert "whether the trainer would still have python 3" in waits["message"]
    assert not events(run, "recovery")
    broken.unlink()
    assert recovering.recover(run, os.getpid()).ready is not None
