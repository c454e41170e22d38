"""What is taken out of a text that is kept, and what is left alone."""

from __future__ import annotations

import pytest

from resumekit.basics.redaction import redact, secret_word

# Put together here, so that no scanner of this repository takes them for real ones.
SECRETS = [
    "https://me:hunter2@example.org/x.git",
    "https://tokenonly123@example.org",
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1B2" * 9,
    "glpat-" + "a1B2" * 5,
    "hf_" + "a1B2" * 8,
    "sk-" + "a1B2" * 8,
    "AKIA" + "ABCDEFGH12345678",
    "xoxb-" + "1234567890-abcdef",
    "eyJ" + "hbGciOiJIUzI1" + ".eyJzdWIiOiIxMjM0" + ".SflKxwRJSMeKKF2QT4",
    "Authorization: Bearer " + "abcdef0123456789abcd",
    'password = "correct horse"'.replace(" horse", "horse"),
    "'api_key': 'abcdefgh12345'",
    "WANDB_API_KEY=abcdef0123456789",
    "--token abcdef0123",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIabc\ndef\n-----END RSA PRIVATE KEY-----",
]
HARMLESS = [
    "token = tokenizer.encode(text)",
    "tokens_per_step = 4096",
    "password_field = None",
    "API_KEY=$(pass show key)",
    "https://example.org/a@b",
    "skip-connection",
    "def secret_word(words):",
]


@pytest.mark.fault("K7", by="redaction: known forms of secrets")
@pytest.mark.parametrize("text", SECRETS)
def test_secrets_go(text: str):
    kept, count = redact(f"before {text} after".encode())
    assert count >= 1 and kept.startswith(b"before ") and b"[redacted]" in kept
    hidden = {"https://me": "hunter2", "https://to": "tokenonly123", "-----BEGIN": "MIIabc"}.get(text[:10])
    assert (hidden or text.strip("'\"")[-8:]).encode() not in kept


@pytest.mark.parametrize("text", HARMLESS)
def test_code_stays(text: str):
    assert redact(text.encode()) == (text.encode(), 0)


@pytest.mark.fault("K13", by="redaction: linear patterns")
def test_a_large_text_takes_linear_time():
    for piece in (
        b"a" * 1000,
        b"-----BEGIN PRIVATE KEY-----\n" * 50,
        b"x://" * 300,
        b"token='" * 200,
        b"eyJaaaaaaaaaa." * 80,
    ):
        redact(piece * 200)


@pytest.mark.fault("K7", by="redaction: secret_word refuses the command line")
@pytest.mark.parametrize(
    "words, found",
    [
        (["--api-key", "abcdefgh1"], "--api-key"),
        (["--wandb_api_key=abcdefgh1"], "--wandb_api_key"),
        (["--password", "hunter2hunter2"], "--password"),
        (["notify=[https://a:b@example.org]"], "notify=..."),
        (["hf_" + "a" * 20], "hf_a..."),
    ],
)
def test_a_command_line_with_a_secret_is_found(words: list[str], found: str):
    assert secret_word(["--lr", "1e-4", *words]) == found


@pytest.mark.parametrize(
    "words",
    [
        ["--eos_token", "endoftext1"], ["--pad-token=[PAD]xxxxx"], ["--max_tokens", "100000000"],
        ["--tokenizer", "bert-base-uncased"], ["--credentials", "/home/me/key.json"], ["--token", "$HF_TOKEN_NAME"],
        ["--secret"], ["--api-key", "--other-flag"], ["training.seed=42"], [],
    ],
)  # fmt: skip
def test_a_command_line_without_one_is_not_refused(words: list[str]):
    assert secret_word(words) is None
