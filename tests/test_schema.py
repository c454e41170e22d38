"""The config's schema: every key described, closed everywhere with an x- door, and a lab's keys laid over it."""

from __future__ import annotations

import json
import random
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from resumekit.base.errors import InvalidFile
from resumekit.base.terms import ALLOWED, DIRECTIONS, KEEPS_LESS, KEYS
from resumekit.config import config, schema, validate, yaml_document
from support import schema_examples
from support.places import ROOT

KIT = schema.load()


def resolve(path: Path) -> dict[str, Any]:
    return config.resolve(yaml_document.load(path.read_bytes(), str(path)), schema=KIT)


def overlay(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "lab.schema.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_schema_and_the_empty_overlay_are_json_schemas_of_2020_12() -> None:
    for path in (schema.CONFIG_SCHEMA, schema.LAB_SCHEMA):
        tree = json.loads(path.read_text())
        assert tree["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        Draft202012Validator.check_schema(tree)


def test_the_schemas_are_in_the_form_that_make_format_gives_them() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "schema_format.py"))
    assert {path.name for path in tool["schemas"]()} >= {"config.schema.json", "event.schema.json"}
    for path in tool["schemas"]():
        assert path.read_text(encoding="utf-8") == tool["formatted"](path.read_text(encoding="utf-8")), path.name
    assert tool["formatted"]('{"b": [1,\n2], "a": {"c": "ä"}, "l": ["%s", {}]}' % ("x" * 120)) == (
        '{\n  "b": [1, 2],\n  "a": {"c": "ä"},\n  "l": [\n    "%s",\n    {}\n  ]\n}\n' % ("x" * 120)
    )


@pytest.mark.parametrize("key", KIT.leaves)
def test_every_key_has_a_description_a_type_an_effect_and_a_place_in_or_out_of_the_hash(key: str) -> None:
    node = KIT.leaves[key]
    assert node["description"].endswith((".", ")"))
    assert node["type"]
    assert isinstance(node["x-hash"], bool)
    for effect in effects(node["x-on-resume"]):
        for name, action in effect.items():
            if name in ("consent", "refuse"):
                assert isinstance(action, str)
            elif name == "within":
                assert action > 1
            else:
                assert action in ALLOWED[name]
    assert node["type"] != "array" or "items" in node


def effects(declared: dict[str, Any]) -> list[dict[str, Any]]:
    directions = [declared[word] for word in DIRECTIONS if word in declared]
    if directions:
        assert len(directions) == len(declared)
    return directions or [declared]


def test_plan_schema_and_config_know_the_same_components_and_actions_as_the_code() -> None:
    plan = json.loads((schema.CONFIG_SCHEMA.parent / "plan.schema.json").read_text())["properties"]["components"]
    assert set(plan["additionalProperties"]["properties"]["action"]["enum"]) == set(KEEPS_LESS)
    assert {action for actions in ALLOWED.values() for action in actions} == set(KEEPS_LESS)
    assert set(KEYS) == set(ALLOWED)
    for name, actions in ALLOWED.items():
        by_hand = set(KIT.leaves[f"resume.{name}"]["enum"])
        assert by_hand - {"auto", "swap_to_lion"} <= set(actions), "what a person may ask for, a trainer carries out"


@pytest.mark.parametrize("key", KIT.leaves)
def test_examples_and_defaults_are_valid_themselves(key: str) -> None:
    node = KIT.leaves[key]
    for value in [*node.get("examples", []), *([node["default"]] if "default" in node else [])]:
        Draft202012Validator(node).validate(value)


def test_every_object_is_closed_and_has_an_x_door() -> None:
    def walk(node: Any, path: str) -> None:
        if isinstance(node, dict):
            if node.get("type") == "object":
                assert node["additionalProperties"] is False, path
                assert "^x-" in node["patternProperties"] or path.endswith("experiments"), path
            for name, inner in node.items():
                walk(inner, f"{path}.{name}")

    walk(KIT.tree, "")


def test_an_experiment_can_change_every_section_and_nothing_else() -> None:
    (entry,) = KIT.tree["properties"]["experiments"]["patternProperties"].values()
    sections = {name for name in KIT.sections if "." not in name}
    assert set(entry["properties"]) == {"base", "name", "notes", "lineage", "tags"} | sections - {"experiment"}


def test_no_alias_is_another_keys_name() -> None:
    aliases = [alias for node in KIT.leaves.values() for alias in node.get("x-aliases", [])]
    assert len(aliases) == len(set(aliases))
    assert not set(aliases) & {key.rpartition(".")[2] for key in KIT.leaves}
    assert {"eval_frequency", "optimizer_swap_at"} <= set(aliases)


def written(tmp_path: Path, name: str) -> Path:
    """Return the file of a config example; one that is a change of the valid one is written as JSON."""
    if name == "valid":
        return schema_examples.FOLDER / "config.yaml"
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(schema_examples.case("config", name), indent=2))
    return path


@pytest.mark.parametrize("name", [*filter(schema_examples.is_valid, schema_examples.names("config"))])
def test_the_valid_examples_resolve(tmp_path: Path, name: str) -> None:
    assert resolve(written(tmp_path, name))["trainer"]["command"]


REFUSALS = {
    "invalid-unknown-key": (
        "there is no key 'batchsize' in section 'training'; the nearest known is 'batch_size' ({}, line {batchsize})"
    ),
    "invalid-unused-experiment": (
        "'experiments.EXP-02.training.seed' is 'many', a text, and must be a whole number of at least 0"
        " ({}, line {seed})"
    ),
    "invalid-range": "'checkpoint.keep_last' is '1' and must be at least 2 ({}, line {keep_last})",
    "invalid-pattern": (
        "'paths.checkpoints' is '../elsewhere' and must be a path inside the run folder, without '..'"
        " ({}, line {checkpoints})"
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_the_invalid_examples_are_refused_with_key_value_line_and_advice(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name)
    # Of a key that is there twice the last line: the change stands behind what was there before.
    lines = {key: n for n, line in enumerate(path.read_text().splitlines(), 1) for key in re.findall(r'"(\w+)":', line)}
    with pytest.raises(InvalidFile) as caught:
        resolve(path)
    assert str(caught.value) == REFUSALS[name].format(f"'{path}'", **lines)


def test_every_invalid_example_is_among_those() -> None:
    names = schema_examples.names("config")
    assert {name for name in names if not schema_examples.is_valid(name)} == set(REFUSALS)


def test_each_example_is_another_document_than_the_valid_one_of_its_schema() -> None:
    count = 0
    for document in {path.stem for path in schema_examples.FOLDER.iterdir()} - {"changes"}:
        found = [json.dumps(schema_examples.case(document, name)) for name in schema_examples.names(document)]
        assert len(set(found)) == len(found), document
        count += len(found)
    assert count >= 54


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("training:\n  batch_size: '8'\n", "is '8', a text, and must be a whole number"),
        ("training:\n  batch_size: 8.5\n", "is '8.5', a number, and must be a whole number"),
        ("training:\n  batch_size: true\n", "is 'true', true or false, and must be a whole number"),
        ("training:\n  batch_size: null\n", "is null and must be a whole number"),
        ("training: 3\n", "'training' is '3', a whole number, and must be a section"),
        ("training: [a]\n", "must be a section"),
        ("ema:\n  enabled: 'true'\n", "must be true or false"),
        ("data:\n  version: 1\n", "must be a text; put it in quotes"),
        ("model:\n  droppath_h: 0.1\n", "must be a text; put it in quotes"),
        ("optimizer:\n  betas: 0.9\n", "must be a list; write [a, b]"),
        ("optimizer:\n  betas: [0.9, x]\n", "item 2 of 'optimizer.betas' is 'x', a text, and must be a number"),
        ("optimizer:\n  betas: [0.9, 1.0]\n", "item 2 of 'optimizer.betas' is '1' and must be below 1"),
        ("optimizer:\n  betas: [0.9]\n", "must be a list of at least 2"),
        ("training:\n  amp: fp8\n", "'training.amp' is 'fp8' and must be one of 'off', 'bf16', 'fp16'"),
        ("optimizer:\n  lr: -1e-4\n", "must be at least 0"),
        ("model:\n  droppath_h: '0..2'\n", "must be a probability below 1"),
        ("checkpoint:\n  pattern: '{step}_{step}.pt'\n", "'{step}' in it once"),
        ("checkpoint:\n  pattern: '../{step}.pt'\n", "without '/'"),
        ('checkpoint:\n  pattern: "{step}.pt\\n"\n', "and must be a name without '/'"),
        ("experiments:\n  EXP__1: {}\n", "the name 'EXP__1' under 'experiments' is refused"),
        ("experiments:\n  -x: {}\n", "the name '-x'"),
        ('experiments:\n  "EXP-1\\n": {}\n', "the name 'EXP-1\\n'"),
        ("experiments:\n  '..': {}\n", "the name '..'"),
        ("experiments:\n  A:\n    name: 'a/b'\n", "'experiments.A.name' is 'a/b' and must be letters"),
        ("experiments:\n  A:\n    experiment: {name: B}\n", "no key 'experiment'"),
        ("experiments:\n  A:\n    experiments: {}\n", "no key 'experiments'"),
        ("trainning: {}\n", "no key 'trainning' at the top; the nearest known is 'training'"),
        ("batch_size: 8\n", "no key 'batch_size' at the top; 'batch_size' is the key 'training.batch_size'"),
        ("learning_rate: 1e-3\n", "at the top; 'learning_rate' is the key 'optimizer.lr'"),
        ("lr: 1e-3\n", "'lr' is the key 'optimizer.lr' or 'swa.lr'"),
        ("batchsize: 8\n", "no key 'batchsize' at the top; the nearest known is 'training.batch_size'"),
        ("training: {lr: 1}\n", "no key 'lr' in section 'training'; 'lr' is the key"),
        (
            "experiments:\n  A: {max_steps: 9}\n",
            "in section 'experiments.A'; 'max_steps' is the key 'training.max_steps'",
        ),
        ("zzzz: {}\n", "no key 'zzzz' at the top"),
        ('training:\n  "\\e[31mred": 1\n', "'\\x1b[31mred'"),
    ],
)
def test_wrong_values_are_refused_with_what_they_must_be(text: str, says: str) -> None:
    with pytest.raises(InvalidFile) as caught:
        config.resolve(yaml_document.load("trainer: {command: [x]}\n" + text, "c.yaml"), schema=KIT)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert "('c.yaml', line " in message


def test_a_hundred_thousand_characters_of_unknown_keys_are_refused_at_once() -> None:
    text = "trainer: {command: [x]}\n" + "".join(f"batchsize{i}: 1\n" for i in range(12_000))
    with pytest.raises(InvalidFile, match="'batchsize0'"):
        config.resolve(yaml_document.load(text, "c"), schema=KIT)


# --- a lab's overlay


def lab_resolve(tmp_path: Path, content: Any, text: str, *overrides: str) -> tuple[dict[str, Any], schema.Schema]:
    merged = schema.load(overlay(tmp_path, content))
    return config.resolve(
        yaml_document.load(text, "c.yaml"), "A" if "A:" in text else None, overrides, schema=merged
    ), merged


LAB = schema_examples.case("lab")
BASE = "trainer: {command: [x]}\n"


def test_a_lab_adds_keys_to_our_sections_and_sections_of_its_own(tmp_path: Path) -> None:
    text = (
        BASE
        + "queue: {partition: long}\n"
        + "experiments: {A: {queue: {partition: short}, training: {label_smoothing: 0.1}}}\n"
    )
    resolved, _ = lab_resolve(tmp_path, LAB, text)
    assert resolved["queue"] == {"partition": "short"}
    assert resolved["training"]["label_smoothing"] == 0.1
    resolved, _ = lab_resolve(tmp_path, LAB, BASE, "queue.partition=long", "label_smoothing=0.2")
    assert (resolved["queue"]["partition"], resolved["training"]["label_smoothing"]) == ("long", 0.2)


def test_a_labs_keys_are_checked_like_ours(tmp_path: Path) -> None:
    for text, says in [
        ("queue: {partition: huge}", "must be one of 'short', 'long'"),
        ("queue: {partitoin: long}", "the nearest known is 'partition'"),
        ("training: {label_smoothing: 2}", "must be below 1"),
        ("experiments: {B: {queue: {partition: 1}}}", "'experiments.B.queue.partition' is '1'"),
    ]:
        with pytest.raises(InvalidFile, match=re.escape(says)):
            lab_resolve(tmp_path, LAB, BASE + text + "\n")


def test_a_section_that_a_lab_had_before_the_kit_had_one_of_that_name_still_counts(tmp_path: Path) -> None:
    section = json.loads(json.dumps(LAB["properties"]["queue"]).replace("partition", "line"))
    overlay = {**LAB, "properties": {"cluster": section}}
    resolved, merged = lab_resolve(tmp_path, overlay, BASE + "cluster: {line: long}\n")
    assert (resolved["cluster"]["line"], resolved["cluster"]["max_fruitless"]) == ("long", 3)
    other = config.override(resolved, ["cluster.line=short"], merged)
    assert config.config_hash(other, merged) == config.config_hash(resolved, merged)
    section["x-hash"] = True
    with pytest.raises(InvalidFile, match="'x-hash' at 'cluster' would change a section of the kit"):
        lab_resolve(tmp_path, overlay, BASE)


def test_a_labs_keys_are_hashed_unless_it_says_otherwise(tmp_path: Path) -> None:
    base, merged = lab_resolve(tmp_path, LAB, BASE)
    for setting, changes_hash in (("label_smoothing=0.1", True), ("queue.partition=long", False)):
        other = config.override(base, [setting], merged)
        assert (config.config_hash(other, merged) != config.config_hash(base, merged)) is changes_hash
    undeclared = {"properties": {"checkpoint": {"properties": {"tier": {"type": "string"}}}}}
    base, merged = lab_resolve(tmp_path, undeclared, BASE)
    assert config.config_hash(config.override(base, ["tier=hot"], merged), merged) != config.config_hash(base, merged)


def test_an_empty_overlay_changes_nothing(tmp_path: Path) -> None:
    for content in ({}, {"properties": {}}, {"type": "object", "title": "x"}, {"properties": {"training": {}}}):
        assert schema.load(overlay(tmp_path, content)).leaves == KIT.leaves


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            json.dumps(schema_examples.case("lab", "invalid-kits-own")),
            "the key 'training.seed' is the kit's own and cannot be changed",
        ),
        (
            {"properties": {"training": {"additionalProperties": True}}},
            "'additionalProperties' at 'training' would change",
        ),
        ({"additionalProperties": True}, "'additionalProperties' at 'the top' would change"),
        ({"properties": {"training": {"type": "array"}}}, "the type of 'training' cannot be changed"),
        ({"properties": {"experiments": {"properties": {}}}}, "'experiments' is the kit's own"),
        (
            {"properties": {"trainer": {"properties": {"command": {"properties": {"a": {}}}}}}},
            "'trainer.command' is the kit's own",
        ),
        ({"properties": {"name": {"properties": {}}}}, "an experiment's own 'name'"),
        ({"properties": {"flat": {"type": "string"}}}, "must be a section"),
        ({"properties": {"a.b": {"properties": {}}}}, "the key 'a.b' cannot be written"),
        ({"properties": {"x-a": {"properties": {}}}}, "the key 'x-a' cannot be written"),
        ({"properties": {"lab": {"properties": {"a": 3}}}}, "has no schema but '3'"),
        ({"properties": {"lab": {"properties": {"a": {"type": "float"}}}}}, "unknown type 'float'"),
        ({"properties": {"lab": {"properties": {"a": {"type": [["x"]]}}}}}, "unknown type"),
        ({"properties": {"lab": {"properties": {"a": {"$ref": "http://x/y"}}}}}, "'$ref'"),
        ({"properties": {"lab": {"properties": {"a": {"anyOf": [{"$ref": "#"}]}}}}}, "'$ref'"),
        ({"properties": {"lab": {"properties": {"a": {"x-aliases": "b"}}}}}, "not a list of texts"),
        ({"properties": {"lab": {"properties": {"a": {"patternProperties": {"(": {}}}}}}}, "no regular expression"),
        *(
            ({"properties": {"lab": {"properties": {"a": {"x-on-resume": effect}}}}}, says)
            for effect, says in (
                ("safe", "'x-on-resume' of the key 'lab.a' is 'safe', not an object"),
                ({"optimiser": "reset"}, "names 'optimiser'; a component is one of weights, optimizer, scheduler,"),
                ({"optimizer": "rest"}, "'rest' can't be done with optimizer, but load, partial, reset, swap, absent"),
                ({"rng": ["reset"]}, "can't be done with rng"),
                ({"weights": "absent"}, "'absent' can't be done with weights"),
                ({"consent": True}, "'consent' is 'true', not a reason in words"),
                ({"within": "2"}, "'within' is '2', not a factor above 1"),
                ({"within": True, "consent": "large"}, "not a factor above 1"),
                ({"increase": {"scheduler": "refit"}, "scheduler": "load"}, "has 'scheduler' beside a direction"),
                ({"enable": "fresh"}, "is 'fresh', not an object"),
                ({"enable": {"ema": "frsh"}}, "'frsh' can't be done with ema"),
            )
        ),
        (
            {"properties": {"lab": {"properties": {"a": {"type": "integer", "default": "x"}}}}},
            "a default is refused by its own key",
        ),
        (
            {"properties": {"lab": {"properties": {"a": {"minimum": 3, "default": 2}}}}},
            "a default is refused by its own key: 'lab.a' is '2' and must be at least 3",
        ),
        ({"properties": []}, "not an object with 'properties'"),
        (
            {"properties": {"lab": {"properties": {"a": {"type": "integer", "minimun": 1}}}}},
            "'minimun' of the key 'lab.a' is no word of a schema; the nearest known is 'minimum'",
        ),
        (
            {"properties": {"lab": {"properties": {"a": {"x-on-resum": {"refuse": "no"}}}}}},
            "'x-on-resum' of the key 'lab.a' is no word of a schema; the nearest known is 'x-on-resume'",
        ),
        (
            {"properties": {"lab": {"properties": {"a": {"x-hash": "no"}}}}},
            "'x-hash' of the key 'lab.a' is neither true nor false",
        ),
        ({"properties": {}, "required": ["x"]}, "'required' at 'the top' would change a section of the kit"),
        ({"properties": {}, "type": "array"}, "the type of 'the top' cannot be changed"),
        ("[]", "not a JSON object"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_overlay_that_changes_ours_or_is_no_schema_is_refused(tmp_path: Path, content: Any, says: str) -> None:
    path = overlay(tmp_path, content)
    with pytest.raises(InvalidFile) as caught:
        schema.load(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert type(caught.value) is InvalidFile, "a lab's own file is not waited for, as the kit's is"


@pytest.mark.parametrize(
    "rule",
    [
        {"minimum": "x"},
        {"enum": 5},
        {"pattern": "("},
        {"items": 5},
        {"items": {"type": "float"}},
        {"anyOf": 3},
        {"not": []},
    ],
)
def test_a_labs_broken_rule_ends_in_a_sentence(tmp_path: Path, rule: dict[str, Any]) -> None:
    content = {"properties": {"lab": {"properties": {"a": rule, "b": {"type": "array", "items": rule}}}}}
    with pytest.raises(InvalidFile) as caught:
        lab_resolve(tmp_path, content, BASE + "lab: {a: [1, x], b: [1, x]}\n")
    assert "\n" not in str(caught.value)


def test_a_missing_overlay_that_was_named_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="no such file"):
        schema.load(tmp_path / "none.json")


# --- the same verdict as jsonschema's


def broken_rules(data: Any) -> set[str]:
    """The keywords that the kit finds broken."""
    return {finding.keyword for finding in KIT.findings(data)}


@pytest.mark.parametrize("count", [500, pytest.param(2_000, marks=pytest.mark.long)])
def test_a_config_with_one_value_replaced_is_judged_as_jsonschema_judges_it(count: int) -> None:
    """So many: refused where jsonschema refuses, for a type or a key where jsonschema finds one of them at fault."""
    rng = random.Random(5)
    whole = yaml_document.load((ROOT / "config.yaml").read_bytes(), "c").data
    validator = Draft202012Validator(KIT.tree)
    spoilt = [None, True, 0, -1, 2, 1.5, 1e20, "", "x", [], ["x"], [1], {}, {"a": 1}, {"x-a": 1}]
    faults = 0
    for _ in range(count):
        data = json.loads(json.dumps(whole))
        node: Any = data
        while isinstance(node, dict) and node:
            parent, key = node, rng.choice([*node, "x-new", "new"])
            node = node.get(key)
            if rng.random() < 0.2:
                break
        parent[key] = rng.choice(spoilt)
        theirs, ours = {str(error.validator) for error in validator.iter_errors(data)}, broken_rules(data)
        first = {"type", "additionalProperties"}
        assert (bool(ours), bool(ours & first)) == (bool(theirs), bool(theirs & first)), (key, parent[key])
        faults += bool(theirs)
    assert count / 4 < faults < count * 0.95


def odd_values(node: dict[str, Any], dice: random.Random) -> list[Any]:
    """Values around the edges of a key's rules, and some of every other kind."""
    keywords = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    limits = [node[keyword] for keyword in keywords if keyword in node]
    edges = [limit + delta for limit in limits for delta in (-1, 0, 1, -1e-9, 1e-9)]
    texts = ["", "x", "a" * 300, "../x", "a b", "off", "EXP-01", "{step}.pt", "x" * 81, "ä", "\n"]
    plain = [None, True, False, 0, 1, -1, 2.0, 0.5, -0.0, 1e300, [], ["a"], [1, "a"], [[]], {}, {"x-a": 1}, {"a": 1}]
    own = [*node.get("enum", []), *node.get("examples", []), dice.random(), dice.randint(-9, 9)]
    return [*edges, *texts, *plain, *own]


def test_every_key_takes_what_jsonschema_takes_and_breaks_the_rules_that_it_finds_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every key of the schema with thousands of values: the same verdict, no rule of its own, and jsonschema not asked.

    Where the kit's schema comes to use a keyword that `validate.RULES` lacks, each start would import jsonschema.
    """
    monkeypatch.delattr(validate._Walk, "_other_rules")
    dice = random.Random(1)
    validator = Draft202012Validator(KIT.tree)
    asked = refused = 0
    for key, node in KIT.leaves.items():
        for value in odd_values(node, dice):
            data = value
            for part in reversed(key.split(".")):
                data = {part: data}
            theirs, ours = {str(error.validator) for error in validator.iter_errors(data)}, broken_rules(data)
            assert bool(ours) == bool(theirs) and ours <= theirs, data
            asked, refused = asked + 1, refused + bool(theirs)
    assert asked > 3000 and asked / 4 < refused < asked * 0.95


NUMBERS = [-3, -1, 0, 1, 2, 3, 4, 0.1, 0.3, 0.5, 1.0, 2.0, -0.0, 1e300, 2**60]
TEXTS = ["", "a", "b", "ab", "ba", "x-1", "a\n", "äb", "abab"]
LISTS = [[], [1], [1.0], [True], [1, 1], [0, False], ["a", "b"], [[1]], [[True]], [None, 2, "a", 4]]
OBJECTS = [{}, {"a": 1}, {"a": True}, {"b": 1}, {"a": 1, "b": [2]}, {"x-1": "a"}]
PLAIN = [None, True, False, *NUMBERS, *TEXTS, *LISTS, *OBJECTS]
TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"]
PATTERNS = ["^a", "b$", "-", "^[ab]*$", "1|x", "^$", "."]
# The limits that each rule about a value is asked with.
RULES = {
    "type": [*TYPES, ["integer", "null"], ["string", "array"]],
    "enum": [[one, other] for one, other in zip(PLAIN, reversed(PLAIN), strict=True)],
    "const": PLAIN,
    "multipleOf": [1, 2, 3, 0.1, 0.5, 1e-10, 5e-324, 1e300],
    "pattern": PATTERNS,
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), NUMBERS),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), range(5)),
}


@pytest.mark.parametrize("keyword", RULES)
def test_each_rule_holds_where_jsonschema_has_it_hold(keyword: str) -> None:
    assert set(RULES) == {"type", *validate.RULES}
    verdicts = set()
    for limit in RULES[keyword]:
        validator = Draft202012Validator({keyword: limit})
        for value in PLAIN:
            verdicts.add(validator.is_valid(value))
            assert (validate.findings(value, {keyword: limit}) == []) == validator.is_valid(value), (limit, value)
    assert verdicts == {True, False}


# Keys are few, so that a schema and a value meet.
NAMES = st.sampled_from(["a", "b", "ab", "x-1"])
VALUES = st.recursive(
    st.sampled_from(PLAIN),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
# Each keyword that the walk knows, with a limit for it; some lead to schemas of one level less.
KNOWN = {
    **{name: lambda inner, limits=limits: st.sampled_from(limits) for name, limits in RULES.items()},
    "$ref": lambda inner: st.sampled_from(["#/$defs/number", "#/$defs/section"]),
    "items": lambda inner: inner,
    "prefixItems": lambda inner: st.lists(inner, min_size=1, max_size=2),
    "properties": lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=3),
    "patternProperties": lambda inner: st.dictionaries(st.sampled_from(PATTERNS), inner, min_size=1, max_size=2),
    "additionalProperties": lambda inner: inner,
    "propertyNames": lambda inner: inner,
    **dict.fromkeys(("title", "description", "x-note"), lambda inner: st.sampled_from(TEXTS)),
}
# Keywords that a lab's overlay may use, and jsonschema judges.
OTHERS = {
    "required": lambda inner: st.lists(NAMES, max_size=2, unique=True),
    "uniqueItems": lambda inner: st.booleans(),
    "minProperties": lambda inner: st.integers(0, 3),
    **{name: lambda inner: st.lists(inner, min_size=1, max_size=2) for name in ("anyOf", "allOf", "oneOf")},
    **{name: lambda inner: inner for name in ("not", "contains", "if", "then", "else", "unevaluatedItems")},
    "unevaluatedProperties": lambda inner: st.just(False),
    "format": lambda inner: st.just("date"),
    "units": lambda inner: st.just("m"),
}
DEFINED = {"number": {"type": "number", "minimum": 1}, "section": {"properties": {"a": {"maximum": 2}}}}


def schemas(keywords: dict[str, Any], depth: int = 2) -> st.SearchStrategy[Any]:
    """Schemas with some of the keywords, nested so deep; one about a value alone is as likely as one that leads on."""
    inner = st.booleans() | (schemas(keywords, depth - 1) if depth else st.just({}))
    alone = st.sets(st.sampled_from(sorted(RULES)), max_size=2)
    leading = st.sets(st.sampled_from(sorted(set(keywords) - set(RULES))), max_size=3) if depth else st.just(set())
    return st.builds(set.union, alone, leading).flatmap(
        lambda names: st.fixed_dictionaries({name: keywords[name](inner) for name in sorted(names)})
    )


@pytest.mark.parametrize("keywords", [KNOWN, {**KNOWN, **OTHERS}], ids=["our rules", "with other rules"])
@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.long)])
def test_whatever_the_schema_the_verdict_is_that_of_jsonschema(keywords: dict[str, Any], count: int) -> None:
    """Schemas and values made by hypothesis; what is found says where and in one line."""

    @settings(max_examples=count, deadline=None, derandomize=True, database=None)
    @given(schemas(keywords), VALUES)
    @example({"properties": {"a": {"minimum": 2}}, "patternProperties": {"^a": {"maximum": 3}}}, {"a": 4})
    @example({"properties": {"a": {"minimum": 2}}, "patternProperties": {"^a": {"maximum": 3}}}, {"a": 1})
    @example({"properties": {"a": {}}, "additionalProperties": {"type": "null"}}, {"a": 1, "b": 1})
    @example({"prefixItems": [{"type": "null"}], "items": {"type": "string"}}, ["a"])
    @example({"propertyNames": {"maxLength": 1}}, {"ab": 1})
    @example({"if": True, "then": False}, 1)
    def same_verdict(tree: dict[str, Any], value: Any) -> None:
        tree = {**tree, "$defs": DEFINED}
        found = validate.findings(value, tree)
        assert bool(found) != Draft202012Validator(tree).is_valid(value), [one.sentence for one in found]
        assert all(finding.sentence.isprintable() and finding.line is None for finding in found)

    same_verdict()


def test_a_keyword_that_the_kit_does_not_know_is_judged_by_jsonschema() -> None:
    assert (
        "jsonschema"
        not in subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys; sys.path.append(sys.argv[1])\n"
                "from resumekit.config import schema\n"
                "assert schema.load().findings({'training': {'batch_size': -1, 'sede': 1}})\n"
                "print(*sys.modules)",
                str(ROOT / "lib"),
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    ), "its own rules need no jsonschema"
    (finding,) = validate.findings({"a": [1, 1]}, {"properties": {"a": {"uniqueItems": True}}}, lines={("a",): 7})
    says = "'a' is '[1, 1]' and breaks the schema's rule 'uniqueItems'"
    assert finding == (("a",), "uniqueItems", [1, 1], says, 7)


def test_a_finding_below_a_list_says_which_item_and_has_the_lists_path() -> None:
    tree = {"properties": {"a": {"items": {"properties": {"b": {"items": {"minimum": 1}}}}}}}
    (finding,) = validate.findings({"a": [{}, {"b": [1, 0]}]}, tree)
    assert finding == (("a",), "minimum", 0, "item 2 of 'b' of item 2 of 'a' is '0' and must be at least 1", None)
