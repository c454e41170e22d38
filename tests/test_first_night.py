"""The first night of a lab that has written README's few lines of config: a NaN is seen, a lost mailer is no harm."""

from __future__ import annotations

import math
import re

import pytest

from resumekit.config import yaml_document
from support.commands import Kit
from support.places import ROOT
from support.processes import wait_until
from support.recoveries import configure, kill_trainer, over, reached
from support.runs import events


def patterns_of(page: str) -> dict[str, str]:
    """Return the `log_patterns` that a page shows."""
    (line,) = re.findall(r"^ *(log_patterns: .*)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    return yaml_document.load(line, page).data["log_patterns"]


@pytest.mark.fault("D1", by="log_patterns: a NaN in the number's place is one")
@pytest.mark.parametrize("page", ["README.md", "docs/adopting.md"])
def test_a_nan_is_seen_by_the_patterns_that_the_pages_show(page: str, kit: Kit) -> None:
    kit.config(
        "--nan-from", "8", "--delay", "0.03",
        trainer={"log_patterns": patterns_of(page)}, training={"max_steps": 9999}, status={"interval_s": 1},
    )  # fmt: skip
    kit("run", "T-1", code=8)
    (run,) = kit.run_dirs()
    (found,) = events(run, "abort")
    assert (found["cause"], found["first_bad_step"]) == ("nonfinite", 8)


@pytest.mark.fault("D1", by="log_reader: a NaN on a line without a step")
@pytest.mark.parametrize(("log", "first_bad"), [("hf_nan", 20), ("lightning_nan", 13)])
def test_a_nan_in_the_log_of_a_framework_is_seen_without_a_pattern(log: str, first_bad: int, kit: Kit) -> None:
    """What Trainer and Lightning print of a loss that is not finite, as it was recorded, until the run is stopped."""
    printer = ["{python}", str(ROOT / "tests" / "support" / "recorded_trainer.py")]
    kit.config(
        trainer={"command": [*printer, str(ROOT / "tests" / "recorded" / "logs" / f"{log}.log")], "log_patterns": {}},
        training={"max_steps": 30}, abort={"grace_s": 5}, status={"interval_s": 1},
    )  # fmt: skip
    kit("run", "T-1", code=8)
    (run,) = kit.run_dirs()
    (found,) = events(run, "abort")
    assert (found["cause"], found["first_bad_step"]) == ("nonfinite", first_bad)
    (said,) = events(run, "log_format")
    status = kit.status(run)
    assert said["format"] == status["log_format"] == log.partition("_")[0]
    assert said["message"] in (run / "logs" / "train.log").read_text()
    assert status["state"] == "aborted" and math.isfinite(status["loss"])
    if log == "hf_nan":
        assert (status["global_step"], status["lr"]) == (30, 3.333e-05)
        assert (status["best_metric"], status["best_step"]) == ("eval_loss", 10)


def test_a_notifier_that_has_gone_meanwhile_keeps_no_run_from_going_on(kit: Kit) -> None:
    mailer = kit.folder / "mailer"
    mailer.symlink_to("/bin/cat")
    configure(kit, notify={"command": [str(mailer)]})
    kit("run", "T-1", "--detach")
    first = kit.started()
    wait_until(lambda: reached(first, 17), "step 17")
    mailer.unlink()
    kill_trainer(first)
    over(kit, kit.started(2), "finished")
