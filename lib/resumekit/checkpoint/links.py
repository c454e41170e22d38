"""Links of a checkpoint to another disk, scratch say: followed where they and what they lead to are the caller's.

Only where the config says so (`checkpoint.follow_links`): a link of another user's may lead to what the caller alone
may read. Looks at owners; opens nothing.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..base.files import UnreadableFile

MAX_HOPS = 8
# What is said behind the reason where the config could have had a link followed.
WAY_OUT = "checkpoint.follow_links: true follows those of your own"


def refused(reason: str, follow_links: bool | None) -> UnreadableFile:
    """Return the error for a link that is not followed, with the way out where there is a config that could say it."""
    return UnreadableFile(reason if follow_links is None else f"{reason} ({WAY_OUT})")


def followed(link: Path | str) -> os.stat_result:
    """Return what stat says of that which a link leads to, over others if need be.

    Raises:
        UnreadableFile: one of the links, or what they lead to, is not the caller's; or they lead nowhere.
    """
    place = os.fspath(link)
    try:
        for _ in range(MAX_HOPS + 1):
            seen = os.lstat(place)
            what = "a link of" if stat.S_ISLNK(seen.st_mode) else "a link to what is"
            if seen.st_uid != os.geteuid():
                raise UnreadableFile(f"{what} another user's: it is not followed")
            if not stat.S_ISLNK(seen.st_mode):
                return seen
            place = os.path.join(os.path.dirname(place), os.readlink(place))
    except FileNotFoundError as error:
        raise UnreadableFile("a link to nothing") from error
    except OSError as error:
        raise UnreadableFile(f"a link that cannot be followed: {error.strerror}") from error
    raise UnreadableFile(f"a link that leads to itself, or over more than {MAX_HOPS} others")
