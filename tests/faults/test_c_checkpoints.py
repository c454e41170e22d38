"""Bad checkpoints at the load, what tests/test_checkpoints.py and test_archive.py do not show of section C."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from resumekit.checkpoint import form
from resumekit.checkpoint.selection import CheckpointFolder, select
from resumekit.trainer.saving import save_checkpoint
from support.checkpoint_tools import quiet, save_plain, save_steps, small_model

pytestmark = pytest.mark.usefixtures("in_a_new_process")


@pytest.mark.fault("C7", by="saving: looks at every value; grades: a manifest that says so is refused")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("weights", "model_state_dict.2.bias"),
        ("optimizer", "optimizer_state_dict.state.3.exp_avg"),
        ("ema", "ema_state_dict.module.2.bias"),
    ],
)
def test_c7_what_is_not_finite_is_named_and_the_older_one_taken_even_where_it_is_asked_for(
    tmp_path: Path, where: str, named: str, value: float
) -> None:
    save_steps(tmp_path, 10)
    model, optimizer = small_model()
    average = torch.optim.swa_utils.AveragedModel(model)
    spoilt = {"weights": model[2].bias, "optimizer": optimizer.state[model[2].bias]["exp_avg"],
              "ema": average.module[2].bias}  # fmt: skip
    with torch.no_grad():
        spoilt[where][0] = value
    path = save_checkpoint(tmp_path, 20, model=model, optimizer=optimizer, ema=average, log_fn=quiet)
    assert path is not None
    found = select([CheckpointFolder(tmp_path)])
    assert found.chosen is not None and found.chosen.step == 10
    assert found.candidates[0].reason == f"not finite: {named}"
    for how in ({"step": 20}, {"path": path}):
        asked = select([CheckpointFolder(tmp_path)], **how)
        assert asked.chosen is None and asked.candidates[0].reason == f"not finite: {named}"


LINKS = {
    "dangling": "hrm_arc_step_99.pt",
    "absolute": "/etc/hostname",
    "outside": "../../outside.pt",
    "round in a circle": "latest",
    "a folder": "..",
    "a device": "/dev/zero",
    "good": "hrm_arc_step_10.pt",
}


@pytest.mark.fault("C21", by="selection: names are matched; a link counts only inside its folder")
@pytest.mark.parametrize("target", LINKS.values(), ids=LINKS)
@pytest.mark.parametrize("name", ["latest", "latest.pt", "hrm_arc_step_latest.pt", "hrm_arc_step_30.pt"])
def test_c21_a_link_to_the_latest_decides_nothing(tmp_path: Path, name: str, target: str) -> None:
    """`latest` is no checkpoint's name here; a link under a step's own name is passed over, but for one beside it."""
    folder = tmp_path / "run" / "checkpoints"
    save_plain(folder, 10)
    save_plain(tmp_path, 50).rename(tmp_path / "outside.pt")
    (folder / name).symlink_to(name if target == "latest" else target)
    before = sorted(os.listdir(folder))
    found = select([CheckpointFolder(folder)])
    assert found.chosen is not None and (found.chosen.step, found.chosen.name) == (10, "hrm_arc_step_10.pt")
    said = {one.name: one.reason for one in found.candidates if one != found.chosen}
    assert name not in ("hrm_arc_step_latest.pt", "hrm_arc_step_30.pt") or said[name], said
    assert sorted(os.listdir(folder)) == before


@pytest.mark.fault("C21", by="selection: a link counts only inside its folder")
@pytest.mark.parametrize("target", [target for kind, target in LINKS.items() if kind != "good"])
def test_c21_a_best_that_is_a_link_out_of_its_folder_is_passed_over(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "run" / "checkpoints"
    save_plain(folder, 10)
    save_plain(tmp_path, 50).rename(tmp_path / "outside.pt")
    (folder / "latest.pt").symlink_to("latest.pt" if target == "latest" else target)
    found = select([CheckpointFolder(folder, form=form.of({"best_pattern": "latest.pt"}))], best=True)
    assert found.chosen is None and [bool(one.reason) for one in found.candidates] == [True]
