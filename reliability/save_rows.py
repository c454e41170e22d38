"""Run a part of the campaign of saves in a process of its own, and judge its rows."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from reliability import syscalls
from support.places import ROOT

needs_compiler = pytest.mark.skipif(bool(syscalls.why_not()), reason=str(syscalls.why_not()))

CAMPAIGN = [sys.executable, "-m", "reliability.campaign_saves", "--json"]


def campaign(*arguments: str) -> dict[str, dict[str, Any]]:
    """Run the campaign in a process of its own; return its rows by name."""
    done = subprocess.run([*CAMPAIGN, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return {row["what"]: row for row in json.loads(done.stdout)}


def assert_good(rows: dict[str, dict[str, Any]]) -> None:
    assert rows and all(row["looked_at"] for row in rows.values())
    assert [(row["what"], row["bad"], row["examples"]) for row in rows.values() if row["bad"]] == []
