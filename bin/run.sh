#!/usr/bin/env bash
# Summary: start an experiment, or continue it where it stands
#
# Usage: run.sh EXP [--fresh | --resume PATH | --init-from PATH] [--name NAME] [--set KEY=VALUE]...
#               [--notes TEXT] [--runs DIR] [--config FILE] [--accept] [--take-over] [--detach]
#               [--job DIR [--agreed SHA256]] [--dry-run [--json]] [-- TRAINER ARGS...]
#        run.sh --version
#
# One command for the first start and for the hundredth. With no run of EXP, or none that has a
# checkpoint, it starts anew, in a folder of its own under runs/. Otherwise it continues the newest
# one from its latest stable checkpoint, as resume.sh does, and says so. A finished run is left as
# it is (exit 6). Only runs of one name count: that of --name, else the experiment's own. A new
# --name begins anew beside the others, at the same time too; so a sweep is one --name for each value.
#
#   EXP              an experiment of config.yaml (EXP-01), or a whole run id
#   --fresh          start anew, whatever there is
#   --resume PATH    start from this checkpoint file
#   --init-from PATH start anew, at step 0, with the weights of this checkpoint and nothing else of it
#   --name NAME      the run's name, part of its id (default: the experiment's)
#   --set KEY=VALUE  change a key of the config; VALUE is YAML; may be given many times
#   --notes TEXT     kept in run.json
#   --runs DIR       where the runs lie (default: paths.runs of the config)
#   --config FILE    the config (default: the kit's config.yaml)
#   --accept         agree to what the plan needs consent for; it says what and why
#   --take-over      say that a run is dead of which that cannot be told from here (its host is gone),
#                    and go on from it; not taken where it is seen to be alive
#   --detach         leave the terminal altogether; print the run id and return
#   --job DIR        what job.sh says: this is a start of the job that submit.sh has put there
#   --agreed SHA256  of what was agreed to when it was submitted; nothing else is, and nothing asked
#   --dry-run        say what would be done, and touch nothing (--json: for programs)
#   --version        print which kit this is, with a digest of its code
#   --               everything behind it goes to the trainer (trainer.extra_args)
#
# In the foreground the trainer's output goes to the terminal. Ctrl-C once: the trainer saves and
# ends; once more, after a second: now. TERM, USR1 and USR2 are the same stop as the first one,
# however often they come. Closing the terminal stops nothing.
#
# Example:
#   bin/run.sh EXP-01 --set training.max_steps=200 --notes "first try"
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
  KIT_SWITCHES=' --fresh --accept --take-over --detach --dry-run --json ' KIT_OPTIONS=' --resume --init-from --name --set --notes --runs --config --job --agreed '
  KIT_EXPERIMENT=needed
  kit_parse_options "$@"
  kit_start start
}

# One compound command, which Bash has read whole before it runs: a file that is copied over this one meanwhile is not.
{
  main "$@"
  exit
}
