"""The examples beside the schemas: one valid document for each, and the changes that make all other cases of it.

`schemas/examples/changes.yaml` has the changes. A case is named as it is judged: 'valid', 'valid-best', 'invalid-path'.
Try it, in tests/: `PYTHONPATH=../lib python -c "from support.schema_examples import case; print(case('event'))"`
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from resumekit.config import yaml_document

FOLDER = Path(__file__).resolve().parents[2] / "schemas" / "examples"
REMOVED = "REMOVED"


def _read(path: Path) -> Any:
    """Return what a file holds; in YAML with the numbers as the kit reads them: `1e5` is one."""
    if path.suffix == ".json":
        return json.loads(path.read_bytes())
    return yaml_document.load(path.read_bytes(), path.name).data


_CHANGES: dict[str, dict[str, dict[str, dict[str, Any]]]] = _read(FOLDER / "changes.yaml")


def names(schema: str) -> list[str]:
    """Return the names of all cases of a schema."""
    return ["valid"] + [f"{verdict}-{name}" for verdict, changes in _CHANGES[schema].items() for name in changes]


def case(schema: str, name: str = "valid") -> Any:
    """Return the document of a case, made anew.

    Raises:
        KeyError: there is no such case, or a change takes away a key that is not there.
    """
    (path,) = FOLDER.glob(f"{schema}.*")
    document = _read(path)
    verdict, _, change = name.partition("-")
    for key, value in _CHANGES[schema][verdict][change].items() if change else ():
        node = document
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        if value == REMOVED:
            del node[last]
        else:
            node[last] = copy.deepcopy(value)
    return document


def is_valid(name: str) -> bool:
    """Whether a case is one that its schema takes."""
    return name.partition("-")[0] == "valid"
