"""Rules about settings that only make sense together, each with its reason: refused, or warned of.

Reads nothing. Try it: `python lib/config_resolver.py --logdir /tmp/look --set checkpoint.keep_last=2`
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ..base import paths
from ..base.errors import KitError
from ..base.imports import Any, NamedTuple
from ..base.terms import NONFINITE
from ..base.values import finite
from . import launcher_rules, settings
from .schema import Schema
from .yaml_scalars import show

Config = dict[str, Any]
# What stands for a place in trainer.metrics_file; `*` for any part of a name.
METRICS_PLACES = ("run_dir", "checkpoints_dir", "logs_dir", "run_id", "*")
# The schedules that the kit computes (`start/forecast`).
SCHEDULES = ("cosine", "linear", "constant")
# Placeholders with which a trainer finds its whole config.
WHOLE_CONFIG = ("config_yaml", "config_json", "run_dir")
_RATE = re.compile(r"(?<!\{)\{lr\}")


class Broken(NamedTuple):
    """A rule that a config breaks.

    Args:
        keys: what the rule is about, dotted, in the order in which the sentence names them.
        sentence: the keys, their values, why that cannot be, what to do.
    """

    keys: tuple[str, ...]
    sentence: str


def broken(config: Config, schema: Schema) -> Iterator[Broken]:
    """Yield each rule that a resolved config breaks; a key that is absent breaks none."""
    for rule in (_command, _copy, _replay, _schedule, _swap, _names, _patterns, _metrics_file):
        if found := rule(config):
            yield found
    if refused := launcher_rules.launcher_refused(config):
        yield Broken(*refused)
    yield from _divisors(config, schema)
    if found := _lr_args(config, schema):
        yield found
    if sentence := _oom_set(config["abort"]["oom_set"], schema):
        yield Broken(("abort.oom_set",), sentence)


def without_effect(config: Config, schema: Schema) -> Iterator[str]:
    """Yield one sentence for each key that was set and does nothing with the trainer of a valid config.

    A key with its default was most likely never thought of; one that is handed to the trainer is the trainer's affair.
    """
    if config["trainer"].get("loads_with_kit"):
        return
    words = [*config["trainer"]["command"], *config["trainer"].get("resume_args", ())]
    for name in ("keep_last", "keep_every"):
        key, value = f"checkpoint.{name}", config["checkpoint"].get(name)
        is_handed_on = any(f"{{{key}}}" in word for word in words)
        if value is None or value == schema.leaves[key].get("default") or is_handed_on:
            continue
        why = "only save_checkpoint goes by it, and this trainer saves by itself (trainer.loads_with_kit: false)"
        advice = f"hand it to the trainer ({{{key}}} in trainer.command), or set it to null"
        yield f"{key} is {value} and has no effect: {why}; {advice}"


def unchecked(config: Config, schema: Schema) -> Iterator[str]:
    """Yield one sentence for each overlay of the kit's that is not here and that a config has keys of."""
    found: dict[str, list[str]] = {}
    for key, node in schema.leaves.items():
        section, _, name = key.partition(".")
        if "x-absent" in node and name in config[section]:
            found.setdefault(node["x-absent"], []).append(key)
    for overlay, keys in found.items():
        place = show(str(paths.KIT_ROOT / overlay), 400)
        yield (
            f"the schema {show(overlay)} of {', '.join(keys)} is not in this copy of the kit: only their types are"
            f" checked, and a change of them needs consent; copy that file out of resumekit's repository to {place}, or"
            f" take the keys out of the config"
        )


def doubtful(config: Config) -> tuple[str, ...]:
    """Return one sentence for each rule that a config breaks and trains all the same: a warning, no refusal."""
    rules = (_cadence, _warmup, _nan, launcher_rules.restarts_doubted)
    return tuple(sentence for rule in rules if (sentence := rule(config)))


def base_rates(config: Config, schema: Schema) -> dict[str, float]:
    """Return the base learning rates of a config: every number whose key the schema marks with `x-base-lr`."""
    keys = (key for key, node in schema.leaves.items() if node.get("x-base-lr"))
    values = {key: settings.get(config, key) for key in keys}
    return {key: float(value) for key, value in values.items() if finite(value) is not None}


def _lr_args(config: Config, schema: Schema) -> Broken | None:
    """Refuse a way to hand over a cut rate by which the trainer would get another rate than the one that is cut."""
    words = config["recover"].get("lr_args")
    if words is None:
        return None
    key, trainer, rates = "recover.lr_args", config["trainer"], list(base_rates(config, schema))
    what = f"{key} is {show(words)}"
    if (number := sum(len(_RATE.findall(word)) for word in words)) != 1:
        return Broken((key,), f"{what}, with {{lr}} in it {number} times: write it once, where the rate belongs")
    if trainer.get("loads_with_kit"):
        why = "load_resume_bundle cuts the rate by itself, and it would be cut twice: set one of them"
        return Broken((key, "trainer.loads_with_kit"), f"{what} and trainer.loads_with_kit is true: {why}")
    if len(rates) != 1:
        named = f"the config has {' and '.join(rates)}" if rates else "the config has no base rate"
        why = f"{named}: give it the one rate that the trainer trains with, optimizer.lr"
        return Broken((key, *rates), f"{what}, and what {{lr}} is to be cut from is not known, for {why}")
    if not _is_handed_on(trainer.get("command") or (), rates[0]):
        why = f"the trainer is not told of {rates[0]}, so it may train with another rate than the one that is cut"
        advice = f"hand it on in trainer.command, as {{{rates[0]}}} or in {{config_json}}"
        return Broken((key, rates[0], "trainer.command"), f"{what}, and {why}: {advice}")
    return None


def _is_handed_on(words: Iterable[str], key: str) -> bool:
    """Whether a command tells the trainer a key: by its placeholder, or with the whole config."""
    return any(f"{{{name}}}" in word for word in words for name in (key, *WHOLE_CONFIG))


def _oom_set(overrides: list[str], schema: Schema) -> str | None:
    try:
        nested = settings.nest([settings.parse(setting, schema, "item") for setting in overrides], schema)
    except KitError as error:
        return f"abort.oom_set holds what --set would refuse: {error}"
    found = schema.findings(nested)
    return f"abort.oom_set holds what --set would refuse: {found[0].sentence}" if found else None


def _command(config: Config) -> Broken | None:
    if config["trainer"].get("command"):
        return None
    return Broken(
        ("trainer.command",),
        "trainer.command is missing: without it nothing can be started; give it as a list, [python, train.py]",
    )


def _replay(config: Config) -> Broken | None:
    checkpoint, recover = config["checkpoint"], config["recover"]
    # Only save_checkpoint prunes; what a trainer of its own keeps is not ours to say.
    prunes = config["trainer"].get("loads_with_kit")
    if not recover["enabled"] or not prunes or checkpoint["keep_last"] is None:
        return None
    reach = checkpoint["keep_last"] * checkpoint["every"]
    if reach >= recover["replay_steps"]:
        return None
    return Broken(
        ("checkpoint.keep_last", "checkpoint.every", "recover.replay_steps"),
        f"checkpoint.keep_last x checkpoint.every is {checkpoint['keep_last']} x {checkpoint['every']} = {reach} steps,"
        f" less than recover.replay_steps {recover['replay_steps']}: a recovery goes back that far and needs a"
        f" checkpoint there; keep more, or replay less",
    )


def _copy(config: Config) -> Broken | None:
    trainer = config["trainer"]
    if not trainer.get("loads_with_kit") or not trainer.get("checkpoint_in"):
        return None
    return Broken(
        ("trainer.checkpoint_in", "trainer.loads_with_kit", "trainer.resume_args"),
        "trainer.checkpoint_in is set and trainer.loads_with_kit is true: a trainer that loads with the kit proves the"
        " very file that it is told of, and a copy would be another one; give it {checkpoint} in trainer.resume_args",
    )


def _cadence(config: Config) -> str | None:
    fast, full = (config["validation"].get(key) for key in ("fast_eval_every", "full_eval_every"))
    if fast is None or full is None or fast <= full:
        return None
    return (
        f"validation.fast_eval_every is {fast} and validation.full_eval_every {full}: fast evaluations are meant to be"
        f" the frequent ones, and full ones may wait for their improvement; --set full_eval_every=N changes that"
    )


def _warmup(config: Config) -> str | None:
    warmup, steps = config["schedule"].get("warmup_steps"), config["training"].get("max_steps")
    if warmup is None or steps is None or warmup < steps:
        return None
    return (
        f"schedule.warmup_steps is {warmup} and training.max_steps {steps}: the learning rate still rises when the"
        f" training ends, for a warm-up is never scaled by itself; --set warmup_steps=N shortens it"
    )


def _nan(config: Config) -> str | None:
    """Say before the first night that a NaN will wait for a person: the rate of this trainer cannot be cut."""
    trainer, recover = config["trainer"], config["recover"]
    is_cut = recover.get("enabled") and NONFINITE in (recover.get("cut_lr_on") or ())
    if not is_cut or recover.get("lr_args") is not None or trainer.get("loads_with_kit"):
        return None
    return (
        "a NaN needs a person: this trainer sets its own learning rate (trainer.loads_with_kit: false), so that no"
        " recovery can cut it; recover.lr_args hands it a cut one as an argument, such as [--lr, '{lr}']"
    )


def _schedule(config: Config) -> Broken | None:
    name = config["schedule"].get("name")
    if name is None or name in SCHEDULES or not config["trainer"].get("schedule_with_kit"):
        return None  # a schedule of the trainer's own has a name of its own
    return Broken(
        ("schedule.name", "trainer.schedule_with_kit"),
        f"schedule.name is {show(name)}, and trainer.schedule_with_kit says that the kit computes the schedule, as"
        f" one of {', '.join(SCHEDULES)}: take one of them, or set trainer.schedule_with_kit to false",
    )


def _divisors(config: Config, schema: Schema) -> Iterator[Broken]:
    """Yield a sentence for each key that does not divide the key that its schema names (`x-divides`)."""
    for key, node in schema.leaves.items():
        if (whole := node.get("x-divides")) is None:
            continue
        total, parts = _whole_number(config, whole), _whole_number(config, key)
        if total and parts and total % parts:
            sentence = f"{whole} {total} cannot be divided among {key} {parts}: take a multiple of {parts}"
            yield Broken((whole, key), sentence)


def _whole_number(config: Config, key: str) -> int | None:
    value = settings.get(config, key)
    return value if type(value) is int else None


def _swap(config: Config) -> Broken | None:
    step = config["optimizer"].get("swap_at")
    if step is None or config["optimizer"].get("swap_to"):
        return None
    return Broken(
        ("optimizer.swap_at", "optimizer.swap_to"),
        f"optimizer.swap_at is {step}, and optimizer.swap_to does not say to what; name an optimizer",
    )


def _names(config: Config) -> Broken | None:
    checkpoint, own = config["checkpoint"], config["paths"]
    if paths.step_of_name(checkpoint["best_pattern"], checkpoint["pattern"]) is not None:
        return Broken(
            ("checkpoint.best_pattern", "checkpoint.pattern"),
            f"checkpoint.best_pattern {show(checkpoint['best_pattern'])} would be read as a step of checkpoint.pattern"
            f" {show(checkpoint['pattern'])}: take another name for the best",
        )
    places = [own["checkpoints"], own["logs"], own["status"]]
    if len(set(places)) < len(places):
        shown = ", ".join(map(show, places))
        return Broken(
            ("paths.checkpoints", "paths.logs", "paths.status"),
            f"paths.checkpoints, paths.logs and paths.status are {shown}: each needs a name of its own",
        )
    return None


def _patterns(config: Config) -> Broken | None:
    for name, pattern in config["trainer"]["log_patterns"].items():
        key = f"trainer.log_patterns.{name}"
        try:
            groups = re.compile(pattern).groups if isinstance(pattern, str) else 1
        except (re.error, OverflowError, RecursionError) as error:
            return Broken((key,), f"{key} is {show(pattern)}, no regular expression: {error}")
        if not groups:
            return Broken((key,), f"{key} is {show(pattern)} and has no group: put what is to be read in (brackets)")
    return None


def _metrics_file(config: Config) -> Broken | None:
    key = "trainer.metrics_file"
    path = config["trainer"].get("metrics_file")
    if not isinstance(path, str):
        return None
    for name in re.findall(r"\{([^{}]*)\}", path):
        if name not in METRICS_PLACES:
            places = ", ".join(f"{{{one}}}" for one in METRICS_PLACES)
            return Broken((key,), f"{key} is {show(path)}: of {{...}} it may have {places}, and no {{{name}}}")
    if more := paths.unexpanded(path):
        return Broken((key,), f"{key} is {show(path)}{more}")
    return None
