"""What the launcher told this trainer, the way into the journal, and the end of a trainer that comes back too late."""

from __future__ import annotations

import contextlib
import io
import math
import os
import select
import sys
from functools import lru_cache
from pathlib import Path
from typing import TextIO

from ..base import claims, journal, values
from ..base.errors import REFUSED
from ..base.files import UnreadableFile, read_json
from ..base.imports import Any
from ..base.paths import RunPaths
from ..base.processes import TOKEN_VARIABLE
from ..base.terminal import plain, say
from ..base.terms import FAILED, WARNED
from ..base.values import string
from ..checkpoint.form import Form
from ..checkpoint.form import of as form_of
from ..run import run_names
from ..run.run_folder import open_run
from . import learning_rate, resume_bundle
from .ranks import rank


def run_dir() -> Path | None:
    """Return the run folder, None without the kit.

    A wrapper may drop the launcher's variables (`env -i`, sudo): then it is the folder whose output.log this process
    writes to.
    """
    name = os.environ.get("RESUMEKIT_RUN_DIR")
    return Path(name) if name else _of_own_output()


def run_id() -> str | None:
    """Return the run's id, None without the kit."""
    folder = run_dir()
    return os.environ.get("RESUMEKIT_RUN_ID") or (folder.name if folder else None)


def lineage() -> dict[str, Any]:
    """Return run_id, parent_run_id, parent_step and config_hash of this run; None for what is unknown."""
    folder = run_dir()
    record = _record(str(folder)) if folder else {}
    return {
        "run_id": run_id(),
        "parent_run_id": values.string(record.get("parent_run_id")),
        "parent_step": values.count(record.get("parent_step")),
        "config_hash": values.config_hash(os.environ.get("RESUMEKIT_CONFIG_HASH") or record.get("config_hash")),
    }


def make_run_id(exp_name: str, parent_run_id: str | None = None, resume_step: int | None = None) -> str:
    """Return the id of this run: the launcher's, whatever the arguments; without the kit as `run_names.make_run_id`."""
    return run_id() or run_names.make_run_id(exp_name, parent_run_id, resume_step)


def journal_event(event: str, /, **fields: Any) -> None:
    """Append an event to the run's journal; nothing without the kit.

    Of several ranks the first one speaks for the run. Of any other only what went wrong in it is journaled: a loss that
    is not finite, an `oom`, an `eval_crashed`, a check that did not pass. A journal that can't be written must not stop
    a training: OSError is swallowed here.

    Args:
        event: the kind, such as 'step', 'eval' or 'phase'.
        fields: plain values; numbers keep full precision. The `lr` of a step is journalled as the optimizer used it.
    """
    folder = run_dir()
    if folder is None:
        return
    if own := rank():
        event, fields = _of_other_rank(own, event, fields)
        if not event:
            return
    if event in ("step", "heartbeat"):
        fields = learning_rate.with_used_lr(fields)
    own_id, path = run_id(), RunPaths(folder).journal
    try:
        journal.append(path, event, own_id, **fields)
        # Here the trainer has gone on, and what a recovery told it to leave out is behind it, asked for or not.
        for sentence in resume_bundle.skips_not_asked(fields.get("step")) if event in ("step", "saving") else ():
            journal.append(path, "warning", own_id, kind=resume_bundle.NOT_LEFT_OUT, message=sentence)
    except OSError:
        return


def _of_other_rank(number: int, event: str, fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return what is journaled of a rank that is not the first, with its number; '' for nothing."""
    if event == "step" and isinstance(loss := fields.get("loss"), float) and not math.isfinite(loss):
        # The first rank's next loss takes it back where it is finite, as it does its own.
        return "nonfinite", {"step": fields.get("step"), "what": f"loss of rank {number}", "rank": number}
    if event == "nonfinite":
        return event, {**fields, "what": f"{fields.get('what')} of rank {number}"}
    if event in ("oom", "eval_crashed"):
        return event, {**fields, "rank": number}
    if event == "check" and fields.get("verdict") in (WARNED, FAILED):
        return event, {**fields, "why": "; ".join(filter(None, [f"rank {number}", fields.get("why")]))}
    return "", {}


def checkpoint_patterns() -> tuple[str, str]:
    """Return `checkpoint.pattern` and `checkpoint.best_pattern` of this run's config, without one their defaults.

    The launcher looks for checkpoints by these names: saved under others they would not be found again.
    """
    form = checkpoint_form()
    return form.step_pattern, form.best_pattern


def checkpoint_form() -> Form:
    """Return how this run's checkpoints are named and what each consists of; without the kit the schema's defaults."""
    folder = run_dir()
    return _form(str(folder)) if folder else form_of(None)


def setting(section: str, key: str) -> Any:
    """Return a value of this run's config; None without the kit, or where the config does not say it."""
    folder = run_dir()
    return open_run(folder).setting(section, key) if folder else None


@lru_cache(maxsize=4)
def _form(folder: str) -> Form:
    return open_run(Path(folder)).form


@lru_cache(maxsize=4)
def _record(folder: str) -> dict[str, Any]:
    """Return run.json; {} where it cannot be read."""
    try:
        return values.mapping(read_json(RunPaths(Path(folder)).run_json, 1 << 20))
    except UnreadableFile:
        return {}


def _of_own_output() -> Path | None:
    """Return the folder of the run whose output.log is this process's stdout or stderr."""
    for number in (1, 2):
        try:
            log = Path(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
        folders = log.parents[1:4] if log.name == "output.log" else ()
        for folder in folders:  # paths.logs may be 'a/b'
            if RunPaths(folder).run_json.is_file():
                return folder
    return None


# The end of a trainer whose run another one goes on from: it comes back, and must not save or beat beside that one.
#
# Only a run that was taken for dead is continued while its trainer lives: its host was cut off, and a person has
# said `--take-over`. Reads `claims/continued.json` in the run's own folder; one stat where there is none.


def end_if_taken_over() -> None:
    """End this process with one sentence where another run continues this one.

    A trainer that a person started by hand (command.sh) carries no token, and goes on: the kit does not supervise it.
    """
    folder = run_dir()
    if folder is None or TOKEN_VARIABLE not in os.environ:
        return
    run = RunPaths(folder)
    if not os.path.lexists(run.continuation):
        return
    child = string((claims.continuation_of(run) or {}).get("run_id"))
    if child is None:
        return
    sentence = f"'{run.run_dir.name}' was taken over by '{child[:200]}': this trainer ends, and saves nothing more"
    run_id = os.environ.get("RESUMEKIT_RUN_ID")
    with contextlib.suppress(OSError):
        journal.append(run.journal, "warning", run_id, kind="fenced", message=plain(sentence))
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        say("resumekit", sentence)
    os._exit(REFUSED)  # an exception could be caught, and the training go on


# Keep a failing stdout or stderr from hurting the training: log disk full, terminal gone, reader dead.
#
# Replaces sys.stdout and sys.stderr by streams that drop what can't be written, also at the interpreter's exit,
# where Python would otherwise turn the trainer's exit code into 120. Installed only under the kit.

# A reader that stopped reading: after this long a full pipe counts as broken, and the text is dropped.
_WAIT_S = 1.0


class GuardedRaw(io.RawIOBase):
    """A raw stream on a descriptor whose write never raises; `dropped_bytes` counts what was lost."""

    def __init__(self, descriptor: int, name: Any) -> None:
        self._descriptor = descriptor
        self.name = name
        self.mode = "wb"
        self.dropped_bytes = 0

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        try:
            return os.isatty(self._descriptor)
        except OSError:
            return False

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                if not select.select([], [self._descriptor], [], _WAIT_S)[1]:
                    self.dropped_bytes += len(view)
                    break
            except OSError:
                self.dropped_bytes += len(view)
                break
        return size

    def close(self) -> None:
        """Leave the descriptor open: 1 and 2 belong to the process."""


def guard_output() -> None:
    """Guard sys.stdout and sys.stderr under the kit; without it, or a second time, this does nothing."""
    if run_dir() is None:
        return
    sys.stdout = _guarded(sys.stdout)
    sys.stderr = _guarded(sys.stderr)


def _guarded(stream: TextIO) -> TextIO:
    if type(stream) is not io.TextIOWrapper:
        return stream  # a notebook's, a test's, or ours: not a plain descriptor, leave it
    if isinstance(getattr(stream.buffer, "raw", stream.buffer), GuardedRaw):
        return stream
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return stream
    with contextlib.suppress(OSError):  # the disk may be full already: that is what this is for
        stream.flush()
    raw = GuardedRaw(descriptor, stream.name)
    unbuffered = not isinstance(stream.buffer, io.BufferedWriter)
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        newline="\n",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
