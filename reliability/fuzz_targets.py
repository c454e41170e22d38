"""What is fuzzed: each reader of a text or file that is not ours to trust, with what it is fed and what it may do.

A target takes one example and an empty folder. It may return, or end in one printable sentence (a KitError); anything
else that it raises is a fault. Each example has a bound in time. Try it: `python -m reliability.campaign_fuzz --seed 1`
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from reliability import fuzz_foreign as foreign
from reliability import fuzz_values as values
from resumekit.base import journal
from resumekit.base.errors import KitError
from resumekit.base.files import UnreadableFile
from resumekit.base.paths import RunPaths, checkpoint_name, step_of_name
from resumekit.checkpoint import manifest
from resumekit.checkpoint.selection import CheckpointFolder, select
from resumekit.checks import expectations, journal_rules
from resumekit.config import config, schema, yaml_document
from resumekit.process.metrics_file import MetricsFollower
from resumekit.process.sidecar import Sidecar
from resumekit.process.train_log import _ESCAPES, LineCleaner
from resumekit.run import listing, log_patterns, run_names, status, trust
from resumekit.run.journal_fold import fold
from resumekit.run.log_formats import FORMATS
from resumekit.run.log_reader import LogReader
from resumekit.run.run_folder import open_run
from resumekit.run.run_table import RunTable
from resumekit.run.state_types import is_sound
from resumekit.start import consent, request
from resumekit.trainer import decisions
from resumekit.watch import inspection, observe, rules
from support.places import LIVE, ROOT
from support.schemas import assert_valid

# Far above the slowest example on a loaded machine; a hang is longer.
LIMIT_S = 20.0
# Python's own limit of 1000, less what a command has used when it comes to a reader.
FRAMES = 980
STATES = ("aborted", "failed", "lost", "starting", "running", "unsupervised", "finished", "stopped")
RUN_ID = "EXP-01_baseline_20261122-1735"
SCHEMA = schema.load()
SHIPPED = config.load_config()
_KEYS = [*SCHEMA.leaves, *(key.rpartition(".")[2] for key in SCHEMA.leaves), "a..b", "", ".", "training", "x-own.key"]
# Settings that are taken as they are: what stands in the shipped config.
_WHOLE = [f"{key}={json.dumps(node['default'])}" for key, node in SCHEMA.leaves.items() if "default" in node]


class Target(NamedTuple):
    """One reader: its name, what it is fed, and the call."""

    name: str
    examples: st.SearchStrategy[Any]
    read: Callable[[Any, Path], None]


class Hang(Exception):
    """An example took longer than LIMIT_S."""


def outcome(target: Target, example: Any) -> str:
    """Read one example in a folder of its own.

    Returns:
        'value' or 'refused'.

    Raises:
        Exception: whatever the reader raised that it must not, or Hang.
    """
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        with _bounded(LIMIT_S), _as_deep_as_a_command():
            target.read(example, folder)
    except KitError as error:
        assert str(error).isprintable() or "\n" not in str(error), f"not one line: {error!r}"
        return "refused"
    finally:
        shutil.rmtree(folder)
    return "value"


@contextlib.contextmanager
def _bounded(limit_s: float) -> Iterator[None]:
    def ring(_number: int, _frame: object) -> None:
        raise Hang(f"longer than {limit_s:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _as_deep_as_a_command() -> Iterator[None]:
    """Leave a reader as many stack frames as it has in a command; hypothesis takes the limit away."""
    depth, frame, before = 0, sys._getframe(), sys.getrecursionlimit()
    while frame := frame.f_back:
        depth += 1
    sys.setrecursionlimit(depth + FRAMES)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _run(folder: Path, **files: bytes) -> Path:
    """Make a whole run folder of ours, some of its files replaced; a file is named by its property of RunPaths."""
    run_dir = folder / "runs" / RUN_ID
    paths = RunPaths(run_dir)
    paths.checkpoints.mkdir(parents=True)
    paths.logs.mkdir()
    (folder / "runs" / LIVE).mkdir()
    paths.live_marker.touch()
    for name, content in {**values.WHOLE_RUN, **files}.items():
        path = getattr(paths, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return run_dir


def _config_file(content: bytes, folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_bytes(content)
    file = config.load_config(path)
    resolved = config.resolve(file.document, schema=file.schema)
    for experiment in list(file.document.data.get("experiments") or ())[:1]:
        config.resolve(file.document, experiment, schema=file.schema)
    config.write_resolved(folder, resolved, file)
    again = yaml_document.load((folder / "resolved_config.yaml").read_bytes(), "c").data
    assert config.config_hash(again, SCHEMA) == config.config_hash(resolved, SCHEMA)


def _settings(words: list[str], _folder: Path) -> None:
    resolved = config.resolve(SHIPPED.document, "EXP-01", words, schema=SCHEMA)
    json.dumps(resolved, allow_nan=False).encode()
    yaml_document.load(config.dump_yaml(resolved), "c")


def _run_folder(files: dict[str, bytes], folder: Path) -> None:
    """Everything that looks at a run folder of another user's: the list, the status, the watcher, the history."""
    run_dir = _run(folder, **files)
    table = RunTable(folder / "runs")
    assert_valid("status", status.current(open_run(run_dir)))
    rows = listing.choose(table, None)
    assert listing.as_text(table, rows).replace("\n", "").isprintable()
    json.loads(listing.as_json(rows))
    [look] = [inspection.look_at(folder / "runs", run_id) for run_id in inspection.live_runs(folder / "runs")]
    assert not look.note.startswith("it cannot be read"), look.note
    json.loads(inspection.as_json([look]))
    assert inspection.as_text([look]).isprintable()
    table.heads("EXP-01")
    table.history(open_run(run_dir))
    assert trust.standing(open_run(run_dir)).kind in (trust.OWN, trust.OTHERS)
    assert trust.examine(run_dir).standing.kind in (trust.OWN, trust.OTHERS)
    json.dumps(consent.executed_words(open_run(run_dir).config, SCHEMA))
    _acceptance(run_dir)


def _acceptance(run_dir: Path) -> None:
    """The checks after a resume: from its plan, its parent's journal and its own (here they are one)."""
    rules = journal_rules.Rules(expectations.read(open_run(run_dir)), 0.15, 0.5, {})
    for event, _ in journal.read(run_dir / "journal.jsonl"):
        rules.see(event)
    for one in rules.verdicts(1e6, has_ended=True):
        json.dumps(one.as_fields())
        assert "\n" not in one.sentence()


def _journal(content: bytes, folder: Path) -> None:
    path = folder / "journal.jsonl"
    path.write_bytes(content)
    events, offsets = [], [0]
    for event, offset in journal.read(path):
        events.append(event)
        offsets.append(offset)
    state = fold({}, events)
    assert is_sound(state)
    middle = len(events) // 2
    for name in STATES:
        sight = rules.Observation(
            1e6, name, lineage_speed=1.0, lineage_whole=1.0, last_words="", free_bytes=None, free_inodes=None
        )
        rules.findings(state, rules.Limits(), sight)
    _acceptance(_run(folder, journal=content))
    half = json.loads(json.dumps(fold({}, events[:middle]), allow_nan=False))
    later = [event for event, _ in journal.read(path, offsets[middle])]
    assert fold(half, later) == state


def _names(text: str, folder: Path) -> None:
    parsed = run_names.parse_run_name(text)
    if parsed is not None:
        assert "/" not in text and str(parsed) and text.isascii() and text.isprintable()
    step = step_of_name(text, "hrm_arc_step_{step}.pt")
    assert step is None or checkpoint_name("hrm_arc_step_{step}.pt", step)
    RunTable(folder).get(text)
    with contextlib.suppress(OSError, ValueError):  # it can't be a file's name
        (folder / text).touch()
    assert select([CheckpointFolder(folder)]).chosen is None
    with contextlib.suppress(KitError):
        run_names.check_name(text)
        assert parsed is None or "/" not in text
    for name in ("step", "checkpoint"):
        with contextlib.suppress(KitError):
            request.parse([f"--{name}={text}"]).request()
    run_names.check_experiment(text)


def _log(content: bytes, folder: Path) -> None:
    cleaner, patterns = LineCleaner(), log_patterns.compiled(SHIPPED.document.data["trainer"]["log_patterns"])
    shown = b"".join(cleaner.feed(content[at : at + 1000]) for at in range(0, len(content), 1000)) + cleaner.flush()
    assert all(letter in "\t\n" or letter.isprintable() or letter >= "\xa0" for letter in shown.decode())
    for found in log_patterns.found_steps(shown, patterns | log_patterns.compiled({"step": "([0-9.,e+-]+)"})):
        assert type(found["step"]) is int
    for name in ("auto", *FORMATS):
        reader = LogReader(name, {}, _ESCAPES)
        told = reader.feed(content) + reader.show(content[-200:] + b"\n") + reader.rest(is_last=True)
        assert all(type(fields["step"]) is int for _, fields in told if fields.get("step") is not None)
    run_dir = _run(folder, output_log=content)
    observe.log_ooms(open_run(run_dir), 1e9)


def _metrics(content: bytes, folder: Path) -> None:
    """A metrics file of each kind, read to its end."""
    run = open_run(_run(folder))
    for name in ("metrics.jsonl", "metrics.csv", "metrics.json"):
        run.config = {"trainer": {"metrics_file": name}}
        (run.paths.run_dir / name).write_bytes(content)
        follower = MetricsFollower(run)
        while (batch := follower.read()).rows or batch.has_more:
            assert all(type(row["step"]) is int for row in batch.rows)
            json.dumps(batch.account)


def _plan(content: bytes, folder: Path) -> None:
    """The trainer's reader of resume_plan.json, and the sidecar's."""
    run_dir = _run(folder, resume_plan=content)
    _acceptance(run_dir)
    os.environ[decisions.VARIABLE] = str(run_dir / "resume_plan.json")
    try:
        decisions.read_plan()
    finally:
        del os.environ[decisions.VARIABLE]


def _manifest(content: bytes, folder: Path) -> None:
    path = folder / "hrm_arc_step_400.pt"
    path.write_bytes(b"PK\x03\x04")
    manifest.manifest_path(path).write_bytes(content)
    found = select([CheckpointFolder(folder, RUN_ID)])
    assert found.chosen is None
    assert all(one.reason for one in found.candidates)
    with contextlib.suppress(UnreadableFile):
        assert_valid("manifest", json.loads(manifest.encode(manifest.read(path))))


def _heartbeat(content: bytes, folder: Path) -> None:
    """heartbeat.json, that a trainer of its own writes, goes into journal and status."""
    run = open_run(_run(folder, heartbeat_json=content, journal=b""))
    with contextlib.redirect_stdout(io.StringIO()):
        sidecar = Sidecar(run, has_echo=False)
        sidecar._fold_heartbeat_file()
        sidecar._fold_journal()
    assert is_sound(sidecar._state)
    for event, _ in journal.read(run.paths.journal):
        assert event["run_id"] == RUN_ID and event["event"] == "heartbeat"
    assert_valid("status", status.current(run))


_FILES = ("run_json", "resolved_json", "sidecar_state", "exit_json", "resume_plan", "journal", "quarantine", "status")

TARGETS = {
    target.name: target
    for target in (
        Target("config", values.config_texts(ROOT / "config.yaml"), _config_file),
        Target("set", st.lists(values.settings_of(_KEYS, _WHOLE), min_size=1, max_size=3), _settings),
        Target("run folder", values.run_files(_FILES), _run_folder),
        Target("journal", values.journals(), _journal),
        Target("names", values.names(), _names),
        Target("log", values.logs(), _log),
        Target("metrics", values.metrics(), _metrics),
        Target("plan", values.json_texts(values.PLAN), _plan),
        Target("manifest", values.json_texts(values.MANIFEST), _manifest),
        Target("heartbeat", values.json_texts(values.HEARTBEAT), _heartbeat),
        Target("safetensors", foreign.safetensors_files(), foreign.read_safetensors),
        Target("dcp metadata", foreign.metadata_files(), foreign.read_metadata),
        Target("dcp shards", foreign.shard_folders(), foreign.read_shards),
        Target("hf state", foreign.states(), foreign.read_state),
        Target("weights index", foreign.indexes(), foreign.read_index),
    )
}
