"""Run many short trainers without importing torch for each: a server forks them from one process that has it.

`ForkServer("cut_trainer").run(run_dir, "--max_steps", "9", CUT="KILL:micro:3")` is a process of its own with a run
folder, a journal and `output.log`, as the launcher would start it. The module needs `main(argv)` and `prepare()`.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PATHS = [TESTS, TESTS.parent / "examples" / "hrm_arc", TESTS.parent / "lib"]
LIMIT_S = 120


class ForkServer:
    """Forks trainers from a process that has imported `module`; one at a time."""

    def __init__(self, module: str) -> None:
        line = [sys.executable, __file__, module]
        self._server = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def run(self, run_dir: Path, *argv: str, **environment: str) -> int:
        """Run a trainer to its end; returns its exit code, 128 + n where signal n killed it.

        Args:
            run_dir: its run folder, made if missing; RESUMEKIT_RUN_DIR, and where `output.log` goes.
            environment: more variables.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        own = {"RESUMEKIT_RUN_DIR": str(run_dir), "RESUMEKIT_RUN_ID": run_dir.name}
        self._server.stdin.write(json.dumps({"argv": argv, "environment": own | environment}) + "\n")
        ready, _, _ = select.select([self._server.stdout], [], [], LIMIT_S)
        assert ready, f"no end after {LIMIT_S} s\n{(run_dir / 'output.log').read_text()}"
        return int(self._server.stdout.readline())

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(timeout=LIMIT_S)


def serve(module: str) -> None:
    """Fork one trainer per line of stdin, until it closes."""
    sys.path[:0] = [str(path) for path in PATHS]
    trainer = importlib.import_module(module)
    trainer.prepare()
    while line := sys.stdin.readline():
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(_become(trainer, job["argv"], job["environment"]))
        status = os.waitpid(pid, 0)[1]
        code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        print(code, flush=True)


def _become(trainer: object, argv: list[str], environment: dict[str, str]) -> int:
    os.environ.update(environment)
    output = os.open(
        Path(environment["RESUMEKIT_RUN_DIR"]) / "output.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666
    )
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    try:
        return trainer.main(argv)
    except BaseException as error:  # whatever it is, it is in the log, and the server lives on
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
