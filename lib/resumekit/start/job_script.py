"""job.sh, the batch script of a submitted job: sbatch's options, then run.sh in the place of the script.

Pure: makes the text out of what was asked for; `start/submit` writes it. Try it: `bin/submit.sh EXP-01 --dry-run`
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..base.errors import UsageError
from ..base.imports import Any, NamedTuple
from ..base.terminal import plain

# The value of each option is the `cluster` key beside it, unless the command line says one.
OPTIONS = {"time": "--time", "nodes": "--nodes", "partition": "--partition"}
# By their short names sbatch knows the same options.
_LONG = {
    "-A": "--account", "-C": "--constraint", "-G": "--gpus", "-J": "--job-name", "-N": "--nodes", "-a": "--array",
    "-c": "--cpus-per-task", "-d": "--dependency", "-e": "--error", "-n": "--ntasks", "-o": "--output",
    "-p": "--partition", "-q": "--qos", "-t": "--time", "-w": "--nodelist", "-x": "--exclude", "-D": "--chdir",
}  # fmt: skip


class Task(NamedTuple):
    """One value of a sweep: the name of its lineage, and its `--set`."""

    name: str
    setting: str


class Script(NamedTuple):
    """What a job's script is made of.

    Args:
        options: of sbatch, in order: '--time=4:00:00', or '--exclusive' without a value.
        run_sh: the command, of the frozen kit.
        words: what it is called with.
        tasks: of a sweep; none where the job is one run.
        trainer_args: what goes to the trainer; None where there was no second `--`.
        said: lines of comment about the code.
    """

    options: Sequence[str]
    run_sh: Path
    words: Sequence[str]
    tasks: Sequence[Task]
    trainer_args: Sequence[str] | None
    said: Sequence[str]


def text(script: Script) -> str:
    """Return the script."""
    lines = ["#!/usr/bin/env bash", *(f"#SBATCH {_quoted(option)}" for option in script.options)]
    lines += [f"# {plain(sentence)}" for sentence in script.said]
    words = [shlex.quote(word) for word in script.words]
    if script.tasks:
        lines += ["case ${SLURM_ARRAY_TASK_ID:-} in"]
        for number, task in enumerate(script.tasks):
            own = shlex.join(["--name", task.name, "--set", task.setting])
            lines += [f"  {number}) own=({own}) ;;"]
        lines += ["  *) echo 'job.sh: this is no task of the sweep' >&2; exit 2 ;;", "esac"]
        words.append('"${own[@]}"')
    if script.trainer_args is not None:
        words += ["--", *map(shlex.quote, script.trainer_args)]
    lines += ["# exec: the signals of Slurm go to the batch script, so that has to be run.sh itself."]
    lines += [f"exec {shlex.quote(str(script.run_sh))} {_in_lines(words)}"]
    return "\n".join(lines) + "\n"


def options(
    asked: Mapping[str, str], cluster: Mapping[str, Any], given: Sequence[str], own: Sequence[str]
) -> list[str]:
    """Return sbatch's options, each once: the last word on it counts.

    Args:
        asked: what the command line says of OPTIONS.
        cluster: the section of the config.
        given: what stood behind `--`.
        own: what the kit says.

    Raises:
        UsageError: something in `given` or in `cluster.sbatch` is no option.
    """
    kept: dict[str, str] = {_name(option): option for option in own}
    for key, option in OPTIONS.items():
        if (value := cluster.get(key)) is not None:
            kept[option] = f"{option}={value}"
    for words, origin in ((cluster.get("sbatch") or (), "cluster.sbatch"), (given, "behind --")):
        for option in _joined(words, origin):
            kept[_name(option)] = option
    for key, value in asked.items():
        kept[OPTIONS[key]] = f"{OPTIONS[key]}={value}"
    if "--no-requeue" in kept and "--requeue" in kept:
        del kept["--requeue"]
    return list(kept.values())


def tasks(array_set: str, prefix: str | None) -> list[Task]:
    """Return the tasks of `--array-set KEY=VALUE,VALUE,...`, each with a name of its own.

    Args:
        array_set: commas inside of brackets and quotes separate nothing.
        prefix: `--name`, which stands before what each value is called.

    Raises:
        UsageError: it is not of that form, or two values have the same name.
    """
    key, equals, text_of_values = array_set.partition("=")
    values = [value.strip() for value in _split(text_of_values)]
    if not equals or not key.strip() or not all(values):
        raise UsageError(f"--array-set takes KEY=VALUE,VALUE,..., not '{array_set}'")
    found = [Task(_task_name(key.strip(), value, prefix), f"{key.strip()}={value}") for value in values]
    names = [task.name for task in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two values of --array-set '{array_set}' would have the same name, '{name}'")
    return found


def _task_name(key: str, value: str, prefix: str | None) -> str:
    words = [prefix, key.rpartition(".")[2], re.sub("[^A-Za-z0-9._+-]+", "-", value).replace("+", "").strip("-") or "-"]
    if value.startswith("-"):
        words[2] = f"-{words[2]}"
    return "_".join(word for word in words if word)


def _split(values: str) -> list[str]:
    """Split at commas that stand in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in values:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _joined(words: Sequence[str], origin: str) -> list[str]:
    """Return each option with its value as one word: sbatch takes '--time 1' and '-t 1' for '--time=1'."""
    found: list[str] = []
    is_open = False
    for word in words:
        if "\n" in word or "\0" in word:
            raise UsageError(f"{word!r} cannot stand in a line of job.sh ({origin})")
        if word.startswith("--"):
            found.append(word)
            is_open = "=" not in word
        elif word.startswith("-") and len(word) > 1:
            found.append(_long(word))
            is_open = len(word) == 2
        elif is_open and found:
            found[-1] += f"={word}" if found[-1].startswith("--") else f" {word}"
            is_open = False
        else:
            raise UsageError(f"'{plain(word)}' is no option of sbatch ({origin}): options begin with '-'")
    return found


def _long(word: str) -> str:
    name, value = word[:2], word[2:]
    if name not in _LONG:
        return word
    return f"{_LONG[name]}={value}" if value else _LONG[name]


def _name(option: str) -> str:
    return option.partition("=")[0].partition(" ")[0]


def _quoted(option: str) -> str:
    """Return an option as sbatch reads it in a script: with quotes around what has blanks or signs in it."""
    if re.fullmatch(r"[A-Za-z0-9_./:=,%@+\[\]*-]+", option) or re.match("-[A-Za-z] ", option):
        return option
    name, equals, value = option.partition("=")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}="{escaped}"' if equals else option


def _in_lines(words: Sequence[str]) -> str:
    """Return words of a command, each option with its value on a line of its own."""
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith(("--", '"${own')) and lines[-1]:
            lines.append([])
        lines[-1].append(word)
    return " \\\n  ".join(" ".join(line) for line in lines)
