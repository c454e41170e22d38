"""Random config texts near the edge of what the subset reader takes: most of them whole, some with a slip in them."""

from __future__ import annotations

import random

WORDS = [
    "a", "b1", "lr", "path/to", "x y", "1", "-1", "+3", "0", "-0", "1.5", "1e-4", "5e-05", "1E5", ".5", "5.",
    "-.5e+3", "true", "false", "True", "null", "~", "Null", "yes", "no", "On", "y", "012", "0x1f", "0o17",
    "0b11", "1_000", "1:30", "2001-01-01", "2001-1-1 10:00:00", ".nan", ".inf", "nan", "inf", "1e999",
    "1e-999", "1.2.3", "1-2", "a:b", "a :b", "a#b", "a # b", "a: b", "a:", "-", "- a", "--a", "---", "...",
    "=", "<<", "é", "日本", "\xa0x", "a\xa0", "😀", "*a", "&a b", "!x y", "!!str 1", "%a", "@a", "`a", "|", ">",
    "?", "? a", ",", "a,b", "a, b", "[", "]", "{", "}", "\\", "a\\n", "1234567890123456789",
    "123456789012345678", "00", "0.", "0.0", "-0.0", "1e5", "1.e5", "e5", ".e5", ".", "+", "+.", "/x", "a'b",
    'a"b', "'", '"', "1 2", "a  b", "0_1", "1__0", "_1", "._5", "1._5", "1.5_0", "190:20:30.15", "09", "0e3",
    "08.5",
]  # fmt: skip
QUOTED = [
    '"a"', "'a'", '""', "''", '"a b"', "'it''s'", '"a\\nb"', '"\\u00e9"', '"\\x41"', '"\\/"', '"\\e"',
    '"\\u2028"', '"\\ud800"', '"\\u0000"', '"\\U0001f600"', '"a: b # c"', "'a: b # c'", '"\\"', '"\\q"', "'a",
    '"a', "'yes'", '"1"', '"a" b', "'a' # c", "'a'# c", '"a"#', '"a\\tb"', "'\\n'",
]  # fmt: skip
KEYS = [
    "a", "b", "c", "lr", "a_b", "a-b", "a.b", "x-y", '"q"', "'s'", '"q r"', "yes", "null", "true", "1", "_",
    "é", "a b", "<<", '""', "~", "A1", "-a", "nan", "on", '"a\\u0062"', "k" * 190, "k" * 250,
]  # fmt: skip
COMMENTS = [*[""] * 12, " # c", " # c", "  #", " #: x", "#x", " ", "   ", "\t", " # \t"]
SLIPS = [
    " ", "\t", "\n", "\r", ":", "#", "-", ",", "[", "]", "{", "}", "'", '"', "\\", "&", "*", "!", "|", ">",
    "%", "@", "`", "~", "=", "<", "?", ".", "0", "1", "a", "é", "\u2028", "\x85", "\ufeff", "\x00", "\xa0",
    "\n ", "\n  ", ": ", " #", "- ", "\r\n", "---\n", "  ",
]  # fmt: skip


def document(rng: random.Random) -> str:
    """Return one text; about half of them are whole."""
    lines: list[str] = []
    _section(rng, lines, 0, 0)
    text = ("\r\n" if rng.random() < 0.1 else "\n").join(lines) + rng.choice(["\n", "", "\n\n", "\n# end"])
    for _ in range(rng.choice([0, 0, 1, 2])):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(SLIPS) + text[at + rng.choice([0, 0, 1]) :]
    return text


def _section(rng: random.Random, lines: list[str], indent: int, depth: int) -> None:
    names = rng.sample(KEYS, rng.randint(1, 4)) if rng.random() < 0.05 else rng.sample(KEYS[:11], rng.randint(1, 4))
    for name in names:
        if rng.random() < 0.1:
            lines.append(rng.choice(["", "# comment", " " * rng.randint(0, 6) + "# x: y", "  "]))
        head = f"{' ' * indent}{name}:"
        kind = rng.random()
        if kind < 0.2 and depth < 3:
            lines.append(head + rng.choice(COMMENTS))
            _section(rng, lines, indent + rng.choice([1, 2, 2, 2, 4]), depth + 1)
        elif kind < 0.3:
            lines.append(head + rng.choice(COMMENTS))
            step = rng.choice([0, 2, 2, 4])
            lines.extend(
                f"{' ' * (indent + step)}- {_scalar(rng)}{rng.choice(COMMENTS)}" for _ in range(rng.randint(1, 3))
            )
        elif kind < 0.5:
            lines.append(f"{head} {_flow(rng, 0)}{rng.choice(COMMENTS)}")
        else:
            lines.append(f"{head}{rng.choice([*[' '] * 20, '', '  '])}{_scalar(rng)}{rng.choice(COMMENTS)}")


def _flow(rng: random.Random, depth: int) -> str:
    def inner() -> str:
        return _flow(rng, depth + 1) if depth < 3 and rng.random() < 0.2 else _scalar(rng)

    comma = rng.choice([", "] * 9 + [",", " , ", ",  "])
    blank = rng.choice(["", "", " "])
    count = rng.randint(0, 3)
    if rng.random() < 0.5:
        return f"[{blank}{comma.join(inner() for _ in range(count))}{blank}{rng.choice([*[''] * 12, ','])}]"
    pairs = (f"{rng.choice(KEYS[:11])}{rng.choice([*[': '] * 12, ':', ' : '])}{inner()}" for _ in range(count))
    return f"{{{blank}{comma.join(pairs)}{blank}}}"


def _scalar(rng: random.Random) -> str:
    # Most of a document is harmless, so that one odd thing at a time is what decides.
    kind = rng.random()
    if kind < 0.7:
        return rng.choice(["a", "x1", "2", "1e-3", "true", "some words", "0.5", "-7", "1E5", "~", '"q"', "'s t'"])
    if kind < 0.75:
        return rng.choice(QUOTED)
    return rng.choice(WORDS[:16]) if kind < 0.9 else rng.choice(WORDS)


def slipped(rng: random.Random, text: str) -> str:
    """Return a text with up to three slips of the keyboard in it."""
    for _ in range(rng.randint(0, 3)):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(SLIPS) + text[at + rng.choice([0, 0, 1, 5]) :]
    return text
