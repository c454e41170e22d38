# shellcheck shell=bash
# Start a trainer, supervise it and whatever takes its place, and pass signals on.
#
# Sourced by bin/run.sh and bin/resume.sh. Run by itself it supervises a run that was planned by another process
# (`run.sh --detach`), or takes up one that has lost its launcher (the watcher):
#   bash lib/launcher.sh supervise PYTHON COMMAND COUNT ARGUMENT... FIELD...
#   bash lib/launcher.sh recover RUN_DIR

# shellcheck source=SCRIPTDIR/../lib/command_line.sh
source "${BASH_SOURCE[0]%/*}/command_line.sh"

# Exit codes with a name of their own; the trainer's code passes through untouched.
readonly KIT_FAILED=1 KIT_REFUSED=6 KIT_CHECKS_FAILED=7 KIT_STOPPED_BY_RULE=8
# A sidecar's word that a person has to be told of a run that ended with code 0; no command ends with it.
readonly KIT_ENDED_EARLY=9
# A sidecar's word that another folder lies in the place of the run's.
readonly KIT_EXCHANGED=6
# How long the last lines of the log are waited for when the trainer has ended.
readonly KIT_LAST_LINES_S=15
# A Ctrl-C that comes sooner after the first one is the same: a key that bounces, a job that gets INT twice.
readonly KIT_AGAIN_US=1000000
# What Python has answered (start/launcher_answer.py), by name.
declare -A KIT_FIELD=()

kit_start() { # <verb>: ask Python what to do, then do it, or with --dry-run only say it
  local question=("$1" "--answer-to=$$" "${KIT_QUESTION[@]}")
  if ((KIT_IS_DRY_RUN)); then
    exec "$KIT_PYTHON" -I -S "$KIT_LIB/resumekit_cli.py" "$1" --dry-run "${question[@]:1}"
  fi
  if ((KIT_DETACHED)) && kit_is_in_batch_job; then
    die "$KIT_REFUSED" "--detach in a batch job: the job ends with its script, and the trainer with the job; leave --detach out"
  fi
  kit_ask "${question[@]}" || exit "$?"
  if [[ -z ${KIT_FIELD[RUN_ID]:-} ]]; then return 0; fi # Python has said why there is nothing to start
  if ((KIT_DETACHED)); then
    kit_detach
  else
    kit_supervise
  fi
}

kit_ask() { # <verb> <argument>...: let Python decide; its answer is KIT_ANSWER, the same by name KIT_FIELD and KIT_ARGV
  mapfile -d '' -t KIT_ANSWER < <(exec "$KIT_PYTHON" -I -S "$KIT_LIB/resumekit_cli.py" "$@")
  wait "$!" || return "$?"
  kit_read_answer "${KIT_ANSWER[@]}" && return 0
  kit_say "the answer of '$KIT_LIB/resumekit_cli.py $1' is not whole: are the files of the kit of one version?"
  return "$KIT_FAILED"
}

# Names that are not known are passed over: a newer Python may answer an older launcher that still runs.
kit_read_answer() { # <NAME=VALUE>... ARGV=<n> <word>...: fill KIT_FIELD and KIT_ARGV; false if it is no whole answer
  KIT_FIELD=()
  while [[ -z ${KIT_FIELD[ARGV]:-} && ${1:-} == +([A-Z_])=* ]]; do
    KIT_FIELD["${1%%=*}"]="${1#*=}"
    shift
  done
  KIT_ARGV=("$@")
  # No run goes on from here, or it is to be asked again.
  if (($# == 0)) && [[ ${#KIT_FIELD[@]} == 0 || -n ${KIT_FIELD[WAIT_S]:-} ]]; then return 0; fi
  [[ -n ${KIT_FIELD[RUN_ID]:-} && -n ${KIT_FIELD[RUN_DIR]:-} && -n ${KIT_FIELD[CWD]:-} && -n ${KIT_FIELD[TOKEN]:-} &&
    -n ${KIT_FIELD[CONFIG_HASH]:-} && -n ${KIT_FIELD[OUTPUT_LOG]:-} && -n ${KIT_FIELD[MADE]:-} &&
    ${KIT_FIELD[ARGV]:-} == "$#" ]]
}

kit_is_in_batch_job() { # whether a scheduler's script started this, with no user at a terminal
  [[ -n ${SLURM_JOB_ID:-}${PBS_JOBID:-}${LSB_JOBID:-} && ! -t 0 ]]
}

kit_detach() { # supervise in a session of its own; return when the trainer runs, print the run id
  local supervisor
  # setsid(1) may be missing on a small machine; Python is there. INT is ignored in a background job, and what is
  # ignored when a Bash starts can't be trapped; a descriptor of the caller's (make, bats) would keep it waiting.
  "$KIT_PYTHON" -I -S -c 'import os, signal, sys
os.setsid()
os.closerange(3, 1024)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])' \
    bash "$KIT_LIB/launcher.sh" supervise "$KIT_PYTHON" "$KIT_COMMAND" "${#KIT_ARGUMENTS[@]}" "${KIT_ARGUMENTS[@]}" \
    "${KIT_ANSWER[@]}" </dev/null >/dev/null 2>&1 &
  supervisor=$!
  until [[ -s ${KIT_FIELD[RUN_DIR]}/journal.jsonl ]]; do
    kit_job_runs "$supervisor" || [[ -s ${KIT_FIELD[RUN_DIR]}/journal.jsonl ]] ||
      die "$KIT_FAILED" "the run '${KIT_FIELD[RUN_ID]}' could not be started, see '${KIT_FIELD[OUTPUT_LOG]}'"
    sleep 0.05
  done
  printf '%s\n' "${KIT_FIELD[RUN_ID]}"
}

kit_supervise() { # the run of KIT_FIELD, and every run that takes its place; return the last trainer's code, or 7, or 8
  local code
  KIT_RUN_DIR="${KIT_FIELD[RUN_DIR]}" KIT_SIGNALS=0 KIT_WARNINGS=0 KIT_INT_US='' KIT_IS_RECOVERY="${KIT_IS_RECOVERY:-0}"
  KIT_MESSAGE_JOBS=() KIT_STOPS=() KIT_HELD=() KIT_WATCHER_PIPE=''
  kit_hold_signals # the first run is to be there before it is ended
  trap 'kit_on_hangup' HUP
  trap '' PIPE # `run.sh | head`: a reader that has gone away ends nothing here
  trap kit_end_message_jobs EXIT

  # The end of a child makes Bash look at the window's size, but in the main shell only.
  shopt -s checkwinsize
  (:)

  while :; do
    code=0 KIT_SIDECAR_CODE=0
    kit_supervise_one || code=$?
    kit_end_watcher
    # A sidecar loop that had to be killed may not have told that a rule has ended the run.
    ((code || KIT_SIDECAR_CODE)) || break
    kit_recover "$KIT_RUN_DIR" || break
    KIT_IS_RECOVERY=1
  done
  kit_end_job "$code"
}

kit_end_job() { # <code>: in a scheduler's job let Python decide whether it is requeued; return what the launcher ends with
  local code=0 stop
  # The scheduler's next signals are for a run that is over.
  if [[ -z ${SLURM_JOB_ID:-} || ! -d $KIT_RUN_DIR ]]; then return "$1"; fi
  for stop in "${KIT_STOPS[@]}"; do kit_wait_for "$stop" || true; done # why the job ends is written down by these
  kit_hold_signals
  "$KIT_PYTHON" -I -S "$KIT_LIB/resumekit_cli.py" job-end "$KIT_RUN_DIR" "$1" || code=$?
  return "$code"
}

kit_recover() { # <run-dir>: let Python decide whether the run is taken up; true if KIT_FIELD is what to supervise now
  local attended=()
  # What a person has just started and waits for is not tried again where it cannot succeed: that is said instead.
  ((KIT_DETACHED || KIT_IS_RECOVERY)) || attended=(--attended)
  while ((KIT_SIGNALS == 0)); do
    KIT_WARNINGS=0
    kit_ask recover "$1" "--answer-to=$$" "${attended[@]}" || return 1
    if [[ -n ${KIT_FIELD[RUN_ID]:-} ]]; then
      return "$((KIT_SIGNALS > 0))" # a signal that came meanwhile was for the run that is over
    fi
    [[ -n ${KIT_FIELD[WAIT_S]:-} ]] || return 1
    kit_pause "${KIT_FIELD[WAIT_S]}"
  done
  return 1
}

kit_pause() { # <seconds>: until then, or until a signal comes
  local never left
  exec {never}<> <(:) # nothing ever comes from there, and no process is left behind
  for ((left = $1; left > 0 && KIT_SIGNALS == 0 && KIT_WARNINGS == 0; left--)); do
    read -r -t 1 -u "$never" || true
  done
  exec {never}<&-
}

kit_hold_signals() { # until kit_let_signals: a trap between a job's start and the look at its pid would change $!
  trap 'KIT_HELD+=(INT)' INT
  trap 'KIT_HELD+=(TERM)' TERM
  trap 'KIT_HELD+=(USR1)' USR1
  trap 'KIT_HELD+=(USR2)' USR2
}

kit_let_signals() {
  local name held
  trap 'kit_on_signal INT' INT
  trap 'kit_on_signal TERM' TERM
  trap 'kit_on_signal USR1' USR1
  trap 'kit_on_signal USR2' USR2
  held=("${KIT_HELD[@]:+${KIT_HELD[@]}}") KIT_HELD=() # now, when nothing more is added
  for name in "${held[@]}"; do
    if [[ -n $name ]]; then kit_on_signal "$name"; fi
  done
}

kit_supervise_one() { # the run of KIT_FIELD, with KIT_ARGV as its trainer; return the trainer's code, or 7, or 8
  local shim sidecar_loop code=0
  kit_hold_signals
  if ((KIT_SIGNALS)); then # it was meant for the run before this one, which is over: then this one is not wanted
    kit_let_signals
    return "$KIT_FAILED"
  fi
  KIT_RUN_ID="${KIT_FIELD[RUN_ID]}" KIT_RUN_DIR="${KIT_FIELD[RUN_DIR]}" KIT_CWD="${KIT_FIELD[CWD]}"
  KIT_TOKEN="${KIT_FIELD[TOKEN]}" KIT_HASH="${KIT_FIELD[CONFIG_HASH]}" KIT_OUTPUT_LOG="${KIT_FIELD[OUTPUT_LOG]}"
  # The checkpoint to prove, by what the run's folder is known (ownership.py), the head that is continued.
  KIT_CHECKPOINT="${KIT_FIELD[CHECKPOINT]:-}" KIT_MADE="${KIT_FIELD[MADE]}" KIT_HEAD="${KIT_FIELD[HEAD]:-}"

  kit_prove_checkpoint
  kit_run_trainer "${KIT_ARGV[@]}" &
  shim=$!
  kit_keep_sidecar &
  sidecar_loop=$!
  kit_start_watcher
  kit_let_signals
  kit_wait_for "$shim" || code=$?
  if [[ ! -d $KIT_RUN_DIR ]]; then
    kit_say "the folder '$KIT_RUN_DIR' was removed while its trainer ran, which has ended with code $code: nothing of it is kept"
    kit_wait_for_last_lines "$sidecar_loop" || true
    return "$code"
  fi
  if ((code == KIT_TOOL_MISSING)) && kit_is_exchanged; then
    kit_say "'$KIT_RUN_DIR' is not the folder that was made for this run: the trainer was not started, or its end is not kept"
    disown "$sidecar_loop"
    kill -KILL "$sidecar_loop" 2>/dev/null || true
    return "$code"
  fi
  if [[ ! -e $KIT_RUN_DIR/exit.json && ! -e $KIT_RUN_DIR/journal.jsonl ]]; then
    kit_say "the trainer was never started: the lines above say why, or the last ones of '$KIT_OUTPUT_LOG'"
    # The sidecar waits for a launcher that lives, and none will come.
    kill -KILL "$sidecar_loop" 2>/dev/null || true
    return "$KIT_TOOL_MISSING"
  fi
  if [[ ! -e $KIT_RUN_DIR/exit.json ]]; then
    if ((code == 137)); then
      kit_say "the process that watches the trainer was killed; following the run until the trainer ends"
      code=$KIT_FAILED
    else
      kit_say "the trainer ended with code $code, which cannot be written down in '$KIT_RUN_DIR' (is the disk full?)"
    fi
    kit_wait_for "$sidecar_loop" || KIT_SIDECAR_CODE=$?
    if ((KIT_SIDECAR_CODE == KIT_CHECKS_FAILED || KIT_SIDECAR_CODE == KIT_STOPPED_BY_RULE)); then
      return "$KIT_SIDECAR_CODE"
    fi
    return "$code"
  fi
  kit_wait_for_last_lines "$sidecar_loop" || return "$?"
  if ((code != 0 && KIT_SIGNALS == 0)) && [[ -n $KIT_CHECKPOINT ]] && kit_checkpoint_is_damaged; then
    kit_say "the checkpoint failed its proof: quarantined, taking the next one"
    # What a person asked for is asked for again; what recovers a run is decided anew behind this.
    kit_end_watcher
    ((KIT_IS_RECOVERY)) || exec "$KIT_COMMAND" "${KIT_ARGUMENTS[@]}"
  fi
  return "$code"
}

kit_run_trainer() { # <argv>...: become the shim that starts the trainer in a session of its own
  # Until the shim blocks them itself; it gives the trainer their defaults back.
  trap '' INT TERM HUP USR1 USR2
  export RESUMEKIT_RUN_DIR="$KIT_RUN_DIR" RESUMEKIT_RUN_ID="$KIT_RUN_ID" RESUMEKIT_RUN_TOKEN="$KIT_TOKEN"
  export RESUMEKIT_CONFIG_HASH="$KIT_HASH" PYTHONUNBUFFERED=1
  unset RESUMEKIT_PLAN # a run that was started from within another one has no part in that one's plan
  if [[ -e $KIT_RUN_DIR/resume_plan.json ]]; then export RESUMEKIT_PLAN="$KIT_RUN_DIR/resume_plan.json"; fi
  # Behind what the lab has there, never before it, and never an empty entry (that is the current folder). A path with
  # a colon would be two entries (start/trainer_command.py says so).
  if [[ $KIT_LIB != *:* ]]; then export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$KIT_LIB"; fi
  # torchrun ends its ranks with KILL half a minute after TERM, in the middle of a longer save.
  if [[ -n ${KIT_FIELD[RANKS_GRACE_S]:-} ]]; then
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-${KIT_FIELD[RANKS_GRACE_S]}}"
  fi
  # In the C locale a trainer that prints 'ä' would die of UnicodeEncodeError.
  export PYTHONUTF8="${PYTHONUTF8:-1}"
  if [[ -t 1 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
    # The trainer writes to a file; these tell it that its colours will be seen all the same.
    export FORCE_COLOR="${FORCE_COLOR:-1}" CLICOLOR_FORCE=1 PY_COLORS=1
    export COLUMNS LINES
  fi
  cd -- "$KIT_CWD" || exit "$KIT_FAILED"
  # The shim opens it, since '>>' would follow a link that another user has put there.
  export RESUMEKIT_OUTPUT_LOG="$KIT_OUTPUT_LOG"
  exec "$KIT_PYTHON" -I -S "$KIT_LIB/resumekit/process/shim.py" "$KIT_RUN_DIR" "$$" "$KIT_MADE$KIT_HEAD" -- "$@" </dev/null
}

kit_keep_sidecar() { # start the sidecar again until it has written down the end: 0; 7 or 8 if checks or a rule did it; 9
  trap '' INT TERM HUP USR1 USR2
  local pause_s=1 started code echo=()
  ((KIT_DETACHED)) || echo=(--echo)
  while [[ -d $KIT_RUN_DIR ]]; do
    started=$SECONDS code=0
    "$KIT_PYTHON" -I -S "$KIT_LIB/resumekit_cli.py" sidecar "$KIT_RUN_DIR" "--made=$KIT_MADE" "${echo[@]}" || code=$?
    if ((code == 0 || code == KIT_CHECKS_FAILED || code == KIT_STOPPED_BY_RULE || code == KIT_ENDED_EARLY)); then
      return "$code"
    fi
    if ((code == KIT_EXCHANGED)); then return 0; fi # it has said so: there is nothing that it could follow
    # One that lived for a minute was killed; one that did not has something to wait for.
    if ((SECONDS - started >= 60)); then pause_s=1; fi
    sleep "$pause_s"
    if ((pause_s < 32)); then pause_s=$((pause_s * 2)); fi
  done
}

kit_start_watcher() { # have the run looked at by the rules of abort: until kit_end_watcher, or until this process is gone
  KIT_WATCHER_PIPE=''
  [[ -n ${KIT_FIELD[WATCH_S]:-} ]] || return 0
  # Last of a run's processes: one that is started later holds this end of the pipe as well.
  # No child of this shell: a `wait` that a signal has come between may look again only when some child ends, and this
  # one ends when this shell lets go of the pipe.
  exec {KIT_WATCHER_PIPE}> >(kit_keep_watcher "${KIT_FIELD[WATCH_S]}" <&0 &)
}

kit_end_watcher() {
  [[ -n $KIT_WATCHER_PIPE ]] || return 0
  exec {KIT_WATCHER_PIPE}>&-
  KIT_WATCHER_PIPE=''
}

kit_keep_watcher() { # <seconds>: look at the run that often; ends with the pipe that is its stdin
  trap '' INT TERM HUP USR1 USR2
  exec >/dev/null
  local code
  while :; do
    # A pause before the first look too: a short run needs none, and a trainer's start is not slowed.
    code=0
    read -r -t "$1" || code=$?
    ((code > 128)) || return 0
    nice -n 10 "$KIT_PYTHON" -I -S "$KIT_LIB/resumekit_cli.py" watch-own "$KIT_RUN_DIR" "$1" && return 0
    # It was killed, or failed: another one after the next pause.
  done
}

kit_prove_checkpoint() { # compute the checkpoint's digest beside the trainer's start; its load waits for it
  [[ -n $KIT_CHECKPOINT ]] || return 0
  (
    trap '' HUP USR1 USR2
    exec "$KIT_PYTHON" -I -S "$KIT_LIB/resumekit_cli.py" prove "$KIT_RUN_DIR" "$KIT_CHECKPOINT" "--made=$KIT_MADE"
  ) </dev/null >/dev/null &
}

kit_checkpoint_is_damaged() {
  "$KIT_PYTHON" -I -S "$KIT_LIB/resumekit_cli.py" quarantine-damaged "$KIT_RUN_DIR" "$KIT_CHECKPOINT" "--made=$KIT_MADE"
}

kit_is_exchanged() { # whether the run's name leads to another folder than was made
  local found
  found="$(stat -c %d:%i -- "$KIT_RUN_DIR" 2>/dev/null)" && [[ -n $KIT_MADE && $found != "${KIT_MADE%:*}" ]]
}

kit_wait_for() { # <job's pid>: wait until it has ended, whatever signals come; return its exit code
  local code again
  # A trapped signal ends `wait` early, with a code above 128 that is not the child's: wait again. A child that was
  # killed has such a code too; then there is nothing left to wait for, and `wait` says 127 ("not a child").
  while :; do
    code=0
    wait "$1" || code=$?
    ((code > 128)) || return "$code"
    kit_job_runs "$1" && continue
    again=0
    wait "$1" 2>/dev/null || again=$?
    if ((again != 127)); then code=$again; fi
    return "$code"
  done
}

kit_job_runs() { # <job's pid>
  local running
  running="$(jobs -rp)"
  [[ $'\n'$running$'\n' == *$'\n'"$1"$'\n'* ]]
}

kit_wait_for_last_lines() { # <sidecar loop's pid>: bounded, a grandchild may hold the log open; 7 or 8 as the sidecar says
  local sidecar_loop="$1" timer code
  while :; do
    code=0
    kit_hold_signals
    (
      trap 'kill "$!"; exit' TERM
      sleep "$KIT_LAST_LINES_S" &
      wait "$!"
      kill -KILL "$sidecar_loop"
    ) </dev/null >/dev/null 2>&1 &
    timer=$!
    kit_let_signals
    disown "$timer"
    kit_wait_for "$sidecar_loop" 2>/dev/null || code=$?
    # Killed, and not by the timer, which still runs: then the end is not written down.
    if ! kill "$timer" 2>/dev/null || ((code <= 128)); then break; fi
    kit_hold_signals
    kit_keep_sidecar &
    sidecar_loop=$!
    kit_let_signals
  done
  KIT_SIDECAR_CODE=$code
  if ((code == KIT_CHECKS_FAILED || code == KIT_STOPPED_BY_RULE)); then return "$code"; fi
}

kit_on_signal() { # <INT|TERM|USR1|USR2>: have the trainer stopped, once; a person's second Ctrl-C means now
  local now=() words="$1: the trainer saves and ends"
  case $1 in
    USR*)
      # A trainer that knows it gets it as it is (trainer.pass_signals), and then it stops nothing: Python decides.
      KIT_WARNINGS=$((KIT_WARNINGS + 1))
      words="$1: handed to the trainer if trainer.pass_signals names it, else it saves and ends"
      ;;
    INT)
      if kit_is_again; then
        now=(--now) words="INT again: ending the trainer now"
      elif ((KIT_SIGNALS)); then
        words="INT again: the same stop goes on; after a second, once more ends the trainer now"
      else
        words+="; once more to end it now"
      fi
      ;;
    *)
      # A scheduler sends it to the whole job, and again: it never means now.
      if ((KIT_SIGNALS)); then words="$1 again: the same stop goes on; 'abort-watch.sh --stop --now' ends it now"; fi
      ;;
  esac
  if [[ $1 != USR* ]]; then KIT_SIGNALS=$((KIT_SIGNALS + 1)); fi
  # In the background, where it does not get the terminal's next INT itself; the job's next signal does not end it.
  (
    trap '' INT TERM HUP USR1 USR2
    exec "$KIT_PYTHON" -I -S "$KIT_LIB/resumekit_cli.py" stop "$KIT_RUN_DIR" "$1" --launcher "${now[@]}"
  ) </dev/null >/dev/null &
  KIT_STOPS+=("$!")
  # After it, and not waited for: a terminal that is held (Ctrl-S) or gone must not keep a user from stopping.
  kit_say "$words" &
  KIT_MESSAGE_JOBS+=("$!")
}

kit_is_again() { # whether this INT is a person's second one: at a terminal, and not the first one once more
  local now_us='' first_us="$KIT_INT_US"
  kit_now_us now_us
  KIT_INT_US="${KIT_INT_US:-$now_us}"
  [[ -n $first_us ]] && ((now_us - first_us >= KIT_AGAIN_US)) && { : </dev/tty; } 2>/dev/null
}

kit_now_us() { # <output-variable>: microseconds; of whole seconds where this Bash (4.4) has no finer clock
  local clock="${EPOCHREALTIME:-${SECONDS}000000}"
  printf -v "$1" '%s' "${clock//[!0-9]/}"
}

kit_end_message_jobs() { # what is still waiting to be said, on a terminal that is not read, ends with the launcher
  # With the terminal's own launcher HUP would end it; under nohup, or on a pipe, nothing does.
  local job
  for job in "${KIT_MESSAGE_JOBS[@]}"; do
    if kit_job_runs "$job"; then kill -KILL "$job" 2>/dev/null || true; fi
  done
}

kit_on_hangup() { # the terminal is gone; the run is not
  exec >/dev/null 2>&1
}

kit_main() { # supervise <python> <command> <number of its arguments> <argument>... <field>... | recover <run-dir>
  set -euo pipefail
  shopt -s inherit_errexit
  KIT_DETACHED=1
  if [[ $1 == recover ]]; then
    # For a run that has no launcher any more: the watcher, which starts this, has set the environment.
    kit_setup "$KIT_ROOT/bin/resume.sh"
    KIT_SIGNALS=0 KIT_WARNINGS=0 KIT_IS_RECOVERY=1
    kit_ask recover "$2" "--answer-to=$$" || return "$?"
    [[ -n ${KIT_FIELD[RUN_ID]:-} ]] || return 0 # not now: the watcher's next pass asks again
  else
    KIT_PYTHON="$2" KIT_COMMAND="$3" KIT_PROG="${3##*/}"
    KIT_ARGUMENTS=("${@:5:$4}")
    shift $((4 + $4))
    kit_read_answer "$@" || die "$KIT_FAILED" "what is to be supervised is not whole: are the files of the kit of one version?"
  fi
  kit_supervise
}

# One compound command, which Bash has read whole before it runs: a file that is copied over this one meanwhile is not.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  kit_main "$@"
  exit
fi
