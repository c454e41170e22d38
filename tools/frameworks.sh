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

# Each line by itself: `set -e` does not hold in what an `if` calls.
make_venv() { # <python>
  local torch_at packages_at
  torch_at="$("$1" -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))')" || return
  rm -rf -- "$VENV" || return
  "$1" -m venv "$VENV" || return
  packages_at="$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || return
  printf '%s\n' "$torch_at" >"$packages_at/torch_of_the_caller.pth" || return
  "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet --requirement requirements-frameworks.txt || return
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
    if ! make_venv "$python"; then
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
