"""Shows comparisons: a block for the terminal, a table for the docs, and JSON with every number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from arithmetic import Spread
from comparison import Comparison
from harness import Samples

_HEAD = ("row", "what", "ours", "theirs", "ratio", "goal", "", "null", "CPU", "limit", "peers", "pairs")


def as_text(found: Comparison) -> str:
    """Return what one comparison found, in a few lines for a person."""
    null = f"{_ratio(found.null)}{'' if found.is_level else '   NOT LEVEL: do not trust this run'}"
    lines = [
        f"[{found.row}] {found.title}",
        f"    ratio  {_ratio(found.ratio)}   goal {found.direction} {found.goal:g}: {found.verdict}",
        f"    null   {null}",
        f"    ours   {_amount(found.ours, found.unit)}   theirs {_amount(found.theirs, found.unit)}",
    ]
    if found.cpu:
        lines.append(f"    CPU    ours {_number(found.cpu[0])}   theirs {_number(found.cpu[1])}   {_cpu(found)}x")
    if found.limit:
        lines.append(f"    limit  {_plain(found.limit[1].median)}x   {found.limit[0]}")
    lines += [f"    peer   {_plain(one.median)}x   {name} ({one.count} pairs)" for name, one in found.peers]
    lines += [f"    note   {note}" for note in found.notes]
    return "\n".join(lines)


def as_markdown(found: Sequence[Comparison]) -> str:
    """Return all comparisons as a table for the docs."""
    rows = [_HEAD, tuple("---" for _ in _HEAD), *(_cells(one) for one in found)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cells(found: Comparison) -> tuple[str, ...]:
    limit = f"{_plain(found.limit[1].median)} ({found.limit[0]})" if found.limit else "–"
    peers = "; ".join(f"{name} {_plain(one.median)}" for name, one in found.peers) or "–"
    return (
        found.row, found.title, _amount(found.ours, found.unit), _amount(found.theirs, found.unit),
        _ratio(found.ratio), f"{found.direction} {found.goal:g}", found.verdict,
        _ratio(found.null) + ("" if found.is_level else " not level"), _cpu(found), limit, peers,
        str(found.ratio.count),
    )  # fmt: skip


def write_json(path: Path, machine: dict[str, object], found: Sequence[Comparison], raw: dict[str, Samples]) -> None:
    """Write every number: the machine, the comparisons, and every sample by title, variant and round."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = {
        title: {
            name: {number: [s.wall_s, s.cpu_s] for number, s in rounds.items()} for name, rounds in variants.items()
        }
        for title, variants in raw.items()
    }
    comparisons = [asdict(one) | {"verdict": one.verdict, "is_level": one.is_level} for one in found]
    document = {"machine": machine, "comparisons": comparisons, "samples_wall_cpu_s": samples}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _cpu(found: Comparison) -> str:
    """Return ours over theirs in CPU seconds, which a busy machine disturbs least."""
    return _plain(found.cpu[0] / found.cpu[1]) if found.cpu and found.cpu[1] else "–"


def _ratio(ratio: Spread) -> str:
    return f"{_plain(ratio.median)} [{_plain(ratio.lower)}..{_plain(ratio.upper)}]"


def _plain(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _amount(amount: Spread, unit: str) -> str:
    return f"{amount.median:.2f}/s" if unit == "per second" else _number(amount.median)


def _number(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:.1f} s"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 0.001:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.0f} µs"
