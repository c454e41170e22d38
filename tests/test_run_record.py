"""run.json, code.patch, command.sh: what they hold, and what they never hold."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from resumekit.base import background_command
from resumekit.base.terminal import plain
from resumekit.start import code_state, interpreter
from support import schema_examples
from support.commands import Kit, killed
from support.lab_repo import git
from support.places import ROOT
from support.runs import record

SCHEMA = json.loads((ROOT / "schemas/run.schema.json").read_text())

# Planted where secrets lie about; none of them may be in any file of a run.
SECRETS = {
    "env": "hf_EnvEnvEnvEnvEnvEnvEnv1",
    "remote": "RemoteTokenRemoteToken2",
    "diff": "ghp_DiffDiffDiffDiffDiffDiff3",
    "untracked": "UntrackedUntracked5",
    "notes": "sk-NotesNotesNotesNotes6",
}


def check(value: dict) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(value)


@pytest.fixture
def repo(kit: Kit) -> Path:
    """A lab's repository around the test's config, with a change that is not committed."""
    folder = kit.folder
    (folder / "train.py").write_text("print('one')\n")
    (folder / ".gitignore").write_text("runs/\n")
    git(folder, "init", "-q")
    git(folder, "add", ".gitignore", "train.py", "config.yaml")
    git(folder, "commit", "-q", "-m", "one")
    return folder


def artifacts(run: Path) -> bytes:
    return b"\n".join(p.read_bytes() for p in run.rglob("*") if p.is_file())


@pytest.mark.parametrize("name", schema_examples.names("run"))
def test_the_schema_takes_its_valid_examples_and_no_other(name: str):
    value = schema_examples.case("run", name)
    if schema_examples.is_valid(name):
        check(value)
    else:
        with pytest.raises(jsonschema.ValidationError):
            check(value)


def test_the_schema_knows_every_field_and_nothing_else(kit: Kit):
    killed(kit)
    kit("resume", "T-1", "--notes", "it's\na note")
    for run in kit.run_dirs():
        own = record(run)
        check(own)
        assert list(own) == list(SCHEMA["properties"]), "in the schema's order"
        for name in own:
            broken = copy.deepcopy(own)
            del broken[name]
            with pytest.raises(jsonschema.ValidationError):
                check(broken)
        with pytest.raises(jsonschema.ValidationError):
            check({**own, "more": 1})
    assert all("description" in node for node in SCHEMA["properties"].values())


@pytest.mark.fault("K7", by="make_folder: named variables, redacted diff, no remote")
@pytest.mark.fault("K8", by="code_state: tracked files only")
def test_planted_secrets_are_in_no_artifact(kit: Kit, repo: Path):
    git(repo, "remote", "add", "origin", f"https://lab:{SECRETS['remote']}@example.org/lab.git")
    changed = f"token = '{SECRETS['diff']}'\nprint('two')\n"
    (repo / "train.py").write_text(changed)
    (repo / ".env").write_text(f"API_KEY={SECRETS['untracked']}\n")
    env = {"HF_TOKEN": SECRETS["env"], "WANDB_API_KEY": SECRETS["env"], "LD_LIBRARY_PATH": "/opt/lib"}
    kit.config(trainer={"env": ["HF_TOKEN"]})
    kit("run", "T-1", "--notes", f"with {SECRETS['notes']}", env=env)
    [run] = kit.run_dirs()
    found = artifacts(run)
    assert [name for name, secret in SECRETS.items() if secret.encode() in found] == []
    own = record(run)
    assert (
        own["environment"]["passed"] == ["HF_TOKEN"] and own["environment"]["values"]["LD_LIBRARY_PATH"] == "/opt/lib"
    )
    assert own["git"]["redacted"] == 1 and own["notes"] == "with [redacted]"
    assert b"print('two')" in (run / "code.patch").read_bytes()


@pytest.mark.fault("K7", by="preflight: refused before anything is kept")
@pytest.mark.parametrize("word", ["--api-key", "--hf_token"])
def test_a_secret_on_the_command_line_is_refused_because_it_would_be_kept(kit: Kit, word: str):
    for args in (["--", word, "abcdef123456"], ["--", f"{word}=abcdef123456"], ["--", "x", "ghp_" + "a" * 30]):
        said = kit("run", "T-1", *args, code=2).stderr
        assert "looks like a secret" in said and "environment variable" in said and "abcdef123456" not in said
    assert not kit.runs.exists()


def test_the_patch_applies_to_the_recorded_commit(kit: Kit, repo: Path):
    git(repo, "config", "diff.noprefix", "true")
    git(repo, "config", "diff.context", "0")
    (repo / "train.py").write_text("print('ä')\nprint('two')")
    (repo / "binary").write_bytes(bytes(range(256)))
    git(repo, "add", "-N", "binary")
    kit("run", "T-1")
    [run] = kit.run_dirs()
    own = record(run)
    assert own["git"]["redacted"] == 0 and own["git"]["commit"] == git(repo, "rev-parse", "HEAD")
    git(kit.folder, "clone", "-q", str(repo), "clone")
    clone = kit.folder / "clone"
    git(clone, "checkout", "-q", own["git"]["commit"])
    git(clone, "apply", str(run / "code.patch"))
    assert (clone / "train.py").read_bytes() == (repo / "train.py").read_bytes()
    assert not (clone / "binary").exists()  # by digest alone: a patch of it may be of any size
    digest = hashlib.sha256(bytes(range(256))).hexdigest()
    assert own["code"]["changed"]["binary"] == digest and f"#   'binary' {digest}" in (run / "code.patch").read_text()


def test_what_only_stands_behind_a_telling_name_is_code_and_the_patch_applies_as_it_is(kit: Kit, repo: Path):
    """A patch is readable by its owner alone, since a password in no known form may be in it."""
    key = "ghp_" + "DiffDiffDiffDiffDiffDiff3"
    changed = f"eos_token = '<|endoftext|>'\napi_key = 'AssignedAssigned4'\nhub = '{key}'\nprint('two')\n"
    (repo / "train.py").write_text(changed)
    said = kit("run", "T-1").stderr
    [run] = kit.run_dirs()
    assert "code.patch has '[redacted]' in the place of a key: train.py line 3\n" in said
    patch = run / "code.patch"
    assert patch.stat().st_mode & 0o777 == 0o600 and record(run)["git"]["redacted"] == 1
    git(kit.folder, "clone", "-q", str(repo), "clone")
    git(kit.folder / "clone", "apply", str(patch))
    assert (kit.folder / "clone/train.py").read_text() == changed.replace(key, "[redacted]")


def test_untracked_files_that_count_as_code_are_recorded_and_said(kit: Kit, repo: Path):
    (repo / "models").mkdir()
    for name in ("losses.py", "models/new.py", "notes.md", ".env"):
        (repo / name).write_text("x = 1\n")
    (repo / ".gitignore").write_text("runs/\n.env\n")
    said = kit("run", "T-1").stderr
    assert "untracked, so in no commit and not in code.patch: losses.py, models/new.py; run.json lists them" in said
    code = record(kit.run_dirs()[0])["code"]
    assert (code["untracked"], code["untracked_count"]) == (["losses.py", "models/new.py"], 2)


def test_a_git_that_does_not_say_in_time_what_is_untracked_holds_up_no_start(
    repo: Path, monkeypatch: pytest.MonkeyPatch
):
    snapshot = code_state.start_snapshot(repo)
    hanging = snapshot._replace(untracked=background_command.start(["sleep", "60"], os.environ))
    monkeypatch.setattr(code_state.git, "UNTRACKED_S", 0.05)
    code = code_state.finish_snapshot(hanging)
    assert code.left_out is None and code.is_known and not code.said


@pytest.mark.fault("K1", by="base/git: git without the repository's programs")
def test_a_repository_s_own_programs_are_not_run(kit: Kit, repo: Path):
    for key in ("diff.external", "core.fsmonitor", "diff.bad.textconv", "diff.bad.command"):
        git(repo, "config", key, "touch pwned; cat")
    (repo / ".gitattributes").write_text("*.py diff=bad\n")
    (repo / "train.py").write_text("print('two')\n")
    kit("run", "T-1", cwd=repo)
    assert not list(repo.rglob("pwned")) and (kit.run_dirs()[0] / "code.patch").exists()


@pytest.mark.fault("K8", by="code_state: a size cap")
def test_a_large_diff_is_not_kept_but_its_digest_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(code_state.git, "MAX_PATCH_BYTES", 100)
    (tmp_path / "a").write_text("one\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "one")
    (tmp_path / "a").write_text("two\n" * 1000)
    code = code_state.finish_snapshot(code_state.start_snapshot(tmp_path))
    assert code.patch.startswith(b"# the diff has ") and len(code.patch) < 200 and len(code.diff_sha256) == 64


def test_no_repository_and_no_git_are_no_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nothing = code_state.Code(None, b"", None, ())
    assert code_state.finish_snapshot(code_state.start_snapshot(tmp_path)) == nothing
    git(tmp_path, "init", "-q")
    unknown = nothing._replace(is_known=False, left_out=(), unknown="the repository has no commit yet")
    assert code_state.finish_snapshot(code_state.start_snapshot(tmp_path)) == unknown
    monkeypatch.setenv("PATH", "/nonexistent")
    missing = nothing._replace(unknown="there is no 'git' in PATH")
    assert code_state.finish_snapshot(code_state.start_snapshot(tmp_path)) == missing


def test_a_repository_of_another_user_s_that_git_does_not_read_is_said_and_recorded(kit: Kit, repo: Path):
    """In a container the mounted repository has another owner; git then says nothing of it but how to let it."""
    others = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}  # git's own way to be tested
    warned = f"warning: git does not say which code this is, {CODE_UNKNOWN}"
    lets = f"git config --global --add safe.directory {shlex.quote(str(repo))}"
    done = kit("run", "T-1", env=others)
    assert done.stderr.count(warned) == 1
    assert plain(f"the repository belongs to another user; `{lets}` lets git read it") in done.stderr
    found = record(kit.run_dirs()[0])
    check(found)
    assert found["git"]["commit"] is None and lets in found["git"]["unknown"]
    (note,) = (one for one in json.loads(dry_run(kit, "--json", env=others))["notes"] if one.startswith(warned))
    assert lets in note and "belongs to another user" in " ".join(dry_run(kit, env=others).split())
    assert warned not in kit("run", "T-1", "--fresh").stderr
    assert record(kit.run_dirs()[-1])["git"]["unknown"] is None


CODE_UNKNOWN = "so that no commit is recorded, and a recovery compares the files alone that the command names"


def dry_run(kit: Kit, *args: str, env: dict[str, str]) -> str:
    return kit("run", "T-1", "--fresh", "--dry-run", *args, env=env).stdout


def test_a_program_that_hangs_or_floods_is_bounded():
    hanging = background_command.start(["sleep", "60"], os.environ)
    assert background_command.result(hanging, 10, 0.05) == background_command.Answer()
    with pytest.raises(ProcessLookupError):
        os.kill(hanging.pid, 0)
    flood = background_command.result(
        background_command.start(["sh", "-c", "head -c 3000000 /dev/zero"], os.environ), 1000, 30
    )
    assert (len(flood.kept), flood.size) == (1000, 3000000)
    assert (
        background_command.result(background_command.start(["sh", "-c", "echo x; exit 3"], os.environ), 10, 30)
        == background_command.Answer()
    )
    assert background_command.start(["no-such-program-here"], os.environ) is None


@pytest.fixture(scope="module")
def other_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another venv's Python, with a torch in it that must not be imported."""
    folder = tmp_path_factory.mktemp("other venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [packages] = folder.glob("lib/python3*/site-packages")
    (packages / "torch").mkdir()
    (packages / "torch/__init__.py").write_text("raise RuntimeError('torch was imported')\n")
    (packages / "torch/version.py").write_text("__version__ = '9.8.7+test'\ncuda: str | None = '12.6'\n")
    return folder / "bin/python"


@pytest.mark.parametrize("way", ["trainer.python", "the command itself"])
def test_versions_are_those_of_the_trainer_s_interpreter(kit: Kit, other_venv: Path, way: str):
    script = ["-c", "print('step 5')"]
    if way == "trainer.python":
        kit.config(trainer={"command": ["{python}", *script], "python": str(other_venv)})
    else:
        kit.config(trainer={"command": [str(other_venv), *script]})
    kit("run", "T-1")
    own = record(kit.run_dirs()[0])["versions"]
    assert (own["torch"], own["cuda"]) == ("9.8.7+test", "12.6")
    assert own["python"] == "{}.{}.{}".format(*sys.version_info[:3])


def test_an_interpreter_that_answers_nonsense_is_unknown(tmp_path: Path):
    fake = tmp_path / "python3"
    fake.write_text("#!/bin/sh\necho hello\n")
    fake.chmod(0o755)
    versions = interpreter.Versions([str(fake)], "").answer()
    assert versions["python"] is None and versions["torch"] is None
