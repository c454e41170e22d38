#!/usr/bin/env bash
# Summary: make .venv and install what resumekit, its example and its tests need
#
# Usage: tools/setup.sh
#
# Uses python3, or the program named in RESUMEKIT_BASE_PYTHON. Safe to run again: pip keeps what is right already.
#
# Exit status:
#   0 done, 127 a tool is missing, else pip's own
set -euo pipefail
CDPATH='' cd -- "${BASH_SOURCE[0]%/*}/.."

main() {
  local python="${RESUMEKIT_BASE_PYTHON:-python3}"
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    printf 'setup.sh: needs Python 3.10 or newer as python3 (or in RESUMEKIT_BASE_PYTHON)\n' >&2
    exit 127
  fi
  if [[ ! -x .venv/bin/python ]]; then
    printf 'setup: making .venv\n' >&2
    if ! "$python" -m venv .venv; then
      rm -rf -- .venv
      printf 'setup.sh: python3 cannot make a venv; on Debian: apt-get install python3-venv\n' >&2
      exit 127
    fi
  fi
  printf 'setup: installing torch (a CPU build where pip finds one; this can take minutes)\n' >&2
  .venv/bin/python -m pip install --disable-pip-version-check --quiet --requirement requirements-torch.txt
  printf 'setup: installing the pinned rest\n' >&2
  .venv/bin/python -m pip install --disable-pip-version-check --quiet --requirement requirements.lock
  : >.venv/.ready
  printf 'setup: done\n' >&2
}

# One compound command, which Bash has read whole before it runs: a file that is copied over this one meanwhile is not.
{
  main "$@"
  exit
}
