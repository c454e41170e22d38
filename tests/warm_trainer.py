"""A trainer under the real launcher that starts in 30 ms: torch is imported once, by a server that forks it.

The launcher starts this file as the trainer's command (`client`); it hands its descriptors, environment, folder and
arguments to the server, passes signals on, and ends as the forked trainer does. When the client is killed the trainer
is. The module named needs `main(argv)` and `prepare()`.
Try it: `python -m pytest tests/test_sabotage.py`
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGTERM, signal.SIGINT)
MAX_JOB_BYTES = 1 << 20


def client(address: str, module: str, argv: list[str]) -> int:
    """Have the server fork a trainer and be it, as far as anybody can see; returns its exit code."""
    import json

    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_JOB_BYTES)
    channel.connect(address)
    for number in PASSED_ON:
        signal.signal(number, lambda got, _frame: channel.send(bytes([got])))
    job = {"module": module, "argv": argv, "cwd": os.getcwd(), "environment": dict(os.environ)}
    socket.send_fds(channel, [json.dumps(job).encode()], [0, 1, 2])
    code = channel.recv(2)
    if not code:
        return 1
    if code[1]:  # killed by a signal: end alike
        signal.signal(code[0] - 128, signal.SIG_DFL)
        os.kill(os.getpid(), code[0] - 128)
    return code[0]


def serve(address: str, modules: list[str]) -> None:
    """Fork trainers until stdin closes; one thread, so that a fork copies no lock that somebody holds."""
    import importlib
    import select

    trainers = {name: importlib.import_module(name) for name in modules}
    for one in trainers.values():
        one.prepare()
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door.bind(address)
    door.listen(64)
    poller = select.poll()
    for watched in (0, door.fileno()):
        poller.register(watched, select.POLLIN)
    running: dict[int, tuple[socket.socket, int, int]] = {}  # descriptor (channel or pidfd) -> channel, pidfd, pid
    print("ready", flush=True)
    while True:
        for ready, _ in poller.poll():
            if ready == 0:
                for _, _, pid in running.values():
                    os.kill(pid, signal.SIGKILL)
                return
            if ready == door.fileno():
                if (begun := _fork(door, trainers)) is not None:
                    for watched in (begun[0].fileno(), begun[1]):
                        running[watched] = begun
                        poller.register(watched, select.POLLIN)
            elif ready in running:
                channel, pidfd, pid = running[ready]
                if ready != pidfd:
                    message = channel.recv(1)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, message[0] if message else signal.SIGKILL)
                    if not message:
                        poller.unregister(ready)
                        del running[ready]
                    continue
                status = os.waitpid(pid, 0)[1]
                code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                with contextlib.suppress(OSError):
                    channel.send(bytes([code, os.WIFSIGNALED(status)]))
                for watched in (channel.fileno(), pidfd):
                    if running.pop(watched, None):
                        poller.unregister(watched)
                channel.close()
                os.close(pidfd)


def _fork(door: socket.socket, trainers: dict[str, object]) -> tuple[socket.socket, int, int] | None:
    """Fork the trainer that a client asks for; returns (channel, pidfd, pid)."""
    import json

    channel, _ = door.accept()
    message, descriptors, _, _ = socket.recv_fds(channel, MAX_JOB_BYTES, 3)
    if not message:
        return None
    pid = os.fork()
    if pid == 0:
        _become(trainers, json.loads(message), descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    return channel, os.pidfd_open(pid), pid


def _become(trainers: dict[str, object], job: dict, descriptors: list[int]) -> None:
    code = 1
    try:
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
        os.closerange(3, 256)
        os.environ.clear()
        os.environ.update(job["environment"])
        os.chdir(job["cwd"])
        code = trainers[job["module"]].main(job["argv"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:  # whatever it is, it is in the log, and the server lives on
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


class Server:
    """The forking server, for a test or a campaign; `command` is what stands in trainer.command."""

    def __init__(self, folder: str, *modules: str) -> None:
        import subprocess  # late: the client needs to be quick

        tests = os.path.dirname(os.path.abspath(__file__))
        root = os.path.dirname(tests)
        self.address = os.path.join(folder, "warm")
        paths = [tests, os.path.join(root, "examples", "hrm_arc"), os.path.join(root, "lib")]
        code = (
            f"import sys; sys.path[:0] = {paths!r}; import warm_trainer; warm_trainer.serve(sys.argv[1], sys.argv[2:])"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, self.address, *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout.readline() == b"ready\n"

    def command(self, module: str, *argv: str) -> list[str]:
        """Return the command line of a trainer; braces in it are the launcher's places."""
        own = [os.path.abspath(__file__), self.address, module]
        return ["{python}", "-I", "-S", *(word.replace("{", "{{").replace("}", "}}") for word in own), *argv]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)


if __name__ == "__main__":
    raise SystemExit(client(sys.argv[1], sys.argv[2], sys.argv[3:]))
