from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from reattach.domain.errors import ValidationFailedError
from reattach.domain.limits import MAX_INTEGER, MAX_VALIDATION_ERRORS
from reattach.domain.limits.requests import MAX_JSON_DEPTH, MAX_JSON_VALUES
from reattach.http.json import Fault, invalid, parse
from reattach.http.schemas.sending import ConversationSendBody

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_json_is_read_as_what_it_says(value: object, escaped: bool) -> None:
    body = json.dumps(value, ensure_ascii=escaped).encode()
    assert parse(body) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_refused(body: bytes) -> None:
    try:
        parse(body)
    except ValidationFailedError as error:
        json.dumps({"detail": error.detail, **error.extra}).encode()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "Not valid JSON"),
        (b"{", "Not valid JSON"),
        (b'{"a": 1,}', "Not valid JSON"),
        (b"\xef\xbb\xbf{}", "Not valid JSON"),
        (b'"\x00"', "character 1: Invalid control character"),
        (b'"\xff"', "Not UTF-8"),
        (b'"\xed\xa0\x80"', "Not UTF-8"),
        (b"NaN", "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b"1e999", "too large"),
        (str(MAX_INTEGER + 1).encode(), "magnitude"),
        (b"9" * 10_000, "magnitude"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'"\\ud800"', "surrogate"),
        (b'{"\\uDFFF": 1}', "surrogate"),
        (b'["\\u0000"]', "NUL"),
        (b'{"a\\u0000": 1}', "NUL"),
        (b"[" * (MAX_JSON_DEPTH + 1) + b"]" * (MAX_JSON_DEPTH + 1), "levels deep"),
        (b"[" * 1_000_000, "levels deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "levels deep"),
    ],
)
def test_what_readers_could_take_differently_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(ValidationFailedError, match=reason) as refused:
        parse(body)
    assert len(refused.value.detail) < 300


def many(value: bytes, count: int = MAX_JSON_VALUES + 1) -> bytes:
    return b"[" + b",".join([value] * count) + b"]"


@pytest.mark.promise("P12")
@pytest.mark.parametrize(
    "body",
    [
        many(b"1"),
        many(b"[]"),
        many(b"{}"),
        many(b'""'),
        many(b'"a,[{\\""'),
        many(b"null", 1_000_000),
        b'{"messages": ' + many(b'{"role": "user", "content": [{}]}', 40_000) + b"}",
        b"{" + b",".join(b'"%d": 1' % number for number in range(MAX_JSON_VALUES + 1)) + b"}",
        b"{" + b",".join([b'"a": 1'] * (MAX_JSON_VALUES + 1)) + b"}",
        b'["' + b"x" * 2_000_000 + b'", ' + many(b"1") + b"]",
        b'["' + b"\\\\" * 1_000_000 + b'", ' + many(b"1") + b"]",
        many(b"[]", 4_000_000),
    ],
)
def test_a_body_of_too_many_values_is_refused_before_any_is_made(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B3: values are bounded before they are parsed."""
    monkeypatch.setattr("reattach.http.json._decode", lambda _: pytest.fail("it was parsed"))
    with pytest.raises(ValidationFailedError, match=f"more than {MAX_JSON_VALUES} values"):
        parse(body)


@pytest.mark.parametrize(
    "body",
    [
        many(b"1", MAX_JSON_VALUES),
        many(b'"a"', MAX_JSON_VALUES),
        json.dumps({str(number): "v" for number in range(MAX_JSON_VALUES - 1)}).encode(),
        json.dumps("one, two [3] {4} " * 100_000).encode(),
        json.dumps('a "quoted, text" and \\, [' * 100_000).encode(),
        json.dumps(["\\" * 100_000, ',"' * 100_000, "\\"]).encode(),
    ],
)
def test_punctuation_within_texts_is_no_value(body: bytes) -> None:
    """B3: long texts and as many values as are allowed are read."""
    assert parse(body) == json.loads(body)


@given(VALUES, st.booleans())
def test_counting_refuses_nothing_that_has_few_values(value: object, escaped: bool) -> None:
    """B3: the count that is made before parsing is exact enough for any value."""
    filler = [",[{" * (MAX_JSON_VALUES // 3)]
    body = json.dumps([value, filler, value], ensure_ascii=escaped).encode()
    assert parse(body) == [value, filler, value]


def test_a_list_within_a_list_tells_its_first_fault_only() -> None:
    """B3: collecting the faults of a hundred thousand values took seconds of the event loop."""
    adapter = TypeAdapter(ConversationSendBody)
    decisions: list[object] = [{}] * 500
    for message in (
        {"role": "user", "content": decisions},
        {"type": "approval", "approvals": decisions},
        {"type": "tool_return", "tool_returns": decisions},
        {"type": "approval", "approvals": [{"tool_return": "", "stdout": [1] * 500}]},
    ):
        with pytest.raises(ValidationError) as refused:
            adapter.validate_python({"messages": [message] * 100})
        assert refused.value.error_count() <= 400


def test_the_depth_that_is_allowed_is_read() -> None:
    body = b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH
    assert json.dumps(parse(body)).encode() == body


def test_a_pair_of_surrogates_is_the_character_that_it_means() -> None:
    assert parse(b'"\\ud83d\\ude00"') == "😀"


def test_no_more_faults_are_reported_than_anybody_reads() -> None:
    error = invalid([Fault(["query", str(n)], "wrong", "x") for n in range(1000)])
    errors = error.extra["errors"]
    assert isinstance(errors, list)
    assert len(errors) == MAX_VALIDATION_ERRORS
    assert error.detail.endswith("980 more faults are not shown.")
