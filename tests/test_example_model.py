"""The example's model: its layers, the one-step gradient, the carry with halting, its optimizers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "hrm_arc"))

from arc_data import ArcBatches, load_arc
from hrm_layers import Block, GatedMlp, rms_norm, rotary_angles, rotate, stablemax_cross_entropy
from hrm_model import Hrm, HrmShape
from hrm_optim import ADAMW, SIGN_SGD, LearningRate, Schedule, SignSgd, make_optimizers, set_hyperparameters
from hrm_segments import carry_from, empty_carry, refill, segment_loss

OPTIMIZER = SimpleNamespace(lr=1e-3, betas=[0.9, 0.95], weight_decay=0.1, puzzle_lr=1e-2, puzzle_weight_decay=0.1)


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
    rate.lr_scale = 0.8
    assert rate(60) == pytest.approx(0.44)


def test_lr_of_a_refitted_schedule_is_what_the_config_says_at_the_kept_step(batches):
    model = small(batches)
    running, loaded, fresh = (ScheduledPair(model) for _ in range(3))
    for _ in range(7):
        running.step()
    loaded.schedule.load_state_dict(running.schedule.state_dict())
    for refitted in (loaded, fresh):
        refitted.schedule.place(7, {ADAMW: 1e-3, SIGN_SGD: 1e-2})
        assert refitted.schedule.get_last_lr() == running.schedule.get_last_lr()
    for pair in (running, loaded, fresh):
        pair.step()
    rates = [[group["lr"] for o in pair.optimizers.values() for group in o.param_groups] for pair in (running, fresh)]
    assert rates[0] == rates[1] == loaded.schedule.get_last_lr()


def test_loaded_optimizers_take_the_weight_decay_of_the_config(batches):
    model = small(batches)
    optimizers = make_optimizers(model, OPTIMIZER)
    set_hyperparameters(optimizers, SimpleNamespace(betas=[0.8, 0.9], weight_decay=0.05, puzzle_weight_decay=0.2))
    group = optimizers[ADAMW].param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.9), 0.05)
    assert optimizers[SIGN_SGD].param_groups[0]["weight_decay"] == 0.2
