"""What becomes of a trainer's output on its way into train.log: resumekit.process.train_log, log_patterns."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resumekit.process import train_log
from resumekit.process.train_log import MAX_LINE_BYTES, LineCleaner, clean, stamp
from resumekit.run import log_patterns

PREFIX = b"9a537e838eda "
PIECES = [b"a", b"text ", b"\r", b"\n", b"\r\n", b"\x1b[A", b"\x1b[A\n", b"\x1b[31m", b"\x1b[K", b"\x1b]0;t", b"\x07",
          b"\x00", b"\xff", b"\xc3\xa9", b"\xc3", b" ", b"x" * 45, b"y" * 120]  # fmt: skip


def cleaned(data: bytes) -> bytes:
    cleaner = LineCleaner()
    return cleaner.feed(data) + cleaner.flush()


@pytest.mark.fault("H14", by="train_log: bytes, replaced where they are no text")
@pytest.mark.fault("H15", by="train_log: no escape sequence passes")
@pytest.mark.parametrize(
    ("printed", "logged"),
    [
        (b"plain\n", b"plain\n"),
        (b"no newline at its end", b"no newline at its end\n"),
        (b"dos\r\nlines\r\n", b"dos\nlines\n"),
        (b"\x1b[1;31mred\x1b[0m\n", b"red\n"),
        (b"\x1b]0;a window's title\x07text\x1b]8;;http://x\x1b\\link\n", b"textlink\n"),
        (b"\x1bPdevice control\x1b\\after\x1bc\n", b"after\n"),
        (b"nul\x00 bell\x07 back\x08space\n", b"nul bell backspace\n"),
        (b"a tab\tstays\n", b"a tab\tstays\n"),
        ("ümlaut ✓\n".encode(), "ümlaut ✓\n".encode()),
        (b"invalid \xff\xfe\n", b"invalid \\xff\\xfe\n"),
        ("C1 \x9b31m and \x85\n".encode(), b"C1 31m and \n"),
        (b"\r 10%\r 20%\r100%\n", b"100%\n"),
        (b" 10%\r100%\r\n", b"100%\n"),
        (b"100%\r\x1b[K\n", b"100%\n"),
        (b"\n\n", b"\n\n"),
        (b"", b""),
    ],
)
def test_a_line_is_cleaned(printed: bytes, logged: bytes) -> None:
    assert cleaned(printed) == logged


@pytest.mark.fault("H13", by="train_log: CR begins the line anew")
def test_ten_thousand_updates_of_a_bar_are_one_line() -> None:
    cleaner, lines = LineCleaner(), b"before\n"
    for i in range(10_000):
        lines += cleaner.feed(b"\r%5d/10000 [00:01<00:02]" % i)
    lines += cleaner.feed(b"\nafter\n")
    assert lines == b"before\n 9999/10000 [00:01<00:02]\nafter\n"


def test_the_second_bar_of_tqdm_does_not_flood_either() -> None:
    bar = b"".join(b"\n\rinner %4d\x1b[A" % i for i in range(1000))
    assert cleaned(b"\router" + bar + b"\n\rdone\n") == b"outer\ndone\n"


@pytest.mark.fault("H13", by="train_log: bounded")
def test_what_is_held_of_a_bar_is_bounded() -> None:
    cleaner = LineCleaner()
    for i in range(20_000):
        cleaner.feed(b"\r\x1b[K\x1b[2K%d" % i)
    assert len(cleaner._pending) < 200


@pytest.fixture
def short_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of 50 bytes, so that random texts reach it."""
    monkeypatch.setattr(train_log, "MAX_LINE_BYTES", 50)
    monkeypatch.setattr(train_log, "_PROBE_BYTES", 25)


@pytest.mark.usefixtures("short_lines")
@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30), st.lists(st.tuples(st.integers(1, 40), st.booleans())))
def test_the_result_does_not_depend_on_chunks_nor_on_restarts(pieces: list[bytes], cuts: list) -> None:
    """A successor that begins at the last line that is written goes on as if it had always been there."""
    data = b"".join(pieces)
    cleaner, at, lines = LineCleaner(), 0, b""
    for size, is_restart in cuts:
        lines += cleaner.feed(data[at : at + size])
        at = min(len(data), at + size)
        if is_restart:
            at -= cleaner.held_bytes
            cleaner = LineCleaner()
    lines += cleaner.feed(data[at:]) + cleaner.flush()
    assert lines == cleaned(data)


@pytest.mark.fault("H15", by="train_log: no escape sequence passes")
@given(st.binary(max_size=400))
def test_every_line_has_the_prefix_and_is_safe_on_a_terminal(data: bytes) -> None:
    logged = stamp(cleaned(data), PREFIX)
    text = logged.decode()  # valid UTF-8, whatever came
    assert not logged or logged.endswith(b"\n")
    assert all(line.startswith(PREFIX.decode()) for line in text.split("\n")[:-1])
    assert all(c in "\t\n" or " " <= c < "\x7f" or c >= "\xa0" for c in text)


@pytest.mark.fault("K14", by="train_log: pieces of 64 KiB")
def test_a_line_of_a_megabyte_is_cut_into_pieces() -> None:
    lines = cleaned(b"x" * 1_000_000 + b"\nshort\n").split(b"\n")
    assert max(map(len, lines)) <= MAX_LINE_BYTES + train_log._SLACK_BYTES
    assert b"".join(lines[:-2]) == b"x" * 1_000_000
    assert lines[-2:] == [b"short", b""]


@pytest.mark.fault("K14", by="train_log: linear cleaning")
@pytest.mark.fault("K13", by="train_log: linear cleaning")
@pytest.mark.parametrize(
    "hostile",
    [
        b"\x1b" * 1_000_000, b"\x1b[" * 500_000, b"\x1b]" * 500_000, b"\x1b[" + b"0" * 1_000_000, b"\r" * 1_000_000,
        b"y" * 59_000 + b"\n" + b"y" * 941_000, b"\x1b[A\n" * 250_000, bytes(range(256)) * 4000,
    ],
    ids=["esc", "csi", "osc", "one csi", "cr", "long lines", "up and down", "binary"],
)  # fmt: skip
def test_a_hostile_megabyte_costs_no_time(hostile: bytes) -> None:
    started = time.process_time()
    cleaner = LineCleaner()
    for at in range(0, len(hostile), 65536):
        cleaner.feed(hostile[at : at + 65536])
    cleaner.flush()
    assert time.process_time() - started < 1.0


def test_clean_is_what_the_cleaner_uses() -> None:
    assert clean(b"a\rb\nc\x1b[0m\n") == b"b\nc\n"


PATTERNS = log_patterns.compiled({"step": "^step ([0-9,]+)", "loss": "loss ([-0-9.naif]+)", "lr": "lr=(.+)"})


@pytest.mark.parametrize(
    ("lines", "steps"),
    [
        (b"step 3 loss 0.5\n", [{"step": 3, "loss": 0.5}]),
        (b"step 1,200 loss 2\nloss 7\nstep 1,201\n", [{"step": 1200, "loss": 2.0}, {"step": 1201}]),
        (b"a step 3\n", []),
        (b"step 4 lr=fast\n", [{"step": 4}]),
        (b"step 9999999999999999\n", []),
        (b"step ,\n", []),
        (b"x" * 5000 + b"\nstep 5" + b" " * 5000 + b"loss 1\n", [{"step": 5}]),
    ],
)
def test_steps_are_read_out_of_lines(lines: bytes, steps: list[dict]) -> None:
    assert log_patterns.found_steps(lines, PATTERNS) == steps


def test_a_loss_that_is_nan_is_found() -> None:
    (found,) = log_patterns.found_steps(b"step 3 loss nan\n", PATTERNS)
    assert found["loss"] != found["loss"]


def loss_in(line: str, pattern: str = "loss ([0-9.]+)") -> str | None:
    (found,) = log_patterns.found_steps(
        line.encode() + b"\n", log_patterns.compiled({"step": "step ([0-9]+)", "loss": pattern})
    )
    return str(found["loss"]) if "loss" in found else None


@pytest.mark.fault("D1", by="log_patterns: a NaN in the number's place is one")
@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("step 5 loss nan", "nan"),
        ("step 5 loss NaN, lr 0.1", "nan"),
        ("step 5 loss -nan", "nan"),
        ("step 5 loss inf", "inf"),
        ("step 5 loss -Infinity", "-inf"),
        ("step 5 loss 0.3 grad nan", "0.3"),
        ("step 5 loss 0.3 loss nan", "0.3"),
        ("step 5 grad nan", None),
        ("step 5 val loss nan", None),  # not the training's
        ("step 5 val_loss: nan", None),
        ("step 5 loss information", None),
        ("step 5 loss nan_count 3", None),
        ("step 5 loss nanometers", None),
    ],
)
def test_a_nan_is_seen_where_the_number_would_stand(line: str, seen: str | None) -> None:
    assert loss_in(line) == seen


@pytest.mark.parametrize(
    ("pattern", "line", "seen"),
    [
        ("(?:train|val) loss:? ([0-9.]+)", "step 5 val loss: nan", "nan"),
        ("(?:train|val) loss:? ([0-9.]+)", "step 5 loss: nan", None),
        ("loss ((?:[0-9]+)(\\.[0-9]+)?)", "step 5 loss nan", "nan"),
        ("loss(?: of (?:the )?batch)? ([0-9.]+)", "step 5 loss of the batch nan", "nan"),
        (r"loss \(mean\) ([0-9.]+)", "step 5 loss (mean) nan", "nan"),
        (r"loss \\([0-9.]+)", "step 5 loss \\nan", "nan"),
        ("loss[ :=(]+([0-9.]+)", "step 5 loss = (nan)", "nan"),
        ("loss[](]([0-9.]+)", "step 5 loss(nan)", "nan"),
        ("loss[^](a-z]([0-9.]+)", "step 5 loss nan", "nan"),
        (r"loss[\](]([0-9.]+)", "step 5 loss(nan)", "nan"),
        ("loss (?P<value>[0-9.]+)", "step 5 loss nan", "nan"),
        ("loss (?=.)([0-9.]+)", "step 5 loss nan", "nan"),
        ("loss ([0-9.]*)", "step 5 loss nan", "nan"),
        ("(?i)LOSS ([0-9.]+)", "step 5 loss nan", "nan"),
        ("loss ([-0-9.naif]+)", "step 5 loss nan", "nan"),
        # Nothing that must stand before it, so that any "nan" would do; or no pattern up to there.
        ("([0-9.]+) loss", "step 5 grad nan", None),
        (".*?([A-Z]+)", "step 5 grad nan", None),
        ("(?:loss ([0-9.]+)|cost ([0-9.]+))", "step 5 loss nan", None),
    ],
)
def test_the_place_of_the_number_is_what_stands_before_the_first_group(
    pattern: str, line: str, seen: str | None
) -> None:
    assert loss_in(line, pattern) == seen


def test_only_a_loss_is_looked_for_where_there_is_no_number() -> None:
    patterns = log_patterns.compiled({"step": "step ([0-9]+)", "lr": "lr ([0-9.]+)"})
    assert log_patterns.found_steps(b"step 5 lr nan\nstep nan\n", patterns) == [{"step": 5}]


def test_a_pattern_that_is_none_is_left_out() -> None:
    assert list(log_patterns.compiled({"step": "(", "loss": 3, "lr": "lr (.)"})) == ["lr"]
    assert log_patterns.compiled(None) == {}
    assert log_patterns.found_steps(b"step 3\n", log_patterns.compiled({"step": "step [0-9]+"})) == []


@pytest.mark.fault("K14", by="log_patterns: the first 4 KiB of a line")
def test_a_costly_pattern_on_a_megabyte_stays_bounded() -> None:
    costly = log_patterns.compiled({"step": ".*step ([0-9]+)"})
    started = time.process_time()
    for _ in range(4):
        assert log_patterns.found_steps(b"x" * 262_144 + b"\n", costly) == []
    assert time.process_time() - started < 2.0
