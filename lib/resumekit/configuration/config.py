"""The config of a run: base <- experiment <- --set, checked, hashed and written down.

Reads config.yaml and the schemas; writes resolved_config.yaml and .json into a run folder.
Try it: `python lib/config_resolver.py --config config.yaml --logdir /tmp/look --experiment EXP-01`
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..basics import digests, files, paths
from ..basics.errors import InvalidFile, KitError, UsageError
from . import config_rules, schema_checks, settings, yaml_reader, yaml_writer
from . import schema as schemas
from .schema import Schema
from .schema_checks import Problem
from .yaml_reader import Document
from .yaml_scalars import MAX_BYTES, show

# Of `config_hash`; counted up whenever the same config comes to another hash. A run keeps the one that it began with.
HASH_VERSION = 1
CONFIG = paths.KIT_ROOT / "config.yaml"
# What an experiment says about itself, and the key of the resolved config where it goes.
_ENTRY_KEYS = {"name": "run_name", "notes": "notes", "lineage": "lineage", "tags": "tags"}


class ConfigFile(NamedTuple):
    """A config file as read, not yet checked.

    Args:
        path: where it was read from.
        document: its content.
        sha256: of its bytes, 64 hex digits.
        content: its bytes, comments and all, for the copy in the run folder.
        schema: the schema with the lab's overlay.
    """

    path: Path
    document: Document
    sha256: str
    content: bytes
    schema: Schema


def load_config(path: Path | None = None, lab_schema: Path | None = None) -> ConfigFile:
    """Read a config file and the schema for it.

    Args:
        path: None for the kit's own config.yaml.
        lab_schema: the lab's overlay; None for schemas/lab.schema.json.

    Raises:
        InvalidFile: one of them cannot be read.
    """
    path = path or CONFIG
    schema = schemas.load(lab_schema)
    try:
        content = files.read_bounded(path, MAX_BYTES)
    except files.UnreadableFile as error:
        raise InvalidFile(f"the config {show(str(path), 400)} cannot be read: {error}") from None
    document = yaml_reader.load(
        content, str(path), refused=lambda fault: schema_checks.refused_word(fault.path, fault, schema)
    )
    return ConfigFile(path, document, digests.sha256(content), content, schema)


def resolve(
    document: Document, experiment: str | None = None, overrides: Sequence[str] = (), *, schema: Schema | None = None
) -> dict[str, Any]:
    """Return the config that a run uses: the schema's defaults <- base <- experiment <- `--set`.

    Args:
        document: a config as read; every experiment in it is checked, used or not.
        experiment: its id; None resolves the base.
        overrides: `KEY=VALUE` as typed, later ones win.
        schema: None for the kit's own with the lab's overlay.

    Returns:
        Nested dicts by section, without `experiments`. Every section is there, and every key with a default.

    Raises:
        InvalidFile: something in it is not valid; the sentence has the key, the value, the line and what to do.
        UsageError: there is no such experiment, or a setting is not KEY=VALUE.
    """
    schema = schema or schemas.load()
    data = schemas.normalise(document.data, schema.tree, schema.tree)
    _check(data, document, schema)
    experiments = data.pop(schemas.EXPERIMENTS, {})
    resolved = _merge(schemas.defaults(schema), data, schema.tree)
    if experiment is not None:
        resolved = _merge(resolved, _entry(experiments, experiment, document), schema.tree)
    where = (
        f"experiment {show(experiment)} of {show(document.source, 400)}" if experiment else show(document.source, 400)
    )
    return _finish(resolved, overrides, schema, where)


def override(
    resolved: dict[str, Any],
    overrides: Sequence[str],
    schema: Schema | None = None,
    source: str = "the resolved config",
) -> dict[str, Any]:
    """Return a resolved config with `--set` applied to it; the given one stays as it is.

    Args:
        resolved: as it was written into a run folder, by this kit, an older one, or another user: it is checked again,
            and keys of the kit's own that it lacks get their defaults.
        overrides: `KEY=VALUE` as typed, later ones win.
        schema: None for the kit's own with the lab's overlay.
        source: what it was read from, for messages.

    Raises:
        InvalidFile, UsageError: as `resolve`.
    """
    schema = schema or schemas.load()
    data = schemas.normalise(resolved, schema.tree, schema.tree)
    if found := schema_checks.problems(data, schema):
        raise InvalidFile(f"{found[0][1]} ({show(source, 400)})")
    data.pop(schemas.EXPERIMENTS, None)
    return _finish(_merge(schemas.defaults(schema), data, schema.tree), overrides, schema, show(source, 400))


def config_hash(resolved: dict[str, Any], schema: Schema | None = None) -> str:
    """Return the SHA-256 of what shapes the training, as 64 hex digits.

    It is taken over canonical JSON (sorted keys, numbers by their schema type) without the keys that the schema marks
    `x-hash: false`, so comments, order, spelling of numbers and the place where it runs do not change it.

    Source: protocol §10.
    """
    schema = schema or schemas.load()
    kept = _hashed(schemas.normalise(resolved, schema.tree, schema.tree), schema, "")
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return digests.sha256(text.encode())


def dump_yaml(resolved: dict[str, Any]) -> str:
    """Return a resolved config as YAML that every reader takes alike; needs no PyYAML."""
    return yaml_writer.dump(resolved)


def as_json(resolved: dict[str, Any]) -> bytes:
    """Return the bytes of resolved_config.json."""
    return json.dumps(resolved, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def write_resolved(run_dir: Path, resolved: dict[str, Any], file: ConfigFile | None = None) -> None:
    """Write what a run uses into its folder, which must exist: resolved_config.yaml and resolved_config.json.

    Args:
        run_dir: the run's folder.
        resolved: the config.
        file: where it came from; its content is copied to config.yaml, comments and all.

    Raises:
        KitError: one of them cannot be written; the sentence says which and why.
    """
    own = paths.RunPaths(run_dir)
    contents = {
        own.resolved_yaml: dump_yaml(resolved).encode(),
        own.resolved_json: as_json(resolved),
    }
    # `--logdir .` beside the config itself: the original is its own copy.
    if file and own.config_copy.resolve() != file.path.resolve():
        contents[own.config_copy] = file.content
    for path, content in contents.items():
        try:
            files.write_atomic(path, content)
        except OSError as error:
            raise KitError(
                f"{show(str(path), 400)} cannot be written: {error.strerror or error}; nothing was started"
            ) from None


def get(resolved: dict[str, Any], key: str, default: Any = None) -> Any:
    """Return the value of a dotted key, `default` where the config does not have it or has null."""
    value: Any = resolved
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return default if value is None else value


# A launch resolves one file several times (its base, its experiment): it is checked the first time, 3 ms.
_last_checked: tuple[Document, Schema] | None = None


def _check(data: dict[str, Any], document: Document, schema: Schema) -> None:
    """Refuse a config with unknown keys or wrong values, by the first line that has one."""
    global _last_checked
    if _last_checked and _last_checked[0] is document and _last_checked[1] is schema:
        return
    if found := schema_checks.problems(data, schema):
        raise InvalidFile(_sentence(min(found, key=lambda one: _line(one, document)), document))
    _last_checked = (document, schema)


def _finish(resolved: dict[str, Any], overrides: Sequence[str], schema: Schema, where: str) -> dict[str, Any]:
    parsed = [settings.parse(setting, schema) for setting in overrides]
    nested = schemas.normalise(settings.nest(parsed, schema), schema.tree, schema.tree)
    name = get(resolved, "experiment.name")
    if nested:
        if found := schema_checks.problems(nested, schema):
            path, what = found[0]
            raise InvalidFile(f"{what} (--set {show(_setting_of(path, parsed, overrides))})")
        resolved = _merge(resolved, nested, schema.tree)
    if name is not None and get(resolved, "experiment.name") != name:
        raise UsageError(f"experiment.name is {show(name)} and cannot be set; name another experiment instead")
    for sentence in config_rules.broken(resolved, schema):
        setting = _setting_in(sentence, parsed, overrides)
        raise InvalidFile(f"{sentence} ({where if setting is None else f'--set {show(setting)}'})")
    return resolved


def _entry(experiments: dict[str, Any], experiment: str, document: Document) -> dict[str, Any]:
    if experiment not in experiments:
        known = ", ".join(experiments) or "none"
        raise UsageError(
            f"there is no experiment {show(experiment)} in {show(document.source, 400)}; known are {known}"
        )
    entry = experiments[experiment]
    own = {key: entry[name] for name, key in _ENTRY_KEYS.items() if name in entry}
    return {
        "experiment": {**own, "name": experiment},
        **{name: value for name, value in entry.items() if name not in _ENTRY_KEYS},
    }


def _merge(below: dict[str, Any], above: dict[str, Any], node: schemas.Node) -> dict[str, Any]:
    """Lay `above` over `below`: sections key by key, values (lists too) as a whole."""
    merged = dict(below)
    for name, value in above.items():
        inner = schemas.child(name, node) or {}
        if "properties" in inner and isinstance(value, dict) and isinstance(merged.get(name), dict):
            value = _merge(merged[name], value, inner)
        merged[name] = value
    return merged


def _hashed(value: dict[str, Any], schema: Schema, prefix: str) -> dict[str, Any]:
    kept = {}
    for name, item in value.items():
        key = f"{prefix}{name}"
        if key in schema.sections and isinstance(item, dict):
            # A section with nothing hashed in it is as if it were not there.
            if inner := _hashed(item, schema, f"{key}."):
                kept[name] = inner
        elif schema.hashed(key):
            kept[name] = item
    return kept


def _line(problem: Problem, document: Document) -> int:
    path = problem[0]
    while path and path not in document.lines:
        path = path[:-1]
    return document.lines.get(path, 1)


def _sentence(problem: Problem, document: Document) -> str:
    return f"{problem[1]} ({show(document.source, 400)}, line {_line(problem, document)})"


def _setting_of(path: tuple[str, ...], parsed: list[tuple[tuple[str, ...], Any]], overrides: Sequence[str]) -> str:
    """Return the `--set` that a problem comes from: the last one whose key leads to it."""
    for (own, _), setting in reversed(list(zip(parsed, overrides, strict=True))):
        if own == path[: len(own)] or path == own[: len(path)]:
            return setting
    return overrides[-1]


def _setting_in(sentence: str, parsed: list[tuple[tuple[str, ...], Any]], overrides: Sequence[str]) -> str | None:
    """Return the `--set` of the first key that a broken rule names, None where all of them stand in the file."""
    found = []
    for number, (path, _) in enumerate(parsed):
        if at := re.search(rf"(?<![\w.-]){re.escape('.'.join(path))}(?![\w-])", sentence):
            found.append((at.start(), -number))
    return overrides[-min(found)[1]] if found else None
