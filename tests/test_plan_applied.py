"""The table of effects, carried out: the example is really resumed by the commands, and what it loaded is looked at.

A parent trains four steps. Each row resumes it with one change; what the plan says, what the trainer reports, and what
it holds right after the load (`probe.pt`) are compared with the row's hand-written effects. `make test` runs a sample;
`make faults` one row for each kind of effect; `make campaign` every row that the example can run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from resumekit.base.terms import KEYS
from resumekit.config import config
from support.commands import Kit
from support.fork_server import ForkServer
from support.plan_rows import CONFIG_ROWS, CONSENT, EDIT, NOTHING, READY, REDERIVE, REFIT, REFUSED, SWAP  # fmt: skip
from support.resume_parts import same
from support.runs import events
from support.schemas import assert_valid

STEP = 4
BASE = "BASE"  # the baseline of config.yaml, as the table's rows have it, but small
SMALL = {
    "data": {"max_grid": 6, "variants": 4},
    "model": {"seq_len": 36, "hidden_size": 32, "puzzle_emb_dim": 32},
    "training": {"threads": 1, "device": "cpu", "log_every": 1},
    "schedule": {"warmup_steps": 2},  # a resume beyond the warm-up: the rate depends on every key
}
SECTIONS = ("data", "model", "training", "optimizer", "schedule", "ema", "swa", "validation", "checkpoint", "recover")
KEPT = ("weights", "optimizer.model", "optimizer.puzzles", "scheduler", "ema", "counters", "rng", "data_position")
# A step of the table's rows, which resume at step 40,000, and what it is here.
AT = {"swap_at=40000": "swap_at=4", "swap_at=30000": "swap_at=3", "swap_at=40001": "swap_at=5"}
# What the example cannot do, whatever the plan says: the row is not run.
NOT_THE_EXAMPLES = {
    "another kind of schedule": "its schedule is a cosine",
    "a tail": "its only tail is SWA's",
    "data moved": "there is one folder of data",
    "the trainer's arguments": "it has no such flag",
    "the trainer's command": "there is no such file",
    "fewer tasks": "its puzzles have an embedding each: with fewer it is another model, and nothing is loaded",
}
# (the experiment that goes on from a run of EXP-03, components that are not simply loaded)
EXPERIMENTS = [
    ("EXP-04", NOTHING),  # its swap is planned for step 1000
    ("EXP-05", EDIT),
    ("EXP-06", EDIT),
    ("EXP-07", NOTHING),
    ("EXP-08", NOTHING),  # a scaler that the checkpoint does not have
    ("EXP-09", {"swa": "fresh", "scheduler": "refit"}),  # a tail is added
]
SAMPLE = {
    "gradient noise": NOTHING, "weight decay off": NOTHING, "batch size": REDERIVE, "longer": REFIT,
    "a swap step that is reached": SWAP, "both edits": EDIT, "EMA off": {"ema": "absent"}, "hidden size": NOTHING,
    "optimizer and schedule reset": {"optimizer": "reset", "scheduler": "reset"},
}  # fmt: skip


# What `make test` leaves to `make faults`: another row, or another experiment, is done alike.
ALIKE = {"gradient noise", "optimizer and schedule reset", "EMA off", "EXP-04", "EXP-06", "EXP-07", "EXP-08"}


class Lab:
    """Runs of the example with all settings of config.yaml, but small."""

    def __init__(self, kit: Kit, server: ForkServer) -> None:
        self.kit, self.parents = kit, {}
        file = config.load_config()
        document = config.resolve(file.document, schema=file.schema)
        script = document["trainer"]["command"].index("{kit}/examples/hrm_arc/train_arc_full_nova.py")
        command = document["trainer"]["command"]
        document["trainer"]["command"] = [*server.command("support.probed_example"), *command[script + 1 :]]
        document["experiments"] = {BASE: {"name": "base"}}
        for name, _ in (("EXP-03", NOTHING), *EXPERIMENTS):
            own = config.resolve(file.document, name, schema=file.schema)
            document["experiments"][name] = {section: own[section] for section in SECTIONS}
        for sections in (document, *document["experiments"].values()):
            for name, own in SMALL.items():
                sections[name] = {**sections.get(name, {}), **own}
        kit.config_file.write_text(json.dumps(document))

    def __call__(self, command: str, *args: str, code: int, steps: int = 1) -> str:
        return self.kit(command, *args, code=code, env={"STOP_AFTER": str(steps)}).stderr

    def parent(self, experiment: str) -> Path:
        """Return a run of four steps, ended by TERM; the same one each time."""
        if experiment not in self.parents:
            self("run", experiment, code=143, steps=STEP)
            self.parents[experiment] = self.kit.run_dirs()[-1]
        return self.parents[experiment]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    kit = Kit(tmp_path_factory.mktemp("lab"))
    yield Lab(kit, ForkServer("support.probed_example"))
    kit.clean_up()


class Seen:
    """A resume as it was planned and reported; the checkpoint, and what the trainer held right after the load."""

    def __init__(self, run: Path, parent: Path) -> None:
        self.run, self.parent = run, parent
        self.plan = json.loads((run / "resume_plan.json").read_text())
        self.report = events(run, "resumed")[0]["report"]
        self.config = json.loads((run / "resolved_config.json").read_text())
        self.before = torch.load(parent / "checkpoints" / f"hrm_arc_step_{STEP}.pt", weights_only=True)
        self.after = torch.load(run / "probe.pt", weights_only=True)
        self.made = torch.load(parent / "probe.pt", weights_only=True)  # the parent's own beginning

    def moments(self, content: dict[str, Any], role: str) -> dict[str, Any]:
        """Return an optimizer's state by parameter name."""
        names = [name for group in content["parameter_names"][role] for name in group]
        return {names[number]: own for number, own in content["optimizer_state_dict"][role]["state"].items()}

    def rates(self, content: dict[str, Any]) -> list[float]:
        """Return the learning rates of the next step, the model's first."""
        states = content["optimizer_state_dict"]
        return [states[role]["param_groups"][0]["lr"] for role in ("model", "puzzles")]


def weights(seen: Seen, action: str) -> None:
    old, new, made = (content["model_state_dict"] for content in (seen.before, seen.after, seen.made))
    if action == "reset":
        assert same(dict(new), dict(made)) and not same(dict(new), dict(old))
    else:
        assert all(same(new[name], old[name]) for name in old)
        assert action == "partial" or new.keys() == old.keys()


def optimizer(seen: Seen, action: str, role: str) -> None:
    old, new = seen.moments(seen.before, role), seen.moments(seen.after, role)
    assert role == "puzzles" or old, "the parent's optimizer has moments to keep"
    if action in ("reset", "swap"):
        assert not new
    else:
        assert same(new, old), "every old parameter's moments, bit for bit, and none for a new one"
    was, now = (
        dict(pair.split("=") for pair in seen_in["optimizer_name"].split(",")) for seen_in in (seen.before, seen.after)
    )
    assert (was[role] == now[role]) == (action != "swap")


def scheduler(seen: Seen, action: str) -> None:
    planned = [rate["after"] for rate in seen.plan["learning_rates"]]
    if all(planned):  # with an SWA tail only the trainer knows
        assert seen.rates(seen.after) == pytest.approx([rates[0] for rates in planned], rel=1e-12)
    if action == "load" and not seen.plan["components"]["scheduler"]["why"]:  # it was not kept against a change
        assert seen.rates(seen.after) == seen.rates(seen.before)
    elif action == "reset":
        assert seen.rates(seen.after) == seen.rates(seen.made), "as at the first step"


def average(seen: Seen, action: str, name: str) -> None:
    old, new = seen.before[f"{name}_state_dict"], seen.after[f"{name}_state_dict"]
    raw = seen.after["model_state_dict"]
    if action == "absent":
        assert new is None
    elif action in ("fresh", "reset"):
        assert int(new["n_averaged"]) == 0
        assert all(same(new[f"module.{key}"], value) for key, value in raw.items())
    else:
        assert all(same(new[key], old[key]) for key in old)
        assert action == "partial" or new.keys() == old.keys()
        assert all(same(new[key], raw[key.removeprefix("module.")]) for key in new.keys() - old.keys())


def counters(seen: Seen, action: str) -> None:
    if action == "reset":
        assert (seen.after["global_step"], seen.after["best_val_loss"]) == (0, float("inf"))
        assert seen.after["progress"]["best_score"] is None
    else:
        assert seen.after["global_step"] == seen.before["global_step"] == STEP
        assert seen.after["best_val_loss"] == seen.before["best_val_loss"]


def rng(seen: Seen, action: str) -> None:
    assert same(seen.after["rng_state"], seen.before["rng_state"]) == (action == "load")


def data_position(seen: Seen, action: str) -> None:
    training = seen.config["training"]
    step = 0 if action == "reset" else STEP
    assert seen.after["data_state"]["position"] == step * training["batch_size"] * training["grad_accum_steps"]
    assert action != "load" or seen.after["data_state"]["position"] == seen.before["data_state"]["position"]


LOOK: dict[str, Callable[[Seen, str], None]] = {
    "weights": weights,
    "optimizer.model": lambda seen, action: optimizer(seen, action, "model"),
    "optimizer.puzzles": lambda seen, action: optimizer(seen, action, "puzzles"),
    "scheduler": scheduler,
    "ema": lambda seen, action: average(seen, action, "ema"),
    "swa": lambda seen, action: average(seen, action, "swa"),
    "counters": counters,
    "rng": rng,
    "data_position": data_position,
}


def of_two_optimizers(expected: dict[str, str]) -> dict[str, str]:
    """Return a row's effects for the example, whose puzzles have an optimizer of their own, that no swap is about."""
    split = {name: action for name, action in expected.items() if name != "optimizer"}
    if "optimizer" in expected:
        split["optimizer.model"] = expected["optimizer"]
        others = "partial" if expected.get("weights") == "partial" else "load"  # an edit reaches every optimizer
        split["optimizer.puzzles"] = others if expected["optimizer"] == "swap" else expected["optimizer"]
    return split


def check(lab: Lab, run: Path, parent: Path, expected: dict[str, str]) -> None:
    """Compare plan, report and what was loaded with the effects of a row."""
    seen = Seen(run, parent)
    wanted = dict.fromkeys(KEPT, "load") | of_two_optimizers(expected)
    assert_valid("plan", seen.plan)
    planned = {name: one["action"] for name, one in seen.plan["components"].items()}
    assert planned == dict.fromkeys(("scaler", "swa"), "absent") | wanted
    reported = {name: said.partition(":")[0] for name, said in seen.report.items()}
    assert reported == planned
    for name, action in wanted.items():
        LOOK[name](seen, action)
    alarms = [event for event in events(run, "check") if event["verdict"] == "failed"]
    assert not alarms, "a resume as planned is no reason for an alarm"
    first = events(run, "step")[0]
    assert first["step"] == seen.after["global_step"] + 1
    assert first["lr"] == seen.rates(seen.after)[0], "and it trains with that rate"


def rows(names: dict[str, Any] | None) -> list[Any]:
    chosen = [row for row in CONFIG_ROWS if row[0] not in NOT_THE_EXAMPLES and (row[0] in names if names else True)]
    return [parameters(*row) for row in chosen]


def parameters(*row: Any) -> Any:
    return pytest.param(*row, id=row[0], marks=[pytest.mark.long] if row[0] in ALIKE else [])


def resume(lab: Lab, settings: str, expected: dict[str, str], verdict: str) -> None:
    for table, here in AT.items():
        settings = settings.replace(table, here)
    parent = lab.parent(BASE)
    runs = len(lab.kit.run_dirs())
    line = ["resume", BASE, "--from", parent.name, "--name", "row"]
    for setting in settings.split():
        line += ["--set", setting]
    if verdict != READY:
        lab(*line, code=6 if verdict == REFUSED else 5)
        assert len(lab.kit.run_dirs()) == runs, "nothing was started"
    if verdict != REFUSED:
        lab(*line, *(["--accept"] if verdict == CONSENT else []), code=143)
        check(lab, lab.kit.run_dirs()[-1], parent, expected)


@pytest.mark.parametrize(("what", "settings", "expected", "verdict"), rows(SAMPLE))
def test_a_row_of_the_table_is_what_happens(
    lab: Lab, what: str, settings: str, expected: dict[str, str], verdict: str
) -> None:
    assert expected == SAMPLE[what], "the sample has one row for each kind of effect"
    resume(lab, settings, expected, verdict)


@pytest.mark.campaign
@pytest.mark.parametrize(("what", "settings", "expected", "verdict"), rows(None))
def test_every_row_that_the_example_can_run_is_what_happens(
    lab: Lab, what: str, settings: str, expected: dict[str, str], verdict: str
) -> None:
    resume(lab, settings, expected, verdict)


@pytest.mark.parametrize(("experiment", "expected"), [parameters(*row) for row in EXPERIMENTS])
def test_an_experiment_goes_on_from_the_base_run_of_the_protocols_example(
    lab: Lab, experiment: str, expected: dict[str, str]
) -> None:
    parent = lab.parent("EXP-03")
    lab("resume", experiment, "--from", parent.name, code=143)
    check(lab, lab.kit.run_dirs()[-1], parent, expected)


@pytest.mark.parametrize("words", [(), ("--set", "model.aux_rule_head=true", "--set", "resume.weights=partial")])
def test_a_new_lineage_takes_the_weights_of_a_base_and_nothing_else(lab: Lab, words: tuple[str, ...]) -> None:
    parent = lab.parent(BASE)
    base = parent / "checkpoints" / f"hrm_arc_step_{STEP}.pt"
    lab("run", BASE, "--name", "tuned", "--init-from", str(base), *words, code=143)
    run = lab.kit.run_dirs()[-1]
    own = json.loads((run / "run.json").read_text())
    assert (own["relation"], own["parent_run_id"], own["checkpoint"]) == ("fresh", None, None)
    assert own["init_from"]["sha256"] == hashlib.sha256(base.read_bytes()).hexdigest()
    assert json.loads((run / "resume_plan.json").read_text())["init_from"] == own["init_from"]
    reset = dict.fromkeys(("optimizer", "scheduler", "counters", "rng", "data_position"), "reset")
    check(lab, run, parent, {"weights": "partial" if words else "load", "ema": "fresh", **reset})


def test_a_schedule_and_data_that_began_anew_go_on_from_there_at_the_next_resume(lab: Lab) -> None:
    """And the next plan does not foretell rates that only the trainer knows."""
    policies = [
        word for name in ("optimizer", "scheduler", "data_position") for word in ("--set", f"resume.{name}=reset")
    ]
    lab("resume", BASE, "--from", lab.parent(BASE).name, "--name", "anew", *policies, code=143, steps=2)
    first = lab.kit.run_dirs()[-1]
    lab("resume", BASE, "--from", first.name, "--name", "later", code=143)
    later = lab.kit.run_dirs()[-1]
    plan = json.loads((later / "resume_plan.json").read_text())
    assert {one["action"] for one in plan["components"].values()} == {"load", "absent"}
    assert [rate["after"] for rate in plan["learning_rates"]] == [None, None]
    saved = torch.load(first / "checkpoints" / f"hrm_arc_step_{STEP + 2}.pt", weights_only=True)
    found = torch.load(later / "probe.pt", weights_only=True)
    assert (
        found["scheduler_state_dict"]["model"]["last_epoch"]
        == saved["scheduler_state_dict"]["model"]["last_epoch"]
        == 2
    )
    assert found["data_state"] == saved["data_state"] and saved["data_state"]["position"] == 2 * 32
    assert found["global_step"] == STEP + 2
    assert [event["lr"] for event in events(first, "step")] == [5e-5, 1e-4], "the warm-up's two steps again"


def test_what_a_run_without_a_checkpoint_was_told_is_done_to_its_parents_checkpoint(lab: Lab) -> None:
    """A child was to reset and to grow, and left no checkpoint: a run that goes on from it resets and grows."""
    words = "resume.optimizer=reset resume.scheduler=reset model.droppath_h=0..0.2 model.aux_rule_head=true"
    settings = [part for word in words.split() for part in ("--set", word)]
    parent = lab.parent(BASE)
    lab("resume", BASE, "--from", parent.name, "--name", "dead", *settings, code=143)
    dead = lab.kit.run_dirs()[-1]
    for path in (dead / "checkpoints").iterdir():
        path.unlink()
    lab("resume", dead.name, code=143)
    resumed = lab.kit.run_dirs()[-1]
    assert json.loads((resumed / "run.json").read_text())["parent_run_id"] == dead.name
    check(lab, resumed, parent, EDIT | {"optimizer": "reset", "scheduler": "reset"})


def test_rows_that_are_not_run_are_rows_of_the_table() -> None:
    assert set(NOT_THE_EXAMPLES) | set(SAMPLE) <= {row[0] for row in CONFIG_ROWS}
    assert {name.partition(".")[0] for name in LOOK} == set(KEYS) - {"scaler"}
