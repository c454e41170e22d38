"""Where version 0.1.0 has its shim: a launcher of that version which still runs starts the next trainer from here.

It becomes process/shim.py, under the same process id. It goes with the version after the next one.
"""

import os
import sys

_SHIM = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "process", "shim.py")

if __name__ == "__main__":
    os.execv(sys.executable, [sys.executable, "-I", "-S", _SHIM, *sys.argv[1:]])
