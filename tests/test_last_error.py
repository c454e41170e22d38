"""What a trainer died of, by the end of its log."""

from __future__ import annotations

from pathlib import Path

import pytest

from resumekit.base.paths import RunPaths
from resumekit.run import log_end
from resumekit.run.run_folder import Run
from support.last_words import BANNER, ELASTIC, TRACEBACK


@pytest.mark.parametrize(
    ("log", "code", "line", "kind"),
    [
        (f"{TRACEBACK}ModuleNotFoundError: No module named 'torch'\n", 1,
         "ModuleNotFoundError: No module named 'torch'",
         log_end.IMPORT),
        ("usage: train.py [-h] [--lr LR]\ntrain.py: error: unrecognized arguments: --learning_rat=1\n", 2,
         "train.py: error: unrecognized arguments: --learning_rat=1", log_end.ARGUMENTS),
        ("Usage: train.py [OPTIONS]\n\nError: No such option: --lrr\n", 2, "Error: No such option: --lrr",
         log_end.ARGUMENTS),
        ("/usr/bin/python3: can't open file '/lab/trian.py': [Errno 2] No such file or directory\n", 2,
         "/usr/bin/python3: can't open file '/lab/trian.py': [Errno 2] No such file or directory", log_end.FILE),
        ("bash: trian.sh: No such file or directory\n", 127, "bash: trian.sh: No such file or directory",
         log_end.FILE),
        (f"{TRACEBACK}NameError: name 'modle' is not defined\n", 1, "NameError: name 'modle' is not defined",
         log_end.SYNTAX),
        ('  File "train.py", line 3\n    def x(:\n          ^\nSyntaxError: invalid syntax\n', 1,
         "SyntaxError: invalid syntax", log_end.SYNTAX),
        (f"{TRACEBACK}pydantic_core._pydantic_core.ValidationError: 1 validation error for Config\nlr\n  wrong\n", 1,
         "pydantic_core._pydantic_core.ValidationError: 1 validation error for Config", log_end.CONFIG),
        ("Could not override 'lrr'.\nSet the environment variable HYDRA_FULL_ERROR=1 for a stack trace.\n", 1,
         "Could not override 'lrr'.", log_end.CONFIG),
        (f"{TRACEBACK}RuntimeError: CUDA error: out of memory\n", 1, "RuntimeError: CUDA error: out of memory",
         log_end.MAY_HEAL),
        (f"{TRACEBACK}ConnectionError: couldn't reach the hub\n", 1, "ConnectionError: couldn't reach the hub",
         log_end.MAY_HEAL),
        (f"{TRACEBACK}ValueError: the server timed out\n", 1, "ValueError: the server timed out", log_end.MAY_HEAL),
        (f"{TRACEBACK}_pickle.UnpicklingError: invalid load key\n", 1, "_pickle.UnpicklingError: invalid load key",
         log_end.UNKNOWN),
        (f"{TRACEBACK}OSError: [Errno 28] No space left on device\n", 1, "OSError: [Errno 28] No space left on device",
         log_end.MAY_HEAL),
        (f"[rank1]: {TRACEBACK}[rank1]: KeyError: 'lr'\n[rank0]: RuntimeError: NCCL lost rank 1\n{BANNER}", 1,
         "KeyError: 'lr'", log_end.PROGRAM),
        (f"{TRACEBACK}KeyError: 'a'\n\nDuring handling of the above exception, another exception occurred:\n\n"
         f"{TRACEBACK}TypeError: b\n", 1, "TypeError: b", log_end.PROGRAM),
    ],
)  # fmt: skip
def test_the_line_that_says_it_is_found(log: str, code: int, line: str, kind: str) -> None:
    lines = [log_end._RANK.sub(b"", one) for one in log.encode().splitlines() if one.strip()]
    assert log_end.error_in_lines(lines, code) == log_end.LastError(line, kind)


@pytest.mark.parametrize("log", ["", "step 12 loss 0.3\n", "  100%|####| 5/5\n", "the ValueError was caught\n"])
def test_where_the_log_does_not_say_nothing_is_made_up(log: str) -> None:
    assert log_end.error_in_lines([one for one in log.encode().splitlines() if one.strip()], 1) is None


BAR = " 12%|█▏        | 12/100 [00:01<00:09,  9.61it/s]"
RANKS = "".join(
    f"[{n}]:\n  time      : 2026-11-22\n  host      : node\n  rank      : {n} (local_rank: {n})\n"
    f"  exitcode  : {code} (pid: {4711 + n})\n  error_file: <N/A>\n  traceback : Signal 9 (SIGKILL) received by PID\n"
    for n, code in enumerate([1] * 16)
)
RULER = "=" * 60 + "\n"


def run_with(folder: Path, log: str) -> Run:
    run = Run(RunPaths(folder), {})
    run.paths.logs.mkdir(exist_ok=True)
    run.paths.output_log.write_text(log, encoding="utf-8")
    return run


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (f"{BAR}\n{TRACEBACK}ValueError: bad shard\n\r{BAR}\n", "ValueError: bad shard"),
        (f"{TRACEBACK}StopIteration\n{BAR}\n", "StopIteration"),
        (f"{TRACEBACK}_queue.Empty\n", "_queue.Empty"),
        (f"{TRACEBACK}lab.BadShard: shard 7 is torn\n{BAR}\n", "lab.BadShard: shard 7 is torn"),
        (f"{TRACEBACK}ray.exceptions.RayTaskError(ValueError): ray::fit()\n", None),
        (f"{TRACEBACK}subprocess.TimeoutExpired: Command 'x' timed out\n{RULER}", None),
        (f"saving\nthe data are gone\n{BAR}\n", "the data are gone"),
        (f"the data are gone\n{RULER}", "the data are gone"),
        (f"the data are gone\n 3/9 ━━━━━━━━━ 0:00:01\n{'─' * 40}\n", "the data are gone"),
        (f"数据丢失\n{BAR}\n", "数据丢失"),
        (f"[rank0]: {TRACEBACK}[rank0]: KeyError: 'lr'\n{TRACEBACK}{ELASTIC}ChildFailedError:\n{RULER}{RANKS}{RULER}",
         "KeyError: 'lr'"),
        (f"{TRACEBACK}{ELASTIC}ChildFailedError:\n{RULER}{RANKS}{RULER}",
         "traceback : Signal 9 (SIGKILL) received by PID"),
        (f"{BAR}\n", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_a_closing_bar_or_a_ruler_is_not_what_a_run_died_of(log: str, words: str | None, tmp_path: Path) -> None:
    last = log.replace(RULER, "").splitlines()[-1] if words is None else words
    assert log_end.error_words_of(run_with(tmp_path, log), 1) == last


def test_an_exception_that_was_got_over_long_before_the_banner_is_not_the_cause(tmp_path: Path) -> None:
    steps = "".join(f"step {n}\n" for n in range(200))
    banner = f"{ELASTIC}ChildFailedError:\n{RULER}{RANKS}{RULER}"
    log = f"{TRACEBACK}OSError: retried\n{steps}[rank3]: KeyError: 'lr'\n{banner}"
    assert log_end.error_words_of(run_with(tmp_path, log), 1) == "KeyError: 'lr'"
