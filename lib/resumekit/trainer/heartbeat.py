"""The trainer's heartbeat: what the run is doing now, every minute and whenever it is asked for.

Under the kit each beat is a `heartbeat` event in the journal and the sidecar writes status.json; started by hand, the
beat writes the status file itself, atomically. A beat never hurts training, whatever goes wrong in it.
Try it: `write_status = heartbeat_writer("status.json", lambda: make_status_payload(global_step=step), 60)`
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from ..base.files import to_json, utc_now, write_atomic
from ..base.imports import Any
from . import learning_rate
from .ranks import rank
from .trainer_env import end_if_taken_over, guard_output, journal_event, lineage, run_dir

# Protocol §3.
FIELDS = (
    "run_id", "global_step", "steps_per_sec", "lr", "last_fast_eval_step", "last_full_eval_step", "best_eval_acc",
    "eta_s", "eta_at", "eta_fast_eval_s", "eta_full_eval_s",
)  # fmt: skip
_CLOSE_WAIT_S = 2.0
_BUSY_WAIT_S = 1.0


class StatusWriter:
    """Beats every `every_s` seconds in a thread; call it to beat now, `close()` to stop.

    Args:
        path: the status file, written only without the kit.
        payload_fn: returns the fields, plain values; called in the thread.
        every_s: seconds between two beats.
    """

    def __init__(self, path: Path, payload_fn: Callable[[], dict[str, Any]], every_s: float) -> None:
        self._path, self._payload_fn, self._every_s = path, payload_fn, every_s
        self._beating = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resumekit-heartbeat", daemon=True)
        self._thread.start()

    def __call__(self) -> bool:
        """Beat now; False if it could not be written."""
        if not self._beating.acquire(timeout=_BUSY_WAIT_S):
            return False  # a payload_fn that hangs in the thread must not hang the training too
        try:
            self._beat()
        except Exception:  # a bug in payload_fn, a full disk: the next beat tries again, training goes on
            return False
        finally:
            self._beating.release()
        return True

    def close(self) -> None:
        """Stop beating, after a last beat. Waits for two seconds at most."""
        if not self._closed.is_set():
            self._closed.set()
            self._thread.join(_CLOSE_WAIT_S)

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            self()
        self()

    def _beat(self) -> None:
        if rank() != 0:  # asked at each beat: the process group may come later than the writer
            return
        end_if_taken_over()
        payload = dict(self._payload_fn())
        if run_dir() is not None:
            journal_event("heartbeat", **{name: value for name, value in payload.items() if name != "run_id"})
            return
        payload.setdefault("heartbeat_at", utc_now())
        write_atomic(self._path, to_json(_without_nan(learning_rate.with_used_lr(payload))))


def heartbeat_writer(
    status_json_path: str | Path, payload_fn: Callable[[], dict[str, Any]], every_s: float = 60
) -> StatusWriter:
    """Start the heartbeat; returns `write_status`, a callable that beats now, with `.close()`.

    Of several ranks the first one beats; in any other a beat does nothing.

    Args:
        status_json_path: the status file; under the kit the sidecar writes it, and the beat goes into the journal.
        payload_fn: returns the fields, such as `make_status_payload(...)`.
        every_s: seconds between two beats.

    Source: protocol §3, §13.
    """
    guard_output()
    writer = StatusWriter(Path(status_json_path), payload_fn, every_s)
    writer()
    return writer


def make_status_payload(**fields: Any) -> dict[str, Any]:
    """Return the status fields of protocol §3, unknown ones None, and whatever else is given.

    Args:
        fields: by name; run_id is taken from the environment where it is not given.
    """
    payload = dict.fromkeys(FIELDS)
    payload["run_id"] = lineage()["run_id"]
    payload.update(fields)
    return payload


def _without_nan(payload: dict[str, Any]) -> dict[str, Any]:
    """Strict JSON has no NaN; a loss that is one is told as text."""
    infinite = (float("inf"), float("-inf"))
    return {
        name: str(value) if isinstance(value, float) and (value != value or value in infinite) else value
        for name, value in payload.items()
    }
