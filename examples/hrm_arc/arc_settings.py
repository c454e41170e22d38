"""The trainer's settings: its own defaults, then the resolved config's values, then the flags.

Reads the JSON file that `--config` names; keys that are not listed here belong to the launcher and are passed over.
Writes nothing. Try it: `python examples/hrm_arc/arc_settings.py`
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MAX_CONFIG_BYTES = 1 << 20

# Started by hand without a config, this is the small run for one CPU core.
DEFAULTS: dict[str, dict[str, Any]] = {
    "experiment": {"name": "EXP-01"},
    "data": {
        "name": "arc-agi-1", "path": None, "version": "arcagi", "max_grid": 10, "augment": True, "translate": True,
        "variants": 8, "subset": None,
    },
    "model": {
        "seq_len": 100, "hidden_size": 64, "layers": 1, "heads": 2, "expansion": 4.0, "h_cycles": 2, "l_cycles": 2,
        "halt_max_steps": 4, "halt_exploration": 0.1, "puzzle_emb_dim": None, "dropout": 0.0, "droppath_h": "0",
        "aux_rule_head": False,
    },
    "training": {
        "seed": 1, "max_steps": 2000, "batch_size": 8, "grad_accum_steps": 2, "grad_clip": 1.0,
        "grad_noise_sigma": 0.0, "amp": "off", "device": "cpu", "threads": 1, "log_every": 20,
    },
    "optimizer": {
        "name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "betas": [0.9, 0.95], "puzzle_lr": 1e-2,
        "puzzle_weight_decay": 0.1, "swap_at": None, "swap_to": "lion", "swap_weight_decay": 0.01,
    },
    "schedule": {"name": "cosine", "warmup_steps": 100, "min_lr_ratio": 0.1, "tail": None},
    "ema": {"enabled": True, "decay": 0.99},
    "swa": {
        "enabled": False, "start_step": 50000, "start_on_stall": True, "lr": None, "amplitude": 0.1,
        "cycle_steps": 1000,
    },
    "validation": {
        "fast_eval_every": 100, "full_eval_every": 500, "gate_full_eval_on_fast_improvement": True,
        "fast_fraction": 0.02, "best_metric": "cell_accuracy", "best_mode": "max",
    },
    "checkpoint": {
        "every": 50, "keep_last": 5, "keep_every": None, "pattern": "hrm_arc_step_{step}.pt",
        "best_pattern": "hrm_arc_best.pt",
    },
    "status": {"interval_s": 60},
    "resume": {"optimizer": "auto"},
}  # fmt: skip

# What a config may ask for and this version cannot do: said, never passed over in silence.
_LATER = {
    ("schedule", "name"): ("cosine",),  # min_lr_ratio 1 makes it constant
    ("schedule", "tail"): (None,),
}
_OPTIMIZERS = ("adamw", "lion", "sgd")
_CHOICES = {
    ("optimizer", "name"): _OPTIMIZERS,
    ("optimizer", "swap_to"): _OPTIMIZERS,
    ("training", "amp"): ("off", "bf16", "fp16"),
    ("validation", "best_mode"): ("max", "min"),
}
_POSITIVE = {
    "data": ("max_grid", "variants"),
    "model": ("seq_len", "hidden_size", "layers", "heads", "h_cycles", "l_cycles", "halt_max_steps"),
    "training": ("max_steps", "batch_size", "grad_accum_steps", "log_every"),
    "validation": ("fast_eval_every", "full_eval_every"),
    "checkpoint": ("every",),
    "swa": ("cycle_steps",),
}  # fmt: skip
_FROM_ZERO = {("training", "grad_noise_sigma"): math.inf, ("swa", "start_step"): math.inf, ("swa", "amplitude"): 1}


class SettingsError(ValueError):
    """The settings cannot be used; the message is a whole sentence."""

    exit_code = 2


def load_settings(config: str | None, flags: dict[tuple[str, str], Any]) -> SimpleNamespace:
    """Return the settings, one namespace per section: `settings.training.batch_size`.

    Args:
        config: path of the resolved config (JSON), or None for the defaults alone.
        flags: values given on the command line, by (section, key); None where a flag was not given.

    Raises:
        SettingsError: the file cannot be read, or a value asks for what is not there.
    """
    sections = {name: dict(section) for name, section in DEFAULTS.items()}
    given = _read(Path(config)) if config else {}
    for name, section in sections.items():
        theirs = given.get(name, {})
        if not isinstance(theirs, dict):
            raise SettingsError(f"'{name}' in '{config}' is not a section; write it as an object")
        section.update((key, value) for key, value in theirs.items() if key in section)
    for (name, key), value in flags.items():
        if value is not None:
            sections[name][key] = value
    _check(sections)
    return SimpleNamespace(**{name: SimpleNamespace(**section) for name, section in sections.items()})


def droppath_range(text: Any) -> tuple[float, float]:
    """Return the first and last probability of '0..0.2', or twice that of '0.1'.

    Raises:
        SettingsError: it is neither, or not at least 0 and below 1.
    """
    first, _, last = str(text).partition("..")
    try:
        found = float(first), float(last or first)
    except ValueError:
        found = (-1.0, -1.0)
    if not all(0 <= probability < 1 for probability in found):
        raise SettingsError(
            f"model.droppath_h is '{text}' and must be a probability below 1 such as '0.1', or a range such as '0..0.2'"
        )
    return found


def _check(sections: dict[str, dict[str, Any]]) -> None:
    _check_choices(sections)
    _check_numbers(sections)
    _check_together(sections)


def _check_choices(sections: dict[str, dict[str, Any]]) -> None:
    for known, reason in ((_LATER, "comes with a later version; for now set it to"), (_CHOICES, "is not known; take")):
        for (name, key), values in known.items():
            value = sections[name][key]
            if value not in values:
                choices = " or ".join(f"'{choice}'" for choice in values)
                raise SettingsError(f"{name}.{key} '{value}' {reason} {choices}")
    metric = sections["validation"]["best_metric"]
    if metric not in ("accuracy", "cell_accuracy", "loss"):
        raise SettingsError(
            f"validation.best_metric '{metric}' is not measured; take 'accuracy' (whole grids), 'cell_accuracy' or "
            "'loss'"
        )


def _check_numbers(sections: dict[str, dict[str, Any]]) -> None:
    for name, keys in _POSITIVE.items():
        for key in keys:
            value = sections[name][key]
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SettingsError(f"{name}.{key} is '{value}' and must be a whole number of at least 1")
    for (name, key), most in _FROM_ZERO.items():
        value = sections[name][key]
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= most:
            limit = f"from 0 to {most}" if math.isfinite(most) else "of at least 0"
            raise SettingsError(f"{name}.{key} is '{value}' and must be a number {limit}")
    droppath_range(sections["model"]["droppath_h"])


def _check_together(sections: dict[str, dict[str, Any]]) -> None:
    model, data, optimizer, swa = (sections[name] for name in ("model", "data", "optimizer", "swa"))
    if model["seq_len"] != data["max_grid"] ** 2:
        raise SettingsError(
            f"model.seq_len '{model['seq_len']}' must be data.max_grid squared, '{data['max_grid'] ** 2}': "
            "a grid is written into a square of max_grid cells a side"
        )
    if model["hidden_size"] % (2 * model["heads"]):
        raise SettingsError(
            f"model.hidden_size '{model['hidden_size']}' must be a multiple of twice model.heads '{model['heads']}': "
            "rotary positions turn pairs within a head"
        )
    if swa["enabled"] and swa["lr"] is not None and not optimizer["lr"]:
        raise SettingsError(
            f"swa.lr '{swa['lr']}' is reached by a factor on optimizer.lr, which is '{optimizer['lr']}': set that above"
            " 0, or swa.lr to null"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("not a regular file of at most 1 MiB")
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"the config '{path}' (--config) cannot be read: {error}") from error
    return document


if __name__ == "__main__":
    print(json.dumps(DEFAULTS, indent=2))
