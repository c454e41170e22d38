#!/usr/bin/env python3
"""The entry point for the shell: `python -I lib/resumekit_cli.py VERB ...`, called by bin/*.sh; see commands.py."""

import gc
import os
import signal
import sys

if sys.version_info < (3, 10):  # noqa: UP036 (an older Python gets this far)
    sys.exit("resumekit needs Python 3.10 or newer, this is %d.%d" % sys.version_info[:2])  # noqa: UP031

# Last on the path, never first: a file of ours must not shadow a module of the lab's.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder or ".") != _HERE] + [_HERE]

if __name__ == "__main__":
    # Collecting garbage between imports costs a launch 8 ms; the sidecar, which lives long, takes it up again.
    gc.disable()
    # A Ctrl-C that comes this early ends the command in silence; from main() on it is caught (errors.report). The
    # sidecar ignores it, from its launcher on.
    on_int = signal.getsignal(signal.SIGINT)
    if on_int is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from resumekit.commands import main

    signal.signal(signal.SIGINT, on_int)
    code = main()
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except OSError:
        code = code or 1
    # Not SystemExit: taking the interpreter apart costs a launch 6 ms, and Bash waits for it.
    os._exit(code)
