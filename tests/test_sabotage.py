"""Faults planted from outside into real resumes, behind the plan: docs/acceptance.md names the check that sees each.

The launcher, the plan and the sidecar are as they are; the fault is in the trainer (tests/sabotage.py). `-s` prints
what saw what.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sabotage
from conftest import ROOT, assert_valid, events
from sabotage_stage import EXAMPLE, SMALL, Outcome, Stage

STEP = "20"
# Fault -> the checks that see it where nothing was changed, and where another batch size forbids a replay.
SEEN: dict[str, tuple[str, str]] = {
    "schedule begins at 0": ("scheduler lr phase", "scheduler lr phase"),
    "data offset wrong, and not told": ("loss", ""),
    "EMA weights as raw ones": ("weights loss", "weights"),
    "learning rate off by 20 %": ("lr", "lr"),
    "one tensor permuted": ("weights loss", "weights"),
    "one moment zeroed": ("optimizer", "optimizer"),
    "random numbers seeded after the load": ("rng loss", "rng"),
    "EMA replaced by the current weights": ("averages", "averages"),
    "optimizer state of another order": ("optimizer", "optimizer"),
    "states of parameters exchanged": ("optimizer", "optimizer"),
    "global step off by one": ("step data_position loss", "step"),
    "other data": ("data data_position", "data"),
    "schedule advanced twice a step": ("lr", "lr"),
    "rates of two optimizers exchanged": ("lr loss", "lr"),
    "rates of two groups exchanged": ("lr loss", "lr"),
    "a weight is NaN": ("dry_batch loss", "dry_batch loss"),
    "BatchNorm's buffers lost": ("buffers", "buffers"),
    "scaler's scale lost": ("scaler", "scaler"),
    "EMA's count lost": ("averages", "averages"),
    "optimizer made anew after the load": ("optimizer loss", "optimizer"),
    "checkpoint of another run": ("step loss", "step"),
    "an older checkpoint": ("step", "step"),
    "data begin anew, and it is told": ("data_position loss", ""),
    "random numbers seeded after the checks": ("loss", ""),
    "the trainer's own state lost": ("loss", ""),
    "dropout off": ("loss", ""),
    "micro-batches in another order": ("loss", ""),
    "weight decay off": ("loss", ""),
}
# Seen, but no certain fault: a schedule of the trainer's own may do that, or a trainer with an optimizer of its own.
ONLY_WARNED = {
    "rates of two groups exchanged", "optimizer made anew after the load", "weight decay off",
    "random numbers seeded after the checks",
}  # fmt: skip


class Parents:
    """The runs that are resumed: one of each trainer, and a twin of the second one, with other weights."""

    def __init__(self, folder: Path) -> None:
        self.stage = Stage(folder)
        self.example, self.small = self.stage.start(EXAMPLE), self.stage.start(SMALL)
        self.twin = self.stage.start(SMALL, "--set", "training.max_steps=50")

    def resume(self, fault: str, *args: str) -> Outcome:
        parent = self.small if fault in sabotage.IN_SMALL else self.example
        return self.stage.resume(parent, "--step", STEP, *args, SABOTAGE=fault, SABOTAGE_TWIN=str(self.twin))


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parents]:
    made = Parents(tmp_path_factory.mktemp("stage"))
    yield made
    made.stage.close()


def seen(outcome: Outcome, fault: str) -> dict[str, str]:
    """Return name -> verdict of the checks that saw something, and say it; not of the speed: the runs are too short."""
    found = {name: one["verdict"] for name, one in outcome.checks.items() if one["verdict"] in ("failed", "warned")}
    found = {name: verdict for name, verdict in found.items() if name not in ("resume", "throughput")}
    print(f"{fault:42} {', '.join(f'{name} {verdict}' for name, verdict in found.items()) or 'nothing'}")
    return found


def test_every_fault_has_its_row_in_the_documents_table() -> None:
    assert SEEN.keys() == sabotage.IN_EXAMPLE.keys() | sabotage.IN_SMALL.keys()
    page = (ROOT / "docs" / "acceptance.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    table = {fault: tuple(" ".join(re.findall(r"`(\w+)`", cell)) for cell in cells) for fault, *cells in rows}
    assert {fault: table.get(fault) for fault in SEEN} == SEEN


@pytest.mark.parametrize("trainer", ["example", "small"])
def test_without_a_fault_nothing_is_said(trainer: str, parents: Parents) -> None:
    outcome = parents.stage.resume(getattr(parents, trainer), "--step", STEP)
    assert seen(outcome, "") == {} and outcome.code == 0
    assert outcome.checks["loss"]["why"] == "the parent's, bit for bit, in 20 steps"
    for event in events(outcome.run):
        assert_valid("event", event)


@pytest.mark.parametrize("fault", SEEN)
def test_a_fault_is_seen(fault: str, parents: Parents) -> None:
    found = seen(parents.resume(fault), fault)
    assert set(SEEN[fault][0].split()) <= found.keys()
    assert fault in ONLY_WARNED or "failed" in found.values()


@pytest.mark.campaign
@pytest.mark.parametrize("fault", SEEN)
def test_a_fault_is_seen_with_another_batch_size_too_or_the_document_says_that_it_is_not(
    fault: str, parents: Parents
) -> None:
    found = seen(parents.resume(fault, "--set", "training.batch_size=4"), fault)
    assert found.keys() == set(SEEN[fault][1].split())


def test_under_strict_checks_a_run_that_was_over_sooner_ends_with_7_too(parents: Parents) -> None:
    outcome = parents.resume("EMA's count lost", "--set", "resume.strict_checks=true")
    assert outcome.code == 7 and outcome.checks["resume"]["verdict"] == "failed"
    quarantined = (outcome.run / "quarantine.json").read_text()
    for checkpoint in (outcome.run / "checkpoints").glob("hrm_arc_step_*.pt"):
        assert checkpoint.name in quarantined
    assert [one["cause"] for one in events(outcome.run, "abort")] == ["checks_failed"]
