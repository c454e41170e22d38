"""No run goes on from a checkpoint whose values are not finite; a mask of -inf is healthy. The bytes are read once."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from resumekit import commands
from resumekit.base import answer_cache, terminal
from resumekit.base.files import UnreadableFile
from resumekit.base.paths import manifest_path
from resumekit.checkpoint import archive, finiteness, form, grades, manifest, one_pass, proof
from resumekit.checkpoint.selection import CheckpointFolder, select
from resumekit.process.attest import Attester
from resumekit.run.run_folder import open_run
from resumekit.run.run_table import RunTable
from resumekit.start.along_history import search_stable
from resumekit.trainer import checkpoint_content
from support.commands import Kit
from support.fork_server import ForkServer
from support.named_runs import made

NAN, INF = float("nan"), float("inf")
SHA256 = hashlib.sha256
DTYPES = [one for one in (*one_pass.FORMS, *one_pass._ONE_NAN) if hasattr(torch, one) and one != "complex32"]


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def kinds_by_torch(data: bytes, dtype: torch.dtype) -> set[str]:
    numbers = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype)
    numbers = torch.view_as_real(numbers) if numbers.is_complex() else numbers.float()
    found = {one_pass.NAN} if numbers.isnan().any() else set()
    return found | ({one_pass.INFINITE} if numbers.isinf().any() else set())


@pytest.mark.parametrize("name", DTYPES)
def test_what_is_not_finite_in_bytes_is_what_torch_says(name: str) -> None:
    dtype, dice, seen = getattr(torch, name), random.Random(name), 0
    size = torch.empty(0, dtype=dtype).element_size()
    for _ in range(300):
        data = bytearray(dice.randbytes(size * dice.choice([1, 3, 8])))
        if dice.random() < 0.6:  # an exponent of ones, or nearly, and often no mantissa
            data[-1] = dice.choice([0x7F, 0xFF, 0x7C, 0xFC, 0x80, 0x7E])
            if size > 1:
                data[-2] = dice.choice([0x80, 0xF0, 0x00, 0xFF])
                data[:-2] = bytes(len(data) - 2) if dice.random() < 0.5 else data[:-2]
        expected = kinds_by_struct(data) if name == "float64" else kinds_by_torch(data, dtype)
        assert one_pass.nonfinite_kinds(bytes(data), name) == expected, data.hex()
        cut = dice.randrange(len(data))
        if expected:
            seen += 1
            halves = (0, cut, 0), (cut, len(data), cut)
            assert any(one_pass.may_hold_nonfinite(data, *half, name) for half in halves), (cut, data.hex())
    assert seen > 10


def kinds_by_struct(data: bytes) -> set[str]:
    """Of doubles, which torch would be asked for as float32."""
    numbers = struct.unpack(f"<{len(data) // 8}d", data)
    found = {one_pass.NAN} if any(one != one for one in numbers) else set()
    return found | ({one_pass.INFINITE} if any(abs(one) == INF for one in numbers) else set())


def read(path: Path, **more: Any) -> one_pass.Found:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        tensors = finiteness.tensors_of(archive.content(descriptor)[0])
        return one_pass.read(descriptor, path.name, digest=True, checksums=True, tensors=tensors, **more)
    finally:
        os.close(descriptor)


def save(path: Path, **content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def holding(value: float, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    found = torch.randn(shape).to(dtype)
    found.view(-1)[found.numel() // 2] = value
    return found


@pytest.mark.parametrize(
    ("buffer_bytes", "thread_from"), [(64, 1 << 60), (1000, 1 << 60), (1 << 20, 1 << 60), (1000, 0)]
)
def test_one_pass_finds_digest_and_every_value_wherever_a_buffer_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer_bytes: int, thread_from: int
) -> None:
    monkeypatch.setattr(one_pass, "_THREAD_FROM_BYTES", thread_from)
    monkeypatch.setattr(one_pass, "BUFFER_BYTES", buffer_bytes)
    monkeypatch.setattr(archive, "BUFFER_BYTES", buffer_bytes)
    table = holding(NAN, 40, 30)
    gaps = torch.randn(50, 2)
    gaps[:, 1] = NAN
    path = save(tmp_path / "x.pt", model={
        "whole": torch.randn(300), "large": torch.full((200,), 3e38), "turned": table.t(), "words": torch.arange(70),
        "half": holding(NAN, 77, dtype=torch.bfloat16), "mask": torch.full((9, 9), -INF).triu(1),
        "wide": holding(INF, 33, dtype=torch.float64), "between": gaps[:, 0], "beside": gaps[:, 1],
        "part": holding(NAN, 64)[:32], "none": torch.empty(0), "one": torch.tensor(NAN),
        "complex": holding(NAN, 20, dtype=torch.complex64),
    })  # fmt: skip
    found = read(path)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and found.fault == ""
    nan = dict.fromkeys(("turned", "half", "beside", "one", "complex"), one_pass.NAN)
    expected = nan | dict.fromkeys(("mask", "wide"), one_pass.INFINITE)
    assert found.nonfinite == {f"model.{name}": kind for name, kind in expected.items()}


class SlowHash:
    """A SHA-256 that takes its time for the first blocks, and notes the threads in which it is asked."""

    threads: set[int]
    act: Any = None

    def __init__(self) -> None:
        self._hash, self._left = SHA256(), 5

    def update(self, block: memoryview) -> None:
        SlowHash.threads.add(threading.get_ident())
        if self._left > 0:
            self._left -= 1
            time.sleep(0.02)
        if SlowHash.act is not None:
            SlowHash.act()
        self._hash.update(block)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


@pytest.fixture
def slow_hash(monkeypatch: pytest.MonkeyPatch) -> type[SlowHash]:
    monkeypatch.setattr(one_pass, "_THREAD_FROM_BYTES", 0)
    monkeypatch.setattr(one_pass, "BUFFER_BYTES", 1000)
    monkeypatch.setattr(hashlib, "sha256", SlowHash)
    SlowHash.threads, SlowHash.act = set(), None
    return SlowHash


def test_a_block_of_a_big_file_is_hashed_before_its_room_is_read_into_again(
    tmp_path: Path, slow_hash: type[SlowHash]
) -> None:
    path = tmp_path / "x"
    path.write_bytes(random.Random(1).randbytes(10_500))
    assert read_alone(path).sha256 == SHA256(path.read_bytes()).hexdigest()
    assert len(slow_hash.threads) == 1 and threading.get_ident() not in slow_hash.threads


def test_a_big_file_that_is_cut_while_it_is_hashed_is_refused(tmp_path: Path, slow_hash: type[SlowHash]) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(10_500))
    slow_hash.act = lambda: os.truncate(path, 3000)
    with pytest.raises(UnreadableFile, match="cut short"):
        read_alone(path)


def read_alone(path: Path) -> one_pass.Found:
    """Read a file's digest alone; nothing is remembered."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return one_pass.read(descriptor, path.name, digest=True, keeps=False)
    finally:
        os.close(descriptor)


def test_a_pass_finds_the_record_that_differs_from_its_checksum(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", model={"w": torch.full((1000,), 1.5), "v": torch.full((1000,), 2.5)})
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<f", 2.5) * 9) + 400] ^= 1
    path.write_bytes(data)
    assert read(path).fault == "record 'x/data/1' differs from its checksum"


def test_what_a_pass_found_is_remembered_until_the_file_or_the_machine_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[str] = []
    run = one_pass._Pass.run
    monkeypatch.setattr(one_pass._Pass, "run", lambda self: passes.append(self._name) or run(self))
    path = save(tmp_path / "x.pt", model={"w": holding(NAN, 10)})
    first = read(path)
    assert read(path) == first == read(path, keeps=False) and len(passes) == 1
    os.utime(path, ns=(1, 1))
    read(path)
    assert len(passes) == 2, "another time is another file"
    monkeypatch.setattr(one_pass.processes, "boot_id", lambda: "another boot")
    read(path)
    assert len(passes) == 3
    monkeypatch.setattr(answer_cache.time, "time", lambda: 1e12)
    read(path)
    assert len(passes) == 4, "it was too long ago"
    (tmp_path / "state" / "resumekit" / one_pass._KEPT).chmod(0o666)
    read(path)
    assert len(passes) == 5, "another user may have written it"


def test_a_digest_alone_says_nothing_of_the_values(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", model={"w": holding(NAN, 10)})
    descriptor = os.open(path, os.O_RDONLY)
    assert one_pass.read(descriptor, path.name, digest=True).nonfinite is None
    os.close(descriptor)
    assert read(path).nonfinite == {"model.w": one_pass.NAN}


def test_a_pass_is_held_to_its_rate_and_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.pt", model={"w": torch.randn(1 << 20)})
    slept: list[float] = []
    said: list[str] = []
    monkeypatch.setattr(one_pass.time, "sleep", slept.append)
    monkeypatch.setattr(terminal, "progress", said.append)
    monkeypatch.setattr(one_pass, "PROGRESS_S", 0.0)
    read(path, mb_per_s=1.0)
    assert 3.9 < max(slept) <= 4.3, "the last of 4.2 MB is not read before 4.2 s"
    assert said[-1] == f"reading 'x.pt': 100% of {path.stat().st_size / 1e9:,.1f} GB"


def test_what_counts_as_not_finite(tmp_path: Path) -> None:
    mask, finite = torch.full((3, 3), -INF).triu(1), torch.randn(3, 3)
    adam = {"state": {0: {"exp_avg": holding(INF, 4)}}, "param_groups": [{"params": [0]}]}
    cases: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
        "all is finite": ({"model": {"w": finite}}, (), ()),
        "a NaN in the weights": ({"model": {"w": holding(NAN, 4)}}, ("model.w",), ()),
        "in a buffer": ({"state_dict": {"mask": holding(NAN, 4)}}, ("state_dict.mask",), ()),
        "in an average": ({"model": {"w": finite}, "ema": {"w": holding(NAN, 4)}}, ("ema.w",), ()),
        "a moment": ({"model": {"w": finite}, "optimizer": adam}, ("optimizer.state.0.exp_avg",), ()),
        "a mask": ({"model": {"mask": mask}}, (), ("model.mask",)),
        "a parameter": (
            {"model_state_dict": {"w": mask}, "parameter_names": [["w"]]}, ("model_state_dict.w",), (),
        ),
        "what the trainer keeps besides": ({"model": {"w": finite}, "losses": holding(NAN, 9)}, (), ()),
        "weights under other names": ({"net": {"w": holding(NAN, 4)}}, ("net.w",), ()),
        "weights at the top": ({"w": holding(NAN, 4), "v": finite}, ("w",), ()),
    }  # fmt: skip
    for name, (content, bad, unsure) in cases.items():
        path = save(tmp_path / f"{name}.pt", **content)
        looked = look(path)
        assert (looked.bad, looked.unsure) == (bad, unsure), name


def look(path: Path) -> finiteness.Looked:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return finiteness.look(descriptor, path.name, archive.content(descriptor), keeps=False)
    finally:
        os.close(descriptor)


def test_no_tensor_is_left_out_for_its_name(tmp_path: Path) -> None:
    """One key with a point and two keys may come to one name, and so may two long ones."""
    long = "k" * 300
    bad, good = holding(NAN, 4), torch.ones(4)
    models = ({"a.b": bad, "a": {"b": good}}, {"a.b": good, "a": {"b": bad}}, {long: bad, f"{long}2": good})
    for number, model in enumerate(models):
        assert look(save(tmp_path / f"{number}.pt", model=model)).reason.startswith("not finite: model."), model.keys()


def test_of_numbers_in_the_other_order_of_bytes_nothing_is_told(tmp_path: Path) -> None:
    own, other = save(tmp_path / "m_10.pt", model={"w": torch.full((50,), NAN)}, step=10), tmp_path / "m_20.pt"
    with zipfile.ZipFile(own) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            target.writestr(name, b"big" if name.endswith("byteorder") else source.read(name))
    assert look(own).reason and not look(other).reason
    assert grades.attest(own, 10).finite is False and grades.attest(other, None).finite is None


def test_every_reading_is_held_to_the_rate_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path / "runs", "T-1_toy_20261122-1200", "toy")
    config = {"checkpoint": {"pattern": "m_{step}.pt", "max_read_mb_per_s": 7}, "trainer": {"loads_with_kit": False}}
    run.paths.resolved_json.write_text(json.dumps(config))
    run = open_run(run.paths.run_dir)
    path = save(run.paths.checkpoints / "m_10.pt", model={"w": torch.ones(4)}, step=10)
    rates: list[Any] = []
    real = one_pass.read
    monkeypatch.setattr(
        one_pass, "read", lambda *args, **asked: rates.append(asked["mb_per_s"]) or real(*args, **asked)
    )
    Attester(run).look_last()
    assert rates == [7.0]
    assert search_stable(run, RunTable(tmp_path / "runs"), None).chosen.path == path
    assert rates == [7.0, 7.0]
    assert commands._prove([str(run.paths.run_dir), str(path)]) == 0
    assert rates == [7.0, 7.0, 7.0]


def test_an_infinity_where_an_older_checkpoint_is_finite_is_none_of_a_mask(tmp_path: Path) -> None:
    mask = torch.full((3, 3), -INF).triu(1)
    for step, weight, own in ((10, 1.0, mask), (20, INF, mask), (30, 1.0, mask)):
        save(tmp_path / f"m_{step}.pt", model={"w": holding(weight, 8), "mask": own}, step=step)
    assert said(tmp_path) == (30, "infinite, as masks are: model.mask")
    (tmp_path / "m_30.pt").unlink()
    assert said(tmp_path) == (10, "infinite, as masks are: model.mask")
    selection = chosen(tmp_path)
    assert [one.reason for one in selection.candidates if one.step == 20] == ["not finite: model.w"]


def chosen(folder: Path) -> Any:
    return select(
        [CheckpointFolder(folder, form=form.of({"pattern": "m_{step}.pt"}))], needs=frozenset(), weights_only=False
    )


def said(folder: Path) -> tuple[int | None, str]:
    found = chosen(folder).chosen
    return found.step, found.reason.rpartition("; ")[2]


def test_a_file_without_a_manifest_or_with_an_old_one_is_looked_into(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path / f"m_{step}.pt", model={"w": holding(NAN if step > 10 else 1.0, 8)}, step=step)
    known = grades.attest(tmp_path / "m_30.pt", 30)
    assert (known.finite, known.nonfinite) == (False, ("model.w",))
    old = grades.attest(tmp_path / "m_20.pt", 20)
    manifest.write(tmp_path / "m_20.pt", old._replace(finite=None, nonfinite=()))  # as an older kit wrote them
    assert grades.attest(tmp_path / "m_10.pt", 10).finite is True
    selection = chosen(tmp_path)
    reasons = {one.step: one.reason for one in selection.candidates}
    assert selection.chosen.step == 10
    assert reasons[30] == reasons[20] == "not finite: model.w"


@pytest.mark.parametrize("has_manifest", [True, False])
def test_the_prover_beside_a_trainer_finds_it_too(tmp_path: Path, has_manifest: bool) -> None:
    path = save(tmp_path / "m_20.pt", model_state_dict={"w": holding(NAN, 8)}, step=20)
    if has_manifest:
        manifest.write(path, grades.attest(path, 20)._replace(finite=None, nonfinite=()))
    descriptor = os.open(path, os.O_RDONLY)
    found = proof.prove(descriptor, path)
    os.close(descriptor)
    assert (found.verdict, found.reason) == (proof.UNREADABLE, "not finite: model_state_dict.w")


def test_a_trainer_waits_longer_for_the_proof_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, target = tmp_path / "x.pt", tmp_path / "checkpoint_proof.json"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    descriptor = os.open(path, os.O_RDONLY)
    proof.write_pending(target, path, os.getpid())
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += 1.0
        if clock[0] == 50:
            pending = proof.read(target)
            assert pending is not None
            proof.write(target, pending._replace(verdict=proof.SOUND))

    monkeypatch.setattr(proof.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(proof.time, "sleep", sleep)
    found = proof.wait_for(target, descriptor, wait_s=1.0)
    os.close(descriptor)
    assert found is not None and found.verdict == proof.SOUND


class Masked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.full((3, 3), -INF).triu(1))


def nonfinite(model: Masked, ema: Any = None) -> tuple[str, ...]:
    content = checkpoint_content.collect(1, model=model, ema=ema)
    return checkpoint_content.nonfinite(content, 0.5, checkpoint_content.masks_of(model))


def test_what_save_checkpoint_calls_finite() -> None:
    model = Masked()
    ema = type("Ema", (), {"state_dict": lambda self: {"shadow": model.state_dict()}})()
    assert nonfinite(model, ema) == ()
    model.norm.running_var[0] = INF
    assert nonfinite(model) == ("model_state_dict.norm.running_var",), "it was finite in an earlier save"
    model.norm.running_var[0] = 1.0
    model.mask[0, 0] = NAN
    assert nonfinite(model) == ("model_state_dict.mask",)
    fresh = Masked()
    fresh.layer.weight.data[0, 0] = INF
    assert nonfinite(fresh) == ("model_state_dict.layer.weight",)


TRAINER = """
import sys
import torch
folder, resume = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
step = torch.load(resume)["step"] if resume else 0
for step in range(step + 1, step + 31):
    print(f"step {step} loss {1 / step:.3f}", flush=True)
    if step % 10 == 0:
        weights = torch.full((4,), float("nan") if step == 30 else 1.0)
        torch.save({"model": {"w": weights}, "step": step}, f"{folder}/model_{step}.pt")
"""


def test_a_resume_of_a_plain_trainer_passes_over_a_nan_and_says_so(
    kit: Kit, tmp_path: Path, scripts: ForkServer
) -> None:
    (tmp_path / "train.py").write_text(TRAINER)
    config = json.loads(kit.config_file.read_text())
    config["trainer"] = {
        "command": scripts.script(tmp_path / "train.py", "{checkpoints_dir}"), "resume_args": ["{checkpoint}"],
        "log_patterns": {"step": "step ([0-9]+)", "loss": "loss ([0-9.]+)"},
    }  # fmt: skip
    config |= {"checkpoint": {"pattern": "model_{step}.pt", "max_read_mb_per_s": 500}, "recover": {"enabled": False}}
    config["training"] = {"max_steps": 100}
    kit.config_file.write_text(json.dumps(config))
    kit("run", "T-1")
    (run,) = kit.run_dirs()
    said = json.loads(manifest_path(run / "checkpoints" / "model_30.pt").read_text())
    assert (said["finite"], said["nonfinite"]) == (False, ["model.w"])
    done = kit("resume", "T-1")
    assert "passed over 'model_30.pt': not finite: model.w" in done.stderr
    assert "at step 20" in done.stderr
