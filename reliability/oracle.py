"""The judge of every case: what must hold whatever happens to a run, watched while it happens and asked at the end.

O1 no proven checkpoint is altered, or removed but by the pruning's rule; O2 nothing below the grade that a recovery
needs is taken; O3 the step goes back only to such a checkpoint, the newest one where nothing was wrong with the
numbers, and the journal says so; O4 status.json can be read at every instant; O5 at most one trainer lives for a head
and whatever continues it; O7 a child writes into its parent only what is allowed there, and no run anything outside
runs/; O8 nothing that is data is run; O9 one `abort` and one `recovery` event per incident; O10 the next launch needs
no hand. (O6, an exit code with its sentence and no traceback, is asked of every command that a test runs, in conftest.)
And it is no judge who has not looked: a trainer that trained for a second was seen, and so often a second was looked.

    with Oracle(runs_dir) as oracle: ...        # and then oracle.check()
Try it: `python -m pytest tests/faults/test_oracle.py`
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reliability import live_trainers
from reliability.live_trainers import Trainer
from resumekit.base.paths import step_of_name
from resumekit.base.terms import CAUSES, REPLAYED
from resumekit.checkpoint import manifest
from support.runs import events

HZ = 20.0
# A loaded machine lets no process look twenty times a second; below this, nothing can be said of what was between.
MIN_HZ, HZ_OVER_S = 2.0, 3.0
# Who trained for so long while it was watched must have been seen.
SEEN_AFTER_S = 1.0
# What may come or change in a run's folder when another one goes on from it. Its own sidecar may still be at its end.
MAY_CHANGE = frozenset({
    "journal.jsonl", "status.json", "lock", ".status.lock", ".stop.lock", "quarantine.json", ".sidecar.json",
    "exit.json", "logs/train.log", "claims", "paused",
})  # fmt: skip
FROZEN = frozenset({
    "run.json", "resolved_config.json", "resolved_config.yaml", "config.yaml", "resume_plan.json", "command.sh",
    "code.patch", "logs/output.log",
})  # fmt: skip
CANARY = "pwned"


class Oracle:
    """Watches the runs of one folder from a thread of its own, twenty times a second.

    Args:
        runs_dir: the folder of all runs; what lies beside it must stay as it is.
        next_launch: what O10 asks, the command line of a launch with --dry-run; None to leave it out.
        is_forked: what trains is a fork of a warm server: the client in its place is not enough to have seen it.
    """

    def __init__(
        self, runs_dir: Path, next_launch: Callable[[], subprocess.CompletedProcess] | None = None,
        *, is_forked: bool = False,
    ) -> None:  # fmt: skip
        self.runs_dir = runs_dir
        self.looks = 0
        self.most_at_once = 0
        self.began_s = time.monotonic()
        self._is_forked = is_forked
        self._seen: set[tuple[str, bool]] = set()  # run, whether it was a fork
        self._next_launch = next_launch
        self._faults: dict[str, None] = {}
        self._records: dict[str, dict[str, Any]] = {}
        self._seen_status: dict[str, tuple[int, int, int]] = {}
        self._seen_folders: dict[str, int] = {}
        self._proven: dict[Path, str] = {}
        self._frozen: dict[str, dict[str, Any]] = {}
        self._journal_heads: dict[str, tuple[int, str]] = {}
        self._beside = self._names_beside()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="oracle", daemon=True)

    def __enter__(self) -> Oracle:
        self.began_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def faults(self) -> list[str]:
        """Return what was seen to be wrong so far, and what is wrong now; for a folder in which all is at rest."""
        now = [
            *self._altered(), *self._not_allowed_to_take(), *self._steps(), *self._outside(), *self._in_parents(),
            *self._incidents(), *self._hands(), *self._unseen(),
        ]  # fmt: skip
        return [*self._faults, *now]

    def check(self, wait_s: float = 10.0) -> None:
        """Fail if anything is wrong; what a sidecar still has to write down is waited for.

        Raises:
            AssertionError: with a line for each fault.
        """
        deadline = time.monotonic() + wait_s
        while (found := self.faults()) and not self._faults and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not found, "\n".join(found)
        assert self.looks, "the oracle has not looked"

    # while it happens

    def _watch(self) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                self.look()
            except Exception as error:  # a judge that has fallen asleep must not look like a clean night
                self._fault("oracle", f"{type(error).__name__}: {error}")
            self._stop.wait(max(1 / HZ - (time.monotonic() - begun), 0.01))

    def look(self) -> None:
        """Look once."""
        for run in self._runs():
            self._look_at_status(run)
            self._look_at_checkpoints(run)
        self._look_at_trainers()
        self.looks += 1

    def _look_at_status(self, run: Path) -> None:
        path = run / "status.json"
        try:
            found = os.stat(path)
            shape = (found.st_ino, found.st_mtime_ns, found.st_size)
            if self._seen_status.get(run.name) == shape:
                return
            # A case may have put anything there: never a link or a device, never more than a status has.
            text = path.read_bytes()[:65_536] if stat.S_ISREG(os.lstat(path).st_mode) else b""
        except FileNotFoundError:
            return
        self._seen_status[run.name] = shape
        try:
            value = json.loads(text)
            if value["run_id"] != run.name:
                self._fault("O4", f"{run.name}: status.json is that of {value['run_id']}")
        except (ValueError, TypeError, KeyError) as error:
            self._fault("O4", f"{run.name}: status.json cannot be read ({error}): {text[:80]!r}")

    def _look_at_checkpoints(self, run: Path) -> None:
        folder = run / "checkpoints"
        try:
            mtime_ns = os.stat(folder).st_mtime_ns
        except OSError:
            return
        if self._seen_folders.get(run.name) == mtime_ns:
            return
        for path in folder.glob("*_step_*.pt.json"):
            data = path.with_suffix("")
            if data not in self._proven:
                with contextlib.suppress(Exception):  # one that was pruned between the two
                    self._proven[data] = manifest.read(data).sha256
        self._seen_folders[run.name] = mtime_ns

    def _look_at_trainers(self) -> None:
        alive: dict[str, list[Trainer]] = {}
        for one in (found := self._trainers()):
            alive.setdefault(self._family(self.runs_dir / one.run), []).append(one)
        self._seen |= {(one.run, one.is_fork) for one in found}
        for name in {one.run for one in found}:
            self._freeze_parents(self.runs_dir / name)
        for members in alive.values():
            if live_trainers.at_once(members) > 1:
                # The first may have ended before the last began: only who is still there was there beside it.
                still = {one.pid for one in self._trainers()}
                members = [one for one in members if one.pid in still]
            self.most_at_once = max(self.most_at_once, live_trainers.at_once(members))
            if live_trainers.at_once(members) > 1:
                self._fault("O5", f"two trainers at once: {members}")

    def _trainers(self) -> list[Trainer]:
        runs = self._runs()
        tokens = {str(token): run.name for run in runs if (token := self._record(run).get("token"))}
        logs = {os.fsencode(os.path.realpath(run / "logs" / "output.log")): run.name for run in runs}
        return live_trainers.of_runs(tokens, logs)

    def _freeze_parents(self, run: Path) -> None:
        """Remember how a parent is when its child begins to train: from then on hardly anything may change there."""
        parent = self._parent(run)
        if parent is not None and parent.name not in self._frozen:
            self._frozen[parent.name] = _inventory(parent)

    # at the end

    def _altered(self) -> Iterator[str]:
        for path, sha256 in list(self._proven.items()):
            try:
                is_same = hashlib.sha256(path.read_bytes()).hexdigest() == sha256
            except FileNotFoundError:
                if not self._may_be_pruned(path):
                    yield f"O1: {path.parent.parent.name}/{path.name} was proven and is gone"
                continue
            if not is_same:
                yield f"O1: {path.parent.parent.name}/{path.name} was proven and is not what it was"

    def _may_be_pruned(self, path: Path) -> bool:
        keep = (_config(path.parent.parent).get("checkpoint") or {}).get("keep_last")
        step = _step(path.name)
        pins = list(path.parent.parent.glob(f"claims/pin_{step}_*.json"))
        newer = [p for p in path.parent.glob("*.pt.json") if (_step(p.name[:-5]) or -1) > (step or 0)]
        return keep is not None and not pins and len(newer) >= max(2, keep)

    def _not_allowed_to_take(self) -> Iterator[str]:
        """O2, for what was taken without a person."""
        for run in self._recoveries():
            record = self._record(run)
            cause, bad = record["recovery"]["cause"], record["recovery"]["first_bad_step"]
            if record["checkpoint"] is None:
                continue
            path = Path(os.path.normpath(run / record["checkpoint"]))
            try:
                known = manifest.read(path)
            except Exception as error:
                if path.exists() or not self._may_be_pruned(path):
                    yield f"O2: {run.name} goes on from {path.name}, which has no manifest that can be read: {error}"
                continue
            if known.step != record["parent_step"] or known.finite is False:
                yield f"O2: {run.name} goes on from {path.name}: step {known.step}, finite {known.finite}"
            if cause in REPLAYED and bad is not None and known.step >= bad:
                yield f"O2: {run.name} goes on from step {known.step}, and step {bad} was the first bad one"

    def _steps(self) -> Iterator[str]:
        """O3: within a run steps only grow, and a child begins where it says."""
        for run in self._runs():
            record, told = self._record(run), [event["step"] for event in events(run, "step")]
            if any(later <= earlier for earlier, later in itertools.pairwise(told)):
                yield f"O3: {run.name} goes back in its own journal"
            parent = self._parent(run)
            if parent is None or not record:
                continue
            begun = record["parent_step"]
            if told and told[0] != begun + 1:
                yield f"O3: {run.name} says that it goes on from step {begun}, and its first step is {told[0]}"
            if not record["recovery"]:
                continue
            if record["recovery"]["cause"] not in REPLAYED and begun < (newest := self._newest_proven(parent, record)):
                yield f"O3: {run.name} goes on from step {begun}, and step {newest} was proven"
            for event in events(run, "recovery"):
                if event.get("child_run_id") == run.name and event["step"] != begun:
                    yield f"O3: the journal of {run.name} says step {event['step']}, its record step {begun}"

    def _newest_proven(self, run: Path, child: dict[str, Any]) -> int:
        """Return the newest step along the history that was proven when the child was made; 0 without one."""
        newest, limit = 0, None
        folder: Path | None = run
        while folder is not None:
            bad = _quarantined(folder)
            for path in (folder / "checkpoints").glob("*_step_*.pt.json"):
                step = _step(path.name[:-5])
                if step is None or (limit is not None and step > limit) or path.name[:-5] in bad:
                    continue
                with contextlib.suppress(Exception):
                    known = manifest.read(path.with_suffix(""))
                    if known.created_at < child["created_at"] and known.writer == "save_checkpoint" and known.finite:
                        newest = max(newest, step)
            own = self._record(folder).get("parent_step")
            limit = own if limit is None else limit if own is None else min(limit, own)
            folder = self._parent(folder)
        return newest

    def _outside(self) -> Iterator[str]:
        """O7, for what lies beside runs/, and O8."""
        came = self._names_beside() - self._beside - {".local"}  # the state folder of this HOME's user
        if came:
            yield f"O7: beside runs/ there is now {sorted(came)}"
        for folder in (self.runs_dir, self.runs_dir.parent, Path.cwd(), *self._runs()):
            if os.path.lexists(folder / CANARY):
                yield f"O8: the canary was made in {folder}"

    def _in_parents(self) -> Iterator[str]:
        for name, before in list(self._frozen.items()):
            now = _inventory(self.runs_dir / name)
            for path in sorted(now.keys() | before.keys()):
                if now.get(path) == before.get(path) or path in MAY_CHANGE or path.startswith(("claims/", ".exit")):
                    continue
                if path.startswith("checkpoints/") and path.endswith(".json"):
                    continue  # a manifest for a file that came to rest
                if path in FROZEN or (path.startswith("checkpoints/") and path in before):
                    if path not in now and self._may_be_pruned(self.runs_dir / name / path):
                        continue
                    yield f"O7: {name}/{path} has changed since another run goes on from it"
                elif path not in before and not path.startswith((".", "checkpoints/.", "artifacts/")):
                    yield f"O7: {name}/{path} has come since another run goes on from it"

    def _incidents(self) -> Iterator[str]:
        """O9."""
        for run in self._runs():
            aborts = events(run, "abort")
            if len(aborts) > 1:
                yield f"O9: {len(aborts)} abort events in {run.name}"
            if aborts and aborts[0].get("cause") not in CAUSES:
                yield f"O9: the abort event of {run.name} has the cause {aborts[0].get('cause')}"
            told = [event for event in events(run, "recovery") if event.get("parent_run_id") == run.name]
            if len(told) > 1:
                yield f"O9: {len(told)} recovery events about the end of {run.name}"
            yield from self._given_up(run, told, len(aborts))
            taken_up = [child for child in self._recoveries() if self._parent(child) == run]
            if taken_up and len(aborts) != 1:  # the event comes first, whatever becomes of the child
                yield f"O9: {len(aborts)} abort events in {run.name}, which {taken_up[0].name} recovers"
            begun = [child for child in taken_up if events(child, "launched")]
            if len(begun) > 1:
                yield f"O9: {len(begun)} recoveries of {run.name}: {[child.name for child in begun]}"
            for child in begun:
                own = [event for event in events(child, "recovery") if event.get("child_run_id") == child.name]
                if len(told) != 1 or len(own) != 1:
                    yield f"O9: {len(told)} recovery events in {run.name}, {len(own)} in its child {child.name}"

    def _given_up(self, run: Path, told: list[dict[str, Any]], aborts: int) -> Iterator[str]:
        """O9, for a run that a person has to look at: that is an incident too, and has its cause."""
        is_told = any(event.get("outcome") == "needs_attention" for event in told)
        if not is_told and _status(run).get("state") != "needs_attention":
            return
        if not is_told:
            yield f"O9: {run.name} needs attention, and no recovery event says so"
        if aborts != 1:
            yield f"O9: {aborts} abort events in {run.name}, which needs attention"
        if _status(run).get("state") != "needs_attention":
            yield f"O9: {run.name} needs attention, and its status is {_status(run).get('state')}"

    def _unseen(self) -> Iterator[str]:
        """O5, that it was looked at: a trainer that told steps for a while, being watched, was there to be seen."""
        watched_s = time.monotonic() - self.began_s
        if watched_s > HZ_OVER_S and self.looks < watched_s * MIN_HZ:
            yield f"O5: looked {self.looks} times in {watched_s:.1f} s, too seldom to say anything"
        kinds = [(False, "trainer"), *([(True, "fork")] if self._is_forked else [])]
        for run in self._runs():
            told = [event["mono_s"] for event in events(run, "step") if event["mono_s"] >= self.began_s]
            if not told or not events(run, "launched") or told[-1] - told[0] < SEEN_AFTER_S:
                continue
            for is_fork, name in kinds:
                if (run.name, is_fork) not in self._seen:
                    yield f"O5: the {name} of {run.name} was never seen, which trained {told[-1] - told[0]:.1f} s"

    def _hands(self) -> Iterator[str]:
        """O10."""
        if self._next_launch is None or not self._runs():
            return
        done = self._next_launch()
        words = (done.stdout or "") + (done.stderr or "")
        is_busy = any(word in words for word in ("is alive", "has finished", "just being started"))
        if not (done.returncode in (0, 5) or (done.returncode == 6 and is_busy)):
            yield f"O10: the next launch would end with {done.returncode}: {words[-300:]}"

    # what is there

    def _fault(self, number: str, sentence: str) -> None:
        self._faults.setdefault(f"{number}: {sentence}")

    def _runs(self) -> list[Path]:
        try:
            with os.scandir(self.runs_dir) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        except OSError:
            return []
        return [self.runs_dir / name for name in names]

    def _recoveries(self) -> list[Path]:
        return [run for run in self._runs() if self._record(run).get("recovery")]

    def _record(self, run: Path) -> dict[str, Any]:
        if run.name not in self._records:
            try:
                self._records[run.name] = json.loads((run / "run.json").read_bytes())
            except (OSError, ValueError):
                return {}
        return self._records[run.name]

    def _parent(self, run: Path) -> Path | None:
        parent = self._record(run).get("parent_run_id")
        return self.runs_dir / parent if parent and (self.runs_dir / parent).is_dir() else None

    def _family(self, run: Path) -> str:
        """Return the run at the beginning of a row of continuations: of all of them one trainer may live."""
        while self._record(run).get("relation") == "continue" and (parent := self._parent(run)):
            run = parent
        return run.name

    def _names_beside(self) -> set[str]:
        with contextlib.suppress(OSError):
            return {*os.listdir(self.runs_dir.parent), self.runs_dir.name}
        return {self.runs_dir.name}


def _inventory(folder: Path) -> dict[str, tuple[int, int]]:
    """Return relative path -> (size, mtime) of each file below a folder."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(OSError):
                shape = os.lstat(path)
                found[str(path.relative_to(folder))] = (shape.st_size, shape.st_mtime_ns)
    return found


def _status(run: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        path = run / "status.json"
        found = json.loads(path.read_bytes()[:65_536]) if stat.S_ISREG(os.lstat(path).st_mode) else None
        return found if isinstance(found, dict) else {}
    return {}


def _config(run: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return json.loads((run / "resolved_config.json").read_bytes())
    return {}


def _quarantined(run: Path) -> list[str]:
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        found = json.loads((run / "quarantine.json").read_bytes())
        return [str(item["file"]) for item in found]
    return []


def _step(name: str) -> int | None:
    return step_of_name(name, "hrm_arc_step_{step}.pt")
