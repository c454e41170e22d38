"""What an unquoted word in a config means. Both YAML readers ask here, so that they cannot disagree.

The rule is YAML 1.2's core schema (`1e-4` and `5e-05` are numbers), and whatever a YAML 1.1 reader would take for
something else (`yes`, `012`, `1:30`, `1_000`, dates, `.nan`) is refused instead of guessed. It reads no files.
Try it: `PYTHONPATH=lib python -c "from resumekit.config.yaml_scalars import plain; print(plain('1e-4'))"`
"""

from __future__ import annotations

import re

from ..base.imports import NamedTuple

# More than any config of ours, less than what hurts: a bomb is refused before anything is built from it.
MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_KEY_CHARS = 200
# 18 digits always fit into 64 bits; Python itself takes quadratic time for thousands of them.
MAX_INT_DIGITS = 18

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_YAML_11_BOOLS = frozenset({"y", "n", "yes", "no", "on", "off"})
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
# Spellings that some YAML reader types as a number or a time, and another one as a string or another number.
# Each pattern is linear in the length of the word.
_OCTAL = "a leading zero is octal to some YAML readers"
_PARTLY = "it is a number to some YAML readers and a text to others"
_SURPRISES = (
    (r"(?s)[-+]?0[0-9_]+(?:[.eE:].*)?", _OCTAL),
    (r"[-+]?0(?:[xX][0-9a-fA-F_]+|[oO][0-7_]+|[bB][01_]+)", _PARTLY),
    (r"(?=[^_]*_)[-+]?(?:\._?)?[0-9][0-9_.]*(?:[eE][-+]?[0-9]+)?", _PARTLY),
    (r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?", "some YAML readers count it in sixties"),
    (r"(?s)[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?", "it is a date to some YAML readers"),
)
# With what each of them begins: few words of a config do, and compiling the patterns takes 0.4 ms of a start.
_SURPRISING = frozenset("+-.0123456789")
_NOT_FINITE = frozenset(
    sign + point + word for sign in ("", "+", "-") for point in ("", ".") for word in ("inf", "infinity", "nan")
)

# Control characters, the line breaks of YAML 1.1 only, byte order marks inside, and what is no character at all.
_FORBIDDEN_ASCII = "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)"
_FORBIDDEN = (
    _FORBIDDEN_ASCII
    + "|[\x80-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0x10000, 0x110000, 0x10000))
    + "]"
)


class Fault(NamedTuple):
    """Why a text is no config of ours.

    Args:
        what: the fault, with the value in single quotes; no full stop.
        line: where, counted from 1.
        advice: what to do.
        word: the unquoted word that readers disagree about, where that is the fault: who knows what its key takes says
            it better.
        why: what is odd about the word; '' where it speaks for itself.
        path: of the key whose value the word is; () where that is not known.
    """

    what: str
    line: int
    advice: str
    word: str | None = None
    why: str = ""
    path: tuple[str, ...] = ()


class Refusal(Exception):
    """A reader refuses a text; carries the Fault. The callers make an InvalidFile with the file's name of it."""

    def __init__(
        self,
        what: str,
        line: int,
        advice: str,
        word: str | None = None,
        why: str = "",
        path: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(what)
        self.fault = Fault(what=what, line=line, advice=advice, word=word, why=why, path=path or ())


def plain(text: str, line: int = 1, path: tuple[str, ...] | None = None) -> bool | int | float | str | None:
    """Return the value of an unquoted word.

    Args:
        text: the word as YAML folded it, without blanks around it.
        line: where it stands, counted from 1, for the message.
        path: of the key whose value it is; None where it is a key or stands in a list.

    Raises:
        Refusal: YAML readers disagree about it, or it does not fit into a number.
    """
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INT.fullmatch(text):
        if len(text.lstrip("+-")) > MAX_INT_DIGITS:
            raise Refusal(
                f"{show(text)} has more than {MAX_INT_DIGITS} digits", line, "put it in quotes if it is a text"
            )
        return int(text)
    if _FLOAT.fullmatch(text):
        return _float(text, line)
    if text.lower() in _YAML_11_BOOLS:
        raise Refusal(
            f"{show(text)} is true or false to some YAML readers and a text to others",
            line,
            "write true or false, or put it in quotes",
            text,
            "",
            path,
        )
    if text in ("=", "<<"):
        raise Refusal(f"{show(text)} has a meaning of its own to some YAML readers", line, "put it in quotes")
    why = _surprise(text)
    if why is not None:
        advice = "put it in quotes, or write it as a plain decimal number"
        raise Refusal(f"{show(text)}: {why}", line, advice, text, why, path)
    return text


def _surprise(text: str) -> str | None:
    """Say as what some YAML reader takes a word that is a text to another one; None where all agree."""
    if text.lower() in _NOT_FINITE:
        return "it looks like a number that is not finite"
    if text[0] not in _SURPRISING:
        return None
    return next((why for pattern, why in _SURPRISES if re.fullmatch(pattern, text)), None)


def key(value: object, line: int) -> str:
    """Return a mapping's key, which must be a text of reasonable length; Refusal otherwise."""
    if not isinstance(value, str) or not value:
        raise Refusal(f"the key {show(value)} is not a text", line, "put it in quotes, or take another name")
    if len(value) > MAX_KEY_CHARS:
        raise Refusal(f"the key {show(value)} is longer than {MAX_KEY_CHARS} characters", line, "take a shorter one")
    return value


def quoted(text: str, line: int) -> str:
    """Return the text of a quoted scalar; Refusal if it holds what no path, argument or log line can carry."""
    for character in text:
        if character == "\0" or "\ud800" <= character <= "\udfff":
            raise Refusal(f"the text {show(text)} holds a character that is none", line, "take it out")
    return text


def unknown_escape(line: int) -> Refusal:
    """Return the refusal of a backslash in double quotes that begins no escape of YAML, as in a regular expression."""
    return Refusal(
        "a backslash in double quotes begins an escape that YAML does not have",
        line,
        "put the text in single quotes, where a backslash is one: '([0-9]+)\\s'",
    )


def duplicate(name: str, first: int, second: int) -> Refusal:
    """Return the refusal of a key that stands twice in one section."""
    return Refusal(f"the key {show(name)} stands there twice, first in line {first}", second, "keep one of them")


def decode(data: bytes | str) -> str:
    """Return the text of a config: UTF-8, without a byte order mark, without what YAML readers disagree about.

    Raises:
        Refusal: too large, not UTF-8, a control character, or a line break that only some YAML readers know.
    """
    if len(data) > MAX_BYTES:
        raise Refusal(f"it is larger than {MAX_BYTES} bytes", 1, "a config is a page of text")
    if isinstance(data, bytes):
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise Refusal(
                f"byte {show(data[error.start : error.start + 1])} is not UTF-8", line, "save the file as UTF-8"
            ) from None
    else:
        text = data
    text = text.removeprefix("\ufeff")
    # Compiling the long one takes 0.3 ms of a start, and nearly every config is ASCII.
    if bad := re.search(_FORBIDDEN_ASCII if text.isascii() else _FORBIDDEN, text):
        line = text.count("\n", 0, bad.start()) + 1
        raise Refusal(
            f"the character {show(bad[0])} cannot stand in a config",
            line,
            'take it out, or write it as an escape in double quotes ("\\u2028")',
        )
    return text


def show(value: object, limit: int = 80) -> str:
    """Return a value for a message: in single quotes, escapes visible, at most `limit` characters."""
    if isinstance(value, bytes):
        return repr(value)[1:]
    text = value if isinstance(value, str) else _flow(value)
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    return "'" + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) + "'"


def _flow(value: object) -> str:
    import json  # only for a message

    return json.dumps(value, ensure_ascii=False, default=str)


def _float(text: str, line: int) -> float:
    number = float(text)
    mantissa = re.split("[eE]", text)[0]
    if number in (float("inf"), float("-inf")) or (number == 0 and mantissa.strip("+-0.")):
        raise Refusal(f"{show(text)} is beyond what a number can hold", line, "write a number between 1e-307 and 1e308")
    return number + 0.0  # -0.0 becomes 0.0: one spelling, one hash
