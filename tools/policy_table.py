#!/usr/bin/env python3
"""Print the table of effects in docs/policy.md from the config's schema: what a change of each key costs a resume.

python tools/policy_table.py           print it
python tools/policy_table.py --write   put it into docs/policy.md, between its two marks (`make approve` does)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "policy.md"
BEGIN, END = "<!-- the table begins: tools/policy_table.py -->\n", "<!-- the table ends -->\n"
sys.path.append(str(ROOT / "lib"))

from resumekit.config import schema  # noqa: E402


def table() -> str:
    """Return one markdown row per key that is part of the training or has an effect; the free ones come as a list.

    The keys of each overlay of the kit's (the example's) have a table of their own, below it.
    """
    known = schema.load()
    overlays: dict[str, list[str]] = known.tree["x-overlays"]
    of_overlays = {key for keys in overlays.values() for key in keys}
    own = [key for key in known.leaves if key not in of_overlays]
    lines = _table(own, known)
    for path, keys in overlays.items():
        lines += ["", f"The keys of `{path}`, which a lab leaves out:", "", *_table(keys, known)]
    return "\n".join([*lines, ""])


def _table(keys: list[str], known: schema.Schema) -> list[str]:
    nodes = {key: known.leaves[key] for key in keys}
    rows = [f"| `{key}` | {_effect(node)} |" for key, node in nodes.items() if node.get("x-on-resume") != {}]
    free = [f"`{key}`" for key, node in nodes.items() if node.get("x-on-resume") == {}]
    lines = ["| key | what a change of it does to a resumed run |", "| --- | --- |", *rows]
    return [*lines, "", f"These cost nothing: {', '.join(free)}."] if free else lines


def page_with(text: str, new_table: str) -> str:
    """Return a page with the table between the marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"'{PAGE}' has lost the marks that the table stands between")
    return before + BEGIN + new_table + END + after


def _effect(node: dict[str, Any]) -> str:
    declared = node.get("x-on-resume")
    if declared is None:
        return "needs consent: the schema does not say"
    return "; ".join(_words(declared))


def _words(declared: dict[str, Any]) -> Iterator[str]:
    if "within" in declared:
        yield f"nothing within a factor of {declared['within']:g}"
    plain = {name: value for name, value in declared.items() if isinstance(value, str) and name not in _REASONS}
    actions = [f"{name}: {value}" for name, value in plain.items()]
    if actions:
        yield ", ".join(actions)
    for name, beginning in _REASONS.items():
        if name in declared:
            beyond = "beyond that it " if "within" in declared else ""
            yield f"{beyond}{beginning}: {declared[name]}"
    directions = {name: value for name, value in declared.items() if isinstance(value, dict)}
    same = len({str(value) for value in directions.values()}) == 1 and "otherwise" in directions
    for name, value in directions.items():
        if not same or name == "otherwise":
            yield ("" if same else f"{name}: ") + ("; ".join(_words(value)) or "nothing")


_REASONS = {"consent": "needs consent", "refuse": "is refused"}


def main(argv: list[str]) -> int:
    if argv == ["--write"]:
        PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), table()), encoding="utf-8")
        return 0
    if argv:
        print(f"policy_table.py: unknown argument '{argv[0]}'; there is only --write", file=sys.stderr)
        return 2
    sys.stdout.write(table())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
