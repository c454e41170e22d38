#!/usr/bin/env bash
# Summary: submit an experiment to Slurm, as a job that is requeued and goes on where it stood
#
# Usage: submit.sh EXP [--time T] [--nodes N] [--partition P] [--chain N | --array-set KEY=V,V,...]
#                  [--fresh | --resume PATH | --init-from PATH] [--name NAME] [--set KEY=VALUE]...
#                  [--notes TEXT] [--runs DIR] [--config FILE] [--accept] [--take-over]
#                  [--unfrozen] [--dry-run] [-- SBATCH OPTIONS... [-- TRAINER ARGS...]]
#        submit.sh --version
#
# Makes the plan as run.sh does, and says now what is refused or needs --accept. Then it freezes the
# code: a copy in the job's folder, runs/.jobs/EXP_NAME_TIME/, from which each start of it runs,
# whatever is edited meanwhile. job.sh lies there too, and what the job prints. A job asks nothing:
# where it would need another consent when it starts, it ends with 5, and notify.command tells it.
#
#   EXP              an experiment of config.yaml (EXP-01), or a whole run id
#   --time T         sbatch's --time, 4:00:00 say (default: cluster.time of the config)
#   --nodes N        sbatch's --nodes (default: cluster.nodes)
#   --partition P    sbatch's --partition (default: cluster.partition)
#   --chain N        N jobs one after the other, for a site that requeues nothing
#   --array-set KEY=V,V,...
#                    a sweep: one task of an array for each value, each a lineage with a name of its
#                    own, made of the key and the value, behind --name where that is given
#   --fresh          start anew, whatever there is; like the next two for the job's first start alone
#   --resume PATH    start from this checkpoint file
#   --init-from PATH start anew, at step 0, with the weights of this checkpoint and nothing else of it
#   --name NAME      the run's name, part of its id (default: the experiment's)
#   --set KEY=VALUE  change a key of the config; VALUE is YAML; may be given many times
#   --notes TEXT     kept in run.json
#   --runs DIR       where the runs lie (default: paths.runs of the config)
#   --config FILE    the config (default: the kit's config.yaml)
#   --accept         agree to what the plan needs consent for; the job may do that, and no more
#   --take-over      say that a run is dead of which that cannot be told from here
#   --unfrozen       run from the checkout as it is at each start; nothing is copied
#   --dry-run        show the plan and job.sh, and touch nothing
#   --version        print which kit this is, with a digest of its code
#   --               sbatch's own options follow, --gres=gpu:1; behind a second -- the trainer's
#
# Prints the job's id; of a chain one a line. docs/slurm.md is the way from a clone to a requeued job.
#
# Example:
#   bin/submit.sh EXP-01 --time 4:00:00 --set training.max_steps=2000 -- --gres=gpu:1
#
# Exit status:
#   0 submitted, 1 failed (sbatch says why), 2 usage, 3 no stable checkpoint, 4 config or file
#   invalid, 5 the plan needs --accept, 6 the plan is refused, or another head is alive,
#   127 a tool is missing

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
  KIT_SWITCHES=' --fresh --accept --take-over --unfrozen --dry-run '
  KIT_OPTIONS=' --time --nodes --partition --chain --array-set --resume --init-from --name --set --notes --runs --config '
  KIT_EXPERIMENT=needed
  kit_parse_options "$@"
  if ((KIT_IS_DRY_RUN)); then KIT_QUESTION=(--dry-run "${KIT_QUESTION[@]}"); fi
  exec "$KIT_PYTHON" -I -S "$KIT_LIB/resumekit_cli.py" submit "${KIT_QUESTION[@]}"
}

# One compound command, which Bash has read whole before it runs: a file that is copied over this one meanwhile is not.
{
  main "$@"
  exit
}
