"""The code of the documentation runs, and its tables are complete."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from reattach.settings import Settings, variable_of
from reattach.testing.programs.server import ServerProcess
from tests.support.forking import run_program
from tests.support.javascript_client import PACKAGE, require_client

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = ROOT / "tests" / "clients" / "typescript"
BOUND_SECONDS = 60
SCRIPTS = "javascript|typescript"
EXCERPTS = {".py", ".ts", ".tsx", ".html"}
"""Endings of programs, which are also the languages of excerpts; code in other languages is run."""
README_PRINTS = "Tell me about an island.\n"
"""The whole answer of the model that the test uses."""


def all_blocks(page: Path, language: str) -> list[str]:
    pattern = rf"^```(?:{language})\n(.*?)^```"
    return re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> str:
    """Return all code of a page in one language, as one program."""
    return "\n".join(all_blocks(page, language))


def pages_with(language: str) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in PAGES if blocks(page, language)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    data_dir = tmp_path_factory.mktemp("docs")
    with ServerProcess(data_dir, arguments=["--scripted", "--log-level", "warning"]) as server:
        yield server


def for_server(code: str, server: ServerProcess) -> str:
    """Return the code with the address of the test's server and a model that answers at once."""
    return code.replace("http://localhost:8283", server.url).replace(
        "local/smollm2-135m-instruct", "scripted/echo"
    )


BETWEEN = "-- again --\n"
PYTHON_TWICE = f"""
import runpy, sys
for again in ["", {BETWEEN!r}]:
    print(again, end="", flush=True)
    runpy.run_path(sys.argv[1], run_name="__main__")
"""
NODE_TWICE = f"""
for (const again of ["", {json.dumps(BETWEEN)}]) {{
  process.stdout.write(again);
  await import("./NAME?" + again.length);
}}
"""


def outputs_of(ran: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what each run printed of a program that runs the code of a page twice."""
    assert ran.returncode == 0, f"{ran.stdout}{ran.stderr}"
    outputs = ran.stdout.split(BETWEEN)
    assert len(outputs) == 2
    return outputs


@pytest.mark.parametrize("page", pages_with("python"))
def test_the_python_of_a_page_runs_twice(page: str, server: ServerProcess, tmp_path: Path) -> None:
    """E1: code that is pasted twice works twice."""
    program = tmp_path / "page.py"
    program.write_text(for_server(blocks(ROOT / page, "python"), server))

    twice = tmp_path / "twice.py"
    twice.write_text(PYTHON_TWICE)

    ran = run_program(twice, str(program), cwd=tmp_path, timeout_seconds=BOUND_SECONDS)
    outputs = outputs_of(ran)

    if page not in {"docs/embed.md", "docs/callbacks.md"}:
        assert all("island" in output for output in outputs)
    if page == "README.md":
        assert outputs == [README_PRINTS] * 2


@pytest.fixture(scope="module")
def compiled(server: ServerProcess) -> Iterator[Path]:
    """The JavaScript and TypeScript of all pages, compiled by ``tsc --strict``."""
    node, compiler = shutil.which("node"), MODULES / "node_modules" / ".bin" / "tsc"
    if node is None or not compiler.exists():
        if os.environ.get("CI"):
            pytest.fail("node and its packages are needed in CI; scripts/setup installs them")
        pytest.skip("node is not installed")
    require_client()
    folder = Path(tempfile.mkdtemp(prefix=".docs-", dir=MODULES))
    try:
        ours = folder / "node_modules" / "@reattach" / "client"
        ours.parent.mkdir(parents=True)
        ours.symlink_to(PACKAGE, target_is_directory=True)
        for page in pages_with(SCRIPTS):
            program = folder / f"{Path(page).stem}.mts"
            program.write_text(for_server(blocks(ROOT / page, SCRIPTS), server))
        ran = subprocess.run(
            [str(compiler), "--strict", *map(str, folder.glob("*.mts"))],
            capture_output=True,
            text=True,
            timeout=BOUND_SECONDS,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("page", pages_with(SCRIPTS))
def test_the_javascript_of_a_page_is_strict_typescript_and_runs_twice(
    page: str, compiled: Path
) -> None:
    """E1: it compiles with `tsc --strict`, and works when it is pasted twice."""
    program = NODE_TWICE.replace("NAME", f"{Path(page).stem}.mjs")

    ran = subprocess.run(
        ["node", "--input-type=module", "--eval", program],
        cwd=compiled,
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
        check=False,
    )
    outputs = outputs_of(ran)

    assert all("island" in output for output in outputs)
    if page == "README.md":
        assert outputs == [README_PRINTS] * 2


PUBLIC = {"reattach", "reattach.client", "reattach.embed", "reattach.testing"}
USERS = [*PAGES, *sorted((ROOT / "examples").glob("*.py")), ROOT / "scripts" / "demo.py"]


@pytest.mark.parametrize("user", [str(page.relative_to(ROOT)) for page in USERS])
def test_a_page_or_example_imports_only_the_public_api(user: str) -> None:
    """Code that a user copies keeps working after an upgrade."""
    text = (ROOT / user).read_text()
    code = text if user.endswith(".py") else "\n".join(all_blocks(ROOT / user, "python|py"))
    named = set()
    for module, names in re.findall(
        r"^\s*from (reattach[\w.]*) import (\([^)]*\)|[^(\n]*)", code, re.MULTILINE
    ):
        named |= {f"{module}.{name}" for name in re.findall(r"\w+", names)}
    named |= set(re.findall(r"^\s*import (reattach[\w.]*)", code, re.MULTILINE))

    public = {f"{one}.{name}" for one in PUBLIC for name in import_module(one).__all__}
    assert named - public - PUBLIC == set()


def test_readme_says_how_to_install_each_sdk_before_its_code() -> None:
    """E1: an install line stands above the code of each language."""
    readme = (ROOT / "README.md").read_text()

    assert re.search(r"`pip install letta-client`[^`]*```python", readme)
    assert re.search(r"`npm install @letta-ai/letta-client`.*?```javascript", readme, re.DOTALL)


@pytest.mark.parametrize("page", [str(p.relative_to(ROOT)) for p in PAGES if blocks(p, "toml")])
def test_the_settings_of_a_page_are_valid(page: str, tmp_path: Path) -> None:
    """E1: the TOML of a page is read without an error."""
    for number, block in enumerate(all_blocks(ROOT / page, "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(block)
        assert Settings(config=file).model_fields_set > {"config"}


@pytest.mark.parametrize(
    "page", [str(p.relative_to(ROOT)) for p in PAGES if blocks(p, "bash|sh|console")]
)
def test_the_shell_commands_of_a_page_can_be_parsed(page: str) -> None:
    """E1: a shell accepts the commands."""
    ran = subprocess.run(
        ["bash", "-n"],
        input=blocks(ROOT / page, "bash|sh|console"),
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr


def test_each_excerpt_of_the_recipes_is_part_of_a_program_that_tests_run() -> None:
    """E1: code that a page only shows is the code of the program, which works."""
    programs = [
        path.read_text() for path in (ROOT / "examples").rglob("*.*") if path.suffix in EXCERPTS
    ]
    languages = "|".join(suffix[1:] for suffix in EXCERPTS)
    for excerpt in all_blocks(ROOT / "docs" / "recipes.md", languages):
        assert any(excerpt in program for program in programs), excerpt


def test_every_setting_is_in_the_table_of_settings() -> None:
    table = (ROOT / "docs" / "operate.md").read_text()
    documented = set(re.findall(r"^\| `(REATTACH_[A-Z_]+)`", table, re.MULTILINE))

    assert documented == set(map(variable_of, Settings.model_fields))


def test_every_link_between_pages_has_a_target() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in [*PAGES, *ROOT.glob("*.md"), *(ROOT / "docs" / "decisions").glob("*.md")]
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]

    assert broken == []


def test_readme_has_a_row_for_every_parameter_of_resuming() -> None:
    readme = (ROOT / "README.md").read_text()

    assert re.findall(r"^\| (S\d+) \|", readme, re.MULTILINE) == [f"S{n}" for n in range(1, 12)]
