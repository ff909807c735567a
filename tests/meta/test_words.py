"""The language of the project: words and openings that are not to come back."""

from __future__ import annotations

from typing import Final

from tests.meta.words import ROOT, faults_of, files_below

PENDING: Final = ("src/reattach/testing/conformance",)
"""Parts that still speak the old way. Take yours out when it is done."""


def test_no_sentence_or_name_uses_a_word_that_was_given_up() -> None:
    pending = set(files_below(*(place for place in PENDING if (ROOT / place).exists())))
    places = ["src", "docs", *(page.name for page in ROOT.glob("*.md"))]
    faults = [
        fault for path in files_below(*places) if path not in pending for fault in faults_of(path)
    ]
    assert not faults, "\n".join(faults)
