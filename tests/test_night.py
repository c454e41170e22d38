"""cron and systemd call the watcher: make install-cron and its like, with stubs for crontab(1) and systemctl."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resumekit.base.errors import Refused, UsageError
from resumekit.watch import install
from resumekit.watch.scheduled_watcher import ScheduledWatcher
from support import another_user
from support.lab_repo import CONFIG, MAKEFILE, TRAINER, copy_kit
from support.processes import marked_pids, wait_until
from support.runs import events

# Keeps its crontab in $CRONTAB, as cron's own does: no file is no crontab, and a last line without an end is refused.
CRONTAB_STUB = """\
#!/bin/sh
case $1 in
  -l) [ -z "$CRONTAB_FAILS" ] || { echo "$CRONTAB_FAILS" >&2; exit 1; }
      [ -e "$CRONTAB" ] || { echo "no crontab for you" >&2; exit 1; }
      cat "$CRONTAB" ;;
  -) cat > "$CRONTAB.new"
     [ -z "$(tail -c 1 "$CRONTAB.new")" ] || { echo "new crontab file is missing newline" >&2; exit 1; }
     mv "$CRONTAB.new" "$CRONTAB" ;;
  *) exit 64 ;;
esac
"""
SYSTEMCTL_STUB = '#!/bin/sh\necho "$*" >> "$CRONTAB.systemctl"\n'
# Says how it was called; stands in for the watcher in the lab's copy of the kit.
WATCHER_STUB = '#!/bin/bash\nprintf "%s\\n" "$PATH" "${PYTHON-}" "$#" "$@"\n'
OTHERS = b"# mine\nMAILTO=me\n*/5 * * * * true \\% 100\r\n\n0 3 * * * echo \xff # resumekit watches /elsewhere\n"


class Lab:
    """A lab with the kit in resumekit/, in a folder whose name would run or end something wherever it is not quoted."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path / 'it\'s a "lab" 100%d $(touch pwned) # of ü'
        self.runs = self.folder / "runs"
        self.crontab, self.bin = tmp_path / "crontab", tmp_path / "stubs"
        self.folder.mkdir()
        copy_kit(self.folder / "resumekit")
        (self.folder / "Makefile").write_text(MAKEFILE)
        (self.folder / "resumekit/config.yaml").write_text(json.dumps(CONFIG))
        self.bin.mkdir()
        for name, text in (("crontab", CRONTAB_STUB), ("systemctl", SYSTEMCTL_STUB)):
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RESUMEKIT_", "XDG_", "MAKE"))},
            "HOME": str(tmp_path), "CRONTAB": str(self.crontab), "PYTHON": sys.executable,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
        }  # fmt: skip

    @property
    def night(self) -> ScheduledWatcher:
        return ScheduledWatcher(self.runs, self.folder / "resumekit/config.yaml", Path(sys.executable))

    def make(self, *words: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(["make", *words], cwd=self.folder, env={**self.env, **env}, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=60)  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def make_on_terminal(self, *words: str, typed: bytes) -> str:
        """Run make with a terminal to ask on; return what it said."""
        screen, terminal = pty.openpty()
        os.write(screen, typed)
        with os.fdopen(terminal, "rb") as stdin:
            done = subprocess.run(["make", *words], cwd=self.folder, env=self.env, stdin=stdin, capture_output=True,
                                  text=True, timeout=60)  # fmt: skip
        os.close(screen)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def as_cron_runs_it(line: bytes, collapses_backslashes: bool) -> bytes:
    """Return the command that a cron makes of a line: the first % that is not escaped ends it."""
    command, rest = b"", line.split(b" ", 5)[5]
    while rest:
        if rest.startswith(b"\\%") or (collapses_backslashes and rest.startswith(b"\\\\")):
            command, rest = command + rest[1:2], rest[2:]
        elif rest.startswith(b"\\"):
            command, rest = command + rest[:2], rest[2:]
        elif rest.startswith(b"%"):
            break
        else:
            command, rest = command + rest[:1], rest[1:]
    return command


@pytest.mark.fault("K10", by="watch/scheduled_watcher.py: the line in the crontab has a PATH and a Python of its own")
@pytest.mark.parametrize("collapses", [True, False], ids=["as Vixie's", "as cronie"])
def test_the_line_calls_the_watcher_with_its_paths_whole_from_cron_s_empty_environment(lab: Lab, collapses: bool):
    lab.make("kit-install-cron", "YES=1")
    (lab.folder / "resumekit/bin/abort-watch.sh").write_text(WATCHER_STUB)
    (line,) = lab.crontab.read_bytes().splitlines()
    done = subprocess.run(["/bin/sh", "-c", as_cron_runs_it(line, collapses)], cwd="/", capture_output=True,
                          env={"HOME": "/", "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"})  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    path, python, *words = done.stdout.decode().splitlines()
    config = lab.folder / "resumekit/config.yaml"
    assert words == ["6", "--quiet", "--log", "--runs", str(lab.runs), "--config", str(config)]
    assert (path, python) == ("/usr/local/bin:/usr/bin:/bin", sys.executable)
    assert not list(lab.folder.parent.rglob("pwned"))


def test_the_line_is_shown_and_the_others_stay_byte_for_byte(lab: Lab):
    lab.crontab.write_bytes(OTHERS)
    shown = lab.make("kit-install-cron", "YES=1").stdout.rstrip("\n").encode()
    assert lab.crontab.read_bytes() == OTHERS + shown + b"\n"
    again = lab.make("kit-install-cron")
    assert "already, nothing was changed" in again.stderr
    lab.make("kit-uninstall-cron", "YES=1")
    assert lab.crontab.read_bytes() == OTHERS
    assert "no line of ours" in lab.make("kit-uninstall-cron").stderr


def test_a_line_of_before_is_replaced_where_it_stands(lab: Lab):
    old = install.crontab_line_of(lab.night._replace(python=Path("/gone/python"))) + b"\n"
    lab.crontab.write_bytes(b"# first\n" + old + b"# last\n" + old)
    lab.make("kit-install-cron", "YES=1")
    assert lab.crontab.read_bytes() == b"# first\n" + line_of_lab(lab) + b"\n# last\n"


def test_a_line_that_wrote_its_log_into_the_runs_folder_is_known_replaced_and_removed(lab: Lab):
    """As the version before installed it: whatever lay under the log's name was written through."""
    words = list(lab.night.command)
    words.remove("--log")
    log = ["PATH=/usr/local/bin:/usr/bin:/bin", *map(shlex.quote, words), ">>", shlex.quote(f"{lab.runs}/.watch.log")]
    mark = shlex.quote(f"resumekit watches {lab.runs}")
    old = "* * * * * " + " ".join([*log, "2>&1", "#", mark]).replace("%", "\\%") + "\n"
    lab.crontab.write_text(f"# first\n{old}# last\n")
    lab.make("kit-install-cron", "YES=1")
    line = line_of_lab(lab)
    assert lab.crontab.read_bytes() == b"# first\n" + line + b"\n# last\n"
    assert b">" not in line and b".watch.log" not in line and b" --log " in line
    lab.crontab.write_text(f"# first\n{old}# last\n")
    lab.make("kit-uninstall-cron", "YES=1")
    assert lab.crontab.read_bytes() == b"# first\n# last\n"


def test_a_state_folder_of_ones_own_stands_in_the_line_and_in_the_unit(lab: Lab, tmp_path: Path):
    """What launchers keep of their runs lies there, and neither cron nor systemd knows the variable."""
    state = tmp_path / "my state 100%"
    said = lab.make("kit-install-cron", "YES=1", XDG_STATE_HOME=str(state)).stderr
    assert f"XDG_STATE_HOME={shlex.quote(str(state))}".replace("%", "\\%").encode() in line_of_lab(lab)
    assert f"what it says is in '{state}/resumekit/watch/runs-" in said
    lab.make("kit-install-systemd", "YES=1", XDG_STATE_HOME=str(state))
    unit = (unit_folder(lab) / "resumekit-watch.service").read_text()
    assert f'"XDG_STATE_HOME={state}"'.replace("%", "%%") in unit and '"--log"' in unit
    lab.make("kit-install-cron", "YES=1", XDG_STATE_HOME="relative")
    assert b"XDG_STATE_HOME" not in line_of_lab(lab)


@pytest.mark.skipif(another_user.why_not() is not None, reason=str(another_user.why_not()))
def test_a_runs_folder_that_one_may_not_write_to_and_a_crontab_that_is_refused_install_nothing():
    with another_user.folder() as place:
        lab = Lab(place)
        place.chmod(0o755)
        lab.runs.mkdir(mode=0o755)
        env = {**lab.env, "PYTHON": str(another_user.python()), "HOME": str(place / "home")}

        def install(action: str, **more: str) -> subprocess.CompletedProcess[str]:
            words = [str(lab.folder / "resumekit/lib/watch_installer.sh"), action, "--yes", "--runs", str(lab.runs)]
            return subprocess.run(words, env={**env, **more}, capture_output=True, text=True, cwd="/",
                                  user=another_user.UID, group=another_user.GID, extra_groups=[])  # fmt: skip

        for action in ("--install-cron", "--install-systemd"):
            done = install(action)
            assert done.returncode == 1 and done.stderr.count("\n") == 1 and "nothing was installed" in done.stderr
            assert f"'{lab.runs}' cannot be written to" in done.stderr
        lab.runs.chmod(0o777)
        (lab.runs / f".live.{another_user.UID}").mkdir()
        done = install("--install-cron")
        assert done.returncode == 1 and f".live.{another_user.UID}' is no folder of this user's" in done.stderr
        (lab.runs / f".live.{another_user.UID}").rmdir()
        done = install("--install-cron", CRONTAB="/no/such/folder/crontab")
        assert done.returncode == 1 and "the crontab was not taken" in done.stderr
        assert not lab.crontab.exists() and not (place / "home").exists()


def line_of_lab(lab: Lab) -> bytes:
    (line,) = (line for line in lab.crontab.read_bytes().split(b"\n") if b"resumekit watches" in line)
    assert sys.executable.encode() in line
    return line


def test_a_crontab_whose_last_line_has_no_end_gets_one(lab: Lab):
    lab.crontab.write_bytes(b"# no end")
    lab.make("kit-install-cron", "YES=1")
    assert lab.crontab.read_bytes() == b"# no end\n" + line_of_lab(lab) + b"\n"


def test_only_a_y_on_the_terminal_is_a_yes(lab: Lab):
    refused = lab.make("kit-install-cron", code=2)
    assert "there is no terminal to ask on" in refused.stderr and not lab.crontab.exists()
    for typed in (b"n\n", b"\n", b"\x04", b"YEAH\n"):
        assert "nothing was changed" in lab.make_on_terminal("kit-install-cron", typed=typed)
        assert not lab.crontab.exists()
    assert "[y/N]" in lab.make_on_terminal("kit-install-cron", typed=b"y\n")
    assert line_of_lab(lab)


def test_a_crontab_that_cannot_be_read_is_not_taken_for_an_empty_one(lab: Lab):
    lab.crontab.write_bytes(OTHERS)
    for target in ("kit-install-cron", "kit-uninstall-cron"):
        failed = lab.make(target, "YES=1", code=2, CRONTAB_FAILS="You (lab) are not allowed to use this program")
        assert "the crontab cannot be read" in failed.stderr and "are not allowed" in failed.stderr
        assert "Traceback" not in failed.stderr and lab.crontab.read_bytes() == OTHERS


def test_a_machine_without_cron_is_one_sentence_and_127(lab: Lab, tmp_path: Path):
    (tmp_path / "tools").mkdir()
    for tool in ("bash", "readlink", "env", "sh"):
        (tmp_path / "tools" / tool).symlink_to(str(shutil.which(tool)))
    env = {**lab.env, "PATH": str(tmp_path / "tools")}
    words = [str(lab.folder / "resumekit/lib/watch_installer.sh"), "--install-cron", "--yes"]
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 127
    assert done.stderr == (
        "watch_installer.sh: there is no 'crontab' on this machine: install cron, or use 'make install-systemd'\n"
    )
    words = [str(shutil.which("make")), "kit-install-cron", "YES=1"]
    done = subprocess.run(words, cwd=lab.folder, env=env, capture_output=True, text=True)
    assert "or use 'make kit-install-systemd'\n" in done.stderr, "as it is to be typed in this lab"


@pytest.mark.parametrize("name", ["two\nlines", "back\\slash", "bell\a", "not utf \udcff"])
def test_a_path_that_no_line_can_hold_is_refused_in_a_sentence(lab: Lab, tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    words = [str(lab.folder / "resumekit/lib/watch_installer.sh"), "--yes", "--runs", str(tmp_path / name)]
    for action in ("--install-cron", "--install-systemd"):
        done = subprocess.run([*words, action], env=lab.env, capture_output=True, text=True, errors="replace")
        assert done.returncode == 2 and "rename the folder" in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1 and not lab.crontab.exists()


def test_a_line_that_is_too_long_for_some_crons_is_refused():
    with pytest.raises(UsageError, match="move the kit or"):
        install.crontab_line_of(ScheduledWatcher(Path("/" + "r" * 500), Path("/config.yaml")))


def test_what_was_installed_can_be_taken_back_when_the_config_is_broken(lab: Lab):
    lab.make("kit-install-cron", "YES=1")
    (lab.folder / "resumekit/config.yaml").write_text("a: [")
    assert "config.yaml" in lab.make("kit-uninstall-cron", "YES=1", code=2).stderr
    shown = line_of_lab(lab).decode()
    assert lab.make("kit-uninstall-cron", "YES=1", f"RUNS={lab.runs}").stdout == shown + "\n"
    assert lab.crontab.read_bytes() == b""


def test_there_has_to_be_one_thing_to_do_and_only_units_have_names(lab: Lab):
    assert "unknown option '--set'" in lab.make("kit-install-cron", "SET=a=1", code=2).stderr
    assert "only units have a name" in lab.make("kit-install-cron", "NAME=x", code=2).stderr
    installer = str(lab.folder / "resumekit/lib/watch_installer.sh")
    for words in ([], ["--install-cron", "--uninstall-cron"]):
        done = subprocess.run([installer, *words], env=lab.env, capture_output=True, text=True)
        assert done.returncode == 2 and "is to be done" in done.stderr


@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=6), st.booleans())
def test_installing_and_uninstalling_gives_back_what_was_there(lines: list[bytes], ends: bool):
    watcher = ScheduledWatcher(Path("/lab/100%/runs"), Path("/lab/config.yaml"))
    before = b"\n".join(lines) + (b"\n" if ends and lines else b"")
    after = install.with_line(before, watcher)
    assert install.with_line(after, watcher) == after
    assert after.count(install.crontab_line_of(watcher) + b"\n") == 1
    expected = before if before.endswith(b"\n") or not before else before + b"\n"
    assert install.without_line(after, watcher) == expected


def test_no_folder_s_line_is_taken_for_another_s():
    """Not even where the one is called as the other's mark."""
    one = ScheduledWatcher(Path("/b/runs"), Path("/c"))
    for other in ("/b/runs2", "/a/b/runs", f"/x # {one.mark}", f"/x # '{one.mark}'"):
        line = install.crontab_line_of(ScheduledWatcher(Path(other), Path("/c"))) + b"\n"
        assert install.without_line(line, one) == line


@pytest.mark.long
@pytest.mark.fault("G10", by="watch/install.py: absolute paths in the line; the run's recorded environment")
def test_cron_takes_up_a_run_whose_whole_family_was_killed(lab: Lab, tmp_path: Path):
    """With the line as it was installed, from cron's environment; the trainer imports nothing of ours."""
    (lab.folder / "train.py").write_bytes(TRAINER.read_bytes())
    (lab.folder / "resumekit/config.yaml").write_text(json.dumps({**CONFIG, "recover": {"enabled": True}}))
    (lab.folder / "lib").mkdir()
    (lab.folder / "lib/config.py").write_text("DEFAULT_LR = 0.01\n")
    hold, mark = lab.folder / "hold", f"RESUMEKIT_TEST_MARK={tmp_path.name}"
    hold.touch()
    name, value = mark.split("=")
    try:
        lab.make("kit-run", "EXP=LAB-1", "DETACH=1", "ARGS=--hold hold", **{name: value})
        lab.make("kit-install-cron", "YES=1")
        (first,) = (path.parent for path in lab.runs.glob("*/run.json"))
        wait_until(lambda: 17 in [step["step"] for step in events(first, "step")], "step 17, behind a checkpoint")
        for pid in marked_pids(mark):
            os.kill(pid, signal.SIGSTOP)  # none of them sees another one die
        for pid in marked_pids(mark):
            os.kill(pid, signal.SIGKILL)
        hold.unlink()
        command = as_cron_runs_it(line_of_lab(lab), collapses_backslashes=True)
        env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", name: value}
        subprocess.run(["/bin/sh", "-c", command], cwd="/", env=env, timeout=60)
        said = "".join(path.read_text() for path in (tmp_path / ".local/state/resumekit/watch").glob("*.log"))
        (second,) = wait_until(lambda: [p.parent for p in lab.runs.glob("*_resume@15_*/exit.json")], f"its end\n{said}")
        assert json.loads((second / "exit.json").read_text())["code"] == 0, said
        assert len({step["step"] for run in (first, second) for step in events(run, "step")}) == 30
    finally:
        for pid in marked_pids(mark):
            os.kill(pid, signal.SIGKILL)


# systemd


def unit_folder(lab: Lab) -> Path:
    return lab.folder.parent / ".config/systemd/user"


def test_the_units_are_shown_written_and_taken_back(lab: Lab):
    shown = lab.make("kit-install-systemd", "YES=1")
    assert "systemctl --user daemon-reload && systemctl --user enable --now resumekit-watch.timer" in shown.stdout
    assert "loginctl enable-linger" in shown.stdout
    service, timer = (unit_folder(lab) / f"resumekit-watch.{kind}" for kind in ("service", "timer"))
    for path in (service, timer):
        assert path.read_text() in shown.stdout
    assert "KillMode=process\n" in service.read_text() and "PrivateTmp=" not in service.read_text()
    assert "OnCalendar=minutely\n" in timer.read_text()
    assert "already, nothing was changed" in lab.make("kit-install-systemd").stderr, "nothing to ask either"
    assert "units are gone" in lab.make("kit-uninstall-systemd", "YES=1").stderr
    assert not service.exists() and not timer.exists()
    asked = Path(f"{lab.crontab}.systemctl").read_text().splitlines()
    assert asked == ["--user disable --now resumekit-watch.timer", "--user daemon-reload"]


def test_units_are_their_users_alone_under_the_umask_of_a_group(lab: Lab):
    old = os.umask(0o002)
    try:
        lab.make("kit-install-systemd", "YES=1")
        units_there = sorted(unit_folder(lab).iterdir())
        assert [path.stat().st_mode & 0o777 for path in (*units_there, unit_folder(lab))] == [0o600, 0o600, 0o700]
        units_there[0].chmod(0o664)  # as an earlier kit has left it
        lab.make("kit-install-systemd", "YES=1")
    finally:
        os.umask(old)
    assert units_there[0].stat().st_mode & 0o777 == 0o600


def test_another_runs_folder_s_units_are_left_alone(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    lab.make("kit-install-systemd", "YES=1")
    before = (unit_folder(lab) / "resumekit-watch.service").read_bytes()
    (lab.folder / "others").mkdir()
    for target in ("kit-install-systemd", "kit-uninstall-systemd"):
        assert "watches something else" in lab.make(target, "YES=1", "RUNS=others", code=2).stderr
    assert (unit_folder(lab) / "resumekit-watch.service").read_bytes() == before
    lab.make("kit-install-systemd", "YES=1", "RUNS=others", "NAME=two")
    assert (unit_folder(lab) / "resumekit-watch-two.timer").exists()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(unit_folder(lab).parent.parent))
    with pytest.raises(Refused):
        install.check_own(install.unit_files(ScheduledWatcher(lab.folder / "others", Path("/c"))))
    with pytest.raises(UsageError, match="cannot be named"):
        install.unit_files(lab.night, "../../x")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_takes_the_units_and_reads_the_paths_as_they_are(lab: Lab):
    lab.make("kit-install-systemd", "YES=1")

    def verified(*files: Path) -> subprocess.CompletedProcess[str]:
        # --man=no: what manuals the machine has is not the question.
        words = ["systemd-analyze", "verify", "--user", "--man=no", *map(str, files)]
        env = {**lab.env, "XDG_RUNTIME_DIR": str(lab.folder.parent)}
        return subprocess.run(words, env=env, capture_output=True, text=True)

    done = verified(*unit_folder(lab).iterdir())
    assert (done.returncode, done.stderr) == (0, "")
    # As a first word it does not take such a path, and says how it has read it.
    watcher = str(lab.folder / "resumekit/bin/abort-watch.sh")
    unit = lab.folder.parent / "probe.service"
    unit.write_text(f"[Service]\nType=oneshot\nExecStart={install._quoted(watcher)}\n")
    assert f"special characters: {watcher}\n" in verified(unit).stderr
