"""Tokens planted where they lie about are in no file that the kit writes (K7).

What the trainer prints is its own: logs/ holds it byte for byte. What the kit takes out of the log into a file of its
own (the last lines of an abort event) goes through the redaction.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from resumekit.run import log_tail
from resumekit.run.run_folder import open_run
from support.commands import Kit
from support.lab_repo import git
from support.runs import events

# One for each place, so that a leak says where it came from; none is a real one.
TOKENS = {
    "env recorded": "glpat-" + "RecordedRecorded11",
    "env passed": "hf_" + "PassedPassedPassedPassed12",
    "env other": "sk-" + "OtherOtherOtherOther13",
    "remote": "RemoteTokenRemoteToken14",
    "submodule": "SubmoduleTokenSubmod15",
    "diff": "ghp_" + "DiffDiffDiffDiffDiff16",
    "diff removed": "AKIA" + "REMOVEDREMOVED17",
    "untracked": "UntrackedUntracked18",
    "ignored": "IgnoredIgnoredIgnored19",
    "notes": "npm_" + "NotesNotesNotesNotesNotesNotes20",
    "credentials": "NetrcNetrcNetrcNetrc21",
    "traceback": "xoxb-" + "1234567890-Traceback22",
}
# What the trainer itself writes, in its own words.
ITS_OWN = ("logs/output.log", "logs/train.log")


def files_of_the_kit(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and not name.endswith(ITS_OWN):
            yield name, path.read_bytes()


def leaks(folder: Path, tokens: dict[str, str]) -> list[tuple[str, str]]:
    """Return (whose token, in which file), also where only its second half is left."""
    return [
        (place, name)
        for name, content in [*files_of_the_kit(folder), *((n, n.encode()) for n, _ in files_of_the_kit(folder))]
        for place, token in tokens.items()
        if token[len(token) // 2 :].encode() in content
    ]


@pytest.fixture
def lab(kit: Kit) -> Path:
    """A repository with a token in every place where one is found."""
    folder = kit.folder
    (folder / ".gitignore").write_text("runs/\n.env\n")
    old = f"key = '{TOKENS['diff removed']}'\n"
    (folder / "train.py").write_text(old)
    git(folder, "init", "-q")
    git(folder, "add", ".gitignore", "train.py", "config.yaml")
    git(folder, "commit", "-q", "-m", "one")
    git(folder, "remote", "add", "origin", f"https://lab:{TOKENS['remote']}@example.org/lab.git")
    git(folder, "config", "submodule.x.url", f"https://{TOKENS['submodule']}@example.org/x.git")
    (folder / "train.py").write_text(f"token = '{TOKENS['diff']}'\n")
    (folder / ".env").write_text(f"API_KEY={TOKENS['ignored']}\n")
    (folder / "key.pem").write_text(f"SECRET={TOKENS['untracked']}\n")
    (folder / ".netrc").write_text(f"machine example.org login lab password {TOKENS['credentials']}\n")
    return folder


@pytest.mark.fault(
    "K7", by="make_folder: named variables, cleaned; code_state: redacted diff; log_tail: redacted lines"
)
@pytest.mark.fault("K8", by="code_state: tracked files only")
def test_k7_planted_tokens_are_in_no_file_that_the_kit_writes(kit: Kit, lab: Path) -> None:
    """A run that fails, its continuation, a branch, a look by the watcher: every file under runs/ is searched."""
    env = {
        "LD_LIBRARY_PATH": f"/opt:{TOKENS['env recorded']}", "HF_TOKEN": TOKENS["env passed"],
        "OPENAI_API_KEY": TOKENS["env other"], "WANDB_API_KEY": TOKENS["env other"],
        "GIT_ASKPASS": TOKENS["env other"],
    }  # fmt: skip
    program = f"import sys; print('Authorization: {TOKENS['traceback']}'); raise RuntimeError('{TOKENS['traceback']}')"
    script = lab / "dies.py"
    script.write_text(program)
    kit.config("--save-every", "2", trainer={"env": ["HF_TOKEN"]}, recover={"enabled": False})
    kit("run", "T-1", "--notes", f"with {TOKENS['notes']}", code=137, env={**env, "TOY_ARGS": "--at 4 kill"})
    kit("resume", "T-1", env=env, code=None)
    kit("resume", "T-1", "--step", "2", "--name", "side", "--notes", TOKENS["notes"], env=env, code=None)
    quoted = str(script).replace("{", "{{").replace("}", "}}")
    kit.config(trainer={"command": ["{python}", quoted]}, recover={"enabled": False})
    kit("run", "T-2", env=env, code=1)
    kit("abort-watch", env=env, code=None)
    assert len(kit.run_dirs()) == 4
    assert leaks(kit.runs, TOKENS) == []
    patches = [run / "code.patch" for run in kit.run_dirs()]
    assert all(b"[redacted]" in patch.read_bytes() for patch in patches), "the diff is kept, its tokens are not"


@pytest.mark.fault("K7", by="log_tail: redacted lines")
def test_k7_the_last_lines_of_a_log_that_go_into_an_event_are_without_tokens(kit: Kit) -> None:
    script = kit.folder / "says.sh"
    script.write_text(f"echo export TOKEN={TOKENS['notes']}; echo {TOKENS['traceback']}\n")
    kit.config(trainer={"command": ["sh", str(script).replace("{", "{{").replace("}", "}}")]})
    kit("run", "T-1", code=None)
    [run] = kit.run_dirs()
    assert TOKENS["traceback"] in (run / "logs/output.log").read_text(), "the log is the trainer's own"
    lines = log_tail.last_lines(open_run(run))
    assert lines and not any(token[8:] in line for line in lines for token in TOKENS.values())
    assert leaks(kit.runs, TOKENS) == []


WORDS = [
    ["--", "--api-key", "abcdef123456"],
    ["--", "--auth_token=abcdef123456"],
    ["--", "ghp_" + "a" * 30],
    ["--", "https://user:hunter2hunter2@example.org/data"],
    ["--set", "notify.command=[curl, 'https://bot:abcdef123456@example.org']"],
    ["--set", "trainer.extra_args=[--token, hf_abcdefabcdefabcdef1]"],
    ["--set", "data.path=https://me:abcdef123456@example.org/x"],
    ["--set", "x-own.password=abcdef123456"],
]


@pytest.mark.fault("K7", by="preflight: a secret on the command line is refused")
@pytest.mark.parametrize("words", WORDS, ids=range(len(WORDS)))
def test_k7_a_token_on_the_command_line_is_refused_and_nothing_is_made(kit: Kit, words: list[str]) -> None:
    for command in ("run", "resume"):
        if command == "resume":
            kit("run", "T-1", code=137, env={"TOY_ARGS": "--save-every 2 --at 4 kill"})
        before = sorted(os.listdir(kit.runs)) if kit.runs.exists() else []
        done = kit(command, "T-1", *words, code=2)
        assert "looks like a secret" in done.stderr and "environment variable" in done.stderr
        assert "abcdef123456" not in done.stderr + done.stdout
        assert (sorted(os.listdir(kit.runs)) if kit.runs.exists() else []) == before


@pytest.mark.fault("K7", by="trainer: the journal holds names and numbers, an environment never")
def test_k7_the_events_of_a_run_hold_no_value_of_its_environment(kit: Kit) -> None:
    value = "PlainPlainPlainPlain99"  # of no form that a pattern could know
    kit("run", "T-1", code=1, env={"MY_SETTING": value, "TOY_ARGS": "--at 2 raise"})
    [run] = kit.run_dirs()
    assert events(run, "exited") and value not in json.dumps(events(run))
    assert leaks(kit.runs, {"unknown form": value}) == []


SECRET_CONFIGS = {
    "a url with a password": {"notify": {"command": ["curl", "https://bot:abcdef123456@example.org"]}},
    "an argument of the trainer": {"trainer": {"command": ["python", "train.py", "--api-key", "abcdef123456"]}},
    "a token by its shape": {"experiment": {"notes": "hf_" + "abcdef" * 4}},
    "a key of a lab's own": {"x-tracker": {"api_key": "abcdef123456"}},
    "in an experiment": {"experiments": {"T-1": {"name": "toy", "notes": "sk-" + "abcdef" * 4}}},
}


@pytest.mark.fault("K7", by="preflight: a config with a secret is refused")
@pytest.mark.parametrize("kind", SECRET_CONFIGS)
def test_k7_a_config_that_holds_a_token_is_refused_because_it_would_be_copied(kit: Kit, kind: str) -> None:
    kit.config(**SECRET_CONFIGS[kind])
    done = kit("run", "T-1", code=4)
    assert "looks like a secret" in done.stderr and "Traceback" not in done.stderr
    assert "abcdef" not in done.stderr and not kit.runs.exists()


@pytest.mark.fault("K7", by="preflight: a config with a secret is refused")
def test_k7_a_token_in_a_comment_of_the_config_is_named_by_its_line(kit: Kit) -> None:
    kit.config_file.write_text("# one\n# my key: ghp_" + "abcd" * 6 + "\n" + kit.config_file.read_text())
    said = kit("run", "T-1", code=4).stderr
    assert "line 2 of the config" in said and "abcd" not in said and not kit.runs.exists()


def test_k7_words_of_a_trainer_that_only_sound_like_secrets_are_no_reason_to_refuse(kit: Kit) -> None:
    words = {"eos_token": "endoftext", "pad_token_id": 0, "max_tokens": 4096, "tokenizer": "bert-base-uncased"}
    kit.config(**{"x-data": words, "experiment": {"notes": "the token budget is 4096; see https://example.org/a@b"}})
    kit("run", "T-1")
