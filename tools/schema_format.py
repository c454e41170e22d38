#!/usr/bin/env python3
"""Hold the JSON schemas to their form: two spaces of indent, and what fits into 120 characters on one line.

python tools/schema_format.py           name each schema that is not in that form, and exit with 1
python tools/schema_format.py --write   put them into it (`make format` does)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 120


def schemas() -> list[Path]:
    """Return the files that have the form: the kit's schemas, and the examples' own."""
    return sorted([*ROOT.glob("schemas/*.schema.json"), *ROOT.glob("examples/*/*.schema.json")])


def formatted(text: str) -> str:
    """Return a JSON document in the form; the order of its keys stays."""
    return "\n".join(_lines(json.loads(text), "", "")) + "\n"


def _lines(value: Any, begin: str, end: str) -> Iterator[str]:
    """Yield a value's lines.

    Args:
        begin: what stands before it on its first line, the indent first.
        end: what stands behind it on its last line.
    """
    whole = f"{begin}{json.dumps(value, ensure_ascii=False)}{end}"
    if len(whole) <= WIDTH or not value or not isinstance(value, (dict, list)):
        yield whole
        return
    indent = " " * (len(begin) - len(begin.lstrip()))
    is_object = isinstance(value, dict)
    names = [f"{json.dumps(name, ensure_ascii=False)}: " for name in value] if is_object else [""] * len(value)
    inner = list(value.values()) if is_object else value
    yield begin + ("{" if is_object else "[")
    for number, (name, item) in enumerate(zip(names, inner, strict=True), start=1):
        yield from _lines(item, f"{indent}  {name}", "," if number < len(inner) else "")
    yield indent + ("}" if is_object else "]") + end


def main(arguments: list[str]) -> int:
    """Write or check; return the exit status."""
    if arguments not in ([], ["--write"]):
        print(f"schema_format.py takes --write or nothing, not '{' '.join(arguments)}'", file=sys.stderr)
        return 2
    texts = {path: path.read_text(encoding="utf-8") for path in schemas()}
    others = {path: form for path, text in texts.items() if (form := formatted(text)) != text}
    for path, form in others.items():
        if arguments:
            path.write_text(form, encoding="utf-8")
        else:
            print(f"'{path.relative_to(ROOT)}' is not in the form; make format writes it anew", file=sys.stderr)
    return 1 if others and not arguments else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
