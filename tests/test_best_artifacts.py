"""Snapshots of the best: artifacts/best@<N>/, made by the sidecar, its weights by a process of their own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from resumekit.base.files import temp_path
from resumekit.base.paths import RunPaths
from resumekit.checkpoint import manifest
from resumekit.process import artifact_folder, best_artifacts, extraction
from resumekit.run import log_patterns
from resumekit.run.run_folder import Run
from resumekit.trainer import saving
from support import schema_examples
from support.commands import Kit, sidecar_of
from support.fork_server import ForkServer
from support.processes import wait_until
from support.runs import events
from support.schemas import assert_valid

NAMES = {"weights.pt", "config.yaml", "config.json", "status.json", "lineage.json", "log.txt"}
STATUS = {"best_eval_acc": 0.5, "best_step": 3, "global_step": 3}
torch.set_num_threads(1)


def make_run(folder: Path, name: str = "T-1_toy_20261122-1735", **record: Any) -> Run:
    """Make a run folder as the launcher would, with 150 lines of log."""
    own = folder / "runs" / name
    (own / "checkpoints").mkdir(parents=True)
    (own / "logs").mkdir()
    config = {"checkpoint": {"keep_best_artifacts": 1}, "validation": {"best_metric": "loss"}}
    (own / "resolved_config.json").write_text(json.dumps(config))
    (own / "resolved_config.yaml").write_text("checkpoint: {keep_best_artifacts: 1}\n")
    (own / "logs" / "train.log").write_text("".join(f"9a537e838eda line {n}\n" for n in range(150)))
    written = {"run_id": name, "experiment": "T-1", "config_hash": "ab" * 32, **record}
    (own / "run.json").write_text(json.dumps(written))
    return Run(RunPaths(own), written)


def save(run: Run, step: int, weights: str = "raw", **more: Any) -> torch.nn.Module:
    """Save a new best with the kit, as a trainer does, and the line that it prints."""
    torch.manual_seed(step)
    model = torch.nn.Linear(3, 2)
    average = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(3, 2))
    best = {"score": step / 10, "weights": weights}
    saving.save_checkpoint(run.paths.checkpoints, step, model=model, ema=average, best=best, log_fn=str, **more)
    with open(run.paths.train_log, "a") as log:
        log.write(f"9a537e838eda [checkpoint] step={step} saved as x\n")
    return {"raw": model, "ema": average.module}[weights]


def made(run: Run, *, wait_s: float = 180.0) -> best_artifacts.BestArtifacts:
    """Let a sidecar's part look until it has nothing to do any more."""
    looker = best_artifacts.BestArtifacts(run, lambda: STATUS)
    looker.look()
    looker._seen = (looker._seen[0], time.monotonic() - 60)  # at rest for a minute
    looker.look()
    wait_until(lambda: looker.look() or looker._job is None, "the snapshot is made", wait_s)
    return looker


def lineage(run: Run, step: int) -> dict[str, Any]:
    return json.loads((run.paths.artifacts / f"best@{step}" / "lineage.json").read_text())


def names(run: Run) -> list[str]:
    return sorted(os.listdir(run.paths.artifacts)) if run.paths.artifacts.exists() else []


@pytest.mark.parametrize("name", schema_examples.names("artifact"))
def test_the_examples_beside_the_schema_are_judged_as_their_names_say(name: str) -> None:
    value = schema_examples.case("artifact", name)
    if schema_examples.is_valid(name):
        assert_valid("artifact", value)
    else:
        with pytest.raises(AssertionError):
            assert_valid("artifact", value)


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_a_new_best_has_its_winning_weights_alone_and_says_where_they_come_from(tmp_path: Path, weights: str) -> None:
    root = make_run(tmp_path, "T-1_toy_20261122-1200")
    middle = make_run(tmp_path, "T-1_toy_resume@1_20261122-1300", parent_run_id=root.run_id, parent_step=1)
    run = make_run(tmp_path, "T-1_toy_resume@2_20261122-1400", parent_run_id=middle.run_id, parent_step=2)
    winner = save(run, 3, weights)
    made(run)
    folder = run.paths.artifacts / "best@3"
    assert set(os.listdir(folder)) == NAMES and names(run) == ["best@3"]
    loaded = torch.load(folder / "weights.pt", weights_only=True)
    assert loaded.keys() == winner.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in winner.state_dict().items())
    found = lineage(run, 3)
    assert_valid("artifact", found)
    best = run.paths.checkpoints / "hrm_arc_best.pt"
    assert found["source"]["sha256"] == manifest.read(best).sha256
    assert found["weights_file"]["sha256"] == hashlib.sha256((folder / "weights.pt").read_bytes()).hexdigest()
    assert (found["weights"], found["score"], found["weights_file"]["from_raw"]) == (weights, 0.3, [])
    assert found["metric"] == "loss"
    assert found["parents"] == [{"run_id": middle.run_id, "step": 2}, {"run_id": root.run_id, "step": 1}]
    assert found["parents_complete"] and not root.paths.artifacts.exists()
    assert json.loads((folder / "status.json").read_text()) == STATUS
    assert (folder / "config.json").read_bytes() == run.paths.resolved_json.read_bytes()
    assert events(run.paths.run_dir, "warning") == []


def test_the_log_is_100_lines_before_and_as_many_behind_once_they_are_there(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    save(run, 3)
    looker = made(run)
    log = run.paths.artifacts / "best@3" / "log.txt"
    before = [f"9a537e838eda line {n}" for n in range(51, 150)] + ["9a537e838eda [checkpoint] step=3 saved as x"]
    assert log.read_text().splitlines() == before
    with open(run.paths.train_log, "a") as file:
        file.write("".join(f"9a537e838eda later {n}\n" for n in range(30)) + "9a537e838eda half a li")
    looker.look()
    assert log.read_text().splitlines()[100:] == [f"9a537e838eda later {n}" for n in range(30)]
    with open(run.paths.train_log, "a") as file:
        file.write("ne\n" + "".join(f"9a537e838eda later {n}\n" for n in range(31, 300)))
    successor = best_artifacts.BestArtifacts(run, lambda: STATUS)
    successor.finish()  # another sidecar goes on with it, and makes nothing again
    lines = log.read_text().splitlines()
    assert len(lines) == 200 and lines[-2:] == ["9a537e838eda later 98", "9a537e838eda later 99"]


def fast_log(run: Run, step: int, lines: int) -> None:
    """Go on in the log, a line a step, as a trainer does while its checkpoint comes to rest."""
    with open(run.paths.train_log, "a") as file:
        file.write("".join(f"9a537e838eda step {n} loss 0.5\n" for n in range(step, step + lines)))


def with_patterns(run: Run) -> Run:
    config = json.loads(run.paths.resolved_json.read_text())
    config["trainer"] = {"log_patterns": {"step": "^step ([0-9]+)"}}
    run.paths.resolved_json.write_text(json.dumps(config))
    return Run(run.paths, run.record)


@pytest.mark.parametrize("saved_by", ["the kit", "the trainer"])
def test_the_best_step_is_in_the_log_however_fast_that_goes_on(tmp_path: Path, saved_by: str) -> None:
    run = with_patterns(make_run(tmp_path))
    fast_log(run, 1, 500)
    save(run, 500)
    if saved_by == "the trainer":  # which says nothing of it, or in its own words
        text = run.paths.train_log.read_text()
        run.paths.train_log.write_text("".join(line for line in text.splitlines(True) if "[checkpoint]" not in line))
    fast_log(run, 501, 80_000)  # some megabytes
    made(run)
    lines = (run.paths.artifacts / "best@500" / "log.txt").read_text().splitlines()
    assert "9a537e838eda step 500 loss 0.5" in lines and "9a537e838eda step 501 loss 0.5" in lines
    assert len(lines) == 200


def test_a_best_whose_line_is_not_in_the_log_yet_is_looked_for_until_it_is(tmp_path: Path) -> None:
    """In a flood the log is read behind the save."""
    run = with_patterns(make_run(tmp_path))
    save(run, 500)
    (log := run.paths.train_log).write_text(log.read_text().replace(" [checkpoint] step=500 saved as x", " nothing"))
    fast_log(run, 1, 300)
    looker = made(run)
    first = lineage(run, 500)["log_offset"]
    fast_log(run, 301, 250)
    looker.look()
    lines = (run.paths.artifacts / "best@500" / "log.txt").read_text().splitlines()
    assert lines[99] == "9a537e838eda step 500 loss 0.5" and lines[-1] == "9a537e838eda step 550 loss 0.5"
    found = lineage(run, 500)
    assert found["log_offset"] > first and log.read_bytes()[: found["log_offset"]].endswith(b" step 500 loss 0.5\n")
    assert_valid("artifact", found)


def test_another_number_that_begins_or_ends_alike_is_not_the_best_step(tmp_path: Path) -> None:
    run = with_patterns(make_run(tmp_path))
    log, patterns = run.paths.train_log, log_patterns.compiled({"step": "step ([0-9,]+)"})
    log.write_text("9a537e838eda step 12,000 x\n9a537e838eda step 112000\n9a537e838eda step 120001 of 12000\n")
    offset = artifact_folder.anchor(log, 12000, patterns)
    assert offset is not None and log.read_text()[:offset] == "9a537e838eda step 12,000 x\n"
    assert artifact_folder.anchor(log, 13000, patterns) is None and artifact_folder.log_end(log) == log.stat().st_size


def test_a_log_that_is_a_link_is_not_copied(tmp_path: Path) -> None:
    """A link that a member of the group has put there leads to a file that the run's owner alone may read."""
    (tmp_path / "private").write_text("secret\n" * 9)
    (tmp_path / "train.log").symlink_to("private")
    assert artifact_folder.anchor(tmp_path / "train.log", 1, {}) is None
    artifact_folder.write_log(tmp_path / "log.txt", tmp_path / "train.log", 20)
    assert not (tmp_path / "log.txt").exists()


def test_a_sidecar_that_comes_later_does_not_make_it_again_and_catches_up_on_the_newest(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    save(run, 3)
    made(run)
    first = lineage(run, 3)["created_at"]
    made(run)
    assert lineage(run, 3)["created_at"] == first
    save(run, 4)
    save(run, 5)
    made(run)
    assert names(run) == ["best@3", "best@5"]


def test_what_a_killed_sidecar_left_half_made_is_swept(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    half = temp_path(run.paths.artifacts / "best@3")
    half.mkdir(parents=True)
    (half / "weights.pt").write_bytes(b"half")
    (run.paths.artifacts / ".best@4.tmp-mine").mkdir()
    save(run, 3)
    made(run)
    assert names(run) == [".best@4.tmp-mine", "best@3"]


def test_the_last_ones_are_kept_and_nothing_that_the_kit_did_not_make_goes(tmp_path: Path) -> None:
    """keep_best_artifacts is 1: the current one and one past one."""
    run = make_run(tmp_path)
    for step in (1, 2, 3):
        save(run, step)
        made(run)
    assert names(run) == ["best@2", "best@3"]
    (run.paths.artifacts / "best@2" / "my notes.txt").write_text("precious")
    (run.paths.artifacts / "best@0").mkdir()
    outside = tmp_path / "outside"
    shutil.copytree(run.paths.artifacts / "best@3", outside)
    (run.paths.artifacts / "best@1").symlink_to(outside)
    for step in (4, 5):
        save(run, step)
        made(run)
    assert names(run) == ["best@0", "best@1", "best@2", "best@4", "best@5"]
    assert set(os.listdir(outside)) == NAMES


def test_a_best_of_a_step_that_has_a_snapshot_of_other_weights_takes_its_place(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    save(run, 3)
    made(run)
    shutil.rmtree(run.paths.checkpoints)
    saving._saved.clear()
    save(run, 3, "ema")
    made(run)
    assert (names(run), lineage(run, 3)["weights"]) == (["best@3"], "ema")


def broken(run: Run) -> None:
    path = run.paths.checkpoints / "hrm_arc_best.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def unreadable_manifest(run: Run) -> None:
    (run.paths.checkpoints / "hrm_arc_best.pt.json").write_text("{}")


def something_else_there(run: Run) -> None:
    (run.paths.artifacts / "best@3").mkdir(parents=True)
    (run.paths.artifacts / "best@3" / "mine").write_text("precious")


def a_link_for_a_folder(run: Run) -> None:
    run.paths.artifacts.symlink_to(run.paths.run_dir.parent)


def a_link_out_of_its_folder(run: Run) -> None:
    """Another user's, to weights that the run's owner alone may read; what is made of them is read by all."""
    best = run.paths.checkpoints / "hrm_arc_best.pt"
    shutil.copy(best, run.paths.run_dir / "private.pt")
    best.unlink()
    best.symlink_to("../private.pt")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(a_link_out_of_its_folder, "a link that leads out of its folder"), (broken, "digest differs"),
     (unreadable_manifest, "is missing"), (something_else_there, "not empty"),
     (a_link_for_a_folder, "Not a directory")],
)  # fmt: skip
def test_what_goes_wrong_is_one_warning_and_leaves_nothing(tmp_path: Path, fault: Any, reason: str) -> None:
    run = make_run(tmp_path)
    save(run, 3)
    fault(run)
    before = names(run)
    looker = made(run)
    looker.look()
    (warning,) = events(run.paths.run_dir, "warning")
    assert warning["kind"] == "no_best_artifact" and reason in warning["message"], warning["message"]
    assert_valid("event", warning)
    assert names(run) == before


def test_a_disk_that_is_nearly_full_is_left_to_the_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    save(run, 3)
    monkeypatch.setattr(best_artifacts, "FREE_CHECKPOINTS", 10**15)
    made(run)
    (warning,) = events(run.paths.run_dir, "warning")
    assert "come first" in warning["message"] and not run.paths.artifacts.exists()


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    save(run, 3)
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import time; time.sleep(600)")
    monkeypatch.setattr(extraction, "EXTRACTOR", sleeper)
    monkeypatch.setattr(best_artifacts, "LIMIT_S", 0.2)
    made(run)
    assert "took longer" in events(run.paths.run_dir, "warning")[0]["message"] and names(run) == []


@pytest.mark.parametrize(
    ("program", "reason"),
    [("import os; os.kill(os.getpid(), 9)", "was killed"), ("raise OSError('no memory')", "OSError: no memory"),
     ("print('{}')", "None")],
)  # fmt: skip
def test_a_process_that_dies_is_one_warning_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    run = make_run(tmp_path)
    save(run, 3)
    (tmp_path / "dies.py").write_text(program)
    monkeypatch.setattr(extraction, "EXTRACTOR", tmp_path / "dies.py")
    made(run)
    (warning,) = events(run.paths.run_dir, "warning")
    assert reason in warning["message"] and names(run) == []


def test_the_process_that_extracts_is_no_part_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the run's token it would be ended with what a dead trainer has left behind, or be taken for the trainer."""
    run = make_run(tmp_path)
    save(run, 3)
    for name in ("TOKEN", "DIR", "PLAN"):
        monkeypatch.setenv(f"RESUMEKIT_RUN_{name}", "of the run")
    says = "import json, os; print(json.dumps({'error': 'has' + ''.join(n for n in os.environ if 'KIT_' in n)}))"
    (tmp_path / "says.py").write_text(says)
    monkeypatch.setattr(extraction, "EXTRACTOR", tmp_path / "says.py")
    made(run)
    (warning,) = events(run.paths.run_dir, "warning")
    assert "has" in warning["message"] and "RESUMEKIT_" not in warning["message"]


def test_a_newer_best_that_comes_meanwhile_is_the_one_that_counts(tmp_path: Path) -> None:
    """The bytes of the older one are held open: neither pruning nor the newer one takes them away."""
    run = make_run(tmp_path)
    save(run, 3)
    looker = best_artifacts.BestArtifacts(run, lambda: STATUS)
    looker._begin(looker._mark())
    save(run, 4)
    wait_until(lambda: looker._go_on(looker._job) if looker._job else True, "the older one is made")
    assert names(run) == ["best@3"] and lineage(run, 3)["step"] == 3
    looker.finish()
    assert names(run) == ["best@3", "best@4"] and events(run.paths.run_dir, "warning") == []


def test_a_foreign_best_file_counts_when_it_is_at_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written by plain torch.save over the last one: without a manifest, and with the names that its trainer likes."""
    run = make_run(tmp_path)
    model = torch.nn.Linear(3, 2)
    best = run.paths.checkpoints / "hrm_arc_best.pt"
    torch.save({"model": model.state_dict(), "global_step": 3}, best)
    looker = best_artifacts.BestArtifacts(run, lambda: STATUS)
    looker.look()
    time.sleep(best_artifacts.SETTLED_S)
    looker.look()
    assert looker._job is None and not run.paths.artifacts.exists()  # not at rest yet
    made(run)
    loaded = torch.load(run.paths.artifacts / "best@3" / "weights.pt", weights_only=True)
    assert torch.equal(loaded["weight"], model.weight)
    assert (lineage(run, 3)["score"], lineage(run, 3)["weights"]) == (0.5, "raw")
    made(run)
    torch.save({"model": model.state_dict(), "global_step": 4}, best)
    made(run)
    assert names(run) == ["best@3", "best@4"] and lineage(run, 4)["score"] is None
    torch.save(model.state_dict(), best)
    made(run)
    assert "does not say its step" in events(run.paths.run_dir, "warning")[-1]["message"]


class Planted:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)

    def __init__(self, path: Path) -> None:
        self.path = path


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    torch.save({"model": {"w": torch.ones(1)}, "global_step": 3, "x": Planted(tmp_path / "pwned")},
               run.paths.checkpoints / "hrm_arc_best.pt")  # fmt: skip
    made(run)
    assert "not plain data" in events(run.paths.run_dir, "warning")[0]["message"]
    assert not (tmp_path / "pwned").exists() and names(run) == []


TRAINER = """
import os, sys, time, torch, resume_helper as kit
out, steps, best_at, go = sys.argv[1], int(sys.argv[2]), set(map(int, sys.argv[3].split(","))), sys.argv[4]
torch.set_num_threads(1)
model = torch.nn.Linear(3, 2)
for step in range(1, steps + 1):
    print(f"step {step} loss 0.5", flush=True)
    kit.journal_event("step", step=step, loss=0.5)
    if step in best_at:
        with torch.no_grad():
            model.weight.fill_(step)
        kit.journal_event("best", step=step, score=step / 10, weights="raw")
        best = {"score": step / 10, "weights": "raw"}
        kit.save_checkpoint(out, step, model=model, data_state={"step": step}, best=best)
    while step == 5 and not os.path.exists(go):
        time.sleep(0.01)
"""


@pytest.fixture
def real(kit: Kit, scripts: ForkServer) -> Path:
    """A trainer with the helpers whose bests are steps 3 and 9; it waits at step 5. Returns what lets it go on."""
    script, go = kit.folder / "train.py", kit.folder / "go"
    script.write_text(TRAINER)
    command = scripts.script(script, "{checkpoints_dir}", "{training.max_steps}", "3,9", "go")
    kit.config(trainer={"command": command, "loads_with_kit": True, "log_patterns": {}}, training={"max_steps": 9})
    return go


def weight(run: Path, step: int) -> float:
    return torch.load(run / "artifacts" / f"best@{step}" / "weights.pt", weights_only=True)["weight"][0, 0].item()


def test_a_real_run_has_a_snapshot_of_each_best(kit: Kit, real: Path, valid_records: None) -> None:
    process = kit.popen("run", "T-1", stdout=subprocess.DEVNULL)
    run = kit.started()
    wait_until((run / "artifacts" / "best@3").exists, "the first snapshot, while it trains", 180)
    assert kit.status(run)["state"] in ("starting", "running") and not list((run / "artifacts").glob(".*"))
    real.touch()
    assert process.wait(timeout=60) == 0
    # On a busy machine the launcher has gone by now, and its sidecar is still at it.
    wait_until((run / "artifacts" / "best@9").exists, "the last snapshot", 180)
    wait_until(lambda: not sidecar_of(kit, run), "the sidecar has done all it has to", 180)
    assert sorted(os.listdir(run / "artifacts")) == ["best@3", "best@9"]
    assert (weight(run, 3), weight(run, 9)) == (3, 9)
    for step in (3, 9):
        folder = run / "artifacts" / f"best@{step}"
        found = json.loads((folder / "lineage.json").read_text())
        assert_valid("artifact", found)
        assert_valid("status", json.loads((folder / "status.json").read_text()))
        log = (folder / "log.txt").read_text()
        assert f"[checkpoint] step={step} saved" in log and log.endswith((run / "logs/train.log").read_text()[-80:])
    assert json.loads((run / "artifacts/best@9/status.json").read_text())["best_step"] == 9
    assert events(run, "warning") == []
    before = {path: path.stat().st_mtime_ns for path in run.rglob("artifacts/**/*")}
    kit.config(trainer=json.loads(kit.config_file.read_text())["trainer"], training={"max_steps": 9})
    kit("resume", "T-1", "--step", "3", "--name", "child", code=None)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("artifacts/**/*")} == before


def test_a_sidecar_that_is_killed_at_a_best_is_made_up_for(kit: Kit, real: Path) -> None:
    process = kit.popen("run", "T-1", stdout=subprocess.DEVNULL)
    run = kit.started()
    wait_until(lambda: list((run / "artifacts").glob(".best@3.tmp-*")), "the first snapshot is under way")
    os.kill(sidecar_of(kit, run), signal.SIGKILL)
    real.touch()
    assert process.wait(timeout=60) == 0
    wait_until((run / "artifacts" / "best@9" / "log.txt").exists, "the newest best", 180)
    wait_until(lambda: not sidecar_of(kit, run), "the sidecar has done all it has to", 180)
    assert not list((run / "artifacts").glob(".*"))
