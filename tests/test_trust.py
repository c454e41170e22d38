"""Whose word a run folder is: what is executed comes from the caller, whatever lies in a shared `runs/`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import kit_version, ownership
from resumekit.base.files import UnreadableFile
from resumekit.base.paths import RunPaths
from resumekit.checkpoint import archive, grades
from resumekit.checkpoint.selection import Candidate
from resumekit.config import schema
from resumekit.run import live_marker, seals, status, trust
from resumekit.run.run_folder import Run, open_run
from resumekit.run.run_table import RunTable
from resumekit.run.trust import Standing
from resumekit.start import consent, project
from resumekit.start.request import parse
from resumekit.watch import recovering
from resumekit.watch.recover_command import environment_of_callers_run
from support.commands import Kit, killed
from support.lab_repo import git
from support.processes import wait_until
from support.recoveries import configure, reached, watch_as_cron
from support.runs import events, record, reseal
from support.toy_trainer import write_checkpoint
from support.watched_runs import attest_all, kill_all_of

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
ANOTHER = 65534


def made(folder: Path, **config: Any) -> Path:
    """Make a run folder with its records, unsealed."""
    run = folder / "T-1_a"
    run.mkdir(parents=True, mode=0o755)
    content = {"notify": {"command": None}, **config}
    (run / "run.json").write_text(json.dumps({"run_id": run.name, "token": "f" * 32, "root": str(folder)}))
    (run / "resolved_config.json").write_text(json.dumps(content))
    (run / "config.yaml").write_text("{}")
    for path in run.iterdir():
        path.chmod(0o644)
    return run


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The caller's own state folder, with nothing in it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def standing(run: Path) -> tuple[str, str]:
    found = trust.standing(open_run(run))
    assert trust.examine(run).standing.kind == found.kind, "a recovery sees the same of a folder that is no link"
    return found.kind, found.reason


def test_a_run_is_sealed_as_long_as_every_record_is_as_the_launcher_wrote_it(state: Path, tmp_path: Path) -> None:
    run = made(tmp_path / "runs")
    reseal(run)
    assert standing(run) == (trust.SEALED, "")
    for path in [run, *run.iterdir()]:
        path.chmod(path.stat().st_mode | 0o020)
    assert standing(run)[0] == trust.SEALED, "labs share: what is sealed may be writable by its group"
    for name in ("run.json", "resolved_config.json", "config.yaml"):
        before = (run / name).read_bytes()
        (run / name).write_bytes(before.replace(b"{", b"{ ", 1))
        assert standing(run) == (trust.OTHERS, f"its {name} is not as this user's launcher sealed it")
        (run / name).write_bytes(before)
    (run / "resume_plan.json").write_text("{}")
    assert standing(run) == (trust.OTHERS, "its resume_plan.json is not as this user's launcher sealed it")


def test_a_run_from_before_the_seals_counts_where_no_other_user_can_have_written_it(
    state: Path, tmp_path: Path
) -> None:
    run = made(tmp_path / "runs")
    assert standing(run) == (trust.OWN, "")
    (run / "run.json").chmod(0o664)
    assert standing(run) == (trust.OTHERS, "its group may write to run.json, and there is no seal of it")
    (run / "run.json").chmod(0o646)
    assert standing(run) == (trust.OTHERS, "every user may write to run.json, and there is no seal of it")
    (run / "run.json").chmod(0o644)
    run.chmod(0o775)
    assert standing(run) == (trust.OTHERS, "its group may write to its folder, and there is no seal of it")
    run.chmod(0o755)
    os.rename(run / "config.yaml", tmp_path / "elsewhere")
    (run / "config.yaml").symlink_to(tmp_path / "elsewhere")
    assert standing(run) == (trust.OTHERS, "its config.yaml is a link or cannot be read")


def test_a_run_that_was_written_after_the_first_seal_needs_one(state: Path, tmp_path: Path) -> None:
    """A copy of a colleague's folder is the copier's own by its owner, and not by its words."""
    reseal(made(tmp_path / "runs"))
    copy = made(tmp_path / "copied")
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**record, "token": "e" * 32}))
    os.utime(copy / "run.json", (0, 0))  # what its files say of their age may be anything
    assert standing(copy) == (
        trust.OTHERS,
        "it has no seal: another user started it, it was copied here, or its seal could not be kept",
    )


def test_a_recovery_reads_nothing_of_a_run_by_its_path(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks by its path a user who may write in the runs folder can put another folder there."""
    run = made(tmp_path / "runs")
    reseal(run)
    monkeypatch.setattr(trust, "open_run", lambda _run_dir: pytest.fail("it is read by its path"))
    examined = trust.examine(run)
    assert examined.standing.kind == trust.SEALED
    (run / "resolved_config.json").write_text('{"notify": {"command": ["evil"]}}')
    assert "evil" not in json.dumps(examined.run.config), "nor is anything read later"


def test_a_folder_without_a_record_is_no_word_of_the_callers(state: Path, tmp_path: Path) -> None:
    """Such a folder of the caller's own may stand in the place of a run: their folder of live markers, say."""
    run = made(tmp_path / "runs")
    (run / "run.json").unlink()
    examined = trust.examine(run)
    assert examined.standing == trust.Standing(trust.OTHERS, "it has no run.json of this kit")
    assert not examined.run.is_ours


def test_the_digests_in_run_json_are_held_against_an_unsealed_run(state: Path, tmp_path: Path) -> None:
    run = made(tmp_path / "runs")
    reseal(run)
    for path in (state / "resumekit/seals").iterdir():
        path.unlink()
    (state / "resumekit/seals").rmdir()
    assert standing(run)[0] == trust.OWN
    (run / "resolved_config.json").write_text("{}")
    assert standing(run)[1] == "its resolved_config.json is not the one that run.json has the digest of"


@as_root
def test_a_folder_or_a_record_of_another_user_is_that_users(state: Path, tmp_path: Path) -> None:
    run = made(tmp_path / "runs")
    os.chown(run / "config.yaml", ANOTHER, ANOTHER)
    assert standing(run)[0] == trust.OTHERS and "its config.yaml belongs to user" in standing(run)[1]
    os.chown(run, ANOTHER, ANOTHER)
    assert standing(run)[1].startswith("it belongs to user")
    reseal(run)
    assert trust.standing(open_run(run)).kind == trust.SEALED, "the caller's own bytes, wherever they lie"
    assert trust.examine(run).standing.kind == trust.OTHERS, "and yet nothing is taken up in a folder of another user"


def test_a_link_to_a_run_is_no_run_to_take_up(state: Path, tmp_path: Path) -> None:
    run = made(tmp_path / "elsewhere")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / run.name).symlink_to(run)
    found = trust.examine(tmp_path / "runs" / run.name)
    assert found.standing == trust.Standing(trust.OTHERS, "it is a link")


@as_root
@pytest.mark.parametrize("name", ["x/.bashrc", "x/status.json", "status.txt", ".status.json", "x/.json"])
def test_a_record_does_not_say_that_a_status_is_written_over_another_file(
    state: Path, tmp_path: Path, name: str
) -> None:
    """`paths.status` of a run.json that a member of the group has edited, below a link that they have put there."""
    run = made(tmp_path / "runs")
    (tmp_path / "home").mkdir()
    record = json.loads((run / "run.json").read_text())
    names = {"checkpoints": "checkpoints", "logs": "logs", "status": name}
    (run / "run.json").write_text(json.dumps({**record, "paths": names}))
    (run / "x").symlink_to(tmp_path / "home")
    os.lchown(run / "x", ANOTHER, ANOTHER)
    found = open_run(run)
    assert found.paths.status == run / "status.json"
    assert found.is_ours != name.startswith("x/status")  # a name that could stand is no use below such a link
    status.renew(found)
    assert not list((tmp_path / "home").iterdir())


@as_root
@pytest.mark.parametrize("folder", ["logs", "checkpoints", "manifests", "held"])
def test_a_run_in_which_another_user_has_put_a_link_for_a_folder_is_none_of_ours(
    state: Path, tmp_path: Path, folder: str
) -> None:
    run = made(tmp_path / "runs")
    (run / folder).symlink_to(tmp_path)
    assert open_run(run).is_ours, "the caller's own link, to a disk with room, is followed"
    os.lchown(run / folder, ANOTHER, ANOTHER)
    assert not open_run(run).is_ours
    assert trust.standing(open_run(run)) == (trust.OTHERS, f"its '{folder}' is a link of another user's")


@as_root
def test_another_users_link_to_a_run_of_the_callers_is_no_run_of_this_folder(state: Path, tmp_path: Path) -> None:
    """It may lead to a private run: what is trained from there would be saved where all can read it."""
    private, runs = made(tmp_path / "private"), tmp_path / "runs"
    runs.mkdir()
    link = runs / private.name
    link.symlink_to(private)
    assert RunTable(runs).names == [private.name], "the caller's own link, to another disk"
    os.lchown(link, ANOTHER, ANOTHER)
    assert RunTable(runs).names == [] and RunTable(runs).get(private.name) is None
    os.chown(private, ANOTHER, ANOTHER)
    assert RunTable(runs).names == [private.name], "a colleague's own run, which they have moved"


def test_a_seal_that_cannot_be_written_is_said(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    run = RunPaths(made(tmp_path / "runs"))
    fields = json.loads(run.run_json.read_text())
    assert seals.keep(run, fields, {}, None) is None
    monkeypatch.setattr(seals, "write_atomic", full)
    assert str(seals.keep(run, fields, {}, None)).startswith(f"No space left on device: '{state}")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(run.run_json))  # no folder: no state, as for a user without a home
    assert seals.keep(run, fields, {}, None) is None


def test_without_a_home_nothing_is_sealed_and_that_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.delenv("HOME")
    run = made(tmp_path / "runs")
    reseal(run)
    assert seals.since() is None and standing(run)[0] == trust.OWN


def test_a_state_folder_that_another_user_could_have_written_holds_no_seals(state: Path, tmp_path: Path) -> None:
    run = made(tmp_path / "runs")
    reseal(run)
    (state / "resumekit").chmod(0o770)
    assert seals.read(json.loads((run / "run.json").read_text())) is None
    (state / "resumekit").chmod(0o700)
    (seal,) = (state / "resumekit/seals").glob("*.json")
    assert seal.stat().st_mode & 0o777 == 0o600
    seal.chmod(0o660)
    assert seals.read(json.loads((run / "run.json").read_text())) is None


def test_seals_of_runs_that_are_gone_are_swept_where_there_are_very_many(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "MANY", 2)
    monkeypatch.setattr(seals, "_SWEEP_EVERY", 1)
    kept, gone, away = (made(tmp_path / name) for name in ("kept", "gone", "away"))
    for number, run in enumerate((kept, gone, away)):
        fields = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**fields, "token": str(number) * 32}))
        reseal(run)
    for path in sorted(gone.rglob("*"), reverse=True):
        path.unlink()
    gone.rmdir()
    (tmp_path / "away").rename(tmp_path / "unmounted")
    reseal(kept)
    left = [json.loads(path.read_text())["runs_dir"] for path in (state / "resumekit/seals").glob("*.json")]
    assert sorted(left) == [str(tmp_path / "away"), str(tmp_path / "kept")]


# What ends in a process, its place, its environment, or decides that one is started.
EXECUTED = {
    "trainer.command", "trainer.resume_args", "trainer.extra_args", "trainer.cwd", "trainer.env", "trainer.python",
    "trainer.describe_args", "trainer.loads_with_kit", "notify.command", "abort.oom_set", "recover.allow_code_change",
    "recover.not_code", "recover.lr_args", "trainer.init_args", "trainer.wrap", "trainer.launcher.args",
    "paths.root",
    # names of files, which a command has placeholders for, or which the sidecar writes; and what it reads a log with
    "paths.checkpoints", "paths.logs", "paths.status", "checkpoint.pattern", "checkpoint.best_pattern", "data.path",
    "trainer.checkpoint_in", "trainer.stop_signal", "trainer.pass_signals", "trainer.log_patterns.step",
    "trainer.log_patterns.loss", "trainer.log_patterns.lr", "trainer.log_patterns.steps_per_sec",
    "trainer.log_patterns.eval", "trainer.log_patterns.best", "trainer.metrics_file",
}  # fmt: skip


def test_the_schema_names_the_words_that_are_executed() -> None:
    assert set(schema.load().executed) == EXECUTED


def test_words_are_compared_as_they_stand_and_texts_that_a_placeholder_puts_into_a_command_are_words() -> None:
    known = schema.load()
    one = {"trainer": {"command": ["{python}", "x.py", "--data={data.path}", "{training.max_steps}"]}}
    other = {**one, "data": {"path": "; rm -rf"}, "training": {"max_steps": 7}}
    found = consent.differing_words(consent.executed_words(other, known), consent.executed_words(one, known))
    assert found == ["data.path"], "a text is a word, a number is none"
    found = consent.differing_words(
        consent.executed_words({"trainer": {"command": ["/usr/bin/python3", "x.py"]}}, known),
        consent.executed_words({"trainer": {"command": ["{python}", "x.py"]}}, known),
    )
    assert found == ["trainer.command"]


def test_names_that_the_kit_makes_paths_of_are_words(kit: Kit, killed_run: Path) -> None:
    """`bash -c "... {checkpoints_dir}"` is the caller's own command; what stands for the placeholder must be too."""
    run = killed_run
    rewritten(run, lambda config: config["paths"].update(checkpoints="ck$(touch sung)"))
    page = " ".join(kit("resume", "T-1", "--dry-run", code=None).stdout.split())
    plain = Standing(trust.OTHERS, "it is another user's")
    request = parse(["--experiment=T-1", f"--config={kit.folder / 'config.yaml'}"]).request()
    asked = consent.word_consents(open_run(run), plain, open_run(run).config, request, "T-1", "advice")
    assert asked[0].startswith("paths.checkpoints: 'ck$(touch sung)' in ")
    assert not (kit.folder / "sung").exists(), page


def test_what_no_user_can_have_written_is_compared_all_the_same(kit: Kit, killed_run: Path) -> None:
    """A copy of another user's folder is the copier's own, before their first seal: not a word of it is theirs."""
    config = json.loads((killed_run / "resolved_config.json").read_text())
    config["trainer"]["command"] = [str(canary(kit)), "command"]
    request = parse(["--experiment=T-1", f"--config={kit.folder / 'config.yaml'}"]).request()
    asked = consent.word_consents(open_run(killed_run), Standing(trust.OWN), config, request, "T-1", "advice")
    assert len(asked) == 2 and "canary" in asked[0] and "no launcher of this user's sealed it" in asked[0]
    assert consent.word_consents(open_run(killed_run), Standing(trust.SEALED), config, request, "T-1", "advice") == ()
    same = consent.word_consents(
        open_run(killed_run), Standing(trust.OWN), open_run(killed_run).config, request, "T-1", "advice"
    )
    assert same == ()


@pytest.mark.parametrize("odd", [None, 7, "x", [7, None], {"a": 1}])
def test_words_of_a_config_of_any_shape_are_no_traceback(odd: Any) -> None:
    consent.executed_words({"trainer": odd, "paths": odd, "notify": {"command": odd}}, schema.load())
    consent.executed_words({"trainer": {"command": odd, "resume_args": odd}}, schema.load())


def canary(kit: Kit) -> Path:
    """Return a program that leaves a file beside it whenever it is started, and its name."""
    program = kit.folder / "canary"
    program.write_text('#!/bin/sh\necho "$@" >>"${0%/*}/sung"\nexit 9\n')
    program.chmod(0o755)
    return program


def rewritten(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Let another user rewrite the config of a run that is theirs."""
    config = json.loads((run / "resolved_config.json").read_text())
    change(config)
    (run / "resolved_config.json").write_text(json.dumps(config))
    os.chown(run, ANOTHER, ANOTHER)
    for path in run.rglob("*"):
        os.chown(path, ANOTHER, ANOTHER, follow_symlinks=False)


def hostile(kit: Kit) -> Path:
    """A run of another user's whose config names programs of its own for whatever can be started."""
    run, program = killed(kit), str(canary(kit))

    def change(config: dict[str, Any]) -> None:
        config["trainer"].update(
            command=[program, "command"], python=program, describe_args=["--describe"], env=["HOME"],
        )  # fmt: skip
        config["notify"]["command"] = [program, "notify"]
        config["abort"]["oom_set"] = ['trainer.command=["{python}"]']
        config["resume"]["weights"] = "partial"

    rewritten(run, change)
    return run


HOSTILE_KEYS = ("trainer.command", "trainer.python", "trainer.describe_args", "notify.command", "abort.oom_set")


@as_root
def test_what_another_users_run_says_is_executed_only_with_consent(kit: Kit) -> None:
    run = hostile(kit)
    file = str(run / "checkpoints/hrm_arc_step_5.pt")
    for asked in (("run", "T-1"), ("resume", "T-1"), ("resume", run.name), ("run", "T-1", "--resume", file),
                  ("resume", "T-1", "--step", "5"), ("resume", "T-1", "--from", run.name)):  # fmt: skip
        page = " ".join(kit(*asked, "--dry-run", code=5).stdout.split())
        plan = json.loads(kit(*asked, "--dry-run", "--json", code=5).stdout)
        said = kit(*asked, code=5).stderr
        for key in HOSTILE_KEYS:
            assert f"{key}: " in page and any(one.startswith(f"{key}: ") for one in plan["consents"]), (asked, key)
            assert f"{key}: " in said and "belongs to user" in said, asked
        assert "toy_trainer.py" in said and "canary" in said, "both are shown"
        assert kit(*asked, "--dry-run", "--accept", code=5).stdout.count("needs consent") == 1, asked
        assert not (kit.folder / "sung").exists() and kit.run_dirs() == [run], asked


@as_root
@pytest.mark.parametrize("words", [{"command": ["not/here"]}, {"cwd": "not/here"}], ids=str)
def test_words_of_another_user_that_could_not_start_here_are_asked_for_all_the_same(
    kit: Kit, words: dict[str, Any], killed_run: Path
) -> None:
    run = killed_run
    rewritten(run, lambda config: config["trainer"].update(words))
    for more in (["--dry-run"], ["--dry-run", "--json"], []):
        done = kit("run", "T-1", *more, code=5)
        assert f"trainer.{next(iter(words))}: " in done.stdout + done.stderr and "not/here" in done.stdout + done.stderr


@as_root
def test_with_consent_it_is_executed_and_with_reresolve_the_callers_own(kit: Kit) -> None:
    run = hostile(kit)
    kit("resume", "T-1", "--reresolve", "--accept")
    assert not (kit.folder / "sung").exists() and record(kit.run_dirs()[-1])["parent_run_id"] == run.name
    said = kit("resume", run.name, "--step", "5", "--accept", code=9).stderr
    assert "accepted: trainer.command: " in said and "canary" in said
    assert "command" in (kit.folder / "sung").read_text()
    assert trust.standing(open_run(kit.run_dirs()[-1])).kind == trust.SEALED, "asked once: now it is the caller's word"


@as_root
def test_a_colleagues_run_with_the_callers_own_words_goes_on_without_a_question(kit: Kit, killed_run: Path) -> None:
    run = killed_run
    rewritten(run, lambda config: config["training"].update(max_steps=14))
    plan = json.loads(kit("run", "T-1", "--dry-run", "--json").stdout)
    assert (plan["verdict"], plan["relation"], plan["parent_run_id"]) == ("ready", "continue", run.name)
    assert any("is not your own word (it belongs to user" in note for note in plan["notes"])
    kit("run", "T-1")
    child = kit.run_dirs()[-1]
    assert os.stat(child).st_uid == os.geteuid() and record(child)["parent_run_id"] == run.name


@as_root
def test_a_colleagues_head_without_a_checkpoint_is_neither_passed_over_nor_taken_over_without_a_word(kit: Kit) -> None:
    kit.config("--at", "3", "exit=5")
    kit("run", "T-1", code=5)
    (run,) = kit.run_dirs()
    rewritten(run, lambda config: config["trainer"].update(command=[str(canary(kit))]))
    for words in (["--dry-run"], []):
        done = kit("run", "T-1", *words, code=5)
        said = " ".join((done.stdout + done.stderr).split())
        assert "trainer.command: " in said and "--fresh begins beside it" in said
    assert kit.run_dirs() == [run] and not (run / "claims").exists()
    kit("run", "T-1", "--accept", code=5)  # the toy's own code: it begins anew, with the caller's own words
    assert record(kit.run_dirs()[-1])["parent_run_id"] == run.name and not (kit.folder / "sung").exists()


def test_a_record_that_was_edited_in_the_callers_own_run_needs_consent(kit: Kit, killed_run: Path) -> None:
    run = killed_run
    config = json.loads((run / "resolved_config.json").read_text())
    config["trainer"]["command"] = [str(canary(kit))]
    (run / "resolved_config.json").write_text(json.dumps(config))
    said = kit("run", "T-1", "--dry-run", code=5).stdout
    assert "its resolved_config.json is not as this user's launcher sealed it" in " ".join(said.split())
    assert not (kit.folder / "sung").exists()


@pytest.fixture
def died(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with checkpoints that has died with its launcher, its shim and its sidecar."""
    configure(kit, notify={"command": ["tee", "-a", str(kit.folder / "told")]}, training={"max_steps": 9999})
    kit("run", "T-1", "--detach")
    run = kit.started()
    wait_until(lambda: list(run.glob("checkpoints/*.pt")) and reached(run, 5), "a checkpoint, and its step is seen")
    kill_all_of(run)
    attest_all(run)
    monkeypatch.setenv("RESUMEKIT_TEST_MARK", kit.mark)
    return run


@pytest.mark.parametrize("name", ["resolved_config.json", "run.json", "config.yaml"])
def test_a_record_that_was_edited_while_the_run_lived_is_not_taken_up_and_a_person_is_told(
    kit: Kit, died: Path, name: str
) -> None:
    """The learning rate times five; and who is told is who was to be told when the run began."""
    text = (died / name).read_text()
    (died / name).write_text(text.replace(str(kit.folder / "told"), str(kit.folder / "told others")) + "\n")
    assert recovering.recover(died, os.getpid()) == recovering.NOTHING
    (event,) = events(died, "recovery")
    assert event["outcome"] == "needs_attention"
    assert f"its {name} is not as this user's launcher sealed it" in event["reason"]
    assert event["reason"] in (kit.folder / "told").read_text() and not (kit.folder / "told others").exists()
    assert kit.run_dirs() == [died]


def test_without_a_home_the_digest_in_run_json_says_that_the_config_was_edited(
    kit: Kit, died: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.delenv("HOME")
    (died / "resolved_config.json").write_text((died / "resolved_config.json").read_text() + " ")
    assert recovering.recover(died, os.getpid()) == recovering.NOTHING
    assert "is not the one that run.json has the digest of" in events(died, "recovery")[0]["reason"]


def test_a_sealed_run_is_taken_up_though_its_group_may_write_to_it(kit: Kit, died: Path) -> None:
    for path in [died, *died.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o020)
    assert recovering.recover(died, os.getpid()).ready is not None


def test_a_run_of_an_older_kit_recovers_and_is_continued(kit: Kit, died: Path) -> None:
    """It has no seal, and neither its record nor its config has the keys that were added since."""
    own = json.loads((died / "run.json").read_text())
    for key in ("config_hash_version", "resolved_sha256", "kit_digest"):
        del own[key]
    own["git"].pop("first_commit")
    (died / "run.json").write_text(json.dumps(own))
    config = json.loads((died / "resolved_config.json").read_text())
    del config["abort"]["save_minutes"], config["recover"]["allow_code_change"]
    (died / "resolved_config.json").write_text(json.dumps(config))
    folder = Path(kit.env["XDG_STATE_HOME"]) / "resumekit/seals"
    for path in folder.glob("*.json"):
        path.unlink()
    os.utime(folder / ".since")
    plan = json.loads(kit("run", "T-1", "--dry-run", "--json").stdout)
    assert (plan["relation"], plan["changes"], plan["verdict"]) == ("continue", [], "ready")
    ready = recovering.recover(died, os.getpid()).ready
    assert ready is not None and record(ready.paths.run_dir)["relation"] == "continue"


def test_the_environment_of_a_record_that_was_edited_is_not_used(kit: Kit, died: Path) -> None:
    assert environment_of_callers_run(died)["HOME"] == kit.env["HOME"]
    own = record(died)
    own["environment"]["values"]["PATH"] = str(kit.folder)
    (died / "run.json").write_text(json.dumps(own))
    assert environment_of_callers_run(died) == dict(os.environ)


@as_root
def test_a_link_to_a_copy_is_not_taken_up_by_the_watcher(kit: Kit, died: Path) -> None:
    """Another user links a run id to a folder that the victim owns, and writes a marker with its own inode number."""
    copies = kit.folder / "copies"
    copies.mkdir()
    died.rename(copies / died.name)
    config = json.loads((copies / died.name / "resolved_config.json").read_text())
    config["trainer"]["command"] = [str(canary(kit))]
    (copies / died.name / "resolved_config.json").write_text(json.dumps(config))
    died.symlink_to(copies / died.name)
    marker = RunPaths(died).live_marker
    marker.unlink(missing_ok=True)
    live_marker.make(marker)
    watch_as_cron(kit)
    assert recovering.recover(died, os.getpid()) == recovering.NOTHING
    assert not (kit.folder / "sung").exists() and not events(copies / died.name, "recovery")


# A REDUCE of `argparse.Namespace`: data for the kit's reader, and refused by a load with weights_only=True.
NAMESPACE = b"cargparse\nNamespace\n)R"
# One of `os.system`.
SYSTEM = b"cos\nsystem\nX\x04\x00\x00\x00true\x85R"


def holding(path: Path, step: int, value: bytes, *, top: str = "archive") -> None:
    """Write a checkpoint as torch.save does, with one more value in its pickle."""
    write_checkpoint(path, step, more="MARK")
    with zipfile.ZipFile(path) as archive:
        records = {one.filename: archive.read(one) for one in archive.infolist()}
    text = b"X\x04\x00\x00\x00MARK"
    assert text in records["archive/data.pkl"]
    records["archive/data.pkl"] = records["archive/data.pkl"].replace(text, value)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in records.items():
            archive.writestr(f"{top}/{name.partition('/')[2]}", data)


@as_root
def test_a_checkpoint_of_another_users_is_loaded_by_a_trainer_of_its_own_only_if_it_is_plain_data(
    kit: Kit, killed_run: Path
) -> None:
    run = killed_run
    newest = run / "checkpoints/hrm_arc_step_10.pt"
    (run / "checkpoints/hrm_arc_step_10.pt.json").unlink(missing_ok=True)
    holding(newest, 10, NAMESPACE)
    words = ("resume", "T-1", "--step", "10", "--dry-run")
    kit(*words)  # the caller's own
    os.chown(newest, ANOTHER, ANOTHER)
    said = " ".join(kit(*words, code=5).stdout.split())
    assert "holds 'argparse.Namespace', which is not plain data" in said and "loads_with_kit is false" in said
    kit("run", "T-1", "--resume", str(newest), code=5)
    linked = kit.folder / "mine.pt"
    linked.symlink_to(newest)
    kit("run", "T-1", "--resume", str(linked), code=5)
    write_checkpoint(newest, 10)
    os.chown(newest, ANOTHER, ANOTHER)
    kit(*words)
    holding(newest, 10, SYSTEM)
    assert "which is not plain data" in kit("resume", "T-1", "--step", "10", code=3).stderr, "the caller's own neither"


def copied(kit: Kit) -> Path:
    """A run that the caller has copied from another user, into the caller's own runs folder; return its newest file."""
    run = killed(kit)
    own = record(run)
    (run / "run.json").write_text(json.dumps({**own, "token": "e" * 32}))
    for path in run.glob("checkpoints/*.pt.json"):
        path.unlink()
    return run / "checkpoints/hrm_arc_step_10.pt"


def test_a_checkpoint_in_a_run_that_was_copied_is_unpickled_only_with_consent(kit: Kit) -> None:
    newest = copied(kit)
    kit("run", "T-1", "--dry-run")  # plain data: nothing is asked
    holding(newest, 10, NAMESPACE)
    for words in (("run", "T-1"), ("resume", "T-1", "--step", "10"), ("run", "T-1", "--resume", str(newest))):
        said = " ".join(kit(*words, "--dry-run", code=5).stdout.split())
        assert f"lies in '{newest.parents[1].name}', which is not your own word (it has no seal: " in said
        assert "and holds 'argparse.Namespace', which is not plain data" in said
    kit("run", "T-1", code=5)
    elsewhere = kit.folder / "elsewhere" / newest.parents[1].name
    elsewhere.parent.mkdir()
    newest.parents[1].rename(elsewhere)
    kit("run", "T-1", "--resume", str(elsewhere / "checkpoints" / newest.name), "--dry-run", code=5)
    kit("run", "T-1", "--resume", str(elsewhere / "checkpoints" / newest.name), "--accept")


def found(path: Path, run_id: str | None) -> Candidate:
    return Candidate(10, path.parent, path.name, run_id, "chosen", "plausible", "", archive.summarize(path))


def asks(runs: Path, path: Path, run_id: str | None = None) -> str:
    resolved = {"trainer": {"loads_with_kit": False}}
    return " ".join(consent.checkpoint_consents(found(path, run_id), resolved, RunTable(runs)))


@pytest.fixture
def unplain(tmp_path: Path) -> Path:
    """A checkpoint of the caller's own in an unsealed run folder that no other user can have written."""
    run = made(tmp_path / "runs")
    (run / "checkpoints").mkdir()
    path = run / "checkpoints/hrm_arc_step_10.pt"
    holding(path, 10, NAMESPACE)
    return path


def test_the_callers_own_runs_are_unpickled_without_a_question(state: Path, tmp_path: Path, unplain: Path) -> None:
    run = unplain.parents[1]
    assert not asks(run.parent, unplain, run.name), "from before the seals"
    run.chmod(0o775)
    assert "its group may write to its folder, and there is no seal of it" in asks(run.parent, unplain, run.name)
    reseal(run)
    assert not asks(run.parent, unplain, run.name), "sealed"
    run.chmod(0o755)
    older = tmp_path / "runs/T-1_of-no-kit"
    (older / "checkpoints").mkdir(parents=True, mode=0o755)
    older.chmod(0o755)
    handmade = older / "checkpoints/hrm_arc_step_10.pt"
    unplain.rename(handmade)
    assert "it has no record of a launcher's" in asks(older.parent, handmade, older.name), (
        "written since the first seal"
    )
    os.utime(state / "resumekit/seals/.since", (handmade.stat().st_ctime + 1,) * 2)
    assert not asks(older.parent, handmade, older.name), "from before the kit"
    older.chmod(0o775)
    assert "its group may write to its folder" in asks(older.parent, handmade, older.name)


@as_root
@pytest.mark.parametrize("kind", ["a companion", "a file of a folder"])
def test_each_file_that_a_checkpoint_consists_of_has_to_be_the_callers(
    state: Path, tmp_path: Path, unplain: Path, kind: str
) -> None:
    run, section = unplain.parents[1], {"pattern": "m_{step}.pt", "with": ["o_{step}.pt"]}
    first, other = run / "checkpoints/m_10.pt", run / "checkpoints/o_10.pt"
    write_checkpoint(first, 10)
    unplain.rename(other)
    if kind != "a companion":
        first, section = run / "checkpoints/x-10", {"pattern": "x-{step}"}
        first.mkdir(mode=0o755)
        other = other.rename(first / "o.pt")
    inside = archive.summarize(other)
    reseal(run)

    def asked() -> tuple[str, ...]:
        resolved = {"trainer": {"loads_with_kit": False}, "checkpoint": section}
        candidate = Candidate(10, first.parent, first.name, run.name, "chosen", "plausible", "", inside)
        return consent.checkpoint_consents(candidate, resolved, RunTable(run.parent))

    assert not asked()
    os.chown(other, ANOTHER, ANOTHER)
    assert "belongs to" in " ".join(asked())


def test_a_checkpoint_that_lies_in_no_run_and_is_named_is_the_callers_word(
    state: Path, tmp_path: Path, unplain: Path
) -> None:
    run = unplain.parents[1]
    reseal(made(tmp_path / "first"))
    (run / "run.json").write_text(json.dumps({"run_id": run.name, "token": "e" * 32}))
    named, linked = tmp_path / "named.pt", tmp_path / "linked.pt"
    named.write_bytes(unplain.read_bytes())
    linked.symlink_to(unplain)
    (tmp_path / "run.json").write_text('{"of": "another program"}')
    assert not asks(run.parent, named)
    assert "it has no seal" in asks(run.parent, linked), "where the link leads to counts as well"
    assert "it has no seal" in asks(tmp_path / "other runs", unplain), "a run in another runs folder is one"
    copy = run.rename(tmp_path / "runs/T-1_renamed")
    assert "it was not made by this kit" in asks(copy.parent, copy / "checkpoints" / unplain.name, copy.name)


@as_root
def test_a_recovery_asks_a_person_where_its_checkpoint_is_another_users_and_not_plain(kit: Kit, died: Path) -> None:
    config = json.loads((died / "resolved_config.json").read_text())
    config["trainer"]["loads_with_kit"] = False
    (died / "resolved_config.json").write_text(json.dumps(config))
    reseal(died)
    for path in died.glob("checkpoints/*.pt"):
        holding(path, int(path.stem.rpartition("_")[2]), NAMESPACE)
        os.chown(path, ANOTHER, ANOTHER)
        path.with_name(path.name + ".json").unlink(missing_ok=True)
        grades.attest(path, int(path.stem.rpartition("_")[2]), run_id=died.name)
    assert recovering.recover(died, os.getpid()) == recovering.NOTHING
    assert "holds 'argparse.Namespace', which is not plain data" in events(died, "recovery")[0]["reason"]
    assert kit.run_dirs() == [died]


def two_in_one(path: Path, evil_first: str, evil_name: str) -> None:
    """Write an archive in which torch would find another data.pkl than a reader that goes by whole names."""
    write_checkpoint(path, 5)
    with zipfile.ZipFile(path) as archive:
        records = {one.filename: archive.read(one) for one in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{evil_first}/{evil_name}", b"\x80\x02" + SYSTEM + b".")
        for name, data in records.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("first", "name", "reason"),
    [("aaa", "data.pkl", "two archives in one file"), ("archive", "DATA.PKL", "is none that torch.save writes")],
)
def test_an_archive_that_torch_would_read_otherwise_than_the_kit_is_no_checkpoint(
    tmp_path: Path, first: str, name: str, reason: str
) -> None:
    path = tmp_path / "hrm_arc_step_5.pt"
    two_in_one(path, first, name)
    with pytest.raises(UnreadableFile, match=reason):
        archive.summarize(path)


def test_two_projects_in_one_runs_folder_do_not_go_on_from_each_other(kit: Kit, tmp_path: Path) -> None:
    own, other, clone = (tmp_path / name for name in ("own", "other", "clone"))
    for folder in (own, other):
        folder.mkdir()
        git(folder, "init", "-q")
        git(folder, "commit", "-q", "--allow-empty", "-m", f"first of {folder.name}")
    git(tmp_path, "clone", "-q", str(own), str(clone))

    def here(folder: Path) -> None:
        kit.config("--save-every", "5", training={"max_steps": 20}, paths={"root": str(folder)})

    here(own)
    kit("run", "T-1", code=137, env={"TOY_ARGS": "--at 7 kill"})
    (run,) = kit.run_dirs()
    first = record(run)["git"]["first_commit"]
    assert first == git(own, "rev-parse", "HEAD")
    here(other)
    said = kit("run", "T-1", "--dry-run", code=5).stdout
    assert "it is another project's" in " ".join(said.split()) and first[:12] in said
    kit("run", "T-1", code=5)
    kit("run", "T-1", "--fresh")
    mine = kit.run_dirs()[-1]
    assert f"'{mine.name}' has finished" in kit("run", "T-1", code=6).stderr, "its own head, not the other's"
    here(own)
    assert f"continuing '{run.name}'" in kit("run", "T-1", "--dry-run").stdout, "the newest of this project"
    assert mine != run
    here(clone)
    page = kit("run", "T-1", "--dry-run", code=None)
    assert "another project" not in page.stdout
    own.rename(tmp_path / "moved")
    here(tmp_path / "moved")
    page = kit("run", "T-1", "--dry-run", "--set", f"paths.root={tmp_path / 'moved'}")
    assert f"continuing '{run.name}'" in page.stdout, "an mv is no other project"


def asked(folder: Path, **trainer: Any) -> Any:
    """Return the request of a user whose project lies in a folder."""
    folder.mkdir(exist_ok=True)
    document = {"trainer": {"command": ["x"], **trainer}, "experiments": {"T-1": {"name": "toy"}}}
    (folder / "config.yaml").write_text(json.dumps(document))
    return parse([f"--config={folder / 'config.yaml'}", "--experiment=T-1"]).request()


def run_of_root(folder: Path, request: Any, **git_of_it: Any) -> Run:
    run = Run(RunPaths(folder / "runs/T-1_toy"), {"run_id": "T-1_toy", "root": str(folder), "git": git_of_it})
    run.config = request.resolved("T-1")
    return run


def test_without_git_the_executed_words_say_whether_it_is_another_project(tmp_path: Path) -> None:
    own, same, other = (asked(tmp_path / name, command=["x", name[:1]]) for name in ("own", "omega", "pi"))
    known = {"first_commit": "1c" * 20}  # of a repository, where the caller has none
    for git_of_it in ({}, known):
        assert project.another_project(run_of_root(tmp_path / "omega", same, **git_of_it), own, "T-1") is None
        assert "other words" in str(
            project.another_project(run_of_root(tmp_path / "pi", other, **git_of_it), own, "T-1")
        )
    assert project.another_project(run_of_root(tmp_path / "gone", other), own, "T-1") is None, (
        "an mv, or another container"
    )
    for odd in (None, 7, "\0", ["x"]):
        assert (
            project.another_project(Run(RunPaths(tmp_path / "T-1_toy"), {"run_id": "T-1_toy", "root": odd}), own, "T-1")
            is None
        )


def test_a_shallow_clone_does_not_say_where_its_repository_begins(tmp_path: Path) -> None:
    whole, shallow = tmp_path / "whole", tmp_path / "shallow"
    whole.mkdir()
    git(whole, "init", "-q")
    for word in ("first", "second"):
        git(whole, "commit", "-q", "--allow-empty", "-m", word)
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{whole}", str(shallow))
    git(whole, "worktree", "add", "-q", str(tmp_path / "tree"))
    first = project.git.first_commit(whole)
    assert first == git(whole, "rev-list", "--max-parents=0", "HEAD") == project.git.first_commit(tmp_path / "tree")
    assert project.git.first_commit(shallow) is None


def test_every_command_says_which_kit_it_is(kit: Kit) -> None:
    for command in ("run", "resume", "runs", "abort-watch"):
        done = subprocess.run([*kit.argv(command)[:1], "--version"], capture_output=True, text=True, env=kit.env)
        assert done.returncode == 0
        assert done.stdout == f"{command}.sh resumekit {kit_version.version()} (digest {kit_version.digest()[:12]})\n"


def test_the_digest_of_the_kit_is_kept_and_changes_with_any_file_of_it(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in kit_version.FOLDERS:
        (tmp_path / "kit" / name / "__pycache__").mkdir(parents=True)
        (tmp_path / "kit" / name / "a.py").write_text(name)
    monkeypatch.setattr(kit_version, "KIT_ROOT", tmp_path / "kit")
    assert kit_version.version() == "unknown", "a copy of the folders alone"
    first = kit_version.digest()
    monkeypatch.setattr(kit_version, "_of", lambda _: pytest.fail("it was kept"))
    assert kit_version.digest() == first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    monkeypatch.setattr(kit_version, "KIT_ROOT", tmp_path / "kit")
    (tmp_path / "kit/lib/__pycache__/a.pyc").write_text("compiled")
    assert kit_version.digest() == first, "what Python compiles is not the kit"
    (tmp_path / "kit/lib/a.py").write_text("other")
    assert kit_version.digest() != first


@pytest.mark.fault("K4", by="trust.examine_made: what the launcher has made and written, or no word of it")
def test_what_a_launcher_hands_on_says_whether_a_run_is_as_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a state folder too: nothing of it is a seal."""
    monkeypatch.setenv("XDG_STATE_HOME", "nowhere")
    run = made(tmp_path / "runs")
    for path in [run, *run.iterdir()]:
        path.chmod(path.stat().st_mode | 0o020)
    records = seals.digest({path.name: path.read_bytes() for path in run.iterdir()})
    known_by = ownership.made_folder_from_text(str(ownership.made_folder_of(run.stat(), records)))
    assert known_by is not None and trust.examine_made(run, known_by).standing.is_callers
    before = (run / "resolved_config.json").read_bytes()
    (run / "resolved_config.json").write_text("{}")
    found = trust.examine_made(run, known_by).standing
    assert found == (trust.OTHERS, "its records are not as its launcher wrote them")
    (run / "resolved_config.json").write_bytes(before)
    run.rename(tmp_path / "runs/aside")
    run.symlink_to("aside")
    with pytest.raises(ownership.Exchanged, match="it was moved, removed or exchanged"):
        trust.examine_made(run, known_by)
    run.unlink()
    shutil.copytree(tmp_path / "runs/aside", run)
    assert trust.examine_made(run, known_by).standing.is_callers, "as on a drive that changes inode numbers"
    (run / "resolved_config.json").write_text("{}")
    with pytest.raises(ownership.Exchanged, match="it was moved, removed or exchanged"):
        trust.examine_made(run, known_by)
