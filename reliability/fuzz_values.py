"""What readers are fed: whole documents with one thing wrong in them, texts near the edge of a grammar, plain bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from support import schema_examples

MANIFEST = schema_examples.case("manifest")
_RECORD = schema_examples.case("run")
_RESOLVED = schema_examples.case("config", "valid-resolved")
_STATUS = schema_examples.case("status")
HEARTBEAT = {"run_id": None, "global_step": 12, "steps_per_sec": 3.5, "lr": 1e-4, "best_eval_acc": 0.5, "eta_s": 60.0}
PLAN = {
    "version": 1, "step": 400, "new_params": "module", "phase": "cosine", "lr_scale": {"factor": 0.8, "ramp": None},
    "checkpoint": {"path": "../EXP-01_x/checkpoints/hrm_arc_step_400.pt", "run_id": "EXP-01_baseline_20261122-1735"},
    "components": {"weights": {"action": "load", "why": ""}, "optimizer": {"action": "load"}, "rng": {"action": "load"},
                   "data_position": {"action": "load"}, "counters": {"action": "load"}},
    "changes": [{"key": "training.seed", "from": 1, "to": 2, "origin": "config"}],
    "learning_rates": [{"key": "optimizer.lr", "base": 1e-4, "before": [1e-4], "after": [1e-4, 9e-5]}],
}  # fmt: skip
EVENTS = [
    schema_examples.case("event", name) for name in filter(schema_examples.is_valid, schema_examples.names("event"))
]
EVENTS += [
    {"event": "resumed", "step": 400, "mono_s": 1.0, "lr_scale": 0.8},
    {"event": "phase", "phase": "full_eval", "mono_s": 2.0},
    {"event": "eval", "kind": "fast", "weights": "raw", "accuracy": 0.5, "step": 400, "mono_s": 3.0},
    {"event": "checkpoint", "step": 400, "size": 1000, "finite": True, "mono_s": 4.0},
    {"event": "check", "name": "throughput", "verdict": "passed", "expected": 1.0, "found": 1.0, "mono_s": 5.0},
    {"event": "warning", "kind": "clock_gap", "message": "slept", "mono_s": 6.0},
    {"event": "oom", "mono_s": 7.0, "step": 3},
    {"event": "eval_crashed", "kind": "full", "message": "x", "mono_s": 8.0},
    {"event": "nonfinite", "what": "loss", "step": 5, "mono_s": 9.0},
    {"event": "best", "step": 5, "score": 0.5, "mono_s": 9.5},
    {"event": "swap", "step": 5, "optimizer": "lion", "mono_s": 9.6},
    {"event": "abort", "cause": "nonfinite", "evidence": "loss nan", "mono_s": 10.0},
]
_SAVED = {
    "run_id": "EXP-01_baseline_20261122-1735", "journal_offset": 0, "journal_tail": "",
    "state": {"events": 3, "phase": "train"},
}  # fmt: skip


def _line(value: Any) -> bytes:
    return json.dumps(value).encode()


WHOLE_RUN = {
    "run_json": _line({**_RECORD, "run_id": "EXP-01_baseline_20261122-1735"}),
    "resolved_json": _line(_RESOLVED),
    "sidecar_state": _line(_SAVED),
    "exit_json": _line({"code": 137, "signal": 9, "elapsed_s": 3.5, "pid": 7, "at": "2026-11-22T17:35:51.123456Z"}),
    "resume_plan": _line(PLAN),
    "journal": b"".join(b"\n" + _line(event) + b"\n" for event in EVENTS),
    "quarantine": _line([{"file": "hrm_arc_step_5.pt", "is": [1, 2, 3], "reason": "x", "at": "y"}]),
    "status": _line(_STATUS),
}

CANARY = "a[$(touch pwned)]"
# Spelt out, since json.dumps would not write them all.
ODD_TOKENS = [
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 400, "1" * 5000, "0.1" + "0" * 400, "-0", "1e-400",
    "tru", '"\\ud800"', '"\\u0000"', '"' + "x" * 5000 + '"', "[" * 100_000, "[" * 400 + "]" * 400,
    "[" * 900 + "]" * 900, '{"a":' * 500 + "1" + "}" * 500, '{"a":1,"a":[]}', '"\\u001b[31m"', "[]", "{}", '""',
    "null", "true", f'"{CANARY}"', '"../../x"', '"/etc/passwd"', "9007199254740993", "1e308", "-1", "0.5", '"12"',
    '"nan"', '"2026-11-22T17:35:51.123456Z"', "[[1,[2]]]", '[{"a":5}]', "5",
]  # fmt: skip
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
_ANY = st.recursive(
    _SCALARS,
    lambda one: st.lists(one, max_size=4) | st.dictionaries(st.text(max_size=8), one, max_size=4),
    max_leaves=6,
)
_TOKENS = st.sampled_from(ODD_TOKENS) | _ANY.map(json.dumps)
_MARK = "\x01replaced\x01"


def json_texts(whole: Any) -> st.SearchStrategy[bytes]:
    """JSON files: mostly a whole one with one to three of its values replaced, else any value, else any bytes."""
    return st.one_of(_mutated(whole), _mutated(whole), _mutated(whole), _ANY.map(_line), st.binary(max_size=200))


@st.composite
def _mutated(draw: st.DrawFn, whole: Any) -> bytes:
    document = copy.deepcopy(whole)
    tokens = []
    for _ in range(draw(st.integers(1, 3))):
        tokens.append(draw(_TOKENS))
        document = _replaced(draw, document)
    text = json.dumps(document)
    for token in tokens:
        text = text.replace(json.dumps(_MARK), token, 1)
    data = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        data = data[: draw(st.integers(0, len(data)))]
    return data


def _replaced(draw: st.DrawFn, document: Any) -> Any:
    """Return the document with one value, anywhere in it, replaced by the mark; sometimes a key is added or taken."""
    if not isinstance(document, (dict, list)) or not document or draw(st.integers(0, 7)) == 0:
        return _MARK
    if isinstance(document, dict):
        how = draw(st.integers(0, 12))
        key = draw(st.sampled_from(sorted(document)))
        if how == 0:
            return {name: value for name, value in document.items() if name != key}
        if how == 1:
            return {**document, draw(st.text(max_size=8)): _MARK}
        return {**document, key: _replaced(draw, document[key])}
    at = draw(st.integers(0, len(document) - 1))
    return [*document[:at], _replaced(draw, document[at]), *document[at + 1 :]]


def run_files(names: Sequence[str]) -> st.SearchStrategy[dict[str, bytes]]:
    """Some of a run folder's files, by their names in RunPaths, each with something wrong in it."""
    wholes = {name: json.loads(content) for name, content in WHOLE_RUN.items() if name != "journal"}
    each = {name: json_texts(wholes[name]) if name in wholes else journals() for name in names}
    one = st.sampled_from(sorted(names)).flatmap(lambda name: st.tuples(st.just(name), each[name]))
    return st.lists(one, min_size=1, max_size=3).map(dict)


@st.composite
def journals(draw: st.DrawFn) -> bytes:
    """Journals: whole events, events with something wrong, torn lines and bytes between them."""
    parts = []
    for _ in range(draw(st.integers(0, 12))):
        event = draw(st.sampled_from(EVENTS))
        kind = draw(st.integers(0, 9))
        line = _line(event) if kind < 3 else draw(_mutated(event)) if kind < 9 else draw(st.binary(max_size=60))
        parts.append(b"\n" + line + (b"\n" if draw(st.integers(0, 9)) else b""))
    return b"".join(parts)


def config_texts(shipped: Path) -> st.SearchStrategy[bytes]:
    """Configs: the shipped one with lines changed, small ones with one wrong value, any text."""
    lines = shipped.read_text().splitlines()
    base = {"trainer": {"command": ["python", "train.py"]}}
    sections = {
        **base, "training": {"seed": 1, "max_steps": 10}, "optimizer": {"lr": 1e-4, "betas": [0.9, 0.95]},
        "experiments": {"EXP-01": {"name": "x", "notes": "y", "training": {"seed": 2}}},
        "trainer": {**base["trainer"], "log_patterns": {"step": "s ([0-9]+)"}, "env": ["A"]},
        "checkpoint": {"pattern": "m_{step}.pt"}, "abort": {"oom_set": ["training.batch_size=1"]}, "x-own": {"a": 1},
        "paths": {"root": ".", "logs": "logs"}, "schedule": {"name": "cosine"}, "resume": {"weights": "auto"},
    }  # fmt: skip
    return st.one_of(_with_slips(lines), _mutated(sections), _mutated(sections), st.text(max_size=300).map(_utf8))


@st.composite
def _with_slips(draw: st.DrawFn, lines: list[str]) -> bytes:
    changed = list(lines)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(changed) - 1))
        how = draw(st.integers(0, 4))
        indent = len(changed[at]) - len(changed[at].lstrip())
        if how == 0:
            changed[at] = (
                changed[at].partition(":")[0] + ": " + draw(st.sampled_from(ODD_TOKENS) | st.text(max_size=20))
            )
        elif how == 1:
            changed.insert(at, " " * indent + draw(st.text(max_size=20)) + ": " + draw(st.text(max_size=8)))
        elif how == 2:
            del changed[at]
        elif how == 3:
            changed[at] = " " * draw(st.integers(0, 6)) + changed[at].lstrip()
        else:
            changed.insert(at, changed[draw(st.integers(0, len(changed) - 1))])
    return _utf8("\n".join(changed))


def settings_of(keys: Sequence[str], whole: Sequence[str]) -> st.SearchStrategy[str]:
    """`--set` words: whole ones, and a key, known or not, with any value."""
    value = st.sampled_from([*ODD_TOKENS, "1", "0.5", "[]", "yes", "[1, 2]", "{a: 1}", "&a [*a]", "!!python/name:os"])
    return st.sampled_from(whole) | st.builds(
        "{}{}{}".format, st.sampled_from(keys) | st.text(max_size=12), st.sampled_from(["=", "=", "=", "", "=="]),
        value | st.text(max_size=30),
    )  # fmt: skip


def names() -> st.SearchStrategy[str]:
    """Names of runs, experiments and checkpoints, near their forms and far from them."""
    piece = st.sampled_from(
        ["EXP-01", "EXP", "_", "resume@", "@", "40", "20261122-1735", "-2", "hrm_arc_step_", ".pt", ".tmp", "..", "/",
         "\n", "\u0663", "9" * 20, "x" * 250, "-", "\0", "\x1b[31m", "$(touch pwned)", ".json", "e5",
         "_baseline", "a_" * 60]
    )  # fmt: skip
    return st.lists(piece | st.text(max_size=6), max_size=8).map("".join)


def logs() -> st.SearchStrategy[bytes]:
    """What a trainer prints: lines of steps, bars, escape sequences, bytes."""
    piece = st.sampled_from(
        [b"{'loss': '0.5', 'learning_rate': '1e-4', 'epoch': '0.1'}\n", b"\r 3%|# | 3/9 [", b"[rank1]:",
         b"iter 3: loss nan, time 1ms, mfu 1%\n", b"Epoch 0: 3%|# | 3/9 [00:01, v_num=0, train_loss=nan.0]\r",
         b" iteration 3/ 9 | consumed samples: 1 | lm loss: 1E+0 |\n", b"validate step:  3  loss:  1  memory: 1(1)",
         b"step 3 loss 0.5 lr 1e-4\n", b"step ", b"12", b"9" * 30, b"\r", b"\n", b"\r\n", b"\x1b[31m", b"\x1b]0;",
         b"\x07", b"\x00", b"\xff\xfe", b"nan", b"loss ", b"1e999", b",", b".", b"CUDA out of memory\n", b"x" * 5000,
         b" " * 5000, b"step 4 loss nan\n", b"\xc3", "\u2028\u202e".encode(), b"\x9b31m", CANARY.encode()]
    )  # fmt: skip
    return st.lists(piece | st.binary(max_size=20), max_size=30).map(b"".join)


def metrics() -> st.SearchStrategy[bytes]:
    """A file of numbers: lines of JSON, rows of a table, a history, and parts of them."""
    piece = st.sampled_from(
        [b'{"step": 3, "loss": 0.5}\n', b'{"step": 4, "train": {"loss": NaN}, "eval_loss": 2}\n', b"5,,0.5\n",
         b"step,loss,val_loss\n", b"6,nan,\n", b'{"log_history": [{"step": 3, "loss": 0.5}], "max_steps": 9}', b"[",
         b'{"log_history": ', b"]", b"{", b"}", b'"', b",", b"\n", b"\r\n", b"1e999", b"9" * 5000, b"-1", b"null",
         b"x" * 70_000, b"\xff", b"[" * 5000, b'"best_metric": 1, "best_global_step": 2,']
    )  # fmt: skip
    return st.lists(piece | st.binary(max_size=20), max_size=30).map(b"".join)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
