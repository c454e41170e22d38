"""trainer.launcher: the command line that the kit writes for torchrun, what it refuses, and restarts by torchrun."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from resumekit.base.errors import InvalidFile
from resumekit.config import config as config_module
from resumekit.config import launcher_rules
from resumekit.start import torchrun, trainer_command
from support.commands import Kit

VALUES = {"python": "/venv/bin/python", "run_id": "EXP-01_x", "logs_dir": "/runs/{EXP-01}/logs", "checkpoint": "/c.pt"}
OWN = ["--max-restarts=0", "--tee=3", "--log-dir=/runs/{EXP-01}/logs/torchrun"]
JOB = {"SLURM_JOB_NODELIST": "gpu[07-08]", "SLURM_JOB_CPUS_PER_NODE": "96(x2)"}


def config(command: list[str], launcher: dict[str, Any], **trainer: Any) -> dict[str, Any]:
    full = {"kind": "torchrun", "nproc": 8, "nnodes": 1, "args": [], **launcher}
    empty = {"wrap": None, "resume_args": ["--resume", "{checkpoint}"], "init_args": None, "extra_args": []}
    return {"trainer": {"command": command, "launcher": full, **empty, **trainer}}


def argv(
    command: list[str], launcher: dict[str, Any] | None = None, *, is_alone: bool = False, **trainer: Any
) -> list[str]:
    found = config(command, launcher or {}, **trainer)
    return trainer_command.build_argv(found, VALUES, is_resume=True, is_alone=is_alone)


@pytest.mark.parametrize(
    ("command", "script"),
    [
        (["train.py", "--logs", "1"], ["train.py", "--logs", "1"]),
        (["{python}", "train.py"], ["train.py"]),
        (["{python}", "-u", "train.py", "-u"], ["train.py", "-u"]),
        (["{python}", "-m", "lab.train"], ["-m", "lab.train"]),
        (["-m", "lab.train"], ["-m", "lab.train"]),
    ],
)
def test_the_command_is_the_script_alone_and_the_kit_writes_torchrun_s_words(
    command: list[str], script: list[str]
) -> None:
    start = ["/venv/bin/python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=8", *OWN]
    # Behind `--` no word of the script's is taken for the beginning of one of torchrun's (--logs-specs).
    guarded = ["-m", "--", *script[1:]] if script[0] == "-m" else ["--", *script]
    assert argv(command) == [*start, *guarded, "--resume", "/c.pt"]
    assert argv(command, is_alone=True) == ["/venv/bin/python", *script, "--resume", "/c.pt"]


def test_the_lab_s_own_options_come_last_and_a_wrapper_goes_before_all() -> None:
    found = argv(["train.py"], {"args": ["--numa-binding=node", "{run_id}"]}, wrap=["apptainer", "exec", "x.sif"])
    assert found[:5] == ["apptainer", "exec", "x.sif", "/venv/bin/python", "-m"]
    assert found[found.index(OWN[-1]) + 1 :] == [
        "--numa-binding=node",
        "EXP-01_x",
        "--",
        "train.py",
        "--resume",
        "/c.pt",
    ]


def test_on_several_nodes_of_a_job_srun_starts_one_torchrun_on_each(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    found = argv(["train.py"], {"nnodes": 2}, wrap=["apptainer", "exec", "x.sif"])
    prefix = "--export=ALL,TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE=[rank${rank}]:"
    srun = [
        "srun",
        "--nodes=2",
        "--ntasks=2",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=1",
        "--cpus-per-task=96",
        prefix,
    ]
    assert found[:7] == srun and found[7:11] == ["apptainer", "exec", "x.sif", "/venv/bin/python"]
    rest = found[13:]
    assert rest[:2] == ["--nnodes=2", "--rdzv-backend=c10d"]
    assert re.fullmatch(r"--rdzv-endpoint=gpu07:[0-9]{4,5}", rest[2])
    assert rest[3:] == ["--rdzv-id=EXP-01_x", "--nproc-per-node=8", *OWN, "--", "train.py", "--resume", "/c.pt"]


def test_nodes_with_different_numbers_of_cpus_leave_srun_s_own_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (JOB | {"SLURM_JOB_CPUS_PER_NODE": "96,48"}).items():
        monkeypatch.setenv(name, value)
    assert not [word for word in argv(["train.py"], {"nnodes": 2}) if word.startswith("--cpus-per-task")]


def test_several_nodes_without_a_job_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InvalidFile, match=r"trainer\.launcher\.nnodes is 2, and there is no Slurm job"):
        argv(["train.py"], {"nnodes": 2})


@pytest.mark.parametrize(
    ("listed", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[07-09,12],m1", "gpu07"), ("r[1,3]n[10-12]", "r1n10"), ("a-b.c[3]", "a-b.c3")],
)
def test_the_first_host_of_a_job_s_list(listed: str, first: str) -> None:
    assert torchrun.first_host(listed) == first


@pytest.mark.parametrize(
    ("command", "launcher", "sentence"),
    [
        (["train.py"], {"nproc": None}, "nproc is null and trainer.launcher.kind is torchrun: say how many"),
        (["train.py"], {"kind": "none"}, "nproc is 8 and trainer.launcher.kind is none, so it does nothing"),
        (["torchrun", "train.py"], {}, "trainer.command starts torchrun and trainer.launcher.kind is torchrun"),
        (["{python}", "-m", "torch.distributed.run", "train.py"], {}, "trainer.command starts torch.distributed.run"),
        (["bash", "train.sh"], {}, "trainer.command begins with 'bash train.sh'"),
        (["{python}", "-X", "dev", "train.py"], {}, "a script or a module and no other options"),
    ],
)
def test_a_launcher_that_cannot_mean_what_it_says_is_refused(
    kit: Kit, command: list[str], launcher: dict[str, Any], sentence: str
) -> None:
    kit.config(trainer={"command": command, "launcher": {"kind": "torchrun", "nproc": 8, **launcher}})
    assert sentence in " ".join(kit("run", "T-1", "--dry-run", code=4).stderr.split())


@pytest.mark.parametrize(("grace_s", "ranks_s"), [(90, 85), (90.7, 85), (45, 40), (35, None), (20, None), (0, None)])
def test_torchrun_waits_for_its_ranks_nearly_as_long_as_the_grace(grace_s: float, ranks_s: int | None) -> None:
    assert torchrun.ranks_grace_s({"abort": {"grace_s": grace_s}}) == ranks_s


RUN = ["{python}", "-m", "torch.distributed.run", "--standalone"]


@pytest.mark.parametrize(
    ("command", "args", "number"),
    [
        ([*RUN, "--max-restarts=3", "train.py"], None, 3),
        (["/venv/bin/torchrun", "--max_restarts", "2", "--nproc-per-node=8", "train.py"], None, 2),
        (["srun", "torchrun", "--max-restarts=1", "train.py"], None, 1),
        (["accelerate", "launch", "--max_restarts=1", "train.py"], None, 1),
        (["{python}", "-m", "torch.distributed.launch", "--max-restarts=1", "train.py"], None, 1),
        (["train.py"], ["--max-restarts=4"], 4),
        ([*RUN, "--max-restarts=0", "train.py"], None, 0),
        ([*RUN, "train.py", "--max-restarts=3"], None, 0),
        (["{python}", "train.py", "--max-restarts=3"], None, 0),
        (["bash", "-c", "torchrun --max-restarts=3 train.py"], None, 0),
        (["train.py"], [], 0),
    ],
)
def test_restarts_by_torchrun_are_warned_of(command: list[str], args: list[str] | None, number: int) -> None:
    launcher = {"kind": "none"} if args is None else {"kind": "torchrun", "args": args}
    said = launcher_rules.restarts_doubted({"trainer": {"command": command, "launcher": launcher}})
    assert (said is not None) == bool(number)
    assert number == 0 or f"says --max-restarts {number}: the kit takes a run up by itself" in str(said)


def test_the_warning_is_said_at_the_start_and_the_script_is_looked_for(kit: Kit) -> None:
    launcher = {"kind": "torchrun", "nproc": 2, "args": ["--max-restarts=1"]}
    kit.config(trainer={"command": ["not_there.py"], "launcher": launcher})
    assert "the script 'not_there.py' is not there" in " ".join(kit("run", "T-1", "--dry-run", code=127).stderr.split())
    (Path(kit.folder) / "there.py").write_text("")
    kit.config(trainer={"command": ["there.py"], "launcher": launcher})
    assert "warning trainer.launcher.args says --max-restarts 1" in " ".join(
        kit("run", "T-1", "--dry-run").stdout.split()
    )


def test_another_number_of_ranks_is_another_place_and_is_shown_with_what_it_costs(kit: Kit, killed_run: Path) -> None:
    words = ["--set", "trainer.launcher.kind=torchrun", "--set", "trainer.launcher.nproc=2"]
    plan = json.loads(kit("resume", "T-1", *words, "--dry-run", "--json").stdout)
    effects = {change["key"]: change["effect"] for change in plan["changes"]}
    assert effects["trainer.launcher.nproc"] == {"rng": "reset", "data_position": "rederive"}
    hashes = {config_module.config_hash({"trainer": {"launcher": {"nproc": nproc}}, "training": {"max_steps": 7}})
              for nproc in (None, 1, 8)}  # fmt: skip
    assert len(hashes) == 1
