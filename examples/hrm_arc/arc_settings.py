"""The trainer's settings: its own defaults, then the resolved config's values, then the flags.

Reads the JSON file that `--config` names; keys that are not listed here belong to the launcher and are passed over.
Writes nothing. Try it: `python examples/hrm_arc/arc_settings.py`
"""

from __future__ import annotations

import json
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
        "puzzle_weight_decay": 0.1, "swap_at": None,
    },
    "schedule": {"name": "cosine", "warmup_steps": 100, "min_lr_ratio": 0.1, "tail": None},
    "ema": {"enabled": True, "decay": 0.99},
    "swa": {"enabled": False},
    "validation": {
        "fast_eval_every": 100, "full_eval_every": 500, "gate_full_eval_on_fast_improvement": True,
        "fast_fraction": 0.02, "best_metric": "cell_accuracy", "best_mode": "max",
    },
    "checkpoint": {
        "every": 50, "keep_last": 5, "keep_every": None, "pattern": "hrm_arc_step_{step}.pt",
        "best_pattern": "hrm_arc_best.pt",
    },
    "status": {"interval_s": 60},
}  # fmt: skip

# What a config may ask for and this version cannot do: said, never passed over in silence.
_LATER = {
    ("optimizer", "name"): ("adamw",),
    ("optimizer", "swap_at"): (None,),
    ("schedule", "name"): ("cosine",),  # min_lr_ratio 1 makes it constant
    ("schedule", "tail"): (None,),
    ("swa", "enabled"): (False,),
    ("training", "amp"): ("off", "bf16"),
    ("training", "grad_noise_sigma"): (0,),
    ("model", "droppath_h"): ("0", "0..0"),
    ("model", "aux_rule_head"): (False,),
}
_POSITIVE = {
    "data": ("max_grid", "variants"),
    "model": ("seq_len", "hidden_size", "layers", "heads", "h_cycles", "l_cycles", "halt_max_steps"),
    "training": ("max_steps", "batch_size", "grad_accum_steps", "log_every"),
    "validation": ("fast_eval_every", "full_eval_every"),
    "checkpoint": ("every",),
}  # fmt: skip


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


def _check(sections: dict[str, dict[str, Any]]) -> None:
    for (name, key), known in _LATER.items():
        value = sections[name][key]
        if value not in known:
            choices = " or ".join(f"'{choice}'" for choice in known)
            raise SettingsError(f"{name}.{key} '{value}' comes with a later version; for now set it to {choices}")
    for name, keys in _POSITIVE.items():
        for key in keys:
            value = sections[name][key]
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SettingsError(f"{name}.{key} is '{value}' and must be a whole number of at least 1")
    model, data, validation = sections["model"], sections["data"], sections["validation"]
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
    if validation["best_metric"] not in ("accuracy", "cell_accuracy", "loss"):
        raise SettingsError(
            f"validation.best_metric '{validation['best_metric']}' is not measured; take 'accuracy' (whole grids), "
            "'cell_accuracy' or 'loss'"
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
