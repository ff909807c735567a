"""The workers of the tests, seen from a small project with tests of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
END_SECONDS = 60

CONFTEST = """
import os, pathlib, pytest

def note(line):
    with pathlib.Path(__file__).with_name("notes").open("a") as file:
        file.write(line + chr(10))

@pytest.fixture(scope="session", autouse=True)
def whole():
    note("session set up")
    yield
    note("session torn down")

@pytest.fixture(scope="package")
def package():
    note("package set up")

@pytest.fixture(scope="module")
def module():
    note("module set up")
    yield
    note("module torn down")
"""

Project = Callable[..., None]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    def write(**modules: str) -> None:
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        (tmp_path / "conftest.py").write_text(CONFTEST)
        for name, body in modules.items():
            path = tmp_path / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"from conftest import note\nimport os, signal, time\n{body}")

    return write


def command(arguments: Sequence[str]) -> list[str]:
    plugin = ("-p", "tests.support.forked_workers", "--import-mode=importlib")
    return [sys.executable, "-m", "pytest", *plugin, "--workers", "2", *arguments]


def environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join([str(folder), str(ROOT), str(ROOT / "src")])
    return {**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(arguments),
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=END_SECONDS,
        check=False,
    )


def outcome(ended: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    """Return the exit status and the summary: ``1 failed, 2 passed``."""
    found = re.search(r"=+ (?:.*!+\n=+ )?([\w ,]+) in [\d.]+s", ended.stdout)
    assert found is not None, ended.stdout + ended.stderr
    return ended.returncode, found[1]


def notes(folder: Path) -> list[str]:
    return (folder / "notes").read_text().splitlines()


def test_passes_failures_skips_and_errors_are_reported_as_without_workers(
    project: Project, tmp_path: Path
) -> None:
    project(
        test_one="def test_passes(): pass\ndef test_fails():\n    print('said'); assert 1 == 2\n",
        test_two="import pytest\n@pytest.mark.skip\ndef test_skipped(): pass\n",
        test_three="import pytest\n@pytest.fixture\ndef ends():\n    yield\n    raise OSError\n"
        "def test_errs(ends): pass\n"
        "def test_warns():\n    import warnings\n    warnings.warn('take care')\n",
    )
    ended = run(tmp_path, "--junitxml=tests.xml")
    assert outcome(ended) == (1, "1 failed, 3 passed, 1 skipped, 1 warning, 1 error")
    assert "assert 1 == 2" in ended.stdout
    assert ended.stdout.count("said\n") == 1
    assert "UserWarning: take care" in ended.stdout
    assert ended.stderr == ""
    assert len(ET.parse(tmp_path / "tests.xml").getroot().findall(".//testcase")) == 5
    assert outcome(run(tmp_path, "--lf"))[1].startswith("1 failed")


def test_a_module_runs_in_one_worker_and_every_worker_tears_its_fixtures_down(
    project: Project, tmp_path: Path
) -> None:
    tests = "def test_one(module): time.sleep(0.1)\ndef test_two(module): time.sleep(0.1)\n"
    project(**{f"test_{number}": tests for number in range(4)})
    assert outcome(run(tmp_path)) == (0, "8 passed")
    counts = {line: notes(tmp_path).count(line) for line in notes(tmp_path)}
    assert counts == {
        "session set up": 2,
        "session torn down": 2,
        "module set up": 4,
        "module torn down": 4,
    }


def test_the_modules_of_a_folder_run_in_one_worker_while_there_are_others(
    project: Project, tmp_path: Path
) -> None:
    tests = "def test_one(package): time.sleep(0.1)\n"
    project(**{f"{folder}__test_{number}": tests for folder in ("a", "b") for number in range(4)})
    assert outcome(run(tmp_path)) == (0, "8 passed")
    assert notes(tmp_path).count("package set up") == 2


@pytest.mark.parametrize(
    ("ending", "status"), [("os.kill(os.getpid(), signal.SIGKILL)", -9), ("os._exit(3)", 3)]
)
def test_a_worker_that_ends_fails_its_test_and_another_runs_the_rest(
    project: Project, tmp_path: Path, ending: str, status: int
) -> None:
    project(
        test_one=f"def test_before(): pass\ndef test_ends(): {ending}\ndef test_after(): pass\n",
        test_two="def test_other(): pass\n",
    )
    ended = run(tmp_path)
    assert outcome(ended) == (1, "1 failed, 3 passed")
    assert "test_one.py::test_ends" in ended.stdout
    assert f"The worker ended with the status {status} during this test." in ended.stdout


def test_a_worker_that_fails_after_its_tests_fails_the_session(
    project: Project, tmp_path: Path
) -> None:
    project(test_one="import atexit\ndef test_passes(): atexit.register(os._exit, 7)\n")
    ended = run(tmp_path)
    assert ended.returncode == pytest.ExitCode.TESTS_FAILED
    assert "A worker ended with the status 7 after its tests." in ended.stdout


def test_after_the_first_failure_workers_end_after_their_running_test(
    project: Project, tmp_path: Path
) -> None:
    slow = "".join(f"def test_{number}(): time.sleep(0.5)\n" for number in range(50))
    project(test_one="def test_fails():\n    time.sleep(0.2); assert False\n", test_two=slow)
    status, summary = outcome(run(tmp_path, "-x"))
    assert status == pytest.ExitCode.TESTS_FAILED
    assert summary.startswith("1 failed")
    passed = re.search(r"(\d+) passed", summary)
    assert passed is None or int(passed[1]) < 5
    assert notes(tmp_path).count("session torn down") == 2


def children_of(pid: int) -> list[int]:
    """The processes that the process has forked; none where the system does not say."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
    except OSError:
        return []
    return [int(child) for child in text.split()]


def is_asleep(pid: int) -> bool:
    """Whether the process waits for time to pass, as a test in ``time.sleep`` does."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
        place = Path(f"/proc/{pid}/wchan").read_text("ascii")
    except OSError:
        return True
    # The place is 0 while a process runs, and always on systems that do not say it.
    return state == "S" and (place == "0" or "nanosleep" in place)


@pytest.fixture
def _heeds_interrupts() -> Iterator[None]:
    """Let programs heed SIGINT, which they ignore if these tests run in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeds_interrupts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_workers_end_with_the_main_process(
    project: Project, tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C goes to all of them; of the death of the main process they learn."""
    asleep = "def test_one():\n    note('asleep'); time.sleep(%s)\ndef test_two(): note('second')\n"
    whole = asleep % (50 if number == signal.SIGINT else 2)
    project(test_one=whole, test_two=whole)
    arguments = {"cwd": tmp_path, "env": environment(tmp_path), "start_new_session": True}
    with subprocess.Popen(
        command([]),
        stdout=subprocess.PIPE,
        text=True,
        **arguments,  # type: ignore[call-overload]
    ) as process:
        while not (tmp_path / "notes").exists() or notes(tmp_path).count("asleep") < 2:
            assert process.poll() is None
            time.sleep(0.02)  # A busy loop would keep the workers from a core.
        if number == signal.SIGINT:
            while not all(map(is_asleep, children_of(process.pid))):
                time.sleep(0.02)  # An interrupt within the writing of a note could be lost.
            os.killpg(process.pid, number)
        else:
            process.kill()
        output, _ = process.communicate(timeout=END_SECONDS / 2)  # Until no worker has the pipe.
    assert notes(tmp_path).count("session torn down") == 2
    assert "second" not in notes(tmp_path)
    assert number == signal.SIGKILL or "KeyboardInterrupt" in output


def test_workers_share_neither_folder_nor_randomness(project: Project, tmp_path: Path) -> None:
    test = """
import random
def test_one(tmp_path):
    note(f"in {tmp_path.parent}")
    note(f"draws {random.random()}")
    time.sleep(0.5)
"""
    project(test_one=test, test_two=test)
    assert outcome(run(tmp_path)) == (0, "2 passed")
    assert len({line for line in notes(tmp_path) if line.startswith("in ")}) == 2
    assert len({line for line in notes(tmp_path) if line.startswith("draws ")}) == 2
    assert run(tmp_path, "--basetemp=here").returncode == pytest.ExitCode.USAGE_ERROR
