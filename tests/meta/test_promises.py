from __future__ import annotations

import ast
import functools
import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A line, heading, list entry or table row of PROTOCOL.md that begins with an id states a promise.
STATEMENT = re.compile(r"^\s*(?:#+\s+|[-*]\s+|\|\s*)?(?:\*\*)?`?([PS]\d+)\b(.*)$", re.MULTILINE)


def stated() -> dict[str, bool]:
    """Each id of PROTOCOL.md, and whether the protocol says that it is kept already."""
    found: dict[str, bool] = {}
    for promise, rest in STATEMENT.findall((ROOT / "PROTOCOL.md").read_text("utf-8")):
        found[promise] = found.get(promise, True) and "(not yet)" not in rest
    return found


def is_promise_mark(call: ast.Call) -> bool:
    return ast.unparse(call.func).endswith("mark.promise")


def named_in(path: Path) -> list[tuple[str, str]]:
    """The ids that marks in a file name, each with its place."""
    named: list[tuple[str, str]] = []
    text = path.read_text("utf-8")
    if "mark.promise" not in text:
        return named
    for node in ast.walk(ast.parse(text, str(path))):
        if isinstance(node, ast.Call) and is_promise_mark(node):
            place = f"{path.relative_to(ROOT)}:{node.lineno}"
            for argument in node.args:
                assert isinstance(argument, ast.Constant), f"{place}: ids are written out"
                named.append((str(argument.value), place))
    return named


@functools.cache
def named_by_tests() -> dict[str, list[str]]:
    places: dict[str, list[str]] = {}
    for suite in (ROOT / "tests", ROOT / "src/reattach/testing"):
        for parent, directories, files in os.walk(suite):
            if "node_modules" in directories:
                directories.remove("node_modules")  # Walking it takes seconds.
            for path in (Path(parent, name) for name in files if name.endswith(".py")):
                for promise, place in named_in(path):
                    places.setdefault(promise, []).append(place)
    return places


def test_every_id_means_one_promise() -> None:
    ids = re.findall(r"^- \*\*(P\d+)\*\*", (ROOT / "PROTOCOL.md").read_text("utf-8"), re.MULTILINE)
    assert ids == [f"P{number}" for number in range(1, len(ids) + 1)]


def test_every_promise_that_is_kept_has_a_test_that_names_it() -> None:
    promises = stated()
    assert promises
    named = named_by_tests()
    assert sorted(p for p, kept in promises.items() if kept and p not in named) == []


def test_every_promise_that_a_test_names_is_stated() -> None:
    promises = stated()
    assert {p: places for p, places in named_by_tests().items() if p not in promises} == {}
