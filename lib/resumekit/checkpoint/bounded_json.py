"""JSON that a framework wrote beside its weights, read within bounds: of size, of depth, of how many values it has.

What the kit writes itself is read by `base/files`, which takes neither NaN nor Infinity: a framework writes both.
"""

from __future__ import annotations

from ..base.files import UnreadableFile
from ..base.imports import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BYTES = 32 << 20
# An empty list takes twenty times the memory of its two bytes: objects and lists, and what stands behind a comma.
MAX_CONTAINERS, MAX_ITEMS = 1_000_000, 4_000_000


def parse(data: bytes, what: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> dict[str, Any]:
    """Return the object in `data`.

    Args:
        data: the whole of it, UTF-8.
        what: the name of it, for the reasons of a refusal: 'header'.
        pairs: makes an object of its names and values; None for a dict, of equal names the last one.

    Raises:
        UnreadableFile: it is too large, no JSON, or no object.
    """
    import json  # late: 2 ms, which a start that meets no such file need not pay

    if len(data) > MAX_BYTES:
        raise UnreadableFile(f"its {what} has {len(data):,} bytes, more than {MAX_BYTES:,}")
    try:
        text = data.decode()
        if text.count("{") + text.count("[") > MAX_CONTAINERS or text.count(",") > MAX_ITEMS:
            raise UnreadableFile(f"its {what} has more than {MAX_ITEMS:,} values")
        found = json.loads(text, object_pairs_hook=pairs)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()  # raises for half a character, as \ud800
    except UnreadableFile:
        raise
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(f"its {what} is not JSON: damaged, or another file") from error
    if type(found) is not dict:
        raise UnreadableFile(f"its {what} is no JSON object")
    return found
