"""Files written by hand: what is a slip or a trick is refused in words, never with a fault of ours."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspectbus.domain.strict_yaml import MAX_CHARS, read_mapping, written
from inspectbus.errors import BadField


def test_a_mapping_comes_as_it_stands() -> None:
    assert read_mapping("a: 1\nb: {c: [x, 2.5, true]}\n", "a file") == {"a": 1, "b": {"c": ["x", 2.5, True]}}
    assert read_mapping("", "a file") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x [1]\nb: *x", "anchors"),
        ("a: !!bool x", "tags"),
        ("!!timestamp x", "tags"),
        ("a: !!python/object:os.system x", "tags"),
        ("a: 1\na: 2", "twice"),
        ("1: {}\nab: {}", "name"),
        ("~: {}", "name"),
        ("[a, b]", "mapping"),
        ("a: " + "[" * 60, "deep"),
        ("a: " + "9" * 5000, "limit"),
        ("a: [", "YAML"),
        ("x" * (MAX_CHARS + 1), "characters"),
    ],
)
def test_slips_and_tricks_are_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(BadField, match=words):
        read_mapping(text, "a file")


@pytest.mark.parametrize("word", ["off", "no", "yes", "ON", "1:30", "3:30:00", "0x1F", "1_000", "2026-11-26", "0b1"])
def test_a_word_is_no_number_and_no_truth(word: str) -> None:
    assert read_mapping(f"a: {word}", "a file") == {"a": word}


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("-7", -7), ("1e3", 1000.0), (".5", 0.5), ("TRUE", True), ("~", None), ("-.inf", -math.inf)],
)
def test_numbers_are_those_that_people_read(text: str, value: object) -> None:
    assert read_mapping(f"a: {text}", "a file") == {"a": value}


@given(
    st.dictionaries(st.text("ab01e.:-+_~x", min_size=1), st.text("oOfnyesTRUE01e.:-+_~x") | st.floats(allow_nan=False))
)
def test_what_is_written_is_read_as_the_same(content: dict[str, str | float]) -> None:
    assert read_mapping(written(content), "a file") == content


def test_the_line_at_fault_is_named_and_not_shown() -> None:
    with pytest.raises(BadField, match="in line 2, column") as caught:
        read_mapping("a: 1\nbus_url: amqp://line:secret@host: 5672\n", "a file")
    assert "secret" not in caught.value.message


@given(st.text(alphabet="ab:[]{}!&*-#'\"\n 019.~?|>%@`", max_size=80))
def test_any_text_is_a_mapping_or_a_bad_field(text: str) -> None:
    with suppress(BadField):
        assert isinstance(read_mapping(text, "a file"), dict)
