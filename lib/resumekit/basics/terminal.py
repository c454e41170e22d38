"""Text of strangers, made harmless before a person sees it: no control character reaches a terminal."""

from __future__ import annotations


def plain(text: str) -> str:
    """Return `text` on one line, with everything that is not printable as a visible escape (`\\x1b`, `\\n`)."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
