"""A file of numbers beside the log: resumekit.process.metrics_file, resumekit.run.metrics_rows."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resumekit.base.paths import RunPaths
from resumekit.process import metrics_file
from resumekit.process.metrics_file import MetricsFollower, MetricsReader, newest
from resumekit.process.sidecar import Sidecar
from resumekit.run.metrics_rows import MetricsRows
from resumekit.run.run_folder import Run
from support.places import ROOT

LOGS = ROOT / "tests" / "recorded" / "logs"


def run_of(folder: Path, pattern: str = "metrics.jsonl") -> Run:
    run = Run(RunPaths(folder), {"run_id": folder.name})
    run.config = {"trainer": {"metrics_file": pattern}}
    return run


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def rows_of(follower: MetricsFollower) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while (batch := follower.read()).rows or batch.has_more:
        rows += batch.rows
    return rows


def test_the_table_of_lightning_is_read_row_by_row_most_cells_empty(tmp_path: Path) -> None:
    whole = (LOGS / "lightning_metrics.csv").read_bytes()
    path = tmp_path / "lightning_logs" / "version_0" / "metrics.csv"
    path.parent.mkdir(parents=True)
    follower, rows = MetricsFollower(run_of(tmp_path, "lightning_logs/version_{*}/metrics.csv")), []
    for at in range(0, len(whole) + 40, 40):  # rows come in parts
        path.write_bytes(whole[:at])
        rows += rows_of(follower)
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    # The row of step 3 is written behind the fourth.
    assert losses == {4: 11.239982604980469, 8: 9.947807312011719, 12: 4.2418532371521, 16: 10.011838912963867,
                      20: 9.37391185760498, 24: 4.1929450035095215}  # fmt: skip
    assert [row["lr"] for row in rows if "lr" in row] == [0.01, 0.01, 0.001, 0.001, 0.001, 0.0001, 0.0001][
        : len(losses)
    ]
    assert [(row["step"], row["metrics"]) for row in rows if row.get("event") == "eval"] == [
        (12, {"val_loss": 10.318459510803223}), (24, {"val_loss": 10.200493812561035}),
    ]  # fmt: skip


def test_the_history_of_a_trainers_state_is_read_and_only_what_is_new_of_the_next(tmp_path: Path) -> None:
    document = json.loads((LOGS / "trainer_state.json").read_text())
    document |= {"best_global_step": 20, "best_metric": 2.5}
    follower, told = MetricsFollower(run_of(tmp_path, "{checkpoints_dir}/checkpoint-{*}/trainer_state.json")), []
    for step in (15, 30):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        history = [one for one in document["log_history"] if one["step"] <= step]
        (folder / "trainer_state.json").write_text(json.dumps({**document, "log_history": history}))
        os.utime(folder / "trainer_state.json", (step, step))
        told.append(rows_of(follower))
    assert [row["step"] for row in told[0] if "loss" in row] == [5, 10, 15]
    assert [row["step"] for row in told[1] if "loss" in row] == [20, 25, 30]
    assert told[0][0]["max_steps"] == 30 and not any("max_steps" in row for row in told[1])
    assert [row for row in told[0] + told[1] if row.get("event") == "best"] == [
        {"event": "best", "step": 20, "score": 2.5}
    ]
    assert [row["step"] for row in told[0] + told[1] if row.get("event") == "eval"] == [10, 20, 30]


def test_a_nan_in_a_history_is_one_and_the_mean_of_the_whole_run_is_no_loss(tmp_path: Path) -> None:
    history = '{"step": 5, "loss": NaN}, {"step": 6, "train_runtime": 3.0, "train_loss": 9.0}'
    (tmp_path / "trainer_state.json").write_text('{"log_history": [' + history + "]}")
    (row,) = rows_of(MetricsFollower(run_of(tmp_path, "trainer_state.json")))
    assert row["step"] == 5 and math.isnan(row["loss"])


@pytest.mark.parametrize(
    ("record", "row"),
    [
        ({"step": 3, "loss": 2.0, "lr": 0.1, "epoch": 1.5}, {"step": 3, "loss": 2.0, "lr": 0.1, "epoch": 1}),
        ({"global_step": 3, "train/loss": 2.0, "train/learning_rate": 0.1}, {"step": 3, "loss": 2.0, "lr": 0.1}),
        ({"_step": 3, "train": {"loss": "nan"}}, {"step": 3, "loss": math.nan}),
        ({"iter": 3, "loss_metrics/global_avg_loss": 2.0}, {"step": 3, "loss": 2.0}),
        ({"step": 3, "reward": 0.5}, {"step": 3}),
        ({"step": 3, "val/loss": 2.5, "val/runtime": 3}, {"event": "eval", "step": 3, "metrics": {"val_loss": 2.5}}),
        ({"step": 3, "eval_loss": 2.5, "epoch": 1}, {"event": "eval", "step": 3, "metrics": {"eval_loss": 2.5}}),
        ({"step": 3, "lr_scale": 0.5, "loss": True}, {"step": 3}),
        ({"loss": 2.0}, None), ({"step": 1.5, "loss": 2.0}, None), ({"step": -1}, None), ({"step": 10**15}, None),
        (["step"], None),
    ],
)  # fmt: skip
def test_numbers_are_known_by_the_names_that_loggers_give_them(record: Any, row: dict[str, Any] | None) -> None:
    found = list(MetricsRows().new([record]))
    assert found == ([] if row is None else [pytest.approx(row, nan_ok=True) if "event" not in row else row])


def test_lines_are_told_once_whatever_becomes_of_their_file(tmp_path: Path) -> None:
    path, follower = tmp_path / "metrics.jsonl", MetricsFollower(run_of(tmp_path))
    assert rows_of(follower) == []
    path.write_text(lines({"step": 1, "loss": 3.0}) + '{"step": 2, "lo')
    assert [row["step"] for row in rows_of(follower)] == [1]
    with open(path, "a") as file:
        file.write('ss": 2.0}\nno JSON\n[[[[\n' + lines({"step": 3}))
    assert [row["step"] for row in rows_of(follower)] == [2, 3]
    path.write_text(lines(*({"step": step, "loss": 1.0} for step in range(5))))  # written anew, with a row more
    assert [row["step"] for row in rows_of(follower)] == [3, 4], "of step 3 the loss is new"
    path.rename(tmp_path / "metrics.jsonl.1")
    follower._source._looked_s = float("-inf")
    path.write_text(lines({"step": 5}))
    assert [row["step"] for row in rows_of(follower)] == [5]
    path.write_text("")
    assert rows_of(follower) == []
    path.write_text(lines({"step": 6}))
    assert [row["step"] for row in rows_of(follower)] == [6]


def test_a_successor_goes_on_behind_what_is_told(tmp_path: Path) -> None:
    path, run = tmp_path / "metrics.csv", run_of(tmp_path, "metrics.csv")
    path.write_text("step,loss\n1,3.0\n2,2.0\n3,1")
    first = MetricsFollower(run)
    account = json.loads(json.dumps(first.read().account))
    with open(path, "a") as file:
        file.write(".5\n")
    second = MetricsFollower(run, account)
    assert [(row["step"], row["loss"]) for row in rows_of(second)] == [(3, 1.5)]
    for other in (None, [], {"rows": 3, "offset": "x", "columns": "ab", "file": [1], "path": os.fspath(path)}):
        assert [row["step"] for row in rows_of(MetricsFollower(run, other))] == [1, 2, 3]


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "device", "another user's"])
def test_only_a_regular_file_of_the_callers_is_read(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "metrics.jsonl", tmp_path / "real"
    real.write_text(lines({"step": 1}))
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "another user's":
        path.write_text(lines({"step": 1}))
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    else:
        path.symlink_to(real if kind == "link" else "/dev/zero")
    for name in ("metrics.jsonl", "metrics.js{*}"):
        assert MetricsFollower(run_of(tmp_path, name)).read().rows == []
    as_document = tmp_path / "state.json"
    path.rename(as_document) if kind != "link" else as_document.symlink_to(real)
    assert MetricsFollower(run_of(tmp_path, "state.json")).read().rows == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.csv", "metrics.json"])
@pytest.mark.parametrize(
    "data",
    [
        b"[" * 200_000, b"x" * 3_000_000, b'{"a":' * 100_000, b"\xff\x00" * 50_000, b'"\n' * 50_000,
        b"step,loss\n" + b"1," * 90_000, b"," * 70_000 + b"\n1", b'{"step": 1' + b"0" * 5000 + b"}\n",
        b'{"step": 1e400}\n', b'{"log_history": {"step": 1}, "max_steps": []}',
    ],
)  # fmt: skip
def test_a_file_that_is_none_of_these_tells_nothing(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert rows_of(MetricsFollower(run_of(tmp_path, name))) == []


def test_a_line_that_is_too_long_is_passed_over_and_the_next_is_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "x": "' + "y" * 3_000_000 + '"}\n' + lines({"step": 2}))
    assert [row["step"] for row in rows_of(MetricsFollower(run_of(tmp_path)))] == [2]


def test_a_document_that_is_too_large_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state.json").write_text('{"log_history": [{"step": 1, "loss": 2}]}')
    monkeypatch.setattr(metrics_file, "MAX_DOCUMENT_BYTES", 20)
    assert MetricsFollower(run_of(tmp_path, "state.json")).read().rows == []


def test_of_several_files_the_one_that_was_written_last_is_meant(tmp_path: Path) -> None:
    for at, name in enumerate(["a-1/m.csv", "a-10/m.csv", "a-9/m.csv", "b-9/m.csv"]):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (at, at))
    assert newest(tmp_path / "a-{*}" / "m.csv") == tmp_path / "a-9" / "m.csv"
    assert newest(tmp_path / "c-{*}" / "m.csv") is None and newest(tmp_path / "a-1" / "m{*}x.csv") is None


def test_the_reader_in_the_background_hands_over_all_to_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_file, "READ_BYTES", 64)
    (tmp_path / "metrics.jsonl").write_text(lines(*({"step": step, "loss": 1.0} for step in range(100))))
    reader = MetricsReader(MetricsFollower(run_of(tmp_path)))
    batches = [*reader.taken(), *reader.rest()]
    assert [row["step"] for batch in batches for row in batch.rows] == list(range(100))
    assert batches[-1].account["rows"]["step"] == 99
    reader.join()


def test_the_sidecar_journals_the_file_to_its_end_and_keeps_account_of_it(tmp_path: Path) -> None:
    run = run_of(tmp_path, "metrics.csv")
    run.paths.logs.mkdir()
    run.paths.output_log.write_bytes(b"nothing that tells a step\n")
    run.paths.journal.write_text('\n{"event":"launched","mono_s":1.0}\n')
    (tmp_path / "metrics.csv").write_bytes((LOGS / "lightning_metrics.csv").read_bytes())
    one = Sidecar(run, has_echo=False)
    one._fold_journal()
    one._read_last_lines()
    one._save(1.0)
    state, account = one._state, json.loads(run.paths.sidecar_state.read_text())
    assert (state["step"], state["loss"], state["lr"]) == (23, 4.1929450035095215, 0.0001)
    assert (state["best_step"], state["last_full_eval_step"], state["best_metric"]) == (23, 23, "val_loss")
    assert "bad" not in state["symptoms"] and account["metrics"]["rows"]["step"] == 23
    successor = Sidecar(run, has_echo=False)
    successor._fold_journal()
    before = run.paths.journal.read_bytes()
    successor._read_last_lines()
    assert run.paths.journal.read_bytes() == before, "nothing is told twice"


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.lists(st.integers(), max_size=2)
)
NAMES = st.one_of(
    st.sampled_from(["step", "loss", "lr", "epoch", "eval_loss", "train/loss", "_step"]), st.text(max_size=6)
)


@given(
    st.lists(
        st.dictionaries(NAMES, st.one_of(VALUES, st.dictionaries(NAMES, VALUES, max_size=3)), max_size=6), max_size=6
    )
)
def test_whatever_is_recorded_is_read_without_harm(records: list[dict[str, Any]]) -> None:
    rows = MetricsRows()
    found = [
        *rows.new(records),
        *rows.of_document({"log_history": records, "best_metric": records, "best_global_step": 1}),
    ]
    assert all(type(row["step"]) is int and 0 <= row["step"] < 10**15 for row in found)
    json.dumps(rows.account)
