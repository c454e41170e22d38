"""Sections of a config for tests of the plan, and the plan that comes of them."""

from __future__ import annotations

import json
from typing import Any

from support.commands import Kit

SECTIONS = {
    "model": {"aux_rule_head": False},
    "optimizer": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.01},
    "schedule": {"name": "cosine", "warmup_steps": 0, "min_lr_ratio": 0.1},
}
WITH_KIT = {"loads_with_kit": True, "schedule_with_kit": True}


def plan_of(kit: Kit, *args: str, code: int = 0) -> dict[str, Any]:
    """Return the plan of the next resume of T-1, as `--json` has it."""
    return json.loads(kit("resume", "T-1", "--dry-run", "--json", *args, code=code).stdout)
