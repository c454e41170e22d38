#!/usr/bin/env bash
# Summary: look at every live run on this host and say which one is sick
#
# Usage: abort-watch.sh --observe [EXP | RUN_ID]... [--every SECONDS] [--json]
#                       [--runs DIR] [--config FILE]
#
# Prints one line per live run: its state, step and speed, the verdict (well, warning, sick) and the
# evidence. It only says: nothing is stopped, nothing is started, nothing is written. The thresholds
# are those of the run's own config, section abort; docs/watch.md explains each rule.
#
#   EXP | RUN_ID     only the live runs of this experiment, or this run; several may be named
#   --observe        say what is sick (the only thing that it can be told to do)
#   --every SECONDS  look again and again, until INT
#   --json           one JSON array per look, on one line
#   --runs DIR       where the runs lie (default: paths.runs of the config)
#   --config FILE    the config (default: the kit's config.yaml)
#
# Example:
#   bin/abort-watch.sh --observe --every 60
#
# Exit status:
#   0 nothing is sick, 8 something is, 1 failed, 2 usage, 4 config or file invalid,
#   127 a tool is missing, 130 ended by INT

if ((BASH_VERSINFO[0] < 4 || (BASH_VERSINFO[0] == 4 && BASH_VERSINFO[1] < 4))); then
  printf '%s: needs Bash 4.4 or newer, this is %s\n' "${0##*/}" "$BASH_VERSION" >&2
  exit 127
fi
set -euo pipefail
shopt -s inherit_errexit

KIT_SELF="$(readlink -f -- "${BASH_SOURCE[0]}")"
# shellcheck source=SCRIPTDIR/../lib/launcher.sh
source "${KIT_SELF%/*}/../lib/launcher.sh"

main() { # <argument>...
  kit_setup "$KIT_SELF" "$@"
  KIT_SWITCHES=' --observe --json ' KIT_OPTIONS=' --every --runs --config '
  KIT_EXPERIMENT=many
  kit_parse_options "$@"
  [[ " ${KIT_QUESTION[*]} " == *' --observe '* ]] || kit_usage_error "what is it to do? --observe says what is sick"
  exec "$KIT_PYTHON" -I "$KIT_LIB/resumekit_cli.py" watch "${KIT_QUESTION[@]}"
}

main "$@"
