"""What a person is shown on a terminal: text of strangers made harmless, a time in words."""

from __future__ import annotations


def plain(text: str) -> str:
    """Return `text` on one line, with everything that is not printable as a visible escape (`\\x1b`, `\\n`)."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def duration(seconds: float) -> str:
    """Return a time in one or two units: '90 s', '12 min', '3 h 05 min', '2 d 4 h'."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
