"""Whether two nested values, or two runs' journals, are equal bit for bit; if not, what differs first, and by how much.

A run counts with its history: what its parents did up to the step that it was resumed at. What belongs to a process
and not to the training (times, speeds, versions, folders) is not compared. Reads journals; writes nothing. The values
of checkpoints are compared by `trainer/comparison`, which adds tensors.
Try it: `python lib/resume_helper.py --compare runs/RUN_A runs/RUN_B`
"""

from __future__ import annotations

import collections
import re
import struct

from ..base import journal
from ..base.errors import InvalidFile
from ..base.imports import Any, NamedTuple
from ..base.terminal import plain
from ..base.values import count
from ..run.run_folder import Run
from ..run.run_table import RunTable

# So many values are looked at: a pickle of a few bytes can hold a list of lists with any number of places.
MOST_VALUES = 10_000_000
# So many differences are kept; the others are counted.
MOST_KEPT = 1000
MOST_CHARACTERS = 60
# A list of more whole numbers counts as one value.
LONG_LIST = 64

LOSS, LR, EVALUATION, COUNTERS, OTHER = "loss", "lr", "evaluation", "counters", "other"
# Each component, and the names that its values stand under: a whole part of a name between two dots or slashes.
_COMPONENTS = {
    name: re.compile(form, re.IGNORECASE)
    for name, form in {
        "weights": r"(pytorch_)?model(_state_dict|-\d+.*|_\d+)?|state_dict|module|weights?",
        "optimizer": r"optim.*|parameter_names",
        "scheduler": r"(lr_)?sched.*",
        "scaler": r"(grad_)?scaler.*|scale",
        "ema": r"ema(_.*)?",
        "swa": r"swa(_.*)?",
        "rng": r"(.*_)?(rng|random)(_.*)?|torch_manual_seed.*",
        "data_position": r"data_(state|position)|(.*_)?(sampler|(data)?loader)(_.*)?",
        COUNTERS: r"global_step|epoch|steps?|iter(_num)?|best_.*|progress|trainer_state|loops|callbacks",
        LR: r"lr(_.*)?|(.*_)?learning_rate",
        LOSS: r"loss|log_history",
        EVALUATION: r"eval(_.*)?|metrics?",
    }.items()
}
# Names of what belongs to a process: its times, speeds, versions and folders.
_OF_THE_PROCESS = re.compile(
    r"(.*_)?(at|time|timestamp|date|runtime|elapsed|mono_s|run_id|dir|dirpath|_name_or_path)|.*_per_(s|sec|second)|.*version"
)
_OF_THE_PROCESS_WHOLE = "versions"
# Of a path only the last name counts, for the folders above it are those of the run.
_PATH = re.compile(r"(.*_)?(path|checkpoint|file)s?")
# The order of a step's events.
_EVENTS = ("step", "eval", "best")
_IN_THE_KEY = ("event", "step", "kind", "weights")
_NOT_FINITE = ("nan", "inf", "-inf")


class Difference(NamedTuple):
    """One value that differs.

    Args:
        where: the step and field of a journal, or the name of a value or tensor in a checkpoint.
        component: a component of a checkpoint (`base/terms.KEYS`), 'loss', 'lr', 'evaluation' or 'other'.
        what: how it differs, in a few words that follow a colon.
        absolute, relative: its size where both are finite numbers, of a tensor the largest; the second one over the
            larger of the two magnitudes. None where it cannot be said (NaN, another shape, in one of the two alone) and
            0.0 where the numbers are equal and only their bits differ.
    """

    where: str
    component: str
    what: str
    absolute: float | None = None
    relative: float | None = None

    def sentence(self) -> str:
        """Say it in a printable line."""
        size = ""
        if self.absolute is not None and self.relative is not None:
            size = f" (absolute {self.absolute:.3g}, relative {self.relative:.3g})"
        return plain(f"{self.where}: {self.what}{size}")


class Comparison:
    """What a comparison has found so far; values are added to it in the order in which they are to be told.

    Attributes:
        values, tensors: how many of each were compared, tensors not counted as values.
        differences: the first MOST_KEPT ones.
        counts: component -> how many differ.
        notes: what was not compared, in sentences.
        of_bar: where a progress bar told the steps, (how many both saw, how many one of them saw); else None.
    """

    def __init__(self) -> None:
        self.values, self.tensors = 0, 0
        self.differences: list[Difference] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.notes: list[str] = []
        self.of_bar: tuple[int, int] | None = None
        self._seen = 0

    @property
    def is_equal(self) -> bool:
        return not self.counts

    def add(self, difference: Difference) -> None:
        """Note a difference."""
        self.counts[difference.component] += 1
        if len(self.differences) < MOST_KEPT:
            self.differences.append(difference)

    def sentence(self) -> str:
        """Say the result in lines for a person: the first difference, then how many of what."""
        notes = [plain(note) for note in self.notes]
        compared = f"{self.values:,} values / {self.tensors:,} tensors"
        if self.of_bar:
            both, seen = self.of_bar
            compared += f", of {seen:,} steps seen the {both:,} that both runs saw (a progress bar shows some of them)"
        if self.is_equal:
            return "\n".join([f"equal bit for bit in {compared}", *notes])
        by_component = ", ".join(f"{name} {number:,}" for name, number in self.counts.items())
        of_all = f"{self.counts.total():,} differences in {compared}"
        firsts = {one.component: one for one in reversed(self.differences)}
        others = [one for one in self.differences[1:] if firsts.get(one.component) is one]
        first = self.differences[0]
        lines = [f"different, first in {first.sentence()}, component {first.component}", f"{of_all}: {by_component}"]
        return "\n".join([*lines, *(f"first of {one.component}: {one.sentence()}" for one in others), *notes])

    def compare(self, one: Any, other: Any, where: str = "", component: str | None = None) -> None:
        """Compare two nested values.

        Args:
            where: the name of the two, which the names inside are added to.
            component: whose values they are; None to go by the names inside.

        Raises:
            InvalidFile: they hold more than MOST_VALUES values, or are nested too deeply.
        """
        try:
            self._compare(one, other, where, component)
        except RecursionError:
            raise InvalidFile(f"'{_short(where)}' is nested too deeply to be compared") from None

    def _compare(self, one: Any, other: Any, where: str, component: str | None) -> None:
        self._seen += 1
        if self._seen > MOST_VALUES:
            raise InvalidFile(f"there are more than {MOST_VALUES:,} values: that is no checkpoint, and is not compared")
        if isinstance(one, dict) and isinstance(other, dict):
            self._compare_dicts(one, other, where, component)
        elif _are_numbers(one, other):
            self.values += 1
            if differing := sum(pair[0] != pair[1] for pair in zip(one, other, strict=True)):
                self.add(Difference(where, component or OTHER, f"{differing:,} of {len(one):,} numbers differ"))
        elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
            for place in range(max(len(one), len(other))):
                name = f"{where}[{place}]"
                if place >= min(len(one), len(other)):
                    self.add_missing(name, component, is_first=place < len(one))
                else:
                    self._compare(one[place], other[place], name, component)
        else:
            self._compare_leaves(one, other, where, component or OTHER)

    def _compare_dicts(self, one: dict[Any, Any], other: dict[Any, Any], where: str, component: str | None) -> None:
        """Compare by key; the keys that are paths, by their last names."""
        left, right = ({_key(key): value for key, value in item.items()} for item in (one, other))
        is_top = not where or where.endswith(":")
        for key in [*left, *(key for key in right if key not in left)]:
            if (is_top and key == _OF_THE_PROCESS_WHOLE) or is_of_the_process(str(key), left.get(key, right.get(key))):
                continue
            name, of = f"{where}{'' if is_top else '.'}{key}", component or component_of(str(key))
            if key in left and key in right:
                is_path = _PATH.fullmatch(str(key)) is not None
                pair = [_last_name(value) if is_path else value for value in (left[key], right[key])]
                self._compare(pair[0], pair[1], name, of)
            else:
                self.add_missing(name, of, is_first=key in left)

    def add_missing(self, where: str, component: str | None, *, is_first: bool) -> None:
        """Note what is in the first of the two alone, or in the second."""
        self.values += 1
        self.add(Difference(where, component or OTHER, f"in the {'first' if is_first else 'second'} alone"))

    def _compare_leaves(self, one: Any, other: Any, where: str, component: str) -> None:
        """Compare two values that are not both dicts or both lists."""
        self.values += 1
        one, other = _number(one), _number(other)
        if isinstance(one, float) and isinstance(other, float):
            if struct.pack("d", one) != struct.pack("d", other):
                self.add(_of_numbers(one, other, where, component))
        elif isinstance(one, (int, float)) and isinstance(other, (int, float)):
            if type(one) is not type(other) or one != other:
                self.add(_of_numbers(one, other, where, component))
        elif type(one) is not type(other) or one != other:
            self.add(Difference(where, component, f"{_shown(one)} and {_shown(other)}"))


def component_of(name: str) -> str | None:
    """Return the component that a name's values are of, by the first of its parts that says one; None without one."""
    for part in re.split(r"[./:\\\[\]]", name):
        for component, form in _COMPONENTS.items():
            if form.fullmatch(part):
                return component
    return None


def is_of_the_process(name: str, value: Any) -> bool:
    """Whether a plain value belongs to a process and not to the training, by its name."""
    return isinstance(value, (str, int, float, type(None))) and _OF_THE_PROCESS.fullmatch(name) is not None


def _of_numbers(one: float, other: float, where: str, component: str) -> Difference:
    words = f"{one!r} and {other!r}"
    if one == other or (one != one and other != other):
        return Difference(where, component, f"{words}: equal as numbers, their bits or types differ", 0.0, 0.0)
    if any(value != value or value in (float("inf"), float("-inf")) for value in (one, other)):
        return Difference(where, component, words)
    try:
        absolute = abs(one - other)
        relative = absolute / max(abs(one), abs(other))
    except OverflowError:  # a whole number that is no float
        return Difference(where, component, _short(words))
    return Difference(where, component, words, float(absolute), float(relative))


def _are_numbers(one: Any, other: Any) -> bool:
    """Whether the two are long lists of whole numbers, as the states of random number generators are."""
    is_one = type(one) is type(other) and isinstance(one, (list, tuple)) and len(one) == len(other) > LONG_LIST
    return is_one and all(type(value) is int for value in one) and all(type(value) is int for value in other)


def _number(value: Any) -> Any:
    """Return a number that a journal has as a word, as it is."""
    return float(value) if isinstance(value, str) and value in _NOT_FINITE else value


def _key(key: Any) -> Any:
    return _last_name(key) if isinstance(key, str) and key.startswith("/") else key


def _shown(value: Any) -> str:
    is_nested = isinstance(value, (dict, list, tuple, bytes))
    return f"a {type(value).__name__} of {len(value):,}" if is_nested else _short(repr(value))


def _last_name(value: Any) -> Any:
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) else value


def _short(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."


# What runs have journaled.

_Key = tuple[int, int, str, str, int]
_Told = dict[_Key, dict[str, Any]]
# Of a `step` event: that it was read off a progress bar.
_BAR = "bar"


def compare_journals(one: Run, other: Run, found: Comparison) -> None:
    """Compare every journaled field of every step, evaluation and new best, in the order of the steps.

    Where a parent's folder is not there, both runs are compared from the step at which its child goes on.
    """
    sides = [_journaled(one), _journaled(other)]
    begin = max(begun for _, begun in sides)
    if begin:
        found.notes.append(f"compared from step {begin + 1:,} on: the folder of a parent that went there is gone")
    left, right = (events for events, _ in sides)
    if any(event.get(_BAR) for events in (left, right) for event in events.values()):
        left, right = _seen_by_both(left, right, begin, found)
    for key in sorted(left.keys() | right.keys()):
        step, place, kind, weights, again = key
        if step <= begin:
            continue
        event, component = _EVENTS[place], EVALUATION if place else None
        words = (f"step {step},", event if place else "", kind, weights, f"told once more ({again})" if again else "")
        where = " ".join(filter(None, words))
        if key not in left or key not in right:
            found.add_missing(f"{where} {'' if place else event}".strip(), component, is_first=key in left)
            continue
        for name in [*left[key], *(name for name in right[key] if name not in left[key])]:
            named, of = f"{where} {name}", component or component_of(name)
            if name in left[key] and name in right[key]:
                found.compare(left[key][name], right[key][name], named, of)
            else:
                found.add_missing(named, of, is_first=name in left[key])


def _seen_by_both(left: _Told, right: _Told, begin: int, found: Comparison) -> tuple[_Told, _Told]:
    """Return both journals without the steps that a bar showed to one of them alone, and with one event for each step.

    A progress bar is drawn, and read, at some steps and not at others: which those are hangs on the clock, and so does
    whether the bar showed a step whose line was read as well.
    """
    left, right = _by_step(left), _by_step(right)
    steps = {key[0] for key in left.keys() | right.keys() if key[1] == 0 and key[0] > begin}
    both = {key[0] for key in left.keys() & right.keys() if key[1] == 0 and key[0] > begin}
    found.of_bar = (len(both), len(steps))
    for one, other in ((left, right), (right, left)):
        for key in [key for key, event in one.items() if event.pop(_BAR, False) and key not in other]:
            del one[key]
    for key in [key for key in left.keys() & right.keys() if key[1] == 0]:
        # A bar may show a step before its values, and beside a line's values its total, or not.
        shared = left[key].keys() & right[key].keys()
        left[key], right[key] = (
            {name: side[key][name] for name in side[key] if name in shared} for side in (left, right)
        )
    return left, right


def _by_step(told: _Told) -> _Told:
    """Return the events with those of one step as one, of which the later say more; a bar's where all were a bar's."""
    merged: _Told = {}
    for key, event in told.items():
        step = key if key[1] else (*key[:-1], 0)
        before = merged.get(step)
        is_bar = event.get(_BAR, False) and (before is None or before.get(_BAR, False))
        merged[step] = {**(before or {}), **event, **({} if key[1] else {_BAR: is_bar})}
    return merged


def _journaled(run: Run) -> tuple[_Told, int]:
    """Return what a run's journal says by step, event, kind, weights and turn, and the step up to which it is gone."""
    table = RunTable(run.paths.run_dir.parent)
    table.put(run)
    history = table.history(run)
    found: _Told = {}
    for part, limit in reversed(history):
        times: collections.Counter[tuple[int, int, str, str]] = collections.Counter()
        for event, _ in journal.read(part.paths.journal):
            step = count(event.get("step"))
            if event["event"] in _EVENTS and step is not None and (limit is None or step <= limit):
                place = _EVENTS.index(event["event"])
                key = (step, place, str(event.get("kind") or ""), str(event.get("weights") or ""))
                turn = (*key, times[key])
                found[turn] = {
                    name: value
                    for name, value in event.items()
                    if name not in _IN_THE_KEY and not is_of_the_process(name, value)
                }
                times[key] += 1
    begun = history[-1][0].parent_step if table.missing_parent(run) else None
    return found, begun or 0
