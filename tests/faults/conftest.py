"""What a test of a whole night is given: `night` and `warm_night`, watched and judged by the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reliability.oracle import Oracle
from support.fork_server import ForkServer
from support.nights import Night


@pytest.fixture
def night(weird_tmp_path: Path) -> Iterator[Night]:
    """The toy trainer under launcher and watcher, with recovery; judged by the oracle."""
    yield from _judged(Night(weird_tmp_path))


@pytest.fixture(scope="session")
def warm_server() -> ForkServer:
    return ForkServer("support.night_trainer")


@pytest.fixture
def warm_night(weird_tmp_path: Path, warm_server: ForkServer) -> Iterator[Night]:
    """A trainer that saves and loads with the kit, under launcher and watcher, with recovery; judged by the oracle."""
    yield from _judged(Night(weird_tmp_path, warm_server))


def _judged(night: Night) -> Iterator[Night]:
    night.config()
    try:
        with Oracle(night.runs, night.next_launch, is_forked=night.is_warm) as oracle:
            yield night
            oracle.check()
    finally:
        night.clean_up()
