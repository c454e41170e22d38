"""A new lineage with the weights of a base: run.sh --init-from, and what begins in its place."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumekit.base.errors import Refused
from resumekit.config import config, schema
from resumekit.start import init_base
from support.commands import Kit
from support.places import ROOT
from support.runs import record
from support.toy_trainer import Tensor, write_checkpoint

INIT_ARGS = {"init_args": ["--init-from", "{init_from}"], "env": ["RESUMEKIT_TEST_MARK"]}


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = Kit(tmp_path / "lab")
    yield kit
    kit.clean_up()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "released model.pt"
    write_checkpoint(path, 25)
    return path


def test_a_lineage_begins_with_a_base_until_it_has_a_checkpoint_of_its_own(kit: Kit, base: Path) -> None:
    """The trainer is killed before its first save, is taken up by itself, and is begun once more by hand."""
    recover = {"enabled": True, "max_attempts": 1, "backoff_s": 1}
    kit.config("--save-every", "2", trainer=INIT_ARGS, recover=recover)
    page = kit("run", "T-1", "--init-from", str(base), "--dry-run").stdout
    assert f"starting T-1 anew, with the weights of '{base}'" in page and "its weights alone, at step 0" in page
    assert json.loads(kit("run", "T-1", "--init-from", str(base), "--dry-run", "--json").stdout)["init_from"]
    kit("run", "T-1", "--init-from", str(base), code=137, env={"TOY_ARGS": "--at 1 kill"})
    kit("run", "T-1")
    runs = kit.run_dirs()
    assert [record(run)["relation"] for run in runs] == ["fresh", "continue", "continue"]
    sha256 = hashlib.sha256(base.read_bytes()).hexdigest()
    for run in runs:
        assert record(run)["init_from"] == {"path": str(base), "kind": "file", "sha256": sha256}
        assert record(run)["argv"][-2:] == ["--init-from", str(base)] and "--resume" not in record(run)["argv"]
        assert json.loads((run / "resume_plan.json").read_text())["init_from"]["sha256"] == sha256
        assert "weights of step 25\ntoy trainer, from step 0" in (run / "logs" / "output.log").read_text()
    assert "--init-from" in (runs[-1] / "command.sh").read_text()
    base.unlink()
    goes_on = json.loads(kit("resume", "T-1", "--step", "4", "--dry-run", "--json").stdout)
    assert (goes_on["step"], goes_on["init_from"]) == (4, None)


@pytest.mark.parametrize(
    ("words", "trainer", "code", "says"),
    [
        (
            ["--init-from", "BASE"],
            {},
            4,
            "never told whose weights to begin with (run.sh --init-from): set trainer.init_args",
        ),
        (["--init-from", "BASE", "--resume", "BASE"], INIT_ARGS, 2, "--resume and --init-from exclude each other"),
        (["--init-from", "BASE", "--step", "4"], INIT_ARGS, 2, "unknown option '--step'"),
        (["--init-from", "gone.pt"], INIT_ARGS, 2, "there is no checkpoint 'gone.pt'"),
        (["--init-from", "."], INIT_ARGS, 3, "'.' (--init-from) cannot be begun with: '"),
        (["--init-from", "FIFO"], INIT_ARGS, 3, "(--init-from) cannot be begun with: not a regular file (fifo)"),
        (["--init-from", "ODD"], INIT_ARGS, 3, "(--init-from) cannot be begun with: "),
        (["--init-from", "NAN"], INIT_ARGS, 3, "not finite: "),
        (["--init-from", "KEYLESS"], {"loads_with_kit": True}, 6, "'keyless.pt' has no 'model_state_dict' (it has: "),
        (["--init-from", "BASE", "--set", "resume.weights=reset"], INIT_ARGS, 6, "resume.weights is 'reset'"),
    ],
)
def test_what_cannot_be_begun_with_is_refused_in_a_sentence(
    kit: Kit, base: Path, words: list[str], trainer: dict[str, Any], code: int, says: str
) -> None:
    places = {"BASE": base, "FIFO": base.with_name("fifo"), "ODD": base.with_name("odd.pt")}
    places |= {"NAN": base.with_name("nan.pt"), "KEYLESS": base.with_name("keyless.pt")}
    os.mkfifo(places["FIFO"])
    places["ODD"].write_bytes(b"\x80\x02no zip")
    write_checkpoint(places["NAN"], 25, model_state_dict={"weight": Tensor([float("nan")])})
    write_checkpoint(places["KEYLESS"], 25, model_state_dict=None, weights={"weight": Tensor([1.0])})
    kit.config(trainer=trainer)
    done = kit("run", "T-1", *(str(places.get(word, word)) for word in words), code=code)
    (sentence,) = done.stderr.splitlines()
    assert says in sentence, sentence
    assert not kit.run_dirs()


def test_a_base_that_is_another_one_by_now_is_refused(base: Path) -> None:
    resolved = config.override({"trainer": {"command": ["train"]}}, (), schema.load(), "a test")
    found = init_base.find(base, resolved)
    own = {"run_id": "R-1", "init_from": found.as_fields()}
    assert (again := init_base.again(own, resolved)) and again.as_fields() == found.as_fields()
    assert init_base.again({"run_id": "R-1"}, resolved) is None
    write_checkpoint(base, 26)
    with pytest.raises(Refused, match=r"'R-1' began with the weights of '.*model.pt', which has changed since"):
        init_base.again(own, resolved)
    base.write_bytes(b"")
    with pytest.raises(Refused, match="cannot be begun with: "):
        init_base.again(own, resolved)
    base.unlink()
    with pytest.raises(Refused, match=r"which is not there any more: put it back, or run\.sh --fresh begins without"):
        init_base.again(own, resolved)
    for odd in ({"path": 7}, {"path": "a\0b", "sha256": "0" * 64}):
        with pytest.raises(Refused, match="cannot be read"):
            init_base.again({"run_id": "R-1", "init_from": odd}, resolved)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("hf/sharded", "hf"),
        ("hf/checkpoint-4", "hf"),
        ("accelerate/step_4", "hf"),  # what is taken of both is in the same files
        ("dcp/alone-4", "dcp"),
        ("pair/model_4.safetensors", "safetensors"),
        ("hrm/step_4", "file"),
    ],
)
def test_the_weights_of_any_kind_are_a_base(name: str, kind: str) -> None:
    resolved = config.override({"trainer": {"command": ["train"]}}, (), schema.load(), "a test")
    found = init_base.find(ROOT / "tests" / "recorded" / "foreign" / name, resolved)
    assert found.kind == kind and found.candidate.content.tensors and len(found.sha256) == 64
