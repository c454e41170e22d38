"""The protocol taken at its word: §13's snippet, §6's keys and §5's tree, through three resumes with a planned swap.

The trainer is written as by a user who has read the protocol alone: plain `torch.save`, file names of its own, an AdamW
that it makes in each process.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.commands import Kit
from support.fork_server import ForkServer
from support.long_tests import long
from support.places import ROOT
from support.runs import events

TRAINER = """
import argparse, os, sys
sys.path.insert(0, {lib!r})
import torch
from resume_helper import heartbeat_writer, load_resume_bundle, make_run_id, make_status_payload

parser = argparse.ArgumentParser()
for flag in ("exp_name", "parent_run_id", "resume", "optimizer_policy", "schedule_policy", "status_json_path"):
    parser.add_argument("--" + flag)
parser.add_argument("--checkpoints")
parser.add_argument("--resume_step", type=int)
parser.add_argument("--allow_partial", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
scaler = None
run_id = make_run_id(args.exp_name, parent_run_id=args.parent_run_id, resume_step=args.resume_step)
step = 0
if args.resume:
    bundle = load_resume_bundle(
        model, optimizer, scheduler, scaler, ckpt_path=args.resume, allow_partial_weights=args.allow_partial,
        optimizer_policy=args.optimizer_policy or "load", schedule_policy=args.schedule_policy or "load", log_fn=print,
    )
    optimizer, step = bundle.optimizer, bundle.global_step
loss = torch.tensor(0.0)
payload = lambda: make_status_payload(run_id, global_step=step, loss=loss.item(), lr=optimizer.param_groups[0]["lr"])
write_status = heartbeat_writer(args.status_json_path, payload, 60)
last = step + 10
while step < last:
    optimizer.zero_grad()
    loss = (model(torch.randn(8, 4)) - 1).square().mean()
    loss.backward()
    optimizer.step()
    scheduler.step()
    step += 1
    print(f"step {{step}} loss {{loss.item():.6f}} with {{type(optimizer).__name__}}", flush=True)
    write_status()
torch.save({{
    "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict(),
    "scheduler_state_dict": scheduler.state_dict(), "scaler_state_dict": None, "global_step": step, "epoch": 0,
    "best_val_loss": 1.0,
}}, os.path.join(args.checkpoints, f"model_{{step}}.pt"))
"""
FLAGS = ["--exp_name", "{experiment.name}", "--status_json_path", "{heartbeat_json}",
         "--checkpoints", "{checkpoints_dir}"]  # fmt: skip
RESUMED = ["--resume", "{checkpoint}", "--resume_step", "{step}", "--parent_run_id", "{parent_run_id}"]


@pytest.fixture
def lab(kit: Kit, tmp_path: Path, scripts: ForkServer) -> Any:
    """Write the trainer, and a config that says how it is started; return what writes the config."""
    script = tmp_path / "train.py"
    script.write_text(TRAINER.format(lib=str(ROOT / "lib")))

    def configure(resume_args: list[str], **optimizer: Any) -> None:
        trainer = {"command": scripts.script(script, *FLAGS), "resume_args": resume_args, "loads_with_kit": True,
                   "schedule_with_kit": False,
                   "log_patterns": {"step": "step ([0-9]+)", "loss": "loss ([0-9.]+)"}}  # fmt: skip
        kit.config(
            trainer=trainer, training={"max_steps": 1000}, checkpoint={"pattern": "model_{step}.pt"},
            optimizer={"name": "adamw", "lr": 1e-3, "swap_lr_steps": 5, **optimizer},
        )  # fmt: skip

    return configure


def optimizers(run: Path) -> set[str]:
    lines = (run / "logs" / "output.log").read_text().splitlines()
    return {line.rpartition(" ")[2] for line in lines if line.startswith("step ")}


def resumed(kit: Kit, *more: str) -> tuple[str, set[str], int]:
    """Resume; return what the plan says of the optimizer, which one trained, and how many swaps were journaled."""
    plan = json.loads(kit("resume", "T-1", *more, "--dry-run", "--json").stdout)
    kit("resume", "T-1", *more)
    run = kit.run_dirs()[-1]
    (event,) = events(run, "resumed")
    assert event["report"]["optimizer"].partition(":")[0] == plan["components"]["optimizer"]["action"], "as planned"
    checks = {one["name"]: one["verdict"] for one in events(run, "check")}
    assert "failed" not in checks.values(), checks
    return plan["components"]["optimizer"]["action"], optimizers(run), len(events(run, "swap"))


@pytest.mark.parametrize("how", ["swap_at", long("swap_to_lion")])
def test_a_swap_happens_as_planned_once_over_three_resumes(lab: Any, kit: Kit, how: str) -> None:
    pytest.importorskip("lion_pytorch")
    lab(RESUMED, **({"swap_at": 10, "swap_to": "lion"} if how == "swap_at" else {}))
    kit("run", "T-1")
    assert optimizers(kit.run_dirs()[-1]) == {"AdamW"}
    asked = () if how == "swap_at" else ("--set", "resume.optimizer=swap_to_lion")
    assert resumed(kit, *asked) == ("swap", {"Lion"}, 1)
    assert resumed(kit, *asked) == ("load", {"Lion"}, 0)
    assert resumed(kit, *asked) == ("load", {"Lion"}, 0)


def test_a_folder_of_the_protocol_is_found_and_continued(lab: Any, kit: Kit) -> None:
    """§5: `runs/EXP_<name>/` with checkpoints/, logs/train.log and status.json, made without the kit."""
    lab(RESUMED)
    kit("run", "T-1")
    made = kit.run_dirs()[-1]
    folder = kit.runs / "T-1_droppath_base"
    (folder / "logs").mkdir(parents=True)
    shutil.copytree(made / "checkpoints", folder / "checkpoints", ignore=shutil.ignore_patterns("*.json"))
    shutil.copy(made / "logs" / "output.log", folder / "logs" / "train.log")
    (folder / "status.json").write_text(json.dumps({"run_id": folder.name, "global_step": 10}))
    shutil.rmtree(made)
    kit("resume", "T-1", "--step", "10")
    run = next(one for one in kit.run_dirs() if one != folder)
    record = json.loads((run / "run.json").read_text())
    assert (record["parent_run_id"], record["parent_step"]) == (folder.name, 10)
    assert "resume@10" in run.name
    log = (run / "logs" / "output.log").read_text()
    assert "[resume] step=10 epoch=0 best_val=1.0000" in log and "step 11 " in log
