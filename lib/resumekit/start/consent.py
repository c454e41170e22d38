"""What would be executed on another user's word, and what a person is asked before it is: the words of a config, and a
checkpoint that a trainer unpickles.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..base.errors import KitError
from ..base.imports import Any
from ..checkpoint import layout
from ..checkpoint.form import of as form_of
from ..checkpoint.selection import Candidate
from ..config import config
from ..config.schema import Schema
from ..config.yaml_scalars import show
from ..run import trust
from ..run.run_folder import Run
from ..run.run_table import RunTable, run_around
from ..run.trust import SEALED, Standing
from . import trainer_command
from .request import Request

# A person cannot agree to what is not shown: longer values are cut, and their length is said.
_SHOWN = 600


def executed_words(resolved: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """Return the executed words of a config: dotted key -> value, also of each text that a placeholder puts into argv.

    Args:
        resolved: a config; another user's may hold anything.
        schema: says which keys are executed; a key that the config lacks has its default.
    """
    found = {key: _value(resolved, key, schema) for key in schema.executed}
    templates = ("trainer.wrap", "trainer.launcher.args", "trainer.command", "trainer.resume_args",
                 "trainer.describe_args", "trainer.init_args", "recover.lr_args")  # fmt: skip
    commands = map(found.get, templates)
    for key in _placeholders(*commands):
        value = _value(resolved, key, schema)
        if isinstance(value, str):  # a number is no word; null and lists are refused where the command is built
            found[key] = value
    return found


def differing_words(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return the keys of the words that are not the same in both."""
    return [key for key in dict.fromkeys((*theirs, *own)) if theirs.get(key) != own.get(key)]


def word_consents(
    run: Run, standing: Standing, resolved: Mapping[str, Any], request: Request, experiment: str, advice: str
) -> tuple[str, ...]:
    """Return what a person must agree to before the words of a config that came from a run's record are executed.

    Args:
        run: whose record the config came from.
        standing: of that record. Nothing is asked where it is sealed; where no other user can have written it, it may
            still be a copy of what another one wrote.
        resolved: the config, with what the command line said on top.
        request: the command, with the caller's own config.
        experiment: of the new run.
        advice: what `--accept` would do, and what to say instead.

    Returns:
        One sentence for each key that differs from the caller's own config, both shown, and one with the advice;
        nothing where all of them are equal.
    """
    if standing.kind == SEALED:
        return ()
    whose = standing.reason or "no launcher of this user's sealed it"
    schema, name = request.config_file.schema, request.config_file.path.name
    theirs = executed_words(resolved, schema)
    try:
        own: Mapping[str, Any] = executed_words(request.resolved(experiment), schema)
    except KitError as error:
        sentences = [f"{key}: {_shown(value)}" for key, value in theirs.items() if value not in (None, [], False)]
        return (
            *sentences,
            f"that is what '{run.run_id}' says ({whose}), and {name} cannot: {error}; {advice}",
        )
    differs = differing_words(theirs, own)
    if not differs:
        return ()
    sentences = [
        f"{key}: {_shown(theirs.get(key))} in '{run.run_id}' ({whose}), {_shown(own.get(key))} in {name}"
        for key in differs
    ]
    return (*sentences, advice)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = show(value, _SHOWN)
    size = len(value) if isinstance(value, str) else len(json.dumps(value, ensure_ascii=False))
    return text if size <= _SHOWN else f"{text} ({size:,} characters)"


def _placeholders(*templates: Any) -> Iterator[str]:
    """Yield the config keys that the elements of a command have placeholders for."""
    for template in templates:
        for part in template if isinstance(template, list) else ():
            if isinstance(part, str):
                yield from (name for name in trainer_command.placeholders(part) if "." in name)


def _value(resolved: Mapping[str, Any], key: str, schema: Schema) -> Any:
    value: Any = resolved
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return schema.leaves.get(key, {}).get("default")
        value = value[part]
    return value


# A checkpoint that a trainer loads by itself is executed by it: whose it is, and what is in it.
#
# `torch.load` without weights_only unpickles, and a pickle runs what it names. A file that is another user's, or
# lies in a run that is not the caller's word (a copy belongs to its copier), is taken without a question only if
# the kit's reader finds plain data in it, as loading with weights_only=True would. Looks at one file and at the
# records of its run. Source: docs/security.md, decision 0014.


def checkpoint_consents(candidate: Candidate | None, resolved: Mapping[str, Any], table: RunTable) -> tuple[str, ...]:
    """Return what a person must agree to before a trainer loads a checkpoint.

    Args:
        candidate: the chosen one, with what the kit's reader found in it; None for none.
        resolved: the new run's config: a trainer with the kit's helpers loads with weights_only=True.
        table: the runs among which it was looked for.
    """
    if candidate is None or config.get(dict(resolved), "trainer.loads_with_kit"):
        return ()
    inside = candidate.inside
    if inside is not None and not inside.unsafe:
        return ()
    try:
        whose = _whose(candidate, form_of(resolved.get("checkpoint")).companions_of(candidate.name), table)
    except OSError:  # gone since: the start says so when it opens it
        return ()
    if whose is None:
        return ()
    what = f"'{inside.unsafe[0]}'" if inside is not None else "what the kit cannot read"
    return (
        f"'{candidate.path}' {whose} and holds {what}, which is not plain data: this trainer "
        "loads by itself (trainer.loads_with_kit is false), and what loads it may run what it names",
    )


def _whose(candidate: Candidate, companions: tuple[str, ...], table: RunTable) -> str | None:
    """Return how a checkpoint is another user's, for a message; None where it is the caller's own word."""
    path = candidate.path
    others = sorted(layout.owners(path, companions) - {os.geteuid()})
    if others:
        return f"belongs to {trust.user_of(others[0])}"
    for run in _holders(candidate, table):
        if reason := trust.against_checkpoint(run, path):
            return f"lies in '{run.run_id}', which is not your own word ({reason}),"
    return None


def _holders(candidate: Candidate, table: RunTable) -> Iterator[Run]:
    """Yield each run that a checkpoint lies in: by where it was found, by its folder, and where a link leads to."""
    seen: set[str] = set()
    real = Path(os.path.realpath(candidate.path))
    for run in (table.get(candidate.run_id), run_around(table, candidate.path), run_around(table, real)):
        if run is None or str(run.paths.run_dir) in seen:
            continue
        # A run.json of another program makes no run of the folder; a folder in the runs folder is one without it.
        if run.is_ours or run.other_id is not None or table.get(run.run_id) is run:
            seen.add(str(run.paths.run_dir))
            yield run
