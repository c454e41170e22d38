"""The example's trainer for many launches: each is forked from one process that has imported torch already.

A launcher starts this file as a trainer's script; it hands its arguments, environment and streams to the server that
EXAMPLE_SERVER names, and ends with the trainer's exit code: to the launcher it is the trainer, without three seconds of
imports. The trainer leaves `probe.pt` in its run folder (all that makes its next step, right after the load), and
stops as if by TERM after STOP_AFTER steps.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
LIMIT_S = 120


class ExampleServer:
    """The server; `environment` is what a launch needs in order to find it."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="rk-")  # a socket's path is short
        self.address = os.path.join(self._folder, "socket")
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", self.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None and self._process.stdout.readline(), "the server did not start"

    def environment(self, stop_after: int) -> dict[str, str]:
        return {"EXAMPLE_SERVER": self.address, "STOP_AFTER": str(stop_after)}

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=LIMIT_S)
        shutil.rmtree(self._folder)


def ask(argv: list[str]) -> int:
    """Be the trainer: let the server fork one with our streams, and wait for its end."""
    job = {"argv": argv, "environment": dict(os.environ), "cwd": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(LIMIT_S)
        connection.connect(os.environ["EXAMPLE_SERVER"])
        socket.send_fds(connection, [json.dumps(job).encode() + b"\n"], [0, 1, 2])
        return int(connection.recv(16))


def serve(address: str) -> None:
    """Fork one trainer per connection, one after the other."""
    sys.path[:0] = [str(TESTS.parent / "examples" / "hrm_arc")]
    sys.path.append(str(TESTS.parent / "lib"))
    import torch._dynamo  # noqa: F401 (torch's optimizers pull it in when the first of them is made)

    import arc_describe  # noqa: F401
    import arc_training
    import train_arc_full_nova as trainer

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:  # until whoever started it is gone
            connection, _ = listener.accept()
            with connection:
                message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
                while not message.endswith(b"\n"):
                    message += connection.recv(1 << 20)
                pid = os.fork()
                if pid == 0:
                    listener.close()
                    _become(trainer, arc_training.Training, json.loads(message), streams)
                for stream in streams:
                    os.close(stream)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(OSError):  # whoever asked has been killed
                    connection.sendall(str(code if code >= 0 else 128 - code).encode())


def _become(trainer: Any, training: Any, job: dict[str, Any], streams: list[int]) -> None:
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["cwd"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    code = 1
    try:
        _probe(training)
        code = trainer.main(job["argv"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:  # it is in the log, and the server lives on
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _probe(training: Any) -> None:
    """Let a training write down what it has loaded, and stop after some steps."""
    import torch

    from resumekit.trainer import checkpoint_content

    load, step, left = training.load, training.step, [int(os.environ.get("STOP_AFTER", "0"))]

    def load_and_tell(self: Any, *args: Any, **policies: Any) -> None:
        load(self, *args, **policies)
        content = checkpoint_content.collect(
            self.progress.step, model=self.model, optimizer=self.optimizers, scheduler=self.schedule,
            scaler=self.scaler, ema=self.ema, swa=self.swa, epoch=self.epoch,
            best_val_loss=self.progress.best_val_loss, data_state=self._data_state(),
            extra={"progress": self.progress.state_dict()}, lr_scale=self.lr_scale, lr_ramp=self.lr_ramp,
        )  # fmt: skip
        torch.save(content, os.path.join(os.environ["RESUMEKIT_RUN_DIR"], "probe.pt"))

    def step_and_stop(self: Any) -> Any:
        outcome = step(self)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return outcome

    training.load, training.step = load_and_tell, step_and_stop


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        raise SystemExit(ask(sys.argv[1:]))
