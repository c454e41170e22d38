"""What a trainer's objects hold at their first step, against the checkpoint: trainer.verification, resume_checks."""

# ruff: noqa: F401, F811 (`path` and `run` are fixtures)
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from resume_helper import check_resume, load_resume_bundle
from resumekit.trainer.weights import is_alike
from support.checked_jobs import Job, found, path, run, verdicts
from support.resume_parts import Lion, Net

# Its BatchNorm has moved in a forward pass when the first step comes, and nothing has compared it before.
HEALTHY = {"weights": "passed", "buffers": "not_told"}
HEALTHY |= dict.fromkeys(("optimizer", "averages", "scheduler", "lr"), "passed")


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


def spoil_a_buffer_with_nan(job: Job) -> None:
    job.model.norm.running_var[0] = float("nan")


def forget_the_statistics(job: Job) -> None:
    job.model.norm.reset_running_stats()


@pytest.mark.parametrize(
    "spoil, name, verdict",
    [
        (permute, "weights", "failed"), (take_the_average, "weights", "failed"), (spoil_with_nan, "weights", "failed"),
        (zero_a_moment, "optimizer", "failed"), (drop_a_state, "optimizer", "failed"),
        (drop_the_schedule, "scheduler", "failed"), (cut_the_rate, "lr", "warned"),
        (forget_the_average, "averages", "failed"), (forget_its_count, "averages", "failed"),
        (spoil_a_buffer_with_nan, "buffers", "failed"), (forget_the_statistics, "buffers", "failed"),
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
    from resumekit.policy.plan_file import PlannedRate
    from resumekit.trainer.verification import _is_planned

    planned = [PlannedRate("optimizer.lr", 0.1, (0.05, 0.04, 0.03))]
    assert _is_planned(0.05, {}, planned) and not _is_planned(0.06, {}, planned)
    assert _is_planned(0.005, {"initial_lr": 0.01}, planned) and not _is_planned(0.006, {"initial_lr": 0.01}, planned)


def test_a_new_head_a_lion_and_a_reset_are_no_faults(run: Path, path: Path) -> None:
    job = Job(seed=1, grown=True)
    job.load(path, allow_partial_weights=True)
    job.step()
    assert {name for name, one in verdicts(run).items() if one != "passed"} == {"buffers"}, found(run)
    for optimizer, policy in ((Lion, "swap_to_lion"), (torch.optim.AdamW, "reset")):
        job = Job(seed=1)
        job.optimizer = optimizer(job.model.parameters(), lr=0.1)
        job.schedule = LambdaLR(job.optimizer, lambda step: 1 / (1 + step))
        job.load(path, optimizer_policy=policy)
        job.step()
        assert "failed" not in verdicts(run).values(), found(run)


def longer(job: Job, steps: int) -> Job:
    """Give a job a schedule that says how long it is."""
    job.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(job.optimizer, steps)
    return job


def put_the_old_schedule_back(job: Job, saved: dict[str, Any]) -> None:
    job.schedule.load_state_dict(saved)


def set_the_old_rate(job: Job, saved: dict[str, Any]) -> None:
    job.optimizer.param_groups[0]["lr"] = saved["_last_lr"][0]


def set_a_rate_of_its_own(job: Job, saved: dict[str, Any]) -> None:
    """The cycle of an SWA that begins here, say."""
    job.optimizer.param_groups[0]["lr"] *= 0.3


@pytest.mark.parametrize("own", [False, True], ids=["the kit scales", "the trainer scales"])
@pytest.mark.parametrize(
    "spoil, name, verdict",
    [
        (lambda job, saved: None, "scheduler", "passed"), (put_the_old_schedule_back, "scheduler", "failed"),
        (set_the_old_rate, "lr", "warned"), (set_a_rate_of_its_own, "lr", "passed"),
    ],
)  # fmt: skip
def test_a_schedule_that_was_refitted_is_the_new_one_at_the_first_step(
    run: Path, tmp_path: Path, spoil: Any, name: str, verdict: str, own: bool
) -> None:
    job = longer(Job(), 5)
    for _ in range(4):
        job.step()
    job.optimizer.param_groups[0]["lr"] *= 0.5 if own else 1.0  # what the trainer scales is in the rate that it saves
    path, saved = job.save(tmp_path / "a", lr_scale=0.5), job.schedule.state_dict()
    job = longer(Job(seed=1), 9)
    bundle = job.load(path, schedule_policy="reset", own_lr_scale=own)
    spoil(job, saved)
    if own:
        job.optimizer.param_groups[0]["lr"] *= bundle.lr_scale_at(4)
    job.step()
    assert verdicts(run)[name] == verdict, found(run)
    others = {key: one for key, one in verdicts(run).items() if key not in (name, "buffers")}
    assert set(others.values()) == {"passed"}, found(run)


def test_a_refitted_schedule_that_gives_the_old_rate_is_no_old_schedule(run: Path, tmp_path: Path) -> None:
    job = longer(Job(), 9)
    for _ in range(4):
        job.step()
    job.optimizer.param_groups[0]["lr"] *= 0.5
    path = job.save(tmp_path / "a", lr_scale=0.5)
    job = longer(Job(seed=1), 9)
    bundle = job.load(path, schedule_policy="reset", own_lr_scale=True)
    job.optimizer.param_groups[0]["lr"] *= bundle.lr_scale_at(4)
    job.step()
    assert "lr" not in verdicts(run), found(run)


def test_a_saved_state_without_rates_stops_no_load(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from resumekit.trainer import loading

    job = longer(Job(), 5)
    job.step()
    path = job.save(tmp_path / "a")

    def fails(*_: Any) -> Any:
        raise KeyError("lr")

    monkeypatch.setattr(loading.verification, "outdated_rates", fails)
    job = longer(Job(seed=1), 9)
    assert job.load(path, schedule_policy="reset").report["scheduler"].startswith("refit")
    job.step()
    assert verdicts(run)["weights"] == "passed"


def test_buffers_that_nothing_moves_are_compared_at_the_first_step_and_those_of_check_resume_once(
    run: Path, tmp_path: Path
) -> None:
    def made(seed: int) -> Job:
        job = Job(seed=seed)
        job.model.norm = nn.Identity()
        job.model.register_buffer("mask", torch.full((3,), float(seed)))
        job.ema = AveragedModel(job.model)
        return job

    parent = made(0)
    parent.step()
    job = made(1)
    job.load(parent.save(tmp_path / "a"))
    job.step()
    assert verdicts(run)["buffers"] == "passed"
    parent = Job()
    parent.step()
    job = Job(seed=1)
    bundle = job.load(parent.save(tmp_path / "b"))
    assert check_resume(bundle, job.model)
    job.step()
    assert verdicts(run)["buffers"] == "passed", "the first step has no more to say of them"


def test_an_optimizer_without_hooks_leaves_weights_and_averages_not_told(run: Path, path: Path) -> None:
    class Bare:
        """An optimizer of a lab's own."""

        def __init__(self, inner: Any) -> None:
            self.param_groups, self.state = inner.param_groups, inner.state
            self.state_dict, self.load_state_dict = inner.state_dict, inner.load_state_dict

    job = Job(seed=1)
    load_resume_bundle(job.model, Bare(job.optimizer), ckpt_path=path, ema=job.ema, optimizer_policy="reset",
                       log_fn=lambda _: None)  # fmt: skip
    assert verdicts(run) == {"weights": "not_told", "averages": "not_told"}


def test_an_object_that_cannot_be_compared_stops_no_training(run: Path, path: Path) -> None:
    job = Job(seed=1)
    job.load(path)
    path.unlink()
    job.step()
    assert verdicts(run) == {"weights": "not_told"}


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
        "fast_eval": "not_told",
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


RAMP = {"from_step": 2, "steps": 9, "factor": 0.5, "warm_restart": False}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("is_planned", [False, True])
def test_inside_a_ramp_the_checkpoints_rate_is_the_near_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool, is_planned: bool
) -> None:
    """What a trainer scales by itself is in the rate that it saves, what the kit scales is not."""
    job = Job()
    for _ in range(4):
        job.step()
    if own:
        job.optimizer.param_groups[0]["lr"] *= RAMP["factor"]
    path = job.save(tmp_path / "checkpoints", lr_scale=1.0, lr_ramp=RAMP)
    if is_planned:
        monkeypatch.setenv("RESUMEKIT_PLAN", str(ramp_plan(tmp_path, path)))
    job = Job(seed=1)
    job.load(path, own_lr_scale=own)
    job.step()
    assert found(run)["lr"]["verdict"] == "passed", found(run)["lr"]


def ramp_plan(folder: Path, path: Path) -> Path:
    names = ("weights", "optimizer", "scheduler", "ema", "counters", "rng")
    plan = {
        "version": 1, "step": 4, "checkpoint": {"path": str(path)}, "new_params": "module",
        "components": {name: {"action": "load", "why": ""} for name in names},
        "lr_scale": {"factor": 1.0, "ramp": RAMP},
    }  # fmt: skip
    for name in ("scaler", "swa", "data_position"):
        plan["components"][name] = {"action": "absent", "why": ""}
    (folder / "resume_plan.json").write_text(json.dumps(plan))
    return folder / "resume_plan.json"


def test_the_rate_of_an_optimizer_that_was_not_swapped_is_judged_without_the_ramp() -> None:
    from types import SimpleNamespace

    from resumekit.policy.decide import Decision
    from resumekit.policy.lr_scale import LrScale, Ramp
    from resumekit.policy.plan_file import PlannedRate
    from resumekit.trainer.verification import _curves_of

    scale = LrScale(1.0, Ramp(4, 2, 0.5, optimizers=("model",)))
    loaded = SimpleNamespace(
        plan=SimpleNamespace(lr_scale=scale, step=4), decided={"counters": Decision("load")}
    )  # fmt: skip
    planned = [PlannedRate("lr", 0.1, (0.05, 0.05, 0.1)), PlannedRate("head_lr", 0.3, (0.3,) * 3, "head")]
    curves = {name: [one.after for one in _curves_of(name, planned, loaded)] for name in ("model", "head")}
    assert curves == {"model": [(0.05, 0.05, 0.1), (0.15, 0.15, 0.3)], "head": [(0.1,) * 3, (0.3,) * 3]}
