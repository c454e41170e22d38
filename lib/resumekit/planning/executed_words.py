"""The words of a config that are executed: whose they are, and what a person is asked where they are another user's.

Whatever a start executes comes from the caller: from their own config, or from a record that their own launcher sealed
(`run_folder/trust`). The schema says which keys are executed (`x-executed`); a lab's overlay may say it of its own.
Compared unexpanded, placeholders and all. Reads nothing. Source: docs/security.md, decision 0014.
Try it: `bin/run.sh EXP-01 --dry-run` where the newest run is a colleague's
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..basics.errors import KitError
from ..configuration.schema import Schema
from ..configuration.yaml_scalars import show
from ..run_folder.runs import Run
from ..run_folder.trust import SEALED, Standing
from . import command
from .request import Request

# A person cannot agree to what is not shown: longer values are cut, and their length is said.
_SHOWN = 600


def words(resolved: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """Return the executed words of a config: dotted key -> value, also of each text that a placeholder puts into argv.

    Args:
        resolved: a config; another user's may hold anything.
        schema: says which keys are executed; a key that the config lacks has its default.
    """
    found = {key: _value(resolved, key, schema) for key in schema.executed}
    commands = (found.get(f"trainer.{name}") for name in ("command", "resume_args", "describe_args"))
    for key in _placeholders(*commands):
        value = _value(resolved, key, schema)
        if isinstance(value, str):  # a number is no word; null and lists are refused where the command is built
            found[key] = value
    return found


def differing(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return the keys of the words that are not the same in both."""
    return [key for key in dict.fromkeys((*theirs, *own)) if theirs.get(key) != own.get(key)]


def consents(
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
    theirs = words(resolved, schema)
    try:
        own: Mapping[str, Any] = words(request.resolved(experiment), schema)
    except KitError as error:
        sentences = [f"{key}: {_shown(value)}" for key, value in theirs.items() if value not in (None, [], False)]
        return (
            *sentences,
            f"that is what '{run.run_id}' says ({whose}), and {name} cannot: {error}; {advice}",
        )
    differs = differing(theirs, own)
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
                yield from (name for name in command.placeholders(part) if "." in name)


def _value(resolved: Mapping[str, Any], key: str, schema: Schema) -> Any:
    value: Any = resolved
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return schema.leaves.get(key, {}).get("default")
        value = value[part]
    return value
