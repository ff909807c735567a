from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
FILE_LINES = 500
FUNCTION_LINES = 60
FOLDER_FILES = 15


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def test_no_source_file_is_longer_than_500_lines() -> None:
    lengths = {
        str(path.relative_to(SOURCE)): len(path.read_text("utf-8").splitlines())
        for path in SOURCE.rglob("*.py")
    }
    assert lengths
    assert {name: length for name, length in lengths.items() if length > FILE_LINES} == {}


def test_no_source_function_is_longer_than_60_lines() -> None:
    long = {
        f"{path.relative_to(SOURCE)}:{function.lineno} {function.name}": lines_of(function)
        for path in SOURCE.rglob("*.py")
        for function in functions(ast.parse(path.read_text("utf-8"), str(path)))
        if lines_of(function) > FUNCTION_LINES
    }
    assert long == {}


def test_no_folder_beside_the_tests_has_more_than_15_files() -> None:
    root = SOURCE.parent
    roots = (SOURCE, root / "bench", root / "examples", root / "scripts")
    folders = {path.parent for one in roots for path in one.rglob("*.py")}
    counts = {str(one.relative_to(root)): len([*one.glob("*.py")]) for one in folders}
    assert {name: count for name, count in counts.items() if count > FOLDER_FILES} == {}
