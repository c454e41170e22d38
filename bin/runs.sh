#!/usr/bin/env bash
# Summary: list runs, their state and lineage
#
# Usage: runs.sh [EXP | RUN_ID] [--json | --watch] [--runs DIR] [--config FILE]
#        runs.sh --version
#
# Shows every run below the one that it was resumed from, with its state as it is now: read from its
# journal and its processes, not from a file that may be old. Changes nothing.
#
#   EXP | RUN_ID   only the runs of this experiment, or this run with its ancestors and descendants
#   --json         one JSON array, a status object per run (schemas/status.schema.json)
#   --watch        on the terminal, anew every 2 s, the live runs first, then the newest; q ends it
#   --runs DIR     where the runs lie (default: paths.runs of the config)
#   --config FILE  the config (default: the kit's config.yaml)
#   --version      print which kit this is, with a digest of its code
#
# Example:
#   bin/runs.sh EXP-01
#
# Exit status:
#   0 done, 2 usage, 4 config or file invalid, 127 a tool is missing, 130 ended by INT

if ((BASH_VERSINFO[0] < 4 || (BASH_VERSINFO[0] == 4 && BASH_VERSINFO[1] < 4))); then
  printf '%s: needs Bash 4.4 or newer, this is %s\n' "${0##*/}" "$BASH_VERSION" >&2
  exit 127
fi
set -euo pipefail
shopt -s inherit_errexit

KIT_SELF="$(readlink -f -- "${BASH_SOURCE[0]}")"
# shellcheck source=SCRIPTDIR/../lib/command_line.sh
source "${KIT_SELF%/*}/../lib/command_line.sh"

main() { # <argument>...
  kit_setup "$KIT_SELF" "$@"
  KIT_SWITCHES=' --json --watch ' KIT_OPTIONS=' --runs --config '
  KIT_EXPERIMENT=optional
  kit_parse_options "$@"
  exec "$KIT_PYTHON" -I -S "$KIT_LIB/resumekit_cli.py" runs "${KIT_QUESTION[@]}"
}

# One compound command, which Bash has read whole before it runs: a file that is copied over this one meanwhile is not.
{
  main "$@"
  exit
}
