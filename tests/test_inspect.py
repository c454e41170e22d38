"""resume_helper.py --inspect: what is inside one checkpoint of any kind, and why one is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from resumekit.checkpoint import form, grades, inspect_command
from support.places import ROOT

FOREIGN = ROOT / "tests" / "recorded" / "foreign"


def said_of(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = inspect_command.main(["--inspect", *words])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("hf/checkpoint-4", ["kind       hf, 28,241 bytes in 7 files", "step       4", "best       checkpoint-4",
                             "weights    4 tensors, 26 numbers (26 of float32)", "one: 2 groups, 4 parameters"]),
        ("dcp/step-4", ["kind       dcp", "ranks      2", "keys       model, optim, step"]),
        ("lightning/last.ckpt", ["kind       file", "best       epoch=0-step=4.ckpt"]),
        ("pair/model_4.safetensors", ["kind       safetensors", "step       4"]),
        ("hrm/step_4", ["largest    weight 5x3", "no manifest: its archive is sound"]),
    ],
)  # fmt: skip
def test_a_page_says_what_is_inside(name: str, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, said = said_of(capsys, str(FOREIGN / name))
    assert code == 0 and all(line in said for line in lines), said
    code, said = said_of(capsys, str(FOREIGN / name), "--json")
    assert json.loads(said)["kind"] in form.KINDS


def test_it_goes_by_the_manifest_and_by_the_config_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section = {"pattern": "net_{step}.safetensors", "with": ["optim_{step}.pt"]}
    resolved = {"paths": {"checkpoints": "checkpoints"}, "checkpoint": section}
    (tmp_path / "resolved_config.json").write_text(json.dumps(resolved))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    shutil.copy(FOREIGN / "pair/model_4.safetensors", folder / "net_4.safetensors")
    shutil.copy(FOREIGN / "pair/optim_4.pt", folder / "optim_4.pt")
    grades.attest(folder / "net_4.safetensors", 4, named=form.of(section))
    code, said = said_of(capsys, str(folder / "net_4.safetensors"))
    assert (
        code == 0 and "attested" in said and "in 2 files" in said and "by sidecar" in said and "optimizer  one:" in said
    )


def test_what_is_none_is_said_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for name, why in (("empty", "an empty folder"), ("gone", "not there"), ("b\x1bad", "not there")):
        code, said = said_of(capsys, str(tmp_path / name))
        assert code == 3 and why in said and len(said.splitlines()) == 1 and "\x1b" not in said
