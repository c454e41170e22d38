#!/usr/bin/env bash
# Make tests/recorded/old_run/ anew: the runs folder of a lineage of two, as version c83810b left it when everything of
# the second run was killed at once. For test_old_runs.py; it takes ten seconds.
#
#   git worktree add /tmp/old c83810b && tests/recorded/make_old_run.sh /tmp/old PYTHON
set -euo pipefail

old="$1" python="$2" here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
lab="$(mktemp -d)"
cp "$old/tests/toy_trainer.py" "$lab/train.py"
cat >"$lab/config.yaml" <<'YAML'
trainer:
  command: ["{python}", "train.py", "--dir", "{checkpoints_dir}", "--steps", "{training.max_steps}", "--save-every", "5",
            "--delay", "0.05"]
  resume_args: ["--resume", "{checkpoint}"]
  log_patterns: {step: "^step ([0-9]+)", loss: "loss ([0-9.]+)"}
  env: [RESUMEKIT_TEST_MARK]
  loads_with_kit: false
training: {max_steps: 40}
schedule: {warmup_steps: 0}
checkpoint: {every: 5, keep_last: null}
recover: {backoff_s: 1}
experiments:
  T-1: {name: toy}
YAML

event() { # <run's pattern> <text>: whether a journal has it
  grep -qs "$2" "$lab"/runs/$1/journal.jsonl
}
pid_of() { # <run's pattern> <who>: from the `launched` event
  "$python" -c 'import json, sys
for line in open(sys.argv[1]):
    if line.startswith("{") and json.loads(line)["event"] == "launched":
        print(json.loads(line)[sys.argv[2]]["pid"])' "$lab"/runs/$1/journal.jsonl "$2"
}

cd "$lab"
env -i HOME=/tmp PATH=/usr/local/bin:/usr/bin:/bin RESUMEKIT_TEST_MARK=x PYTHON="$python" "$old/bin/run.sh" T-1 --config "$lab/config.yaml" --detach
until event 'T-1_toy_2*' '"step":12,'; do sleep 0.1; done
kill -KILL "$(pid_of 'T-1_toy_2*' trainer)"
until event '*resume*' '"step":22,'; do sleep 0.1; done
pids=("$(pid_of '*resume*' launcher)" "$(pid_of '*resume*' shim)" "$(pid_of '*resume*' trainer)")
pids+=($(pgrep -f "resumekit_cli.py sidecar $lab"))
kill -STOP "${pids[@]}" && kill -KILL "${pids[@]}"

rm -rf "$here/old_run" && mkdir "$here/old_run"
cp -r "$lab"/runs/T-1* "$lab/train.py" "$lab/config.yaml" "$here/old_run/"
cd "$here/old_run"
rm -rf T-1*/command.sh T-1*/dataset
# What names this machine: test_old_runs.py puts its own there, and makes the marker in .live, which holds its inode.
grep -rlIZ . T-1* | xargs -0 sed -i "s|$lab|@LAB@|g; s|$python|@PYTHON@|g; s|\"$(uname -n)\"|\"@HOST@\"|g"
grep -rlIZ . T-1* | xargs -0 sed -i "s|$(cat /proc/sys/kernel/random/boot_id)|@BOOT@|g; s|$(readlink /proc/self/ns/pid)|@PIDS@|g"
rm -r "$lab"
