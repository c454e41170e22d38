"""What a trainer's objects hold at their first step, against the checkpoint: trainer.verification, resume_checks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from conftest import ROOT
from resume_parts import Lion, Net

sys.path.append(str(ROOT / "lib"))
from resume_helper import check_resume, load_resume_bundle, save_checkpoint
from resumekit.trainer.comparison import is_alike


@pytest.fixture(autouse=True)
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A run folder of the kit's, whose journal tells what the checks found."""
    torch.set_num_threads(1)
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("RESUMEKIT_RUN_DIR", str(folder))
    monkeypatch.setenv("RESUMEKIT_RUN_ID", "EXP-01_x_20261122-1735")
    monkeypatch.delenv("RESUMEKIT_PLAN", raising=False)
    return folder


class Job:
    """A trainer's objects; `step` trains one step."""

    def __init__(self, seed: int = 0, **more: Any) -> None:
        self.model = Net(seed=seed, **more)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.schedule = LambdaLR(self.optimizer, lambda step: 1 / (1 + step))
        self.ema = AveragedModel(self.model)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.ones(5, 4) * torch.randn(5, 1)).backward()
        self.optimizer.step()
        self.schedule.step()
        self.ema.update_parameters(self.model)

    def save(self, folder: Path, **more: Any) -> Path:
        return save_checkpoint(
            folder, 4, model=self.model, optimizer=self.optimizer, scheduler=self.schedule, ema=self.ema, **more
        )  # fmt: skip

    def load(self, path: Path, **more: Any) -> Any:
        return load_resume_bundle(
            self.model, self.optimizer, self.schedule, ckpt_path=path, ema=self.ema, log_fn=lambda _: None, **more
        )  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    job = Job()
    for _ in range(4):
        job.step()
    return job.save(tmp_path / "checkpoints", data_state={"position": 32, "seed": 1})


def found(run: Path) -> dict[str, dict[str, Any]]:
    lines = (run / "journal.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines if line]
    return {event["name"]: event for event in events if event["event"] == "check"}


def verdicts(run: Path) -> dict[str, str]:
    return {name: event["verdict"] for name, event in found(run).items()}


HEALTHY = dict.fromkeys(("weights", "optimizer", "averages", "scheduler", "lr"), "passed")


def test_what_was_loaded_is_verified_once_at_the_first_step(run: Path, path: Path) -> None:
    job = Job(seed=1)
    job.load(path)
    assert found(run) == {}, "nothing before the first step: the trainer may still spoil it"
    job.step()
    job.step()
    assert verdicts(run) == HEALTHY
    names = [line for line in (run / "journal.jsonl").read_text().splitlines() if '"check"' in line]
    assert len(names) == len(HEALTHY)


def permute(job: Job) -> None:
    weight = job.model.body.weight
    weight.data = weight.data.flip(0).clone()


def zero_a_moment(job: Job) -> None:
    job.optimizer.state[job.model.head.weight]["exp_avg_sq"].zero_()


def drop_a_state(job: Job) -> None:
    del job.optimizer.state[job.model.head.bias]


def drop_the_schedule(job: Job) -> None:
    job.schedule.last_epoch = 0


def cut_the_rate(job: Job) -> None:
    for group in job.optimizer.param_groups:
        group["lr"] *= 0.8


def take_the_average(job: Job) -> None:
    job.model.load_state_dict(job.ema.module.state_dict())


def forget_the_average(job: Job) -> None:
    job.ema.module.load_state_dict({name: value + 1 for name, value in job.model.state_dict().items()})


def forget_its_count(job: Job) -> None:
    job.ema.n_averaged.zero_()


def spoil_with_nan(job: Job) -> None:
    job.model.head.bias.data[0] = float("nan")


@pytest.mark.parametrize(
    "spoil, name, verdict",
    [
        (permute, "weights", "failed"), (take_the_average, "weights", "failed"), (spoil_with_nan, "weights", "failed"),
        (zero_a_moment, "optimizer", "failed"), (drop_a_state, "optimizer", "failed"),
        (drop_the_schedule, "scheduler", "failed"), (cut_the_rate, "lr", "warned"),
        (forget_the_average, "averages", "failed"), (forget_its_count, "averages", "failed"),
    ],
)  # fmt: skip
def test_what_is_spoiled_between_load_and_first_step_is_named(
    run: Path, path: Path, spoil: Any, name: str, verdict: str
) -> None:
    job = Job(seed=1)
    job.load(path)
    spoil(job)
    job.step()
    assert verdicts(run)[name] == ("passed" if verdict is None else verdict), found(run)
    others = {key: value for key, value in verdicts(run).items() if key != name}
    assert others == {key: value for key, value in HEALTHY.items() if key != name}


def test_every_group_has_the_plans_rate(run: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = [{"key": "optimizer.lr", "first_step": 5, "base": 0.1, "before": None, "after": [0.02, 0.1 / 6, 0.1 / 7]}]
    plan = {"version": 1, "step": 4, "components": {"weights": {"action": "load", "why": ""}}, "learning_rates": rates}
    for name in ("optimizer", "scheduler", "ema", "counters", "rng"):
        plan["components"][name] = {"action": "load", "why": ""}
    for name in ("swa", "scaler", "data_position"):
        plan["components"][name] = {"action": "absent", "why": ""}
    file = run / "resume_plan.json"
    file.write_text(json.dumps(plan))
    monkeypatch.setenv("RESUMEKIT_PLAN", str(file))
    job = Job(seed=1)
    job.load(path)
    job.step()
    assert verdicts(run) == HEALTHY
    job = Job(seed=1)
    job.load(path)
    cut_the_rate(job)
    job.step()
    assert found(run)["lr"]["verdict"] == "failed" and "[0]" in found(run)["lr"]["why"]
    assert found(run)["lr"]["found"] == "[0] 0.016"


def test_a_layer_with_a_rate_of_its_own_follows_the_plans_curve(run: Path, path: Path) -> None:
    from resumekit.trainer.trainer_plan import PlannedRate
    from resumekit.trainer.verification import _is_planned

    planned = [PlannedRate("optimizer.lr", 0.1, (0.05, 0.04, 0.03))]
    assert _is_planned(0.05, {}, planned) and not _is_planned(0.06, {}, planned)
    assert _is_planned(0.005, {"initial_lr": 0.01}, planned) and not _is_planned(0.006, {"initial_lr": 0.01}, planned)


def test_a_new_head_a_lion_and_a_reset_are_no_faults(run: Path, path: Path) -> None:
    job = Job(seed=1, grown=True)
    job.load(path, allow_partial_weights=True)
    job.step()
    assert set(verdicts(run).values()) == {"passed"}, found(run)
    for optimizer, policy in ((Lion, "swap_to_lion"), (torch.optim.AdamW, "reset")):
        job = Job(seed=1)
        job.optimizer = optimizer(job.model.parameters(), lr=0.1)
        job.schedule = LambdaLR(job.optimizer, lambda step: 1 / (1 + step))
        job.load(path, optimizer_policy=policy)
        job.step()
        assert "failed" not in verdicts(run).values(), found(run)


def test_an_object_that_cannot_be_compared_stops_no_training(run: Path, path: Path) -> None:
    job = Job(seed=1)
    job.load(path)
    path.unlink()
    job.step()
    assert verdicts(run) == {"weights": "unknown"}


def test_the_optimizer_lets_go_of_what_was_verified(path: Path) -> None:
    import gc
    import weakref

    job = Job(seed=1)
    job.load(path)
    job.step()
    model = weakref.ref(job.ema)
    optimizer = job.optimizer
    del job
    gc.collect()
    assert model() is None and optimizer is not None


def test_large_tensors_are_compared_all_over() -> None:
    one = torch.arange(100_000.0)
    other = one.clone()
    assert is_alike(one, other)
    other[50_000:] += 1
    assert not is_alike(one, other) and not is_alike(one, one.reshape(100, 1000))
    assert is_alike(one.double(), one.bfloat16()), "a model in another precision took them over in its own"
    nan = torch.tensor([float("nan"), 1.0])
    assert is_alike(nan, nan.clone()) and not is_alike(nan, torch.tensor([0.0, 1.0]))
    assert is_alike(3, 3) and is_alike(torch.tensor(3), 3) and not is_alike(3, None)


def test_the_trainers_own_checks_pass_and_move_nothing(run: Path, path: Path) -> None:
    job, seen = Job(seed=1), []
    job.model.dropout = nn.Dropout(0.5)
    bundle = job.load(path)
    before = (torch.get_rng_state(), {name: value.clone() for name, value in job.model.state_dict().items()})

    def forward() -> Any:
        job.model.train()
        seen.append(torch.is_grad_enabled())
        return job.model(job.model.dropout(torch.ones(5, 4)))

    job.model.eval()
    state = {"position": 32, "seed": 1}
    assert check_resume(bundle, job.model, dry_batch=forward, fast_eval=lambda: 0.5, data_state=state)
    assert verdicts(run) == {
        "rng": "passed", "data_position": "passed", "buffers": "passed", "dry_batch": "passed",
        "fast_eval": "unknown",
    }  # fmt: skip
    assert seen == [False] and not job.model.training
    assert torch.equal(before[0], torch.get_rng_state())
    assert all(torch.equal(value, before[1][name]) for name, value in job.model.state_dict().items())


@pytest.mark.parametrize(
    "name, more, spoil",
    [
        ("rng", {}, lambda: torch.manual_seed(3)),
        ("data_position", {"data_state": {"position": 48, "seed": 1}}, lambda: None),
        ("dry_batch", {"dry_batch": lambda: torch.tensor([1.0, float("inf")])}, lambda: None),
        ("dry_batch", {"dry_batch": lambda: torch.ones(2) @ torch.ones(3)}, lambda: None),
        ("fast_eval", {"fast_eval": lambda: 0.3}, lambda: None),
        ("fast_eval", {"fast_eval": lambda: float("nan")}, lambda: None),
    ],
)
def test_what_the_trainers_own_checks_find(run: Path, tmp_path: Path, name: str, more: Any, spoil: Any) -> None:
    job = Job()
    job.step()
    last = {"step": 4, "accuracy": 0.4}
    path = job.save(tmp_path / "checkpoints", data_state={"position": 32, "seed": 1}, last_fast_eval=last)
    job, said = Job(seed=1), []
    bundle = job.load(path)
    spoil()
    assert not check_resume(bundle, job.model, log_fn=said.append, **more)
    assert [key for key, value in verdicts(run).items() if value == "failed"] == [name]
    assert len(said) == 1 and said[0].startswith(f"[warn] check {name} failed: ")


def test_a_fresh_start_has_nothing_to_check(run: Path) -> None:
    bundle = load_resume_bundle(Net(), ckpt_path=None)
    assert check_resume(bundle, dry_batch=lambda: 1 / 0) and not (run / "journal.jsonl").exists()
