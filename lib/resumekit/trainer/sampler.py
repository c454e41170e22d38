"""A sampler whose order is a pure function of seed and epoch, and whose place is one of the trainer's step.

It stands in a DataLoader as `batch_sampler`. What workers have fetched ahead does not count: where a run stands is
worked out from the steps that it has done, so nothing but the step has to be remembered, and a resume in the middle of
an epoch goes on with the batch that comes next. Reads and writes no file.
Try it: `python -m pytest tests/test_sampler.py`
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sized

from ..base.errors import KitError
from ..base.imports import Any
from ..base.values import count, mapping
from .ranks import rank, world_size


class StepSampler:
    """The batches of a map-style dataset, a list of indices each, those of this rank alone.

    An epoch's order is a permutation made of seed and epoch. Rank r of n takes every n-th index of it from the r-th on;
    what is missing for n equal shares is filled up with the order's first ones (`drop_last`: the rest is left out).

    Args:
        data: the dataset, or how many examples it has.
        batch_size: examples in a batch of this rank.
        seed: of the order; alike in all ranks.
        shuffle: False keeps the dataset's own order in every epoch.
        drop_last: leave out the last batch of an epoch where it is not full, as DataLoader's does.
        batches_per_step: batches of an optimizer step (gradient accumulation), also across the end of an epoch.
        rank, world_size: this process among those of the training; None for torch.distributed's, else 0 of 1.

    Raises:
        KitError: a number is out of its range, or an epoch would have no batch.
    """

    def __init__(
        self, data: Sized | int, batch_size: int, *, seed: int = 0, shuffle: bool = True, drop_last: bool = False,
        batches_per_step: int = 1, rank: int | None = None, world_size: int | None = None,
    ) -> None:  # fmt: skip
        self.length = data if isinstance(data, int) else len(data)
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last
        self.batches_per_step = batches_per_step
        self.world_size = _world_size() if world_size is None else world_size
        self.rank = _rank() if rank is None else rank
        if min(batch_size, batches_per_step, self.world_size) < 1 or not 0 <= self.rank < self.world_size:
            raise KitError(
                f"StepSampler: batch_size {batch_size} and batches_per_step {batches_per_step} must be 1 at least, "
                f"and rank {self.rank} one of {self.world_size}"
            )
        if not self._batches_from(0):
            raise KitError(f"StepSampler: {self.length} examples make no batch of {batch_size} for each of the ranks")
        # Where the run stood when the order was last placed: steps done, epoch, and examples of it that all ranks had.
        self._origin = (0, 0, 0)
        self._next = (0, 0)

    def __len__(self) -> int:
        """Return the batches of a whole epoch, for this rank."""
        return self._batches_from(0)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the rest of the epoch from where it stands; the iteration after that yields the next epoch."""
        epoch, position = self._next
        order, last = self._order(epoch, position), self._batches_from(position) - 1
        for batch in range(last + 1):
            if batch == last:  # before it is given out: a loop that counts its batches takes no more
                self._next = (epoch + 1, 0)
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def set_step(self, step: int) -> None:
        """Go to where a run stands that has done so many optimizer steps in this order, from its beginning."""
        self._origin = (0, 0, 0)
        epoch, position = self._next = self._place(step)
        self._origin = (step, epoch, position)

    def state_dict(self, step: int) -> dict[str, int]:
        """Return where a run stands that has done `step` optimizer steps, for save_checkpoint's `data_state`.

        Returns:
            step; epoch; position: the examples of the epoch's order that all ranks together have had; seed; length.
        """
        epoch, position = self._place(step)
        return {"step": step, "epoch": epoch, "position": position, "seed": self.seed, "length": self.length}

    def load_state_dict(self, state: dict[str, Any], skip_steps: int = 0) -> None:
        """Go on where a state says; batch size, accumulation and the number of ranks may be others now.

        Args:
            state: what `state_dict` returned.
            skip_steps: steps to leave out, `bundle.skip_data_steps`.

        Raises:
            KitError: it is no such state, or that of another order.
        """
        step, epoch, position = (count(mapping(state).get(name)) for name in ("step", "epoch", "position"))
        if step is None or epoch is None or position is None:
            raise KitError("StepSampler: this is no state of a StepSampler: it has no step, epoch and position")
        was, now = ({name: one.get(name) for name in ("seed", "length")} for one in (state, self.state_dict(0)))
        if was != now:
            raise KitError(
                f"StepSampler: the state is of the order of seed {was['seed']} over {was['length']} examples, and this "
                f"one of seed {now['seed']} over {now['length']}: build it as it was, or leave the state out"
            )
        self._origin = (step, epoch, position)
        epoch, position = self._place(step + skip_steps)
        self._origin, self._next = (step, epoch, position), (epoch, position)

    def _place(self, step: int) -> tuple[int, int]:
        """Return (epoch, position) after so many steps: a new epoch's beginning rather than an old one's end."""
        begun, epoch, position = self._origin
        batches = (step - begun) * self.batches_per_step
        if batches < 0:
            raise KitError(f"StepSampler: step {step} lies before step {begun}, from which the order was gone on with")
        left = self._batches_from(position)
        if batches >= left:
            more, batches = divmod(batches - left, len(self))
            epoch, position = epoch + 1 + more, 0
        return epoch, position + batches * self.batch_size * self.world_size

    def _batches_from(self, position: int) -> int:
        """Return this rank's batches from a place to the end of the epoch."""
        examples = self._of_each_rank(position)
        return examples // self.batch_size if self.drop_last else -(-examples // self.batch_size)

    def _of_each_rank(self, position: int) -> int:
        left = max(0, self.length - position)
        return left // self.world_size if self.drop_last else -(-left // self.world_size)

    def _order(self, epoch: int, position: int) -> list[int]:
        """Return this rank's indices from a place to the end of the epoch."""
        import torch  # the trainer has it already

        if self.shuffle:
            generator = torch.Generator().manual_seed(_seed_of(self.seed, epoch))
            order = torch.randperm(self.length, generator=generator)
        else:
            order = torch.arange(self.length)
        wanted = self._of_each_rank(position) * self.world_size
        rest = order[position:]
        while len(rest) < wanted:  # fewer examples than ranks: more than once
            rest = torch.cat([rest, order[: wanted - len(rest)]])
        own: list[int] = rest[:wanted][self.rank :: self.world_size].tolist()
        return own


# The names of StepSampler's arguments are these functions' too.
_rank, _world_size = rank, world_size


def _seed_of(seed: int, epoch: int) -> int:
    """Return a seed of 63 bits, so that (1, 2) and (2, 1) are not one order, as their sum would be."""
    return int.from_bytes(hashlib.sha256(f"{seed} {epoch}".encode()).digest()[:8], "big") >> 1
