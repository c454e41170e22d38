"""A folder that `save_sharded` wrote: the tensors in torch's own shards (DCP), all else in one plain file beside them.

`resumekit.pt` is a checkpoint as `save_checkpoint` writes it, but that a mark stands where a tensor lies in the shards,
and that it has the generators and the data state of every rank. So nothing that is pickled is in a shard, and what is
missing in one is seen: each mark names an entry of `.metadata`. Reads and writes no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..base.files import UnreadableFile
from ..base.imports import TYPE_CHECKING, Any
from ..base.values import count
from .archive import WEIGHT_KEYS

if TYPE_CHECKING:
    from .dcp_metadata import Metadata

STATE_FILE = "resumekit.pt"
# Where a tensor lies in the shards.
MARK = "resumekit: in the shards"
WEIGHTS, OPTIMIZER = "model_state_dict", "optimizer_state_dict"
PARTS = (WEIGHTS, OPTIMIZER, "ema_state_dict", "swa_state_dict")
# What each rank has of its own, in the order of the ranks; of one rank alone it stands at the top.
RANK_STATES = "rank_states"

Keys = tuple[Any, ...]


def marks(plain: Mapping[Any, Any]) -> Iterator[tuple[Keys, Keys]]:
    """Yield for each mark (the keys that lead to it in the content, those that lead to its entry in the shards).

    They differ in an optimizer's state alone: a content numbers its parameters, the shards have their names.

    Args:
        plain: what `resumekit.pt` holds.
    """
    for part in PARTS:
        for keys, value in leaves(plain.get(part), (part,)):
            if value == MARK:
                yield keys, entry_of(keys, plain)


def entry_of(keys: Keys, content: Mapping[Any, Any]) -> Keys:
    """Return the keys of the entry in the shards of a tensor of a content, by its parameter's name."""
    if keys[0] != OPTIMIZER:
        return keys
    place = 1 if "param_groups" in content[OPTIMIZER] else 2
    if len(keys) <= place + 1 or keys[place] != "state" or not isinstance(keys[place + 1], int):
        return keys
    names = content.get("parameter_names")
    groups = names.get(keys[1]) if place == 2 and isinstance(names, dict) else names
    flat = [name for group in groups for name in group] if isinstance(groups, list) else []
    number = keys[place + 1]
    name = flat[number] if 0 <= number < len(flat) else None
    return (*keys[: place + 1], str(number) if name is None else name, *keys[place + 2 :])


def leaves(value: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
    """Yield (keys, value) of all that is in nested dicts and lists and is none itself."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*keys, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from leaves(item, (*keys, index))
    else:
        yield keys, value


def entry_name(keys: Keys) -> str:
    """Return an entry's name in the flattened state dict."""
    return ".".join(map(str, keys))


def require_whole(plain: Mapping[Any, Any], known: Metadata) -> int:
    """Return the number of ranks that saved it.

    Args:
        plain: what `resumekit.pt` holds.
        known: what `.metadata` says.

    Raises:
        UnreadableFile: an entry is in the one and not in the other, or the generators or the data state of a rank are
            not there.
    """
    if not isinstance(plain.get(WEIGHTS), dict) or WEIGHT_KEYS[0] != WEIGHTS:
        raise UnreadableFile(f"'{STATE_FILE}' in it names no weights")
    named = {entry_name(entry) for _, entry in marks(plain)}
    if missing := sorted(named - known.tensors.keys()):
        raise UnreadableFile(f"'{missing[0][:200]}', which '{STATE_FILE}' names, is in no shard")
    if more := sorted((known.tensors.keys() | set(known.values)) - named):
        raise UnreadableFile(f"'{more[0][:200]}' is in a shard, and '{STATE_FILE}' does not name it")
    versions = plain.get("versions")
    ranks = count(versions.get("world_size")) if isinstance(versions, dict) else None
    states = plain.get(RANK_STATES) if ranks != 1 else [plain]
    if not ranks or not isinstance(states, list) or len(states) != ranks:
        held = len(states) if isinstance(states, list) else 0
        raise UnreadableFile(f"'{STATE_FILE}' in it has the generators and data state of {held} of {ranks} ranks")
    own = [one if isinstance(one, dict) else {} for one in states]
    for rank, one in enumerate(own):
        if not isinstance(one.get("rng_state"), dict):
            raise UnreadableFile(f"'{STATE_FILE}' in it has no random number generators of rank {rank}")
        if one.get("data_state") is None and any(other.get("data_state") is not None for other in own):
            raise UnreadableFile(f"'{STATE_FILE}' in it has no data state of rank {rank}, which other ranks have")
    return ranks
