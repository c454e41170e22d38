"""The classic traps of a resume, each as it was reported upstream: the test does what the reporter did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from resumekit.base.errors import InvalidFile
from resumekit.base.paths import RunPaths
from resumekit.base.processes import ALIVE
from resumekit.checkpoint.parameters import MIN_MATCHED_SHARE
from resumekit.run import status
from resumekit.run.run_folder import Run
from resumekit.trainer.loading import load_resume_bundle
from resumekit.trainer.saving import save_checkpoint
from support import example_jobs
from support.checkpoint_tools import quiet
from support.resume_parts import OPTIMIZERS, Net, moments, same, train, write_plan

pytestmark = pytest.mark.usefixtures("in_a_new_process")


def save(folder: Path, step: int = 4, **parts: Any) -> Path:
    path = save_checkpoint(folder, step, log_fn=quiet, **parts)
    assert path is not None
    return path


def test_a_run_that_is_made_longer_after_its_rate_had_decayed_to_zero_learns_again(tmp_path: Path) -> None:
    """huggingface/transformers#18070: more epochs on a finished run, and the learning rate stays 0 for all of them."""

    def make(length: int, seed: int) -> tuple[Any, ...]:
        model = Net(seed=seed)
        optimizer = OPTIMIZERS["adamw"](model.parameters(), lr=0.1)
        return model, optimizer, schedules.LinearLR(optimizer, 1.0, 0.0, total_iters=length)

    model, optimizer, schedule = make(6, 1)
    train(model, optimizer, schedule=schedule, steps=6)
    assert optimizer.param_groups[0]["lr"] == 0.0
    path = save(tmp_path, 6, model=model, optimizer=optimizer, scheduler=schedule)
    new, fresh, longer = make(12, 2)
    load_resume_bundle(new, fresh, longer, ckpt_path=path, schedule_policy="reset", log_fn=quiet)
    assert fresh.param_groups[0]["lr"] == pytest.approx(0.05)
    before = new.body.weight.clone()
    train(new, fresh, schedule=longer)
    assert not torch.equal(new.body.weight, before) and fresh.param_groups[0]["lr"] == pytest.approx(0.1 * 5 / 12)


@pytest.mark.parametrize("policy", ["load", "reset"])
def test_the_schedule_is_not_advanced_twice(tmp_path: Path, policy: str) -> None:
    """THUDM/slime#1775: the state is loaded, and then the schedule is stepped to the loaded step once more."""
    model = Net(seed=1)
    optimizer = OPTIMIZERS["adamw"](model.parameters(), lr=0.1)
    schedule = schedules.ExponentialLR(optimizer, 0.9)
    train(model, optimizer, schedule=schedule, steps=5)
    path = save(tmp_path, 5, model=model, optimizer=optimizer, scheduler=schedule)
    new = Net(seed=2)
    fresh = OPTIMIZERS["adamw"](new.parameters(), lr=0.1)
    again = schedules.ExponentialLR(fresh, 0.9)
    for _ in range(2):  # and not by a second load either
        load_resume_bundle(new, fresh, again, ckpt_path=path, schedule_policy=policy, log_fn=quiet)
        assert again.last_epoch == 5 and fresh.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_a_new_learning_rate_is_not_overwritten_by_the_loaded_state(tmp_path: Path) -> None:
    """pytorch/pytorch#156846: load_state_dict puts the old rate back, and nothing says so."""
    model = Net(seed=1)
    optimizer = OPTIMIZERS["adamw"](model.parameters(), lr=0.1, weight_decay=0.5)
    train(model, optimizer)
    path = save(tmp_path, model=model, optimizer=optimizer)
    new = Net(seed=2)
    fresh = OPTIMIZERS["adamw"](new.parameters(), lr=0.003, weight_decay=0.01)
    load_resume_bundle(new, fresh, ckpt_path=path, log_fn=quiet)
    assert (fresh.param_groups[0]["lr"], fresh.param_groups[0]["weight_decay"]) == (0.003, 0.01)
    assert len(fresh.state) == 6
    scheduled = OPTIMIZERS["adamw"](new.parameters(), lr=0.003)
    schedule = schedules.ConstantLR(scheduled, 1.0)
    load_resume_bundle(new, scheduled, schedule, ckpt_path=path, schedule_policy="reset", log_fn=quiet)
    assert scheduled.param_groups[0]["lr"] == 0.003 and schedule.base_lrs == [0.003]


@pytest.mark.parametrize(("held", "used"), [("adamw", "sgd"), ("sgd", "lion"), ("adamw", "lion")])
def test_one_optimizers_state_is_not_loaded_into_another(tmp_path: Path, held: str, used: str) -> None:
    """pytorch/pytorch#7499: load_state_dict takes whatever has as many parameters."""
    model = Net(seed=1)
    optimizer = OPTIMIZERS[held](model.parameters())
    train(model, optimizer)
    path = save(tmp_path, model=model, optimizer=optimizer)
    new = Net(seed=2)
    before = new.body.weight.clone()
    fresh = OPTIMIZERS[used](new.parameters())
    with pytest.raises(InvalidFile, match=f"it holds the state of {type(optimizer).__name__}, the trainer uses"):
        load_resume_bundle(new, fresh, ckpt_path=path, log_fn=quiet)
    assert torch.equal(new.body.weight, before) and not fresh.state


def test_a_compiled_model_resumes_a_second_time(tmp_path: Path) -> None:
    """pytorch/torchtitan#961: the first resume saves names with `_orig_mod.`, the second finds none of them."""
    model = Net(seed=1)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    train(model, optimizer)
    wanted = moments(model, optimizer)
    path = save(tmp_path / "0", model=model, optimizer=optimizer)
    for number, wrapped in enumerate((True, True, False)):
        inner = Net(seed=2 + number)
        new = torch.compile(inner, backend="eager") if wrapped else inner
        fresh = OPTIMIZERS["adamw"](new.parameters())
        bundle = load_resume_bundle(new, fresh, ckpt_path=path, log_fn=quiet)
        assert (bundle.report["weights"], bundle.report["optimizer"]) == ("load", "load")
        assert same(dict(inner.state_dict()), dict(model.state_dict()))
        assert all(same(state, wanted[name]) for name, state in moments(inner, fresh).items())
        path = save(tmp_path / str(number + 1), model=new, optimizer=fresh)
    assert any(
        "_orig_mod." in name for name in torch.load(tmp_path / "2" / path.name, weights_only=True)["model_state_dict"]
    )


def test_a_scaler_without_a_scale_starts_anew_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """facebookresearch/fairseq2#1346: a scaler's state that was saved without its scale breaks the resume."""
    model = Net(seed=1)
    path = tmp_path / "hrm_arc_step_4.pt"
    state = {key: value for key, value in torch.amp.GradScaler("cpu").state_dict().items() if key != "scale"}
    torch.save({"model_state_dict": model.state_dict(), "scaler_state_dict": state, "global_step": 4}, path)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    bundle = load_resume_bundle(Net(seed=2), None, None, scaler, ckpt_path=path, log_fn=quiet)
    assert bundle.report["scaler"] == "reset: the checkpoint's scaler has no 'scale'" and scaler.get_scale() == 8.0
    plan = write_plan(tmp_path, path, scaler="load", optimizer="absent", rng="absent")
    monkeypatch.setenv("RESUMEKIT_PLAN", str(plan))
    with pytest.raises(InvalidFile, match="nothing was loaded: its scaler has no 'scale'; reset it"):
        load_resume_bundle(Net(seed=2), None, None, scaler, ckpt_path=path, log_fn=quiet)


def test_training_goes_on_from_the_raw_weights_and_not_from_the_averaged_ones(tmp_path: Path) -> None:
    """Vchitect/Latte#55: a resume that continues from EMA's weights; every curve looks better for a moment."""
    model = Net(seed=1)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = OPTIMIZERS["sgd"](model.parameters(), lr=0.5)
    for _ in range(3):
        train(model, optimizer)
        ema.update_parameters(model)
    assert not torch.equal(ema.module.body.weight, model.body.weight)
    path = save(tmp_path, model=model, ema=ema)
    new = Net(seed=2)
    new_ema = AveragedModel(new, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    load_resume_bundle(new, ckpt_path=path, ema=new_ema, log_fn=quiet)
    assert torch.equal(new.body.weight, model.body.weight)
    assert torch.equal(new_ema.module.body.weight, ema.module.body.weight)
    alone = tmp_path / "ema_only.pt"
    torch.save({"ema_state_dict": ema.state_dict(), "global_step": 4}, alone)
    with pytest.raises(InvalidFile, match="has no 'model_state_dict'"):
        load_resume_bundle(new, ckpt_path=alone, ema=new_ema, log_fn=quiet)


def test_the_averages_count_and_the_best_so_far_go_on(tmp_path: Path) -> None:
    """With a count of 0 the next update copies the raw weights over the average; without a best every score is one."""
    model = Net(seed=1)
    ema, swa = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)), AveragedModel(model)
    for _ in range(3):
        ema.update_parameters(model)
        swa.update_parameters(model)
    path = save(tmp_path, model=model, ema=ema, swa=swa, best_val_loss=0.125, epoch=3)
    new = Net(seed=2)
    new_ema, new_swa = AveragedModel(new, multi_avg_fn=get_ema_multi_avg_fn(0.9)), AveragedModel(new)
    bundle = load_resume_bundle(new, ckpt_path=path, ema=new_ema, swa=new_swa, log_fn=quiet)
    assert int(new_ema.n_averaged) == int(new_swa.n_averaged) == 3
    assert (bundle.best_val_loss, bundle.start_epoch, bundle.global_step) == (0.125, 3, 4)


@pytest.mark.fault("C8", by="weights: half of the numbers must fit")
def test_a_wrong_model_is_not_accepted_by_a_load_of_what_fits(tmp_path: Path) -> None:
    """mosaicml/composer#2216: strict=False and not one name in common is a fresh start that says it resumed."""
    path = save(tmp_path, model=Net(seed=1))
    for other, said in (
        (nn.ModuleDict({"encoder": nn.Linear(4, 3)}), "none of its parameters is in the model by name and shape"),
        (Net(seed=2, hidden=64), r"only [0-9]+% of its numbers fit the model by name and shape"),
    ):
        before = {name: value.clone() for name, value in other.state_dict().items()}
        with pytest.raises(InvalidFile, match=said):
            load_resume_bundle(other, ckpt_path=path, allow_partial_weights=True, log_fn=quiet)
        assert same(dict(other.state_dict()), before)
    empty = tmp_path / "empty.pt"
    torch.save({"model_state_dict": {}, "global_step": 4}, empty)
    with pytest.raises(InvalidFile, match="none of its parameters is in the model"):
        load_resume_bundle(Net(seed=2), ckpt_path=empty, allow_partial_weights=True, log_fn=quiet)
    assert MIN_MATCHED_SHARE == 0.5


def read_while(training: Any, steps: int) -> list[tuple[int, int]]:
    """Train; return (epoch, index of the pair) of every example that was really read, in order."""
    data, seen = training.batches, []
    example = data._example

    def noted(position: int) -> Any:
        epoch, place = divmod(position, len(data.data.train))
        seen.append((epoch, int(data._shuffled(epoch)[place])))
        return example(position)

    data._example = noted
    for _ in range(steps):
        training.step()
    data._example = example
    return seen


def test_an_offset_into_the_data_is_not_applied_again_in_the_next_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """allenai/OLMo#650: resumed in the middle of an epoch, and every later epoch begins in its middle too."""
    with example_jobs.without_the_kit(monkeypatch):
        # One segment for each puzzle: no slot is still thinking when its turn comes, and every pair is read.
        config = example_jobs.with_changes(
            data={"subset": 6}, model={"halt_max_steps": 1, "halt_exploration": 0.0}, training={"max_steps": 999}
        )
        whole = example_jobs.job(config)
        pairs = len(whole.data.train)
        steps = -(-pairs // 6)  # of six pairs each, in an epoch
        first = read_while(whole, steps + steps // 2)
        path = example_jobs.save(whole, tmp_path)
        resumed = example_jobs.load(path, config)
        assert resumed.epoch == 1 and len(first) % pairs, "resumed in the middle of an epoch"
        rest = read_while(resumed, 3 * steps)
        assert rest == read_while(whole, 3 * steps)
    for epoch in (0, 1, 2, 3):
        assert sorted(pair for own, pair in first + rest if own == epoch) == list(range(pairs)), "each pair once"


@pytest.mark.parametrize("told_by", ["its own load", "the launcher alone"])
@pytest.mark.parametrize("before", ["heartbeat", "step", "nothing"])
def test_speed_and_eta_after_a_resume_come_from_what_was_trained_since(
    tmp_path: Path, told_by: str, before: str
) -> None:
    """huggingface/transformers#40560: 40,000 steps in the first second, and an end that is near."""
    run = Run(RunPaths(tmp_path), {"run_id": "T-1", "parent_step": 40_000})
    run.paths.resolved_json.write_text(json.dumps({"training": {"max_steps": 50_000}}))
    early = {"heartbeat": {"event": "heartbeat", "global_step": 0}, "step": {"event": "step", "step": 0}}
    events = [{"event": "launched", "mono_s": 1.0}]
    events += [{**early[before], "mono_s": 10.0}] if before in early else []
    events += [{"event": "resumed", "step": 40_000, "mono_s": 20.0}] if told_by == "its own load" else []
    events += [{"event": "heartbeat", "global_step": 40_000, "mono_s": 21.0}]

    def seen(*more: dict[str, Any]) -> tuple[Any, ...]:
        run.paths.journal.write_text("".join(f"{json.dumps(event)}\n" for event in (*events, *more)))
        found = status.observe(run, status.read_state(run), status.View(ALIVE, ALIVE, None, 1e9))
        return found["global_step"], found["steps_per_sec"], found["eta_s"]

    assert seen() == (40_000, None, None)
    steps = [{"event": "step", "step": 40_000 + n, "mono_s": 21.0 + n / 2} for n in range(1, 21)]
    assert seen(*steps) == (40_020, 2.0, 9_980 / 2)


def test_a_newest_checkpoint_with_nan_inside_is_not_the_one_that_training_goes_on_from(tmp_path: Path) -> None:
    """Rikorose/DeepFilterNet#30: the run died of NaN, and its newest checkpoint held them."""
    model = Net(seed=1)
    optimizer = OPTIMIZERS["adamw"](model.parameters(), lr=0.1)
    train(model, optimizer, steps=2)
    sound = save(tmp_path, 2, model=model, optimizer=optimizer, loss=0.5)
    with torch.no_grad():
        model.body.weight[0, 0] = float("nan")
    save(tmp_path, 4, model=model, optimizer=optimizer, loss=0.5)
    door = Path(__file__).resolve().parent.parent / "lib" / "resume_helper.py"
    argv = [sys.executable, str(door), "--ckpt_dir", str(tmp_path), "--dry-run"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(sound) and "not finite" in done.stderr, done
