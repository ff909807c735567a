"""The markup of prompts is that of the standard library, whose module imports too much."""

from __future__ import annotations

from xml.sax import saxutils

from hypothesis import given
from hypothesis import strategies as st

from reattach.domain.markup import escape, quoted

TEXTS = st.text(st.sampled_from("&<>\"'\n\r\t a;é"))


@given(TEXTS)
def test_text_is_escaped_as_by_the_standard_library(text: str) -> None:
    assert escape(text) == saxutils.escape(text)


@given(TEXTS)
def test_values_of_attributes_are_quoted_as_by_the_standard_library(value: str) -> None:
    assert quoted(value) == saxutils.quoteattr(value)
