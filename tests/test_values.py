"""Values out of files: no reader raises, and none returns a value of another type or out of its bounds.

The same for each reader of a whole record that is made of them, whatever JSON, or Python's reading of it, holds.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resumekit.base import answer_cache, claims, processes, redaction, terms, values
from resumekit.base.errors import InvalidFile
from resumekit.base.files import UnreadableFile
from resumekit.base.paths import MAX_STEP, RunPaths
from resumekit.base.terms import CAUSES
from resumekit.checkpoint import manifest, one_pass, proof
from resumekit.checks import expectations
from resumekit.policy import lr_scale, plan_file
from resumekit.process import acceptance, output_log, stopping
from resumekit.run import (
    health,
    listing,
    quarantine,
    run_end,
    run_folder,
    run_table,
    seals,
    state_types,
    status,
    steps,
    throughput,
)
from resumekit.start import code_scope, compatibility
from resumekit.trainer import proven_content
from resumekit.watch import observe, rules, watcher_files
from support import schema_examples

EDGES = [
    0, -1, 1, 2, 255, 256, 500, 1 << 22, (1 << 22) + 1, MAX_STEP - 1, MAX_STEP, -MAX_STEP, 1 - MAX_STEP, (1 << 53) - 1,
    1 << 53, -(1 << 53), 1 << 63, (1 << 64) - 1, 1 << 64, 10**308, 2 * 10**308, 10**400, -(10**400), True, False, None,
    0.0, -0.0, 1e-320, 0.5, 1e6, 1e9, 1e12, 9e15, 1e16, 1e300, 1e308, -1e308, math.inf, -math.inf, math.nan,
    "", "12", "nan", "x" * 500, "x" * 501, "x" * 4096, "x" * 4097, "\ud800", "a\0b", "a" * 64, "train", "TERM", "raw",
    "2026-11-22T17:35:51.123456Z", "2026-11-22T17:35:51.123456Z\n", "٣", [], {}, [[]], [None], [1, 2], ["a", "b"],
]  # fmt: skip
SCALARS = (
    st.sampled_from([edge for edge in EDGES if not isinstance(edge, (list, dict))])
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
)
ANY = st.recursive(
    SCALARS | st.sampled_from(EDGES),
    lambda one: st.lists(one, max_size=4) | st.dictionaries(st.text(max_size=6), one, max_size=4),
    max_leaves=8,
)


def whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda read: type(read) is int and least <= read <= most


def real(least: float, most: float) -> Callable[[Any], bool]:
    return lambda read: type(read) in (int, float) and least <= read <= most


def words(most: int) -> Callable[[Any], bool]:
    return lambda read: type(read) is str and len(read) <= most


EXACT, LARGEST = (1 << 53) - 1, values.MAX_FLOAT
# Each reader, and what it may return beside None.
READERS: dict[str, tuple[values.Reader, Callable[[Any], bool]]] = {
    "count": (values.count, whole(0, MAX_STEP - 1)),
    "integer": (values.integer, whole(1 - MAX_STEP, MAX_STEP - 1)),
    "total": (values.total, whole(0, EXACT)),
    "kernel_number": (values.kernel_number, whole(1 - (1 << 64), (1 << 64) - 1)),
    "number": (values.number, lambda n: real(-LARGEST, LARGEST)(n) and (type(n) is float or abs(n) <= EXACT)),
    "finite": (values.finite, real(-LARGEST, LARGEST)),
    "real": (values.real, lambda n: type(n) is float or real(-LARGEST, LARGEST)(n)),
    "seconds": (values.seconds, lambda n: real(0, 1e12)(n) and n < 1e12),
    "amount": (values.amount, lambda n: real(0, 1 << 53)(n) and n < 1 << 53),
    "speed": (values.speed, lambda n: real(0, LARGEST)(n) and (type(n) is float or n <= EXACT)),
    "wait_s": (values.wait_s, lambda n: real(0, 1e6)(n) and n < 1e6),
    "above_zero": (values.above_zero, lambda n: real(0, 1e9)(n) and 0 < n < 1e9),
    "text": (values.text, words(500)),
    "short_text": (values.short_text, words(500)),
    "path_text": (values.path_text, words(4096)),
    "string": (values.string, words(1 << 60)),
    "at": (values.at, lambda s: type(s) is str and len(s) == 27 and s.isascii() and s.endswith("Z")),
    "flag": (values.flag, lambda one: one is True),
    "boolean": (values.boolean, lambda one: type(one) is bool),
    "mapping": (values.mapping, lambda one: type(one) is dict),
    "items": (values.items, lambda one: type(one) is list),
    "strings": (values.strings, lambda one: type(one) is list and all(type(word) is str for word in one)),
    "one_of": (values.one_of(("raw", "train")), lambda one: one in ("raw", "train")),
    "between": (values.between(2, 255), whole(2, 255)),
    "below": (values.below(0.5), lambda n: real(0, 0.5)(n) and n < 0.5),
    "matching": (values.matching("[a-f]{64}"), lambda s: type(s) is str and len(s) == 64 and set(s) <= set("abcdef")),
    "config_hash": (values.config_hash, words(64)),
    "listed": (
        values.listed(values.count, 3),
        lambda one: type(one) is list and len(one) <= 3 and all(map(whole(0, MAX_STEP - 1), one)),
    ),
    "row": (
        values.row(values.count, values.string),
        lambda one: type(one) is list and len(one) == 2 and type(one[0]) is int and type(one[1]) is str,
    ),
    "fields": (
        values.fields({"a": values.count}, b=values.count),
        lambda one: (
            type(one) is dict
            and one.keys() == {"a", "b"}
            and type(one["b"]) is int
            and type(one["a"]) in (int, type(None))
        ),
    ),
    "some_of": (
        values.some_of({"a": values.count, "b": values.string}),
        lambda one: (
            type(one) is dict
            and one.keys() <= {"a", "b"}
            and type(one.get("a", 1)) is int
            and type(one.get("b", "")) is str
        ),
    ),
}
NEVER_NONE = {"mapping", "items", "strings"}


def near(value: Any, dice: random.Random) -> Any:
    """Return a value in the form that `listed`, `row`, `fields` or `some_of` reads, with any values in it."""
    other = dice.choice(EDGES)
    return dice.choice([value, [value, other], [other, value], {"a": value, "b": other}, {"a": other}, {"b": value}])


def test_every_reader_is_in_the_table() -> None:
    own = {
        name
        for name, one in vars(values).items()
        if callable(one) and getattr(one, "__module__", "") == values.__name__
    }
    assert own - {"epoch_s"} == READERS.keys()


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=100, deadline=None)
@given(value=ANY, seed=st.integers(0, 999))
def test_a_reader_returns_a_value_of_its_type_within_its_bounds_or_none(name: str, value: Any, seed: int) -> None:
    read, is_within = READERS[name]
    for one in (value, near(value, random.Random(seed))):
        found = read(one)
        assert is_within(found) or (found is None and name not in NEVER_NONE), (name, one)
        if name != "text" and found is not None and name not in NEVER_NONE:
            assert found is one


@pytest.mark.parametrize("name", READERS)
def test_a_reader_takes_what_is_within_its_bounds_and_nothing_else(name: str) -> None:
    """Beside each limit: the last value that is read, the first one that is not."""
    read, is_within = READERS[name]
    for edge in EDGES:
        found = read(edge)
        assert is_within(found) or found is None or name in NEVER_NONE
        is_cut = name == "text" and isinstance(edge, str)
        is_plain = name not in ("config_hash", "at", "fields", "some_of", *NEVER_NONE)
        if is_plain and not is_cut:
            assert (found is not None) == is_within(edge), (name, edge)


@pytest.mark.parametrize(
    ("name", "edge", "is_read"),
    [
        ("count", True, False), ("number", True, False), ("real", True, False), ("boolean", 1, False),
        ("flag", False, False), ("flag", 1, False), ("number", 1 << 53, False), ("number", float(1 << 60), True),
        ("finite", 10**308, True), ("finite", 2 * 10**308, False), ("real", math.nan, True), ("seconds", 5, True),
        ("count", 1.0, False), ("text", "x" * 501, True), ("short_text", "x" * 501, False),
        ("config_hash", "a" * 12, True), ("config_hash", "a" * 64 + "\n", False),
        ("at", "2026-11-22T17:35:51.123456Z", True),
        ("at", "2026-11-22T17:35:51.123456Z\n", False), ("fields", {"a": None, "b": 1}, True),
        ("fields", {"a": 1, "b": None}, False), ("fields", {"b": 1}, False), ("some_of", {}, True),
        ("some_of", {"a": None}, False), ("some_of", {"c": 1}, False), ("row", [1, "x"], True),
        ("listed", [1] * 4, False),
    ],
)  # fmt: skip
def test_what_is_told_apart(name: str, edge: Any, is_read: bool) -> None:
    assert (READERS[name][0](edge) is not None) == is_read


class Folder:
    """A run whose records hold one value, whole or in the place of any key."""

    def __init__(self, tmp: Path, value: Any) -> None:
        run_dir = tmp / "EXP-01_baseline_20261122-1735"
        run_dir.mkdir(exist_ok=True)
        self.paths, self.value = RunPaths(run_dir), value

    def put(self, path: Path, value: Any) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))

    def run(self) -> run_folder.Run:
        """Return the run with a record and a config in which each key that is read has the value."""
        keys = ("recovery", "environment", "versions", "paths", "parent_step", "settings", "scheduler", "argv", "git")
        self.put(self.paths.run_json, dict.fromkeys(keys, self.value) | {"run_id": self.paths.run_dir.name})
        sections = ("abort", "recover", "checkpoint", "trainer", "resume", "training")
        key = ("grace_s", "hang_minutes", "max_attempts", "max_read_mb_per_s", "stop_signal", "throughput_band",
               "free_mb", "pattern", "log_patterns")  # fmt: skip
        self.put(self.paths.resolved_json, dict.fromkeys(sections, dict.fromkeys(key, self.value)))
        return run_folder.open_run(self.paths.run_dir)


def refused(*errors: type[Exception]) -> Callable[[Callable[[], Any]], Any]:
    """Return the call that ends in a value, or in one of the errors that the reader declares."""

    def call(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except errors:
            return None

    return call


GOOD_MANIFEST = schema_examples.case("manifest")
GOOD_PLAN = {"version": 1, "step": 4, "components": {"weights": {"action": "load", "why": ""}}}
PLAN_KEYS = (*GOOD_PLAN, "new_params", "lr_scale", "changes", "learning_rates", "recovery", "checkpoint", "phase")


def manifests(value: Any) -> Iterator[Any]:
    for one in (value, *({**GOOD_MANIFEST, key: value} for key in GOOD_MANIFEST)):
        yield refused(UnreadableFile)(lambda one=one: manifest.parse(one, GOOD_MANIFEST["file"]))


def plans(value: Any) -> Iterator[Any]:
    for one in (value, *({**GOOD_PLAN, key: value} for key in PLAN_KEYS)):
        yield refused(ValueError)(lambda one=one: plan_file.parse("plan", one))
    nested = {"recovery": {"skip_data_steps": value, "skip_eval_step": value}, "changes": [value],
              "learning_rates": [{"key": value, "base": value, "after": [value], "optimizer": value}],
              "components": {"weights": {"action": value, "why": value}}, "lr_scale": {"factor": value, "ramp": value},
              "checkpoint": {"path": value, "run_id": value}}  # fmt: skip
    rates = ([{"base": value, "after": []}], [{"base": None, "after": [value]}])
    for key, inner in (*nested.items(), *(("learning_rates", one) for one in rates)):
        yield refused(ValueError)(lambda key=key, inner=inner: plan_file.parse("plan", {**GOOD_PLAN, key: inner}))


def scales(value: Any) -> Iterator[Any]:
    ramp = {"from_step": 1, "steps": 2, "factor": 0.5, "warm_restart": False}
    yield refused(ValueError)(lambda: lr_scale.from_fields(value, None))
    for one in (value, *({**ramp, key: value} for key in (*ramp, "optimizers"))):
        yield refused(ValueError)(lambda one=one: lr_scale.from_fields(1.0, one))


def counted(value: Any) -> Iterator[Any]:
    for key in ("global_step", "epoch", "best_val_loss", "lr_scale"):
        found = refused(InvalidFile)(
            lambda key=key: proven_content.counters_of({key: value}, "load", None, Path("x.pt"))
        )
        if found is not None:
            assert type(found["global_step"]) is type(found["start_epoch"]) is int
            assert type(found["best_val_loss"]) is float
        yield found


def states(value: Any) -> Iterator[Any]:
    yield state_types.is_sound(value)
    for key in state_types._TYPES:
        yield state_types.is_sound({key: value})
    kinds = (
        (throughput.saved, throughput.before_first_step(0)),
        (steps.saved, steps.count_step(None, steps.StepReport(1), 0.0)[0]),
    )
    for saved, known in kinds:
        assert saved(known) == known
        yield from (saved({**known, key: value}) for key in known)
    yield from (health.saved({key: value}) for key in health._TYPES)
    yield from (health.is_bad(value), terms.verdict_of(value), output_log._saved_identity(value))


def identities(value: Any) -> Iterator[Any]:
    good = {"host": "h", "boot_id": "b", "pid": 77, "start_ticks": 5, "token": "t"}
    assert processes.identity_from(good) == processes.Identity(**good)
    for one in (value, *({**good, key: value} for key in good)):
        found = processes.identity_from(one)
        assert found is None or (1 < found.pid <= 1 << 22 and type(found.host) is type(found.boot_id) is str)
        yield found
        yield processes.trainer_of({"trainer": good, "shim": one}, "/x")
        yield processes.trainer_of({"trainer": one}, "/x")


def records(folder: Folder) -> Iterator[Any]:
    run = folder.run()
    told = {"cause": "hang", "attempt": 1, "lr_factor": 1.0, "skip_data_steps": 0}
    for key in told:
        known = run_table.recovery_of(
            run_folder.run_of(folder.paths.run_dir, {**run.record, "recovery": {**told, key: folder.value}})
        )
        assert known is None or (known.cause in CAUSES and known.attempt > 0 and math.isfinite(known.lr_factor))
    for one in (run, run_folder.run_of(folder.paths.run_dir, folder.value)):
        yield from (run_table.recovery_of(one), one.parent_step, one.settings, one.max_read_mb_per_s, one.log_patterns)
        yield from (
            one.experiment,
            one.created_at,
            one.form,
            status.has_scheduler(one),
            status.shows_steps(one),
        )
    yield from (run_folder.other_id(folder.value), redaction.passed_variables(folder.value))
    yield from (
        compatibility.machine_consents({"versions": folder.value, "environment": folder.value}, {"python": "3"}),
    )
    yield code_scope.of({"trainer": folder.value, "recover": folder.value}, Path("/"))
    yield from (expectations._driver(run), listing._elsewhere({"host": folder.value}))
    grace, silence = stopping.grace_s(run), run_end.silence_limit_s(run)
    assert type(grace) is float and 0 <= grace < 1e6 and 0 < silence < 1e11
    assert all(type(one) in (int, float) and one > 0 for one in rules.limits_of(run.setting) if one is not None)
    share = acceptance._share(run, "throughput_band")
    assert share is None or 0 < share < 1e9


def files(folder: Folder) -> Iterator[Any]:
    """The readers of a file of their own: the value is the file, and then one of its fields."""
    value, own = folder.value, folder.paths
    seen = proof.Proof("p", 1, 2, 3, 4, 5, None, "sound")._asdict()
    kinds: dict[Path, tuple[dict[str, Any], Callable[[], Any]]] = {
        own.exit_json: ({"code": 0, "signal": None, "elapsed_s": 1.0, "error": "", "by": "TERM"}, lambda: ended(own)),
        own.proof: (seen, lambda: proof.read(own.proof)),
        own.continuation: ({"run_id": "x", "claimer": {}}, lambda: claims.held_by_other(own, lambda child: True)),
        own.sidecar_state: ({"run_id": own.run_dir.name, "state": {}, "journal_offset": 0}, lambda: account(own)),
    }
    for path, (good, read) in kinds.items():
        for one in (value, *({**good, key: value} for key in good)):
            folder.put(path, one)
            yield read()
        path.unlink()
    for one in (value, [value], [{"file": value, "is": value}]):
        folder.put(own.quarantine, one)
        yield quarantine.quarantined_names(own)


def ended(own: RunPaths) -> str:
    end = run_end.read(run_folder.open_run(own.run_dir))
    assert end is None or whole(0, 255)(end["code"])
    return run_end.words(end) + str(run_end.fields(end)) + str(run_end.has_failed(end)) + str(run_end.stopped_by(end))


def account(own: RunPaths) -> Any:
    run = run_folder.open_run(own.run_dir)
    return status.saved_state(run), observe.read_observer(run)


def kept(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What a user's own state folder holds, where it was edited."""
    monkeypatch.setattr(answer_cache.ownership, "is_callers_alone", lambda *path: True)
    monkeypatch.setattr(watcher_files, "is_callers", lambda path: True)
    monkeypatch.setattr(seals, "_folder", lambda **create: folder.paths.run_dir)
    path = folder.paths.run_dir / "kept.json"
    value = folder.value
    for one in (value, [value], [[value, "key", value]], {"said": value}, {"waits": {"r": value}},
                {"waits": {"r": {"since_s": value, "passes": value, "is_told": value}}}):  # fmt: skip
        folder.put(path, one)
        yield answer_cache._entries(path)
        made = watcher_files.Memory(path)
        assert all(type(wait.since_s) is float and type(wait.passes) is int for wait in made.waits.values())
        yield one_pass._found(one)
    record = {"run_id": folder.paths.run_dir.name, "token": "t"}
    for one in (
        value,
        *({"run_id": record["run_id"], "sha256": {}, key: value} for key in ("sha256", "notify", "root")),
    ):
        folder.put(seals._path(folder.paths.run_dir, record), one)
        found = seals.read(record)
        assert found is None or found.notify is None or all(type(word) is str for word in found.notify)
        yield (
            seals.read({"run_id": value, "token": value}) if isinstance(value, str) and "\ud800" not in value else None
        )


OF_A_VALUE: dict[str, Callable[[Any], Iterator[Any]]] = {
    "manifest": manifests, "resume_plan.json": plans, "lr_scale": scales, "counters of a checkpoint": counted,
    "saved state": states, "process identity": identities,
}  # fmt: skip


@pytest.mark.fault("F7", by="values.py: every record of the table, with any value in the place of any field")
@pytest.mark.parametrize("name", OF_A_VALUE)
@settings(max_examples=60, deadline=None)
@given(value=ANY)
@example(value=10**400)
@example(value=math.nan)
@example(value="\ud800")
def test_no_reader_of_a_record_raises(name: str, value: Any) -> None:
    for _ in OF_A_VALUE[name](value):
        pass


@pytest.mark.parametrize("seed", range(4))
def test_no_reader_of_a_file_raises(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(seed)
    odd = [*EDGES[seed::4], *(near(near(dice.choice(EDGES), dice), dice) for _ in range(12))]
    for value in odd:
        folder = Folder(tmp_path, value)
        for read in (records, files):
            for _ in read(folder):
                pass
        with monkeypatch.context() as patch:
            for _ in kept(folder, patch):
                pass
