"""Every kind of state that can make a PyTorch trainer's next step, each left out in turn (support/torture_trainer.py).

The training is stopped inside an accumulation window, in the middle of an epoch, with data workers running. With all of
its state it goes on bit for bit; without any one item it does not. So each item is needed, and each is restored.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import torch

from resumekit.checks.comparison import Difference
from resumekit.trainer.comparison import compare
from support import torture_trainer
from support.commands import Kit
from support.fork_server import ForkServer
from support.long_tests import every_fourth
from support.runs import events

STOP_AFTER = 35  # micro-batches: 8 optimizer steps and 3 of 4 micro-batches; 5 of 10 batches of epoch 3
STEPS = list(range(1, torture_trainer.STEPS + 1))


@pytest.fixture(scope="module")
def server() -> ForkServer:
    return ForkServer("support.torture_trainer")


@pytest.fixture(scope="module")
def runs(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: `whole`, never interrupted, and `stopped` inside a window."""
    folder = tmp_path_factory.mktemp("torture")
    train(server, folder / "whole")
    train(server, folder / "stopped", code=143, STOP_AFTER=str(STOP_AFTER))
    assert checkpoint(folder).is_file()
    return folder


def checkpoint(runs: Path) -> Path:
    return runs / "stopped" / "checkpoints" / "hrm_arc_step_8.pt"


def train(server: ForkServer, run: Path, *flags: str, code: int = 0, **environment: str) -> str:
    """Train in a process of its own; returns its output."""
    run.mkdir()
    parent = {"parent_run_id": "stopped", "parent_step": 8} if "--resume" in flags else {}
    (run / "run.json").write_text(json.dumps({"run_id": run.name, **parent}))
    ended, output = server.run(run, "--dir", str(run / "checkpoints"), *flags, **environment), run / "output.log"
    assert ended == code, output.read_text()
    return output.read_text()


def differences(one: Path, other: Path) -> list[Difference]:
    return compare(one, other).differences


def test_the_stop_left_nothing_at_its_fresh_value(runs: Path) -> None:
    """Otherwise an item could be left out unnoticed, and the tests below would show nothing."""
    saved = torch.load(checkpoint(runs), weights_only=True)
    fresh = torture_trainer.Torture(autocast=True)
    counters = {name: saved[name] for name in torture_trainer.EXTRA}
    counters |= {"step": saved["global_step"], "epoch": saved["epoch"], "best": saved["best_val_loss"]}
    counters |= {"lr_scale": saved["lr_scale"], "scale": saved["scaler_state_dict"]["scale"]}
    assert counters["micro"] == 3 and counters["position"] == 5
    unchanged = [name for name, value in counters.items() if value == getattr(fresh, name, fresh.scaler.get_scale())]
    assert unchanged == []
    assert all(torch.any(gradient != 0) for gradient in saved["gradients"])


def test_the_scaler_left_steps_out(runs: Path) -> None:
    scales = [event["scale"] for event in events(runs / "whole", "step")]
    assert any(later < earlier for earlier, later in itertools.pairwise(scales))


def test_with_all_of_its_state_it_goes_on_bit_for_bit(server: ForkServer, runs: Path) -> None:
    train(server, runs / "all", "--resume", str(checkpoint(runs)))
    assert differences(runs / "all", runs / "whole") == []


def test_with_saves_beside_the_training_it_goes_on_bit_for_bit(server: ForkServer, runs: Path) -> None:
    train(server, runs / "beside", code=143, STOP_AFTER=str(STOP_AFTER), BACKGROUND="1")
    begun = events(runs / "beside", "saving")
    assert [one["step"] for one in begun if one.get("background")] == [3, 6, 8]
    path = runs / "beside" / "checkpoints" / checkpoint(runs).name
    train(server, runs / "on from beside", "--resume", str(path), BACKGROUND="1")
    assert differences(runs / "on from beside", runs / "whole") == []


@pytest.mark.parametrize("item", every_fourth(torture_trainer.FORGET))
def test_without_one_item_it_goes_on_differently(item: str, server: ForkServer, runs: Path) -> None:
    train(server, runs / f"without {item}", "--resume", str(checkpoint(runs)), LEAVE_OUT=item)
    assert differences(runs / f"without {item}", runs / "whole") != []


def test_without_autocast_it_goes_on_differently(server: ForkServer, runs: Path) -> None:
    """It is no state of the trainer's but of its config, whose hash it is part of."""
    train(server, runs / "no autocast", "--resume", str(checkpoint(runs)), "--autocast", "off")
    assert differences(runs / "no autocast", runs / "whole") != []


def test_with_another_thread_count_the_last_bits_differ_and_the_kit_says_so(server: ForkServer, runs: Path) -> None:
    output = train(server, runs / "two threads", "--resume", str(checkpoint(runs)), "--threads", "2")
    assert "[warn] threads: 1 at the save, 2 now: the resumed run may differ in its last bits" in output
    assert differences(runs / "two threads", runs / "whole") != []
    train(server, runs / "two again", "--resume", str(checkpoint(runs)), "--threads", "2")
    assert differences(runs / "two threads", runs / "two again") == [], "repeatable by itself"


@pytest.mark.long
def test_under_the_launcher_too_stopped_and_killed_it_ends_as_if_it_never_was(kit: Kit, runs: Path) -> None:
    """Three processes, each started by the commands: one is stopped inside a window, one killed, one ends."""
    script = str(Path(torture_trainer.__file__)).replace("{", "{{").replace("}", "}}")
    command = ["{python}", "-u", script, "--dir", "{checkpoints_dir}"]
    kit.config(
        trainer={"command": command, "resume_args": ["--resume", "{checkpoint}"], "loads_with_kit": True},
        training={"max_steps": torture_trainer.STEPS},
        recover={"enabled": False},
    )
    stopped = kit("run", "T-1", code=143, env={"STOP_AFTER": "14"})
    assert "[resume]" not in stopped.stdout
    killed = kit("resume", "T-1", code=137, env={"STOP_AFTER": "13", "STOP_BY": "KILL"})
    assert re.search(r"\[resume\] step=3 epoch=1 ", killed.stdout), "14 micro-batches: 3 steps and 2 of the fourth"
    kit("resume", "T-1")
    first, second, last = kit.run_dirs()
    assert [e["step"] for e in events(first, "step")] == [1, 2, 3]
    assert [e["step"] for e in events(second, "step")] == [4, 5, 6]
    assert [e["step"] for e in events(last, "step")] == STEPS[6:]
    assert differences(last, runs / "whole") == []
