#!/usr/bin/env bash
# Summary: every recipe of examples/ through every scenario of reliability/frameworks.py
#
# Usage: tools/frameworks.sh PYTHON [ARGUMENTS...]
#
# Makes .venv-frameworks once, with the packages of requirements-frameworks.txt and the torch of PYTHON. Where pip cannot
# have them, the recipes that need torch alone are run, and what is left out is said. ARGUMENTS go to
# `PYTHON -m reliability.frameworks`.
#
# Exit status:
#   0 done, 1 a scenario failed, 2 usage
set -euo pipefail
CDPATH='' cd -- "${BASH_SOURCE[0]%/*}/.."

VENV=.venv-frameworks

make_venv() { # <python>
  local python="$1" packages target
  packages="$("$python" -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))')"
  rm -rf -- "$VENV"
  "$python" -m venv "$VENV"
  target="$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  printf '%s\n' "$packages" >"$target/torch_of_the_caller.pth"
  "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet --requirement requirements-frameworks.txt
  cp requirements-frameworks.txt "$VENV/.ready"
}

main() { # <python> [argument]...
  if (($# == 0)); then
    printf 'frameworks.sh: which Python?\nUsage: tools/frameworks.sh PYTHON [ARGUMENTS...]\n' >&2
    return 2
  fi
  local python="$1"
  shift
  if ! cmp -s requirements-frameworks.txt "$VENV/.ready"; then
    printf 'frameworks: making %s (this can take minutes)\n' "$VENV" >&2
    # In a process of its own: `set -e` does not hold inside a function that an `if` calls.
    if ! bash -euc "VENV=$VENV; $(declare -f make_venv); make_venv \"\$1\"" - "$python"; then
      printf 'frameworks: its packages cannot be had here\n' >&2
    fi
  fi
  exec "$python" -m reliability.frameworks "$@"
}

# One compound command, which Bash has read whole before it runs: a file that is copied over this one meanwhile is not.
{
  main "$@"
  exit
}
