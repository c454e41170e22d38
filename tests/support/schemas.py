"""Hold a value against one of the schemas in schemas/."""

from __future__ import annotations

import json
from typing import Any

from support.places import ROOT


def assert_valid(schema: str, value: Any) -> None:
    """Fail if `value` is not what schemas/<schema>.schema.json says."""
    import jsonschema  # costs 75 ms, and most tests do without

    if schema not in _validators:
        document = json.loads((ROOT / "schemas" / f"{schema}.schema.json").read_text(encoding="utf-8"))
        _validators[schema] = jsonschema.Draft202012Validator(document)
    faults = [f"{fault.json_path}: {fault.message}" for fault in _validators[schema].iter_errors(value)]
    assert not faults, f"{faults} in {json.dumps(value)[:2000]}"


_validators: dict[str, Any] = {}
