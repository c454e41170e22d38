#!/usr/bin/env bash
# Summary: continue from a checkpoint, in a new folder with its lineage
#
# Usage: resume.sh EXP [--step N | --best | --checkpoint PATH] [--from RUN_ID] [--name NAME]
#                  [--set KEY=VALUE]... [--reresolve] [--notes TEXT] [--runs DIR] [--config FILE]
#                  [--accept] [--take-over] [--detach] [--dry-run [--json]] [-- TRAINER ARGS...]
#        resume.sh --version
#
# Takes the latest stable checkpoint along the history of EXP's newest run: the run's own, then its
# parent's up to the step that it was resumed at, and so on. Each one passed over is named with its
# reason. Every resume gets a folder of its own; nothing in the old ones is changed.
#
# Without options it continues: the same config, from the newest step of a head that is not alive.
# That is exclusive, a second one is refused. Anything else is a branch, and free.
#
#   EXP                an experiment of config.yaml (EXP-01), or a whole run id
#   --step N           from step N (looked for on other branches too, if it is not on this one)
#   --best             from the newest best checkpoint along the history
#   --checkpoint PATH  from this file
#   --from RUN_ID      along the history of this run, which may be another experiment's
#   --name NAME        the new run's name (default: its parent's)
#   --set KEY=VALUE    change a key of the parent's config; VALUE is YAML; may be given many times
#   --reresolve        take the config from config.yaml as it is now, not the parent's
#   --notes TEXT       kept in run.json
#   --runs DIR         where the runs lie (default: paths.runs of the config)
#   --config FILE      the config (default: the kit's config.yaml)
#   --accept           agree to what the plan needs consent for; the plan says what and why
#   --take-over        say that a run is dead of which that cannot be told from here (its host is
#                      gone), and go on from it; not taken where it is seen to be alive
#   --detach           leave the terminal altogether; print the run id and return
#   --dry-run          show the plan: checkpoint, changes, components, learning rates, verdict; touch
#                      nothing (--json: for programs; exit 5 and 6 as below)
#   --version          print which kit this is, with a digest of its code
#   --                 everything behind it goes to the trainer (trainer.extra_args)
#
# Example:
#   bin/resume.sh EXP-03 --step 40000 --dry-run
#
# Exit status:
#   the last trainer's own, once one was started, but for 7 (the checks after a resume failed) and
#   8 (stopped by a rule); before that 1 failed, 2 usage, 3 no stable checkpoint, 4 config or file
#   invalid, 5 the plan needs --accept, 6 the plan is refused, or another head is alive,
#   127 a tool is missing

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
  KIT_SWITCHES=' --best --reresolve --accept --take-over --detach --dry-run --json ' KIT_OPTIONS=' --step --checkpoint --from --name --set --notes --runs --config '
  KIT_EXPERIMENT=needed
  kit_parse_options "$@"
  kit_start resume
}

# One compound command, which Bash has read whole before it runs: a file that is copied over this one meanwhile is not.
{
  main "$@"
  exit
}
