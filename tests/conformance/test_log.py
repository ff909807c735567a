from __future__ import annotations

from pathlib import Path

import pytest

from reattach.testing.log_conformance import LogConformance, LogStore
from tests.conformance.log_stores import SMALL, MemoryStore, SqliteStore


class TestLogs(LogConformance):
    @pytest.fixture(params=["memory", "sqlite process", "sqlite power", "sqlite small"])
    def store(self, request: pytest.FixtureRequest, tmp_path: Path) -> LogStore:
        match request.param:
            case "memory":
                return MemoryStore()
            case "sqlite process":
                return SqliteStore(tmp_path, "process")
            case "sqlite power":
                return SqliteStore(tmp_path, "power")
            case _:
                return SqliteStore(tmp_path, "process", SMALL)
