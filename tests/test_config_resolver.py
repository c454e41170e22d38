"""`python lib/config_resolver.py ...`, driven as a person would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.places import ROOT

DOOR = ROOT / "lib" / "config_resolver.py"

from resumekit.config import config  # noqa: E402


def run(
    *arguments: str, cwd: Path | None = None, isolated: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-I"] if isolated else []), str(DOOR), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}, timeout=60
    )


PROTOCOL = ["--set", "training.batch_size=8", "--set", "grad_accum_steps=5", "--set", "eval_frequency=2000"]


def test_the_protocols_own_command_writes_the_resolved_config_and_prints_its_hash(tmp_path: Path) -> None:
    logdir = tmp_path / "runs" / "EXP-01_x"
    done = run("--config", "config.yaml", "--logdir", str(logdir), *PROTOCOL, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    resolved = json.loads((logdir / "resolved_config.json").read_text())
    assert done.stdout == f"config hash: {config.config_hash(resolved)}\n"
    assert yaml.safe_load((logdir / "resolved_config.yaml").read_text()) == resolved
    assert (resolved["training"]["batch_size"], resolved["training"]["grad_accum_steps"]) == (8, 5)
    assert resolved["validation"]["fast_eval_every"] == 2000
    assert (logdir / "config.yaml").read_bytes() == (ROOT / "config.yaml").read_bytes()


def test_what_is_hardly_meant_is_warned_of_beside_the_answer(tmp_path: Path) -> None:
    done = run("--logdir", str(tmp_path), "--experiment", "EXP-01", "--set", "eval_frequency=2000", cwd=ROOT)
    assert done.returncode == 0 and done.stdout.startswith("config hash: ")
    assert "warning: validation.fast_eval_every is 2000" in done.stderr and done.stderr.count("\n") == 1


def test_the_hash_is_the_same_from_any_folder_with_or_without_isolation_pyyaml_and_jsonschema(tmp_path: Path) -> None:
    (tmp_path / "it's a folder\n").mkdir()
    (tmp_path / "json.py").write_text("raise SystemExit('the folder one stands in was imported')")
    answers = {
        run("--logdir", str(tmp_path / "a"), *PROTOCOL, cwd=ROOT).stdout,
        run("--logdir", str(tmp_path / "it's a folder\n" / "b"), *PROTOCOL, cwd=tmp_path).stdout,
        run("--logdir", str(tmp_path / "c"), *PROTOCOL, cwd=tmp_path, isolated=False).stdout,
        _without("yaml", "--logdir", str(tmp_path / "d"), *PROTOCOL).stdout,
        _without("jsonschema", "--logdir", str(tmp_path / "e"), *PROTOCOL).stdout,
    }
    assert len(answers) == 1
    assert answers.pop().startswith("config hash: ")
    written = {(tmp_path / name / "resolved_config.yaml").read_bytes() for name in ("a", "c", "d", "e")}
    assert len(written) == 1


def _without(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys, runpy; sys.modules[{module!r}] = None\n"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-I", "-c", code, str(DOOR), *arguments], capture_output=True, text=True, timeout=60
    )


def test_without_jsonschema_a_config_is_checked_in_full_but_for_a_labs_other_rules(tmp_path: Path) -> None:
    done = _without("jsonschema", "--logdir", str(tmp_path / "a"))
    assert (done.returncode, done.stderr) == (0, "")
    done = _without("jsonschema", "--logdir", str(tmp_path / "b"), "--set", "training.batch_size=-5")
    assert done.returncode == 4
    assert "'training.batch_size' is '-5' and must be at least 1" in done.stderr
    lab = tmp_path / "lab.schema.json"
    lab.write_text('{"properties": {"lab": {"properties": {"tags": {"type": "array", "uniqueItems": true}}}}}')
    arguments = ("--lab-schema", str(lab), "--set", "lab.tags=[a, a]")
    done = _without("jsonschema", "--logdir", str(tmp_path / "c"), *arguments)
    assert done.returncode == 0
    assert done.stderr == (
        "resumekit: jsonschema is not installed: 'uniqueItems' of 'lab.tags' in the lab's schema is not checked; "
        "pip install jsonschema\n"
    )
    done = run("--logdir", str(tmp_path / "d"), *arguments)
    assert done.returncode == 4
    assert "'lab.tags' is '[\"a\", \"a\"]' and breaks the schema's rule 'uniqueItems' (--set" in done.stderr


def test_an_experiment_is_resolved_when_named(tmp_path: Path) -> None:
    done = run("--logdir", str(tmp_path / "a"), "--experiment", "EXP-03")
    assert done.returncode == 0
    assert (
        json.loads((tmp_path / "a" / "resolved_config.json").read_text())["experiment"]["run_name"] == "droppath_base"
    )


def test_a_labs_own_keys_are_known_where_its_schema_is_named(tmp_path: Path) -> None:
    lab = str(ROOT / "schemas" / "examples" / "lab.json")
    assert run("--logdir", str(tmp_path / "a"), "--set", "queue.partition=long").returncode == 4
    assert run("--logdir", str(tmp_path / "a"), "--lab-schema", lab, "--set", "queue.partition=long").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "the following arguments are required: --logdir"),
        (["--logdri", "x"], 2, "required: --logdir"),
        (["--logdir", "x", "--stpe", "3"], 2, "unrecognized arguments: --stpe 3"),
        (["--logdir", "x", "--set", "seed"], 2, "'seed' (--set) has no '='; write KEY=VALUE"),
        (["--logdir", "x", "--experiment", "EXP-99"], 2, "there is no experiment 'EXP-99'"),
        (
            ["--logdir", "x", "--set", "seed=x"],
            4,
            "'training.seed' is 'x', a text, and must be a whole number of at least 0 (--set 'seed=x')",
        ),
        (
            ["--logdir", "x", "--config", "none.yaml"],
            4,
            "the config 'none.yaml' cannot be read: no such file or directory",
        ),
        (["--logdir", "file/x"], 1, "the folder 'file/x' (--logdir) cannot be made: Not a directory"),
        (["--logdir", "file"], 1, "the folder 'file' (--logdir) cannot be made: File exists"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_code_and_nothing_is_written(
    tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    (tmp_path / "file").write_text("")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code
    first = done.stderr.splitlines()[0]
    assert first.startswith("config_resolver.py: ")
    assert says in first
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_usage_error_is_followed_by_the_usage() -> None:
    lines = run("--stpe", "3").stderr.splitlines()
    assert lines[1].startswith("usage: config_resolver.py ")


def test_help_has_an_example_and_the_exit_codes() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "--set eval_frequency=2000" in done.stdout
    assert "config hash: <64 hex digits>" in done.stdout


@pytest.mark.fault("K1", by="config_resolver: values are data")
def test_nothing_in_a_value_is_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for payload in (
        f"$(touch {canary})",
        f"`touch {canary}`",
        f"; touch {canary}",
        f"x'; touch {canary}; '",
        f"{{__import__('os').system('touch {canary}')}}",
    ):
        done = run("--logdir", str(tmp_path / "a"), "--set", f"notes={payload}")
        assert done.returncode == 0
        assert json.loads((tmp_path / "a" / "resolved_config.json").read_text())["experiment"]["notes"] == payload
    assert not canary.exists()


def test_the_config_beside_the_resolved_one_is_left_alone_when_they_share_a_folder(tmp_path: Path) -> None:
    original = tmp_path / "config.yaml"
    original.write_text("trainer: {command: [x]}\n")
    before = original.stat().st_ino
    assert run("--config", "config.yaml", "--logdir", ".", cwd=tmp_path).returncode == 0
    assert original.stat().st_ino == before


def test_a_trainers_own_modules_are_never_hidden_by_the_kits(tmp_path: Path) -> None:
    """The door, imported, stands last on the path: a lab's config.py beside its trainer is the one that is found."""
    for name in ("config", "schema", "resolver"):
        (tmp_path / f"{name}.py").write_text("WHOSE = 'lab'\n")
    code = (
        "import sys, config_resolver, config, schema, resolver\n"
        "print(config.WHOSE, schema.WHOSE, resolver.WHOSE, sys.path[-1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "lib")},
    )
    assert done.stdout.split() == ["lab", "lab", "lab", str(ROOT / "lib")], done.stderr


@pytest.mark.parametrize("option", ["--logdir", "--config", "--lab-schema"])
def test_an_empty_name_is_no_folder_and_no_file(tmp_path: Path, option: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "lib" / "config_resolver.py"), "--logdir", str(tmp_path / "new"), option, ""],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2 and option in done.stderr and "given with an empty name" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_config_of_a_run_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, str(ROOT / "lib" / "config_resolver.py"), "--logdir", str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "its config stays as it is; name another one" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
