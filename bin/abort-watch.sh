#!/usr/bin/env bash
# Summary: look at every live run on this host, stop the sick ones, take up what has died
#
# Usage: abort-watch.sh [EXP | RUN_ID]... [--observe] [--every SECONDS] [--quiet] [--json | --log]
#                       [--runs DIR] [--config FILE]
#        abort-watch.sh --stop [--now] EXP | RUN_ID... [--runs DIR] [--config FILE]
#        abort-watch.sh --version
#
# Made for cron, once a minute: needs no terminal, no HOME, no more PATH than /usr/bin:/bin. Prints
# a line per live run: state, step, speed, the verdict (well, warning, sick) and the evidence. A sick
# run gets an abort event and TERM, then KILL after abort.grace_s. A run that is over by such an
# incident is taken up by its launcher, or, where that is gone, from here: in a new folder, with the
# config, the code and the environment that it had. Where that can't be, it needs attention: the
# journal says why, and notify.command is run. docs/watch.md explains each rule and what follows.
#
#   EXP | RUN_ID     only the live runs of this experiment, or this run; several may be named
#   --observe        only say what is sick: nothing is stopped, started or written
#   --stop           end these runs: TERM, grace, KILL; what a person ended is never taken up again
#   --now            with --stop: KILL at once, nothing is saved
#   --every SECONDS  look again and again, until INT
#   --quiet          say nothing of runs that are well, paused or another host's
#   --json           one JSON array per look, on one line
#   --log            say nothing here; append what is new or over to the watcher's own log, which
#                    lies in ~/.local/state/resumekit/watch/ ($XDG_STATE_HOME), one per runs folder
#   --runs DIR       where the runs lie (default: paths.runs of the config)
#   --config FILE    the config (default: the kit's config.yaml)
#   --version        print which kit this is, with a digest of its code
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
# shellcheck source=SCRIPTDIR/../lib/command_line.sh
source "${KIT_SELF%/*}/../lib/command_line.sh"

main() { # <argument>...
  kit_setup "$KIT_SELF" "$@"
  KIT_SWITCHES=' --observe --stop --now --quiet --json --log ' KIT_OPTIONS=' --every --runs --config '
  KIT_EXPERIMENT=many
  kit_parse_options "$@"
  exec "$KIT_PYTHON" -I -S "$KIT_LIB/resumekit_cli.py" watch "${KIT_QUESTION[@]}"
}

# One compound command, which Bash has read whole before it runs: a file that is copied over this one meanwhile is not.
{
  main "$@"
  exit
}
