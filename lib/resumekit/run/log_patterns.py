"""Steps, losses and their kin, read out of a trainer's lines with `trainer.log_patterns`.

For a trainer that tells us nothing else. A number is read as a whole, however far the group of the pattern reaches:
`8.1e-07` and `12,000` under `([0-9.]+)` too; one that cannot be read as a whole (`1.2k` steps, `3.2.1`) is none.
Pure: clean lines in, fields of `step` events out. Try it: `python -m pytest tests/test_log_numbers.py`
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable

from ..base.imports import Any, NamedTuple
from ..base.paths import MAX_STEP
from ..base.values import mapping

# A pattern with `.*` in front costs the square of a line's length: the rest of a longer line is not looked at.
MAX_LINE_BYTES = 4096

# What stands in place of a number that is none, as C, Python and JavaScript print it; a longer word is no such.
NOT_FINITE = r"([+-]?(?i:nan|inf(?:inity)?))\b"
# Whose loss it is, directly before its word: `best val loss: inf`, `eval/lm_loss=nan` say nothing of the training.
_OTHER = rb"(?i:best|val(?:id(?:ation)?)?|eval(?:uation)?|test(?:ing)?)"
_OF_ANOTHER = re.compile(rb"(?<![A-Za-z])(?:" + _OTHER + rb"[ _/.:-]{0,2})+[A-Za-z_/]{1,30}[^A-Za-z0-9]{0,6}\Z")
_NAMES_ANOTHER = re.compile(_OTHER)
_WORDS_BYTES = 64
# An escaped sign, a class, a group that captures nothing ("(?:" and its kin, but not the named "(?P<"), or any sign.
_PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?(?!P<)|.", re.DOTALL)


# A number as trainers print it, with an exponent, and with separators of thousands: 12_000, and 12,000 where the
# pattern names nothing behind it.
_TAIL = rb"(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?"
_DIGITS = rb"[0-9]+(?:_[0-9]+)*"
_NUMBER = re.compile(rb"[+-]?(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|" + _DIGITS + rb")?" + _TAIL)
_WITHOUT_COMMAS = re.compile(rb"[+-]?(?:" + _DIGITS + rb")?" + _TAIL)
# What goes on behind a number, so that it is none, or only a part of one: a letter, another digit, ",5", ".5".
_GOES_ON = re.compile(rb"[A-Za-z0-9_]|[.,][0-9]")
# How many steps there are, behind a step: `15/600`, `step 15 of 600`.
_TOTAL = re.compile(rb" *[0-9][0-9_,]*(?:\.0*)? *(?:/| of) *([0-9][0-9_,]*)(?![0-9A-Za-z_]|\.[0-9])")
# A rate with so many digits is told well enough; of one with fewer it matters what they leave open.
_MANY_DIGITS = 4
_NEXT_TO_NOTHING = 1e-3
_MULTIPLES = {b"k": 1e3, b"K": 1e3, b"M": 1e6, b"G": 1e9}


class Pattern(NamedTuple):
    """A pattern ready for use.

    Args:
        number: as it was written; its first group is the number.
        not_finite: the same up to that group, then a NaN or an infinity; tried where no number is found.
        says_what_follows: whether the pattern itself says which characters stand behind the number (`([0-9.]+)it/s`).
        is_training: whether it means the training's alone: a number behind `val`, `best` and their kin is another.
    """

    number: re.Pattern[bytes]
    not_finite: re.Pattern[bytes] | None = None
    says_what_follows: bool = False
    is_training: bool = False

    def read(self, line: bytes) -> float | None:
        """Return what stands in a line, None if nothing does."""
        found = self.value_of(self._first(self.number, line))
        if found is None and self.not_finite and (match := self._first(self.not_finite, line)):
            return float(match[1])
        return found

    def few_digits(self, line: bytes, value: float) -> float | None:
        """Return half a unit in the last digit that a line shows of a value; None where that is next to nothing.

        Args:
            value: what `read` has found in the line.
        """
        if len(repr(value).partition("e")[0].replace(".", "").strip("-0")) >= _MANY_DIGITS or not math.isfinite(value):
            return None
        match = self._first(self.number, line)
        text = _WITHOUT_COMMAS.match(line, match.start(1)) if match else None
        if text is None or _plain(text[0]) != value:
            return None  # `1.2k`
        mantissa, _, exponent = text[0].lower().partition(b"e")
        half = float(f"5e{int(exponent or 0) - len(mantissa.partition(b'.')[2]) - 1}")
        return half if half > _NEXT_TO_NOTHING * abs(value) else None

    def _first(self, pattern: re.Pattern[bytes], line: bytes) -> re.Match[bytes] | None:
        """Return the first match in a line that is not another loss than the training's."""
        if not self.is_training or pattern.groups == 0:
            return pattern.search(line)
        for match in pattern.finditer(line):
            at = match.start(1)
            if at < 0 or not _OF_ANOTHER.search(line, max(0, at - _WORDS_BYTES), at):
                return match
        return None

    def value_of(self, match: re.Match[bytes] | None, *, is_exact: bool = False) -> float | None:
        """Return the number that stands where the first group begins; None if it is none, or goes on behind it.

        Args:
            match: of `number`.
            is_exact: a step is counted: a rounded `1.2k` is none.
        """
        if match is None or match.re.groups == 0 or match[1] is None:
            return None
        line, start = match.string, match.start(1)
        number = match[1].rstrip(b" .,")
        if not _NUMBER.fullmatch(number):
            return _plain(match[1])  # a group that takes more than a number: a word, a blank before it
        form = _WITHOUT_COMMAS if self.says_what_follows else _NUMBER
        taken = form.match(line, start)
        end = max(start + len(number), taken.end() if taken else 0)
        if line[start - 1 : start].isdigit():
            return None  # `.*([0-9]+)`: the end of a number
        if self.says_what_follows or not _GOES_ON.match(line, end):
            return _plain(line[start:end])
        multiple = _MULTIPLES.get(line[end : end + 1])
        if multiple is None or is_exact or line[end + 1 : end + 2].isalnum():
            return None
        value = _plain(line[start:end])
        return None if value is None else value * multiple


Patterns = dict[str, Pattern]


def read_values(line: bytes, patterns: Patterns, names: Iterable[str]) -> dict[str, Any]:
    """Return the values that a line tells, by name; of a rate with few digits also `lr_within`, how far it may be off.

    Args:
        names: those that are asked for; one without a pattern is left out.
    """
    read = {name: patterns[name].read(line) for name in names if name in patterns}
    fields = {name: value for name, value in read.items() if value is not None}
    if "lr" in fields and (within := patterns["lr"].few_digits(line, fields["lr"])) is not None:
        fields["lr_within"] = within
    return fields


def compiled(patterns: Any) -> Patterns:
    """Return the patterns ready for use; those that are not regular expressions are left out (the schema says so).

    A loss of NaN is seen by `loss ([0-9.]+)` too: who writes a pattern thinks of the numbers that are there. It means
    the training's loss, unless it names `val`, `best` or their kin itself.
    """
    result: Patterns = {}
    for name, text in mapping(patterns).items():
        # Half of a character, a repeat that is too large and one that is too deep are no regular expressions either.
        with contextlib.suppress(re.error, TypeError, AttributeError, ValueError, OverflowError, RecursionError):
            number = re.compile(text.encode(), re.MULTILINE)
            not_finite = _not_finite(text) if name == "loss" else None
            is_training = name == "loss" and not _NAMES_ANOTHER.search(text.encode())
            result[str(name)] = Pattern(number, not_finite, _says_what_follows(text), is_training)
    return result


def found_steps(lines: bytes, patterns: Patterns, told: list[bytes] | None = None) -> list[dict[str, Any]]:
    """Return the steps that the patterns find: a `step` is needed, the other values come from its line.

    Args:
        lines: clean lines, each with its newline.
        patterns: by name; the first group is the number.
        told: gets each line that the step's pattern matches, whether its number can be taken or not.

    Returns:
        One dict per line with a step: {"step": 12, "step_total": 600, "loss": 0.5}, the total where it stands behind
        the step; a NaN stays one.
    """
    if "step" not in patterns or not lines:
        return []
    split = lines.split(b"\n")
    if max(map(len, split)) > MAX_LINE_BYTES:
        lines = b"\n".join(line[:MAX_LINE_BYTES] for line in split)
    result, done, told_to = [], 0, 0
    # One search through the whole chunk: line by line it would cost more than all the rest of the sidecar.
    for match in patterns["step"].number.finditer(lines):
        if told is not None and match.start() >= told_to:
            told_to = max(match.end(), lines.find(b"\n", match.end()))
            told.append(lines[lines.rfind(b"\n", 0, match.start()) + 1 : told_to])
        step = patterns["step"].value_of(match, is_exact=True)
        if match.start() < done or step is None or not 0 <= step < MAX_STEP or step != int(step):
            continue
        start, end = lines.rfind(b"\n", 0, match.start()) + 1, lines.find(b"\n", match.end())
        line, done = lines[start : end if end >= 0 else len(lines)], max(end, match.end())
        fields = read_values(line, patterns, patterns)
        if (total := _total(match, step)) is not None:
            fields["step_total"] = total
        result.append(fields | {"step": int(step)})
    return result


# A bar that stands for so many readings is drawn anew no more.
_SETTLED_AFTER = 2
# What a bar shows without any value of the training.
_OF_A_BAR = frozenset({"step", "step_total", "bar"})


class LastDrawing:
    """Holds the step of a progress bar back until the bar has gone on, or stands.

    tqdm draws a step twice: `update` shows it beside the values of the step before, `set_postfix` beside its own.
    """

    def __init__(self) -> None:
        self._held: dict[str, Any] | None = None
        self._waits = 0

    def put(self, fields: dict[str, Any]) -> list[dict[str, Any]]:
        """Take what a bar shows; return the step before, as it was drawn last, and at once one without values."""
        if not fields.keys() - _OF_A_BAR:
            return [*self.rest(is_last=True), fields]
        before, self._held = self._held, fields
        self._waits = self._waits if before == fields else 0
        return [before] if before is not None and before["step"] != fields["step"] else []

    def rest(self, *, is_last: bool = False) -> list[dict[str, Any]]:
        """Return the step that is held once the bar stands; call it at the end of each reading."""
        self._waits += 1
        if self._held is None or not (is_last or self._waits > _SETTLED_AFTER):
            return []
        found, self._held = [self._held], None
        return found


def found_scores(lines: bytes, scores: Patterns, patterns: Patterns, step: int | None) -> list[dict[str, Any]]:
    """Return the scores that patterns find; one on a line without a step is of the step before it.

    Args:
        lines: clean lines, each with its newline.
        scores: by what they are: `eval`, the score of an evaluation, or `best`, the best so far.
        patterns: for the step, as in `found_steps`.
        step: the last one before these lines; None where there was none.
    """
    result = []
    for line in lines.split(b"\n") if any(one.number.search(lines) for one in scores.values()) else ():
        line = line[:MAX_LINE_BYTES]
        step = next((one["step"] for one in found_steps(line, patterns)), step)
        for name, pattern in scores.items():
            if (value := pattern.read(line)) is not None and step is not None:
                result.append({"event": name, "step": step, "score": value})
    return result


def _total(match: re.Match[bytes], step: float) -> int | None:
    """Return the number of steps that stands behind a step, None where there is none: `15/5` is something else."""
    found = _TOTAL.match(match.string, match.start(1))
    total = None if found is None else _plain(found[1])
    return int(total) if total is not None and 0 < total < MAX_STEP and step <= total else None


def _not_finite(text: str) -> re.Pattern[bytes] | None:
    """Return the pattern of a number that is none, in the place of the first group.

    None where what stands before that group may be nothing (any "nan" would do), or is no pattern by itself.
    """
    ahead = ""
    for part in _PART.findall(text):
        if part == "(":
            break
        ahead += part
    try:
        says_where = not re.compile(ahead.encode(), re.MULTILINE).search(b"")
        return re.compile((ahead + NOT_FINITE).encode(), re.MULTILINE) if says_where else None
    except re.error:
        return None


def _says_what_follows(text: str) -> bool:
    """Whether a pattern names the characters behind its first group: anything but its end, any sign or a boundary."""
    depth, is_behind, rest = 0, False, ""
    for part in _PART.findall(text):
        if is_behind:
            rest += part
        elif part == "(" or (depth and part.startswith("(?")):
            depth += 1
        elif part == ")" and depth:
            depth -= 1
            is_behind = depth == 0
    return bool(rest) and not rest.startswith((".", "$", ")", r"\b"))


def _plain(number: bytes) -> float | None:
    """Return a number without its separators of thousands; None where a comma in it separates anything else."""
    number = number.strip(b" ,")
    if b"," in number and not _NUMBER.fullmatch(number):
        return None
    with contextlib.suppress(ValueError):
        return float(number.replace(b",", b""))
    return None
