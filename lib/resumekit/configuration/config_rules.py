"""Rules about settings that only make sense together, each with its reason.

Reads nothing. Try it: `python lib/config_resolver.py --logdir /tmp/look --set checkpoint.keep_last=2`
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..basics import paths
from ..basics.errors import KitError
from . import schema_checks, settings
from .schema import Schema
from .yaml_scalars import show

Config = dict[str, Any]


def broken(config: Config, schema: Schema) -> Iterator[str]:
    """Yield one sentence for each rule that a resolved config breaks; a key that is absent breaks none."""
    for rule in (_command, _copy, _replay, _cadence, _warmup, _heads, _swap, _names, _patterns):
        if sentence := rule(config):
            yield sentence
    if sentence := _oom_set(config["abort"]["oom_set"], schema):
        yield sentence


def _oom_set(overrides: list[str], schema: Schema) -> str | None:
    try:
        nested = settings.nest([settings.parse(setting, schema, "item") for setting in overrides], schema)
    except KitError as error:
        return f"abort.oom_set holds what --set would refuse: {error}"
    found = schema_checks.problems(nested, schema) if nested else []
    return f"abort.oom_set holds what --set would refuse: {found[0][1]}" if found else None


def _command(config: Config) -> str | None:
    if config["trainer"].get("command"):
        return None
    return "trainer.command is missing: without it nothing can be started; give it as a list, [python, train.py]"


def _replay(config: Config) -> str | None:
    checkpoint, recover = config["checkpoint"], config["recover"]
    # Only save_checkpoint prunes; what a trainer of its own keeps is not ours to say.
    prunes = config["trainer"].get("loads_with_kit")
    if not recover["enabled"] or not prunes or checkpoint["keep_last"] is None:
        return None
    reach = checkpoint["keep_last"] * checkpoint["every"]
    if reach >= recover["replay_steps"]:
        return None
    return (
        f"checkpoint.keep_last x checkpoint.every is {checkpoint['keep_last']} x {checkpoint['every']} = {reach} steps,"
        f" less than recover.replay_steps {recover['replay_steps']}: a recovery goes back that far and needs a"
        f" checkpoint there; keep more, or replay less"
    )


def _copy(config: Config) -> str | None:
    trainer = config["trainer"]
    if not trainer.get("loads_with_kit") or not trainer.get("checkpoint_in"):
        return None
    return (
        "trainer.checkpoint_in is set and trainer.loads_with_kit is true: a trainer that loads with the kit proves the"
        " very file that it is told of, and a copy would be another one; give it {checkpoint} in trainer.resume_args"
    )


def _cadence(config: Config) -> str | None:
    fast, full = (config["validation"].get(key) for key in ("fast_eval_every", "full_eval_every"))
    if fast is None or full is None or fast <= full:
        return None
    return (
        f"validation.fast_eval_every is {fast} and validation.full_eval_every {full}: fast evaluations are the frequent"
        f" ones, and full ones wait for their improvement; make the first at most the second"
    )


def _warmup(config: Config) -> str | None:
    warmup, steps = config["schedule"].get("warmup_steps"), config["training"].get("max_steps")
    if warmup is None or steps is None or warmup < steps:
        return None
    return (
        f"schedule.warmup_steps is {warmup} and training.max_steps {steps}: the learning rate would still be rising"
        f" when the training ends; warm up for fewer steps than there are"
    )


def _heads(config: Config) -> str | None:
    width, heads = config["model"].get("hidden_size"), config["model"].get("heads")
    if not width or not heads or width % heads == 0:
        return None
    return (
        f"model.hidden_size {width} cannot be divided among model.heads {heads}: take a multiple of the number of heads"
    )


def _swap(config: Config) -> str | None:
    step = config["optimizer"].get("swap_at")
    if step is None or config["optimizer"].get("swap_to"):
        return None
    return f"optimizer.swap_at is {step}, and optimizer.swap_to does not say to what; name an optimizer"


def _names(config: Config) -> str | None:
    checkpoint, own = config["checkpoint"], config["paths"]
    if paths.step_of_name(checkpoint["best_pattern"], checkpoint["pattern"]) is not None:
        return (
            f"checkpoint.best_pattern {show(checkpoint['best_pattern'])} would be read as a step of checkpoint.pattern"
            f" {show(checkpoint['pattern'])}: take another name for the best"
        )
    places = [own["checkpoints"], own["logs"], own["status"]]
    if len(set(places)) < len(places):
        shown = ", ".join(map(show, places))
        return f"paths.checkpoints, paths.logs and paths.status are {shown}: each needs a name of its own"
    return None


def _patterns(config: Config) -> str | None:
    for name, pattern in config["trainer"]["log_patterns"].items():
        try:
            groups = re.compile(pattern).groups if isinstance(pattern, str) else 1
        except (re.error, OverflowError, RecursionError) as error:
            return f"trainer.log_patterns.{name} is {show(pattern)}, no regular expression: {error}"
        if not groups:
            return (
                f"trainer.log_patterns.{name} is {show(pattern)} and has no group: put what is to be read in (brackets)"
            )
    return None
