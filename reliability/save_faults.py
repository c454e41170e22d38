"""One call of a save goes wrong: a real save in a process of its own, and then the next ones.

Runs in a Python that was started with `syscalls.environment()` and has torch imported; each save is a fork of it.
Try it: `python -m reliability.campaign_saves --sample 20 --seed 1`
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reliability import syscalls
from reliability.save_judge import (
    KEEP_LAST,
    KILLED,
    NOT_SAVED,
    PINNED,
    RUN_ID,
    SAVED,
    Fault,
    Outcome,
    Point,
    Scenario,
    chosen_in,
    contents,
    judge,
)
from resumekit.base import journal
from resumekit.checkpoint.grades import PROVEN
from resumekit.trainer import saving
from resumekit.trainer.saving import save_checkpoint
from support.checkpoint_tools import leftovers, quiet, small_model

_WHOLE = {"keep_last": KEEP_LAST, "best": {"score": 0.75}, "loss": 0.5}
_EVAL = {"last_fast_eval": {"step": 50, "accuracy": 0.5}}
SCENARIOS = (
    Scenario("first", (), 10, {}),
    Scenario("next", (10, 20, 30, 40), 50, _WHOLE),
    Scenario("again", (10, 20, 30, 40), 50, {**_WHOLE, **_EVAL}, is_again=True),
    Scenario("no links", (10, 20, 30, 40), 50, _WHOLE, has_links=False),
)
_ON_CHANGES = (
    Fault("SIGKILL", syscalls.KILL),
    Fault("EIO", syscalls.ERROR, errno.EIO),
    Fault("ENOSPC", syscalls.ERROR, errno.ENOSPC),
    Fault("EDQUOT", syscalls.ERROR, errno.EDQUOT),
    Fault("ENOSPC from there on", syscalls.ERROR_FROM_THERE, errno.ENOSPC),
)
_ON_WRITES = (
    Fault("short", syscalls.SHORT),
    Fault("short, then ENOSPC", syscalls.SHORT_THEN_ERROR, errno.ENOSPC),
)
# Reading and looking: a disk that fails can fail there too; what is left of a kill there is seen at the next change.
_ON_READS = (Fault("EIO", syscalls.ERROR, errno.EIO),)
_READING = ("openr", "read", "stat", "opendir", "flock")


class Stage:
    """Run folders to save in, and the points that such a save has.

    Args:
        folder: scratch; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.shim = folder.resolve(), syscalls.Shim()
        self.model, self.optimizer = small_model()
        self._count = 0
        # What torch imports at a first save is imported once, here, and not in every child.
        self.save(self.folder / "warm", 1)
        _forget()

    def recorded(self, scenario: Scenario) -> list[syscalls.Call]:
        """Return every call of the scenario's save, undisturbed."""
        run_dir = self.fresh(scenario)
        log = run_dir.parent / "calls"
        with _Child(self, run_dir, scenario) as child:
            assert child.save(lambda: self.shim.watch(run_dir, log)).end == SAVED
        return syscalls.read_log(log)

    def points(self, scenario: Scenario) -> list[Point]:
        """Return every point of the scenario: each call x each fault that it can have."""
        seen: dict[tuple[str, ...], int] = {}
        points = []
        for call in self.recorded(scenario):
            for key in ((call.name,), (call.name, call.path)):
                seen[key] = seen.get(key, 0) + 1
            at, turn = seen[call.name,], seen[call.name, call.path]
            faults = _ON_CHANGES if call.name in (*syscalls.CHANGING, "close") else ()
            faults += _ON_WRITES if call.name == "write" else ()
            faults += _ON_READS if call.name in _READING else ()
            shown = os.path.basename(call.to or call.path)
            points += [Point(scenario, call.name, at, shown, turn, fault) for fault in faults]
        return points

    def judge(self, point: Point, mistake: Callable[[], None] | None = None) -> str | None:
        """Run one point; return '' where all is well, one sentence where not, None where the call never came.

        Args:
            mistake: called in the child before its save: what the judge is to see.
        """
        run_dir = self.fresh(point.scenario)
        arm = (point.call, point.at, point.fault.what, point.fault.number)
        try:
            with _Child(self, run_dir, point.scenario, mistake) as child:
                before = contents(run_dir)
                outcome = child.save(lambda: (self.shim.watch(run_dir), self.shim.arm(*arm)))
                if not outcome.was_reached:
                    return None
                if wrong := judge(run_dir, point, outcome, before):
                    return wrong
                if outcome.end != KILLED and not child.save_next(point.scenario.step + 100):
                    return "the next save of the same process fails"
            return self.next_process(run_dir, point.scenario.step + 200)
        finally:
            shutil.rmtree(run_dir.parent)

    def next_process(self, run_dir: Path, step: int) -> str:
        """Save in a new process, without any hand in between; it sweeps, and what it saved is what is selected."""
        with _Child(self, run_dir, SCENARIOS[0]) as child:
            if not child.save_next(step):
                return "the next process cannot save"
        if left := leftovers(run_dir / "checkpoints"):
            return f"not swept: {left[0]}"
        chosen = chosen_in(run_dir)
        return "" if chosen == (step, PROVEN) else f"after the next process {chosen} is selected"

    def fresh(self, scenario: Scenario) -> Path:
        """Return a new copy of the scenario's run folder, alone in a folder of its own."""
        template = self.folder / "templates" / scenario.name / RUN_ID
        if not template.exists():
            self._fill(template, scenario)
        self._count += 1
        run_dir = self.folder / f"runs-{self._count}" / RUN_ID
        shutil.copytree(template, run_dir, symlinks=True)
        if scenario.earlier:
            best = run_dir / "checkpoints" / "hrm_arc_best.pt"
            best.unlink()
            os.link(run_dir / "checkpoints" / f"hrm_arc_step_{scenario.earlier[-2]}.pt", best)
        return run_dir

    def save(self, folder: Path, step: int, said: list[str] | None = None, **options: Any) -> Path | None:
        """Save in this very process."""
        log_fn = quiet if said is None else said.append
        return save_checkpoint(folder, step, model=self.model, optimizer=self.optimizer, log_fn=log_fn, **options)

    def _fill(self, template: Path, scenario: Scenario) -> None:
        (template / "claims").mkdir(parents=True)
        (template / "run.json").write_text(json.dumps({"run_id": RUN_ID, "host": os.uname().nodename}))
        journal.append(template / "journal.jsonl", "launched", RUN_ID)
        if scenario.earlier:
            (template / "claims" / f"pin_{PINNED}_T-1_branch.json").write_text("{}")
        with environment(template):
            for step in scenario.earlier:
                best = {"score": 0.5} if step == scenario.earlier[-2] else None
                assert self.save(template / "checkpoints", step, best=best)
        _forget()


class _Child:
    """A fork that saves when it is told to, so that its parent can look in between."""

    def __init__(
        self, stage: Stage, run_dir: Path, scenario: Scenario, mistake: Callable[[], None] | None = None
    ) -> None:
        self._stage, self._run_dir, self._scenario, self._mistake = stage, run_dir, scenario, mistake
        self._pid = 0

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._pid:
            os.close(self._orders)
            self._answers.close()
            os.waitpid(self._pid, 0)

    def save(self, arm: Callable[[], Any]) -> Outcome:
        """Let the child make the scenario's save, with `arm()` done right before it."""
        self._start(arm)
        told = self._hear()
        if told is not None:
            return Outcome(*told)
        status = os.waitpid(self._pid, 0)[1]
        self._pid = 0
        os.close(self._orders)
        self._answers.close()
        assert os.WIFSIGNALED(status), f"the child ended with {os.waitstatus_to_exitcode(status)}"
        return Outcome(KILLED, [], True)

    def save_next(self, step: int) -> bool:
        """Let the child save one more step, undisturbed; whether that came back with a path."""
        if not self._pid:
            self._start(None)
        os.write(self._orders, b"%d\n" % step)
        return self._hear() is True

    def _hear(self) -> Any:
        line = self._answers.readline()
        return json.loads(line) if line else None

    def _start(self, arm: Callable[[], Any] | None) -> None:
        reader, answers = os.pipe()
        orders, self._orders = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(reader)
            os.close(self._orders)
            try:
                with environment(self._run_dir), os.fdopen(orders, "rb") as file:
                    if arm is not None:
                        os.write(answers, json.dumps(self._save(arm)).encode() + b"\n")
                    for line in file:
                        is_saved = self._stage.save(self._run_dir / "checkpoints", int(line)) is not None
                        os.write(answers, json.dumps(is_saved).encode() + b"\n")
            finally:
                os._exit(0)
        os.close(answers)
        os.close(orders)
        self._answers = os.fdopen(reader, "rb")

    def _save(self, arm: Callable[[], Any]) -> Outcome:
        stage, scenario, folder = self._stage, self._scenario, self._run_dir / "checkpoints"
        stage.shim.no_links(not scenario.has_links)
        if scenario.is_again:
            stage.save(folder, scenario.step)
        if self._mistake:
            self._mistake()
        said: list[str] = []
        arm()
        try:
            end = NOT_SAVED if stage.save(folder, scenario.step, said, **scenario.options) is None else SAVED
        except Exception as error:
            end = f"raised {error!r} in {traceback.extract_tb(error.__traceback__)[-1].name}"
        return Outcome(end, said, stage.shim.disarm())


@contextlib.contextmanager
def environment(run_dir: Path) -> Iterator[None]:
    """Tell the trainer's side of this process which run it is in."""
    own = {"RESUMEKIT_RUN_DIR": str(run_dir), "RESUMEKIT_RUN_ID": RUN_ID, "RESUMEKIT_CONFIG_HASH": "ab" * 32}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]


def _forget() -> None:
    """What a new process knows of earlier saves: nothing."""
    saving._saved.clear()
    saving._swept.clear()
    saving._io_errors = 0
