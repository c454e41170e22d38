"""Settings: what stands behind `--set`, `KEY=VALUE`, as part of a config.

Decides which key a short name means and how its value is read. Reads no files.
Try it: `python lib/config_resolver.py --logdir /tmp/look --set grad_accum_steps=5 --set eval_frequency=2000`
"""

from __future__ import annotations

from collections.abc import Iterator

from ..base.errors import InvalidFile, UsageError
from ..base.imports import Any
from . import schema as schemas
from . import validate, yaml_document, yaml_scalars
from .schema import Schema
from .yaml_scalars import Refusal, show

Path = tuple[str, ...]


def parse(setting: str, schema: Schema, origin: str = "--set") -> tuple[Path, Any]:
    """Read one `KEY=VALUE`.

    Args:
        setting: as typed. KEY is dotted, or a bare name that only one key has (or lists as an alias). VALUE is YAML;
            for a key that takes a text it is that text as typed (in quotes, or null where null is allowed, it is YAML).
        schema: says which keys there are.
        origin: what it stands behind, for messages.

    Returns:
        (path of the key, value), the value not yet checked against the schema.

    Raises:
        UsageError: no '=', an empty or ambiguous key.
        InvalidFile: an unknown key, or a value that is not YAML.
    """
    name, equals, text = setting.partition("=")
    if not equals:
        raise UsageError(f"{show(setting)} ({origin}) has no '='; write KEY=VALUE")
    if not name or name != name.strip() or "" in name.split("."):
        raise UsageError(f"{show(setting)} ({origin}) has an empty part in its key; write section.key=VALUE")
    path = find(name, schema, setting, origin)
    node = schema.leaves.get(".".join(path), {})
    if not text and (said := validate.empty_value(path, node)):
        raise InvalidFile(f"{said} ({origin} {show(setting)})")
    try:
        return path, _value(text, node)
    except Refusal as refusal:
        fault = refusal.fault
        if fault.word == text and (said := validate.refused_word(path, fault, schema.tree)):
            raise InvalidFile(f"{said} ({origin} {show(setting)})") from None
        raise InvalidFile(f"{fault.what} ({origin} {show(setting)}); {fault.advice}") from None


def nest(settings: list[tuple[Path, Any]], schema: Schema) -> dict[str, Any]:
    """Return settings as a nested part of a config; a later one replaces an earlier one of the same key."""
    nested: dict[str, Any] = {}
    for path, value in settings:
        section = nested
        for part in path[:-1]:
            inner = section.get(part)
            section[part] = section = inner if isinstance(inner, dict) else {}
        old = section.get(path[-1])
        # A whole section on --set adds to what an earlier --set gave it, as it does to the config.
        if ".".join(path) in schema.sections and isinstance(old, dict) and isinstance(value, dict):
            value = {**old, **value}
        section[path[-1]] = value
    return nested


def keys(path: Path, value: Any, schema: Schema) -> Iterator[str]:
    """Yield the dotted keys that a setting changes: its own, or those in the section that it gives."""
    name = ".".join(path)
    if name in schema.sections and isinstance(value, dict):
        for key, inner in value.items():
            yield from keys((*path, str(key)), inner, schema)
    else:
        yield name


def find(name: str, schema: Schema, setting: str, origin: str = "--set") -> Path:
    """Return the path of the key that a name on the command line means.

    Raises:
        UsageError: several keys have that name.
        InvalidFile: none has.
    """
    path = tuple(name.split("."))
    if path[0] == schemas.EXPERIMENTS:
        raise UsageError(
            f"{show(setting)} ({origin}) changes an entry of experiments; set the key itself, without the entry"
        )
    if len(path) == 1 and not name.startswith("x-"):
        candidates = schema.named(name)
        if len(candidates) > 1:
            raise UsageError(
                f"{show(name)} ({origin} {show(setting)}) may mean {' or '.join(candidates)}; write one of them"
            )
        if candidates:
            return tuple(candidates[0].split("."))
    _known(path, schema, setting, origin)
    return path


def _known(path: Path, schema: Schema, setting: str, origin: str) -> None:
    """Refuse a path that the schema has no place for: sections are made only where it knows them."""
    node = schema.tree
    for depth, part in enumerate(path):
        if depth and "properties" not in node:
            parent = ".".join(path[:depth])
            if not any(piece.startswith("x-") for piece in path[:depth]):
                raise InvalidFile(
                    f"{show(parent)} is a value, not a section, so it has no {show(part)} ({origin} {show(setting)});"
                    f" set {show(parent)} as a whole"
                )
            return
        inner = validate.child(part, node)
        if inner is None:
            known = [*schema.leaves, *schema.sections] if "." in setting.partition("=")[0] else _short_names(schema)
            raise InvalidFile(
                f"there is no key {show('.'.join(path))} ({origin} {show(setting)})"
                f"{schemas.nearest('.'.join(path), known)}"
            )
        node = inner


def get(resolved: dict[str, Any], key: str, default: Any = None) -> Any:
    """Return the value of a dotted key, `default` where the config does not have it or has null."""
    value: Any = resolved
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return default if value is None else value


def _short_names(schema: Schema) -> list[str]:
    aliases = [alias for node in schema.leaves.values() for alias in node.get("x-aliases", ())]
    return [*(key.rpartition(".")[2] for key in schema.leaves), *aliases]


def _value(text: str, node: validate.Node) -> Any:
    types = set(validate.types_of(node))
    if "string" not in types or not types <= {"string", "null"}:
        return yaml_document.load_value(text)
    if "null" in types and text in ("", "~", "null"):
        return None
    if text[:1] in ("'", '"'):
        try:
            value = yaml_document.load_value(text)
        except Refusal:
            value = None
        if isinstance(value, str):
            return value
    return yaml_scalars.quoted(text, 1)
