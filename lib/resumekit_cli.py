#!/usr/bin/env python3
"""The door for the shell: `python -I lib/resumekit_cli.py VERB ...`, called by bin/*.sh; see commands.py."""

import gc
import os
import sys

if sys.version_info < (3, 10):  # noqa: UP036 (an older Python gets this far)
    sys.exit("resumekit needs Python 3.10 or newer, this is %d.%d" % sys.version_info[:2])  # noqa: UP031

# Last on the path, never first: a file of ours must not shadow anybody's module.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder or ".") != _HERE] + [_HERE]

if __name__ == "__main__":
    # Collecting garbage between imports costs a launch 8 ms; the sidecar, which lives long, takes it up again.
    gc.disable()
    from resumekit.commands import main

    code = main()
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except OSError:
        code = code or 1
    # Not SystemExit: taking the interpreter apart costs a launch 6 ms, and Bash waits for it.
    os._exit(code)
