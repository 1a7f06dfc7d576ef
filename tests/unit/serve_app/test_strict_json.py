from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.dialects.strict_json import BadJson, read_json

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=10,
)


@given(VALUES)
def test_plain_json_is_read_as_it_is(value: object) -> None:
    assert read_json(json.dumps(value)) == value
    assert read_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": NaN}', "NaN"),
        ("[Infinity]", "Infinity"),
        ("-Infinity", "Infinity"),
        ("1e400", "1e400"),
        ("-1e999", "-1e999"),
        ("1" * 41, "41|40 digits"),
        ("9" * 100_000, "40 digits"),
        ('{"a": 1, "b": 2, "a": 3}', "'a'"),
        ('{"o": {"a": 1, "a": 1}}', "'a'"),
        ('"\\u0000"', "NUL"),
        ('{"\\u0000": 1}', "NUL"),
        ('"\\ud800"', "half"),
        ('["x", {"y": ["\\udfff"]}]', "half"),
        (b'"\xed\xa0\x80"', "half"),
        ("[" * 33 + "1" + "]" * 33, "nested"),
        ("[" * 50_000 + "]" * 50_000, "nested"),
        ('{"a":' * 50_000, "nested"),
        ("[" + "1," * 100_000 + "1]", "100000 values"),
        (b"[" * 100_001, "100000 values"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_nothing_behind_can_take_is_refused_with_the_reason(text: str | bytes, said: str) -> None:
    with pytest.raises(BadJson, match=said):
        read_json(text)


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", "[1,]", b"\xff", b"\xff\xfe\x00", "nul", "01"], ids=repr)
def test_what_is_no_json_is_refused_without_a_word(text: str | bytes) -> None:
    with pytest.raises(BadJson) as caught:
        read_json(text)
    assert str(caught.value) == ""


def test_thirty_two_levels_are_read_and_a_pair_of_surrogates_is_a_character() -> None:
    assert json.dumps(read_json("[" * 32 + "]" * 32)) == "[" * 32 + "]" * 32
    assert read_json('"\\ud83d\\ude00"') == "😀"
