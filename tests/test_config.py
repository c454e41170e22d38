"""A run's config: base <- experiment <- --set, rules across settings, a hash of what shapes the training."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from resumekit.base.errors import INVALID, USAGE, InvalidFile, KitError, UsageError
from resumekit.config import config, rules, schema, yaml_document

KIT = schema.load()
SHIPPED = config.load_config()
BASE = "trainer: {command: [python, train.py]}\n"


def resolve(text: str, experiment: str | None = None, *overrides: str) -> dict[str, Any]:
    return config.resolve(yaml_document.load(text, "c.yaml"), experiment, overrides, schema=KIT)


def shipped(experiment: str | None = None, *overrides: str) -> dict[str, Any]:
    return config.resolve(SHIPPED.document, experiment, overrides, schema=KIT)


# --- the shipped config


# What the shipped trainer can do and a lab's, by default, can't.
OF_THE_EXAMPLE = ("trainer.loads_with_kit", "trainer.schedule_with_kit", "trainer.describe_args")


def test_the_shipped_base_carries_the_protocols_numbers() -> None:
    numbers = {
        "validation.fast_eval_every": 2000,
        "validation.full_eval_every": 10000,
        "validation.gate_full_eval_on_fast_improvement": True,
        "status.interval_s": 60.0,
        "optimizer.swap_lr_factor": 0.8,
        "optimizer.swap_weight_decay": 0.01,
        "optimizer.weight_decay": 0.01,
        "swa.start_step": 50000,
        "resume.throughput_band": 0.15,
        "abort.throughput_drop": 0.5,
        "abort.throughput_minutes": 10.0,
        "recover.lr_factor": 0.8,
        "checkpoint.pattern": "hrm_arc_step_{step}.pt",
        "checkpoint.best_pattern": "hrm_arc_best.pt",
        "paths.checkpoints": "checkpoints",
        "paths.logs": "logs",
        "paths.status": "status.json",
    }
    base = shipped()
    assert {key: config.get(base, key) for key in numbers} == numbers
    assert 1000 <= base["optimizer"]["swap_lr_steps"] <= 2000
    assert 1000 <= base["recover"]["replay_steps"] <= 2000
    assert 0.01 <= base["validation"]["fast_fraction"] <= 0.02


def test_the_shipped_experiments_are_the_protocols() -> None:
    experiments = SHIPPED.document.data["experiments"]
    assert experiments["EXP-03"]["name"] == "droppath_base"
    assert list(experiments) == ["EXP-01", *(f"EXP-0{number}" for number in range(3, 10)), "EXP-10"]
    small = shipped("EXP-01")
    assert config.get(small, "status.interval_s") == 5.0
    assert config.get(small, "training.threads") == 1
    paper = shipped("EXP-10")["model"]
    assert [paper[key] for key in ("hidden_size", "layers", "heads", "h_cycles", "l_cycles", "halt_max_steps")] == [
        512,
        4,
        8,
        2,
        2,
        16,
    ]


def test_an_experiment_has_the_sections_of_its_base_below_its_own() -> None:
    text = BASE + (
        "experiments:\n  A: {name: a, notes: of a, tags: [x], training: {seed: 1, batch_size: 4}, optimizer: {lr: 1}}\n"
        "  B: {base: A, training: {seed: 2}}\n  C: {name: c, base: B, optimizer: {lr: 2}}\n"
    )
    found = resolve(text, "C")
    assert (found["training"]["seed"], found["training"]["batch_size"], found["optimizer"]["lr"]) == (2, 4, 2.0)
    own = found["experiment"]
    assert (own["name"], own["run_name"], own["notes"], own["tags"]) == ("C", "c", "", []), "each speaks for itself"
    assert resolve(text, "B")["optimizer"]["lr"] == 1.0


@pytest.mark.parametrize(
    "entries, says",
    [
        (
            "A: {}\n  B: {base: AB}",
            "'experiments.B.base' is 'AB', and there is no such experiment; the nearest known is 'A'",
        ),
        ("A: {base: A}", "'experiments.A.base' is 'A', which leads back to it: A -> A"),
        (
            "A: {base: C}\n  B: {base: A}\n  C: {base: B}",
            "'experiments.A.base' is 'C', which leads back to it: A -> C -> B -> A",
        ),
    ],
)
def test_a_base_that_is_not_there_or_leads_back_is_refused_whatever_is_run(entries: str, says: str) -> None:
    with pytest.raises(InvalidFile) as error:
        resolve(BASE + f"experiments:\n  D: {{}}\n  {entries}\n", "D")
    assert says in str(error.value) and "line" in str(error.value)


@pytest.mark.parametrize("experiment", [None, *SHIPPED.document.data["experiments"]])
def test_every_shipped_experiment_resolves_and_has_a_sequence_as_long_as_its_largest_grid(
    experiment: str | None,
) -> None:
    resolved = shipped(experiment)
    assert resolved["model"]["seq_len"] == resolved["data"]["max_grid"] ** 2


def test_the_shipped_config_holds_every_key_of_the_schema_with_a_comment() -> None:
    given_keys = {".".join(path) for path in SHIPPED.document.lines if path[0] != "experiments"}
    assert {
        key for key in KIT.leaves if not key.startswith(("trainer.log_patterns.", "checkpoint.keys."))
    } <= given_keys
    rows = SHIPPED.content.decode().split("\n")
    for path, line in SHIPPED.document.lines.items():
        if path[0] != "experiments" and ".".join(path) in KIT.leaves and path != ("trainer", "command"):
            assert re.search(r" # \S", rows[line - 1]), f"{'.'.join(path)}, line {line}"


def test_the_shipped_base_and_the_schemas_defaults_are_the_same() -> None:
    base = shipped()
    for key, node in KIT.leaves.items():
        if "default" in node and key not in (
            "trainer.loads_with_kit",
            "trainer.schedule_with_kit",
            "trainer.describe_args",
        ):
            assert config.get(base, key) == node["default"], key


# --- resolving


def test_a_command_is_all_that_a_config_needs() -> None:
    resolved = resolve(BASE)
    assert resolved["checkpoint"]["every"] == 500
    assert resolved["training"] == {}
    assert set(resolved) == {name for name in KIT.sections if "." not in name}


def test_base_experiment_and_set_override_each_other_in_that_order() -> None:
    text = (
        BASE
        + "training: {seed: 1, batch_size: 2, max_steps: 9}\nexperiments: {A: {training: {seed: 3, batch_size: 4}}}\n"
    )
    assert resolve(text)["training"] == {"seed": 1, "batch_size": 2, "max_steps": 9}
    assert resolve(text, "A")["training"] == {"seed": 3, "batch_size": 4, "max_steps": 9}
    assert resolve(text, "A", "seed=5", "seed=6")["training"] == {"seed": 6, "batch_size": 4, "max_steps": 9}


def test_an_experiment_gives_its_id_name_and_notes_to_the_resolved_config() -> None:
    text = (
        BASE
        + "experiment: {notes: of the base, tags: [a]}\nexperiments:\n  EXP-1: {name: small, notes: of it}\n  EXP-2:\n"
    )
    assert resolve(text, "EXP-1")["experiment"] == {
        "name": "EXP-1",
        "run_name": "small",
        "lineage": None,
        "notes": "of it",
        "tags": ["a"],
    }
    assert resolve(text, "EXP-2")["experiment"]["notes"] == "of the base"
    assert "experiments" not in resolve(text, "EXP-1")


def test_lists_are_replaced_and_sections_are_merged() -> None:
    text = BASE + "optimizer: {betas: [0.9, 0.95], lr: 1}\nexperiments: {A: {optimizer: {betas: [0.8, 0.9]}}}\n"
    assert resolve(text, "A")["optimizer"] == {"betas": [0.8, 0.9], "lr": 1.0}


@pytest.mark.fault("I1", by="config: typed by the schema")
def test_numbers_become_what_the_schema_says() -> None:
    resolved = resolve(BASE + "training: {max_steps: 1e5, seed: 3.0}\noptimizer: {lr: 1, betas: [0, 0.5]}\n")
    assert json.dumps([resolved["training"], resolved["optimizer"]]) == (
        '[{"max_steps": 100000, "seed": 3}, {"lr": 1.0, "betas": [0.0, 0.5]}]'
    )


def test_an_unknown_experiment_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no experiment 'EXP-9' in 'c\.yaml'; known are A, B"):
        resolve(BASE + "experiments: {A: {}, B: {}}\n", "EXP-9")
    with pytest.raises(UsageError, match="known are none"):
        resolve(BASE, "EXP-9")


def test_keys_that_begin_with_x_are_taken_anywhere_and_hashed_where_the_section_is() -> None:
    resolved = resolve(
        BASE + "x-a: {b: [1]}\ntraining: {x-c: 1}\nexperiments: {A: {training: {x-c: {d: 2}}}}\n",
        "A",
        "x-a.e=5",
        "status.x-f=g",
    )
    assert resolved["x-a"] == {"e": 5}
    assert resolved["training"]["x-c"] == {"d": 2}
    before = config.config_hash(resolve(BASE), KIT)
    assert config.config_hash(resolve(BASE, None, "x-a=1"), KIT) != before
    assert config.config_hash(resolve(BASE, None, "training.x-a=1"), KIT) != before
    assert config.config_hash(resolve(BASE, None, "status.x-a=1"), KIT) == before


# --- --set


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("training.batch_size=8", "training.batch_size", 8),
        ("grad_accum_steps=5", "training.grad_accum_steps", 5),
        ("eval_frequency=2000", "validation.fast_eval_every", 2000),
        ("learning_rate=3e-4", "optimizer.lr", 0.0003),
        ("weight_decay=1e-2", "optimizer.weight_decay", 0.01),
        ("optimizer=reset", "resume.optimizer", "reset"),
        ("trainer.command=[python, train.py]", "trainer.command", ["python", "train.py"]),
        ("trainer.log_patterns={step: 's (.)'}", "trainer.log_patterns", {"step": "s (.)"}),
        ("trainer.log_patterns.loss=l (.)", "trainer.log_patterns", {"loss": "l (.)"}),
        ("trainer.cwd=null", "trainer.cwd", None),
        ("trainer.cwd=", "trainer.cwd", None),
        ("trainer.cwd='null'", "trainer.cwd", "null"),
        ("data.version=012", "data.version", "012"),
        ("data.version=yes", "data.version", "yes"),
        ("notes=", "experiment.notes", ""),
        ("notes='a: b'", "experiment.notes", "a: b"),
        ("notes='tis", "experiment.notes", "'tis"),
        ("notes=a=b", "experiment.notes", "a=b"),
    ],
)
def test_a_setting_means_the_one_key_of_that_name_and_its_value_is_yaml(setting: str, key: str, value: Any) -> None:
    assert config.get(resolve(BASE, None, setting), key) == value


def test_the_protocols_name_of_the_planned_swap_is_known() -> None:
    assert shipped(None, "optimizer_swap_at=40000")["optimizer"]["swap_at"] == 40000


def test_nothing_behind_the_equals_sign_is_null_or_the_empty_text() -> None:
    assert resolve(BASE, None, "data.path=")["data"]["path"] is None
    assert resolve(BASE, None, "model.name=x", "experiment.notes=")["experiment"]["notes"] == ""


TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=60)


@pytest.mark.fault("I12", by="settings, yaml_document: exact both ways")
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(TEXTS)
def test_any_text_given_as_setting_comes_back_exactly_through_both_files(text: str) -> None:
    if text[:1] in "'\"":
        text = " " + text  # in quotes it is YAML
    resolved = resolve(BASE, None, f"notes={text}")
    assert resolved["experiment"]["notes"] == text
    written = yaml_document.dump(resolved)
    for found in (
        yaml_document.load(written, "c").data,
        yaml_document.load(written, "c", reader="subset").data,
        yaml.safe_load(written),
    ):
        assert found == resolved
    assert json.loads(json.dumps(resolved)) == resolved


@pytest.mark.fault("I12", by="settings: what is no YAML value is a text")
@pytest.mark.parametrize(
    "value",
    [
        "a\nb",
        "a: b",
        "a # b",
        "'",
        '"',
        "\"a\" 'b'",
        "$(touch x)",
        "{a: b}",
        "[1",
        "*a",
        "&a",
        "!!x",
        "- a",
        "%",
        "a\tb",
    ],
)
def test_a_text_with_newline_colon_hash_or_quote_is_taken_as_typed(value: str) -> None:
    assert resolve(BASE, None, f"experiment.notes={value}")["experiment"]["notes"] == value


@pytest.mark.fault("I10", by="schema: the nearest known key")
@pytest.mark.fault("I11", by="settings: form and type, quoted")
@pytest.mark.parametrize(
    ("setting", "error", "says"),
    [
        ("training.seed", UsageError, "has no '='"),
        ("=1", UsageError, "empty part in its key"),
        ("a..b=1", UsageError, "empty part in its key"),
        (".seed=1", UsageError, "empty part in its key"),
        ("training.=1", UsageError, "empty part in its key"),
        (" seed=1", UsageError, "empty part in its key"),
        (
            "name=x",
            UsageError,
            "may mean experiment.name or data.name or model.name or optimizer.name or schedule.name",
        ),
        ("lr=1", UsageError, "may mean optimizer.lr or swa.lr"),
        ("enabled=true", UsageError, "may mean ema.enabled or swa.enabled or recover.enabled"),
        ("experiments.A.training.seed=1", UsageError, "an entry of experiments"),
        (
            "seed=many",
            InvalidFile,
            "'training.seed' is 'many', a text, and must be a whole number of at least 0 (--set 'seed=many')",
        ),
        ("training.seed=1.5", InvalidFile, "must be a whole number"),
        ("training.seed=1_000", InvalidFile, "'1_000'"),
        ("training.seed=[1", InvalidFile, "not YAML"),
        ("training.seed=", InvalidFile, "is empty and must be a whole number of at least 0 (--set 'training.seed=')"),
        ("training.seed=null", InvalidFile, "'training.seed' is null and must be a whole number of at least 0"),
        (
            "abort.eval_minutes=off",
            InvalidFile,
            "is 'off' and must be a number above 0 (--set 'abort.eval_minutes=off')",
        ),
        (
            "abort.divergence=off",
            InvalidFile,
            "is 'off' and must be a number above 1 or null; write null to switch it off",
        ),
        ("abort.divergence=on", InvalidFile, "is 'on' and must be a number above 1 or null (--set"),
        ("abort.hang_minutes=.inf", InvalidFile, "'abort.hang_minutes' is '.inf' (it looks like a number that is not"),
        (
            "recover.lr_factor=012",
            InvalidFile,
            "(a leading zero is octal to some YAML readers) and must be a number above 0 and",
        ),
        ("recover.enabled=no", InvalidFile, "'recover.enabled' is 'no' and must be true or false (--set"),
        ("optimizer.betas=[0.9, off]", InvalidFile, "write true or false, or put it in quotes"),
        ("abort.throughput_drop=50", InvalidFile, "'abort.throughput_drop' is '50' and must be below 1"),
        (
            "recover.retries=3",
            InvalidFile,
            "there is no key 'recover.retries' (--set 'recover.retries=3'); known are recover.",
        ),
        ("recover.attempts=3", InvalidFile, "the nearest known is 'recover.max_attempts'"),
        ("recover.batch_size=3", InvalidFile, "the nearest known is 'training.batch_size'"),
        ("batch=4", InvalidFile, "the nearest known is 'batch_size'"),
        ("zzz=4", InvalidFile, "there is no key 'zzz' (--set 'zzz=4')"),
        ("seeed=1", InvalidFile, "there is no key 'seeed' (--set 'seeed=1'); the nearest known is 'seed'"),
        ("training.seeed=1", InvalidFile, "the nearest known is 'training.seed'"),
        ("trainin.seed=1", InvalidFile, "the nearest known is 'training.seed'"),
        ("training.seed.x=1", InvalidFile, "'training.seed' is a value, not a section"),
        ("optimizer.betas.0=0.8", InvalidFile, "'optimizer.betas' is a value, not a section"),
        ("optimizer.betas[0]=0.8", InvalidFile, "there is no key 'optimizer.betas[0]'"),
        ("training=3", InvalidFile, "must be a section"),
        ("batch_size=-1", InvalidFile, "must be at least 1 (--set 'batch_size=-1')"),
        ("data.version=\udcff", InvalidFile, "a character that is none"),
        ("data.version=\0", InvalidFile, "a character that is none"),
    ],
)
def test_a_wrong_setting_is_refused_and_quoted(setting: str, error: type[KitError], says: str) -> None:
    with pytest.raises(error) as caught:
        resolve(BASE, None, setting)
    assert says in str(caught.value)
    assert "--set" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == (USAGE if error is UsageError else INVALID)


def test_the_experiments_own_id_cannot_be_set() -> None:
    with pytest.raises(UsageError, match=r"experiment\.name is 'A' and cannot be set"):
        resolve(BASE + "experiments: {A: {}}\n", "A", "experiment.name=B")


def test_a_resolved_config_takes_settings_and_stays_as_it_was() -> None:
    old = shipped("EXP-01")
    copy = json.loads(json.dumps(old))
    new = config.override(old, ["batch_size=8", "trainer.log_patterns.step=(.)"], KIT)
    assert new["training"]["batch_size"] == 8
    assert old == copy
    assert config.override(old, [], KIT) == old
    with pytest.raises(InvalidFile, match=r"--set 'batch_size=x'"):
        config.override(old, ["batch_size=x"], KIT)


def test_a_resolved_config_from_somewhere_else_is_checked_before_it_is_used() -> None:
    foreign = {"trainer": {"command": ["x"]}, "checkpoint": {"every": 200}}
    completed = config.override(foreign, ["seed=1"], KIT)
    assert (completed["checkpoint"]["every"], completed["checkpoint"]["keep_last"]) == (200, 5)
    assert completed["training"] == {"seed": 1}
    for broken, says in [
        ({"checkpoint": {"every": "$(touch x)"}}, "'checkpoint.every' is '$(touch x)', a text"),
        ({"checkpoint": []}, "must be a section"),
        ({"unknown": 1}, "no key 'unknown'"),
        ([], "the config is '[]'"),
        ({}, "trainer.command is missing"),
    ]:
        with pytest.raises(InvalidFile) as caught:
            config.override(broken, [], KIT, "runs/r/resolved_config.json")
        assert says in str(caught.value)
        assert "('runs/r/resolved_config.json')" in str(caught.value)


# --- rules across settings


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["checkpoint.every=100", "checkpoint.keep_last=2", "trainer.loads_with_kit=true"],
            "2 x 100 = 200 steps, less than recover.replay_steps 1000",
        ),
        (["hidden_size=10", "heads=3"], "model.hidden_size 10 cannot be divided among model.heads 3"),
        (["swap_at=5"], "optimizer.swap_to does not say to what"),
        (["checkpoint.best_pattern=hrm_arc_step_7.pt"], "would be read as a step"),
        (["paths.logs=checkpoints"], "each needs a name of its own"),
        (["trainer.log_patterns.loss=loss ("], "no regular expression"),
        (["trainer.log_patterns.loss=loss"], "has no group"),
        (
            ["oom_set=[batch_size=0]"],
            "abort.oom_set holds what --set would refuse: 'training.batch_size' is '0' and must be at least 1",
        ),
        (["oom_set=[batch_size]"], "abort.oom_set holds what --set would refuse: 'batch_size' (item) has no '='"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_with_the_rule(overrides: list[str], says: str) -> None:
    with pytest.raises(InvalidFile) as caught:
        resolve(BASE, None, *overrides)
    assert says in str(caught.value)
    assert str(caught.value).endswith(tuple(f"(--set '{setting}')" for setting in overrides)), "where it came from"


def test_a_broken_rule_says_whether_it_came_from_the_file_or_from_a_setting() -> None:
    cases = (
        ("abort: {oom_set: [batch=4]}\n", ["seed=1"], "there is no key 'batch' (item 'batch=4')", "('c.yaml')"),
        ("abort: {oom_set: [batch_size=0]}\n", ["batch_size=4"], "'training.batch_size' is '0'", "('c.yaml')"),
        ("model: {heads: 3}\n", ["model.hidden_size=10"], "", "(--set 'model.hidden_size=10')"),
        ("model: {hidden_size: 10}\n", ["seed=1", "heads=3"], "", "(--set 'heads=3')"),
        ("", ["abort={oom_set: [batch=4]}", "seed=1"], "item 'batch=4'", "(--set 'abort={oom_set: [batch=4]}')"),
    )
    for text, overrides, says, origin in cases:
        with pytest.raises(InvalidFile) as caught:
            resolve(BASE + text, None, *overrides)
        assert says in str(caught.value) and str(caught.value).endswith(f" {origin}")
        assert str(caught.value).count("(--set") + str(caught.value).count("c.yaml") == 1


@pytest.mark.parametrize("reader", ["pyyaml", "subset"])
def test_a_word_that_readers_disagree_about_is_refused_by_what_its_key_takes(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_document, "_has_pyyaml", lambda: reader == "pyyaml")
    cases = (
        ("abort:\n  eval_minutes: off\n", "'abort.eval_minutes' is 'off' and must be a number above 0 ({}, line 2)"),
        ("recover: {enabled: yes}\n", "'recover.enabled' is 'yes' and must be true or false ({}, line 1)"),
        (
            "experiments:\n  A:\n    abort:\n      hang_minutes: .nan\n",
            "'experiments.A.abort.hang_minutes' is '.nan' (it looks like a number that is not finite) and must be"
            " a number above 0 ({}, line 4)",
        ),
        ("training: {amp: off}\n", "or put it in quotes"),
        ("recover: {enabled: true, on: 3}\n", "'on' is true or false to some YAML readers"),
        ("optimizer: {betas: [0.9, off]}\n", "'off' is true or false to some YAML readers"),
        ("nothing: {like: off}\n", "'off' is true or false to some YAML readers"),
        ("x-mine: off\n", "'off' is true or false to some YAML readers"),
    )
    path = tmp_path / "c.yaml"
    for text, says in cases:
        path.write_text(text)
        with pytest.raises(InvalidFile) as caught:
            config.load_config(path)
        assert says.format(f"'{path}'") in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["checkpoint.every=100", "checkpoint.keep_last=2", "trainer.loads_with_kit=true", "recover.enabled=false"],
        ["checkpoint.every=100", "checkpoint.keep_last=2", "trainer.loads_with_kit=false"],
        ["checkpoint.every=100", "checkpoint.keep_last=null"],
        ["checkpoint.every=100", "checkpoint.keep_last=10"],
        ["fast_eval_every=10", "full_eval_every=10"],
        ["warmup_steps=9", "max_steps=10"],
        ["swap_at=5", "swap_to=lion"],
    ],
)
def test_settings_at_the_edge_of_a_rule_pass(overrides: list[str]) -> None:
    assert rules.doubtful(resolve(BASE, None, "recover.cut_lr_on=[diverged]", *overrides)) == ()


@pytest.mark.parametrize(
    ("overrides", "is_said"),
    [
        ([], True),
        (["recover.enabled=false"], False),
        (["recover.cut_lr_on=[diverged]"], False),
        (["trainer.loads_with_kit=true", "recover.replay_steps=0"], False),
        (["recover.lr_args=[--lr, '{lr}']", "optimizer.lr=0.1", "trainer.command=[train, '{optimizer.lr}']"], False),
    ],
)
def test_a_nan_that_would_wait_for_a_person_is_said_at_the_start(overrides: list[str], is_said: bool) -> None:
    said = rules.doubtful(resolve(BASE, None, *overrides))
    assert len(said) == is_said
    assert all(one.startswith("a NaN needs a person: ") and "recover.lr_args hands it" in one for one in said)


@pytest.mark.parametrize("experiment", ["EXP-01", "EXP-03", "EXP-09"])
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("eval_frequency=2000", "validation.fast_eval_every is 2000 and validation.full_eval_every 500"),
        ("training.max_steps=60", "schedule.warmup_steps is 100 and training.max_steps 60"),
    ],
)
def test_settings_that_train_and_are_hardly_meant_are_warned_of_and_taken_as_they_stand(
    experiment: str, setting: str, says: str
) -> None:
    """The two settings that a user of the shipped config tries first."""
    resolved = shipped(experiment, setting)
    (sentence,) = rules.doubtful(resolved)
    assert says in sentence and "--set " in sentence, "and what to set"
    assert resolved["schedule"]["warmup_steps"] == 100, "nothing is scaled by itself"


def test_a_config_without_a_command_is_refused() -> None:
    with pytest.raises(InvalidFile, match=r"trainer\.command is missing"):
        resolve("training: {seed: 1}\n")


# --- the hash


def hash_of(text: str, *overrides: str) -> str:
    return config.config_hash(resolve(BASE + text, None, *overrides), KIT)


@pytest.mark.fault("I14", by="config: canonical JSON, typed numbers")
def test_the_hash_is_stable_under_order_comments_and_spelling() -> None:
    reference = hash_of("training: {seed: 1, max_steps: 100000}\noptimizer: {lr: 1e-4, betas: [0.9, 1e-1]}\n")
    assert reference == hash_of(
        "# a comment\noptimizer:\n  betas:\n    - .9\n    - 0.10\n  lr: 0.0001 # small\n"
        "training:\n  max_steps: 1e5\n  seed: 1.0\n"
    )
    assert reference == hash_of(
        "optimizer: {betas: [0.9, 0.1]}\n", "training.seed=1", "max_steps=100000", "optimizer.lr=0.1e-3"
    )
    assert re.fullmatch("[0-9a-f]{64}", reference)


@pytest.mark.fault("I14", by="config: canonical JSON, typed numbers")
def test_the_hash_survives_writing_and_reading() -> None:
    resolved = shipped("EXP-01")
    for text in (yaml_document.dump(resolved), json.dumps(resolved)):
        assert config.config_hash(yaml_document.load(text, "c").data, KIT) == config.config_hash(resolved, KIT)


def other(value: Any, node: dict[str, Any]) -> Any:
    types = [node["type"]] if isinstance(node["type"], str) else node["type"]
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str) or "string" in types:
        return f"{value}x"
    if "array" in types:
        return [*(value or []), "x"]
    return 7


@pytest.mark.parametrize("key", KIT.leaves)
def test_the_hash_changes_with_what_shapes_the_training_and_with_nothing_else(key: str) -> None:
    """Written out from the design, not read from the schema: what is in, section by section."""
    hashed_sections = {"model", "data", "training", "optimizer", "schedule", "ema", "swa", "validation"}
    out = {"data.path", "data.fingerprint", "training.device", "training.log_every"}
    inside = (key.partition(".")[0] in hashed_sections and key not in out) or key in (
        "trainer.extra_args",
        "trainer.command",
    )
    base = shipped()
    changed = json.loads(json.dumps(base))
    *parents, name = key.split(".")
    section = changed
    for parent in parents:
        section = section.setdefault(parent, {})
    section[name] = other(section.get(name), KIT.leaves[key])
    assert (config.config_hash(changed, KIT) != config.config_hash(base, KIT)) is inside


@pytest.mark.parametrize(
    ("command", "is_same"),
    [
        (["python", "train.py", "--lr", "1"], False),
        (["python", "train.py", "--lr"], False),
        (["python", "train.py", "--lr", "{optimizer.lr}"], False),
        (["python", "train.py", "--lr", "1e-3", "--np", "4"], False),
        (["python", "train.py", "--nproc_per_node=4", "--lr", "1e-3"], True),
        (["python", "--nnodes", "2", "--nproc-per-node", "8", "train.py", "--lr", "1e-3"], True),
        (["python", "--num_processes", "8", "train.py", "--lr", "1e-3"], True),
        (["python", "-np", "8", "train.py", "--lr", "1e-3"], True),
    ],
)
def test_the_words_of_the_command_are_in_the_hash_and_the_number_of_processes_is_not(
    command: list[str], is_same: bool
) -> None:
    base = resolve(BASE)
    was = base["trainer"]["command"] = ["python", "train.py", "--lr", "1e-3"]
    digest = config.config_hash(base, KIT)
    assert base["trainer"]["command"] is was
    base["trainer"]["command"] = command
    assert (config.config_hash(base, KIT) == digest) is is_same


def test_what_a_placeholder_of_the_command_stands_for_is_hashed_by_its_own_key_alone() -> None:
    base = resolve(BASE)
    base["trainer"]["command"] = ["python", "train.py", "{paths.logs}", "{run_dir}"]
    assert config.config_hash(base, KIT) == config.config_hash(config.override(base, ["paths.logs=other"], KIT), KIT)


@pytest.mark.fault("I14", by="config: canonical JSON")
def test_different_configs_have_different_hashes() -> None:
    """1,000 different small configs: 1,000 hashes, whatever the neighbouring keys hold."""
    rng = random.Random(3)
    seen: dict[str, str] = {}
    for _ in range(1_000):
        training = {
            key: rng.randint(1, 12) for key in rng.sample(["batch_size", "grad_accum_steps", "seed", "threads"], 2)
        }
        names = {
            "data": {"name": rng.choice(["a", "1", "a,b", 'a"'])},
            "optimizer": {"lr": rng.choice([1.0, 0.1, 11.0])},
        }
        resolved = {"training": training, **names}
        text = json.dumps(resolved, sort_keys=True)
        digest = config.config_hash(resolved, KIT)
        assert seen.setdefault(digest, text) == text
    assert len(seen) == len(set(seen.values())) > 500


# --- files


def test_a_config_file_is_read_with_its_digest_and_refused_when_it_is_none(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(BASE)
    file = config.load_config(path)
    assert (file.path, file.content, file.document.data) == (
        path,
        BASE.encode(),
        {"trainer": {"command": ["python", "train.py"]}},
    )
    assert file.sha256 == hashlib.sha256(BASE.encode()).hexdigest()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"#" * 300_000)
    for name, says in (
        ("none", "no such file"),
        ("fifo", "not a regular file"),
        (".", "not a regular file"),
        ("large", "larger than"),
    ):
        with pytest.raises(InvalidFile, match=says):
            config.load_config(tmp_path / name)


def test_the_resolved_config_is_written_as_yaml_json_and_a_copy_of_the_original(tmp_path: Path) -> None:
    resolved = shipped("EXP-01")
    config.write_resolved(tmp_path, resolved, SHIPPED)
    assert yaml.safe_load((tmp_path / "resolved_config.yaml").read_text()) == resolved
    assert json.loads((tmp_path / "resolved_config.json").read_text()) == resolved
    assert (tmp_path / "config.yaml").read_bytes() == SHIPPED.content
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.yaml",
        "resolved_config.json",
        "resolved_config.yaml",
    ]


@pytest.mark.fault("I15", by="config: written before the start")
def test_a_resolved_config_that_cannot_be_written_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "resolved_config.yaml").mkdir()
    with pytest.raises(KitError) as caught:
        config.write_resolved(tmp_path, shipped())
    assert "resolved_config.yaml' cannot be written" in str(caught.value)
    with pytest.raises(KitError, match="cannot be written"):
        config.write_resolved(tmp_path / "none", shipped())
