"""The command line of bin/abort-watch.sh: what is to be looked at, how often, what is done and said; and its log."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from ..base import claims
from ..base.errors import DONE, FAILED, STOPPED_BY_RULE, Busy, KitError, UsageError
from ..base.files import utc_now, write_all
from ..base.imports import TYPE_CHECKING, Any, NamedTuple
from ..base.terminal import plain, say, show_json, show_text
from ..run.run_names import parse_run_name
from . import inspection, watcher_files
from .rules import SICK
from .watcher_files import Memory

if TYPE_CHECKING:
    from .acting import Action

_NUMBER = re.compile("[0-9]+([.][0-9]+)?")
_MAX_KEY = 300
_RUN, _DEED, _PASS = "run ", "deed ", "pass"


class WatchLog:
    """One pass's part of the log.

    Args:
        path: the file; it is opened and checked here.
        memory: what was said before; a log that begins anew says it again.

    Raises:
        KitError: the file may not be written to, with the reason.
    """

    def __init__(self, path: Path, memory: Memory) -> None:
        self._descriptor = watcher_files.open_log(path)
        self._memory = memory
        self._now: dict[str, str] = {}
        if os.fstat(self._descriptor).st_size == 0:
            memory.said.clear()

    def show(self, looks: Sequence[inspection.Report]) -> None:
        """Write down the looks whose kind differs from the pass before."""
        for look in looks:
            causes = " ".join(sorted(one.cause for one in look.findings)) or _folded(look.note)
            self._say_if_new(_RUN + look.run_id, f"{look.verdict} {causes}", inspection.as_text([look]))

    def say(self, run_id: str, words: str) -> None:
        """Write down what was done about a run, unless the pass before did the same."""
        self._say_if_new(f"{_DEED}{run_id} {_folded(words)}"[:_MAX_KEY], "", f"{run_id}: {words}")

    def fail(self, sentence: str) -> None:
        """Write down why there was no pass, unless that has been said."""
        self._say_if_new(_PASS, _folded(sentence), sentence)

    def end(self, looks: Sequence[inspection.Report], is_meant: Callable[[str], bool]) -> None:
        """Write down what is over, and close.

        Args:
            looks: at every run of this pass, those too that were not worth a line.
            is_meant: whether a run of this id belongs to what the pass was asked for.
        """
        verdicts = {look.run_id: look.verdict for look in looks}
        kept = {}
        for key, value in self._memory.said.items():
            run_id = key.partition(" ")[2].partition(" ")[0]
            if key in self._now:
                continue
            if run_id and not is_meant(run_id):
                kept[key] = value
            elif key == _PASS:
                self._write("the passes go on")
            elif key.startswith(_RUN):
                is_now = verdicts.get(run_id)
                self._write(f"{run_id}: {is_now} now" if is_now else f"{run_id}: not live any more")
        self._memory.said = {**kept, **self._now}
        self.close()

    def close(self) -> None:
        """Close the log and leave the time of this pass on it."""
        with contextlib.suppress(OSError):
            os.utime(self._descriptor)
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def _say_if_new(self, key: str, value: str, sentence: str) -> None:
        value = value[:_MAX_KEY]
        if self._memory.said.get(key) == value or self._write(sentence):
            self._now[key] = value  # what could not be written is said by the next pass

    def _write(self, sentence: str) -> bool:
        """Write a line; False on a full disk, which ends no watcher."""
        line = f"{utc_now()[:19]}Z  {plain(sentence)}\n"
        try:
            write_all(self._descriptor, line.encode("utf-8", "backslashreplace"))
        except OSError:
            return False
        return True


def _folded(sentence: str) -> str:
    """Return a sentence without its numbers: 'no step for 31 min' and 'for 32 min' say the same."""
    return _NUMBER.sub("#", sentence)


# The command. Reads the config for where the runs lie; writes to stdout what is found, to stderr what is said and
# done, or with --log both into a file of its own. Try it: `bin/abort-watch.sh --observe --json`

PROG = "abort-watch.sh"
MAX_EVERY_S = 86_400
_SWITCHES = {"--json": "is_json", "--observe": "is_observed", "--quiet": "is_quiet",
             "--stop": "is_stop", "--now": "is_now", "--log": "is_logged"}  # fmt: skip


class Asked(NamedTuple):
    """What stood on the command line.

    Args:
        wanted: experiments and run ids; none for all.
        every_s: seconds between two passes; None for one pass.
        is_observed: only say what is wrong.
        is_quiet: say nothing of runs that are well, paused, or another host's.
        is_stop: end the wanted runs.
        is_now: without a grace.
        is_logged: write what is new into the watcher's log; the terminal gets nothing.
    """

    wanted: tuple[str, ...] = ()
    every_s: int | None = None
    is_observed: bool = False
    is_quiet: bool = False
    is_stop: bool = False
    is_now: bool = False
    is_json: bool = False
    is_logged: bool = False
    runs: Path | None = None
    config: Path | None = None


def main(arguments: Sequence[str]) -> int:
    """Look and act once, or again and again.

    Returns:
        0; 8 where the last pass found a sick run; 1 where something that had to be done could not be.
    """
    asked = parse(arguments)
    runs_dir = _runs_dir(asked)
    if missing := inspection.without_a_run(runs_dir, asked.wanted):
        words = f"there is no run of '{plain(missing[0])}' in '{plain(str(runs_dir))}'"
        if asked.every_s is None:
            raise UsageError(f"{words} (runs.sh lists them)")
        _say(f"{words} yet")
    if asked.is_stop:
        return _stop(runs_dir, asked)
    one_pass = _logged_pass if asked.is_logged else _pass
    if asked.every_s is None:
        return one_pass(runs_dir, asked)
    while True:
        try:
            one_pass(runs_dir, asked)
        except KitError as error:
            _say(f"{plain(str(error))}; tried again in {asked.every_s} s")
        time.sleep(asked.every_s)


def _pass(runs_dir: Path, asked: Asked) -> int:
    try:
        looks, deeds = _looked_and_acted(runs_dir, asked)
    except Busy as busy:
        _say(str(busy))
        return DONE
    code = _show(looks, asked)
    return code if _told(deeds) else FAILED


def _looked_and_acted(
    runs_dir: Path, asked: Asked, memory: Memory | None = None
) -> tuple[list[inspection.Report], list[Action]]:
    """Look, and act unless the watcher only observes.

    Args:
        runs_dir: the folder of all runs.
        asked: the command line.
        memory: of the passes before; read where None is given.

    Raises:
        Busy: another pass is at work, or there is no runs folder yet.
        KitError: the markers cannot be read, or nothing could be written down.
    """
    if not os.path.lexists(runs_dir):
        raise Busy(f"there is no runs folder '{runs_dir}' yet: the first start makes it")
    if asked.is_observed:
        return inspection.one_pass(runs_dir, asked.wanted), []
    from . import acting  # late: who only looks need not pay for it

    try:
        with acting.one_pass_at_a_time(runs_dir) as is_ours:
            if not is_ours:
                raise Busy("another pass is at work")
            memory = Memory(watcher_files.of(runs_dir, create=True).memory) if memory is None else memory
            looks = inspection.one_pass(runs_dir, asked.wanted)
            deeds = acting.act(runs_dir, looks, memory)
            memory.save()
    except OSError as error:
        raise KitError(f"nothing is stopped that cannot be written down: {error.strerror} ('{runs_dir}')") from error
    return looks, deeds


def _logged_pass(runs_dir: Path, asked: Asked) -> int:
    """Do a pass and write into the log what is new; a log that may not be written to keeps no pass from its work."""
    files = watcher_files.of(runs_dir, create=True)
    memory = Memory(files.memory)
    try:
        log = WatchLog(files.log, memory)
    except KitError as error:
        _say(plain(str(error)))
        return _pass(runs_dir, asked)
    try:
        looks, deeds = _looked_and_acted(runs_dir, asked, memory)
    except KitError as error:
        log.fail(str(error))
        log.end((), lambda _run_id: False)
        memory.save()
        return DONE if isinstance(error, Busy) else error.exit_code
    log.show(_shown(looks, asked))
    for deed in deeds:
        log.say(deed.run_id, deed.words)
    log.end(looks, lambda run_id: inspection.is_wanted(runs_dir, run_id, asked.wanted))
    memory.save()
    return _code(looks) if all(deed.is_done for deed in deeds) else FAILED


def _stop(runs_dir: Path, asked: Asked) -> int:
    if not asked.wanted:
        raise UsageError("--stop ends runs: say which (EXP or RUN_ID)")
    from . import acting

    known = inspection.live_runs(runs_dir, asked.wanted, of_all_users=True)
    living = _living(runs_dir, asked.wanted)
    meant = sorted({*_not_continued(runs_dir, known), *living})
    deeds = acting.stop(runs_dir, meant, is_now=asked.is_now) if meant else []
    deeds += _cancelled(runs_dir, asked.wanted, living)
    if not deeds:
        _say("nothing to stop: none of them is live")
        return FAILED
    return DONE if _told(deeds) else FAILED


def _not_continued(runs_dir: Path, run_ids: Sequence[str]) -> list[str]:
    """Return those of some runs with a marker from which no other run goes on: a node that died has left its marker."""
    from ..run.run_table import RunTable

    table = RunTable(runs_dir)

    def is_continued(run_id: str) -> bool:
        run = table.get(run_id)
        child = (claims.continuation_of(run.paths) or {}).get("run_id") if run is not None else None
        return isinstance(child, str) and table.has_started(child)

    return [run_id for run_id in run_ids if not is_continued(run_id)]


def _cancelled(runs_dir: Path, wanted: Sequence[str], living: Collection[str]) -> list[Action]:
    """Have Slurm cancel what waits in its queue to go on with a wanted run: a requeued job, the next of a chain.

    A run whose node has died has a marker, and no process: its job waits to begin again.
    """
    from ..process import job_stop
    from ..run.run_table import RunTable
    from .acting import Action

    table = RunTable(runs_dir)
    found = map(table.get, inspection.chosen(table, table.names, wanted))
    ended = [run for run in found if run is not None and run.is_ours and run.run_id not in living]
    waiting = [run for run in ended if job_stop.may_wait(run)]
    said = [(run.run_id, job_stop.cancel(run)) for run in waiting]
    return [Action(run_id, words) for run_id, words in said if words is not None]


def _living(runs_dir: Path, wanted: Sequence[str]) -> list[str]:
    """Return the wanted runs that live, with a marker of this user's or without: another user's, in a copied folder, or
    ended with something left.
    """
    from ..run import life_signs, status
    from ..run.run_table import RunTable

    table = RunTable(runs_dir)
    found = map(table.get, inspection.chosen(table, table.names, wanted))
    runs = [run for run in found if run is not None and run.is_ours and run.has_started]
    left = life_signs.with_live_processes(runs)  # what an ended trainer has left counts too
    return [run.run_id for run in runs if run in left or status.current(run)["state"] in status.LIVE]


def _told(deeds: Sequence[Action]) -> bool:
    """Say what was done; whether all of it could be."""
    for deed in deeds:
        _say(f"{plain(deed.run_id)}: {plain(deed.words)}")
    return all(deed.is_done for deed in deeds)


def _show(looks: Sequence[inspection.Report], asked: Asked) -> int:
    shown = _shown(looks, asked)
    text = inspection.as_json(shown) if asked.is_json else inspection.as_text(shown)
    if text:
        (show_json if asked.is_json else show_text)(text)
    if shown or not asked.is_quiet:
        _say(f"{utc_now()[:19]}Z {inspection.summary(looks)}")
    return _code(looks)


def _shown(looks: Sequence[inspection.Report], asked: Asked) -> Sequence[inspection.Report]:
    return [one for one in looks if one.verdict not in inspection.NOT_WORTH_A_LINE] if asked.is_quiet else looks


def _code(looks: Sequence[inspection.Report]) -> int:
    return STOPPED_BY_RULE if any(one.verdict == SICK for one in looks) else DONE


def _say(sentence: str) -> None:
    say(PROG, sentence)


def parse(arguments: Sequence[str]) -> Asked:
    """Read the words that bin/abort-watch.sh hands on: `--only=EXP`, `--every=N`, `--json`, ...

    Raises:
        UsageError: a word that means nothing here.
    """
    asked = Asked()
    for word in arguments:
        name, equals, value = word.partition("=")
        if name == "--only":
            if parse_run_name(value) is None:
                raise UsageError(f"'{plain(value[:100])}' is neither an experiment nor a run id")
            asked = asked._replace(wanted=(*asked.wanted, value))
        elif name == "--every":
            if not (value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= MAX_EVERY_S and len(value) < 9):
                raise UsageError(f"--every takes seconds, 1 to {MAX_EVERY_S}, not '{plain(value[:100])}'")
            asked = asked._replace(every_s=int(value))
        elif name in ("--runs", "--config") and equals:
            if not value:
                raise UsageError(f"{name} is given with an empty name")
            given: dict[str, Any] = {name[2:]: Path(value)}
            asked = asked._replace(**given)
        elif word in _SWITCHES:
            given = {_SWITCHES[word]: True}
            asked = asked._replace(**given)
        else:
            raise UsageError(f"unknown option '{plain(word[:100])}'")
    if asked.is_stop and (asked.is_observed or asked.every_s is not None or asked.is_json):
        raise UsageError("--stop ends runs, once: --observe, --every and --json do not go with it")
    if asked.is_logged and (asked.is_stop or asked.is_json):
        raise UsageError("--log writes what is new in a pass into a file: --stop and --json do not go with it")
    if asked.is_now and not asked.is_stop:
        raise UsageError("--now goes with --stop alone: it ends runs without a grace")
    return asked


def _runs_dir(asked: Asked) -> Path:
    if asked.runs is not None:
        if not asked.runs.is_dir():
            raise UsageError(f"there is no runs folder '{asked.runs}' (given with --runs)")
        return asked.runs.absolute()
    from ..config.config import load_config, resolve  # with --runs they are not needed
    from ..start.request import runs_folder

    file = load_config(asked.config)
    return runs_folder(resolve(file.document, schema=file.schema), file)
