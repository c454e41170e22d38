"""The example's model: its layers, the one-step gradient, the carry with halting, its optimizers."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from arc_data import ArcBatches, load_arc
from arc_settings import SettingsError
from hrm_layers import Block, GatedMlp, depth_schedule, rms_norm, rotary_angles, rotate, stablemax_cross_entropy
from hrm_model import Hrm, HrmShape
from hrm_noise import add_noise, noise_std
from hrm_optim import (
    MODEL,
    PUZZLES,
    SignSgd,
    chosen_kind,
    dense_parameters,
    kind_of,
    make_optimizers,
    set_hyperparameters,
)
from hrm_schedule import LearningRate, Schedule
from hrm_segments import carry_from, empty_carry, refill, segment_loss
from resume_helper import SwaCycle
from resumekit.start import forecast

OPTIMIZER = SimpleNamespace(
    name="adamw", lr=1e-3, betas=[0.9, 0.95], weight_decay=0.1, puzzle_lr=1e-2, puzzle_weight_decay=0.1, swap_at=None,
    swap_to="lion", swap_weight_decay=0.01,
)  # fmt: skip


def optimizer_config(**changes) -> SimpleNamespace:
    return SimpleNamespace(**(vars(OPTIMIZER) | changes))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def batches() -> ArcBatches:
    return ArcBatches(load_arc(subset=20), seed=1, batch_size=4)


class ScheduledPair:
    """Two optimizers and the schedule that drives both."""

    def __init__(self, model: Hrm) -> None:
        self.optimizers = make_optimizers(model, OPTIMIZER)
        self.schedule = Schedule(self.optimizers, LearningRate(2, 50, 0.0))

    def step(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.schedule.step()


def small(batches: ArcBatches, **changes) -> Hrm:
    shape = HrmShape(12, 100, batches.puzzle_ids, hidden_size=32, heads=2, puzzle_emb_dim=32)
    return Hrm(replace(shape, **changes))


def test_layers_rms_norm_gives_every_vector_the_root_mean_square_one():
    x = rms_norm(torch.randn(3, 5, 32) * 100)
    torch.testing.assert_close(x.pow(2).mean(-1), torch.ones(3, 5), atol=1e-4, rtol=0)


def test_layers_rotary_products_depend_on_the_distance_alone():
    cosines, sines = rotary_angles(20, 8)
    q, k = (torch.randn(1, 1, 1, 8).expand(1, 20, 1, 8) for _ in range(2))
    products = torch.einsum("bthd,bshd->ts", rotate(q, cosines, sines), rotate(k, cosines, sines))
    torch.testing.assert_close(products[3, 7], products[10, 14])
    assert not torch.allclose(products[3, 7], products[3, 8])


def test_layers_attention_looks_both_ways():
    block = Block(32, 2, 4.0, 0.0)
    angles = rotary_angles(6, 16)
    x = torch.randn(1, 6, 32)
    changed = x.clone()
    changed[0, 5] += 1.0
    assert not torch.allclose(block(x, *angles)[0, 0], block(changed, *angles)[0, 0])


def test_layers_stablemax_is_the_share_of_s_and_ignores_what_is_not_learned():
    logits = torch.tensor([[[2.0, -1.0, 0.0], [5.0, 5.0, 5.0]]])
    scores = torch.tensor([3.0, 0.5, 1.0], dtype=torch.float64)
    loss = stablemax_cross_entropy(logits, torch.tensor([[1, 0]]), ignored=0)
    torch.testing.assert_close(loss, torch.stack([-torch.log(scores[1] / scores.sum()), scores[0] * 0])[None])


def test_layers_stablemax_stays_finite_with_gradient_at_extreme_logits():
    logits = torch.tensor([[[1e6, -1e6, 0.0, 1.0]]], requires_grad=True)
    stablemax_cross_entropy(logits, torch.tensor([[1]]), ignored=-1).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_the_paper_size_has_27_million_parameters_besides_the_puzzle_table():
    with torch.device("meta"):
        model = Hrm(HrmShape(12, 900, 1, hidden_size=512, heads=8, layers=4, puzzle_emb_dim=512))
    weights = sum(weight.numel() for weight in model.parameters())
    assert 26.5e6 < weights < 27.5e6
    assert GatedMlp(64, 4.0).down.weight.shape == (64, 192)


def test_the_gradient_is_that_of_the_last_fast_and_last_slow_step_alone(batches):
    model = small(batches, h_cycles=2, l_cycles=3)
    carry = refill(model, empty_carry(model, 4), batches, 0, 0)
    told = model.embed(carry.tokens, carry.puzzle_ids).detach()
    slow, fast = model.think(carry.slow, carry.fast, told)
    slow.sum().backward()
    got = [weight.grad.clone() for weight in model.slow.parameters()]
    model.zero_grad()

    at = (model.cosines, model.sines)
    with torch.no_grad():  # the same turns, written out
        h, low = carry.slow, carry.fast
        for _ in range(3):
            low = model.fast(low, h + told, *at)
        h = model.slow(h, low, *at)
        for _ in range(2):
            low = model.fast(low, h + told, *at)
    low = model.fast(low, h + told, *at)
    by_hand = model.slow(h, low, *at)
    by_hand.sum().backward()
    assert torch.equal(by_hand, slow) and torch.equal(low, fast)
    assert all(torch.equal(a, b.grad) for a, b in zip(got, model.slow.parameters(), strict=True))


def test_a_carry_is_detached_and_only_halted_slots_take_a_new_puzzle(batches):
    model = small(batches)
    carry = refill(model, empty_carry(model, 4), batches, 0, 0)
    _, after = segment_loss(model, carry, max_segments=3, exploration=0.0)
    assert not after.slow.requires_grad and not after.fast.requires_grad
    after = replace(after, halted=torch.tensor([True, False, True, False]))
    filled = refill(model, after, batches, 1, 0)
    expected = torch.from_numpy(batches.take(1, 0, [0, 2])[0])
    assert torch.equal(filled.tokens[[0, 2]], expected)
    assert torch.equal(filled.tokens[[1, 3]], after.tokens[[1, 3]])
    assert filled.segments.tolist() == [0, 1, 0, 1]
    assert torch.equal(filled.slow[0], model.slow_start.expand_as(filled.slow[0]))
    assert torch.equal(filled.slow[1], after.slow[1])


def test_a_carry_halts_after_max_segments_and_not_before_where_continuing_is_worth_more(batches):
    model = small(batches)
    with torch.no_grad():
        model.halt.bias.copy_(torch.tensor([-5.0, 5.0]))
    carry = refill(model, empty_carry(model, 4), batches, 0, 0)
    for expected in (False, False, True):
        _, carry = segment_loss(model, carry, max_segments=3, exploration=1.0)
        assert carry.halted.tolist() == [expected] * 4


def test_a_carry_halts_at_once_where_halting_is_worth_more_and_explores_where_told(batches):
    model = small(batches)
    with torch.no_grad():
        model.halt.bias.copy_(torch.tensor([5.0, -5.0]))
    carry = refill(model, empty_carry(model, 4), batches, 0, 0)
    assert segment_loss(model, carry, max_segments=4, exploration=0.0)[1].halted.all()
    assert not segment_loss(model, carry, max_segments=4, exploration=1.0)[1].halted.any()


def test_a_carry_of_another_batch_size_is_not_taken(batches):
    model = small(batches)
    saved = empty_carry(model, 4).state_dict()
    assert carry_from(saved, empty_carry(model, 4)) is not None
    assert carry_from(saved, empty_carry(model, 8)) is None
    assert carry_from({"slow": saved["slow"]}, empty_carry(model, 4)) is None


def test_a_few_steps_on_one_batch_lower_the_loss(batches):
    model = small(batches)
    optimizers = make_optimizers(model, OPTIMIZER)
    losses = []
    for _ in range(12):
        carry = refill(model, empty_carry(model, 4), batches, 0, 0)
        loss, _ = segment_loss(model, carry, max_segments=1, exploration=0.0)
        loss.backward()
        losses.append(loss.item())
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]


def test_signed_descent_moves_and_decays_only_the_rows_that_were_seen():
    table = torch.nn.Embedding(5, 3, sparse=True)
    before = table.weight.detach().clone()
    optimizer = SignSgd([table.weight], lr=0.1, weight_decay=0.5)
    (table(torch.tensor([1, 3, 1])) * torch.tensor([1.0, -2.0, 0.0])).sum().backward()
    optimizer.step()
    assert torch.equal(table.weight[[0, 2, 4]], before[[0, 2, 4]])
    expected = before[[1, 3]] * (1 - 0.1 * 0.5) - 0.1 * torch.tensor([1.0, -1.0, 0.0])
    torch.testing.assert_close(table.weight.detach()[[1, 3]], expected)


def test_lr_warms_up_then_falls_to_its_ratio_and_stays_there():
    rate = LearningRate(warmup_steps=10, max_steps=110, min_ratio=0.1)
    assert [round(rate(step), 6) for step in (0, 9, 10, 60, 110, 500)] == [0.1, 1.0, 1.0, 0.55, 0.1, 0.1]
    rate.scale_at = lambda step, _: 0.8 if step < 61 else 1.0
    assert rate(60) == pytest.approx(0.44) and rate(110) == 0.1


def test_its_rate_is_the_one_that_the_kit_s_plan_foretells() -> None:
    """config.yaml says so with trainer.schedule_with_kit; bit for bit, at every step and beyond the end."""
    for warmup, last, ratio in ((0, 1, 0.0), (10, 110, 0.1), (2000, 100_000, 0.1), (100, 50, 1.0)):
        own = LearningRate(warmup, last, ratio)
        steps = [*range(0, 200), *range(last - 3, last + 3)]
        of_kit = {"warmup_steps": warmup, "max_steps": last, "min_lr_ratio": ratio}
        assert [own(max(0, step)) for step in steps] == [
            forecast.schedule_factor("cosine", max(0, step), **of_kit) for step in steps
        ]


def test_lr_of_an_swa_tail_is_a_small_triangle_around_the_schedule_or_around_a_rate_of_its_own():
    around_schedule = LearningRate(0, 1000, 1.0, SwaCycle(amplitude=0.2, steps=10))
    around_own = LearningRate(0, 1000, 1.0, SwaCycle(amplitude=0.2, steps=10, middle=0.5))
    assert around_schedule(100) == 1.0, "before it begins the schedule rules"
    for rate, middle in ((around_schedule, 1.0), (around_own, 0.5)):
        rate.cycle_from = 103
        assert rate(102) == 1.0
        lows, highs = [rate(step) for step in (103, 113, 1103)], [rate(step) for step in (108, 118)]
        assert lows == pytest.approx([0.8 * middle] * 3) and highs == pytest.approx([1.2 * middle] * 2)
        assert rate(105) == pytest.approx(0.96 * middle) and rate(111) == pytest.approx(0.96 * middle)


def test_lr_of_a_refitted_schedule_is_what_the_config_says_at_the_kept_step(batches):
    model = small(batches)
    running, loaded, fresh = (ScheduledPair(model) for _ in range(3))
    for _ in range(7):
        running.step()
    loaded.schedule.load_state_dict(running.schedule.state_dict())
    for refitted in (loaded, fresh):
        refitted.schedule.refit(7)
        assert refitted.schedule.get_last_lr() == running.schedule.get_last_lr()
    for pair in (running, loaded, fresh):
        pair.step()
    rates = [[group["lr"] for o in pair.optimizers.values() for group in o.param_groups] for pair in (running, fresh)]
    assert rates[0] == rates[1] == loaded.schedule.get_last_lr()


def test_loaded_optimizers_take_the_weight_decay_of_the_config(batches):
    model = small(batches)
    optimizers = make_optimizers(model, OPTIMIZER)
    changed = optimizer_config(betas=[0.8, 0.9], weight_decay=0.05, puzzle_weight_decay=0.2)
    set_hyperparameters(optimizers, changed)
    group = optimizers[MODEL].param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.9), 0.05)
    assert optimizers[PUZZLES].param_groups[0]["weight_decay"] == 0.2
    set_hyperparameters(optimizers, changed, swapped=True)
    assert (group["weight_decay"], optimizers[PUZZLES].param_groups[0]["weight_decay"]) == (0.01, 0.2)


@pytest.mark.parametrize(("kind", "made"), [("adamw", "AdamW"), ("lion", "Lion"), ("sgd", "SGD")])
def test_the_optimizer_of_the_model_is_what_the_config_names_and_its_key_is_its_role(batches, kind, made):
    model = small(batches)
    optimizers = make_optimizers(model, optimizer_config(name=kind))
    assert list(optimizers) == [MODEL, PUZZLES] == ["model", "puzzles"]
    assert type(optimizers[MODEL]).__name__ == made and kind_of(optimizers) == kind
    assert isinstance(optimizers[PUZZLES], SignSgd)
    set_hyperparameters(optimizers, optimizer_config(betas=[0.7, 0.8]))
    (group,) = optimizers[MODEL].param_groups
    assert group["momentum"] == 0.7 if kind == "sgd" else group["betas"] == (0.7, 0.8)
    names = {id(weight): name for name, weight in model.named_parameters()}
    trained = [names[id(weight)] for weight in dense_parameters(optimizers)]
    assert sorted([*trained, "puzzles.weight"]) == sorted(names.values())


def test_an_optimizer_takes_over_in_a_run_that_begins_at_the_planned_step_or_beyond():
    planned = optimizer_config(swap_at=40)
    kinds = [chosen_kind(planned, begins_at) for begins_at in (0, 39, 40, 41)]
    assert kinds == ["adamw", "adamw", "lion", "lion"]
    assert chosen_kind(OPTIMIZER, 10**6) == "adamw"
    assert chosen_kind(optimizer_config(name="lion", swap_at=40, swap_to="sgd"), 40) == "sgd"


def test_an_optimizer_without_its_package_or_with_a_rate_of_0_is_refused_in_a_sentence(batches, monkeypatch):
    model = small(batches)
    with pytest.raises(SettingsError, match=r"optimizer\.lr is '0\.0', and Lion wants one above 0"):
        make_optimizers(model, optimizer_config(name="lion", lr=0.0))
    monkeypatch.setitem(sys.modules, "lion_pytorch", None)
    with pytest.raises(SettingsError, match="optimizer 'lion' needs the package lion-pytorch"):
        make_optimizers(model, optimizer_config(name="lion"))


def test_droppath_rises_evenly_over_the_blocks_of_the_slow_module(batches):
    assert depth_schedule(0.0, 0.2, 5) == pytest.approx((0.0, 0.05, 0.1, 0.15, 0.2))
    assert depth_schedule(0.0, 0.2, 5)[0] == 0.0, "exactly: at 0 nothing is drawn"
    assert depth_schedule(0.1, 0.1, 2) == (0.1, 0.1) and depth_schedule(0.0, 0.2, 1) == (0.2,)
    model = small(batches, h_cycles=2, layers=2, droppath_h=(0.0, 0.3))
    assert [len(skips) for skips in model.skips] == [2, 2]
    assert [p for skips in model.skips for p in skips] == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_droppath_skips_whole_examples_and_scales_what_stays_up_in_training_alone():
    block, angles, x = Block(32, 2, 4.0, 0.0), rotary_angles(6, 16), rms_norm(torch.randn(400, 6, 32))
    plain = block(x, *angles)
    block.train()
    dropped = block(x, *angles, 0.25)
    skipped = torch.tensor([torch.allclose(a, b, atol=1e-4) for a, b in zip(dropped, x, strict=True)])
    assert 0.15 < skipped.float().mean() < 0.35, "of 400 examples a quarter, give or take"
    scaled = rms_norm(x + block.attention(x, *angles) / 0.75)
    scaled = rms_norm(scaled + block.mlp(scaled) / 0.75)
    torch.testing.assert_close(dropped[~skipped], scaled[~skipped])
    block.eval()
    state = torch.get_rng_state()
    assert torch.equal(block(x, *angles, 0.25), plain) and torch.equal(torch.get_rng_state(), state)


def test_droppath_of_0_draws_no_random_numbers(batches):
    model = small(batches).train()
    carry = refill(model, empty_carry(model, 4), batches, 0, 0)
    told = model.embed(carry.tokens, carry.puzzle_ids)
    state = torch.get_rng_state()
    model.think(carry.slow, carry.fast, told)
    assert torch.equal(torch.get_rng_state(), state)
    dropping = small(batches, droppath_h=(0.0, 0.2)).train()
    state = torch.get_rng_state()
    dropping.think(carry.slow, carry.fast, told)
    assert not torch.equal(torch.get_rng_state(), state)


def test_the_rule_head_adds_two_parameters_and_leaves_all_others_as_they_begin(batches):
    plain, guessing = [], []
    for made, rules in ((plain, 0), (guessing, 8)):
        torch.manual_seed(3)
        model = small(batches, rules=rules)
        made.extend(model.state_dict().items())
    assert [name for name, _ in guessing[len(plain) :]] == ["rule_head.weight", "rule_head.bias"]
    assert all(a == b and torch.equal(one, other) for (a, one), (b, other) in zip(plain, guessing, strict=False))


def test_the_rule_head_learns_in_which_turn_the_grids_of_a_puzzle_id_are_shown(batches):
    rules = torch.from_numpy(batches.rules)
    assert rules.shape == (batches.puzzle_ids,) and set(rules.tolist()) == set(range(8))
    assert rules[:: batches.variants].tolist() == [0] * len(batches.data.task_ids), "version 0 is the task as it is"
    model = small(batches, rules=8)
    carry = refill(model, empty_carry(model, 4), batches, 0, 0)
    without, _ = segment_loss(model, carry, max_segments=1, exploration=0.0)
    loss, _ = segment_loss(model, carry, max_segments=1, exploration=0.0, rules=rules)
    guessed = model.guess_rule(model.think(carry.slow, carry.fast, model.embed(carry.tokens, carry.puzzle_ids))[0])
    expected = torch.nn.functional.cross_entropy(guessed, rules[carry.puzzle_ids])
    torch.testing.assert_close(loss - without, 0.1 * expected.double())
    loss.backward()
    assert model.rule_head.weight.grad.abs().sum() > 0


def test_noise_fades_with_the_step_and_is_the_same_for_the_same_seed_and_step():
    assert noise_std(0.5, 0) == 0.5
    assert noise_std(0.5, 99) ** 2 == pytest.approx(0.25 / 100**0.55)

    def noisy(seed: int, step: int) -> torch.Tensor:
        weight = torch.zeros(50_000, requires_grad=True)
        weight.grad = torch.ones(50_000)
        add_noise([torch.zeros(2, requires_grad=True), weight], sigma=0.5, seed=seed, step=step)
        return weight.grad - 1

    state = torch.get_rng_state()
    first = noisy(1, 99)
    assert torch.equal(torch.get_rng_state(), state), "torch's own random numbers are not touched"
    assert torch.equal(noisy(1, 99), first)
    assert not torch.equal(noisy(2, 99), first) and not torch.equal(noisy(1, 100), first)
    assert first.std().item() == pytest.approx(noise_std(0.5, 99), rel=0.02)
    assert abs(first.mean().item()) < 0.005
