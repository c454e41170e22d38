"""What a test of a whole night is given: `night` and `warm_night`, watched and judged by the oracle.

`pytest_plugins = ["faults.night_fixtures"]` in a test module brings them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.nights import Night
from faults.oracle import Oracle
from warm_trainer import Server


@pytest.fixture
def night(weird_tmp_path: Path) -> Iterator[Night]:
    """The toy trainer under launcher and watcher, with recovery; judged by the oracle."""
    yield from _judged(Night(weird_tmp_path))


@pytest.fixture(scope="session")
def warm_server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as place:  # a socket's path has to be short
        server = Server(place, "faults.night_trainer")
        yield server
        server.close()


@pytest.fixture
def warm_night(weird_tmp_path: Path, warm_server: Server) -> Iterator[Night]:
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
