"""What another user wrote is shown as text: no command lets through what a terminal obeys, or a line of its own."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import pty
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import journal, terminal
from resumekit.base.errors import InvalidFile
from resumekit.base.files import UnreadableFile
from resumekit.base.paths import RunPaths
from resumekit.base.terms import FAILED, Check
from resumekit.checkpoint import dry_run
from resumekit.run import live_marker
from resumekit.trainer import loading
from resumekit.watch import inspection
from support.commands import Kit, killed, said_by
from support.places import LIB, ROOT
from support.runs import put_back

# A window title, a carriage return, a line that looks like one of the command's own, 8-bit CSI, a turned direction.
CANARY = "\x1b]0;t\x07\r\nFORGED \x9b31m\u202e\x7f"
TOLD = (
    {"event": "recovery", "outcome": "needs_attention", "cause": "died", "reason": CANARY},
    {"event": "recovery", "outcome": "resumed", "cause": CANARY, "child_run_id": CANARY, "reason": CANARY},
    {"event": "stopped", "by": CANARY, "now": False, "asked_by": CANARY},
    {"event": "taken_over", "by": CANARY, "host": CANARY, "run_id": CANARY},
    {"event": "abort", "cause": CANARY, "evidence": CANARY},
    {"event": "warning", "kind": CANARY, "message": CANARY},
    {"event": "nonfinite", "what": CANARY, "names": [CANARY], "loss": CANARY},
    {"event": "oom", "message": CANARY},
    {"event": "eval_crashed", "message": CANARY},
    {"event": "phase", "phase": CANARY},
    {"event": "checkpoint", "path": CANARY, "step": 7},
    {"event": "check", "name": CANARY, "verdict": "failed", "message": CANARY, "found": CANARY},
)


@pytest.fixture(scope="module")
def killed_twice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    """A run and the one that was resumed from it; both were killed, and the watcher looks at both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        kit = Kit(tmp_path_factory.mktemp("shown"))
        for at in (7, 12):
            killed(kit, at=at)
        for run in kit.run_dirs():
            live_marker.make(RunPaths(run).live_marker)
    yield kit
    kit.clean_up()


@pytest.fixture
def kit(killed_twice: Kit, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kit]:
    """The two runs, which are put back as they were: the same files, with the same content."""
    monkeypatch.setenv("XDG_STATE_HOME", killed_twice.env["XDG_STATE_HOME"])
    monkeypatch.setattr(inspection, "SECOND_LOOK_S", 0.0)
    with put_back(killed_twice.runs):
        yield killed_twice


@pytest.fixture
def runs(kit: Kit) -> list[Path]:
    return kit.run_dirs()


def commands(kit: Kit, run: Path) -> list[list[str]]:
    places = [f"--config={kit.config_file}", f"--runs={kit.runs}"]
    plan = ["--dry-run", *places]
    return [
        ["runs", *places],
        ["runs", f"--experiment={run.name}", *places],
        ["resume", f"--experiment={run.name}", *plan],
        ["start", "--experiment=T-1", *plan],
        ["resume", "--experiment=T-2", f"--from={run.name}", *plan],
        ["watch", "--observe", *places],
    ]


def assert_harmless(said: str, where: object) -> None:
    for line in said.split("\n"):
        assert line.isprintable() and not line.startswith("FORGED"), (where, line)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every text in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from [(*path, key)] if isinstance(inner, str) else leaves(inner, (*path, key))


def poisoned(value: Any, path: tuple[Any, ...]) -> Any:
    """Return a copy with the canary behind the text at a path."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] += CANARY
    return copy


RECORDS = ["run.json", "exit.json", "continued.json", "*.pt.json", "resolved_config.json"]
# Without these a file says nothing of its run.
IDENTITY = ("run_id", "parent_run_id", "relation", "checkpoint", "token", "sha256", "resolved_sha256", "file")


@pytest.mark.parametrize("name", RECORDS)
def test_a_canary_in_all_texts_of_a_record_is_shown_as_text(kit: Kit, runs: list[Path], name: str) -> None:
    for run in runs:
        for file in run.rglob(name):
            value = json.loads(file.read_bytes())
            for path in leaves(value):
                value = value if path[-1] in IDENTITY else poisoned(value, path)
            file.write_text(json.dumps(value))
    for words in commands(kit, runs[-1]):
        assert_harmless(said_by(words), (name, words[0]))


@pytest.mark.long
@pytest.mark.parametrize("name", RECORDS)
def test_a_canary_in_each_text_of_a_record_is_shown_as_text(kit: Kit, runs: list[Path], name: str) -> None:
    for run in runs:
        for file in run.rglob(name):
            kept = file.read_bytes()
            for path in leaves(json.loads(kept)):
                file.write_text(json.dumps(poisoned(json.loads(kept), path)))
                for words in commands(kit, run):
                    assert_harmless(said_by(words), (file.name, path, words[0]))
            file.write_bytes(kept)


@pytest.mark.parametrize("event", TOLD, ids=lambda event: event["event"])
def test_a_canary_in_an_event_is_shown_as_text(kit: Kit, runs: list[Path], event: dict[str, Any]) -> None:
    for run in runs:
        for saved in (RunPaths(run).sidecar_state, RunPaths(run).status):
            saved.unlink(missing_ok=True)
        with run.joinpath("logs/output.log").open("a") as log:
            log.write(f"RuntimeError: {CANARY}\n")
        journal.append(
            run / "journal.jsonl", event["event"], run.name, **{k: v for k, v in event.items() if k != "event"}
        )
    for words in commands(kit, runs[-1]):
        assert_harmless(said_by(words), words[0])


def test_a_canary_in_the_names_of_files_is_shown_as_text(kit: Kit, runs: list[Path]) -> None:
    name = CANARY
    for run in runs:
        (run / "claims").mkdir(exist_ok=True)
        for file in ("checkpoints/hrm_arc_step_9%s.pt", "checkpoints/%s.pt", "claims/%s", "%s"):
            (run / (file % name)).write_text("")
        (run / "checkpoints" / f"hrm_arc_step_11.pt{name}").write_text("")
        (run / "quarantine.json").write_text(json.dumps({"hrm_arc_step_10.pt": {"reason": CANARY, "at": CANARY}}))
    (kit.runs / name).mkdir()
    (kit.runs / f"T-1_{name}").mkdir()
    for words in commands(kit, runs[-1]):
        assert_harmless(said_by(words), words[0])
    for option in ([], ["--best"], ["--step=9"], [f"--pattern={name}{{step}}.pt"], [f"--best-pattern={name}"]):
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
            dry_run.main(["--ckpt_dir", str(runs[-1] / "checkpoints"), "--dry-run", *option])
        assert_harmless(said.getvalue(), option)


def test_json_for_programs_is_ascii_without_control_characters(kit: Kit, runs: list[Path]) -> None:
    for event in TOLD:
        journal.append(runs[-1] / "journal.jsonl", event["event"], runs[-1].name, **{**event, "event": None})
    for run in runs:
        run.joinpath("status.json").unlink(missing_ok=True)
    for words in commands(kit, runs[-1]):
        said = said_by([*words, "--json"])
        assert all(line.isprintable() and line.isascii() for line in said.split("\n"))
    assert json.loads(said_by([*commands(kit, runs[-1])[0], "--json"]))


def test_what_the_launcher_itself_says_is_one_printable_line() -> None:
    code = 'set -euo pipefail; KIT_COMMAND=x KIT_PROG=run.sh; source "$1/command_line.sh"; kit_say "$2"'
    for locale in ("C", "C.UTF-8"):
        done = subprocess.run(
            ["bash", "-c", code, "x", str(LIB), f"it's müller & {CANARY}"],
            capture_output=True, env={**os.environ, "LC_ALL": locale}, check=True,
        )  # fmt: skip
        said = done.stderr.decode()
        assert said.startswith("run.sh: it's müller & \\x1b]0;t\\x07\\x0d\\x0aFORGED ") and said.count("\n") == 1
        assert said[:-1].isprintable(), said


def test_a_path_goes_to_a_program_as_it_is_and_to_a_terminal_printable() -> None:
    code = "from resumekit.base import terminal; terminal.show_path(sys.argv[2])"
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.append(sys.argv[1]); {code}", str(LIB), CANARY]
    assert subprocess.run(command, capture_output=True, check=True).stdout == CANARY.encode() + b"\n"
    ours, theirs = pty.openpty()
    subprocess.run(command, stdout=theirs, check=True)
    shown = os.read(ours, 4096)
    os.close(ours)
    os.close(theirs)
    assert shown == terminal.plain(CANARY).encode() + b"\r\n"


# Modules that write to a descriptor themselves, and what of.
WRITERS = {
    "terminal": "everything for people",
    "output_log": "the trainer's own output, and the notes of the sidecar, which are plain",
    "live_view": "lines that it makes plain itself",
    "inspect_command": "lines that it makes plain itself",
    "shim": "the trainer's log, plain",
    "weights_extract": "JSON, into a pipe of the sidecar's",
    "launcher_answer": "fields for the launcher, and their NUL",
    "trainer_env": "the trainer's own output",
}


def test_nothing_else_of_the_kit_writes_to_the_terminal() -> None:
    for module in sorted((ROOT / "lib" / "resumekit").rglob("*.py")):
        tree = ast.parse(module.read_text(encoding="utf-8"))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            if name == "print" or name.startswith(("sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer.write")):
                assert module.stem in WRITERS, f"{module.name}:{call.lineno}"
            if name == "os.write" and ast.unparse(call.args[0]) in ("1", "2"):
                assert module.stem in WRITERS, f"{module.name}:{call.lineno}"


def test_what_an_error_says_is_one_printable_line_wherever_it_is_printed() -> None:
    """A trainer prints it in a traceback: names of weights, of another user's checkpoint, stand in it."""
    for error in (InvalidFile(f"unexpected: x{CANARY}"), UnreadableFile(f"no such record: x{CANARY}")):
        assert_harmless("".join(traceback.format_exception_only(error)), type(error))
        assert str(error).isprintable() and str(type(error)(str(error))) == str(error), "said again, it is the same"
    assert_harmless(Check("lr", FAILED, f"a{CANARY}", "b", CANARY).sentence(), Check)


def test_lines_of_a_load_are_printable() -> None:
    said: list[str] = []
    loading._plainly(said.append)(f"[warn] torch {CANARY}")
    assert_harmless(said[0], "log_fn")
