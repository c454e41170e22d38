"""What the ranks of a training tell each other: one answer in all of them, and no wait without an end."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from resumekit.base.errors import InvalidFile, KitError
from resumekit.trainer import ranks
from support.rank_groups import in_ranks, raised


def test_a_process_alone_waits_for_nobody() -> None:
    assert ranks.exchange("it", 3) == [3]
    assert ranks.exchange("it", 3, act=lambda values: values[0] + 1) == 4
    with pytest.raises(InvalidFile, match=r"^no file$"):
        ranks.exchange("it", refusal=InvalidFile("no file"))
    with pytest.raises(ValueError, match="bug"), ranks.agreed("it"):
        raise ValueError("bug")


def test_every_rank_gets_the_values_of_all_in_their_order_or_what_rank_0_makes_of_them() -> None:
    def both(rank: int) -> Any:
        tensors = ranks.exchange("tensors", {"own": torch.ones(2) * rank})
        pid_of_act = ranks.exchange("act", rank, act=lambda values: [sum(values), os.getpid()])
        store = torch.distributed.distributed_c10d._get_default_store()
        torch.distributed.barrier()
        left = [key for key in (store.list_keys() if hasattr(store, "list_keys") else []) if "resumekit" in str(key)]
        return [one["own"].tolist() for one in tensors], pid_of_act, os.getpid(), left

    answers = in_ranks(3, both)
    assert [one[0] for one in answers] == [[[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]] * 3
    assert [one[1] for one in answers] == [[3, answers[0][2]]] * 3, "rank 0 alone acts"
    assert [one[3] for one in answers] == [[]] * 3, "nothing is left in the store"


def test_rank_0_which_may_hold_the_store_ends_only_when_all_have_read_the_answer() -> None:
    def last(rank: int) -> Any:
        answer = ranks.exchange("the last", rank, act=lambda values: (time.sleep(2 * (rank == 0)), values)[1])
        return answer, rank

    def held_by_rank_0(rank: int, port: int) -> Any:
        torch.distributed.destroy_process_group()
        store = torch.distributed.TCPStore("127.0.0.1", port, 3, is_master=rank == 0)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=3)
        return last(rank)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert [one[0] for one in in_ranks(3, held_by_rank_0, port)] == [[0, 1, 2]] * 3


def test_a_refusal_of_one_rank_is_one_of_all_in_one_sentence_that_names_it() -> None:
    def refuse(rank: int) -> None:
        with ranks.agreed("the save of step 3"):
            if rank == 1:
                raise InvalidFile("the disk is not there")

    sentence = "InvalidFile: no rank goes on with the save of step 3, for rank 1 cannot: the disk is not there"
    assert raised(in_ranks(2, refuse)) == [sentence] * 2


def test_an_error_that_is_none_of_the_kits_stays_what_it_is_where_it_happened() -> None:
    def fail(rank: int) -> None:
        def act(_values: Any) -> None:
            raise OSError("worn out")

        try:
            with ranks.agreed("the first"):
                if rank == 1:
                    raise ZeroDivisionError("a bug")
        except (ZeroDivisionError, KitError) as error:
            first = f"{type(error).__name__}: {error}"
        try:
            ranks.exchange("the second", act=act)
        except (OSError, KitError) as error:
            return first, f"{type(error).__name__}: {error}"

    of_0, of_1 = in_ranks(2, fail)
    assert of_0 == (
        "KitError: no rank goes on with the first, for rank 1 cannot: ZeroDivisionError: a bug", "OSError: worn out"
    )  # fmt: skip
    assert of_1 == (
        "ZeroDivisionError: a bug", "KitError: no rank goes on with the second, for rank 0 cannot: OSError: worn out"
    )  # fmt: skip


@pytest.mark.parametrize("late", [0, 1])
def test_a_rank_that_does_not_come_is_named_and_the_ranks_count_alike_afterwards(late: int, tmp_path: Path) -> None:
    """The late one comes when the others have given up, is told the same, and they go on together."""

    def come(rank: int) -> Any:
        ranks._READ_S = 0.2
        torch.distributed.barrier()
        while rank == late and len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        try:
            ranks.exchange("the save of step 3", timeout_s=1.5)
        except KitError as error:
            (tmp_path / str(rank)).touch()
            return str(error), ranks.exchange("the next", rank, timeout_s=30)

    sentence = f"rank {late} of 3 did not come to the save of step 3 within 1.5 s "
    for said, then in in_ranks(3, come):
        assert said.startswith(sentence) and then == [0, 1, 2]


def test_a_rank_that_makes_another_call_is_told_at_once() -> None:
    def come(rank: int) -> None:
        ranks.exchange(f"the save of step {rank}")

    sentence = (
        "KitError: rank 1 is at the save of step 1, and rank 0 at the save of step 0: with ranks='all' every rank "
        "makes the same calls in the same order"
    )
    assert raised(in_ranks(2, come)) == [sentence] * 2


@pytest.mark.parametrize(
    ("value", "why"),
    [(b"x" * (ranks.MAX_BYTES + 10**6), "takes 5.2 MB, and 4.2 MB is the most"), (KitError, "must be plain values")],
)
def test_what_cannot_be_told_is_a_refusal(value: Any, why: str) -> None:
    def tell(rank: int) -> None:
        ranks.exchange("it", value if rank == 1 else None)

    for said in raised(in_ranks(2, tell)):
        assert "for rank 1 cannot: what rank 1 tells the others " + why in said


def test_a_killed_rank_0_is_not_waited_for_longer_than_said() -> None:
    def come(rank: int) -> None:
        if rank == 0:
            os._exit(1)
        ranks.exchange("it", timeout_s=0.3)

    assert raised(in_ranks(2, come))[1].startswith("KitError: rank 0 of 2 did not come to it within 0.3 s")


def test_the_argument_ranks_is_all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks.are_all("f", "all") and not ranks.are_all("f", None)
    with pytest.raises(KitError, match="f: ranks='every' is unknown: 'all' where every rank makes this call"):
        ranks.are_all("f", "every")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(KitError, match=r"ranks='all' in one of 2 ranks, and torch.distributed is not initialised"):
        ranks.are_all("f", "all")
