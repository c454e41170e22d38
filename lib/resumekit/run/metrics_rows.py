"""What the records of a metrics file say: a step, its loss and rate, an evaluation; each once.

A record is a line of JSON, a row of a CSV file (of which most cells may be empty), or an entry of `log_history` in the
trainer_state.json of Hugging Face's Trainer. Names are known by what loggers call them. Pure.
Try it: `python -m pytest tests/test_metrics_file.py`
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping

from ..base.imports import Any
from ..base.paths import MAX_STEP
from ..base.values import count, items, mapping

# Of a record so many values are looked at, of an evaluation so many metrics kept.
MAX_VALUES, MAX_METRICS = 1000, 20

_STEP = frozenset({
    "step", "global_step", "_step", "iter", "iteration", "iter_num", "train_global_step", "train_step",
    "trainer_global_step", "optimizer_step",
})  # fmt: skip
_LOSS = frozenset({
    "loss", "train_loss", "training_loss", "loss_step", "train_loss_step", "lm_loss", "train_lm_loss",
    "loss_metrics_global_avg_loss",
})  # fmt: skip
_LR = re.compile(r"(?:train_|optim_)?(?:lr|learning_rate)(?:_(?!scale|schedule).*)?")
_EPOCH = frozenset({"epoch", "train_epoch"})
_EVALUATION = re.compile(
    r"(?:eval|val|valid|validation|test)_(?!.*(?:runtime|per_second|_time$|samples|steps|epoch$)).+"
)
# The last entry of a log_history is of the whole run: its loss is a mean over it.
_OF_RUN = "train_runtime"
Row = dict[str, Any]


class MetricsRows:
    """Tells what is new in records that may be read again.

    Args:
        saved: the account of the reader before this one; values out of a file.
    """

    def __init__(self, saved: Any = None) -> None:
        known = mapping(saved)
        self._step, self._names = count(known.get("step")), set(map(str, items(known.get("names"))[:MAX_METRICS]))
        self._best: Any = known.get("best")
        self._max_steps = count(known.get("max_steps"))

    @property
    def account(self) -> dict[str, Any]:
        """Return what a successor goes on from, as plain values."""
        names = sorted(self._names)[:MAX_METRICS]
        return {"step": self._step, "names": names, "best": self._best, "max_steps": self._max_steps}

    def new(self, records: Iterable[Any]) -> Iterator[Row]:
        """Yield what is new in records: values of a step, and evaluations (`event` is 'eval').

        A step tells each name once; one before the last is known already.
        """
        for record in records:
            values = _numbers(record)
            step = next((int(values[key]) for key in values if key in _STEP and _is_step(values[key])), None)
            if step is None or _OF_RUN in values or (self._step is not None and step < self._step):
                continue
            if step != self._step:
                self._step, self._names = step, set()
            fresh = {key: value for key, value in values.items() if key not in self._names}
            self._names |= {key for key in fresh if len(self._names) < MAX_VALUES}
            scores = [(key, value) for key, value in fresh.items() if _EVALUATION.fullmatch(key)]
            told = _of_step(fresh)
            if fresh and (not scores or told.keys() - {"epoch"}):
                yield {"step": step, **told}
            if scores:
                yield {"event": "eval", "step": step, "metrics": dict(scores[:MAX_METRICS])}

    def of_document(self, document: Any) -> Iterator[Row]:
        """Yield what is new in a trainer_state.json: its history, the best, how many steps there will be."""
        known = mapping(document)
        most = count(known.get("max_steps"))
        for row in self.new(items(known.get("log_history"))):
            if most and most != self._max_steps and "event" not in row and row["step"] <= most:
                self._max_steps = most
                row["max_steps"] = most
            yield row
        step, score = count(known.get("best_global_step")), _number(known.get("best_metric"))
        if step is not None and score is not None and math.isfinite(score) and [step, score] != self._best:
            self._best = [step, score]
            yield {"event": "best", "step": step, "score": score}


def _of_step(values: Mapping[str, float]) -> Row:
    """Return the values of a step under the journal's names."""
    told: Row = {}
    for key, value in values.items():
        name = "loss" if key in _LOSS else "lr" if _LR.fullmatch(key) else "epoch" if key in _EPOCH else ""
        if name == "epoch" and 0 <= value < MAX_STEP:
            told.setdefault("epoch", int(value))
        elif name == "loss" or (name == "lr" and math.isfinite(value)):
            told.setdefault(name, value)
    return told


def _numbers(record: Any) -> dict[str, float]:
    """Return the numbers of a record by their names in one form; those of an object inside by both names."""
    found: dict[str, float] = {}
    for key, value in mapping(record).items():
        inner = value.items() if isinstance(value, dict) else ((None, value),)
        for more, one in inner:
            number = _number(one)
            if number is not None and len(found) < MAX_VALUES:
                name = f"{key}_{more}" if more is not None else str(key)
                found[re.sub(r"[^a-z0-9]+", "_", name[:200].lower()) if name != "_step" else name] = number
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _is_step(value: float) -> bool:
    return 0 <= value < MAX_STEP and value == int(value)
