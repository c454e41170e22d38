"""The sampler: its order is one of seed and epoch, its place one of the step, whatever workers have fetched ahead."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from resumekit.base.errors import KitError
from resumekit.trainer.loading import load_resume_bundle
from resumekit.trainer.sampler import StepSampler
from resumekit.trainer.saving import save_checkpoint
from support.checkpoint_tools import quiet
from support.resume_parts import same

pytestmark = pytest.mark.usefixtures("in_a_new_process")


def batches(sampler: StepSampler, data: Any = None, **loader: Any) -> Iterator[list[int]]:
    """Yield batches, epoch after epoch, by a DataLoader where there are data."""
    while True:
        yield from (sampler if data is None else DataLoader(data, batch_sampler=sampler, **loader))


def steps(sampler: StepSampler, number: int, **more: Any) -> list[list[int]]:
    return [list(map(int, batch)) for batch in itertools.islice(batches(sampler, **more), number)]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("length", [2, 12, 13, 17])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_an_epoch_has_every_example_once_and_each_rank_its_share(length: int, ranks: int, drop_last: bool) -> None:
    size = 1 if length == 2 else 2
    if drop_last and length < ranks:
        pytest.skip("an epoch has no batch")
    each = [StepSampler(length, size, rank=r, world_size=ranks, drop_last=drop_last, seed=5) for r in range(ranks)]
    for _ in range(2):
        shares = [list(one) for one in each]
        assert {len(share) for share in shares} == {len(each[0])}
        assert len({sum(map(len, share)) for share in shares}) == 1, "ranks wait for each other at the last batch"
        seen = [index for share in shares for batch in share for index in batch]
        assert {len(batch) for share in shares for batch in share} == {size} or not drop_last
        if drop_last:
            assert len(set(seen)) == len(seen) > length - ranks * size
        else:
            assert set(seen) == {*range(length)} and len(seen) < length + ranks


def test_the_order_is_one_of_seed_and_epoch_alone() -> None:
    first, again = StepSampler(50, 5, seed=1), StepSampler(50, 5, seed=1)
    one, two = steps(first, 10), steps(first, 10)
    assert one != two and steps(again, 20) == one + two
    assert steps(StepSampler(50, 5, seed=2), 10) not in (one, two), "seed 2, epoch 0 is not seed 1, epoch 1"
    assert steps(StepSampler(4, 2, shuffle=False), 4) == [[0, 1], [2, 3]] * 2
    next(iter(again))
    again.set_step(13)
    assert steps(again, 7) == two[3:], "one that was broken off, then placed by the step"


@pytest.mark.parametrize(("drop_last", "batches_per_step", "ranks"), [(False, 1, 1), (True, 3, 1), (False, 2, 2)])
@pytest.mark.parametrize("step", range(1, 9))
def test_a_resume_goes_on_with_the_next_batch(step: int, drop_last: bool, batches_per_step: int, ranks: int) -> None:
    def made() -> StepSampler:
        words = {"drop_last": drop_last, "batches_per_step": batches_per_step}
        return StepSampler(13, 3, rank=ranks - 1, world_size=ranks, **words)

    whole = steps(made(), 60)
    done = step * batches_per_step
    sampler = made()
    steps(sampler, done + 2)  # two fetched ahead
    state = sampler.state_dict(step)
    resumed = made()
    resumed.load_state_dict(state)
    assert resumed.state_dict(step) == state, "as check_resume compares it"
    assert steps(resumed, 20) == whole[done : done + 20]
    assert resumed.state_dict(step + 4) == sampler.state_dict(step + 4)
    skipping = made()
    skipping.load_state_dict(state, skip_steps=2)
    assert steps(skipping, 5) == whole[done + 2 * batches_per_step :][:5]
    assert skipping.state_dict(step) == sampler.state_dict(step + 2) | {"step": step}


def test_ranks_and_batch_size_may_be_others_after_a_resume() -> None:
    ranks = [StepSampler(24, 2, rank=rank, world_size=2) for rank in range(2)]
    seen = [index for one in ranks for batch in steps(one, 3) for index in batch]
    more = [StepSampler(24, 1, rank=rank, world_size=3) for rank in range(3)]
    for one in more:
        one.load_state_dict(ranks[0].state_dict(3))
        seen += [index for batch in one for index in batch]
    assert sorted(seen) == [*range(24)]
    assert more[0].state_dict(7) == {"step": 7, "epoch": 1, "position": 0, "seed": 0, "length": 24}


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: StepSampler(10, 0), "batch_size 0"),
        (lambda: StepSampler(10, 1, rank=2, world_size=2), "rank 2 one of 2"),
        (lambda: StepSampler(3, 4, drop_last=True), "3 examples make no batch of 4"),
        (lambda: StepSampler([], 4), "0 examples make no batch"),
        (lambda: StepSampler(10, 1).load_state_dict({"step": 3}), "no state of a StepSampler"),
        (lambda: StepSampler(10, 1).load_state_dict(None), "no state of a StepSampler"),
        (lambda: StepSampler(10, 1).load_state_dict(StepSampler(9, 1).state_dict(3)), "over 9 examples"),
        (lambda: StepSampler(10, 1, seed=1).load_state_dict(StepSampler(10, 1).state_dict(3)), "seed 0 over"),
        (lambda: placed(StepSampler(10, 1)).state_dict(2), "step 2 lies before step 3"),
    ],
)
def test_what_cannot_be_is_one_sentence(make: Any, why: str) -> None:
    with pytest.raises(KitError, match=why):
        make()


def placed(sampler: StepSampler) -> StepSampler:
    sampler.set_step(3)
    return sampler


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_in_the_middle_of_an_epoch_goes_on_bit_for_bit(workers: int, tmp_path: Path) -> None:
    """Dropout draws from torch's numbers too: the loader seeds its workers from a generator of its own."""

    def train(upto: int, resume: Path | None = None) -> Any:
        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
        optimizer = torch.optim.AdamW(model.parameters())
        sampler = StepSampler(10, 2)
        bundle = load_resume_bundle(model, optimizer, ckpt_path=resume, log_fn=quiet)
        if bundle.extra.get("data_state") is not None:
            sampler.load_state_dict(bundle.extra["data_state"], skip_steps=bundle.skip_data_steps)
        loader = {"num_workers": workers, "generator": torch.Generator()}
        taken = batches(sampler, torch.arange(10.0), **loader)
        for _ in range(bundle.global_step, upto):
            model(next(taken)[:, None]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        own = {"model": model, "optimizer": optimizer, "data_state": sampler.state_dict(upto)}
        save_checkpoint(tmp_path / str(resume is None), upto, **own, log_fn=quiet)
        return model.state_dict()

    train(8)
    whole = train(14)
    assert same(train(14, tmp_path / "True" / "hrm_arc_step_8.pt"), whole)
