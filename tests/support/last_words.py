"""What trainers and launchers print when they die."""

from __future__ import annotations

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
