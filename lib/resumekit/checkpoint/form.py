"""How a run's checkpoints are named, what each consists of, and under which names its state lies inside.

That is the section `checkpoint` of its config, read in bounds: a config may be another program's. Reads and writes no
file. Try it: `python lib/resume_helper.py --ckpt_dir checkpoints --dry-run`
"""

from __future__ import annotations

import os
import re

from ..base.imports import Any, NamedTuple
from ..base.paths import ANYTHING, STEP, STEP_DIGITS, default_patterns, step_form
from ..base.values import mapping, one_of, string, strings

# What a checkpoint can be on disk; with `auto` its own files say which one it is.
AUTO = "auto"
FILE, SAFETENSORS, OTHER = "file", "safetensors", "other"
HF, ACCELERATE, DCP, FOLDER = "hf", "accelerate", "dcp", "folder"
KINDS = (AUTO, FILE, SAFETENSORS, HF, ACCELERATE, DCP, FOLDER, OTHER)

# How the names of files end in which a framework keeps weights, moments and the like.
SAFETENSORS_SUFFIX = ".safetensors"
ARCHIVE_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
STATE_SUFFIXES = (*ARCHIVE_SUFFIXES, SAFETENSORS_SUFFIX)

# So often {*} may stand in a pattern: each multiplies the ways in which a long name is tried.
MAX_ANYTHING = 3

_kind = one_of(KINDS)


class Keys(NamedTuple):
    """`checkpoint.keys`: under which names a checkpoint keeps its state; None: the usual ones are tried."""

    weights: str | None = None
    optimizer: str | None = None
    step: str | None = None


class Form(NamedTuple):
    """The section `checkpoint` of a config, as far as it says what a checkpoint is.

    Args:
        pattern: `checkpoint.pattern`. With {step} each step has a name of its own; without, one name is written again
            and again, and the step stands inside.
        best_pattern: `checkpoint.best_pattern`.
        kind: `checkpoint.kind`, one of KINDS.
        complete_when: the file that a whole folder has; None where the kind knows by itself.
        companions: `checkpoint.with`: names of the files that belong to it, with {step} in them.
        keys: `checkpoint.keys`.
        follow_links: `checkpoint.follow_links`.
    """

    pattern: str
    best_pattern: str
    kind: str = AUTO
    complete_when: str | None = None
    companions: tuple[str, ...] = ()
    keys: Keys = Keys()
    follow_links: bool = False

    @property
    def is_fixed(self) -> bool:
        """Whether all steps have one name, so that the content says which one it is."""
        return STEP not in self.pattern

    @property
    def step_pattern(self) -> str:
        """The pattern of names that have a step: of a fixed name that of the copies which the sidecar keeps."""
        return kept_pattern(self.pattern) if self.is_fixed else self.pattern

    def step_of(self, name: str) -> int | None:
        """Return the step in a name; None for one without, or that is not of this form."""
        match = step_form(self.step_pattern).fullmatch(name)
        return int(match[1]) if match else None

    def is_one(self, name: str) -> bool:
        """Whether a name is that of a checkpoint: of a step, of all steps, or of the best."""
        return name in (self.best_pattern, self.pattern) or self.step_of(name) is not None

    def is_part(self, name: str) -> bool:
        """Whether a name is that of a checkpoint of a step, or of a file that belongs to one (`companions`)."""
        if self.step_of(name) is not None or name == self.pattern:
            return True
        return any(step_form(one).fullmatch(name) for one in self.companions)

    def companions_of(self, name: str) -> tuple[str, ...]:
        """Return the names of the files that belong to the checkpoint of this name, beside its own."""
        match = step_form(self.step_pattern).fullmatch(name)
        if match is None:
            return ()
        step: str = match[1]  # as it is written there, with its zeros
        return tuple(step.join(one.split(STEP)) for one in self.companions)


def kept_pattern(fixed: str) -> str:
    """Return the pattern of the copies that are kept of a checkpoint with a fixed name: ckpt.pt -> ckpt@{step}.pt."""
    stem, dot, suffix = fixed.rpartition(".")
    return f"{stem}@{STEP}{dot}{suffix}" if dot and stem else f"{fixed}@{STEP}"


# A number behind one of these is the step, and behind one of those another one in each name.
_COUNTS_STEPS = r"(?i)(?:step|iter|iteration)s?[^a-z0-9]?$"
_CHANGES = r"(?i)(?:=|epoch[_-]?|loss[_-]?|acc(?:uracy)?[_-]?)$"


def likely_pattern(name: str) -> str | None:
    """Return the pattern that a checkpoint's name would fit; None for a name without a number that can be a step.

    'epoch=3-step=400.ckpt' -> 'epoch={*}-step={step}.ckpt'. Numbers that may be a part of every name stay.
    """
    end = len(os.path.splitext(name)[0]) if not name.rpartition(".")[2].isdigit() else len(name)
    found = list(re.finditer(r"[0-9]+(?:\.[0-9]+)?", name[:end]))
    steps = [one for one in found if one[0].isdigit() and len(one[0]) <= STEP_DIGITS]
    step = next((one for one in reversed(steps) if re.search(_COUNTS_STEPS, name[: one.start()])), None)
    step = step or (steps[-1] if steps and steps[-1] is found[-1] else None)
    if step is None:
        return None
    pattern, at, left = "", 0, MAX_ANYTHING
    for one in found:
        is_other = one is not step and left > 0 and re.search(_CHANGES, name[: one.start()]) is not None
        left -= is_other
        pattern += name[at : one.start()] + (STEP if one is step else ANYTHING if is_other else one[0])
        at = one.end()
    return pattern + name[at:]


def of(section: Any) -> Form:
    """Return the form that the section `checkpoint` of a config says; what is not of its type has its default."""
    known = mapping(section)
    pattern, best = _file_name(known.get("pattern")), _file_name(known.get("best_pattern"))
    defaults = default_patterns() if pattern is None or best is None else ("", "")
    names, complete = mapping(known.get("keys")), _inner_name(known.get("complete_when"))
    return Form(
        pattern=pattern or defaults[0],
        best_pattern=best or defaults[1],
        kind=_kind(known.get("kind")) or AUTO,
        complete_when=complete,
        companions=tuple(name for name in strings(known.get("with")) if _file_name(name)),
        keys=Keys(**{name: string(names.get(name)) for name in Keys._fields}),
        follow_links=known.get("follow_links") is True,
    )


def _file_name(value: Any) -> str | None:
    name = string(value)
    return name if name and "/" not in name and "\0" not in name and name not in (".", "..") else None


def _inner_name(value: Any) -> str | None:
    """Return a path inside a folder; None for any that could lead out of it."""
    name = string(value)
    return name if name and not re.search(r"(^|/)(\.\.?)?(/|$)|\0", name) else None
