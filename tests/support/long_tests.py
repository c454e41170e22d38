"""Parameters that `make test` leaves to `make faults`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def long(*values: Any, **more: Any) -> Any:
    """Return one set of parameters that is long."""
    return pytest.param(*values, marks=pytest.mark.long, **more)


def all_but(quick: Iterable[Any], items: Iterable[Any]) -> list[Any]:
    """Return the items as parameters; all but the quick ones are long."""
    return [item if item in quick else long(item) for item in items]


def every_fourth(items: Iterable[Any]) -> list[Any]:
    """Return the items as parameters; three of four are long."""
    return [long(item) if number % 4 else item for number, item in enumerate(items)]
