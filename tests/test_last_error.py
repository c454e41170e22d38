"""What a trainer died of, by the end of its log."""

from __future__ import annotations

import pytest

from resumekit.run_folder import last_error

TRACEBACK = 'Traceback (most recent call last):\n  File "train.py", line 3, in <module>\n    main()\n'
ELASTIC = "torch.distributed.elastic.multiprocessing.errors."
BANNER = f"""\
{TRACEBACK}{ELASTIC}ChildFailedError:
============================================================
train.py FAILED
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  exitcode  : 1 (pid: 4711)
============================================================
"""


@pytest.mark.parametrize(
    ("log", "code", "line", "kind"),
    [
        (f"{TRACEBACK}ModuleNotFoundError: No module named 'torch'\n", 1,
         "ModuleNotFoundError: No module named 'torch'",
         last_error.IMPORT),
        ("usage: train.py [-h] [--lr LR]\ntrain.py: error: unrecognized arguments: --learning_rat=1\n", 2,
         "train.py: error: unrecognized arguments: --learning_rat=1", last_error.ARGUMENTS),
        ("Usage: train.py [OPTIONS]\n\nError: No such option: --lrr\n", 2, "Error: No such option: --lrr",
         last_error.ARGUMENTS),
        ("/usr/bin/python3: can't open file '/lab/trian.py': [Errno 2] No such file or directory\n", 2,
         "/usr/bin/python3: can't open file '/lab/trian.py': [Errno 2] No such file or directory", last_error.FILE),
        ("bash: trian.sh: No such file or directory\n", 127, "bash: trian.sh: No such file or directory",
         last_error.FILE),
        (f"{TRACEBACK}NameError: name 'modle' is not defined\n", 1, "NameError: name 'modle' is not defined",
         last_error.SYNTAX),
        ('  File "train.py", line 3\n    def x(:\n          ^\nSyntaxError: invalid syntax\n', 1,
         "SyntaxError: invalid syntax", last_error.SYNTAX),
        (f"{TRACEBACK}pydantic_core._pydantic_core.ValidationError: 1 validation error for Config\nlr\n  wrong\n", 1,
         "pydantic_core._pydantic_core.ValidationError: 1 validation error for Config", last_error.CONFIG),
        ("Could not override 'lrr'.\nSet the environment variable HYDRA_FULL_ERROR=1 for a stack trace.\n", 1,
         "Could not override 'lrr'.", last_error.CONFIG),
        (f"{TRACEBACK}RuntimeError: CUDA error: out of memory\n", 1, "RuntimeError: CUDA error: out of memory",
         last_error.MAY_HEAL),
        (f"{TRACEBACK}ConnectionError: couldn't reach the hub\n", 1, "ConnectionError: couldn't reach the hub",
         last_error.MAY_HEAL),
        (f"{TRACEBACK}ValueError: the server timed out\n", 1, "ValueError: the server timed out", last_error.MAY_HEAL),
        (f"{TRACEBACK}_pickle.UnpicklingError: invalid load key\n", 1, "_pickle.UnpicklingError: invalid load key",
         last_error.UNKNOWN),
        (f"{TRACEBACK}OSError: [Errno 28] No space left on device\n", 1, "OSError: [Errno 28] No space left on device",
         last_error.MAY_HEAL),
        (f"[rank1]: {TRACEBACK}[rank1]: KeyError: 'lr'\n[rank0]: RuntimeError: NCCL lost rank 1\n{BANNER}", 1,
         "KeyError: 'lr'", last_error.PROGRAM),
        (f"{TRACEBACK}KeyError: 'a'\n\nDuring handling of the above exception, another exception occurred:\n\n"
         f"{TRACEBACK}TypeError: b\n", 1, "TypeError: b", last_error.PROGRAM),
    ],
)  # fmt: skip
def test_the_line_that_says_it_is_found(log: str, code: int, line: str, kind: str) -> None:
    lines = [last_error._RANK.sub(b"", one) for one in log.encode().splitlines() if one.strip()]
    assert last_error.in_lines(lines, code) == last_error.LastError(line, kind)


@pytest.mark.parametrize("log", ["", "step 12 loss 0.3\n", "  100%|####| 5/5\n", "the ValueError was caught\n"])
def test_where_the_log_does_not_say_nothing_is_made_up(log: str) -> None:
    assert last_error.in_lines([one for one in log.encode().splitlines() if one.strip()], 1) is None
