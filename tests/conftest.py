"""What the tests of the commands share: a folder with a hostile name, and the commands in a process of their own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIB = ROOT / "lib"
# The fault catalogue's marks and table.
pytest_plugins = ["fault_table"]
TOY = Path(__file__).resolve().parent / "toy_trainer.py"
# The folder of this user's live markers, in a runs folder.
LIVE = f".live.{os.geteuid()}"
# Far above anything that is expected: a loaded machine must not turn a test red.
DEADLINE_S = 60.0
# The exit codes with which the kit refuses to begin.
REFUSALS = range(2, 7)

# A shell's background job has INT ignored, and every process that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if str(LIB) not in sys.path:
    sys.path.append(str(LIB))


def wait_until(ask: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Return the first true answer of `ask`; fail with `what` when there is none within `deadline_s` seconds."""
    end = time.monotonic() + deadline_s
    while not (answer := ask()):
        if time.monotonic() > end:
            pytest.fail(f"after {deadline_s:.0f} s still not: {what}")
        time.sleep(0.02)
    return answer


class Kit:
    """The commands in bin/, in a folder of the test's own: `config.yaml`, `runs/`.

    `config(...)` writes a config whose trainer is tests/toy_trainer.py. Everything that is started carries a mark in
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
        """KILL every process that carries this kit's mark; repeated, because they start one another."""
        for _ in range(100):
            pids = list(marked_pids(f"RESUMEKIT_TEST_MARK={self.mark}"))
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def askers(kit: Kit, run: Path, number: int) -> list[subprocess.Popen]:
    """Start so many processes that ask at once, each as a launcher of its own, whether a run is taken up.

    Each says the id of the run that it was given, or nothing, in one line, and lives until its standard input ends.
    """
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path;"
        "from resumekit.recovery import recovering;"
        "made = recovering.recover(Path(sys.argv[2]), os.getpid()).ready;"
        "print(made.run_id if made else ''); sys.stdout.flush(); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(ROOT / "lib"), str(run)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    return [subprocess.Popen(command, env=kit.env, **pipes) for _ in range(number)]


def answers_of(asked: list[subprocess.Popen]) -> list[str]:
    """Return the ids of the runs that were made, of all that `askers` started."""
    return [name for one in asked if (name := one.stdout.readline().strip())]


def assert_is_said(result: subprocess.CompletedProcess) -> None:
    """O6: whatever ends a command of the kit ends it with a sentence, and never with a traceback."""
    assert "Traceback (most recent call last)" not in result.stderr, result.stderr
    if result.returncode in REFUSALS:
        assert (result.stderr + result.stdout).strip(), f"exit {result.returncode} without a word: {result.args}"


def marked_pids(entry: str) -> Iterator[int]:
    """Yield the pids of live processes with `entry` in their environment."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if entry.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") and int(pid) != os.getpid():
                yield int(pid)


def events(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Return the events in a run's journal, all or those of one kind."""
    with contextlib.suppress(FileNotFoundError):
        lines = (run / "journal.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [event for event in found if kind in (None, event["event"])]
    return []


def age(run: Path, seconds: float = 3600.0) -> None:
    """Let all files of a run be of an hour ago: nothing of it changes any more."""
    then = time.time() - seconds
    for path in [run, *run.rglob("*")]:
        os.utime(path, (then, then), follow_symlinks=False)


@pytest.fixture
def in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's side cannot tell the test from a process of its own: no launcher, no save before, one thread."""
    import torch  # late: most tests do without, and it costs seconds

    from resumekit.trainer import saving

    torch.set_num_threads(1)
    for name, value in (("_saved", {}), ("_swept", set()), ("_io_errors", 0)):
        monkeypatch.setattr(saving, name, value)
    for name in (name for name in list(os.environ) if name.startswith("RESUMEKIT_") or name == "WORLD_SIZE"):
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kit keeps in its user's state folder does not reach that of whoever runs the tests."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))


@pytest.fixture
def weird_tmp_path(tmp_path: Path) -> Path:
    """A folder whose name has spaces, quotes, a dollar and a newline in it."""
    folder = tmp_path / 'it\'s a "weird"\n$(touch pwned) folder'
    folder.mkdir()
    return folder


@pytest.fixture(scope="session", autouse=True)
def state_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the kit keeps of its user lies in a folder of the tests, not in the home of the user who runs them."""
    folder = tmp_path_factory.mktemp("state")
    os.environ["XDG_STATE_HOME"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def state_of_the_test(state_of_the_session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins as a user who has never started a run; what it starts and this process share the folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(state_of_the_session / secrets.token_hex(8)))


def reseal(run: Path) -> None:
    """Seal a run anew after a test has edited its records by hand, in the state folder that this process has."""
    from resumekit.basics.paths import RunPaths
    from resumekit.run_folder import seals

    record = json.loads((run / "run.json").read_text())
    record["resolved_sha256"] = hashlib.sha256((run / "resolved_config.json").read_bytes()).hexdigest()
    (run / "run.json").write_text(json.dumps(record))
    contents = {path.name: path.read_bytes() for path in seals.records(RunPaths(run)) if path.exists()}
    command = json.loads(contents["resolved_config.json"]).get("notify", {}).get("command")
    seals.keep(RunPaths(run), {"token": None, "root": None, **record}, contents, command)


@pytest.fixture
def kit(weird_tmp_path: Path) -> Iterator[Kit]:
    """The commands, with config and runs in a folder with a hostile name."""
    kit = Kit(weird_tmp_path)
    yield kit
    kit.clean_up()


@pytest.fixture
def valid_records(kit: Kit) -> Iterator[None]:
    """When the test is over, every journal line and status.json in its runs folder is as the schemas say."""
    yield
    for run in kit.run_dirs():
        for event in events(run)[:2000]:
            assert_valid("event", event)
        if (run / "status.json").exists():
            assert_valid("status", kit.status(run))


def assert_valid(schema: str, value: Any) -> None:
    """Fail if `value` is not what schemas/<schema>.schema.json says."""
    import jsonschema  # costs 75 ms, and most tests do without

    if schema not in _validators:
        document = json.loads((ROOT / "schemas" / f"{schema}.schema.json").read_text(encoding="utf-8"))
        _validators[schema] = jsonschema.Draft202012Validator(document)
    faults = [f"{fault.json_path}: {fault.message}" for fault in _validators[schema].iter_errors(value)]
    assert not faults, f"{faults} in {json.dumps(value)[:2000]}"


_validators: dict[str, Any] = {}
