"""The config's YAML: one meaning for every text, refusals in one sentence, two readers that never disagree."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from resumekit.base.errors import InvalidFile
from resumekit.config import yaml_document, yaml_scalars
from resumekit.policy.config_diff import _same
from support import yaml_documents
from support.places import ROOT

READERS = ["pyyaml", "subset"]


def read(text: str | bytes, reader: str = "pyyaml") -> dict:
    return yaml_document.load(text, "c.yaml", reader=reader).data


def refusal(text: str | bytes, reader: str = "pyyaml") -> str:
    with pytest.raises(InvalidFile) as caught:
        yaml_document.load(text, "c.yaml", reader=reader)
    message = str(caught.value)
    assert "\n" not in message
    assert message.count("'c.yaml', line ") == 1
    return message


@pytest.mark.fault("I1", by="yaml_scalars: the numbers of YAML 1.2")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5e-05", 5e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1", -1),
        ("+3", 3),
        ("0", 0),
        ("1.5e+3", 1500.0),
        ("-0.0", 0.0),
        ("123456789012345678", 123456789012345678),
        ("~", None),
        ("null", None),
        ("", None),
        ("true", True),
        ("false", False),
        ("1.2.3", "1.2.3"),
        ("a-b", "a-b"),
        ("'yes'", "yes"),
        ('"012"', "012"),
        ('"a\\nb"', "a\nb"),
        ("a#b", "a#b"),
        ("1e", "1e"),
        ("version 2", "version 2"),
    ],
)
def test_a_word_has_the_type_of_yaml_1_2(reader: str, text: str, value: object) -> None:
    assert _same(read(f"a: {text}\n", reader)["a"], value)


@pytest.mark.fault("I3", by="yaml_scalars: refused with how to write it")
@pytest.mark.fault("I4", by="yaml_scalars: finite numbers only")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "word",
    [
        "yes",
        "No",
        "on",
        "OFF",
        "y",
        "n",
        "012",
        "-07",
        "00.5",
        "0x1f",
        "0o17",
        "0b11",
        "1:30",
        "1_000",
        "1_0.5",
        ".5_0",
        "2001-01-01",
        "2001-1-1 10:00:00",
        ".nan",
        ".inf",
        "-.Inf",
        "nan",
        "Infinity",
        "1e999",
        "1e-999",
        "1234567890123456789",
    ],
)
def test_a_word_that_yaml_readers_disagree_about_is_refused_and_in_quotes_a_text(reader: str, word: str) -> None:
    message = refusal(f"b: 1\na: {word}\n", reader)
    assert f"'{word}'" in message
    assert "line 2" in message
    assert read(f"a: '{word}'\n", reader) == {"a": word}


@pytest.mark.fault("I3", by="yaml_scalars: one reading of every word")
def test_no_accepted_word_is_another_value_to_pyyaml_but_for_numbers_of_yaml_1_2() -> None:
    """40,000 words: what we call a text, true, null or a number is that to PyYAML, or our number is its text."""
    rng = random.Random(7)
    alphabets = [
        "0123456789.-+eE_:",
        "01_.e+-:",
        "0xob1_fA",
        "yYesnoOFf",
        "truefalsTRUE",
        "niINFa.-",
        "0123456789-T :Z.",
        "nulNUL~=",
    ]
    loader, accepted = yaml.SafeLoader(""), 0
    for _ in range(40_000):
        word = "".join(rng.choices(rng.choice(alphabets), k=rng.randint(1, rng.choice([3, 6, 11])))).strip()
        try:
            ours = yaml_scalars.plain(word)
        except yaml_scalars.Refusal:
            continue
        accepted += 1
        tag = loader.resolve(yaml.ScalarNode, word, (True, False))
        theirs = loader.construct_object(yaml.ScalarNode(tag, word))
        is_number = isinstance(ours, (int, float)) and not isinstance(ours, bool)
        assert _same(ours, theirs) or (is_number and theirs == word), word
    assert accepted > 20_000


@pytest.mark.fault("I2", by="yaml_scalars: a key stands once")
@pytest.mark.parametrize("reader", READERS)
def test_duplicate_keys_are_refused_with_both_lines(reader: str) -> None:
    assert "'lr'" in refusal("a:\n  lr: 1\n  b: 2\n  lr: 3\n", reader)
    message = refusal("a:\n  lr: 1\n  b: 2\n  lr: 3\n", reader)
    assert "line 2" in message
    assert "line 4" in message
    assert "stands there twice" in refusal("a: {b: 1, b: 2}\n", reader)


@pytest.mark.fault("I7", by="yaml_document: no tag is known")
@pytest.mark.fault("K2", by="yaml_document: no tag is known")
def test_tags_build_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for tag in ("!!python/object/apply:os.system", "!!python/name:os.system", "!x", "!!str", "!"):
        message = refusal(f"a: 1\nb: {tag} ['touch {canary}']\n")
        assert "the tag" in message
        assert "line 2" in message
    assert not canary.exists()


@pytest.mark.fault("I6", by="yaml_document: no anchors, no aliases")
@pytest.mark.fault("I8", by="yaml_document: depth and digits are counted first")
@pytest.mark.fault("I9", by="yaml_document: UTF-8, one document, sections")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &x 1\nb: *x\n", "the anchor '&x'"),
        ("a: *x\n", "the alias '*x'"),
        ("&a a: [*a]\n", "the anchor"),
        ("a: &a [*a]\n", "the anchor"),
        ("a: 1\n<<: {b: 1}\n", "'<<'"),
        ("1: 2\n", "the key '1' is not a text"),
        ("true: 2\n", "the key 'true' is not a text"),
        ("null: 2\n", "the key 'null' is not a text"),
        ("on: 2\n", "'on'"),
        ("? [a]\n: 1\n", "used as a key"),
        ("{a: {b: 1}: 2}\n", "c.yaml"),
        ("%YAML 1.1\n---\na: 1\n", "directive"),
        ("a: 1\n---\nb: 2\n", "more than one document"),
        ("- a\n", "a list instead of sections"),
        ("word\n", "the single value 'word'"),
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("a:\n\tb: 1\n", "begins with a tab"),
        ("a: [1, 2\n", "not YAML"),
        ("a: b: c\n", "not YAML"),
        (b"a: 1\nb: \xe9\n", "not UTF-8"),
        (b"\xff\xfea\x00", "not UTF-8"),
        ("a: \x00\n", "'\\x00'"),
        ("a: b\u2028c\n", "'\\u2028'"),
        ("a: b\rc: 1\n", "'\\r'"),
        ('a: "\\0"\n', "'\\x00'"),
        ("a: " + "[" * 100_000, "nested deeper"),
        ("".join(f"{' ' * i}a:\n" for i in range(100)), "nested deeper"),
        ("a: " + "1" * 5000, "digits"),
        ("k" * 201 + ": 1\n", "longer than 200"),
        ("a: 1\n" * 100_000, "larger than"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_is_no_config_of_ours_is_refused_in_one_sentence(text: str | bytes, says: str) -> None:
    assert says in refusal(text)


@pytest.mark.fault("I5", by="yaml_document: no anchors, no aliases")
@pytest.mark.fault("K13", by="yaml_document: no anchors, no aliases")
def test_an_alias_bomb_is_refused_before_anything_is_built_of_it() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    before = time.monotonic()
    assert "anchor '&a0'" in refusal("\n".join(levels))
    assert time.monotonic() - before < 1


@pytest.mark.fault("I9", by="yaml_document: byte order mark and CRLF are taken away")
@pytest.mark.parametrize("reader", READERS)
def test_byte_order_mark_and_crlf_change_nothing(reader: str) -> None:
    plain = yaml_document.load("a:\n  b: 1\nc: [x]\n", "c.yaml", reader=reader)
    for text in (b"\xef\xbb\xbfa:\n  b: 1\nc: [x]\n", b"a:\r\n  b: 1\r\nc: [x]\r\n"):
        assert yaml_document.load(text, "c.yaml", reader=reader) == plain


@pytest.mark.parametrize("reader", READERS)
def test_every_key_has_its_line(reader: str) -> None:
    document = yaml_document.load("# top\na:\n  b: 1\n\n  c: {d: 2}\n'e':\n- x\n", "c.yaml", reader=reader)
    assert document.lines == {("a",): 2, ("a", "b"): 3, ("a", "c"): 5, ("a", "c", "d"): 5, ("e",): 6}


@pytest.mark.fault("I13", by="yaml_subset: refuses what it is not sure of")
def test_the_subset_reader_never_differs_from_pyyaml_on_what_it_accepts() -> None:
    """20,000 documents near the edge of its grammar, a fifth of them accepted, and the shipped config with slips."""
    rng = random.Random(20261122)
    shipped = (ROOT / "config.yaml").read_text()
    accepted = 0
    for number in range(20_000):
        text = yaml_documents.slipped(rng, shipped) if number % 50 == 0 else yaml_documents.document(rng)
        try:
            ours = yaml_document.load(text, "c.yaml", reader="subset")
        except InvalidFile:
            continue
        accepted += 1
        theirs = yaml_document.load(text, "c.yaml", reader="pyyaml")
        assert _same(ours.data, theirs.data), text
        assert ours.lines == theirs.lines, text
    assert accepted > 4_000


def test_the_fuzz_would_notice_a_reader_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The alarm rings: with `1e-4` read as a text by the subset reader alone, the comparison fails."""
    real = yaml_scalars.plain
    from resumekit.config import yaml_subset

    class Bent:
        key, quoted, duplicate = yaml_scalars.key, yaml_scalars.quoted, yaml_scalars.duplicate

        @staticmethod
        def plain(text: str, line: int = 1, path: tuple[str, ...] | None = None) -> object:
            return text if "e-" in text else real(text, line, path)

    monkeypatch.setattr(yaml_subset, "yaml_scalars", Bent)
    with pytest.raises(AssertionError):
        test_the_subset_reader_never_differs_from_pyyaml_on_what_it_accepts()


@pytest.mark.fault("I13", by="yaml_document: our own scalars in either parser")
def test_libyaml_and_pyyamls_own_parser_never_build_different_values(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(11)
    compared = 0
    for _ in range(300):
        text = yaml_documents.document(rng)
        found = []
        for with_libyaml in (True, False):
            monkeypatch.setattr(yaml, "__with_libyaml__", with_libyaml)
            try:
                found.append(read(text))
            except InvalidFile:
                found.append(None)
        if None not in found:
            compared += 1
            assert _same(*found), text
    assert compared > 100


def test_the_shipped_config_reads_the_same_without_pyyaml() -> None:
    content = (ROOT / "config.yaml").read_bytes()
    assert yaml_document.load(content, "c") == yaml_document.load(content, "c", reader="subset")


def test_without_pyyaml_installed_the_subset_reader_takes_over_and_says_so_where_it_refuses() -> None:
    code = (
        "import sys; sys.modules['yaml'] = None; sys.path.append(sys.argv[1])\n"
        "from resumekit.config import yaml_document as yaml_reader\n"
        "print(yaml_reader.load('a: 1e-4', 'c').data)\n"
        "yaml_reader.load('a: |\\n  b\\n', 'c')\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, str(ROOT / "lib")], capture_output=True, text=True)
    assert done.stdout == "{'a': 0.0001}\n"
    assert "'|' cannot be read: PyYAML is not installed" in done.stderr
    assert done.stderr.rstrip().endswith("('c', line 1); pip install pyyaml, or write it more simply")


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(st.one_of(st.text(), st.text(alphabet="ab:-#[]{},&*!|>'\"%@?\n\t \\01.e"), st.binary()))
def test_any_text_is_read_or_refused_in_one_sentence(text: str | bytes) -> None:
    for reader in READERS:
        try:
            assert isinstance(read(text, reader), dict)
        except InvalidFile as error:
            assert "\n" not in str(error)


@pytest.mark.fault("I8", by="yaml_document: a bounded file, depth counted first")
@pytest.mark.fault("K13", by="yaml_document: a bounded file, depth counted first")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "unit",
    [
        "[",
        "{a: ",
        "- ",
        "? ",
        "a: ",
        "&a ",
        "!a ",
        "1_",
        "1.",
        ":0",
        " #",
        "''",
        "\\\\",
        '"',
        "x ",
        " \n",
        "- 1\n",
        "%a\n",
        "---\n",
    ],
)
def test_a_quarter_megabyte_of_one_thing_takes_no_time(reader: str, unit: str) -> None:
    for head in ("a: ", "a:\n", 'a: "', "a: [", ""):
        text = head + unit * ((yaml_scalars.MAX_BYTES - 10) // len(unit))
        before = time.process_time()
        try:
            read(text, reader)
        except InvalidFile as error:
            assert len(str(error)) < 600
        assert time.process_time() - before < 5  # measured: at most 0.2 s


TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=40)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**17), 10**17),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXTS,
    st.sampled_from(
        [
            "yes",
            "012",
            "1e-4",
            "null",
            "",
            " a ",
            "a: b",
            "# c",
            "'",
            '"',
            "\\",
            "\n",
            "\u2028",
            "\x7f",
            "\ufeff",
            "{x}",
        ]
    ),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS.filter(bool), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.dictionaries(TEXTS.filter(bool) | st.sampled_from(["on", "null", "a", "1"]), VALUES, min_size=1, max_size=4))
def test_what_is_written_is_read_back_exactly_by_every_reader(data: dict) -> None:
    text = yaml_document.dump(data)
    expected = _without_negative_zero(data)
    assert _same(read(text), expected)
    assert _same(read(text, "subset"), expected)
    assert _same(_without_negative_zero(yaml.safe_load(text)), expected)


def _without_negative_zero(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_negative_zero(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_negative_zero(item) for item in value]
    return 0.0 if isinstance(value, float) and value == 0 and math.copysign(1, value) < 0 else value


@pytest.mark.parametrize("reader", ["pyyaml", "subset", "auto"])
@pytest.mark.parametrize("libyaml", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        'a:\n  step: "step (\\d+)"\n',
        'a:\n  - "\\w"\n',
        'a:\n  "\\s": 1\n',
        'a:\n  b: ["x", "C:\\users"]\n',
        'a:\n  b: "\\xg1"\n',
    ],
)
def test_an_unknown_escape_in_double_quotes_gets_the_advice_to_take_single_ones(
    reader: str, libyaml: bool, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml, "__with_libyaml__", libyaml and yaml.__with_libyaml__)
    with pytest.raises(InvalidFile) as caught:
        yaml_document.load(text, "c.yaml", reader=reader)
    assert "a backslash in double quotes begins an escape that YAML does not have ('c.yaml', line 2)" in str(
        caught.value
    )
    assert "put the text in single quotes" in str(caught.value)


def test_a_sentence_about_a_config_has_the_config_for_its_subject():
    texts = (
        ("", "is empty"),
        ("- a\n", "holds a list"),
        ("a: [1\n", "is not YAML"),
        ("%YAML 1.2\n---\na: 1\n", "has a"),
    )
    for text, what in texts:
        with pytest.raises(InvalidFile, match=f"^the config {what}.*'c.yaml', line [0-9]"):
            yaml_document.load(text, "c.yaml")
