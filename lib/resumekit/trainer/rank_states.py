"""What of a checkpoint is each rank's own: its random number generators and its place in the data.

A checkpoint that all ranks have saved together has them as `rank_states`, in the order of the ranks; `rng_state` and
`data_state` are those of rank 0, as in any other. Pure: reads and writes no file.
"""

from __future__ import annotations

from ..base.imports import Any
from ..base.terms import RESET
from ..policy.decide import Cost
from .ranks import rank, world_size
from .weights import is_same_state

_OWN = ("rng_state", "data_state")
KEY = "rank_states"


def own_of(content: dict[str, Any]) -> dict[str, Any]:
    """Return of what a rank has collected what is its own."""
    return {name: content[name] for name in _OWN}


def with_all(content: dict[str, Any], states: list[dict[str, Any]]) -> dict[str, Any]:
    """Return rank 0's content with what each rank has of its own; of one rank alone as it is."""
    return {**content, KEY: states} if len(states) > 1 else content


def rng_ranks(content: dict[str, Any]) -> int | None:
    """Return of how many ranks a checkpoint holds the generators; None of one that a single process has written."""
    versions = content.get("versions")
    saved_by = versions.get("world_size") if isinstance(versions, dict) else None
    return max(1, len(_states(content))) if isinstance(saved_by, int) and saved_by > 1 else None


def of_this_rank(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content with this rank's own in the place of rank 0's, where it holds them for this many ranks."""
    states = _states(content)
    return {**content, **states[rank()]} if has_own(content) else content


def has_own(content: dict[str, Any]) -> bool:
    """Whether a checkpoint has for each of the ranks of now what is its own."""
    return len(_states(content)) == world_size()


def position_costs(content: dict[str, Any]) -> list[Cost]:
    """Return what it costs that there are more or fewer ranks now: a place of each rank's own is no rank's then."""
    states = _states(content)
    first = states[0]["data_state"] if states else None
    if not states or has_own(content) or all(is_same_state(one["data_state"], first) for one in states):
        return []
    words = f"each of {len(states)} ranks had a place of its own in the data, and now there are {world_size()}"
    return [Cost(words, {"data_position": RESET})]


def _states(content: dict[str, Any]) -> list[dict[str, Any]]:
    states = content.get(KEY)
    is_known = isinstance(states, list) and all(isinstance(one, dict) and one.keys() == {*_OWN} for one in states)
    return states if isinstance(states, list) and is_known else []
