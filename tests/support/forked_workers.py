"""Tests in forks of one process that has imported and collected everything: ``--workers N``.

The main process runs no test. It gives each worker one module after the other and repeats the
workers' reports as its own, so that the summary, ``-x``, ``--lf`` and ``--junitxml`` work as
without workers. Session fixtures are set up and torn down in every worker, and each worker makes
its own folder for ``tmp_path``.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from warnings import WarningMessage

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--workers", type=int, default=0, help="run the tests in this number of forks")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("workers") and config.option.basetemp:
        raise pytest.UsageError("Each worker has its own --basetemp: omit it or --workers.")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    option = session.config.option
    if not option.workers or option.collectonly or option.usepdb or session.testsfailed:
        return None
    workers = Workers(session, option.workers)
    try:
        to_main = workers.run()
    except BaseException:
        workers.close()
        raise
    if to_main is not None:
        _become_worker(session, to_main)
        return True  # The worker ends as pytest does: session fixtures, plugins, atexit.
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)
    return True


@dataclass(eq=False)
class Worker:
    """A fork, as the main process sees it. A test is an index into ``session.items``."""

    pid: int
    connection: Connection[Any, Any]
    folder: Path | None = None
    waiting: list[int] = field(default_factory=list)
    running: int | None = None
    has_failed: bool = False


class Workers:
    """The forks of the main process and the modules that none of them has begun."""

    def __init__(self, session: pytest.Session, count: int) -> None:
        self._session = session
        self._hook = session.config.hook
        modules = groupby(range(len(session.items)), key=lambda one: session.items[one].path)
        self._modules = [list(module) for _, module in modules]
        self._count = min(count, len(self._modules))
        self._workers: list[Worker] = []
        self._stopped = False

    def run(self) -> Connection[Any, Any] | None:
        """Return None after the last test, and in a fork the connection to the main process."""
        while True:
            while self._modules and len(self._workers) < self._count:
                if (to_main := self._fork()) is not None:
                    return to_main
            if not self._workers:
                return None
            ready = wait([worker.connection for worker in self._workers])
            for worker in [one for one in self._workers if one.connection in ready]:
                self._receive(worker)
            if (self._session.shouldfail or self._session.shouldstop) and not self._stopped:
                self._stop()

    def close(self) -> None:
        """Let every worker end after its running test, and wait for that."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            os.waitpid(worker.pid, 0)

    def _fork(self) -> Connection[Any, Any] | None:
        ours, theirs = Pipe()
        self._session.config.get_terminal_writer().flush()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            # A worker learns from its connection that the main process has ended.
            for connection in (ours, *(worker.connection for worker in self._workers)):
                connection.close()
            return theirs
        theirs.close()
        self._workers.append(Worker(pid, ours))
        return None

    def _receive(self, worker: Worker) -> None:
        try:
            kind, content = worker.connection.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        if kind == "take":
            worker.waiting += (module := self._next_module(worker))
            _send(worker.connection, module)
        elif kind == "begin":
            worker.waiting.remove(content)
            worker.running = content
        elif kind == "end":
            worker.running = None
        elif kind == "report":
            report = self._hook.pytest_report_from_serializable(
                config=self._session.config, data=content
            )
            worker.has_failed |= report.failed
            self._hook.pytest_runtest_logreport(report=report)
        else:
            self._hook.pytest_warning_recorded.call_historic(kwargs=content)

    def _next_module(self, worker: Worker) -> list[int]:
        """Prefer the folder of the worker's last module, then one that has no other worker.

        A fixture of a package is then set up by few workers.
        """
        others = {other.folder for other in self._workers if other is not worker}

        def rank(module: list[int]) -> tuple[bool, bool]:
            folder = self._folder(module)
            return folder != worker.folder, folder in others

        if not self._modules:
            return []
        module = min(self._modules, key=rank)
        self._modules.remove(module)
        worker.folder = self._folder(module)
        return module

    def _folder(self, module: list[int]) -> Path:
        return self._session.items[module[0]].path.parent

    def _stop(self) -> None:
        """Let every worker end after its running test."""
        self._stopped = True
        self._modules.clear()
        for worker in self._workers:
            _send(worker.connection, [])

    def _bury(self, worker: Worker) -> None:
        self._workers.remove(worker)
        worker.connection.close()
        status = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        if worker.running is not None:
            self._fail(self._session.items[worker.running], status)
        elif status != (pytest.ExitCode.TESTS_FAILED if worker.has_failed else pytest.ExitCode.OK):
            self._session.shouldfail = f"A worker ended with the status {status} after its tests."
        if worker.waiting and not self._stopped:
            self._modules.insert(0, worker.waiting)

    def _fail(self, item: pytest.Item, status: int) -> None:
        report = pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords={},
            outcome="failed",
            longrepr=f"The worker ended with the status {status} during this test.",
            when="call",
        )
        self._hook.pytest_runtest_logreport(report=report)


def _send(connection: Connection[Any, Any], content: object) -> None:
    """Send to a process that may have ended: receiving from it says so."""
    with suppress(OSError):
        connection.send(content)


def _become_worker(session: pytest.Session, connection: Connection[Any, Any]) -> None:
    """Run the tests that the main process gives, and report to it alone."""
    config = session.config
    atexit.register(gc.freeze)  # Else the interpreter's end looks at all objects several times.
    # By this attribute pytest's own plugins know a worker, and leave the cache to the main process.
    config.workerinput = {}  # type: ignore[attr-defined]
    plugins = config.pluginmanager
    capturing: Any = plugins.get_plugin("capturemanager")
    capturing.stop_global_capturing()  # Its files are those of the other workers.
    capturing.start_global_capturing()
    capturing.suspend_global_capture()
    plugins.unregister(name="terminalreporter")
    plugins.register(Reporter(config, connection), "terminalreporter")
    module = NextModule(session, connection)
    while module.tests:
        following = NextModule(session, connection)
        for count, number in enumerate(module.tests, 1):
            after = module.tests[count : count + 1]
            _send(connection, ("begin", number))
            config.hook.pytest_runtest_protocol(
                item=session.items[number],
                nextitem=session.items[after[0]] if after else following,
            )
            _send(connection, ("end", number))
            if session.shouldfail or session.shouldstop or connection.poll():
                return
        module = following


class NextModule:
    """The module that a worker runs next, as the ``nextitem`` of the last test before it.

    It is taken when that test is torn down, because a worker that took it earlier would keep it
    from the others during the test.
    """

    def __init__(self, session: pytest.Session, connection: Connection[Any, Any]) -> None:
        self._session = session
        self._connection = connection

    @cached_property
    def tests(self) -> list[int]:
        try:
            self._connection.send(("take", None))
            taken: list[int] = self._connection.recv()
        except (EOFError, OSError):
            return []
        return taken

    def listchain(self) -> list[Any]:
        """Return the nodes whose fixtures are still needed."""
        return self._session.items[self.tests[0]].listchain() if self.tests else []


class Reporter:
    """Sends the reports and warnings of tests to the main process, and writes nothing itself."""

    def __init__(self, config: pytest.Config, connection: Connection[Any, Any]) -> None:
        silent = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  until the end
        self._tw = pytest.TerminalReporter(config, silent)._tw  # For config.get_terminal_writer().
        self._config = config
        self._connection = connection

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        content = self._config.hook.pytest_report_to_serializable(
            config=self._config, report=report
        )
        _send(self._connection, ("report", content))

    def pytest_warning_recorded(
        self, warning_message: WarningMessage, when: str, nodeid: str, location: object
    ) -> None:
        if when != "runtest":
            return  # The main process has recorded it itself.
        warned = warning_message
        sent = WarningMessage(str(warned.message), warned.category, warned.filename, warned.lineno)
        content = {
            "warning_message": sent,
            "when": when,
            "nodeid": nodeid,
            "location": location,
        }
        _send(self._connection, ("warning", content))
