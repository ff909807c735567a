from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from reattach.testing.conformance.log import LogStore
from reattach.testing.conformance.log_machine import LogMachine
from tests.support.log_stores import LOADING, SMALL, RedisStore, SqliteStore
from tests.support.redis_server import shared_url

pytestmark = pytest.mark.slow

BOUNDED = settings(
    max_examples=settings().max_examples // 8,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class SmallSqliteMachine(LogMachine):
    """A log that folds, prunes and evicts constantly."""

    def make_store(self) -> LogStore:
        self.directory = tempfile.TemporaryDirectory()
        return SqliteStore(Path(self.directory.name), sizes=SMALL)

    def teardown(self) -> None:
        super().teardown()
        self.directory.cleanup()


class LoadingSqliteMachine(SmallSqliteMachine):
    """A log that folds, evicts and loads constantly."""

    def make_store(self) -> LogStore:
        self.directory = tempfile.TemporaryDirectory()
        return SqliteStore(Path(self.directory.name), sizes=LOADING)


class SqliteMachine(SmallSqliteMachine):
    """A log that keeps everything in the journal and in memory."""

    def make_store(self) -> LogStore:
        self.directory = tempfile.TemporaryDirectory()
        return SqliteStore(Path(self.directory.name))


class RedisMachine(LogMachine):
    """A log that keeps everything on Redis."""

    def make_store(self) -> LogStore:
        return RedisStore(shared_url())


def case_of(machine: type[LogMachine]) -> Any:
    case = machine.TestCase
    case.settings = BOUNDED
    return pytest.mark.promise("P1")(pytest.mark.promise("P4")(pytest.mark.promise("P5")(case)))


TestSmallSqlite = case_of(SmallSqliteMachine)
TestLoadingSqlite = case_of(LoadingSqliteMachine)
TestSqlite = case_of(SqliteMachine)
TestRedis = case_of(RedisMachine)
