"""The manifest: what it accepts, and that its schema and the code that reads it say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from resumekit.base.files import UnreadableFile, utc_now
from resumekit.checkpoint import manifest
from resumekit.checkpoint.manifest import Manifest
from support import schema_examples
from support.places import ROOT

SCHEMA = json.loads((ROOT / "schemas" / "manifest.schema.json").read_text())
VALID = schema_examples.case("manifest")


def read_value(value: Any) -> Manifest:
    name = value.get("file") if isinstance(value, dict) and isinstance(value.get("file"), str) else "x.pt"
    return manifest.parse(value, Path(name).name)


def code_accepts(value: Any) -> bool:
    try:
        read_value(value)
    except UnreadableFile:
        return False
    return True


def schema_accepts(value: Any) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(value)


@pytest.mark.parametrize("name", schema_examples.names("manifest"))
def test_the_examples_are_what_their_names_say_to_schema_and_code(name: str) -> None:
    value = schema_examples.case("manifest", name)
    assert schema_accepts(value) == code_accepts(value) == schema_examples.is_valid(name)


def test_the_schema_has_the_fields_of_the_code_each_described_with_a_valid_example() -> None:
    of_several = {"files", "kind", "world_size", "rng_ranks"}  # a file of torch.save, of one process, has none of them
    assert set(SCHEMA["properties"]) == set(Manifest._fields) == set(SCHEMA["required"]) | of_several
    for name, rule in SCHEMA["properties"].items():
        assert rule["description"].endswith("."), name
        for example in rule["examples"]:
            assert code_accepts({**VALID, name: example}) and schema_accepts({**VALID, name: example}), name


ODD_VALUES = [
    None, True, False, 0, 1, -1, 1.5, 10**12, 10**15, 10**40, float("inf"), "", "x", "400", "..", "a/b", "f" * 64,
    "F" * 64, "f" * 63, "f" * 64 + "\n", "x" * 5000, [], ["raw"], ["raw", 1], ["best"], {}, {"step": 1, "accuracy": 1},
    {"step": "1", "accuracy": 1}, {"step": 1}, {"a": 1.5}, {"a": "x"}, [[]], "٣", 'a[$(touch canary)]',
]  # fmt: skip


@pytest.mark.fault("C18", by="manifest: every field's type and range")
@pytest.mark.parametrize("name", Manifest._fields)
def test_schema_and_code_agree_on_every_odd_value_of_every_field(name: str) -> None:
    for odd in ODD_VALUES:
        # JSON Schema takes 1.0 for an integer and has no infinity; a JSON file can hold neither problem for us.
        if isinstance(odd, float) and odd == float("inf"):
            continue
        value = {**VALID, name: odd}
        if name == "file" and isinstance(odd, str):
            continue  # the code also compares it with the file's own name; the next test does that
        assert code_accepts(value) == schema_accepts(value), (name, odd)


@pytest.mark.fault("C18", by="manifest: version, name and fields")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "written by a newer version of the kit"),
        ({"file": "../hrm_arc_step_400.pt"}, "the field 'file' is not what it must be"),
        ({"file": "hrm_arc_step_500.pt"}, "it names another file, 'hrm_arc_step_500.pt'"),
        ({"step": True}, "the field 'step' is not what it must be"),
        ({"size": 1e30}, "the field 'size' is not what it must be"),
        ({"digest": "x"}, "the field 'digest' is unknown"),
    ],
)
def test_a_bad_manifest_is_refused_with_the_field(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnreadableFile, match=reason):
        manifest.parse({**VALID, **changes}, "hrm_arc_step_400.pt")


@pytest.mark.fault("C18", by="files: bounded, strict JSON")
@pytest.mark.fault("K13", by="files: bounded, strict JSON")
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"a": NaN}', b"\xff\xfe", b'{"step": ' + b"9" * 5000 + b"}",
     b" " * 70_000],
    ids=["empty", "cut", "list", "null", "deep", "nan", "binary", "huge number", "too large"],
)  # fmt: skip
def test_a_manifest_that_is_no_manifest_is_unreadable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt.json").write_bytes(content)
    with pytest.raises(UnreadableFile):
        manifest.read(tmp_path / "x.pt")


def test_what_is_written_is_read_back_equal(tmp_path: Path) -> None:
    known = Manifest(
        "save_checkpoint",
        "x.pt",
        10,
        "a" * 64,
        3,
        utc_now(),
        {},
        weights=("raw", "ema"),
        finite=True,
        step_completed=True,
    )
    manifest.write(tmp_path / "x.pt", known)
    assert manifest.read(tmp_path / "x.pt") == known
    assert schema_accepts(json.loads(manifest.encode(known)))
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt.json"]


def test_a_fast_eval_has_a_step_and_one_score_under_the_name_of_its_metric() -> None:
    """An accuracy alone was kept, also of a run whose best is chosen by its loss."""
    assert manifest.fast_eval_of({"step": 5, "cell_accuracy": 0.5}) == (5, "cell_accuracy", 0.5)
    assert manifest.fast_eval_of({"step": 5, "accuracy": 0.5}) == (5, "accuracy", 0.5), "as manifests before have it"
    for value, is_one in (
        ({"step": 5, "val/loss": 0.5}, True), ({"step": 5, "loss": "low"}, False), ({"step": 5}, False),
        ({"step": 5, "a": 1.0, "b": 1.0}, False), ({"step": 5, "\x1b[31m": 1.0}, False), ({"loss": 1.0, "x": 1}, False),
    ):  # fmt: skip
        whole = {**VALID, "last_fast_eval": value}
        assert schema_accepts(whole) == code_accepts(whole) == is_one, value
