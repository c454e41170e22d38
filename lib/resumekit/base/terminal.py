"""What a person is shown on a terminal: all of it passes here, and is printable; a time in words.

A program that reads the answer of a command gets what `--json` writes, or the fields that the launcher asks for.
"""

from __future__ import annotations

import os
import sys

from .imports import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# What is told of a reading that takes long, a sentence at a time; None: nothing. A person's commands set it.
progress: Callable[[str], None] | None = None


class Note(str):
    """A sentence for a person with its kind, by which the program goes that shows it.

    Args:
        kind: WARNING, PASSED_OVER, COMPARED or HELD.
    """

    kind: str

    def __new__(cls, kind: str, sentence: str) -> Note:
        note = super().__new__(cls, sentence)
        note.kind = kind
        return note


WARNING = "warning"  # to be acted on
PASSED_OVER = "passed_over"  # about a checkpoint that was not taken
COMPARED = "compared"  # about the run that a resume is compared with
HELD = "held"  # about the checkpoint that the new run keeps from being removed


def kind_of(sentence: str) -> str | None:
    """Return the kind of a note, None of any other sentence."""
    return sentence.kind if isinstance(sentence, Note) else None


def plain(text: str) -> str:
    """Return `text` on one line, with all that is not printable as a visible escape (`\\x1b`, `\\n`, `\\u202e`)."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def first_few(words: Iterable[str], most: int) -> str:
    """Return words for a message, the first few of them: 'a, b, c and 3 more'."""
    listed = list(words)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def say(prog: str, sentence: str) -> None:
    """Say one line on stderr; a reader that has gone away ends nothing."""
    try:
        if sys.stderr is not None:  # print would take stdout
            print(f"{prog}: {plain(sentence)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


def ask(question: str) -> None:
    """Put a question on stderr, the cursor behind it."""
    print(plain(question), end=" ", file=sys.stderr, flush=True)


def show_text(text: str) -> None:
    """Write the lines of an answer to stdout, each printable, whatever the locale can encode."""
    _write("\n".join(map(plain, text.split("\n"))))


def note_text(text: str) -> None:
    """Write lines on stderr, beside an answer that is for a program."""
    print("\n".join(map(plain, text.split("\n"))), file=sys.stderr, flush=True)


def show_path(path: str | os.PathLike[str]) -> None:
    """Write a path to stdout: to a program as its bytes are, to a terminal printable."""
    if sys.stdout.isatty():
        show_text(plain(os.fspath(path)))
    else:
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")
        sys.stdout.flush()


def show_json(text: str) -> None:
    """Write JSON in ASCII to stdout: what json.dumps leaves of control characters is DEL and its own newlines."""
    _write(text.replace("\x7f", "\\u007f"))


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode(sys.stdout.encoding or "utf-8", "backslashreplace") + b"\n")
    sys.stdout.flush()


def stdout_width() -> int | None:
    """Return the columns of the terminal that stdout is; None where it is none, or does not say."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError):
        return None


def duration(seconds: float) -> str:
    """Return a time in one or two units: '90 s', '12 min', '3 h 05 min', '2 d 4 h'."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
