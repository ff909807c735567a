"""The language of the project: words and openings that are not to come back."""

from __future__ import annotations

from tests.meta.words import ROOT, faults_of, files_below


def test_no_sentence_or_name_uses_a_word_that_was_given_up() -> None:
    places = ["src", "docs", *(page.name for page in ROOT.glob("*.md"))]
    faults = [fault for path in files_below(*places) for fault in faults_of(path)]
    assert not faults, "\n".join(faults)
