"""`Any` and `NamedTuple` as `typing` has them, without importing it; third-party packages found under `-S`."""

from __future__ import annotations

import functools
import sys
from collections import namedtuple

__all__ = ["TYPE_CHECKING", "Any", "NamedTuple"]

TYPE_CHECKING = False  # type checkers take it for True
if TYPE_CHECKING:
    from typing import Any, NamedTuple
else:
    Any = object

    class _MadeNamedTuple(type):
        """Makes a class with annotations a named tuple: what is annotated is a field, its value the default."""

        def __new__(cls, name, bases, body):
            fields = body.get("__annotations__", {})
            made = namedtuple(
                name, fields, defaults=[body[field] for field in fields if field in body], module=body["__module__"]
            )
            for key, value in body.items():
                if key not in fields:
                    setattr(made, key, value)
            return made

    NamedTuple = type.__new__(_MadeNamedTuple, "NamedTuple", (), {})


# Finding PyYAML and jsonschema in a Python that was started without its packages (`-S`).
#
# Setting those up costs 2 ms, and few passes of the watcher read a config that needs them.


@functools.cache
def find_packages() -> None:
    """Let the interpreter's packages be found from here on."""
    if sys.flags.no_site:
        import site

        site.main()
