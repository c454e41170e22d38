"""Values in the shards of torch.distributed.checkpoint: found without torch, in the reading that makes the digest."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from resumekit.base.paths import manifest_path
from resumekit.checkpoint import dcp_metadata, finiteness, form, grades, inspect_command, kinds, layout, one_pass
from resumekit.checkpoint.selection import CheckpointFolder, Selection, select
from support.commands import Kit
from support.places import ROOT
from support.runs import events
from support.small_memory import read_in_small_memory

RECORDED = ROOT / "tests" / "recorded" / "foreign" / "dcp" / "step-4"
NAN, INF = float("nan"), float("inf")
PATTERN = {"pattern": "step-{step}"}


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def saved(folder: Path, **state: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process saves alone
        dcp.save(state, storage_writer=dcp.FileSystemWriter(folder, thread_count=2), no_dist=True)
    return folder


def recorded(folder: Path, step: int = 4) -> Path:
    return Path(shutil.copytree(RECORDED, folder / f"step-{step}"))


def places(folder: Path, name: str) -> tuple[dcp_metadata.Place, ...]:
    return dcp_metadata.read((folder / ".metadata").read_bytes()).places[name]


def put(folder: Path, place: dcp_metadata.Place, data: bytes) -> None:
    """Write other bytes into the place of an item, as many."""
    assert len(data) == place.end - place.begin
    with open(folder / place.part, "r+b") as file:
        file.seek(place.begin)
        file.write(data)


def item(folder: Path, place: dcp_metadata.Place) -> bytes:
    return (folder / place.part).read_bytes()[place.begin : place.end]


def put_value(folder: Path, name: str, value: float, chunk: int = 0) -> Path:
    """Let one number of a chunk have another value, as torch writes such a chunk."""
    place = places(folder, name)[chunk]
    held = torch.load(io.BytesIO(item(folder, place)), weights_only=True)
    held.view(-1)[-1] = value
    made = io.BytesIO()
    torch.save(held, made)
    put(folder, place, made.getvalue())
    return folder


def holding(value: float, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    found = torch.ones(shape).to(dtype)
    found.view(-1)[found.numel() // 2] = value
    return found


def look(folder: Path, section: dict[str, Any] | None = None, older: tuple[Path, ...] = ()) -> finiteness.Looked:
    named = form.of(section)
    with layout.open_checkpoint(folder) as opened:
        contents = kinds.inspect(opened, named, has_step=True).contents
        return finiteness.look_at(opened, contents, older, digest=True, checksums=True, keeps=False)


@pytest.mark.parametrize(("name", "value", "chunk"), [
    ("model.weight", NAN, 0), ("model.weight", NAN, 1), ("optim.state.weight.exp_avg", NAN, 1),
    ("optim.state.weight.exp_avg_sq", INF, 0), ("optim.state.weight.step", INF, 0), ("model.weight", -INF, 1),
])  # fmt: skip
def test_a_value_that_is_not_finite_is_found_in_whichever_shard_it_lies(
    name: str, value: float, chunk: int, checkpoints: Path
) -> None:
    assert look(recorded(checkpoints)).reason == ""
    looked = look(put_value(checkpoints / "step-4", name, value, chunk))
    assert looked.reason == f"not finite: {name}" and looked.bad == (name,), "the optimizer says that it is no mask"
    folder = put_value(checkpoints / "step-4", name, NAN, -1)
    assert look(folder).bad == (name,), "a tensor is named once, however many of its chunks are bad"


def test_what_counts_is_the_same_as_in_a_file(checkpoints: Path) -> None:
    mask, finite = torch.full((3, 3), -INF).triu(1), torch.ones(3)
    state = {"state": {"w": {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": ["w"]}]}
    infinite = {**state, "state": {"w": {"exp_avg": holding(INF, 3)}}}
    cases: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
        "all is finite": ({"model": {"w": finite}, "optim": state, "step": 3}, (), ()),
        "an average": ({"model": {"w": finite}, "ema": {"w": holding(NAN, 3)}}, ("ema.w",), ()),
        "a moment": ({"model": {"w": finite}, "optim": infinite}, ("optim.state.w.exp_avg",), ()),
        "of an optimizer by a name of its own": (
            {"model": {"w": finite}, "optimizer": infinite}, ("optimizer.state.w.exp_avg",), (),
        ),
        "a mask": ({"model": {"mask": mask, "w": finite}, "optim": state}, (), ("model.mask",)),
        "a parameter": ({"model": {"w": holding(INF, 3)}, "optim": state}, ("model.w",), ()),
        "what the trainer keeps besides": ({"model": {"w": finite}, "losses": holding(NAN, 9)}, (), ()),
        "weights under other names": ({"net": {"w": holding(NAN, 3)}, "more": finite}, ("net.w",), ()),
        "weights at the top": ({"w": holding(NAN, 3), "v": finite, "optimizer": state}, ("w",), ()),
        "one object around all else": (
            {"app": {"model": {"w": finite}, "optim": infinite, "losses": holding(NAN, 9)}},
            ("app.optim.state.w.exp_avg",), (),
        ),
    }  # fmt: skip
    for number, (name, (content, bad, unsure)) in enumerate(cases.items()):
        looked = look(saved(checkpoints / str(number), **content))
        assert (looked.bad, looked.unsure, looked.has_values) == (bad, unsure, True), name


def test_the_names_of_the_config_say_what_counts(checkpoints: Path) -> None:
    folder = saved(
        checkpoints / "x", net={"w": torch.ones(3)}, model={"w": torch.ones(3)}, adam={"m": holding(INF, 3)},
        losses=holding(NAN, 3),
    )  # fmt: skip
    assert look(folder).bad == ()
    assert look(folder, {"keys": {"weights": "net", "optimizer": "adam"}}).bad == ("adam.m",)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "complex64", "float8_e5m2", "float8_e4m3fn"])
def test_numbers_of_each_kind_are_looked_at(dtype: str, checkpoints: Path) -> None:
    kind = getattr(torch, dtype)
    turned = holding(NAN, 4, 3, dtype=kind).t() if dtype != "complex64" else holding(NAN, 3, dtype=kind)
    model = {"bad": holding(NAN, 5, dtype=kind), "good": torch.ones(9).to(kind), "turned": turned}
    looked = look(saved(checkpoints / "x", model=model))
    assert (set(looked.bad), looked.has_values) == ({"model.bad", "model.turned"}, True)


class Odd:
    """A class that is no plain data."""


def big_endian(data: bytes) -> bytes:
    """Return an item whose numbers begin with the highest byte, as its record of three letters says."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(made, "w") as target:
        for name in source.namelist():
            target.writestr(name, b"big" if name.endswith("byteorder") else source.read(name))
    return made.getvalue()


def overwritten(folder: Path, name: str, data: bytes) -> None:
    """Let an item be other bytes, of another length, at the end of its shard."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    [index] = [one for one in metadata.storage_data if one.fqn == name]
    place = metadata.storage_data[index]
    shard = folder / place.relative_path
    place.offset, place.length = shard.stat().st_size, len(data)
    with open(shard, "ab") as file:
        file.write(data)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def test_what_cannot_be_told_is_never_called_finite(checkpoints: Path) -> None:
    def odd_value(folder: Path) -> None:
        made = io.BytesIO()
        torch.save(Odd(), made)
        overwritten(folder, "optim.lr", made.getvalue())

    def hidden(folder: Path) -> None:
        made = io.BytesIO()
        torch.save({torch.ones(2)}, made)
        overwritten(folder, "optim.lr", made.getvalue())

    def other_dtype(folder: Path) -> None:
        made = io.BytesIO()
        torch.save(torch.ones(4, dtype=torch.int32), made)
        overwritten(folder, "model.w", made.getvalue())

    def other_order(folder: Path) -> None:
        overwritten(folder, "model.w", big_endian(item(folder, *places(folder, "model.w"))))

    def overlapping(folder: Path) -> None:
        metadata = pickle.loads((folder / ".metadata").read_bytes())
        held = {index.fqn: place for index, place in metadata.storage_data.items()}
        held["model.w"].relative_path, held["model.w"].offset = held["model.v"].relative_path, held["model.v"].offset
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))

    cases = {
        "compressed": (lambda folder: overwritten(folder, "model.w", b"\x28\xb5\x2f\xfd of zstd"), "model.w"),
        "safetensors": (lambda folder: overwritten(folder, "model.w", struct.pack("<Q", 8) + b"{}      "), "model.w"),
        "an empty item": (lambda folder: overwritten(folder, "model.w", b""), "model.w"),
        "another class": (odd_value, "optim.lr"), "a tensor in a set": (hidden, "optim.lr"),
        "another dtype": (other_dtype, "model.w"), "the other order of bytes": (other_order, "model.w"),
        "two in one place": (overlapping, "model.w"),
    }  # fmt: skip
    for number, (name, (change, untold)) in enumerate(cases.items(), 1):
        folder = checkpoints / f"step-{number}"
        saved(folder, model={"v": torch.ones(4), "w": torch.ones(4)}, optim={"lr": 0.1, "step": torch.tensor(1.0)})
        change(folder)
        looked = look(folder)
        assert (looked.reason, looked.has_values, bool(looked.untold)) == ("", False, True), name
        assert looked.untold == untold or name == "two in one place", name
        assert grades.attest(folder, number, named=form.of(PATTERN)).finite is None, name
        assert f"not told whether finite: {looked.untold}" in chosen(checkpoints).chosen.reason, name
        put_value(folder, "model.v" if name != "two in one place" else "optim.step", NAN)
        assert grades.measured(folder, number, named=form.of(PATTERN)).finite is False, name
        shutil.rmtree(folder)


def test_of_a_name_without_end_a_part_is_said(checkpoints: Path) -> None:
    long = "w" * 9000
    looked = look(saved(checkpoints / "step-1", model={long: holding(NAN, 3)}))
    assert looked.bad == (f"model.{long}"[:200],)


def test_what_is_no_tensor_beside_the_weights_may_be_of_any_class(checkpoints: Path) -> None:
    folder = saved(checkpoints / "x", w=torch.ones(4), dataloader=Odd())
    assert look(folder).has_values
    assert look(saved(checkpoints / "y", model={"w": torch.ones(4)}, dataloader=Odd())).has_values


def test_a_shard_that_is_damaged_is_refused_with_the_item(checkpoints: Path) -> None:
    folder = recorded(checkpoints)
    place = places(folder, "model.weight")[1]
    whole = item(folder, place)
    put(folder, place, bytes(len(whole)))
    assert refusal(checkpoints) == (
        "'__1_0.distcp': 'model.weight' in it: it begins with zeros: its bytes never reached the disk"
    )
    put(folder, place, whole[:-30] + bytes(30))
    assert "'model.weight' in it: no zip directory at its end" in refusal(checkpoints)
    changed = bytearray(whole)
    numbers = bytes(torch.load(io.BytesIO(whole), weights_only=True).untyped_storage().tolist())
    changed[whole.index(numbers) + 9] ^= 1
    put(folder, place, bytes(changed))
    assert refusal(checkpoints) == "'__1_0.distcp': record 'model.weight/data/0' differs from its checksum"
    place = places(folder, "step")[0]
    put(folder, place, item(folder, place)[:-30] + bytes(30))
    put(folder, places(folder, "model.weight")[1], whole)
    assert "'step' in it: no zip directory" in refusal(checkpoints), "though its values do not count"


def chosen(folder: Path) -> Selection:
    return select([CheckpointFolder(folder, form=form.of(PATTERN))], needs=frozenset(), weights_only=False)


def refusal(folder: Path) -> str:
    [candidate] = [one for one in chosen(folder).candidates if one.verdict == "passed"]
    return candidate.reason


def test_the_bytes_are_read_once_for_the_digest_and_the_values_and_never_faster_than_allowed(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, read, rates, slept = recorded(checkpoints), [0], [], []
    real, pace = os.preadv, one_pass._Pace

    def counted(descriptor: int, views: Any, at: int) -> int:
        count = real(descriptor, views, at)
        read[0] += count
        return count

    monkeypatch.setattr(one_pass, "_Pace", lambda rate, *more: rates.append(rate) or pace(rate, *more))
    monkeypatch.setattr(one_pass, "os", SimpleNamespace(preadv=counted, pread=os.pread))
    monkeypatch.setattr(one_pass.time, "sleep", slept.append)
    known = grades.measured(folder, 4, mb_per_s=0.001, named=form.of(PATTERN))
    assert known.finite is True and known.sha256 == look(folder).sha256
    assert read[0] == 2 * known.size, "once by each of the two looks"
    assert rates[:3] == [0.001] * 3 and max(slept) > 20


def test_what_was_found_is_of_one_metadata(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[str] = []
    run = one_pass._Pass.run
    monkeypatch.setattr(one_pass._Pass, "run", lambda self: passes.append(self._name) or run(self))
    folder = put_value(recorded(checkpoints), "model.weight", NAN)
    metadata = (folder / ".metadata").read_bytes()
    for _ in range(2):
        assert refusal(checkpoints) == "not finite: model.weight"
    assert passes.count("__0_0.distcp") == 1, "what was found is remembered"
    hidden = pickle.loads(metadata)  # a `.metadata` that puts the bad chunk elsewhere
    first, second = (index for index in hidden.storage_data if index.fqn == "model.weight")
    hidden.storage_data[first] = hidden.storage_data[second]
    (folder / ".metadata").write_bytes(pickle.dumps(hidden))
    assert chosen(checkpoints).chosen is not None
    (folder / ".metadata").write_bytes(metadata)
    assert refusal(checkpoints) == "not finite: model.weight"


def test_an_infinity_where_an_older_one_is_finite_is_none_of_a_mask(checkpoints: Path) -> None:
    """Whichever shards an older one has it in: of other ranks, or of other files."""
    mask = torch.full((3, 3), -INF).triu(1)
    for step, buffer in ((10, torch.ones(4)), (20, holding(INF, 4))):
        saved(checkpoints / f"step-{step}", model={"mask": mask, "buffer": buffer, **{"v": torch.ones(step)}})
    assert look(checkpoints / "step-20").unsure == ("model.mask", "model.buffer")
    looked = look(checkpoints / "step-20", older=(checkpoints / "not there", checkpoints / "step-10"))
    assert (looked.bad, looked.unsure) == (("model.buffer",), ("model.mask",))
    assert chosen(checkpoints).chosen.step == 10
    assert "infinite, as masks are: model.mask" in chosen(checkpoints).chosen.reason


def lying(folder: Path, count: int, length: int | None, step: int) -> Path:
    """Write a shard of one archive, and a `.metadata` that has it hold so many values, each `step` bytes further."""
    folder.mkdir()
    made = io.BytesIO()
    torch.save(torch.ones(9), made)
    data = made.getvalue()
    (folder / "__0_0.distcp").write_bytes(data + b"x" * count * step)
    entries = {f"model.{number}": BytesStorageMetadata() for number in range(count)}
    stored = {
        MetadataIndex(name): _StorageInfo("__0_0.distcp", number * step, length or len(data))
        for number, name in enumerate(entries)
    }  # fmt: skip
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(entries, None, stored)))
    return folder


@pytest.mark.parametrize(("length", "step", "says"), [
    (None, 0, "read"), (None, 1, "read"), (1 << 62, 0, "truncated"), (700, 0, "no zip directory at its end"),
])  # fmt: skip
def test_a_metadata_that_lies_is_gone_through_in_bounded_memory(
    length: int | None, step: int, says: str, checkpoints: Path
) -> None:
    folder = lying(checkpoints / "step-7", 100_000, length, step)
    call = (
        "grades.measured(Path(sys.argv[1]), 7, named=__import__('resumekit.checkpoint.form').checkpoint.form.of("
        f"{PATTERN!r}))"
    )
    assert says in read_in_small_memory(call, folder)


def test_pickles_are_read_up_to_a_bound(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = recorded(checkpoints)
    assert look(folder).has_values
    monkeypatch.setattr("resumekit.checkpoint.dcp_values._MAX_PICKLES_BYTES", 500)
    assert look(folder).untold


def test_a_class_in_a_shard_is_never_run(checkpoints: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(checkpoints / "canary"),)

    folder = saved(checkpoints / "x", model={"w": torch.ones(3), "odd": Runs()})
    (checkpoints / "canary").exists() and (checkpoints / "canary").rmdir()
    assert look(folder).untold == "model.odd" and not (checkpoints / "canary").exists()


def test_a_page_and_a_manifest_say_whether_all_is_finite(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recorded(checkpoints)
    assert inspect_command.main(["--inspect", str(folder)]) == 0
    assert "  values     finite\n" in capsys.readouterr().out
    assert grades.attest(folder, 4, named=form.of(PATTERN)).finite is True
    assert inspect_command.main(["--inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finite"] is True
    manifest_path(folder).unlink()
    put_value(folder, "model.weight", NAN, 1)
    known = grades.attest(folder, 4, named=form.of(PATTERN))
    assert (known.finite, known.nonfinite) == (False, ("model.weight",))
    assert inspect_command.main(["--inspect", str(folder)]) == 3
    assert "is no whole checkpoint: not finite: model.weight" in capsys.readouterr().err


TRAINER = """
import shutil, sys, time
folder, good, bad, resume = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[sys.argv.index("--lr") + 2 :]
first = int(resume[1].rpartition("-")[2]) if "--from" in resume else 0
for step in range(first + 1, 61 if first else 9999):
    loss = "nan" if step > 35 and not first else f"{1 / step:.3f}"
    print(f"step {step} loss {loss}", flush=True)
    if step % 10 == 0:
        shutil.copytree(bad if step == 30 and not first else good, f"{folder}/step-{step}")
    time.sleep(0.05)
"""


def test_a_recovery_passes_over_a_checkpoint_with_a_nan_in_a_shard(kit: Kit, tmp_path: Path) -> None:
    bad = put_value(recorded(tmp_path, 30), "model.weight", NAN, 1)
    (tmp_path / "train.py").write_text(TRAINER)
    config = json.loads(kit.config_file.read_text())
    config["trainer"] = {
        "command": ["{python}", str(tmp_path / "train.py"), "{checkpoints_dir}", str(RECORDED), str(bad),
                    "--lr", "{optimizer.lr}"],
        "resume_args": ["--from", "{checkpoint}"], "loads_with_kit": False,
        "log_patterns": {"step": "step ([0-9]+)", "loss": "loss ([0-9.a-z]+)"},
    }  # fmt: skip
    config |= {"checkpoint": PATTERN, "training": {"max_steps": 60}, "optimizer": {"lr": 1.0}}
    config["recover"] = {
        **config.get("recover", {}),
        "enabled": True,
        "backoff_s": 1,
        "replay_steps": 2,
        "lr_args": ["--lr", "{lr}"],
    }
    kit.config_file.write_text(json.dumps(config))
    done = kit("run", "T-1", code=None)
    assert len(kit.run_dirs()) == 2, done.stderr
    first, second = kit.run_dirs()
    assert json.loads((second / "run.json").read_text())["parent_step"] == 20
    assert events(first, "abort")[0]["first_bad_step"] > 35
    known = json.loads(manifest_path(first / "checkpoints" / "step-30").read_text())
    assert (known["finite"], known["nonfinite"]) == (False, ["model.weight"])
