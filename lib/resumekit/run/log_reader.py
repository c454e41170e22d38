"""Reads a log in the format of a framework: what it tells of steps, losses, rates, evaluations, and whose it is.

Which format it is is found in the first lines, where the config names none. A bar that overwrites itself is read state
by state. A value on a line without a step is of the step beside it; of several ranks one makes the curve, and a loss
that is not finite counts in each. Pure: bytes in, what they tell out.
Try it: `python -m pytest tests/test_log_reader.py`
"""

from __future__ import annotations

import math
import re

from ..base.imports import Any, NamedTuple
from ..base.paths import MAX_STEP
from ..base.values import count, mapping, string
from . import log_patterns
from .log_formats import AUTO, FORMATS, NONE, YIELDS, Format
from .log_patterns import MAX_LINE_BYTES
from .rank_lines import SURE_TOLD, RankLosses, as_rank

# A format is looked for in so much of a log, its bars included.
LOOKED_AT_BYTES = 2 << 20
# Metrics of which an account is kept.
MAX_METRICS = 20
# A value whose step is still to come gets the one before it, if so many readings have not brought another.
MAX_WAITS = 2
_SHOWN_BYTES = 120

# What a launcher of several processes puts before each line: torchrun, mpirun --tag-output, srun --label.
_RANK = rb"(?:(?:\[[A-Za-z_]{0,20}[0-9]{1,6}\]:|\[[0-9]{1,4},[0-9]{1,6}\]<std(?:out|err)>:| {0,4}[0-9]{1,6}:) ?){1,3}"
_RANKS = re.compile(rb"^" + _RANK, re.MULTILINE)
# Of an evaluation, but no score: how long it took, how fast it was.
_NO_SCORE = re.compile(r"runtime|per_second|_time\b|samples|steps|epoch|batch|model_preparation")

# (kind, fields): "step", a step is done; "values" of a step that may be known already; "eval"; "best"; "nonfinite", a
# loss of another rank, or on lines without a step, `after` the step seen last; "live", values of no step; "format",
# once it is found.
Told = tuple[str, dict[str, Any]]


class _Compiled(NamedTuple):
    """A format ready for use; an expression that it does not have is None."""

    format: Format
    hits: re.Pattern[bytes]
    patterns: log_patterns.Patterns
    bar: re.Pattern[bytes] | None
    total: re.Pattern[bytes] | None
    evaluation: re.Pattern[bytes] | None
    metric: re.Pattern[bytes] | None
    best: re.Pattern[bytes] | None
    lost: re.Pattern[bytes] | None


def _compiled(name: str) -> _Compiled:
    own = FORMATS[name]
    hits = rb"^(" + _RANK + rb")?((?:" + own.begins.encode() + rb")[^\n]{0,%d})" % MAX_LINE_BYTES
    words = {key: text for key in ("step", "loss", "lr", "epoch") if (text := getattr(own, key))}
    others = ("bar", "total", "evaluation", "metric", "best", "lost")
    ready = {key: re.compile(text.encode()) if (text := getattr(own, key)) else None for key in others}
    return _Compiled(own, re.compile(hits, re.MULTILINE), log_patterns.compiled(words), **ready)


def _marks() -> re.Pattern[bytes]:
    return re.compile("|".join(f"(?P<{one.name}>{one.mark})" for one in FORMATS.values()).encode(), re.MULTILINE)


class LogReader:
    """Reads one run's log.

    Args:
        name: `trainer.log_format`.
        saved: the account of the reader before this one; values out of a file.
        escapes: what a terminal obeys, and is no text.
    """

    def __init__(self, name: str, saved: Any, escapes: re.Pattern[bytes]) -> None:
        known = mapping(saved)
        self._escapes = escapes
        self._is_auto = name == AUTO
        found = string(known.get("format")) if self._is_auto else name
        self._use: _Compiled | None = _compiled(found) if found in FORMATS else None
        looked_at = count(known.get("looked_at"))
        self._looked_at = 0 if looked_at is None else looked_at
        self._marks = _marks() if self.is_looking else None
        self._words = {word.encode() for one in FORMATS.values() for word in one.words}
        self._pending = b""
        self._rank = as_rank(string(known.get("rank")) or "") or None
        self._bad_ranks = RankLosses(known.get("bad_ranks"))
        self.step = count(known.get("step"))
        self._total, self._is_total_sure = count(known.get("total")), known.get("is_total_sure") is True
        self._said_total: int | None = None
        self._is_bar_full = False
        self._waiting: dict[str, Any] = {}
        self._waiting_scores: dict[str, Any] = {}
        self._waits = 0
        self._bars = log_patterns.LastDrawing()
        self._live: dict[str, Any] = {}
        self._bad_told, self._bad_mark, self._batch_mark = 0, b"", b""
        self.lines: list[bytes] = []

    @property
    def is_looking(self) -> bool:
        """Whether the format is still looked for, or may turn out to be another one."""
        is_open = self._use is None or self._use.format.name in YIELDS
        return self._is_auto and is_open and self._looked_at < LOOKED_AT_BYTES

    @property
    def is_over(self) -> bool:
        """Whether there is no format, and none is looked for any more: nothing need be fed."""
        return self._use is None and not self.is_looking

    @property
    def format(self) -> str | None:
        """Return the name of the format; None before it is found."""
        return self._use.format.name if self._use else None

    @property
    def account(self) -> dict[str, Any]:
        """Return what a successor goes on from, as plain values."""
        return {
            "format": self.format, "looked_at": self._looked_at, "step": self.step, "total": self._total,
            "is_total_sure": self._is_total_sure, "rank": (self._rank or b"").decode("ascii", "replace"),
            "bad_ranks": self._bad_ranks.account,
        }  # fmt: skip

    def feed(self, chunk: bytes) -> list[Told]:
        """Return what the next bytes of a log tell; `lines` has the lines that show that the trainer goes on."""
        data = self._pending + chunk
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        self._pending = data[end : end + MAX_LINE_BYTES]
        return self._take(data[:end])

    def begin_anew(self) -> None:
        """Take in that the log was cut: what was read of its last line will not go on."""
        self._pending = b""

    def show(self, line: bytes) -> list[Told]:
        """Return what a line tells that may still go on: a bar that stands as it is."""
        return self._take(line)

    def rest(self, *, is_last: bool = False) -> list[Told]:
        """Return, at the end of a reading, the values whose step did not come, and what is told without one.

        Args:
            is_last: the log has ended: what it holds without a newline counts too.
        """
        told: list[Told] = []
        if is_last and self._pending:
            pending, self._pending = self._pending, b""
            told += self._take(pending + b"\n")
        told += self._of_bars(self._bars.rest(is_last=is_last))
        if self._waiting or self._waiting_scores:
            self._waits += 1
            if self._waits >= MAX_WAITS or is_last:
                told += self._settled(self.step, None)
        if self._live:
            told.append(("live", self._live))
            self._live = {}
        return told

    def _take(self, text: bytes) -> list[Told]:
        self.lines = []
        if self._marks is not None:
            self._looked_at = min(self._looked_at + len(text), LOOKED_AT_BYTES)
        if self._use is None and not any(word in text for word in self._words):
            return []
        if b"\x1b" in text:
            text = self._escapes.sub(b"", text)
        text = text.replace(b"\r", b"\n")
        told = self._look(text)
        if self._use is None:
            return told
        for rank, line in self._use.hits.findall(text):
            self.lines.append(line)
            told += self._told_by(line, rank, self._use)
        return told

    def _look(self, text: bytes) -> list[Told]:
        """Look for the mark of a format in what comes first in a log."""
        if self._marks is None or self._looked_at >= LOOKED_AT_BYTES:
            self._marks = None
            return []
        text = _RANKS.sub(b"", text)
        for match in self._marks.finditer(text):
            name = match.lastgroup or NONE
            if self._use is not None and YIELDS[self._use.format.name] != name:
                continue
            self._use = _compiled(name)
            self._marks = self._marks if name in YIELDS else None
            shown = text[text.rfind(b"\n", 0, match.start() + 1) + 1 :].partition(b"\n")[0]
            line = shown[:_SHOWN_BYTES].decode("utf-8", "replace").strip()
            return [("format", {"format": name, "framework": self._use.format.framework, "line": line})]
        return []

    def _told_by(self, line: bytes, rank: bytes, use: _Compiled) -> list[Told]:
        if rank and self._rank and rank != self._rank:
            return self._of_other_rank(rank, line, use)
        if use.total and (match := use.total.search(line)):
            self._total, self._is_total_sure = _whole(match["total"]), True
            return []
        told: list[Told] = []
        if use.best and (match := use.best.search(line)):
            told += self._best(match)
        if use.evaluation and (match := use.evaluation.search(line)):
            told += self._of_bars(self._bars.rest(is_last=True))  # what it is of
            told += self._evaluation(match, line, use)
            if "step" not in use.patterns or not use.patterns["step"].number.search(line):
                return told
        found = log_patterns.found_steps(line, use.patterns)
        if found:
            self._rank = self._rank or rank or None
            return [*told, *(self._stepped(fields, use) for fields in found)]
        if use.bar and (match := use.bar.search(line)):
            self._rank = self._rank or rank or None
            return [*told, *self._bar(match, line, use)]
        return [*told, *self._values(line, use)]

    def _of_other_rank(self, rank: bytes, line: bytes, use: _Compiled) -> list[Told]:
        """Take the loss of a rank that does not make the curve; two in a row that are not finite are told at once."""
        steps = log_patterns.found_steps(line, use.patterns)
        bad = self._bad_ranks.take(rank, use.patterns["loss"].read(line), steps[0]["step"] if steps else self.step)
        return [("nonfinite", bad)] if bad else []

    def _stepped(self, fields: dict[str, Any], use: _Compiled) -> Told:
        self.step = fields["step"]
        if use.format.total_is_of_run and (total := fields.get("step_total")) is not None:
            self._total, self._is_total_sure = total, True
        return ("step", self._whole_fields(fields))

    def _whole_fields(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a step with what the other ranks, and a line of its own, say of it."""
        if self._bad_ranks and "loss" in fields:
            fields["loss"] = math.nan
        if "epoch" in fields:
            fields["epoch"] = int(fields["epoch"])
        if self._is_total_sure and self._total and self._total != self._said_total and fields["step"] <= self._total:
            self._said_total = fields["max_steps"] = self._total
        return fields

    def _bar(self, match: re.Match[bytes], line: bytes, use: _Compiled) -> list[Told]:
        if "batch" in match.groupdict():
            return self._batch(match, line, use)
        step, total = _whole(match["step"]), _whole(match["total"])
        if step is None or total is None or step > total:
            return []
        if use.format.has_redrawn_bar and (self._waiting or self._waiting_scores):
            self._total, self._is_total_sure = total, True
        elif self._total is None or (self._is_bar_full and not self._is_total_sure):
            self._total = total
        if total != self._total:
            return []  # of an evaluation
        self._is_bar_full = step == total
        values = {"step_total": total, "bar": True, **log_patterns.read_values(line, use.patterns, ("loss", "lr"))}
        if use.format.has_redrawn_bar:
            return self._settled(step, values)
        return self._of_bars(self._bars.put({"step": step, **values}))

    def _of_bars(self, found: list[dict[str, Any]]) -> list[Told]:
        return [one for fields in found for one in self._settled(fields.pop("step"), fields)]

    def _settled(self, step: int | None, more: dict[str, Any] | None) -> list[Told]:
        """Give what waits to its step; None where no step was ever seen.

        Args:
            more: what the bar tells beside the step; None where it is no bar that tells it.
        """
        values, scores = self._waiting, self._waiting_scores
        self._waiting, self._waiting_scores, self._waits = {}, {}, 0
        if step is None:
            return self._stepless(values, repr(values).encode()) if values else []
        told: list[Told] = []
        if step or values:  # `0/30`: none is done yet
            fields = self._whole_fields({"step": step, **(more or {}), **values})
            if values:
                fields.pop("bar", None)  # the line with the values is printed once, whenever it is read
            told.append(("values" if values else "step", fields))
            self.step = step
        if scores:
            told.append(("eval", {"step": step, "metrics": scores}))
        return told

    def _batch(self, match: re.Match[bytes], line: bytes, use: _Compiled) -> list[Told]:
        """Take a bar that counts anew in each epoch: it has no step of the run."""
        known = {key: _whole(match[key]) for key in ("epoch", "batch", "batches")}
        values = log_patterns.read_values(line, use.patterns, ("loss", "lr"))
        self._batch_mark = b"%d %d" % (known["epoch"] or 0, known["batch"] or 0)
        return self._stepless({**known, **values}, self._batch_mark)

    def _values(self, line: bytes, use: _Compiled) -> list[Told]:
        """Take the values of a line without a step."""
        values = log_patterns.read_values(line, use.patterns, ("loss", "lr", "epoch"))
        if use.lost and use.lost.search(line):
            values["loss"] = math.nan
        if "loss" not in values:
            return []
        if use.format.has_redrawn_bar:
            told = self._settled(self.step, None) if self._waiting else []
            self._waiting, self._waits = values, 0
            return told
        return self._stepless(values, self._batch_mark or line)

    def _stepless(self, values: dict[str, Any], mark: bytes) -> list[Told]:
        """Take values of which the step is not known: a loss that is not finite counts in two tellings in a row.

        Args:
            mark: another one for another telling: the same bar may be drawn ten times.
        """
        loss = values.get("loss")
        if loss is not None and not math.isfinite(loss):
            values = {**values, "loss": None}
        self._live |= {
            key: int(value) if key == "epoch" else value
            for key, value in values.items()
            if value is not None and key != "lr_within"
        }
        if loss is None:
            return []
        if math.isfinite(loss):
            self._bad_told, self._bad_mark = 0, mark
            return []
        if mark == self._bad_mark and self._bad_told:
            return []
        self._bad_told, self._bad_mark = self._bad_told + 1, mark
        return [("nonfinite", {"after": self.step})] if self._bad_told == SURE_TOLD else []

    def _evaluation(self, match: re.Match[bytes], line: bytes, use: _Compiled) -> list[Told]:
        scores = dict(_scores(line[match.start() :], use))
        step = _whole(match["step"]) if "step" in match.groupdict() else self.step
        if not scores:
            return []
        if use.format.has_redrawn_bar:
            self._waiting_scores, self._waits = scores, 0
            return []
        return [] if step is None else [("eval", {"step": step, "metrics": scores})]

    def _best(self, match: re.Match[bytes]) -> list[Told]:
        step, score = _whole(match["step"]), _number(match["score"])
        if step is None or score is None or match["now"] != match["score"]:
            return []
        metric = match["metric"].decode("utf-8", "replace")
        return [("best", {"step": step, "score": score, "metric": metric})]


def _scores(line: bytes, use: _Compiled) -> list[tuple[str, float]]:
    """Return the metrics of an evaluation's line: `val loss` is val_loss, and torchtitan's `loss` is val_loss too."""
    found: list[tuple[str, float]] = []
    for name, text in use.metric.findall(line) if use.metric else ():
        key, value = metric_name(name.decode("utf-8", "replace")), _number(text)
        if value is not None and not _NO_SCORE.search(key) and len(found) < MAX_METRICS:
            found.append((key, value))
    return found


def metric_name(name: str) -> str:
    """Return the name of an evaluation's metric in one form: `val loss` and torchtitan's `loss` are val_loss."""
    key = re.sub(r"\W+", "_", name.strip())[:80]
    return key if re.match("eval|val|test|perplexity|accuracy", key, re.IGNORECASE) else f"val_{key}"


def _whole(text: bytes | None) -> int | None:
    digits = (text or b"").replace(b",", b"")
    return int(digits) if digits.isdigit() and len(digits) <= 15 and int(digits) < MAX_STEP else None


def _number(text: bytes) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
