"""A trainer that prints and of which no step is read: said once, with the key that changes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resumekit.base.paths import RunPaths
from resumekit.base.terms import UNSEEN
from resumekit.process import sidecar_warnings
from resumekit.process.sidecar import Sidecar
from resumekit.process.sidecar_warnings import UNSEEN_MINUTES, UnseenSteps
from resumekit.run import listing
from resumekit.run.journal_fold import fold
from resumekit.run.run_folder import Run
from support.runs import events

AUTO: dict[str, Any] = {"loads_with_kit": False, "log_format": "auto"}
BAR = " 12%|#2        | 25/200 [00:01<00:09, 18.2it/s, loss=2.1]"


class Followed:
    """A run whose output grows, and what its sidecar warns of."""

    def __init__(self, folder: Path, trainer: dict[str, Any], printed: str = "epoch one, all is well") -> None:
        self.run = Run(RunPaths(folder), {"run_id": folder.name})
        self.run.config = {"trainer": {**AUTO, **trainer}}
        self.run.paths.logs.mkdir(parents=True, exist_ok=True)
        self.run.paths.output_log.write_text(f"{printed}\n")
        self.state: dict[str, Any] = fold({}, [])
        self.said: list[str] = []
        self._looker, self._offset = UnseenSteps(self.run), 0

    def minutes(self, count: int, *, prints: bool = True) -> list[str]:
        """Let some minutes pass with a look each, and return what was said in them."""
        said = []
        for _ in range(count):
            self._offset += 100 if prints else 0
            self.now = getattr(self, "now", 1000.0) + 60.0
            said.append(self._looker.look(self.now, self.state, self._offset, self._append))
        return [one for one in said if one]

    def _append(self, event: str, **fields: Any) -> bool:
        self.state = fold(self.state, [{"event": event, "mono_s": self.now, **fields}])
        return True


def test_it_is_said_once_and_only_after_minutes_in_which_something_was_printed(tmp_path: Path) -> None:
    followed = Followed(tmp_path, {})
    assert followed.minutes(1) == [] and followed.minutes(60, prints=False) == []
    assert followed.minutes(UNSEEN_MINUTES - 2) == []
    (message,) = followed.minutes(30)
    assert followed.state["last_warning"] == message and followed.state["warned_of"] == [UNSEEN]
    successor = Followed(tmp_path, {})
    successor.state = followed.state
    assert successor.minutes(30) == []


@pytest.mark.parametrize(
    ("trainer", "printed", "says"),
    [
        ({}, "all is well", "trainer.log_format (hf, lightning, accelerate, nanogpt, torchtitan, megatron) or"),
        ({}, BAR, "its bar is one of tqdm, which trainer.log_format: accelerate reads"),
        ({"log_patterns": {"step": "^step ([0-9]+)"}}, "x", "trainer.log_patterns.step '^step ([0-9]+)' fits none of"),
        ({"log_format": "hf"}, BAR, "which is read as one of 'hf': trainer.log_format or trainer.log_patterns says"),
        ({"metrics_file": "{logs_dir}/m.csv"}, BAR, "nor in trainer.metrics_file '{logs_dir}/m.csv'"),
    ],
)
def test_the_key_that_would_show_the_steps_is_named(
    trainer: dict[str, Any], printed: str, says: str, tmp_path: Path
) -> None:
    (message,) = Followed(tmp_path, trainer, printed).minutes(UNSEEN_MINUTES)
    assert message.startswith(f"no step was found in its output in {UNSEEN_MINUTES} minutes") and says in message


def test_a_format_that_was_found_and_tells_no_step_is_named(tmp_path: Path) -> None:
    followed = Followed(tmp_path, {})
    followed.state = fold(followed.state, [{"event": "log_format", "format": "lightning", "mono_s": 1.0}])
    (message,) = followed.minutes(UNSEEN_MINUTES)
    assert "read as one of 'lightning'" in message and "trainer.metrics_file names a file" in message


@pytest.mark.parametrize("trainer", [{"loads_with_kit": True}, {"log_format": "none"}])
def test_a_trainer_that_tells_its_steps_and_a_log_that_is_not_to_be_read_are_let_be(
    trainer: dict[str, Any], tmp_path: Path
) -> None:
    assert Followed(tmp_path, trainer).minutes(3 * UNSEEN_MINUTES) == []


def test_a_step_that_was_seen_ends_it(tmp_path: Path) -> None:
    followed = Followed(tmp_path, {})
    followed.state = fold(followed.state, [{"event": "step", "step": 3, "mono_s": 1.0, "source": "log"}])
    assert followed.minutes(3 * UNSEEN_MINUTES) == []


def test_what_cannot_be_journaled_is_said_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    followed = Followed(tmp_path, {})
    monkeypatch.setattr(followed, "_append", lambda *_, **__: False)
    assert followed.minutes(2 * UNSEEN_MINUTES) == []
    monkeypatch.undo()
    assert len(followed.minutes(5)) == 1


def test_the_list_of_runs_shows_it_while_no_step_is_known(tmp_path: Path) -> None:
    run = Followed(tmp_path, {}).run
    seen = dict.fromkeys(listing.status.observe(run, {}, listing.status.View("alive", "alive", None, 0.0)))
    seen |= {"state": "running", "last_warning": "no step was found", "suspended": [], "liveness": "alive"}
    assert "no step was found" in listing.cells(run, seen)[2]
    seen["last_progress_at"] = "2026-11-30T00:00:00Z"
    assert "no step was found" not in listing.cells(run, seen)[2]


def test_the_sidecar_says_it_in_the_journal_and_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar_warnings, "UNSEEN_MINUTES", 1)
    run = Followed(tmp_path, {}).run
    run.paths.journal.write_text('\n{"event":"launched","mono_s":1.0}\n')
    one = Sidecar(run, has_echo=False)
    one._beat(has_ended=False)
    one._beat(has_ended=False)
    one._save(1.0)
    assert [event["kind"] for event in events(tmp_path, "warning")] == [UNSEEN]
    assert b"resumekit: no step was found in its output" in run.paths.train_log.read_bytes()
