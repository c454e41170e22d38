#!/usr/bin/env bash
# Summary: a Slurm of two nodes on this machine, to try the kit on
#
# Usage: tools/slurm.sh up DIR [linuxproc | cgroup]
#        tools/slurm.sh down DIR
#        tools/slurm.sh cut DIR NODE
#        tools/slurm.sh return DIR NODE
#        tools/slurm.sh programs
#
# `up` starts a controller and the nodes node1 and node2 on loopback, each with a host name, a boot id and process ids of its
# own, and writes DIR/env.sh: source it, and sbatch, squeue and scancel are those of this Slurm. The second word is the
# process tracker; cgroup needs root and the freezer of cgroup v1. `cut` takes a node's power, `return` boots it again.
# `down` ends whatever is left, in any state. It needs no root and changes nothing outside of DIR.
#
# Slurm's programs are those that are installed; else `programs`, which `up` calls, downloads and unpacks the packages
# of Debian or Ubuntu into .cluster/, once.
#
#   --help    this text
#
# Example:
#   tools/slurm.sh up /tmp/slurm && . /tmp/slurm/env.sh && sbatch --wrap hostname
#
# Exit status:
#   0 done, 1 failed, 2 usage, 3 this machine cannot have it (the sentence says why)
set -euo pipefail
shopt -s inherit_errexit nullglob

SELF="$(readlink -f -- "${BASH_SOURCE[0]}")"
readonly SELF CACHE="${SELF%/tools/*}/.cluster" NODES=(node1 node2)
readonly PACKAGES=(slurmctld slurmd slurm-client slurm-wlm-basic-plugins libmunge2 libhwloc15 liblua5.1-0)
# A client of a controller that does not answer waits for minutes.
readonly CLIENT_S=20
readonly FREEZER=/sys/fs/cgroup/freezer

say() { printf 'slurm.sh: %s\n' "$*" >&2; }

cannot() { # <why>
  say "$1"
  exit 3
}

usage() {
  say "$1"
  sed -n 's/^# Usage: /Usage: /p; s/^#        tools/       tools/p' "$SELF" >&2
  exit 2
}

# ---- the programs

find_programs() { # set UNPACKED ('' where they are installed), PATH and LD_LIBRARY_PATH; false where there are none
  UNPACKED=''
  # Not by PATH: there the unpacked ones of a Slurm that is up may be found.
  if [[ -x /usr/sbin/slurmctld && -x /usr/bin/sbatch ]]; then
    PATH="$PATH:/usr/sbin"
    return
  fi
  [[ -x $CACHE/unpacked/usr/sbin/slurmctld ]] || return
  UNPACKED="$CACHE/unpacked"
  local libraries=("$UNPACKED"/usr/lib/*/slurm-wlm "$UNPACKED"/usr/lib/*-linux-gnu)
  PLUGINS="${libraries[0]}"
  PATH="$UNPACKED/usr/sbin:$UNPACKED/usr/bin:$PATH"
  LD_LIBRARY_PATH="$(printf '%s:' "${libraries[@]}")${LD_LIBRARY_PATH:-}"
  export LD_LIBRARY_PATH="${LD_LIBRARY_PATH%:}"
}

get_programs() {
  if find_programs; then return; fi
  command -v apt-get dpkg flock >/dev/null || cannot "no Slurm is installed, and without apt-get, dpkg and flock its packages cannot be had"
  mkdir -p "$CACHE/packages" "$CACHE/lists/partial"
  # Two of these may come up side by side in a new checkout.
  (flock 9 && if [[ ! -x $CACHE/unpacked/usr/sbin/slurmctld ]]; then unpack_programs; fi) 9>"$CACHE/lock" || exit "$?"
  find_programs
}

unpack_programs() { # download the packages and unpack them into the cache, whole or not at all
  if ! download && ! download -o "Dir::State::lists=$CACHE/lists"; then
    cannot "no Slurm is installed, and its packages cannot be downloaded (apt-get download ${PACKAGES[0]} ...)"
  fi
  local package program
  rm -rf -- "$CACHE/unpacked.new"
  for package in "$CACHE"/packages/*.deb; do dpkg -x "$package" "$CACHE/unpacked.new"; done
  for program in slurmctld slurmd slurmstepd; do # what Debian's alternatives would link
    ln -sf "$program-wlm" "$CACHE/unpacked.new/usr/sbin/$program"
  done
  rm -rf -- "$CACHE/unpacked"
  mv -T -- "$CACHE/unpacked.new" "$CACHE/unpacked"
}

download() { # [option of apt-get]...: the packages, into the cache; with lists of our own these are fetched first
  if (($#)); then timeout 120 apt-get "$@" -qq update >/dev/null 2>&1 || return; fi
  (cd -- "$CACHE/packages" && timeout 120 apt-get "$@" -qq download "${PACKAGES[@]}" >/dev/null 2>&1)
}

# ---- up

write_config() { # <dir> <tracker>
  local dir="$1" tracker="$2" ports node
  read -r -a ports < <(python3 -c 'import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(one.getsockname()[1] for one in held))')
  {
    printf '%s\n' ClusterName=trial "SlurmctldHost=$(hostname -s)(127.0.0.1)" "SlurmctldPort=${ports[2]}" \
      CommunicationParameters=NoCtldInAddrAny,NoInAddrAny \
      "SlurmUser=$(id -un)" "SlurmdUser=$(id -un)" AuthType=auth/none CredType=cred/none MpiDefault=none \
      "StateSaveLocation=$dir/state" "SlurmdSpoolDir=$dir/spool/%n" \
      "SlurmctldPidFile=$dir/slurmctld.pid" "SlurmdPidFile=$dir/slurmd.%n.pid" \
      "SlurmctldLogFile=$dir/slurmctld.log" "SlurmdLogFile=$dir/slurmd.%n.log" \
      "ProctrackType=proctrack/$tracker" TaskPlugin=task/none JobAcctGatherType=jobacct_gather/none \
      AccountingStorageType=accounting_storage/none SelectType=select/cons_tres SelectTypeParameters=CR_CPU \
      SlurmdParameters=config_overrides SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_min_interval=100000 \
      KillWait=10 SlurmdTimeout=20 InactiveLimit=0 MinJobAge=3600 ReturnToService=2 \
      JobRequeue=1 PreemptType=preempt/partition_prio PreemptMode=REQUEUE
    for node in 0 1; do
      printf 'NodeName=%s NodeHostname=%s NodeAddr=127.0.0.1 Port=%s CPUs=4 RealMemory=4000\n' \
        "${NODES[node]}" "${NODES[node]}" "${ports[node]}"
    done
    # A job of `high` takes the place of one of the others: at once, or of `grace` after GraceTime seconds.
    printf 'PartitionName=%s Nodes=node1,node2 MaxTime=INFINITE %s\n' low 'Default=YES PriorityTier=1' \
      grace 'PriorityTier=1 GraceTime=15' high 'PriorityTier=10 PreemptMode=OFF'
    if [[ -n $UNPACKED ]]; then printf 'PluginDir=%s\n' "$PLUGINS"; fi
  } >"$dir/slurm.conf"
  printf '%s\n' CgroupPlugin=cgroup/v1 CgroupAutomount=no CgroupMountpoint=/sys/fs/cgroup >"$dir/cgroup.conf"
  printf '127.0.0.1 localhost %s %s\n' "$(hostname -s)" "${NODES[*]}" >"$dir/hosts"
}

up() { # <dir> [<tracker>]
  local dir tracker="${2:-linuxproc}" node
  [[ $tracker == linuxproc || $tracker == cgroup ]] || usage "no process tracker '$tracker'"
  get_programs
  dir="$(readlink -m -- "$1")"
  down "$dir"
  may_have "$tracker"
  rm -rf -- "${dir:?}/state" "$dir/spool"
  mkdir -p "$dir/state" "$dir/spool"
  write_config "$dir" "$tracker"
  export SLURM_CONF="$dir/slurm.conf"
  printf 'export %s=%q\n' SLURM_CONF "$SLURM_CONF" PATH "$PATH" >"$dir/env.sh"
  if [[ -n $UNPACKED ]]; then printf 'export LD_LIBRARY_PATH=%q\n' "$LD_LIBRARY_PATH" >>"$dir/env.sh"; fi
  slurmctld -c </dev/null >/dev/null 2>"$dir/slurmctld.err" || {
    say "the controller does not start: $(tail -n 1 "$dir/slurmctld.err")"
    return 1
  }
  for node in "${NODES[@]}"; do boot "$dir" "$node"; done
  for node in "${NODES[@]}"; do wait_for_node "$dir" "$node"; done
}

may_have() { # <tracker>
  set_own
  unshare "${OWN[@]}" --uts --mount --pid --fork --mount-proc true 2>/dev/null ||
    cannot 'this machine gives no process a host name and process ids of its own (unshare --uts --mount --pid)'
  [[ $1 == linuxproc ]] || { ((EUID == 0)) && [[ -w $FREEZER/cgroup.procs ]]; } ||
    cannot "the tracker cgroup needs root and the freezer of cgroup v1 at '$FREEZER'"
  local used=("$FREEZER"/slurm_node[12])
  [[ $1 == linuxproc ]] || ((${#used[@]} == 0)) || [[ -z $(find "${used[@]}" -name cgroup.procs -exec cat {} +) ]] ||
    cannot "another Slurm of this kind uses '${used[0]}'"
}

set_own() { # OWN: what makes the namespaces; a plain user has them in one of users
  OWN=(--propagation private)
  ((EUID == 0)) || OWN+=(--user --map-current-user --keep-caps)
}

boot() { # <dir> <node>: its PID 1 is a shell, whose end is the end of all that runs there
  local dir="$1" node="$2" machine
  set_own
  cat /proc/sys/kernel/random/uuid >"$dir/boot.$node"
  machine="$(printf '%s' "$dir $node" | md5sum)"
  printf '%s\n' "${machine%% *}" >"$dir/machine.$node"
  rm -f -- "$dir/slurmd.$node.pid"
  # shellcheck disable=SC2016 # what the other shell expands
  setsid unshare "${OWN[@]}" --uts --mount --pid --fork --kill-child=KILL --mount-proc \
    bash -c '
      set -e
      hostname "$1"
      mount --bind "$2/boot.$1" /proc/sys/kernel/random/boot_id
      mount --bind "$2/hosts" /etc/hosts
      if [[ -e /etc/machine-id ]]; then mount --bind "$2/machine.$1" /etc/machine-id; fi
      slurmd -D ${3:+-d "$3"} -N "$1" &
      wait "$!"' - "$node" "$dir" "${UNPACKED:+$UNPACKED/usr/sbin/slurmstepd}" \
    </dev/null >/dev/null 2>"$dir/node.$node.err" &
  disown
}

wait_for_node() { # <dir> <node>
  local tries
  for ((tries = 0; tries < 100; tries++)); do
    if [[ $(timeout "$CLIENT_S" sinfo -h -N -p low -n "$2" -o %t) == idle ]]; then return; fi
    sleep 0.1
  done
  say "the node $2 does not come up: $(tail -n 1 -- "$1/node.$2.err" "$1/slurmd.$2.log" 2>/dev/null | tail -n 1)"
  return 1
}

# ---- power

enter() { # <dir>: the environment of a Slurm that is up
  [[ -s $1/env.sh ]] || usage "no Slurm was brought up in '$1'"
  # shellcheck source=/dev/null
  . "$1/env.sh"
  find_programs || true
}

power_off() { # <dir> <node>: KILL its PID 1, and wait until nothing of it is left
  local pid first
  while pid="$(pid_of unshare "- $2 $1 ")"; do
    first="$(cat -- "/proc/$pid/task/$pid/children" 2>/dev/null)" || true
    # shellcheck disable=SC2086 # one pid, or none
    kill -KILL ${first:-"$pid"} 2>/dev/null || true
    thaw "$2"
    sleep 0.05
  done
  if [[ -d $FREEZER/slurm_$2 && -w $FREEZER/cgroup.procs ]]; then
    find "$FREEZER/slurm_$2" -depth -type d -exec rmdir {} + 2>/dev/null || true
  fi
}

pid_of() { # <program> <words>: print the pid of a process of it with these words in a row, or with this in its environment
  local file argv
  for file in /proc/[0-9]*/cmdline; do
    mapfile -d '' -t argv 2>/dev/null <"$file" || continue
    if [[ ${argv[0]:-} != "$1" ]]; then continue; fi
    mapfile -d '' -t -O "${#argv[@]}" argv 2>/dev/null <"${file%cmdline}environ" || continue
    if [[ " ${argv[*]} " == *" $2"* ]]; then
      file="${file#/proc/}"
      printf '%s' "${file%/cmdline}"
      return
    fi
  done
  return 1
}

thaw() { # <node>: what is frozen does not die
  local state
  for state in "$FREEZER/slurm_$1"/uid_*/job_*/{,*/}freezer.state; do
    printf 'THAWED\n' >"$state" 2>/dev/null || true
  done
}

cut() { # <dir> <node>
  power_off "$1" "$2"
  timeout "$CLIENT_S" scontrol update "nodename=$2" state=down reason=power
}

return_power() { # <dir> <node>
  boot "$1" "$2"
  timeout "$CLIENT_S" scontrol update "nodename=$2" state=resume 2>/dev/null || true
  wait_for_node "$1" "$2"
}

down() { # <dir>: whatever is left of it, in whatever state it is; the jobs first, for these may write while they end
  local dir="$1" node tries pid signal=TERM
  if [[ -e $dir/slurm.conf ]]; then
    export SLURM_CONF="$dir/slurm.conf"
    if timeout "$CLIENT_S" scancel -u "$(id -un)" 2>/dev/null; then
      for ((tries = 0; tries < 60; tries++)); do
        if [[ -z $(timeout "$CLIENT_S" squeue -h 2>/dev/null) ]]; then break; fi
        sleep 0.2
      done
    fi
  fi
  for node in "${NODES[@]}"; do power_off "$dir" "$node"; done
  for ((tries = 0; tries < 100; tries++)); do
    pid="$(pid_of slurmctld "SLURM_CONF=$dir/slurm.conf ")" || break
    if ((tries == 50)); then signal=KILL; fi
    kill "-$signal" "$pid" 2>/dev/null || true
    sleep 0.1
  done
  rm -f -- "$dir/env.sh" "$dir/slurm.conf" "$dir/slurmctld.pid"
}

main() { # <verb> [argument]...
  case ${1:-} in
    -h | --help) sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "$SELF" ;;
    programs) get_programs ;;
    up | down | cut | return)
      [[ -n ${2:-} ]] || usage "$1 which DIR?"
      if [[ $1 == cut || $1 == return ]]; then
        [[ " ${NODES[*]} " == *" ${3:-} "* ]] || usage "no node '${3:-}'"
        enter "$2"
      fi
      case $1 in
        up) up "${@:2}" ;;
        down)
          find_programs || true
          down "$(readlink -m -- "$2")"
          ;;
        cut) cut "$(readlink -f -- "$2")" "$3" ;;
        return) return_power "$(readlink -f -- "$2")" "$3" ;;
      esac
      ;;
    *) usage "no such verb '${1:-}'" ;;
  esac
}

# One compound command, which Bash has read whole before it runs: a file that is copied over this one meanwhile is not.
{
  main "$@"
  exit
}
