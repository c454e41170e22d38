"""The config's schema: every key described, closed everywhere with an x- door, and a lab's keys laid over it."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "lib"))

from resumekit.basics.actions import ALLOWED, DIRECTIONS, KEEPS_LESS, KEYS  # noqa: E402
from resumekit.basics.errors import InvalidFile  # noqa: E402
from resumekit.configuration import config, schema, schema_checks, yaml_reader  # noqa: E402
from resumekit.configuration.schema_glance import is_surely_valid  # noqa: E402

EXAMPLES = ROOT / "schemas" / "examples"
KIT = schema.load()


def resolve(path: Path) -> dict[str, Any]:
    return config.resolve(yaml_reader.load(path.read_bytes(), str(path)), schema=KIT)


def overlay(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "lab.schema.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_schema_and_the_empty_overlay_are_json_schemas_of_2020_12() -> None:
    for path in (schema.CONFIG_SCHEMA, schema.LAB_SCHEMA):
        tree = json.loads(path.read_text())
        assert tree["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        Draft202012Validator.check_schema(tree)


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
    assert set(entry["properties"]) == {"name", "notes", "lineage", "tags"} | sections - {"experiment"}


def test_no_alias_is_another_keys_name() -> None:
    aliases = [alias for node in KIT.leaves.values() for alias in node.get("x-aliases", [])]
    assert len(aliases) == len(set(aliases))
    assert not set(aliases) & {key.rpartition(".")[2] for key in KIT.leaves}
    assert {"eval_frequency", "optimizer_swap_at"} <= set(aliases)


@pytest.mark.parametrize("path", sorted((EXAMPLES / "config").glob("valid*")), ids=lambda path: path.name)
def test_the_valid_examples_resolve(path: Path) -> None:
    assert resolve(path)["trainer"]["command"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "invalid-unknown-key.yaml",
            "there is no key 'batchsize' in section 'training'; the nearest known is 'batch_size' ({}, line 3)",
        ),
        (
            "invalid-unused-experiment.yaml",
            "'experiments.EXP-02.training.seed' is 'many', a text, and must be a whole number of at least 0"
            " ({}, line 5)",
        ),
        ("invalid-range.yaml", "'checkpoint.keep_last' is '1' and must be at least 2 ({}, line 3)"),
        (
            "invalid-pattern.json",
            "'paths.checkpoints' is '../elsewhere' and must be a path inside the run folder, without '..' ({}, line 3)",
        ),
    ],
)
def test_the_invalid_examples_are_refused_with_key_value_line_and_advice(name: str, says: str) -> None:
    path = EXAMPLES / "config" / name
    with pytest.raises(InvalidFile) as caught:
        resolve(path)
    assert str(caught.value) == says.format(f"'{path}'")


def test_every_invalid_example_is_among_those() -> None:
    assert len(list((EXAMPLES / "config").glob("invalid*"))) == 4


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
        ("checkpoint:\n  pattern: step.pt\n", "'{step}' in it once"),
        ("checkpoint:\n  pattern: '../{step}.pt'\n", "without '/'"),
        ('checkpoint:\n  pattern: "{step}.pt\\n"\n', "and must be a file name"),
        ("experiments:\n  EXP_1: {}\n", "the name 'EXP_1' under 'experiments' is refused"),
        ("experiments:\n  -x: {}\n", "the name '-x'"),
        ('experiments:\n  "EXP-1\\n": {}\n', "the name 'EXP-1\\n'"),
        ("experiments:\n  '..': {}\n", "the name '..'"),
        ("experiments:\n  A:\n    name: 'a/b'\n", "'experiments.A.name' is 'a/b' and must be letters"),
        ("experiments:\n  A:\n    experiment: {name: B}\n", "no key 'experiment'"),
        ("experiments:\n  A:\n    experiments: {}\n", "no key 'experiments'"),
        ("trainning: {}\n", "no key 'trainning' at the top; the nearest known is 'training'"),
        ("zzzz: {}\n", "no key 'zzzz' at the top"),
        ('training:\n  "\\e[31mred": 1\n', "'\\x1b[31mred'"),
    ],
)
def test_wrong_values_are_refused_with_what_they_must_be(text: str, says: str) -> None:
    with pytest.raises(InvalidFile) as caught:
        config.resolve(yaml_reader.load("trainer: {command: [x]}\n" + text, "c.yaml"), schema=KIT)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert "('c.yaml', line " in message


@pytest.mark.parametrize("count", [500, pytest.param(2_000, marks=pytest.mark.long)])
def test_what_our_own_walk_and_jsonschema_say_about_types_and_keys_is_the_same(count: int) -> None:
    """So many configs with one value replaced: the walk finds fault where jsonschema finds a type or key at fault."""
    rng = random.Random(5)
    whole = yaml_reader.load((ROOT / "config.yaml").read_bytes(), "c").data
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
        theirs = any(error.validator in ("type", "additionalProperties") for error in validator.iter_errors(data))
        assert bool(list(schema_checks.key_and_type_problems(data, KIT))) == theirs, (key, parent[key])
        faults += theirs
    assert count / 4 < faults < count * 0.95


def test_a_hundred_thousand_characters_of_unknown_keys_are_refused_at_once() -> None:
    text = "trainer: {command: [x]}\n" + "".join(f"batchsize{i}: 1\n" for i in range(12_000))
    with pytest.raises(InvalidFile, match="'batchsize0'"):
        config.resolve(yaml_reader.load(text, "c"), schema=KIT)


def test_without_jsonschema_types_and_keys_are_still_checked_and_the_rest_is_said_once() -> None:
    code = (
        "import sys; sys.modules['jsonschema'] = None; sys.path.append(sys.argv[1])\n"
        "from resumekit.configuration import config, yaml_reader\n"
        "for text in ('{seed: 1, batch_size: -1}', '{seed: 2}', '{batchsize: 1}', '{seed: x}'):\n"
        "    try:\n"
        "        document = yaml_reader.load('trainer: {command: [x]}\\ntraining: ' + text, 'c')\n"
        "        print(config.resolve(document)['training'])\n"
        "    except config.InvalidFile as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, str(ROOT / "lib")], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "{'seed': 1, 'batch_size': -1}",
        "{'seed': 2}",
        "there is no key 'batchsize' in section 'training'; the nearest known is 'batch_size' ('c', line 2)",
        "'training.seed' is 'x', a text, and must be a whole number of at least 0 ('c', line 2)",
    ]
    assert done.stderr == (
        "resumekit: jsonschema is not installed: ranges, allowed words, patterns and lengths of config values"
        " are not checked; pip install jsonschema\n"
    )


# --- a lab's overlay


def lab_resolve(tmp_path: Path, content: Any, text: str, *overrides: str) -> tuple[dict[str, Any], schema.Schema]:
    merged = schema.load(overlay(tmp_path, content))
    return config.resolve(
        yaml_reader.load(text, "c.yaml"), "A" if "A:" in text else None, overrides, schema=merged
    ), merged


LAB = json.loads((EXAMPLES / "lab" / "valid.json").read_text())
BASE = "trainer: {command: [x]}\n"


def test_a_lab_adds_keys_to_our_sections_and_sections_of_its_own(tmp_path: Path) -> None:
    text = (
        BASE
        + "cluster: {partition: long}\n"
        + "experiments: {A: {cluster: {partition: short}, training: {label_smoothing: 0.1}}}\n"
    )
    resolved, _ = lab_resolve(tmp_path, LAB, text)
    assert resolved["cluster"] == {"partition": "short"}
    assert resolved["training"]["label_smoothing"] == 0.1
    resolved, _ = lab_resolve(tmp_path, LAB, BASE, "partition=long", "label_smoothing=0.2")
    assert (resolved["cluster"]["partition"], resolved["training"]["label_smoothing"]) == ("long", 0.2)


def test_a_labs_keys_are_checked_like_ours(tmp_path: Path) -> None:
    for text, says in [
        ("cluster: {partition: huge}", "must be one of 'short', 'long'"),
        ("cluster: {partitoin: long}", "the nearest known is 'partition'"),
        ("training: {label_smoothing: 2}", "must be below 1"),
        ("experiments: {B: {cluster: {partition: 1}}}", "'experiments.B.cluster.partition' is '1'"),
    ]:
        with pytest.raises(InvalidFile, match=re.escape(says)):
            lab_resolve(tmp_path, LAB, BASE + text + "\n")


def test_a_labs_keys_are_hashed_unless_it_says_otherwise(tmp_path: Path) -> None:
    base, merged = lab_resolve(tmp_path, LAB, BASE)
    for setting, changes_hash in (("label_smoothing=0.1", True), ("partition=long", False)):
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
            (EXAMPLES / "lab" / "invalid.json").read_text(),
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
        ({"properties": []}, "not an object with 'properties'"),
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


@pytest.mark.parametrize(
    "rule", [{"minimum": "x"}, {"enum": 5}, {"pattern": "("}, {"items": 5}, {"anyOf": 3}, {"not": []}]
)
def test_a_labs_broken_rule_ends_in_a_sentence(tmp_path: Path, rule: dict[str, Any]) -> None:
    content = {"properties": {"lab": {"properties": {"a": rule, "b": {"type": "array", "items": rule}}}}}
    with pytest.raises(InvalidFile) as caught:
        lab_resolve(tmp_path, content, BASE + "lab: {a: [1, x], b: [1, x]}\n")
    assert "\n" not in str(caught.value)


def test_a_missing_overlay_that_was_named_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="no such file"):
        schema.load(tmp_path / "none.json")


def _odd_values(node: dict, dice: random.Random) -> list:
    """Values around the edges of a key's rules, and some of every other kind."""
    keywords = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    limits = [node[keyword] for keyword in keywords if keyword in node]
    edges = [limit + delta for limit in limits for delta in (-1, 0, 1, -1e-9, 1e-9)]
    texts = ["", "x", "a" * 300, "../x", "a b", "off", "EXP-01", "{step}.pt", "x" * 81, "ä", "\n"]
    plain = [None, True, False, 0, 1, -1, 2.0, 0.5, -0.0, 1e300, [], ["a"], [1, "a"], [[]], {}, {"x-a": 1}, {"a": 1}]
    own = [*node.get("enum", []), *node.get("examples", []), dice.random(), dice.randint(-9, 9)]
    return [*edges, *texts, *plain, *own]


def test_the_glance_accepts_nothing_that_jsonschema_refuses_and_most_of_what_it_accepts() -> None:
    """Every key of the schema with thousands of values: 'surely valid' is never wrong, and worth having."""
    dice = random.Random(1)
    judge = Draft202012Validator(KIT.tree)
    asked = sure = valid = 0
    for key, node in KIT.leaves.items():
        for value in _odd_values(node, dice):
            data = value
            for part in reversed(key.split(".")):
                data = {part: data}
            asked += 1
            is_valid, is_sure = judge.is_valid(data), is_surely_valid(data, KIT.tree, KIT.tree)
            assert is_valid or not is_sure, data
            valid, sure = valid + is_valid, sure + is_sure
    assert asked > 3000
    assert sure == valid


def test_the_glance_is_not_sure_of_a_keyword_that_it_does_not_know() -> None:
    assert is_surely_valid(4, {"minimum": 3, "x-note": 1, "description": "n"}, {})
    assert not is_surely_valid(4, {"multipleOf": 3}, {})
    assert not is_surely_valid(4, {"$ref": "https://example.org/other"}, {})
    assert not is_surely_valid({"a": 1}, {"required": ["a"]}, {})
