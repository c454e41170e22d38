"""A checkpoint that a trainer loads by itself is executed by it: whose file it is, and what is in it.

`torch.load` without weights_only unpickles, and a pickle runs what it names. Another user's file is taken without a
question only if the kit's reader finds plain data in it, as loading with weights_only=True would. Looks at one file.
Source: docs/security.md, decision 0014.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..configuration import config
from ..proving.checkpoints import Candidate
from ..run_folder.trust import user_of


def consents(candidate: Candidate | None, resolved: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a person must agree to before a trainer loads a checkpoint.

    Args:
        candidate: the chosen one, with what the kit's reader found in it; None for none.
        resolved: the new run's config: a trainer with the kit's helpers loads with weights_only=True.
    """
    if candidate is None or config.get(dict(resolved), "trainer.loads_with_kit"):
        return ()
    try:
        owners = {os.lstat(candidate.path).st_uid, os.stat(candidate.path).st_uid}
    except OSError:  # gone since: the start says so when it opens it
        return ()
    others = sorted(owners - {os.geteuid()})
    inside = candidate.inside
    if not others or (inside is not None and not inside.unsafe):
        return ()
    what = f"'{inside.unsafe[0]}'" if inside is not None else "what the kit cannot read"
    return (
        f"'{candidate.path}' belongs to {user_of(others[0])} and holds {what}, which is not plain data: this trainer "
        "loads by itself (trainer.loads_with_kit is false), and what loads it may run what it names",
    )
