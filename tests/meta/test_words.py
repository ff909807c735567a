"""The language of the project: words and openings that are not to come back."""

from __future__ import annotations

from tests.meta.words import ROOT, faults_of, files_below

EXCEPTIONS = {
    "tests/golden": "answers recorded from another server are kept to the byte",
    "tests/meta/words.py": "it lists the words",
}


def is_excepted(name: str) -> bool:
    return any(name == place or name.startswith(f"{place}/") for place in EXCEPTIONS)


def test_no_sentence_or_name_uses_a_word_that_was_given_up() -> None:
    assert all((ROOT / place).exists() for place in EXCEPTIONS)
    folders = {"src", "tests", "bench", "docs", "scripts", "examples", "deploy"}
    paths = files_below(*folders, "pyproject.toml", *(page.name for page in ROOT.glob("*.md")))
    assert {path.relative_to(ROOT).parts[0] for path in paths} >= folders
    checked = [path for path in paths if not is_excepted(str(path.relative_to(ROOT)))]
    faults = [fault for path in checked for fault in faults_of(path)]
    assert not faults, "\n".join(faults)
