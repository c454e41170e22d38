"""Faults planted from outside into real resumes, behind the plan: docs/acceptance.md names the check that sees each.

The launcher, the plan and the sidecar are as they are; the fault is in the trainer (sabotage.py). `-s` prints
what saw what. Every fault in every trainer: `python -m pytest -s -m "long or not long" tests/test_sabotage.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from reliability import sabotage
from reliability.sabotage_stage import EXAMPLE, SMALL, WIRED, WRAPPED, Outcome, Stage, misname
from resumekit.base.terms import PASSED
from support.long_tests import all_but
from support.places import ROOT
from support.runs import events
from support.schemas import assert_valid

STEP = "20"
# Fault -> the checks that see it where nothing else was changed; where another batch size forbids a replay; and in the
# trainer of docs/adopting.md. '-' is a fault that is not planted there.
SEEN: dict[str, tuple[str, str, str]] = {
    "schedule begins at 0": ("scheduler lr phase", "scheduler lr phase", "lr loss"),
    "data offset wrong, and not told": ("loss", "", "loss"),
    "EMA weights as raw ones": ("weights loss", "weights", "weights loss"),
    "learning rate off by 20 %": ("lr", "lr", "lr loss"),
    "one tensor permuted": ("weights loss", "weights", "weights loss"),
    "one moment zeroed": ("optimizer", "optimizer", "optimizer loss"),
    "random numbers seeded after the load": ("rng loss", "rng", "loss"),
    "EMA replaced by the current weights": ("averages", "averages", "averages"),
    "optimizer state of another order": ("optimizer", "optimizer", "optimizer loss"),
    "states of parameters exchanged": ("optimizer", "optimizer", "-"),
    "global step off by one": ("step data_position", "step", "step loss"),
    "other data": ("data data_position", "data", "loss"),
    "schedule advanced twice a step": ("lr", "lr", "loss"),
    "rates of two optimizers exchanged": ("lr loss", "lr", "-"),
    "rates of two groups exchanged": ("lr loss", "lr", "-"),
    "a weight is NaN": ("dry_batch loss", "dry_batch loss", "weights buffers loss"),
    "BatchNorm's buffers lost": ("buffers", "buffers", "buffers"),
    "scaler's scale lost": ("scaler", "scaler", "-"),
    "EMA's count lost": ("averages", "averages", "averages"),
    "optimizer made anew after the load": ("optimizer loss", "optimizer", "loss optimizer"),
    "checkpoint of another run": ("step", "step", "step loss"),
    "an older checkpoint": ("step", "step", "step"),
    "data begin anew, and it is told": ("data_position loss", "", "-"),
    "random numbers seeded after the checks": ("loss", "", "-"),
    "the trainer's own state lost": ("loss", "", "-"),
    "dropout off": ("loss", "", "-"),
    "micro-batches in another order": ("loss", "", "loss"),
    "weight decay off": ("loss", "", "loss"),
    "half of a moment left out": ("optimizer", "optimizer", "optimizer loss"),
    "one rank's random numbers in all ranks": ("loss", "", "loss"),
    "the plan dropped": ("optimizer scheduler", "-", "optimizer scheduler"),
    "a swap planned and not done": ("refused", "-", "refused"),
    "a swap undone behind the load": ("not told: weights, loss, throughput", "-", "optimizer"),
    "a cut of the learning rate not applied": ("lr", "-", "lr"),
    "an old schedule kept under a refit": ("lr", "-", "scheduler"),
    "the carry left out": ("loss", "", "loss"),
    "the sampler begun again": ("loss", "", "loss"),
    "a buffer is NaN": ("buffers loss", "buffers dry_batch loss", "buffers"),
    "EMA and raw weights exchanged": ("weights averages loss", "weights averages", "weights averages loss"),
    "gradient accumulation halved": ("loss", "", "loss"),
    "a wrong step in a right file name": ("refused", "-", "refused"),
}
# Seen, but no certain fault: a schedule of the trainer's own may do that, or a trainer with an optimizer of its own.
ONLY_WARNED = {
    "rates of two groups exchanged",
    "optimizer made anew after the load",
    "weight decay off",
    "random numbers seeded after the checks",
    "one rank's random numbers in all ranks",
}
TRAINERS = {
    "example": (EXAMPLE, sabotage.IN_EXAMPLE),
    "small": (SMALL, sabotage.IN_SMALL),
    "wired": (WIRED, sabotage.IN_WIRED),
    "wrapped": (WRAPPED, sabotage.IN_WIRED),
}
# Of each check one fault that it sees, and what needs a way of its own; every fault is in the long tests.
QUICK = {
    "schedule begins at 0", "one tensor permuted", "random numbers seeded after the load", "EMA's count lost",
    "states of parameters exchanged", "global step off by one", "other data", "a weight is NaN",
    "BatchNorm's buffers lost", "scaler's scale lost", "checkpoint of another run", "rates of two groups exchanged",
    "dropout off", "the plan dropped", "a swap undone behind the load", "a cut of the learning rate not applied",
    "a wrong step in a right file name",
}  # fmt: skip
QUICK_WRAPPED = {"the plan dropped", "a cut of the learning rate not applied", "the carry left out"}


class Parents:
    """The runs that are resumed, each started when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self.stage = Stage(folder)
        self._runs: dict[str, Path] = {}

    def of(self, trainer: str, kind: str = "") -> Path:
        """Return the run of a trainer: its own, its 'twin' with other weights, or one with a 'misnamed' file."""
        key = f"{trainer} {kind}"
        if key not in self._runs:
            more = ("--set", "training.max_steps=50") if kind == "twin" else ()
            self._runs[key] = self.stage.start(TRAINERS[trainer][0], *more)
            if kind == sabotage.MISNAMED:
                misname(self._runs[key], 10, int(STEP))
        return self._runs[key]

    def resume(self, name: str, *args: str, trainer: str = "") -> Outcome:
        """Resume a trainer with a fault in it; without a name that of the two which has the fault."""
        trainer = trainer or ("small" if name in sabotage.IN_SMALL else "example")
        experiment, faults = TRAINERS[trainer]
        fault = faults[name]
        if fault.way == sabotage.RECOVERED:
            return self.stage.recovered(experiment, SABOTAGE=name)
        parent = self.of(trainer, sabotage.MISNAMED if fault.way == sabotage.MISNAMED else "")
        twin = str(self.of(trainer, "twin")) if name == "checkpoint of another run" else ""
        return self.stage.resume(
            parent, "--step", STEP, *fault.changes, *args, SABOTAGE=name, SABOTAGE_TWIN=twin
        )  # fmt: skip


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


def in_the_document(cell: str) -> str:
    """Return what a cell of the document's table says, as SEEN has it."""
    names = re.findall(r"`(\w+)`", cell)
    if cell.startswith("not told: "):
        return f"not told: {', '.join(names)}"
    return " ".join(names) or {"nothing": "", "refused": "refused"}.get(cell, "-")


def test_every_fault_has_its_row_in_the_documents_table() -> None:
    assert SEEN.keys() == sabotage.IN_EXAMPLE.keys() | sabotage.IN_SMALL.keys() >= sabotage.IN_WIRED.keys()
    assert {name for name, cells in SEEN.items() if cells[2] != "-"} == sabotage.IN_WIRED.keys()
    page = (ROOT / "docs" / "acceptance.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    table = {fault: tuple(map(in_the_document, cells)) for fault, *cells in rows}
    assert {fault: table.get(fault) for fault in SEEN} == SEEN


@pytest.mark.parametrize("trainer", ["example", "small"])
def test_without_a_fault_nothing_is_said(trainer: str, parents: Parents) -> None:
    outcome = parents.stage.resume(parents.of(trainer), "--step", STEP)
    assert seen(outcome, "") == {} and outcome.code == 0
    assert outcome.checks["loss"]["why"] == "losses equal bit for bit in 20 steps"
    for event in events(outcome.run):
        assert_valid("event", event)


@pytest.mark.parametrize("trainer", ["wired", "wrapped"])
def test_without_a_fault_a_trainer_that_does_not_call_check_resume_is_not_told_of_its_buffers(
    trainer: str, parents: Parents
) -> None:
    outcome = parents.stage.resume(parents.of(trainer), "--step", STEP)
    assert seen(outcome, trainer) == {} and outcome.code == 0
    assert outcome.answer().startswith("not told: buffers")
    assert "losses equal to the last digit that the log shows in 20 steps" in outcome.words


def tells(outcome: Outcome, cell: str) -> None:
    """Assert that a resume with a fault said what the table says, and never that it has passed."""
    answer = outcome.answer()
    print(f"{outcome.code} {answer}")
    assert answer != PASSED, outcome.words
    if cell.startswith("not told: "):
        assert answer.startswith("not told: ") and set(cell[10:].split(", ")) <= set(answer[10:].split(", "))
    else:
        assert set(cell.split()) <= set(answer.split())


@pytest.mark.parametrize("fault", all_but(QUICK, SEEN))
def test_a_fault_is_seen(fault: str, parents: Parents) -> None:
    outcome = parents.resume(fault)
    found = seen(outcome, fault)
    tells(outcome, SEEN[fault][0])
    assert fault in ONLY_WARNED or not found or "failed" in found.values()


@pytest.mark.parametrize("fault", all_but(QUICK_WRAPPED, sabotage.IN_WIRED))
def test_a_fault_is_seen_behind_a_wrapper_that_drops_the_environment(fault: str, parents: Parents) -> None:
    tells(parents.resume(fault, trainer="wrapped"), SEEN[fault][2])


@pytest.mark.long
@pytest.mark.parametrize("fault", sabotage.IN_WIRED)
def test_a_fault_is_seen_in_a_trainer_that_saves_by_itself(fault: str, parents: Parents) -> None:
    tells(parents.resume(fault, trainer="wired"), SEEN[fault][2])


@pytest.mark.campaign
@pytest.mark.parametrize("fault", [fault for fault, cells in SEEN.items() if cells[1] != "-"])
def test_a_fault_is_seen_with_another_batch_size_too_or_the_document_says_that_it_is_not(
    fault: str, parents: Parents
) -> None:
    found = seen(parents.resume(fault, "--set", "training.batch_size=4"), fault)
    assert found.keys() == set(SEEN[fault][1].split())


def test_under_strict_checks_a_run_that_was_over_sooner_ends_with_7_too(parents: Parents) -> None:
    outcome = parents.resume("EMA's count lost", "--set", "resume.strict_checks=true")
    assert outcome.code == 7 and outcome.checks["resume"]["verdict"] == "failed"
    saved = [path.name for path in (outcome.run / "checkpoints").glob("hrm_arc_step_*.pt")]
    if saved:  # it may be stopped before it has saved
        quarantined = (outcome.run / "quarantine.json").read_text()
        assert all(name in quarantined for name in saved)
    assert [one["cause"] for one in events(outcome.run, "abort")] == ["checks_failed"]
