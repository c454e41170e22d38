"""State that is spread over ranks, saved with save_sharded and loaded by as many ranks or another number of them."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from resumekit.base.errors import KitError, NoStableCheckpoint
from resumekit.checkpoint import form, manifest, selection
from resumekit.checkpoint.selection import CheckpointFolder
from resumekit.trainer import saving, sharded_content
from resumekit.trainer.comparison import compare
from support.commands import Kit
from support.places import ROOT
from support.rank_groups import in_ranks, raised
from support.runs import events
from support.sharded_trainer import PATTERN, build, train

FORM = form.of({"pattern": PATTERN})
NEEDS = frozenset({"model_state_dict", "optimizer_state_dict"})


def good(answers: list[Any]) -> list[Any]:
    """Return what the ranks returned; the first error is the test's."""
    for one in answers:
        if isinstance(one, BaseException):
            raise one
    return answers


def chosen(folder: Path) -> selection.Selection:
    return selection.select([CheckpointFolder(folder, None, FORM)], needs=NEEDS)


@pytest.mark.parametrize("kind", ["fsdp2", "fsdp1", "zero"])
def test_a_resume_at_the_same_number_of_ranks_is_equal_bit_for_bit(kind: str, tmp_path: Path) -> None:
    whole = good(in_ranks(2, train, tmp_path / "whole", kind, 8))
    good(in_ranks(2, train, tmp_path / "cut", kind, 4))
    again = good(in_ranks(2, train, tmp_path / "cut", kind, 8, tmp_path / "cut" / "step-4"))
    for before, after in zip(whole, again, strict=True):
        assert after["start"] == 4 and after["report"]["rng"] == "load"
        assert after["losses"] == {step: before["losses"][step] for step in range(5, 9)}
        assert after["drawn"] == before["drawn"]
        assert not [line for line in after["said"] if "[warn]" in line]
    found = compare(tmp_path / "whole" / "step-8", tmp_path / "cut" / "step-8")
    assert not found.differences and found.tensors > 15


def state_of(_rank: int, path: Path, kind: str, **how: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Return in each rank the whole weights, the whole optimizer state by name, and the report, of what was loaded."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict

    from resume_helper import load_resume_bundle

    model, optimizer = build(kind, **how)
    bundle = load_resume_bundle(model, optimizer, ckpt_path=path, ranks="all", allow_partial_weights=bool(how))
    whole = StateDictOptions(full_state_dict=True)
    weights = get_model_state_dict(model, options=whole)
    if kind == "zero":
        names = [name for name, _ in model.named_parameters()]
        optimizer.consolidate_state_dict(0)
        states = optimizer.state_dict()["state"] if torch.distributed.get_rank() == 0 else {}
        moments = {names[number].removeprefix("module."): one for number, one in states.items()}
    else:
        moments = dict(get_optimizer_state_dict(model, optimizer, options=whole)["state"])
    flat = {f"{name} {key}": value.tolist() for name, one in moments.items() for key, value in one.items()}
    return {name: value.tolist() for name, value in weights.items()}, flat, bundle.report


@pytest.mark.parametrize(
    ("before", "count", "after", "now"),
    [("fsdp2", 2, "plain", 1), ("plain", 1, "fsdp2", 2), ("fsdp1", 2, "fsdp2", 2), ("fsdp2", 2, "fsdp1", 2),
     ("fsdp2", 2, "fsdp2", 3), ("zero", 2, "fsdp2", 2), ("zero", 2, "zero", 1), ("fsdp2", 2, "zero", 2)],
)  # fmt: skip
def test_another_number_of_ranks_or_another_way_to_spread_gets_equal_weights_and_moments(
    before: str, count: int, after: str, now: int, tmp_path: Path
) -> None:
    good(in_ranks(count, train, tmp_path, before, 2))
    same = good(in_ranks(count, state_of, tmp_path / "step-2", before))[0]
    other = good(in_ranks(now, state_of, tmp_path / "step-2", after))[0]
    assert {**same[0]} == {**other[0]} and len(same[0]) == 5
    assert same[1] == other[1] and len(same[1]) == 12
    if count != now:
        assert other[2]["rng"] == f"reset: left as it is, world_size: {count} at the save, {now} now"
        assert other[2]["data_position"].startswith("reset: each of") or now > count == 1


def test_a_rank_killed_in_a_save_leaves_no_candidate_and_the_older_one_is_taken(tmp_path: Path) -> None:
    def kill(rank: int, step: int) -> None:
        if step == 4 and rank == 1:
            import torch.distributed.checkpoint.filesystem as filesystem

            written = filesystem.FileSystemWriter.write_data

            def die_behind(*args: Any) -> None:
                written(*args).wait()
                os.kill(os.getpid(), signal.SIGKILL)

            filesystem.FileSystemWriter.write_data = die_behind

    of_0, of_1 = in_ranks(2, train, tmp_path / "checkpoints", "fsdp2", 6, None, 2, kill, wait_s=3.0)
    assert isinstance(of_1, ConnectionError) and not isinstance(of_0, dict), "and rank 0 does not go on alone"
    assert [one.name for one in (tmp_path / "checkpoints").iterdir()] == ["step-2"]
    found = chosen(tmp_path / "checkpoints")
    assert [(one.name, one.verdict, one.grade) for one in found.candidates] == [("step-2", "chosen", "proven")]


def test_what_a_save_cut_by_a_power_cut_leaves_is_swept_by_the_next_one_and_is_never_a_candidate(
    tmp_path: Path,
) -> None:
    def kill(rank: int, step: int) -> None:
        if step == 4 and rank == 0:
            from resumekit.trainer import sharded

            sharded._publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    in_ranks(2, train, tmp_path / "checkpoints", "fsdp2", 6, None, 2, kill, wait_s=3.0)
    left = sorted(one.name for one in (tmp_path / "checkpoints").iterdir())
    assert len(left) == 2 and left[0].startswith(".step-4.tmp-")
    assert [one.name for one in chosen(tmp_path / "checkpoints").candidates if one.verdict == "chosen"] == ["step-2"]
    good(in_ranks(2, train, tmp_path / "checkpoints", "fsdp2", 4, tmp_path / "checkpoints" / "step-2"))
    assert sorted(one.name for one in (tmp_path / "checkpoints").iterdir()) == ["step-2", "step-4"]


def save_all(rank: int, folder: Path, kind: str = "fsdp2", **how: Any) -> Any:
    """Save one step; each rank returns what it got."""
    from resume_helper import save_sharded

    model, optimizer = build(kind)
    model(torch.randn(4, 5)).sum().backward()
    optimizer.step()
    for name, value in how.pop("poison", {}).get(rank, {}).items():
        parameter = dict(model.named_parameters())[name]
        (parameter.to_local() if hasattr(parameter, "to_local") else parameter).data.fill_(value)
    own = {name: value(rank) if callable(value) and name != "log_fn" else value for name, value in how.items()}
    given: dict[str, Any] = {"step": 1, "data_state": {"rank": rank}, "pattern": PATTERN, **own}
    path = save_sharded(folder, given.pop("step"), model=model, optimizer=optimizer, **given)
    return None if path is None else path.name


def test_what_one_rank_refuses_all_refuse_and_nothing_is_left(tmp_path: Path) -> None:
    def unsafe(rank: int) -> Any:
        return object() if rank else {"rank": 0}

    for how, words in (
        ({"data_state": unsafe}, "the checkpoint's 'data_state' is a 'builtins.object'"),
        ({"extra": {"global_step": 1}}, "the extra entry 'global_step' of save_sharded has a name of the kit's own"),
        ({"step": lambda rank: 5 + rank}, "rank 1 is at the sharded save of step 6"),
        ({"best": {"score": "high"}}, "save_sharded: best="),
    ):
        answers = raised(
            in_ranks(2, lambda rank, how=how: save_all(rank, tmp_path / "checkpoints", **how), wait_s=10.0)
        )
        assert all(one.startswith("KitError") and words in one for one in answers), answers
    assert not (tmp_path / "checkpoints").exists()


def test_a_value_of_any_rank_that_is_not_finite_is_known_and_never_resumed_from(tmp_path: Path) -> None:
    poison = {1: {"body.weight": float("nan")}}
    good(in_ranks(2, lambda rank: save_all(rank, tmp_path / "checkpoints", poison=poison)))
    known = manifest.read(tmp_path / "checkpoints" / "step-1")
    assert known.finite is False and known.nonfinite == ("model_state_dict.body.weight",)
    assert chosen(tmp_path / "checkpoints").chosen is None


def test_a_disk_that_fails_in_one_rank_is_a_failed_save_in_all_and_training_goes_on(tmp_path: Path) -> None:
    def save(rank: int) -> Any:
        import errno

        import torch.distributed.checkpoint.filesystem as filesystem

        def full(*_args: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        said: list[str] = []
        real = filesystem.FileSystemWriter.write_data
        filesystem.FileSystemWriter.write_data = full if rank == 1 else real
        first = save_all(rank, tmp_path / "checkpoints", log_fn=said.append)
        filesystem.FileSystemWriter.write_data = real
        return first, save_all(rank, tmp_path / "checkpoints", step=2), said

    of_0, of_1 = good(in_ranks(2, save))
    assert of_0[:2] == of_1[:2] == (None, "step-2")
    assert "[warn] 'step-1' was not saved" in of_0[2][0] and "no space" in of_0[2][0] and of_1[2] == []
    assert [one.name for one in (tmp_path / "checkpoints").iterdir()] == ["step-2"]


def test_the_same_step_saved_again_is_the_same_folder_and_a_foreign_one_is_never_overwritten(tmp_path: Path) -> None:
    def twice(rank: int) -> Any:
        first = save_all(rank, tmp_path / "checkpoints")
        inode = os.stat(tmp_path / "checkpoints" / "step-1").st_ino
        second = save_all(rank, tmp_path / "checkpoints")
        return first, second, inode == os.stat(tmp_path / "checkpoints" / "step-1").st_ino

    assert good(in_ranks(2, twice)) == [("step-1", "step-1", True)] * 2
    assert in_ranks(2, save_all, tmp_path / "checkpoints") == [None, None]


def test_folders_that_ranks_do_not_share_are_no_checkpoint(tmp_path: Path) -> None:
    def save(rank: int) -> Any:
        from resumekit.trainer import sharded

        real = sharded._write
        sharded._write = lambda folder, held, target: real(Path(f"{folder}-{rank}" if rank else folder), held, target)
        return save_all(rank, tmp_path / "checkpoints")

    words = f"'{tmp_path}/checkpoints' does not hold what the ranks have written: is it on a disk that all"
    assert all(words in one for one in raised(in_ranks(2, save, wait_s=10.0)))
    assert not (tmp_path / "checkpoints" / "step-1").exists()


def test_each_of_two_ranks_refuses_what_the_other_finds_damaged_and_nothing_is_loaded(tmp_path: Path) -> None:
    good(in_ranks(2, save_all, tmp_path / "checkpoints"))
    folder = tmp_path / "checkpoints" / "step-1"
    shard = folder / "__1_0.distcp"
    flip(shard, shard.stat().st_size - 300)

    def load(rank: int) -> Any:
        from resume_helper import load_resume_bundle

        model, optimizer = build("fsdp2")
        before = [value.to_local().clone() for value in model.parameters()]
        try:
            load_resume_bundle(model, optimizer, ckpt_path=folder, ranks="all")
        except NoStableCheckpoint as error:
            after = [value.to_local() for value in model.parameters()]
            return str(error), all(map(torch.equal, before, after)), len(optimizer.state)
        return "loaded"

    for said, is_untouched, states in good(in_ranks(2, load, wait_s=10.0)):
        assert "the digest of '__1_0.distcp' differs from its manifest" in said and is_untouched and not states


def test_a_load_of_one_rank_alone_is_refused_and_a_smaller_model_gets_what_fits(tmp_path: Path) -> None:
    good(in_ranks(2, save_all, tmp_path / "checkpoints"))
    folder = tmp_path / "checkpoints" / "step-1"

    def load(rank: int) -> Any:
        from resume_helper import load_resume_bundle

        try:
            load_resume_bundle(*build("fsdp2"), ckpt_path=folder)
        except KitError as error:
            alone = str(error)
        model, optimizer = build("fsdp2", extra=True)
        bundle = load_resume_bundle(model, optimizer, ckpt_path=folder, ranks="all", allow_partial_weights=True)
        try:
            load_resume_bundle(*build("fsdp2", extra=True), ckpt_path=folder, ranks="all", allow_partial_weights=True,
                               new_params="kaiming")  # fmt: skip
        except KitError as error:
            kaiming = str(error)
        return alone, bundle.report["weights"], bundle.report["optimizer"], sorted(bundle.missing), kaiming

    for alone, weights, moments, missing, kaiming in good(in_ranks(2, load, wait_s=10.0)):
        assert "pass ranks='all' in every rank" in alone
        assert weights.startswith("partial: 5 of 7") and moments == "partial: 4 of 6 parameters, 2 new"
        assert missing == ["more.bias", "more.weight"]
        assert "new_params='kaiming' is not supported for a model that is spread over ranks" in kaiming


def test_a_whole_file_goes_into_fully_shard_by_parts_and_into_fsdp1_not_at_all(tmp_path: Path) -> None:
    from resume_helper import save_checkpoint

    model, optimizer = build("plain")
    model(torch.randn(4, 5)).sum().backward()
    optimizer.step()
    path = save_checkpoint(tmp_path, 1, model=model, optimizer=optimizer, data_state={}, pattern="m_{step}.pt")

    def load(rank: int) -> Any:
        from resume_helper import load_resume_bundle

        own, moments = build("fsdp2")
        bundle = load_resume_bundle(own, moments, ckpt_path=path, ranks="all")
        said: list[str] = []
        own(torch.randn(4, 5)).sum().backward()
        moments.register_step_pre_hook(lambda *_: said.append("stepped"))
        whole = {name: value.full_tensor().tolist() for name, value in own.named_parameters()}
        first = {name: moments.state[value]["exp_avg"].full_tensor().tolist() for name, value in own.named_parameters()}
        try:
            load_resume_bundle(*build("fsdp1"), ckpt_path=path, ranks="all")
        except KitError as error:
            return whole, first, bundle.report["optimizer"], str(error)

    names = dict(model.named_parameters())
    for whole, first, report, said in good(in_ranks(2, load, wait_s=10.0)):
        assert whole == {name: value.tolist() for name, value in names.items()} and report == "load"
        assert first == {name: optimizer.state[value]["exp_avg"].tolist() for name, value in names.items()}
        assert "a whole file of save_checkpoint cannot be loaded into a model under FullyShardedDataParallel" in said


def test_save_checkpoint_names_save_sharded_where_a_rank_holds_a_part() -> None:
    def save(rank: int, kind: str) -> Any:
        from resume_helper import save_checkpoint

        return save_checkpoint("unused", 1, model=build(kind)[0])

    for kind in ("fsdp2", "fsdp1"):
        assert all("with save_sharded, in every rank" in one for one in raised(in_ranks(2, save, kind)))


@pytest.mark.parametrize("kind", ["fsdp2", "fsdp1"])
def test_at_the_first_step_each_rank_compares_its_part_with_the_checkpoint(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good(in_ranks(2, save_all, tmp_path / "checkpoints", kind))

    def load(rank: int, is_moved: bool) -> Any:
        from resume_helper import load_resume_bundle
        from resumekit.trainer import verification

        model, optimizer = build(kind)
        checks: dict[str, tuple[str, str]] = {}
        verification.journal_event = lambda _event, **one: checks.update({one["name"]: (one["verdict"], one["why"])})
        load_resume_bundle(model, optimizer, ckpt_path=tmp_path / "checkpoints" / "step-1", ranks="all")
        if is_moved and rank == 1:
            model.body.weight.to_local().data.add_(1)
        model(torch.randn(4, 5)).sum().backward()
        optimizer.step()
        return checks

    of_0 = good(in_ranks(2, load, False))[0]
    verdict = "passed" if kind == "fsdp2" else "not_told"
    assert (of_0["weights"][0], of_0["optimizer"][0]) == (verdict, verdict)
    if kind == "fsdp2":
        of_0 = good(in_ranks(2, load, True))[0]
        assert of_0["weights"] == ("failed", "rank 1; body.weight") and of_0["optimizer"][0] == "passed"


def test_under_the_launcher_a_folder_is_proven_a_damaged_one_quarantined_and_the_older_resumed(kit: Kit) -> None:
    command = ["{python}", str(ROOT / "tests/support/sharded_trainer.py"), "--dir", "{checkpoints_dir}", "--steps",
               "{training.max_steps}"]  # fmt: skip
    trainer = {"command": command, "loads_with_kit": True, "log_patterns": {}}
    kit.config(trainer=trainer, training={"max_steps": 4}, checkpoint={"pattern": PATTERN})
    kit("run", "T-1")
    [first] = kit.run_dirs()
    known = manifest.read(first / "checkpoints" / "step-4")
    assert (known.kind, known.world_size, known.rng_ranks, known.finite) == ("dcp", 2, 2, True)
    assert known.step_completed is True and known.run_id == first.name and len(known.files) == 4
    dry = kit("resume", "T-1", "--set", "training.max_steps=8", "--dry-run")
    assert "at step 4" in dry.stdout and "proven: newest stable; SHA-256 as in its manifest" in dry.stdout
    shard = first / "checkpoints" / "step-4" / "__1_0.distcp"
    flip(shard, shard.stat().st_size // 2)
    kit("resume", "T-1", "--set", "training.max_steps=6")
    child = kit.run_dirs()[-1]
    [resumed] = events(child, "resumed")
    assert resumed["step"] == 2 and resumed["report"]["weights"] == resumed["report"]["rng"] == "load"
    assert "step-4" in (first / "quarantine.json").read_text()
    verdicts = {one["name"]: one["verdict"] for one in events(child, "check")}
    assert verdicts["weights"] == verdicts["optimizer"] == "passed" and "failed" not in verdicts.values()
    assert [one["step"] for one in events(child, "checkpoint")] == [4, 6], "rank 0 speaks for both"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "checkpoints"
    good(in_ranks(2, save_all, folder))
    return folder / "step-1"


def without_entry(folder: Path, is_gone: Callable[[Any], bool], *, of_chunks: bool) -> None:
    """Leave entries out of `.metadata`, as a save would that forgot them."""
    told = pickle.loads((folder / ".metadata").read_bytes())
    for index in [index for index in told.storage_data if is_gone(index)]:
        del told.storage_data[index]
        if of_chunks:
            held = told.state_dict_metadata[index.fqn]
            held.chunks = [one for one in held.chunks if one.offsets != index.offset]
        else:
            told.state_dict_metadata.pop(index.fqn, None)
    (folder / ".metadata").write_bytes(pickle.dumps(told))


def changed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = torch.load(folder / "resumekit.pt", weights_only=True)
    change(content)
    torch.save(content, folder / "resumekit.pt")


ADAM = "optimizer_state_dict.state.head.bias.exp_avg"
OMISSIONS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a rank's shard": (lambda f: (f / "__1_0.distcp").unlink(), "'__1_0.distcp', which its .metadata names, is not"),
    ".metadata": (lambda f: (f / ".metadata").unlink(), "no .metadata, which is written last"),
    "the plain file": (lambda f: (f / "resumekit.pt").unlink(), "not a regular file (directory)"),
    "a moment of Adam": (
        lambda f: without_entry(f, lambda index: index.fqn == ADAM, of_chunks=False),
        f"'{ADAM}', which 'resumekit.pt' names, is in no shard",
    ),
    "one rank's part of a moment": (
        lambda f: without_entry(f, lambda index: index.fqn == ADAM and index.offset == (2,), of_chunks=True),
        f"its .metadata has 2 of the 3 elements of '{ADAM}'",
    ),
    "one rank's generators": (
        lambda f: changed(f, lambda content: content["rank_states"][1].update(rng_state=None)),
        "'resumekit.pt' in it has no random number generators of rank 1",
    ),
    "one rank's data state": (
        lambda f: changed(f, lambda content: content["rank_states"][1].update(data_state=None)),
        "'resumekit.pt' in it has no data state of rank 1, which other ranks have",
    ),
    "all of one rank": (
        lambda f: changed(f, lambda content: content["rank_states"].pop()),
        "'resumekit.pt' in it has the generators and data state of 1 of 2 ranks",
    ),
    "a weight": (
        lambda f: changed(f, lambda content: content["model_state_dict"].pop("head.bias")),
        "'model_state_dict.head.bias' is in a shard, and 'resumekit.pt' does not name it",
    ),
}


@pytest.mark.parametrize("what", OMISSIONS)
def test_what_a_save_has_left_out_is_seen_though_the_manifest_agrees_with_it(
    what: str, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints" / "step-1"
    shutil.copytree(whole, folder)
    change, reason = OMISSIONS[what]
    change(folder)
    files = tuple(
        manifest.FileDigest(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.iterdir())
    )
    agrees = {"files": files, "size": sum(one.size for one in files), "sha256": manifest.digest_of(files)}
    manifest.write(folder, manifest.read(whole)._replace(**agrees))
    found = chosen(folder.parent)
    assert found.chosen is None and found.candidates[0].reason.startswith(reason)
    if sharded_content.is_one(folder):
        model, optimizer = build("plain")
        with pytest.raises(NoStableCheckpoint, match=re.escape(reason)):
            sharded_content.read_proven(folder, sharded_content.Live(model, optimizer), is_of_all=True)


class Shadow:
    """An average of the weights that keeps them by name, as they are spread."""

    def __init__(self, model: Any) -> None:
        self.shadow = {name: value.detach().clone() for name, value in model.named_parameters()}

    def state_dict(self) -> dict[str, Any]:
        return {f"shadow.{name}": value for name, value in self.shadow.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shadow = {name.removeprefix("shadow."): value for name, value in state.items()}


def numbers_of(model: Any, optimizers: dict[str, Any], average: Shadow) -> dict[str, Any]:
    """Return this rank's part of all that was saved, as lists."""
    values: dict[str, Any] = dict(model.named_parameters())
    values |= {f"ema {name}": value for name, value in average.shadow.items()}
    for key, one in optimizers.items():
        for number, state in one.state_dict()["state"].items():
            values |= {f"{key} {number} {name}": value for name, value in state.items()}
    return {
        name: (value.to_local() if hasattr(value, "to_local") else value).tolist() for name, value in values.items()
    }


def test_several_optimizers_an_average_and_a_state_without_moments_come_back(tmp_path: Path) -> None:
    def made() -> tuple[Any, dict[str, Any], Shadow]:
        model, _ = build("fsdp2")
        several = {"body": torch.optim.AdamW(model.body.parameters(), amsgrad=True),
                   "head": torch.optim.SGD(model.head.parameters(), lr=0.1, momentum=0.9)}  # fmt: skip
        return model, several, Shadow(model)

    def save_and_load(rank: int) -> Any:
        from resume_helper import load_resume_bundle, save_sharded

        model, several, average = made()
        save_sharded(tmp_path, 0, model=model, optimizer=several, ema=average, pattern=PATTERN)
        torch.manual_seed(rank)
        model(torch.randn(4, 5)).sum().backward()
        for one in several.values():
            one.step()
        average.shadow["body.bias"].add_(1)
        save_sharded(tmp_path, 1, model=model, optimizer=several, ema=average, pattern=PATTERN)
        saved, found = numbers_of(model, several, average), []
        for step in (0, 1):
            model, several, average = made()
            bundle = load_resume_bundle(model, several, ema=average, ckpt_path=tmp_path / f"step-{step}", ranks="all")
            found.append((numbers_of(model, several, average), bundle.report))
        return saved, found

    for saved, [(begin, _), (loaded, report)] in good(in_ranks(2, save_and_load)):
        assert loaded == saved and len(saved) == 4 + 4 + 2 * 4 + 2
        assert not [name for name in begin if name.startswith(("body ", "head "))], "no step was taken for a state"
        assert report["optimizer.body"] == report["optimizer.head"] == report["ema"] == "load"
    assert len(manifest.read(tmp_path / "step-1").weights) == 2


def test_a_process_alone_saves_and_loads_without_a_group_and_resets_what_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resume_helper import load_resume_bundle

    monkeypatch.setattr(saving, "_has_told_of_no_data_state", False)  # it is said once in a process
    folder = tmp_path / "checkpoints"
    assert save_all(0, folder, kind="plain", data_state={"place": 3}) == "step-1"
    model, optimizer = build("plain")
    said: list[str] = []
    save_all(0, folder, kind="plain", step=2, data_state=None, log_fn=said.append)
    assert any("save_sharded got no data_state" in line for line in said)
    bundle = load_resume_bundle(model, optimizer, ckpt_path=folder / "step-1", optimizer_policy="reset")
    assert bundle.report["optimizer"].startswith("reset") and not optimizer.state
    assert bundle.report["rng"] == "load" and bundle.extra["data_state"] == {"place": 3}
    assert chosen(folder).chosen is not None
    assert manifest.read(folder / "step-1").world_size == 1


def test_a_buffer_that_was_finite_and_is_not_any_more_is_known_under_fsdp1_too(tmp_path: Path) -> None:
    def save(rank: int) -> None:
        from resume_helper import save_sharded

        model, _ = build("fsdp1")
        for step, value in ((1, 0.0), (2, float("inf"))):
            next(model.buffers()).fill_(value)
            save_sharded(tmp_path / "checkpoints", step, model=model, data_state={}, pattern=PATTERN)

    good(in_ranks(2, save))
    assert manifest.read(tmp_path / "checkpoints" / "step-1").finite is True
    assert manifest.read(tmp_path / "checkpoints" / "step-2").nonfinite == ("model_state_dict.seen",)


def test_under_fsdp1_a_save_before_the_first_step_takes_none(tmp_path: Path) -> None:
    def save(rank: int) -> Any:
        from resume_helper import load_resume_bundle, save_sharded

        model, optimizer = build("fsdp1")
        save_sharded(tmp_path, 0, model=model, optimizer=optimizer, data_state={}, pattern=PATTERN)
        again, moments = build("fsdp1")
        load_resume_bundle(again, moments, ckpt_path=tmp_path / "step-0", ranks="all")
        return len(optimizer.state), len(moments.state)

    assert good(in_ranks(2, save)) == [(0, 0)] * 2
