"""Writes a resolved config as YAML that every reader takes alike: ours, PyYAML's own loader, YAML 1.2.

Every text is in double quotes, every float has a point, nothing is an alias. Needs no PyYAML.
Try it: `python lib/config_resolver.py --config config.yaml --logdir /tmp/look && cat /tmp/look/resolved_config.yaml`
"""

from __future__ import annotations

import json
import re
from typing import Any

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]+")
_KEY_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "nan", "inf", "infinity"})
# JSON leaves these as they are; YAML readers do not take them raw.
_RAW = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]|[\U0001fffe-\U0010ffff]")


def dump(data: dict[str, Any]) -> str:
    """Return nested dicts, lists and single values as YAML text, in the order of the dicts."""
    return "".join(_section(data, 0)) or "{}\n"


def _section(data: dict[str, Any], indent: int) -> list[str]:
    rows = []
    for name, value in data.items():
        head = f"{' ' * indent}{_key(name)}:"
        if isinstance(value, dict) and value:
            rows += [f"{head}\n", *_section(value, indent + 2)]
        else:
            rows.append(f"{head} {_flow(value)}\n")
    return rows


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(name)}: {_flow(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float):
        return _float(value)
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _float(value: float) -> str:
    text = json.dumps(value, allow_nan=False)
    # `1e-05` is a text to PyYAML's own loader, `1.0e-05` is a number to everybody.
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def _key(name: str) -> str:
    return name if _PLAIN_KEY.fullmatch(name) and name.lower() not in _KEY_WORDS else _text(name)


def _text(value: str) -> str:
    quoted = json.dumps(value, ensure_ascii=False)
    return _RAW.sub(lambda raw: f"\\U{ord(raw[0]):08x}", quoted)
