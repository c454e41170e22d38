#!/usr/bin/env bash
# Summary: make requirements.lock from requirements.in, for every Python from 3.10 on
#
# Usage: tools/lock.sh
#
# Needs uv (pip install uv). Leaves out what belongs to torch's own closure.
#
# Exit status:
#   0 done, else uv's own
set -euo pipefail
CDPATH='' cd -- "${BASH_SOURCE[0]%/*}/.."

main() {
  local closure='^(typing-extensions|colorama|filelock|sympy|networkx|jinja2|fsspec|mpmath|markupsafe|setuptools'
  closure+='|torch|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)=='
  local made
  made="$(uv pip compile --quiet --universal --python-version 3.10 --no-header --no-emit-index-url \
    --no-emit-find-links --annotation-style line requirements.in)"
  {
    # shellcheck disable=SC2016 # the backticks are meant for the reader
    printf '# Made by `make lock` from requirements.in; pins all but torch and its own closure. Do not edit.\n'
    grep -vE "$closure" <<<"$made"
  } >requirements.lock
}

# One compound command, which Bash has read whole before it runs: a file that is copied over this one meanwhile is not.
{
  main "$@"
  exit
}
