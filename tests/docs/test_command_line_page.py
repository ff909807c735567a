"""The page of the command line agrees with ``--help``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from reattach.cli.commands import app
from reattach.records.database.migrations import HEAD

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"


def commands(group: TyperGroup, *path: str) -> Iterator[tuple[str, TyperCommand]]:
    """Yield each command with its words."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, *path, name)
        else:
            assert isinstance(command, TyperCommand)
            yield " ".join((*path, name)), command


def sections() -> dict[str, str]:
    """Return the text below the heading of each command."""
    parts = re.split(r"^### `(reattach [^`]+)`\n", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    return {
        name: re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0]
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def all_commands() -> dict[str, TyperCommand]:
    root = get_command(app)
    assert isinstance(root, TyperGroup)
    return dict(commands(root, "reattach"))


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def test_every_command_has_a_section_with_an_example_of_its_output() -> None:
    found = sections()
    assert sorted(found) == sorted(all_commands())
    assert [name for name, text in found.items() if "```text\n" not in text] == []


def test_each_section_begins_with_the_first_sentence_of_the_help() -> None:
    found = sections()
    differing = {}
    for name, command in all_commands().items():
        sentence = re.split(r"(?<=[.…])\s", command.help or "", maxsplit=1)[0]
        wanted = words_of(sentence)
        if words_of(found[name])[: len(wanted)] != wanted:
            differing[name] = sentence
    assert differing == {}


def test_a_section_names_only_options_that_its_command_has() -> None:
    unknown = {}
    for name, command in all_commands().items():
        text = sections()[name]
        known = {one for parameter in command.params for one in parameter.opts} | {"--help"}
        lines = [line for line in text.splitlines() if line.startswith(name)]
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", " ".join(lines)))
        if used - known:
            unknown[name] = used - known
    assert unknown == {}


def test_examples_have_the_revision_that_this_version_needs() -> None:
    for page in (PAGE, PAGE.with_name("operate.md")):
        assert set(re.findall(r"(?:needed:? +|-> )([0-9]{4})\b", page.read_text("utf-8"))) == {
            HEAD
        }, page
