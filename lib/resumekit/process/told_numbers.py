"""From what a log and a metrics file tell to the journal's events: each thing once, in the order of the training.

For trainers that journal nothing themselves. Pure but for the clock; the fold of the journal says what is known.
Try it: `python -m pytest tests/test_told_numbers.py`
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator

from ..base.imports import Any
from ..base.values import mapping, string, strings
from ..run.run_folder import Run
from .sidecar_state import StepOrder

# Values of no step (a bar that counts anew in each epoch) are journaled no more often.
LIVE_S = 10.0
# What a metrics file says beside a step, where the log says the same: the log is the newer one.
_VALUES = ("loss", "lr")

Event = tuple[str, dict[str, Any]]


class ToldNumbers:
    """Makes the events of one run.

    Args:
        run: for what counts as better (`validation.best_metric`, `best_mode`).
        repeats_until: byte offset in the output up to which lines may have been dealt with by a predecessor.
        saved: the account of that one; values out of a file.
    """

    def __init__(self, run: Run, repeats_until: int, saved: Any = None) -> None:
        self._order = StepOrder(repeats_until, run.parent_step)
        self._repeats_until = repeats_until
        self._metric = string(run.setting("validation", "best_metric"))
        self._mode = string(run.setting("validation", "best_mode"))
        known = mapping(saved)
        self._is_of_file = known.get("is_of_file") is True  # the steps are told by the metrics file
        self._log_says = set(_VALUES).intersection(filter(None, strings(known.get("log_says"))))
        self._live_s = float("-inf")
        self._evaluated: tuple[int, set[str]] = (-1, set())
        self._best: float | None = None

    @property
    def account(self) -> dict[str, Any]:
        """Return what a successor goes on from, as plain values."""
        return {"is_of_file": self._is_of_file, "log_says": sorted(self._log_says)}

    def of_log(self, found: list[dict[str, Any]], state: dict[str, Any], read_from: int) -> Iterator[Event]:
        """Yield the events for what a log tells.

        Args:
            found: as `LogFollower.pump` returns it.
            state: the folded journal.
            read_from: byte offset in the output from which on it was read.
        """
        last = state.get("step", -1)
        if len(self._log_says) < len(_VALUES):
            self._log_says.update(name for one in found for name in _VALUES if name in one)
        if not any("event" in one for one in found) and not self._is_of_file:
            yield from (("step", fields) for fields in self._order.new(found, last, read_from))
            return
        is_repeated = read_from < self._repeats_until
        for one in found:
            kind = one.get("event", "step")
            fields = {key: value for key, value in one.items() if key != "event"}
            if kind == "step" and (not self._is_of_file or fields["step"] > last):
                events: Iterable[Event] = (("step", new) for new in self._order.new([fields], last, read_from))
            elif kind in ("step", "values"):
                events = self._values(fields, last, read_from, is_repeated=is_repeated)
            else:
                events = self._other(kind, fields, state, is_repeated=is_repeated)
            for event in events:
                last = event[1]["step"] if event[0] == "step" else last
                yield event

    def of_file(self, rows: Iterable[dict[str, Any]], state: dict[str, Any]) -> Iterator[Event]:
        """Yield the events for what a metrics file tells: its steps count where the log tells none.

        Args:
            rows: as `MetricsFollower.read` returns them.
            state: the folded journal.
        """
        last = state.get("step", -1)
        for row in rows:
            kind = row.get("event", "values")
            fields = {key: value for key, value in row.items() if key != "event"}
            if kind != "values":
                yield from self._other(kind, fields, state, is_repeated=False)
            elif self._is_of_file if fields["step"] == last else self._may_tell(fields["step"], last, state):
                self._is_of_file, last = True, fields["step"]
                yield "step", fields
            elif values := {name: fields[name] for name in _VALUES if self._is_news(name, fields)}:
                yield "heartbeat", {"global_step": min(fields["step"], max(last, 0)), **values}

    def _may_tell(self, step: int, last: int, state: dict[str, Any]) -> bool:
        """Whether a later step of the file is the run's: of two that tell steps only one does."""
        return step > last and (self._is_of_file or not state.get("has_stepped"))

    def _is_news(self, name: str, fields: dict[str, Any]) -> bool:
        """Whether a value of a step that is known already says what the log does not."""
        return name in fields and (name not in self._log_says or not math.isfinite(fields[name]))

    def _values(self, fields: dict[str, Any], last: int, read_from: int, *, is_repeated: bool) -> Iterator[Event]:
        """Yield the event for values whose step may be known already."""
        if fields["step"] > last:
            yield from (("step", new) for new in self._order.new([fields], last, read_from))
            return
        is_bad = not math.isfinite(fields.get("loss", 0.0))
        if fields["step"] == last and (is_bad or not is_repeated):
            yield "step", fields
        elif is_bad:
            yield "heartbeat", {"global_step": fields["step"], "loss": fields["loss"]}

    def _other(self, kind: str, fields: dict[str, Any], state: dict[str, Any], *, is_repeated: bool) -> Iterator[Event]:
        if kind == "format":
            yield "log_format", {**fields, "message": _format_words(fields)}
        elif kind == "nonfinite" and "step" in fields:
            yield kind, fields
        elif kind == "nonfinite":
            known = [fields["after"], *(state.get(key) for key in ("step", "last_checkpoint_step", "resumed_step"))]
            after = max((step for step in known if step is not None), default=-1)
            yield kind, {"step": after + 1, "what": "loss on lines without a step"}
        elif kind == "live":
            now = time.monotonic()
            if now - self._live_s >= LIVE_S and fields:
                self._live_s = now
                yield "heartbeat", fields
        elif kind == "eval":
            if not (is_repeated and fields["step"] <= state.get("last_full_eval_step", -1)):
                yield from self._evaluation(fields, state)
        elif kind == "best" and self._is_better(fields["score"], fields.get("metric"), state, is_said=True):
            yield "best", {"weights": "raw", **fields}

    def _evaluation(self, fields: dict[str, Any], state: dict[str, Any]) -> Iterator[Event]:
        """Yield an evaluation once, however many tell of it, and the best if it is one."""
        step, metrics = fields["step"], fields.get("metrics", {})
        names = set(metrics) or {"score"}
        if step == self._evaluated[0] and names <= self._evaluated[1]:
            return
        self._evaluated = (step, names | (self._evaluated[1] if step == self._evaluated[0] else set()))
        name = _chosen(metrics, self._metric)
        score = metrics[name] if name else fields.get("score")
        more = {"metric": name or self._metric, "score": score, **({"metrics": metrics} if metrics else {})}
        accuracy = next((metrics[one] for one in metrics if one.endswith("accuracy")), None)
        more |= {} if accuracy is None else {"accuracy": accuracy}
        event = {"step": step, "weights": "raw", **more}
        event["kind"] = "full"
        yield "eval", event
        is_of_metric = self._metric is None or not metrics or (name is not None and _is_named(name, self._metric))
        if score is not None and is_of_metric and self._is_better(score, more["metric"], state):
            yield "best", {"step": step, "score": score, "weights": "raw", "metric": more["metric"]}

    def _is_better(self, score: float, metric: str | None, state: dict[str, Any], *, is_said: bool = False) -> bool:
        """Whether a score is the best so far; one that the trainer calls so is it, if it is another one."""
        if self._best is None and state.get("tellers", {}).get("best_eval_acc") == "log":
            self._best = state.get("best_eval_acc")
        if not math.isfinite(score) or score == self._best:
            return False
        is_less = self._mode == "min" if self._mode else _is_a_loss(metric or "")
        if not is_said and self._best is not None and (score > self._best) == is_less:
            return False
        self._best = score
        return True


def _chosen(metrics: dict[str, float], wanted: str | None) -> str | None:
    """Return the metric by which an evaluation is scored: the config's, else a loss, else its first one."""
    if wanted and (found := next((one for one in metrics if _is_named(one, wanted)), None)):
        return found
    return next((one for one in metrics if one.lower().endswith("loss")), next(iter(metrics), None))


def _is_named(metric: str, wanted: str) -> bool:
    return metric == wanted or metric.endswith(f"_{wanted}")


def _is_a_loss(metric: str) -> bool:
    return any(word in metric.lower() for word in ("loss", "perplexity", "ppl", "error", "wer", "mse", "mae"))


def _format_words(fields: dict[str, Any]) -> str:
    return (
        f"the log is read as one of {fields['framework']} (trainer.log_format: {fields['format']}), "
        f"by its line '{fields['line']}'; trainer.log_format or trainer.log_patterns say otherwise"
    )
