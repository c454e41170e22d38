"""Slow answers are kept in the caller's own state folder, by what they depend on."""

from __future__ import annotations

from pathlib import Path

import pytest

from resumekit.base import answer_cache


def test_an_answer_is_asked_for_once_for_each_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    asked: list[str] = []

    def answer(text: str | None) -> str | None:
        asked.append(str(text))
        return text

    assert answer_cache.value("kind", "k1", lambda: answer("a")) == "a"
    assert answer_cache.value("kind", "k1", lambda: answer("b")) == "a"
    assert answer_cache.value("kind", "k2", lambda: answer("c")) == "c"
    assert answer_cache.value("kind", "k3", lambda: answer(None)) is None
    assert answer_cache.value("kind", "k2", lambda: answer("d")) == "c", "no answer takes no other one's place"
    assert asked == ["a", "c", "None"]


@pytest.mark.parametrize("content", [b"", b"k1", b"k1 a b", b"k0 a", b"\xff\xfe", b"k1 " + b"a" * (2 << 20)])
def test_a_file_that_says_nothing_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert answer_cache.value("kind", "k1", lambda: "x") == "x"
    (tmp_path / "resumekit" / "kind").write_bytes(content)
    assert answer_cache.value("kind", "k1", lambda: "y") == "y"


def test_what_others_may_write_is_no_memory_of_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert answer_cache.value("kind", "k", lambda: "x") == "x"
    (tmp_path / "resumekit" / "kind").chmod(0o666)
    assert answer_cache.value("kind", "k", lambda: "y") == "y"


def test_without_a_state_folder_it_is_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    assert [answer_cache.value("kind", "k", lambda text=text: text) for text in ("a", "b")] == ["a", "b"]
