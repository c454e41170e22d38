"""Loading a checkpoint: only proven bytes, all or nothing, and the next step is what it would have been."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from resumekit.base.errors import InvalidFile, KitError, NoStableCheckpoint
from resumekit.base.paths import RunPaths
from resumekit.checkpoint import one_pass, proof
from resumekit.trainer import loading, proven_content
from resumekit.trainer.loading import ResumeBundle, load_resume_bundle
from resumekit.trainer.saving import save_checkpoint
from support.checkpoint_tools import Payload, pickle_zip, pickled, quiet, save_plain, save_steps, small_model, train
from support.places import LIB
from support.schemas import assert_valid

pytestmark = pytest.mark.usefixtures("in_a_new_process")


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("RESUMEKIT_RUN_DIR", str(folder))
    return folder


def load(path: Path, **more: Any) -> ResumeBundle:
    model, optimizer = small_model(9)
    return load_resume_bundle(model, optimizer, ckpt_path=path, **{"log_fn": quiet, **more})


def flip(path: Path) -> None:
    """Change one bit of a tensor; name, size and structure stay."""
    data = bytearray(path.read_bytes())
    data[data.index(b"data/0") + 70] ^= 1
    path.write_bytes(data)


class Everything:
    """A trainer with every component that a checkpoint can hold."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        self.model, _ = small_model(seed)
        self.optimizers = {
            "head": torch.optim.AdamW(self.model[2].parameters(), lr=0.02),
            "base": torch.optim.SGD(self.model[0].parameters(), lr=0.1, momentum=0.9),
        }
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizers["head"], 50)
        self.ema = torch.optim.swa_utils.AveragedModel(self.model)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)

    def step(self) -> float:
        for one in self.optimizers.values():
            one.zero_grad()
        loss = self.model(torch.randn(5, 4) + random.random()).square().mean()
        self.scaler.scale(loss).backward()
        for one in self.optimizers.values():
            self.scaler.step(one)
        self.scaler.update()
        self.schedule.step()
        self.ema.update_parameters(self.model)
        return loss.item()

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizers, "scheduler": self.schedule, "scaler": self.scaler,
                "ema": self.ema}  # fmt: skip

    def state(self) -> list[torch.Tensor]:
        return [t.clone() for t in (*self.model.state_dict().values(), *self.ema.state_dict().values())]


def test_the_steps_after_a_load_are_the_steps_of_the_uninterrupted_run_bit_for_bit(tmp_path: Path) -> None:
    first = Everything(1)
    for _ in range(5):
        first.step()
    path = save_checkpoint(tmp_path, 5, **first.parts(), epoch=1, best_val_loss=0.25, data_state={"at": 3},
                           extra={"carry": torch.ones(2)}, lr_scale=0.8, log_fn=quiet)  # fmt: skip
    losses = [first.step() for _ in range(7)]
    second = Everything(2)
    second.step()
    parts = second.parts()
    bundle = load_resume_bundle(parts.pop("model"), ckpt_path=path, log_fn=quiet, own_lr_scale=True, **parts)
    assert (bundle.global_step, bundle.start_epoch, bundle.best_val_loss, bundle.lr_scale) == (5, 1, 0.25, 0.8)
    assert bundle.extra["data_state"] == {"at": 3} and torch.equal(bundle.extra["carry"], torch.ones(2))
    assert set(bundle.extra) == {"data_state", "carry"}
    assert [second.step() for _ in range(7)] == losses
    assert all(torch.equal(one, two) for one, two in zip(first.state(), second.state(), strict=True))
    loaded = ("weights", "optimizer.head", "optimizer.base", "scheduler", "scaler", "ema", "counters", "rng",
              "data_position")  # fmt: skip
    assert bundle.report == {**dict.fromkeys(loaded, "load"), "swa": "absent: not used here"}


def test_it_prints_the_protocols_lines(tmp_path: Path) -> None:
    (path,) = save_steps(tmp_path, 40, epoch=3, best_val_loss=0.123456)
    lines: list[str] = []
    load(path, log_fn=lines.append)
    assert lines[0] == "Loaded checkpoint @step=40, epoch=3, best_val=0.12, lr=0.01"
    assert lines[-1] == "[resume] step=40 epoch=3 best_val=0.1235"


@pytest.mark.parametrize("nothing", [None, ""])
def test_without_a_path_it_is_a_fresh_start(nothing: Any) -> None:
    model, optimizer = small_model()
    bundle = load_resume_bundle(model, optimizer, ckpt_path=nothing)
    assert bundle == ResumeBundle(0, 0, math.inf, (), (), (), 1.0, {}, {})


def test_absent_components_and_counters_are_stated_not_silently_empty(tmp_path: Path) -> None:
    model, _ = small_model()
    path = tmp_path / "plain.pt"
    torch.save({"model_state_dict": model.state_dict(), "scheduler_state_dict": {}}, path)
    other = Everything(1)
    before = other.schedule.state_dict()
    lines: list[str] = []
    parts = other.parts()
    bundle = load_resume_bundle(parts.pop("model"), ckpt_path=path, log_fn=lines.append, **parts)
    assert (bundle.global_step, bundle.start_epoch, bundle.best_val_loss) == (0, 0, math.inf)
    assert bundle.report["scheduler"] == bundle.report["scaler"] == "absent: the checkpoint has none, starts as made"
    assert bundle.report["optimizer.head"] == "absent: the checkpoint has none, starts as made"
    assert bundle.report["counters"] == (
        "load: but for global_step, epoch, best_val_loss, which the checkpoint does not have"
    )
    assert bundle.report["rng"] == "absent: the checkpoint has none, continues from the seed"
    assert "[resume] scaler: absent: the checkpoint has none, starts as made" in lines
    assert other.schedule.state_dict() == before


def test_reset_leaves_optimizer_and_schedule_as_they_are(tmp_path: Path) -> None:
    (path,) = save_steps(tmp_path, 4)
    model, _ = small_model(9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    bundle = load_resume_bundle(
        model, optimizer, ckpt_path=path, optimizer_policy="reset", schedule_policy="reset", log_fn=quiet
    )
    assert bundle.report["optimizer"] == "reset: optimizer_policy='reset'"
    assert bundle.report["scheduler"] == "absent: not used here"
    assert optimizer.param_groups[0]["lr"] == 0.5 and not optimizer.state


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"optimizer_policy": "keep"}, "unknown optimizer_policy 'keep': it is one of load, reset, swap_to_lion"),
        ({"schedule_policy": "refit"}, "unknown schedule_policy 'refit': it is one of load, reset"),
        ({"new_params": "zeros"}, "unknown new_params 'zeros': it is one of module, kaiming"),
    ],
)
def test_policies_that_are_not_there_are_refused_in_a_sentence(tmp_path: Path, how: dict[str, Any], said: str) -> None:
    with pytest.raises(KitError, match=said):
        load(tmp_path / "never_opened.pt", **how)


@pytest.mark.fault("C8", by="fit_check: all names and shapes before any load")
def test_c8_names_and_shapes_that_do_not_fit_are_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    (path,) = save_steps(tmp_path, 4)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InvalidFile) as error:
        load_resume_bundle(model, ckpt_path=path, log_fn=quiet)
    assert str(error.value) == (
        f"checkpoint '{path}' does not fit, and nothing was loaded: missing in it: 2 (1.weight, 1.bias); "
        "unexpected in it: 2 (2.weight, 2.bias); "
        "other shapes: 2 (0.weight (3, 4) instead of (5, 4), 0.bias (3,) instead of (5,)); "
        "allow_partial_weights=True, or resume.weights=partial, loads what fits"
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.fault("C8", by="optimizer_state: the optimizer's class")
def test_an_optimizer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    (path,) = save_steps(tmp_path, 4)
    model, _ = small_model(9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InvalidFile, match="it holds the state of AdamW, the trainer uses SGD"):
        load_resume_bundle(model, torch.optim.SGD(model.parameters()), ckpt_path=path, log_fn=quiet)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_counter_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = save_plain(tmp_path, 4, epoch="a[$(touch canary)]")
    with pytest.raises(InvalidFile, match="the checkpoint's 'epoch' is a str, not a number"):
        load(path)
    for name, value in (("global_step", float("nan")), ("global_step", -3), ("epoch", float("inf"))):
        with pytest.raises(InvalidFile, match=f"the checkpoint's '{name}' is '{value}', not a count"):
            load(save_plain(tmp_path, 4, **{name: value}))


@pytest.mark.fault("J5", by="checkpoint_content: the random numbers stay as they are")
def test_a_changed_environment_resets_the_scaler_and_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Everything(1)
    first.step()
    path = save_checkpoint(tmp_path, 1, **first.parts(), log_fn=quiet)
    now = loading.versions()
    monkeypatch.setattr(loading, "versions", lambda: {**now, "torch": "9.9", "threads": 64, "world_size": 2})
    second, lines = Everything(2), []
    parts = second.parts()
    bundle = load_resume_bundle(parts.pop("model"), ckpt_path=path, log_fn=lines.append, **parts)
    assert bundle.report["scaler"] == f"reset: torch: {torch.__version__} at the save, 9.9 now"
    assert bundle.report["rng"] == "reset: left as it is, world_size: 1 at the save, 2 now"
    assert "[warn] threads: 1 at the save, 64 now: the resumed run may differ in its last bits" in lines


def test_of_several_ranks_the_first_alone_gets_its_random_numbers_back_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank seeds itself, the first one saves, and all load: in no other rank are its generators the right ones."""
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setenv("RESUMEKIT_RUN_DIR", str(run))
    monkeypatch.setenv("WORLD_SIZE", "2")
    torch.manual_seed(100)
    (path,) = save_steps(tmp_path, 4)
    torch.rand(1)

    def loaded(rank: int) -> tuple[Any, list[str], float]:
        monkeypatch.setenv("RANK", str(rank))
        model, optimizer = small_model(9)
        torch.manual_seed(100 + rank)
        lines: list[str] = []
        report = load_resume_bundle(model, optimizer, ckpt_path=path, log_fn=lines.append).report["rng"]
        return report, lines, torch.rand(1).item()

    first, lines, drawn = loaded(0)
    torch.set_rng_state(torch.load(path, weights_only=True)["rng_state"]["torch"])
    assert first == "rank 0 only" and drawn == torch.rand(1).item()
    assert any(line.startswith("[warn] rng: rank 0 only: ") for line in lines)
    other, _, drawn = loaded(1)
    torch.manual_seed(101)
    assert other == "rank 0 only: left as it is in rank 1" and drawn == torch.rand(1).item()
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines() if line]
    assert [one["verdict"] for one in events if one["event"] == "check"] == ["not_told"]
    assert [one["kind"] for one in events if one["event"] == "warning" and "rng" in one["kind"]] == ["rng_rank_0_only"]
    for event in events:
        assert_valid("event", event)


@pytest.mark.fault("C3", by="proven_content: the digest before the load")
def test_c3_a_flipped_bit_is_found_before_anything_is_loaded(tmp_path: Path) -> None:
    (path,) = save_steps(tmp_path, 4)
    flip(path)
    torch.load(path, weights_only=True)  # torch itself finds nothing wrong
    model, optimizer = small_model(9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NoStableCheckpoint, match="can't be resumed from: digest differs from its manifest"):
        load_resume_bundle(model, optimizer, ckpt_path=path, log_fn=quiet)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.fault("C3", by="archive: checksums where there is no manifest")
def test_c3_a_flipped_bit_in_a_file_without_a_manifest_is_found_by_its_checksums(tmp_path: Path) -> None:
    path = save_plain(tmp_path, 4)
    assert load(path).global_step == 4
    flip(path)
    with pytest.raises(NoStableCheckpoint, match="differs from its checksum"):
        load(path)


@pytest.mark.fault("C5", by="proven_content: regular files only, opened without waiting")
def test_c5_odd_files_are_refused_without_hanging(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.pt")
    for path, said in [(tmp_path / "fifo.pt", "not a regular file"), (tmp_path, "not a regular file"),
                       (tmp_path / "nothing.pt", "no such file")]:  # fmt: skip
        with pytest.raises(NoStableCheckpoint, match=said):
            load(path)


@pytest.mark.fault("C13", by="proven_content: the restricted reader, then weights_only=True")
@pytest.mark.fault("C14", by="proven_content: weights_only=True is written out")
@pytest.mark.parametrize("legacy", [False, True])
def test_c13_c14_code_never_runs_even_where_the_environment_asks_for_it(
    tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary, path = tmp_path / "canary", tmp_path / "x.pt"
    value = {"model_state_dict": {}, "a": Payload(canary)}
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(NoStableCheckpoint):
        load(path)
    monkeypatch.setattr(proven_content.archive, "summarize", lambda _fd: type("S", (), {"unsafe": ()}))
    monkeypatch.setattr(proven_content.proof, "prove", lambda *_a: proof.Proof("", 0, 0, 0, 0, 0, None, proof.SOUND))
    with pytest.raises(NoStableCheckpoint):  # torch's own refusal, were the first one not there
        load(path)
    assert not canary.exists()


@pytest.mark.fault("C17", by="proven_content: the restricted reader before torch")
def test_c17_bombs_are_refused_before_torch_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_a: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(proven_content, "_torch_load", never)
    path = tmp_path / "x.pt"
    torch.save({"model_state_dict": {"w": torch.ones(1).expand(10**12)}}, path)
    with pytest.raises(NoStableCheckpoint, match="a tensor claims"):
        load(path)
    path.write_bytes(pickle_zip(pickled({"model_state_dict": 1})[:-1] + b"N" * 3_000_000 + b"."))
    with pytest.raises(NoStableCheckpoint, match="opcodes"):
        load(path)


@pytest.mark.fault("C24", by="proven_content: one descriptor for proof and load")
def test_c24_a_file_swapped_between_proof_and_load_is_loaded_from_the_proven_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, evil = save_steps(tmp_path, 4)[0], save_steps(tmp_path / "b", 4)[0]
    want = torch.load(good, weights_only=True)["model_state_dict"]["0.weight"].clone()
    changed = torch.load(evil, weights_only=True)
    changed["model_state_dict"]["0.weight"].fill_(666)
    torch.save(changed, evil)
    original = proven_content._torch_load

    def swapped(descriptor: int) -> Any:
        os.replace(evil, good)
        return original(descriptor)

    monkeypatch.setattr(proven_content, "_torch_load", swapped)
    model, optimizer = small_model(9)
    load_resume_bundle(model, optimizer, ckpt_path=good, log_fn=quiet)
    assert torch.equal(model.state_dict()["0.weight"], want)


@pytest.mark.fault("C24", by="proven_content: size and times again after the load")
def test_c24_a_file_rewritten_in_place_while_it_is_loaded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = save_steps(tmp_path, 4)
    original = proven_content._torch_load

    def rewritten(descriptor: int) -> Any:
        content = original(descriptor)
        time.sleep(0.02)
        flip(path)
        return content

    monkeypatch.setattr(proven_content, "_torch_load", rewritten)
    with pytest.raises(NoStableCheckpoint, match=r"it changed while it was|digest differs"):
        load(path)


def test_the_launchers_proof_is_taken_and_the_bytes_are_not_read_twice(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = save_steps(run_dir / "checkpoints", 4)
    assert proof.prove_for_run(run_dir, path) == 0

    def never(*_a: Any, **_more: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(one_pass, "read", never)
    bundle = load(path)
    assert bundle.global_step == 4
    (event,) = [json.loads(line) for line in (run_dir / "journal.jsonl").read_text().split("\n") if '"resumed"' in line]
    assert (event["step"], event["checkpoint"], event["report"]) == (4, str(path), bundle.report)


def test_a_pending_proof_is_waited_for_while_its_process_lives_and_not_longer(run_dir: Path) -> None:
    (path,) = save_steps(run_dir / "checkpoints", 4)
    target = RunPaths(run_dir).proof
    sleeper = subprocess.Popen(["sleep", "60"])
    proof.write_pending(target, path, sleeper.pid)
    done: list[ResumeBundle] = []
    thread = threading.Thread(target=lambda: done.append(load(path)))
    thread.start()
    thread.join(0.3)
    assert not done
    sleeper.kill()
    sleeper.wait()
    thread.join(10)
    assert done[0].global_step == 4


def test_a_proof_of_another_file_or_an_earlier_state_is_not_taken(run_dir: Path) -> None:
    one, two = save_steps(run_dir / "checkpoints", 4, 5)
    assert proof.prove_for_run(run_dir, one) == 0
    assert load(two).global_step == 5
    flip(one)
    os.utime(one, ns=(0, json.loads(RunPaths(run_dir).proof.read_text())["mtime_ns"]))
    with pytest.raises(NoStableCheckpoint, match="digest differs"):
        load(one)


def test_a_bad_verdict_is_left_for_the_launcher(run_dir: Path) -> None:
    (path,) = save_steps(run_dir / "checkpoints", 4)
    flip(path)
    with pytest.raises(NoStableCheckpoint) as error:
        load(path)
    assert error.value.exit_code == 3
    left = proof.read(RunPaths(run_dir).proof)
    assert left is not None and (left.verdict, left.reason) == ("differs", "digest differs from its manifest")


@pytest.mark.parametrize(
    ("spoil", "code", "verdict"),
    [
        (lambda path: None, 0, "equal"),
        (flip, 3, "differs"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), 3, "differs"),
        (lambda path: path.with_name(f"{path.name}.json").unlink(), 0, "sound"),
        (lambda path: path.with_name(f"{path.name}.json").write_text("{}"), 3, "unreadable"),
        (lambda path: path.unlink(), 3, "unreadable"),
    ],
)
def test_the_launchers_proof_has_a_verdict_and_an_exit_code(run_dir: Path, spoil: Any, code: int, verdict: str) -> None:
    (path,) = save_steps(run_dir / "checkpoints", 4)
    spoil(path)
    assert proof.prove_for_run(run_dir, path) == code
    found = proof.read(RunPaths(run_dir).proof)
    assert found is not None and found.verdict == verdict and bool(found.reason) == (code == 3)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"verdict": "equal"}', '{"path": 1}'])
def test_a_proof_file_that_is_none_is_no_proof(run_dir: Path, content: str) -> None:
    RunPaths(run_dir).proof.write_text(content)
    assert proof.read(RunPaths(run_dir).proof) is None


def test_the_random_numbers_of_a_foreign_form_are_left_alone_and_that_is_said(tmp_path: Path) -> None:
    path = save_plain(tmp_path, 4, rng_state={"mine": torch.get_rng_state()})
    assert load(path).report["rng"] == "absent: not in the form that save_checkpoint writes, left as it is"
    assert load(path, restore_rng=False).report["rng"] == "reset: left as it is, restore_rng=False"


def test_numpys_random_numbers_go_on_too(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    numpy.random.seed(3)
    numpy.random.randn()
    (path,) = save_steps(tmp_path, 1)
    want = (numpy.random.randn(), numpy.random.rand(), random.random())
    load(path)
    assert (numpy.random.randn(), numpy.random.rand(), random.random()) == want


@pytest.mark.fault("C14", by="proven_content: weights_only=True is written out")
def test_loading_asks_for_weights_only_and_nothing_else_does() -> None:
    """Every torch.load of the kit says weights_only=True; there is no second try without it."""
    calls = [
        line
        for path in (LIB / "resumekit").rglob("*.py")
        for line in path.read_text().splitlines()
        if "torch.load(" in line
    ]
    assert calls and all("weights_only=True" in call for call in calls)
    assert sys.modules["resumekit.trainer.loading"] is loading


def test_an_optimizer_step_after_the_load_changes_no_byte_of_the_file(tmp_path: Path) -> None:
    """The state is mapped from the file; the mapping is private."""
    (path,) = save_steps(tmp_path, 1)
    before = path.read_bytes()
    model, optimizer = small_model(9)
    load_resume_bundle(model, optimizer, ckpt_path=path, log_fn=quiet)
    path.unlink()
    path.write_bytes(before)
    for _ in range(3):
        train(model, optimizer)
    assert path.read_bytes() == before
