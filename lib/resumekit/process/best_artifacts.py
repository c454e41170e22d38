"""A snapshot of every new best: `artifacts/best@<N>/` with its weights alone, config, status, lineage and log.

Looks at the best checkpoint's file and manifest, whatever wrote them. The weights are extracted by a process of
its own (weights_extract.py) that nothing waits for; what goes wrong is a `warning` in the journal and nothing more.
Only the newest best is made up for by a sidecar that comes late. Try it: `ls runs/<run_id>/artifacts`
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from ..base import journal
from ..base.file_identity import FileIdentity, identity_at
from ..base.files import UnreadableFile, read_bounded, to_json, utc_now, write_atomic
from ..base.imports import Any, NamedTuple
from ..base.paths import manifest_path
from ..base.values import count, mapping, text
from ..checkpoint import layout
from ..run.run_folder import MAX_CONFIG_BYTES, Run
from ..run.run_table import RunTable
from . import artifact_folder

# Without a manifest nothing says that a file is whole: one that has not changed for this long is at rest (attest.py).
REST_S = 5.0
# Between a new best file and its manifest lie microseconds; a pair that stays for this long belongs together.
SETTLED_S = 0.5
LIMIT_S = 600.0
# The training's own saves come first: a snapshot is made only where this many checkpoints still fit.
FREE_CHECKPOINTS = 3
POLL_S = 0.05

# What tells one best from the next: its file, and its manifest, None where there is none.
_Mark = tuple[FileIdentity, FileIdentity | None]


class _Source(NamedTuple):
    """What is known of a best before its weights are extracted; `sha256` is None where no manifest says it."""

    step: int
    weights: str
    score: float | None
    sha256: str | None
    size: int
    mtime_ns: int


class _Job(NamedTuple):
    """A snapshot that is being made."""

    mark: _Mark
    source: _Source
    temp: Path
    process: Any
    since: float


class _Place(NamedTuple):
    """Where in train.log a best is: behind `offset`. Its line is looked for from `sought_from` on; None: found."""

    step: int
    offset: int
    sought_from: int | None = None


class BestArtifacts:
    """Makes the snapshots of one run; its owner holds the run's status lock and calls `look` every second or so.

    Args:
        run: the run.
        observe: returns its status as it is now.
    """

    def __init__(self, run: Run, observe: Callable[[], dict[str, Any]]) -> None:
        self._run, self._observe = run, observe
        self._best = run.paths.checkpoints / run.form.best_pattern
        self._seen: tuple[_Mark | None, float] = (None, 0.0)
        self._done: _Mark | None = None
        self._job: _Job | None = None
        self._growing: dict[Path, _Place] = {}  # the snapshots whose log is not whole
        self._has_looked = False

    def look(self) -> None:
        """Begin with a new best that is at rest, go on with the one that is under way; returns at once."""
        self._look_back()
        mark, now = self._mark(), time.monotonic()
        if mark != self._seen[0]:
            self._seen = (mark, now)
        if self._job:
            self._go_on(self._job)
        elif mark is not None and mark != self._done and now - self._seen[1] >= (SETTLED_S if mark[-1] else REST_S):
            self._begin(mark)
        self._write_logs()

    def finish(self, limit_s: float = LIMIT_S) -> None:
        """The trainer is gone and its log is whole: make the last best's snapshot, and wait for it."""
        self._look_back()
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            if self._job:
                self._go_on(self._job)
            elif (mark := self._mark()) is not None and mark != self._done:
                self._begin(mark)
            else:
                break
            if self._job:
                _leave_terminal()
                time.sleep(POLL_S)
        if self._job:
            self._fail(self._job.mark, f"it took longer than {limit_s:.0f} s")
        self._write_logs()

    def _look_back(self) -> None:
        """Once: sweep what a predecessor left half made, and go on with the logs of what it has made."""
        if not self._has_looked:
            self._has_looked = True
            folder = self._run.paths.artifacts
            artifact_folder.sweep(folder)
            for made in artifact_folder.made_in(folder, self._run.run_id):
                if (offset := count(made.lineage.get("log_offset"))) is not None:
                    self._growing[made.path] = _Place(made.step, offset)

    def _mark(self) -> _Mark | None:
        """Return what tells one best from the next: its file and its manifest, without opening either."""
        try:
            found = layout.identity(self._best)
        except OSError:
            return None
        beside = identity_at(manifest_path(self._best))
        return found.lasting, beside.lasting if beside else None

    def _begin(self, mark: _Mark) -> None:
        self._done = mark
        temp = None
        try:
            # A link out of its folder may lead to what its owner alone may read.
            layout.refuse_odd_files(self._best, follow_links=self._run.form.follow_links)
            descriptor = layout.open_one(self._best)  # held: no pruning takes these bytes away any more
            try:
                source = self._source(descriptor)
                if self._is_made(source):
                    return
                self._refuse_full_disk(source.size)
                temp = artifact_folder.new(self._run.paths.artifacts, source.step)
                self._fill(temp)
                from . import extraction  # late: most runs are over, or have no best, before it is needed

                process = extraction.start(descriptor, temp, source.weights, source.sha256)
                self._job = _Job(mark, source, temp, process, time.monotonic())
            finally:
                os.close(descriptor)
        except Exception as error:  # whatever it is: log and status, which this process keeps too, go on
            self._fail(mark, str(error), temp)

    def _source(self, descriptor: int) -> _Source:
        """Say which step's best it is, by its manifest, else by what is inside."""
        found, shown = layout.identity(descriptor), self._observe()
        if os.path.lexists(manifest_path(self._best)):
            from ..checkpoint import manifest

            known = manifest.read(self._best)
            if known.size != found.size:
                raise UnreadableFile(f"{found.size:,} of {known.size:,} bytes")
            weights, score = known.best_weights or "raw", known.best_score
            return _Source(
                step=known.step, weights=weights, score=score, sha256=known.sha256, size=found.size,
                mtime_ns=found.mtime_ns,
            )  # fmt: skip
        from ..checkpoint import archive

        step = archive.summarize(descriptor).step
        if step is None:
            raise UnreadableFile("it does not say its step (it has no 'global_step')")
        score = shown["best_eval_acc"] if shown["best_step"] == step else None
        return _Source(step=step, weights="raw", score=score, sha256=None, size=found.size, mtime_ns=found.mtime_ns)

    def _is_made(self, source: _Source) -> bool:
        """Whether a predecessor has made this snapshot."""
        there = artifact_folder.read(self._run.paths.artifacts / f"best@{source.step}", self._run.run_id)
        if there is None:
            return False
        made = mapping(there.lineage.get("source"))
        if not made or there.lineage.get("weights") != source.weights:
            return False
        names = ("size", "mtime_ns") if source.sha256 is None else ("sha256",)
        return all(made.get(name) == getattr(source, name) for name in names)

    def _refuse_full_disk(self, size: int) -> None:
        disk = os.statvfs(self._run.paths.run_dir)
        free = disk.f_bavail * disk.f_frsize
        if free < FREE_CHECKPOINTS * size:
            raise UnreadableFile(f"only {free / 1e6:,.1f} MB are free, and the training's own checkpoints come first")

    def _fill(self, temp: Path) -> None:
        paths = self._run.paths
        as_used = {artifact_folder.CONFIG_YAML: paths.resolved_yaml, artifact_folder.CONFIG_JSON: paths.resolved_json}
        for name, source in as_used.items():
            write_atomic(temp / name, read_bounded(source, MAX_CONFIG_BYTES, follow_links=False))
        write_atomic(temp / artifact_folder.STATUS, to_json(self._observe()))

    def _go_on(self, job: _Job) -> None:
        if job.process.poll() is None:
            if time.monotonic() - job.since > LIMIT_S:
                self._fail(job.mark, f"it took longer than {LIMIT_S:.0f} s")
            return
        try:
            from . import extraction

            self._publish(job, extraction.answer(job.temp))
        except Exception as error:  # as in _begin
            self._fail(job.mark, str(error))

    def _publish(self, job: _Job, answer: dict[str, Any]) -> None:
        if job.source.sha256 is None and self._mark() != job.mark:
            raise UnreadableFile("it changed while it was read")
        (job.temp / artifact_folder.SAID).unlink()
        log, step = self._run.paths.train_log, job.source.step
        offset = artifact_folder.anchor(log, step, self._run.step_patterns)
        if offset is None:
            end = artifact_folder.log_end(log)
            place = _Place(step, end, end)
        else:
            place = _Place(step, offset)
        lineage = self._lineage(job, answer, place.offset)
        write_atomic(job.temp / artifact_folder.LINEAGE, to_json(lineage), durable=True)
        artifact_folder.write_log(job.temp / artifact_folder.LOG, log, place.offset)
        path = artifact_folder.publish(job.temp, job.source.step, self._run.run_id)
        self._job = None
        self._growing[path] = place
        keep = count(self._run.setting("checkpoint", "keep_best_artifacts"))
        artifact_folder.prune(self._run.paths.artifacts, self._run.run_id, 3 if keep is None else keep, job.source.step)

    def _lineage(self, job: _Job, answer: dict[str, Any], offset: int) -> dict[str, Any]:
        """Return lineage.json, by schemas/artifact.schema.json."""
        run, source = self._run, job.source
        parents, is_complete = _parents(run)
        return {
            "made_by": artifact_folder.MAKER,
            "run_id": run.run_id,
            "step": source.step,
            "weights": source.weights,
            "score": source.score,
            "metric": text(run.setting("validation", "best_metric")),
            "experiment": run.experiment,
            "config_hash": run.record.get("config_hash"),
            "parent_run_id": run.record.get("parent_run_id"),
            "parent_step": run.parent_step,
            "parents": parents,
            "parents_complete": is_complete,
            "source": {
                "file": os.path.relpath(self._best, run.paths.run_dir),
                "sha256": answer["source_sha256"],
                "size": source.size,
                "mtime_ns": source.mtime_ns,
            },
            "weights_file": {name: answer[name] for name in ("sha256", "size", "tensors", "from_raw", "left_out")},
            "log_offset": offset,
            "created_at": utc_now(),
        }

    def _write_logs(self) -> None:
        """Make up the logs of the snapshots, each until all that is to come behind its best is there."""
        for path, place in list(self._growing.items()):
            place = self._growing[path] = self._sought(path, place)
            is_whole = artifact_folder.write_log(path / artifact_folder.LOG, self._run.paths.train_log, place.offset)
            if (is_whole and place.sought_from is None) or not path.exists():
                del self._growing[path]

    def _sought(self, path: Path, place: _Place) -> _Place:
        """Go on looking for a best's line that was not in the log yet: of a flood the log is read behind the save."""
        if place.sought_from is None:
            return place
        log = self._run.paths.train_log
        offset, sought_from = artifact_folder.anchor_behind(log, place.sought_from, place.step, self._run.step_patterns)
        if offset is None:
            is_given_up = sought_from > place.offset + artifact_folder.SEARCH_BYTES
            return place._replace(sought_from=None if is_given_up else sought_from)
        made = artifact_folder.read(path, self._run.run_id)
        if made is not None:
            with contextlib.suppress(OSError):
                write_atomic(path / artifact_folder.LINEAGE, to_json({**made.lineage, "log_offset": offset}))
        return _Place(place.step, offset)

    def _fail(self, mark: _Mark, reason: str, temp: Path | None = None) -> None:
        """Give up on a best: silently where a newer one has taken its place meanwhile, else with a warning."""
        if self._job:
            temp = self._job.temp
            if self._job.process.poll() is None:
                self._job.process.kill()
                self._job.process.wait()
            self._job = None
        if temp is not None:
            artifact_folder.remove(temp)
        if self._mark() == mark:
            message = f"no snapshot of the best '{self._best.name}' was made: {reason}"
            with contextlib.suppress(OSError):
                fields = {"kind": "no_best_artifact", "message": message}
                journal.append(self._run.paths.journal, "warning", self._run.run_id, **fields)


def _leave_terminal() -> None:
    """Let go of stdout and stderr: `run.sh | cat` is not to wait for a snapshot longer than the launcher does."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _parents(run: Run) -> tuple[list[dict[str, Any]], bool]:
    """Return the run's ancestors, nearest first, each with the step it was left at; and whether the root is reached."""
    table, found, seen = RunTable(run.paths.run_dir.parent), [], {run.run_id}
    while parent_id := run.record.get("parent_run_id"):
        found.append({"run_id": parent_id, "step": run.parent_step})
        parent = table.parent(run)
        if parent is None or parent.run_id in seen:
            return found, False
        seen.add(parent.run_id)
        run = parent
    return found, True
