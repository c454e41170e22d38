"""The commands in bin/, each in a process of its own: the class that the fixture `kit` is of."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from resumekit.commands import main
from support.places import ROOT, TOY
from support.processes import DEADLINE_S, marked_pids, pids_about, wait_until
from support.runs import events

# The exit codes with which the kit refuses to begin.
REFUSALS = range(2, 7)


class Kit:
    """The commands in bin/, in a folder of the test's own: `config.yaml`, `runs/`.

    `config(...)` writes a config whose trainer is support/toy_trainer.py. Everything that is started carries a mark in
    its environment and is killed when the test ends, whatever session it has gone to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.config_file = folder / "config.yaml"
        self.mark = secrets.token_hex(8)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RESUMEKIT_", "TOY_", "XDG_"))}
        self.env = {**kept, "RESUMEKIT_TEST_MARK": self.mark, "PYTHON": sys.executable, "HOME": str(folder)}
        # Not in the home, which the oracle of the faults looks at; a campaign has no fixture that names a place.
        self.env["XDG_STATE_HOME"] = os.environ.get("XDG_STATE_HOME") or str(folder.parent / "state")
        folder.mkdir(parents=True, exist_ok=True)
        self.config()

    def config(self, *toy_args: str, **sections: dict[str, Any]) -> None:
        """Write config.yaml: the experiments T-1 and T-2 with the toy trainer, `sections` merged over that.

        Args:
            toy_args: more arguments for the toy trainer.
            sections: one mapping per section, `training={"max_steps": 9}`; `trainer` and `experiments` too.
        """
        saves_in = ["--dir", "{checkpoints_dir}", "--steps", "{training.max_steps}"]
        document: dict[str, Any] = {
            "trainer": {
                "command": ["{python}", str(TOY).replace("{", "{{").replace("}", "}}"), *saves_in, *toy_args],
                "resume_args": ["--resume", "{checkpoint}"],
                "loads_with_kit": False,
                "log_patterns": {"step": "^step ([0-9]+)", "loss": "loss ([0-9.]+)"},
            },
            "training": {"max_steps": 5},
            "schedule": {"warmup_steps": 0},
            "abort": {"grace_s": 20},
            "recover": {"enabled": False},  # the tests kill and resume by hand, but for those of the recovery
            "experiments": {"T-1": {"name": "toy"}, "T-2": {"name": "other"}},
        }
        for name, section in sections.items():
            document[name] = {**document.get(name, {}), **section}
        # JSON is YAML too, and quotes whatever a folder may be called.
        self.config_file.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")

    def popen(self, command: str, *args: str, env: dict[str, str] | None = None, **more: Any) -> subprocess.Popen:
        """Start bin/<command>.sh and return at once; stdout and stderr are pipes unless `more` says otherwise."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        return subprocess.Popen(self.argv(command, *args), env={**self.env, **(env or {})}, **options)

    def argv(self, command: str, *args: str) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        places = ["--config", str(self.config_file), "--runs", str(self.runs)]
        return [str(ROOT / "bin" / f"{command}.sh"), *args[:at], *places, *args[at:]]

    def __call__(self, command: str, *args: str, code: int | None = 0, **more: Any) -> subprocess.CompletedProcess:
        """Run bin/<command>.sh to its end.

        Args:
            command: 'run', 'resume' or 'runs'.
            args: its arguments; --config and --runs are added.
            code: the exit code that is expected; None for any.

        Returns:
            stdout and stderr as text.
        """
        process = self.popen(command, *args, **more)
        try:
            out, err = process.communicate(timeout=DEADLINE_S * 2)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"{command} {args} did not end")
        texts = [(part or b"").decode("utf-8", "replace") for part in (out, err)]
        result = subprocess.CompletedProcess(process.args, process.returncode, *texts)
        assert code is None or result.returncode == code, f"exit {result.returncode}, not {code}\n{texts[0]}{texts[1]}"
        assert_is_said(result)
        return result

    def run_dirs(self) -> list[Path]:
        """Return the run folders, oldest first."""
        found = [p.parent for p in self.runs.glob("*/run.json")]
        return sorted(found, key=lambda p: json.loads((p / "run.json").read_text())["created_at"])

    def started(self, count: int = 1) -> Path:
        """Wait until `count` runs have a trainer; return the folder of the newest."""

        def newest() -> Path | None:
            found = [run for run in self.run_dirs() if events(run, "launched")]
            return found[-1] if len(found) >= count else None

        return wait_until(newest, f"{count} runs with a trainer in {self.runs}")

    def status(self, run: Path) -> dict[str, Any]:
        return json.loads((run / "status.json").read_bytes())

    def clean_up(self) -> None:
        """KILL every process that carries this kit's mark, or is about its folder; they start one another: repeated.

        What another user's watcher has taken up carries no mark.
        """
        for _ in range(100):
            pids = {*marked_pids(f"RESUMEKIT_TEST_MARK={self.mark}"), *pids_about(self.runs)}
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def assert_is_said(result: subprocess.CompletedProcess) -> None:
    """O6: whatever ends a command of the kit ends it with a sentence, and never with a traceback."""
    assert "Traceback (most recent call last)" not in result.stderr, result.stderr
    if result.returncode in REFUSALS:
        assert (result.stderr + result.stdout).strip(), f"exit {result.returncode} without a word: {result.args}"


def said_by(words: list[str]) -> str:
    """Run a verb in this process; return what it wrote to stdout and stderr."""
    said, out = io.StringIO(), io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
        main(words)
    out.flush()
    return said.getvalue() + out.buffer.getvalue().decode()


def killed(kit: Kit, *args: str, steps: int = 20, every: int = 5, at: int = 12) -> Path:
    """Start T-1 and let it be killed at a step; return its folder, with the checkpoints up to there."""
    kit.config("--save-every", str(every), training={"max_steps": steps})
    kit("run", "T-1", *args, code=137, env={"TOY_ARGS": f"--at {at} kill"})
    return kit.run_dirs()[-1]


def sidecar_of(kit: Kit, run: Path) -> int | None:
    """Return the pid of a run's sidecar; None while there is none."""
    for pid in marked_pids(f"RESUMEKIT_TEST_MARK={kit.mark}"):
        with contextlib.suppress(OSError):  # it has just ended
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"sidecar" in argv and os.fsencode(run) in argv:
                return pid
    return None
