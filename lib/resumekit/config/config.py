"""The config of a run: base <- experiment (with what it is based on) <- --set, checked, hashed and written down.

Reads config.yaml and the schemas; writes resolved_config.yaml and .json into a run folder.
Try it: `python lib/config_resolver.py --config config.yaml --logdir /tmp/look --experiment EXP-01`
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..base import file_identity, files, paths
from ..base.errors import InvalidFile, KitError, UsageError
from ..base.imports import Any, NamedTuple
from . import rules, settings, validate, yaml_document
from . import schema as schemas
from .schema import Schema, nearest
from .settings import get as get
from .validate import Finding
from .yaml_document import Document
from .yaml_scalars import MAX_BYTES, show

# Of `config_hash`; counted up whenever the same config comes to another hash. A run keeps the one that it began with.
HASH_VERSION = 2
CONFIG = paths.KIT_ROOT / "config.yaml"
# How many processes a launcher in `trainer.command` starts (torchrun, accelerate, mpirun, srun): a place, no training.
_PROCESSES = "(--(nproc[-_]per[-_]node|nnodes|num[-_]processes|num[-_]machines|ntasks(-per-node)?)|-np)(=.*)?"
# What an experiment says about itself, and the key of the resolved config where it goes.
_ENTRY_KEYS = {"name": "run_name", "notes": "notes", "lineage": "lineage", "tags": "tags"}
# The key of an experiment that names the one whose sections lie below its own.
_BASE = "base"


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

    @property
    def experiments(self) -> tuple[str, ...]:
        """The ids of its experiments, in its order."""
        entries = self.document.data.get(schemas.EXPERIMENTS)
        return tuple(map(str, entries)) if isinstance(entries, dict) else ()


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
    document = yaml_document.load(
        content, str(path), refused=lambda fault: validate.refused_word(fault.path, fault, schema.tree)
    )
    return ConfigFile(path, document, file_identity.sha256(content), content, schema)


def resolve(
    document: Document, experiment: str | None = None, overrides: Sequence[str] = (), *, schema: Schema | None = None
) -> dict[str, Any]:
    """Return the config that a run uses: the schema's defaults <- base <- experiment <- `--set`.

    An experiment with a `base` has the sections of that one below its own; what that one says about itself (its name,
    notes, lineage and tags) stays with it.

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
        for name in _bases(experiments, experiment):
            resolved = _merge(resolved, _sections(experiments[name]), schema.tree)
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
    if found := schema.findings(data):
        raise InvalidFile(f"{found[0].sentence} ({show(source, 400)})")
    data.pop(schemas.EXPERIMENTS, None)
    return _finish(_merge(schemas.defaults(schema), data, schema.tree), overrides, schema, show(source, 400))


def config_hash(resolved: dict[str, Any], schema: Schema | None = None) -> str:
    """Return the SHA-256 of what shapes the training, as 64 hex digits.

    It is taken over canonical JSON (sorted keys, numbers by their schema type) without the keys that the schema marks
    `x-hash: false`, so comments, order, spelling of numbers and the place where it runs do not change it. The words of
    `trainer.command` are in it, placeholders unexpanded, but for how many processes it starts: what stands there, such
    as a learning rate, is in no other key. Whether a run goes on with its parent or branches is not asked of the hash.

    Source: protocol §10.
    """
    schema = schema or schemas.load()
    kept = _hashed(schemas.normalise(resolved, schema.tree, schema.tree), schema, "")
    kept.setdefault("trainer", {})["command"] = _words_of_training(get(resolved, "trainer.command", []))
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return file_identity.sha256(text.encode())


def dump_yaml(resolved: dict[str, Any]) -> str:
    """Return a resolved config as YAML that every reader takes alike; needs no PyYAML."""
    return yaml_document.dump(resolved)


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


# A launch resolves one file several times (its base, its experiment): it is checked the first time, 3 ms.
_last_checked: tuple[Document, Schema] | None = None


def _check(data: dict[str, Any], document: Document, schema: Schema) -> None:
    """Refuse a config with unknown keys or wrong values, by the first line that has one."""
    global _last_checked
    if _last_checked and _last_checked[0] is document and _last_checked[1] is schema:
        return
    experiments = data.get(schemas.EXPERIMENTS, {})
    if found := schema.findings(data, document.lines) or list(_base_findings(experiments, document)):
        first = min(found, key=lambda finding: finding.line or 0)
        raise InvalidFile(f"{first.sentence} ({show(document.source, 400)}, line {first.line})")
    _last_checked = (document, schema)


def _finish(resolved: dict[str, Any], overrides: Sequence[str], schema: Schema, where: str) -> dict[str, Any]:
    parsed = [settings.parse(setting, schema) for setting in overrides]
    nested = schemas.normalise(settings.nest(parsed, schema), schema.tree, schema.tree)
    name = get(resolved, "experiment.name")
    if nested:
        if found := schema.findings(nested):
            raise InvalidFile(f"{found[0].sentence} (--set {show(_setting_of(found[0].path, parsed, overrides))})")
        resolved = _merge(resolved, nested, schema.tree)
    if name is not None and get(resolved, "experiment.name") != name:
        raise UsageError(f"experiment.name is {show(name)} and cannot be set; name another experiment instead")
    for broken in rules.broken(resolved, schema):
        setting = _setting_behind(broken.keys, parsed, overrides)
        raise InvalidFile(f"{broken.sentence} ({where if setting is None else f'--set {show(setting)}'})")
    return resolved


def _entry(experiments: dict[str, Any], experiment: str, document: Document) -> dict[str, Any]:
    if experiment not in experiments:
        known = ", ".join(experiments) or "none"
        raise UsageError(
            f"there is no experiment {show(experiment)} in {show(document.source, 400)}; known are {known}"
        )
    entry = experiments[experiment]
    own = {key: entry[name] for name, key in _ENTRY_KEYS.items() if name in entry}
    return {"experiment": {**own, "name": experiment}, **_sections(entry)}


def _sections(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in _ENTRY_KEYS and name != _BASE}


def _bases(experiments: Mapping[str, Any], experiment: str) -> list[str]:
    """Return the experiments whose sections lie below this one's, the lowest first; none where it has no `base`."""
    found: list[str] = []
    name = experiments.get(experiment, {}).get(_BASE)
    while name is not None and name not in (*found, experiment):
        found.insert(0, name)
        name = experiments.get(name, {}).get(_BASE)
    return found


def _base_findings(experiments: Mapping[str, Any], document: Document) -> Iterator[Finding]:
    """Yield what is wrong with the experiments' `base`: one that is not there, or a circle."""
    for name, entry in experiments.items():
        if (base := entry.get(_BASE)) is None:
            continue
        path = (schemas.EXPERIMENTS, name, _BASE)
        line = validate.line_of(path, document.lines)
        what = f"'{'.'.join(path)}' is {show(base)}"
        if base not in experiments:
            others = [one for one in experiments if one != name]
            sentence = f"{what}, and there is no such experiment{nearest(base, others)}"
            yield Finding(path, _BASE, base, sentence, line)
        elif base == name or name in _bases(experiments, base):
            circle = " -> ".join((name, *reversed(_bases(experiments, name)), name))
            yield Finding(path, _BASE, base, f"{what}, which leads back to it: {circle}", line)


def _merge(below: dict[str, Any], above: dict[str, Any], node: validate.Node) -> dict[str, Any]:
    """Lay `above` over `below`: sections key by key, values (lists too) as a whole."""
    merged = dict(below)
    for name, value in above.items():
        inner = validate.child(name, node) or {}
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


def _words_of_training(command: list[str]) -> list[str]:
    """Return the words of a command without the options, and their values, that say how many processes there are."""
    kept, is_value = [], False
    for word in command:
        option = re.fullmatch(_PROCESSES, word)
        if not option and not is_value:
            kept.append(word)
        is_value = option is not None and "=" not in word
    return kept


def _setting_of(path: tuple[str, ...], parsed: list[tuple[tuple[str, ...], Any]], overrides: Sequence[str]) -> str:
    """Return the `--set` that a problem comes from: the last one whose key leads to it."""
    for (own, _), setting in zip(reversed(parsed), reversed(overrides), strict=True):
        if own == path[: len(own)] or path == own[: len(path)]:
            return setting
    return overrides[-1]


def _setting_behind(
    keys: Sequence[str], parsed: list[tuple[tuple[str, ...], Any]], overrides: Sequence[str]
) -> str | None:
    """Return the `--set` of the first of the keys that one is about, the last such one; None where none is."""
    for key in keys:
        for (path, _), setting in zip(reversed(parsed), reversed(overrides), strict=True):
            name = ".".join(path)
            if f"{key}.".startswith(f"{name}."):  # of the key, or of a section around it
                return setting
    return None
