"""The docs tell the truth: their code runs, and their tables list what there is."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reattach.settings import Settings
from reattach.testing.process import ServerProcess

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BOUND_SECONDS = 60


def blocks(page: Path, language: str) -> str:
    """All code of a page in one language, as the one program that it is read as."""
    found = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return "\n".join(found)


def pages_with(language: str) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in PAGES if blocks(page, language)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    data_dir = tmp_path_factory.mktemp("docs")
    with ServerProcess(data_dir, arguments=["--scripted", "--log-level", "warning"]) as server:
        yield server


def as_run(code: str, server: ServerProcess) -> str:
    """The code with the address of the test's server, and a model that answers at once."""
    return code.replace("http://localhost:8283", server.url).replace(
        "local/smollm2-135m-instruct", "scripted/echo"
    )


@pytest.mark.parametrize("page", pages_with("python"))
def test_the_python_of_a_page_runs(page: str, server: ServerProcess, tmp_path: Path) -> None:
    program = tmp_path / "page.py"
    program.write_text(as_run(blocks(ROOT / page, "python"), server))
    ran = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    if page not in {"docs/embed.md", "docs/callbacks.md"}:
        assert "island" in ran.stdout


@pytest.mark.parametrize("page", pages_with("javascript"))
def test_the_javascript_of_a_page_runs(page: str, server: ServerProcess) -> None:
    node = shutil.which("node")
    modules = ROOT / "tests" / "clients" / "typescript"
    if node is None or not (modules / "node_modules").is_dir():
        if os.environ.get("CI"):
            pytest.fail("node and its packages are needed in CI; scripts/setup installs them")
        pytest.skip("node is not installed")
    program = modules / f".{Path(page).stem}.docs.mjs"
    program.write_text(as_run(blocks(ROOT / page, "javascript"), server))
    try:
        ran = subprocess.run(
            [node, str(program)], capture_output=True, text=True, timeout=BOUND_SECONDS, check=False
        )
    finally:
        program.unlink()

    assert ran.returncode == 0, ran.stderr
    assert "island" in ran.stdout


def test_every_setting_is_in_the_table_of_settings() -> None:
    table = (ROOT / "docs" / "operate.md").read_text()
    told = set(re.findall(r"^\| `(REATTACH_[A-Z_]+)`", table, re.MULTILINE))

    assert told == {f"REATTACH_{name.upper()}" for name in Settings.model_fields}


def test_links_between_pages_lead_somewhere() -> None:
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
