"""Run a command and write down its CPU seconds, and those of this process: `python -I -S cpu_of.py FILE COMMAND...`."""

import os
import resource
import sys

pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
own = resource.getrusage(resource.RUSAGE_SELF)
with open(sys.argv[1], "w", encoding="utf-8") as file:
    print(usage.ru_utime + usage.ru_stime, own.ru_utime + own.ru_stime, file=file)
raise SystemExit(os.waitstatus_to_exitcode(status))
