# shellcheck shell=bash disable=SC2034 # what is set here is read by those who source it
# What every command does before anything of its own: help, errors, the Python that decides, and options.
#
# Sourced by bin/*.sh, watch_installer.sh and launcher.sh. KIT_SWITCHES, KIT_OPTIONS and KIT_EXPERIMENT (needed, optional
# or many) are the command's own.

# An exported CDPATH would lead elsewhere, and print where.
KIT_LIB="$(CDPATH='' cd -P -- "${BASH_SOURCE[0]%/*}" && printf '%s/' "$PWD")"
KIT_LIB="${KIT_LIB%/}"
KIT_ROOT="${KIT_LIB%/*}"

# Exit codes with a name of their own.
readonly KIT_USAGE=2 KIT_TOOL_MISSING=127

kit_say() { # <text>
  local words
  kit_plain words "$1"
  # A reader that has gone away ends nothing.
  printf '%s: %s\n' "$KIT_PROG" "$words" >&2 || true
}

kit_plain() { # <output-variable> <text>: on one line, what a terminal obeys as a visible escape (base/terminal.py)
  # Bytes, whatever the locale takes for a character.
  local LC_ALL=C text="$2" code char escape
  if [[ $text == *[![:print:]]* ]]; then
    for code in {1..31} 127; do
      printf -v escape '\\x%02x' "$code"
      printf -v char '%b' "$escape"
      text="${text//"$char"/"$escape"}"
    done
    # In UTF-8: U+0080 to U+009F, then what is invisible or changes the direction of writing.
    text="${text//$'\xc2'[$'\x80'-$'\x9f']/?}"
    text="${text//$'\xd8\x9c'/?}"
    text="${text//$'\xe2\x80'[$'\x8b'-$'\x8f'$'\xa8'-$'\xae']/?}"
    text="${text//$'\xe2\x81'[$'\xa0'-$'\xaf']/?}"
  fi
  printf -v "$1" '%s' "$text"
}

die() { # <exit-code> <text>
  kit_say "$2"
  exit "$1"
}

kit_usage_error() { # <text>: one sentence, and where the manual is
  kit_say "$1 ('$KIT_PROG --help' is the manual)"
  exit "$KIT_USAGE"
}

kit_unknown_option() { # <option>
  local known="$KIT_SWITCHES$KIT_OPTIONS"
  [[ $known != *" $1 "* ]] || kit_usage_error "option '$1' takes no value"
  read -ra known <<<"$known"
  kit_usage_error "unknown option '$1'; known are ${known[*]}"
}

kit_help() { # the manual at the head of the command's own file
  local line
  {
    read -r line
    while IFS= read -r line && [[ $line == '#'* ]]; do
      line="${line#\#}"
      printf '%s\n' "${line# }"
    done
  } <"$KIT_COMMAND"
}

kit_setup() { # <path of the command> <argument>...: tracing, and the Python that the helpers run under
  KIT_COMMAND="$1"
  KIT_PROG="${1##*/}"
  shift
  KIT_ARGUMENTS=("$@")
  # Processes are known by it, and Bash reads answers through it.
  [[ -r /proc/self/stat && -e /proc/self/fd ]] || die "$KIT_TOOL_MISSING" \
    "there is no /proc here, by which processes are known: mount it (mount -t proc proc /proc)"
  # Started from within a run, a launcher is no part of that one.
  unset RESUMEKIT_RUN_TOKEN
  # Nor does it hold the lock of that one's session (process/session_lock.py).
  exec 900>&-
  umask o-w # what a run writes is not each user's to change, under `umask 000` neither
  if [[ ${RESUMEKIT_DEBUG:-} == 1 ]]; then
    PS4='+ ${BASH_SOURCE##*/}:${LINENO}:${FUNCNAME[0]:-main}: '
    set -x
  fi
  if [[ -n ${PYTHON:-} ]]; then
    KIT_PYTHON="$PYTHON"
  elif [[ -x $KIT_ROOT/.venv/bin/python ]]; then
    KIT_PYTHON="$KIT_ROOT/.venv/bin/python"
  else
    KIT_PYTHON=python3
  fi
  local found
  found="$(type -P -- "$KIT_PYTHON" || true)"
  if [[ -z $found ]]; then
    local advice='set PYTHON=/path/to/python (3.10 or newer)'
    # A lab's copy has no such target.
    [[ ! -e $KIT_ROOT/tools/setup.sh ]] || advice="run 'make setup', or $advice"
    die "$KIT_TOOL_MISSING" "no Python at '$KIT_PYTHON': $advice"
  fi
  # Absolute, without following the link that a venv's python is: the trainer starts in another folder.
  [[ $found == /* ]] || found="$PWD/$found"
  KIT_PYTHON="$found"
}

kit_parse_options() { # <argument>...: fill KIT_QUESTION, KIT_DETACHED and KIT_IS_DRY_RUN
  # KIT_SWITCHES=' --detach --json ' KIT_OPTIONS=' --name --set '
  local exp='' trainer_args=()
  KIT_QUESTION=() KIT_DETACHED=0 KIT_IS_DRY_RUN=0
  while (($#)); do
    case $1 in
      -h | --help)
        kit_help
        exit 0
        ;;
      --version)
        exec "$KIT_PYTHON" -I -S "$KIT_LIB/resumekit_cli.py" version "$KIT_PROG"
        ;;
      --)
        trainer_args=("$@")
        break
        ;;
      --*=*)
        [[ $KIT_OPTIONS == *" ${1%%=*} "* ]] || kit_unknown_option "${1%%=*}"
        KIT_QUESTION+=("$1")
        ;;
      -*)
        if [[ $KIT_OPTIONS == *" $1 "* ]]; then
          # Only a note may look like an option: anything else was forgotten.
          [[ $# -gt 1 && ($1 == --notes || $2 != --*) ]] || kit_usage_error "option '$1' needs a value"
          KIT_QUESTION+=("$1=$2")
          shift
        elif [[ $KIT_SWITCHES != *" $1 "* ]]; then
          kit_unknown_option "$1"
        elif [[ $1 == --detach ]]; then
          KIT_DETACHED=1
        elif [[ $1 == --dry-run ]]; then
          KIT_IS_DRY_RUN=1
        else
          KIT_QUESTION+=("$1")
        fi
        ;;
      *)
        [[ -n $1 ]] || kit_usage_error "the experiment's name is empty"
        if [[ $KIT_EXPERIMENT == many ]]; then
          KIT_QUESTION+=("--only=$1")
        else
          [[ -z $exp ]] || kit_usage_error "one experiment at a time: '$exp' and then '$1'"
          exp="$1"
        fi
        ;;
    esac
    shift
  done
  if [[ -n $exp ]]; then
    KIT_QUESTION+=("--experiment=$exp")
  elif [[ $KIT_EXPERIMENT == needed ]]; then
    kit_usage_error "which experiment? (EXP, as named in config.yaml, or a run id)"
  fi
  KIT_QUESTION+=("${trainer_args[@]}")
}
