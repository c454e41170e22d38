"""Taking secrets out of a text that is kept: tokens by their known shapes, passwords in URLs, assigned secrets.

It errs on the side of taking too much. What it cannot know (a password that looks like a word) it cannot take: keep
secrets in environment variables, of which the kit stores names and a fixed list of harmless values only.
"""

from __future__ import annotations

import re

MARK = b"[redacted]"

_SECRET_NAME = rb"[\w-]*(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|access[_-]?key|credential)s?[\w-]*"

_PATTERNS = (
    # https://user:token@host
    re.compile(rb"(?P<keep>[a-z][a-z0-9+.-]*://)[^\s/@:]+(?::[^\s/@]*)?(?=@)", re.IGNORECASE),
    # private keys, from header to footer or as far as the text goes
    re.compile(rb"(?P<keep>-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:(?=-----END)|\Z)", re.DOTALL),
    # tokens that can be told by their prefix (GitHub, GitLab, Hugging Face, OpenAI and kin, AWS, Slack, Google, npm)
    re.compile(
        rb"(?P<keep>)\b(?:gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{16,}"
        rb"|sk-[\w-]{16,}|A[KS]IA[A-Z0-9]{16}|xox[a-z]-[\w-]{10,}|AIza[\w-]{30,}|npm_[A-Za-z0-9]{30,}"
        rb"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,})"
    ),
    # Authorization: Bearer ...
    re.compile(rb"(?P<keep>\b(?:bearer|basic)\s+)[\w.~+/=-]{16,}", re.IGNORECASE),
    # "password": "...", api_key = '...': a quoted value only, since `token = tokenizer.encode(text)` is no secret
    re.compile(rb"(?P<keep>" + _SECRET_NAME + rb"[\"']?\s*[:=]\s*[\"'])[^\s\"']{8,}(?=[\"'])", re.IGNORECASE),
    # WANDB_API_KEY=..., as in a shell or an .env file
    re.compile(rb"(?P<keep>\b[A-Z0-9_]*(?:PASSW(?:OR)?D|SECRET|TOKEN|API_?KEY|ACCESS_?KEY)[A-Z0-9_]*=)[^\s\"'$(]{8,}"),
    # --token ..., --api-key=...
    re.compile(rb"(?P<keep>--" + _SECRET_NAME + rb"[= ])[^\s\"'-][^\s\"']{7,}", re.IGNORECASE),
)


def redact(text: bytes) -> tuple[bytes, int]:
    """Return (text without what looks like a secret, how many were taken out)."""
    total = 0
    for pattern in _PATTERNS:
        text, count = pattern.subn(rb"\g<keep>" + MARK, text)
        total += count
    return text, total
