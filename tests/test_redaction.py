"""What is taken out of a text that is kept, and what is left alone."""

from __future__ import annotations

import pytest

from resumekit.base.redaction import redact, redact_patch, secret_word

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


def patch_of(*lines: str) -> bytes:
    """Return a patch of one file and one hunk, whose lines stand from 10 on."""
    old, new = (sum(not line.startswith(sign) for line in lines) for sign in "+-")
    head = ["diff --git a/a.py b/a.py", "--- a/a.py", "+++ b/a.py", f"@@ -10,{old} +10,{new} @@ def main():"]
    return "\n".join([*head, *lines, ""]).encode()


KEY = "ghp_" + "a1B2" * 9
PRIVATE = ["-----BEGIN RSA PRIVATE KEY-----", "MIIEpAIBAAKCAQEA" + "a1B2" * 12, "-----END RSA PRIVATE KEY-----"]


@pytest.mark.parametrize(
    "line",
    [
        "eos_token = '<|endoftext|>'",
        "api_key = 'abcdefgh12345'",
        'password = "correcthorse"',
        "WANDB_API_KEY=abcdef0123456789",
        "run --token abcdef0123",
        "basic transformer_encoder_with_attention",
        "url = f'redis://{user}:{password}@{host}'",
        "if line.startswith('-----BEGIN RSA PRIVATE KEY-----'):",
    ],
)
def test_code_of_a_patch_stays_what_it_is(line: str):
    text = patch_of("+" + line, "+    pass", "+    return load_private_key(line)", "-old")
    assert redact_patch(text) == (text, (), True)


def test_keys_of_known_forms_leave_a_patch_line_by_line_and_their_places_are_told():
    text = patch_of(
        " x = 1", f"+hub = '{KEY}'", "-old", "+url = 'https://me:hunter22@example.org'", *("+" + p for p in PRIVATE)
    )
    found = redact_patch(text)
    assert found.places == ("a.py line 11", "a.py line 12", "a.py line 14") and found.applies
    assert found.patch.count(b"\n") == text.count(b"\n") and found.patch.count(b"[redacted]") == 3
    for word in (KEY, "hunter22", PRIVATE[1]):
        assert word.encode() not in found.patch
    assert (
        b"+-----END RSA PRIVATE KEY-----\n" in found.patch
        and b"+url = 'https://me:[redacted]@example.org'" in found.patch
    )


@pytest.mark.parametrize("sign", ["-", " "])
def test_a_key_in_a_line_that_is_compared_with_the_commit_goes_too_and_that_is_told(sign: str):
    found = redact_patch(patch_of(f"{sign}hub = '{KEY}'", "+new"))
    assert (found.places, found.applies) == (("a.py line 10",), False) and KEY.encode() not in found.patch


def test_lines_that_look_like_headers_are_lines_of_the_hunk_that_they_stand_in():
    found = redact_patch(patch_of("--- a/other.py", "+++ b/other.py", "\\ No newline", f"+hub = '{KEY}'"))
    assert found.places == ("a.py line 11",)
