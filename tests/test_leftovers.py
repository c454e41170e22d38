"""What a trainer whose end is written down has left: it goes on, and nothing starts beside it; or it is ended."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from resumekit.base import processes
from resumekit.run import life_signs, status
from resumekit.run.run_folder import open_run
from resumekit.watch import incident, recovering
from support.commands import Kit
from support.processes import wait_until
from support.recoveries import configure
from support.runs import events, reseal
from support.wrappers import PYTHON, WRAPPERS, begun, last_step, saved_steps, wrapped


@pytest.fixture
def ended(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose end is written down though its Python trains on: of a shim that has misjudged it, or was edited."""
    monkeypatch.setenv("RESUMEKIT_TEST_MARK", kit.mark)
    wrapped(kit, WRAPPERS["then"], "--delay", "0.05", "--save-every", "5", recover={"enabled": True},
            abort={"grace_s": 20})  # fmt: skip
    process, run = begun(kit, step=6)
    (launched,) = events(run, "launched")
    for who in ("launcher", "shim", "trainer"):
        os.kill(launched[who]["pid"], signal.SIGKILL)
    process.wait()
    end = {"code": 137, "signal": 9, "pid": launched["trainer"]["pid"], "at": launched["at"], "elapsed_s": 1.0}
    (run / "exit.json").write_text(json.dumps(end))
    wait_until(lambda: events(run, "exited"), "its sidecar has written it down")
    wait_until(lambda: life_signs.moved_after_the_end(open_run(run)), "it has moved since")
    return run


def test_a_run_that_trains_on_after_its_end_is_not_taken_up(kit: Kit, ended: Path) -> None:
    outcome = recovering.recover(ended, os.getpid())
    assert (outcome.ready, outcome.wait_s) == (None, recovering.TRY_AGAIN_S)
    message = events(ended, "warning")[-1]["message"]
    assert "what its trainer has started goes on" in message and "output.log has changed since" in message
    assert kit.run_dirs() == [ended] and not events(ended, "recovery")
    seen = status.current(open_run(ended))
    assert (seen["state"], seen["liveness"], seen["exit_code"]) == ("unsupervised", "alive", None)
    before = last_step(ended)
    wait_until(lambda: last_step(ended) > before, "it trains on")
    kit("run", "T-1", code=6)


def test_a_line_of_another_run_in_its_journal_has_nothing_of_that_run_killed(kit: Kit, ended: Path) -> None:
    """A member of the group can write into the journal, and read the other run's `launched` event."""
    other = ended.rename(ended.with_name(ended.name + "x"))
    (launched,) = events(other, "launched")
    run_dir = kit.runs / "T-2_toy_20260101-0000"
    run_dir.mkdir()
    (run_dir / "run.json").write_text(json.dumps({"run_id": run_dir.name, "token": "0" * 32}))
    run = open_run(run_dir)
    assert processes.trainer_of(launched, run.paths.output_log) is not None
    assert run.trainer_of(launched) is None and open_run(other).trainer_of({"trainer": 3}) is None
    assert incident.end_leftovers(run, {"launched": launched, "aborted": {}}) == ""
    assert processes.session_members(processes.identity_from(launched["trainer"])), "it trains on"
    other.rename(ended)


def test_a_stop_ends_a_run_that_trains_on_after_its_end(kit: Kit, ended: Path) -> None:
    said = kit("abort-watch", "--stop", ended.name).stderr
    assert "the end of" in said and "told to stop, and killed after 20 s" in said, said
    leader = processes.identity_from(events(ended, "launched")[0]["trainer"])
    assert processes.session_members(leader) == []
    assert saved_steps(ended)[-1] == last_step(ended)
    assert status.current(open_run(ended))["state"] == "stopped"
    assert recovering.recover(ended, os.getpid()) == recovering.NOTHING


def test_a_stop_of_a_run_that_has_ended_ends_a_helper_that_is_left(kit: Kit) -> None:
    wrapped(kit, f"sleep 300 &\n{PYTHON}", "--at", "3", "exit=4")
    kit("run", "T-1", code=4)
    (run,) = kit.run_dirs()
    assert "what is left of it (pid " in kit("abort-watch", "--stop", "T-1").stderr
    assert "nothing to stop" in kit("abort-watch", "--stop", "T-1", code=1).stderr
    assert processes.session_members(processes.identity_from(events(run, "launched")[0]["trainer"])) == []


def test_what_is_left_and_computes_is_killed_only_when_it_has_shown_nothing_for_as_long_as_a_hang(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESUMEKIT_TEST_MARK", kit.mark)
    configure(kit, "--at", "12", "exit=5")
    config = json.loads(kit.config_file.read_text())
    config["trainer"]["command"] = ["sh", "-c", '(while :; do :; done) & "$@"; exit $?', "sh",
                                    *config["trainer"]["command"]]  # fmt: skip
    config["recover"]["enabled"] = False
    kit.config_file.write_text(json.dumps(config))
    kit("run", "T-1", code=5)
    (run,) = kit.run_dirs()
    leader = processes.identity_from(events(run, "launched")[0]["trainer"])
    set_in(run, recover={"enabled": True})
    assert recovering.recover(run, os.getpid()).wait_s == recovering.TRY_AGAIN_S
    assert "they compute" in events(run, "warning")[-1]["message"] and processes.session_members(leader)
    set_in(run, abort={"hang_minutes": 0.0001})
    assert recovering.recover(run, os.getpid()).ready is not None
    assert events(run, "warning")[-1]["kind"] == "orphans_killed" and not processes.session_members(leader)


def set_in(run: Path, **sections: dict) -> None:
    """Change a run's config, as if it had been started with that."""
    path = run / "resolved_config.json"
    resolved = json.loads(path.read_text())
    for name, section in sections.items():
        resolved[name].update(section)
    path.write_text(json.dumps(resolved))
    reseal(run)
