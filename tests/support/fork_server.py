"""Trainers that start in 30 ms: a server imports torch and their modules once, and forks each of them.

There is one server for all workers of a test run: importing torch, and what its first optimizer pulls in, costs three
seconds of a core. The first `ForkServer` starts it; it ends when the last process that has made one has ended.

A trainer's module needs `main(argv)`; whatever else the server shall have imported is named beside it. Two ways to a
trainer: `ForkServer.command` is a command line for the launcher, of a client that hands its descriptors, environment,
folder and arguments to the server, passes signals on, and ends as the trainer does (when the client is killed the
trainer is); `ForkServer.start` and `run` are for a test that needs no launcher. `script` is the command line of a
trainer that is a script of the test's own, not a module.
Try it: `python -m pytest tests/test_sabotage.py tests/test_torture.py`
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGTERM, signal.SIGINT)
MAX_JOB_BYTES = 1 << 20
LIMIT_S = 120.0
TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(TESTS)

_holds: list[socket.socket] = []  # what keeps the server alive, until this process ends


def ask(
    address: str, module: str, argv: list[str], environment: dict[str, str], cwd: str, streams: list[int]
) -> socket.socket:
    """Have the server fork a trainer.

    Returns:
        The channel to it: a byte sent is the number of a signal for the trainer, and its closing is KILL; what is
        received is the trainer's pid, then the two bytes of its end (`ended`).
    """
    import json

    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_JOB_BYTES)
    channel.connect(f"\0{address}")
    job = {"module": module, "argv": argv, "cwd": cwd, "environment": environment}
    socket.send_fds(channel, [json.dumps(job).encode()], streams)
    return channel


def ended(channel: socket.socket) -> int:
    """Wait for a trainer's end; return its exit code, or the negative number of the signal that killed it."""
    message = channel.recv(2)
    if not message:
        return 1
    return -message[0] if message[1] else message[0]


def client(address: str, module: str, argv: list[str]) -> int:
    """Be a trainer, as far as can be seen from outside; return its exit code."""
    channel = ask(address, module, argv, dict(os.environ), os.getcwd(), [0, 1, 2])
    for number in PASSED_ON:
        signal.signal(number, lambda got, _frame: channel.send(bytes([got])))
    channel.recv(4)  # its pid
    code = ended(channel)
    if code < 0:  # killed by a signal: end alike
        with contextlib.suppress(OSError):  # KILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


class Trainer:
    """A trainer that a test has started; closing its channel kills it."""

    def __init__(self, channel: socket.socket) -> None:
        channel.settimeout(LIMIT_S)
        self._channel, self.pid = channel, int.from_bytes(channel.recv(4), "little")

    def wait(self) -> int:
        """Return its exit code, negative for a signal; TimeoutError after LIMIT_S seconds."""
        with self._channel:
            return ended(self._channel)


class ForkServer:
    """The server, with these modules imported; the first of them is the one that `start` and `run` start."""

    def __init__(self, *modules: str) -> None:
        # A name and no file: whoever is first has it, and nothing is left behind. Each test run and copy has another.
        self.address = f"rk-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}-{os.stat(ROOT).st_ino}"
        self._module = modules[0]
        _holds.append(_hold(self.address, modules))

    def command(self, module: str, *argv: str) -> list[str]:
        """Return the command line of a trainer for `trainer.command`; braces in `argv` are the launcher's places."""
        own = [os.path.abspath(__file__), self.address, module]
        return ["{python}", "-I", "-S", *(word.replace("{", "{{").replace("}", "}}") for word in own), *argv]

    def script(self, path: os.PathLike, *argv: str) -> list[str]:
        """Return the command line of a trainer that is a script, for a server that has `support.forked_script`."""
        return self.command("support.forked_script", os.fspath(path), *argv)

    def start(self, run_dir: os.PathLike, *argv: str, **environment: str) -> Trainer:
        """Start a trainer in its run folder, which is made if missing; it prints into `output.log`.

        Args:
            environment: variables beside this process's own and those that name the run.
        """
        folder = os.fspath(run_dir)
        os.makedirs(folder, exist_ok=True)
        own = {"RESUMEKIT_RUN_DIR": folder, "RESUMEKIT_RUN_ID": os.path.basename(folder)}
        with open(os.path.join(folder, "output.log"), "wb") as output, open(os.devnull) as nothing:
            streams = [nothing.fileno(), output.fileno(), output.fileno()]
            return Trainer(
                ask(self.address, self._module, list(argv), {**os.environ, **own, **environment}, folder, streams)
            )

    def run(self, run_dir: os.PathLike, *argv: str, **environment: str) -> int:
        """Run a trainer to its end, as `start` does; return its exit code, 128 + n where signal n killed it."""
        code = self.start(run_dir, *argv, **environment).wait()
        return code if code >= 0 else 128 - code


def _hold(address: str, modules: tuple[str, ...]) -> socket.socket:
    """Have the server import modules, and start it if it is not there; it lives for as long as this is open."""
    import json
    import subprocess  # late: the client has to be quick
    import time

    deadline = time.monotonic() + LIMIT_S
    process = None
    while True:
        hold = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.suppress(ConnectionError):  # not there yet, or its last holder has just gone
            hold.connect(f"\0{address}")
            hold.send(json.dumps({"modules": modules}).encode())
            if answer := hold.recv(MAX_JOB_BYTES):
                assert answer == b"ready", answer.decode()
                return hold
        hold.close()
        assert time.monotonic() < deadline, "the server did not start"
        if process is None or process.poll() is not None:
            kept = {name: value for name, value in os.environ.items() if not name.startswith("RESUMEKIT_")}
            line = [sys.executable, os.path.abspath(__file__), "--serve", address]
            process = subprocess.Popen(line, env=kept, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(0.02)


def serve(address: str) -> None:
    """Fork trainers until nothing holds the server any more; one thread, so that a fork copies no lock that is held."""
    import select

    if (listener := _listen(address)) is None:
        return
    poller = select.poll()
    poller.register(listener.fileno(), select.POLLIN)
    holds: dict[int, socket.socket] = {}
    running: dict[int, tuple[socket.socket, int, int]] = {}  # descriptor (channel or pidfd) -> channel, pidfd, pid
    while True:
        for ready, _ in poller.poll():
            if ready == listener.fileno():
                begun = _accept(listener)
                if isinstance(begun, socket.socket):
                    holds[begun.fileno()] = begun
                    poller.register(begun.fileno(), select.POLLIN)
                elif begun is not None:
                    for watched in (begun[0].fileno(), begun[1]):
                        running[watched] = begun
                        poller.register(watched, select.POLLIN)
            elif ready in holds:
                poller.unregister(ready)
                holds.pop(ready).close()
                if not holds:
                    for _, _, pid in running.values():
                        os.kill(pid, signal.SIGKILL)
                    return
            elif ready in running:
                channel, pidfd, pid = running[ready]
                has_ended = ready == pidfd
                if not has_ended and _pass_on(channel, pid):
                    continue
                for watched in (channel.fileno(), pidfd) if has_ended else (ready,):
                    if running.pop(watched, None):
                        poller.unregister(watched)
                if has_ended:
                    _report(channel, pid)
                    os.close(pidfd)


def _listen(address: str) -> socket.socket | None:
    """Take the name, then import torch, while who has asked waits; None where another server has the name."""
    import importlib

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(f"\0{address}")
    except OSError:  # another worker's server has come first
        return None
    listener.listen(64)
    sys.path[:1] = [ROOT, TESTS, os.path.join(ROOT, "examples", "hrm_arc"), os.path.join(ROOT, "lib")]
    importlib.import_module("torch._dynamo")  # which the first optimizer would pull in
    return listener


def _pass_on(channel: socket.socket, pid: int) -> bool:
    """Signal a trainer as its client says; return False where the client is gone: the trainer is killed."""
    message = channel.recv(1)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, message[0] if message else signal.SIGKILL)
    return bool(message)


def _report(channel: socket.socket, pid: int) -> None:
    """Tell the client how its trainer has ended, and close the channel."""
    status = os.waitpid(pid, 0)[1]
    by_signal = os.WIFSIGNALED(status)
    with channel, contextlib.suppress(OSError):
        channel.send(bytes([os.WTERMSIG(status) if by_signal else os.WEXITSTATUS(status), by_signal]))


def _accept(listener: socket.socket) -> socket.socket | tuple[socket.socket, int, int] | None:
    """Return the channel of one who holds the server, or (channel, pidfd, pid) of the trainer that is asked for."""
    import json

    channel, _ = listener.accept()
    uid = int.from_bytes(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[4:8], sys.byteorder)
    message, descriptors, _, _ = socket.recv_fds(channel, MAX_JOB_BYTES, 3)
    if not message or uid != os.getuid():
        return None
    job = json.loads(message)
    if "modules" in job:
        return _import(channel, job["modules"])
    pid = os.fork()
    if pid == 0:
        _become(job, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(OSError):  # the client has been killed already
        channel.send(pid.to_bytes(4, "little"))
    return channel, os.pidfd_open(pid), pid


def _import(channel: socket.socket, modules: list[str]) -> socket.socket:
    import importlib
    import traceback

    answer = b"ready"
    try:
        for name in modules:
            importlib.import_module(name)
    except Exception:
        answer = traceback.format_exc().encode()
    with contextlib.suppress(OSError):
        channel.send(answer)
    return channel


def _become(job: dict, descriptors: list[int]) -> None:
    code = 1
    try:
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
        os.closerange(3, 256)
        os.environ.clear()
        os.environ.update(job["environment"])
        os.chdir(job["cwd"])
        code = sys.modules[job["module"]].main(job["argv"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # whatever it is, it is in the log, and the server lives on
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    else:
        raise SystemExit(client(sys.argv[1], sys.argv[2], sys.argv[3:]))
