#!/usr/bin/env bash
# Summary: have cron or systemd call the watcher every minute, or take that back
#
# Usage: watch_installer.sh --install-cron | --uninstall-cron | --install-systemd | --uninstall-systemd
#                           [--yes] [--name NAME] [--runs DIR] [--config FILE]
#
# Shows the line or the units, asks, and changes these alone. Called by `make install-cron` and its like.
#
#   --yes          do not ask
#   --name NAME    units named resumekit-watch-NAME, beside those of another runs folder
#   --runs DIR     the folder of the runs to look at (default: paths.runs of the config)
#   --config FILE  the config (default: the kit's config.yaml)
#
# Example:
#   make install-cron
#
# Exit status:
#   0 done or nothing to do, 1 failed, 2 usage or no terminal to ask at, 4 config invalid,
#   6 there are other units of that name, 127 a tool is missing

if ((BASH_VERSINFO[0] < 4 || (BASH_VERSINFO[0] == 4 && BASH_VERSINFO[1] < 4))); then
  printf '%s: needs Bash 4.4 or newer, this is %s\n' "${0##*/}" "$BASH_VERSION" >&2
  exit 127
fi
set -euo pipefail
shopt -s inherit_errexit

KIT_SELF="$(readlink -f -- "${BASH_SOURCE[0]}")"
# shellcheck source=SCRIPTDIR/command_line.sh
source "${KIT_SELF%/*}/command_line.sh"

main() { # <argument>...
  kit_setup "$KIT_SELF" "$@"
  KIT_SWITCHES=' --install-cron --uninstall-cron --install-systemd --uninstall-systemd --yes '
  KIT_OPTIONS=' --name --runs --config '
  KIT_EXPERIMENT=optional
  kit_parse_options "$@"
  exec "$KIT_PYTHON" -I "$KIT_LIB/resumekit_cli.py" install-watch "${KIT_QUESTION[@]}"
}

# One compound command, which Bash has read whole before it runs: a file that is copied over this one meanwhile is not.
{
  main "$@"
  exit
}
