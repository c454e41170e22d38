"""Taking secrets out of a text that is kept: tokens by their known shapes, passwords in URLs, assigned secrets.

It errs on the side of taking too much. What it cannot know (a password that looks like a word) it cannot take: keep
secrets in environment variables, of which the kit stores names and a fixed list of harmless values only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MARK = b"[redacted]"

# Every repetition has an end, so that a line of a megabyte takes no longer than a thousand short ones.
_SECRET_NAME = rb"(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|access[_-]?key|credential)s?[\w-]{0,40}"

# Compiled at the first use: a start that has nothing to redact does not wait for them.
_PATTERNS = (
    # https://user:token@host
    rb"(?i)(?P<keep>[a-z0-9]://)[^\s/@:]{1,1024}(?::[^\s/@]{0,1024})?(?=@)",
    # private keys, from header to footer or as far as the text goes
    rb"(?s)(?P<keep>-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----).*?(?:(?=-----END)|\Z)",
    # tokens that can be told by their prefix (GitHub, GitLab, Hugging Face, OpenAI and kin, AWS, Slack, Google, npm)
    (
        rb"(?P<keep>)\b(?:gh[pousr]_[A-Za-z0-9]{16,1024}|github_pat_\w{16,1024}|glpat-[\w-]{16,1024}"
        rb"|hf_[A-Za-z0-9]{16,1024}|sk-[\w-]{16,1024}|A[KS]IA[A-Z0-9]{16}|xox[a-z]-[\w-]{10,1024}|AIza[\w-]{30,1024}"
        rb"|npm_[A-Za-z0-9]{30,1024}|eyJ[\w-]{10,1024}\.[\w-]{10,4096}\.[\w-]{10,1024})"
    ),
    # Authorization: Bearer ...
    rb"(?i)(?P<keep>\b(?:bearer|basic)\s)[\w.~+/=-]{16,4096}",
    # "password": "...", api_key = '...': a quoted value only, since `token = tokenizer.encode(text)` is no secret
    rb"(?i)(?P<keep>" + _SECRET_NAME + rb"[\"']?\s{0,8}[:=]\s{0,8}[\"'])[^\s\"']{8,4096}",
    # WANDB_API_KEY=..., as in a shell or an .env file
    rb"(?P<keep>(?:PASSW(?:OR)?D|SECRET|TOKEN|API_?KEY|ACCESS_?KEY)[A-Z0-9_]{0,40}=)[^\s\"'$(]{8,4096}",
    # --token ..., --api-key=...
    rb"(?i)(?P<keep>--[\w-]{0,40}?" + _SECRET_NAME + rb"[= ])[^\s\"'-][^\s\"']{7,4096}",
)


def redact(text: bytes) -> tuple[bytes, int]:
    """Return (text without what looks like a secret, how many were taken out)."""
    total = 0
    for pattern in _PATTERNS:
        text, count = re.subn(pattern, rb"\g<keep>" + MARK, text)
        total += count
    return text, total


# `--api-key VALUE` and kin, for the words of a command line; not `--eos_token '</s>'`, `--max_tokens 100` or a path.
_SECRET_OPTION = (
    r"(?i)(?:.*[-_.])?(?:password|passwd|passphrase|secret|(?<!pad[-_])(?<!eos[-_])(?<!bos[-_])(?<!unk[-_])(?<!sep[-_])"
    r"(?<!cls[-_])(?<!mask[-_])token|api[-_]?key|access[-_]?key|secret[-_]?key|credentials?)"
)
_SECRET_VALUE = r"(?![0-9.eE+-]+$)[A-Za-z0-9][^\s]{7,}"
# The patterns that know a secret by its own shape, whatever stands around it.
_SHAPES = _PATTERNS[:4]


def redacted_text(text: str) -> str:
    """Return a text without what looks like a secret."""
    return redact(text.encode("utf-8", "surrogatepass"))[0].decode("utf-8", "surrogatepass")


def secret_line(text: bytes) -> int | None:
    """Return the line, from 1, of the first secret that is known by its own shape; None without one."""
    found = [match.start() for pattern in _SHAPES if (match := re.search(pattern, text))]
    return text.count(b"\n", 0, min(found)) + 1 if found else None


def secret_word(words: Sequence[str]) -> str | None:
    """Return the option, or the beginning of the word, that looks as if it carried a secret; None if none does.

    Args:
        words: of a command line.
    """
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.lstrip("-").partition("=")
        if any(re.search(pattern, word.encode("utf-8", "replace")) for pattern in _SHAPES):
            return f"{name}=..." if equals else f"{word[:4]}..."
        is_option = bool(equals) or word.startswith("-")
        is_secret = is_option and re.fullmatch(_SECRET_OPTION, name)
        if is_secret and re.fullmatch(_SECRET_VALUE, value if equals else following):
            return word.partition("=")[0]
    return None
