"""The fixtures that many tests use, and what holds for every test: no state in a user's home, the fault table."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from resumekit.base import run_ties
from resumekit.run import live_marker
from resumekit.run.liveness import OURS
from support.commands import Kit, killed
from support.fork_server import ForkServer
from support.places import LIVE
from support.recoveries import configure
from support.runs import events, reseal
from support.schemas import assert_valid

# The fault catalogue's marks and table.
pytest_plugins = ["support.fault_table"]

# A shell's background job has INT ignored, and every process that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


WEIRD = 'it\'s a "weird"\n$(touch pwned) folder'
# A file is one worker's: one that takes a minute may not be the last that is begun.
LONGEST = (
    "test_sabotage", "test_plan_applied", "test_b_saves", "test_recovery", "test_launcher", "test_resume",
    "test_wrapped", "test_example_trainer", "test_a_trainer", "test_exactness", "test_k_injection", "test_torture",
    "test_example_changes", "test_saving", "test_run", "test_trust", "test_liveness", "test_stray_checkpoints",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture
def in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's side cannot tell the test from a process of its own: no launcher, no save before, one thread."""
    import torch  # late: most tests do without, and it costs seconds

    from resumekit.trainer import saving

    torch.set_num_threads(1)
    told = dict.fromkeys(("_has_told_of_no_data_state", "_has_told_of_too_little_memory"), False)
    fresh = {"_saved": {}, "_swept": set(), "_io_errors": 0, **told}
    for name, value in fresh.items():
        monkeypatch.setattr(saving, name, value)
    for name in (name for name in list(os.environ) if name.startswith("RESUMEKIT_") or name in ("WORLD_SIZE", "RANK")):
        monkeypatch.delenv(name)


@pytest.fixture
def one_thread() -> None:
    """torch computes in one thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def outside_the_kit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example trains in this process as if no launcher had started it; torch's settings are put back."""
    from support.example_jobs import without_the_kit

    with without_the_kit(monkeypatch):
        yield


@pytest.fixture(scope="session")
def scripts() -> ForkServer:
    """What starts a trainer that is a test's own script, with torch and the helpers imported already."""
    return ForkServer("support.forked_script")


@pytest.fixture
def weird_tmp_path(tmp_path: Path) -> Path:
    """A folder whose name has spaces, quotes, a dollar and a newline in it."""
    folder = tmp_path / WEIRD
    folder.mkdir()
    return folder


@pytest.fixture(scope="session", autouse=True)
def state_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the kit keeps of its user lies in a folder of the tests, not in the home of the user who runs them."""
    folder = tmp_path_factory.mktemp("state")
    os.environ["XDG_STATE_HOME"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def state_of_the_test(state_of_the_session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins as a user who has never started a run; what it starts and this process share the folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(state_of_the_session / secrets.token_hex(8)))


@pytest.fixture
def kit(request: pytest.FixtureRequest) -> Iterator[Kit]:
    """The commands, with config and runs in a folder with a hostile name; with `killed_run`, a run is there already."""
    if "killed_run" in request.fixturenames:
        kit, kept = request.getfixturevalue("killed_kit")
        request.getfixturevalue("monkeypatch").setenv("XDG_STATE_HOME", kit.env["XDG_STATE_HOME"])
        shutil.rmtree(kit.folder.parent)
        shutil.copytree(kept, kit.folder.parent, symlinks=True)
    else:
        kit = Kit(request.getfixturevalue("weird_tmp_path"))
    yield kit
    kit.clean_up()


@pytest.fixture
def killed_run(kit: Kit) -> Path:
    """A run of T-1 that was killed at step 12 of 20, with checkpoints of steps 5 and 10, alone in the runs folder."""
    return kit.run_dirs()[0]


@pytest.fixture(scope="module")
def killed_kit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Kit, Path]:
    """The kit of `killed_run`, whose run is made once for a file, and a copy of all that it then consists of."""
    place = tmp_path_factory.mktemp("killed")
    kit = Kit(place / "lab" / WEIRD)
    kit.env["XDG_STATE_HOME"] = str(place / "lab" / "state")
    killed(kit)
    kit.clean_up()
    return kit, Path(shutil.copytree(place / "lab", place / "kept", symlinks=True))


@pytest.fixture
def valid_records(kit: Kit) -> Iterator[None]:
    """When the test is over, every journal line and status.json in its runs folder is as the schemas say."""
    yield
    for run in kit.run_dirs():
        for event in events(run)[:2000]:
            assert_valid("event", event)
        if (run / "status.json").exists():
            assert_valid("status", kit.status(run))


@pytest.fixture
def sick(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that has failed at step 12, and has no launcher any more."""
    configure(kit, "--at", "12", "exit=5", recover={"enabled": False})
    kit("run", "T-1", code=5)
    (run,) = kit.run_dirs()
    config = json.loads((run / "resolved_config.json").read_text())
    config["notify"]["command"] = ["tee", "-a", str(kit.folder / "told")]
    config["recover"]["enabled"] = True
    (run / "resolved_config.json").write_text(json.dumps(config))
    reseal(run)
    live_marker.make(kit.runs / LIVE / run.name)
    monkeypatch.setenv("RESUMEKIT_TEST_MARK", kit.mark)
    return run


@pytest.fixture
def recovered(kit: Kit) -> Kit:
    configure(kit)
    return kit


@pytest.fixture
def its_own_process_may_stand_for_a_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not write into a run's output.log, as a trainer does."""
    real = run_ties.whose_output
    monkeypatch.setattr(run_ties, "whose_output", lambda pid, run: OURS if pid == os.getpid() else real(pid, run))
