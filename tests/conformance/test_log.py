from __future__ import annotations

from pathlib import Path

import pytest

from reattach.testing.conformance.log import LogConformance, LogStore
from tests.support.log_stores import (
    LOADING,
    SMALL,
    MemoryStore,
    MeteredStore,
    RedisStore,
    SqliteStore,
)
from tests.support.redis_server import shared_cluster_url, shared_sentinel_url, shared_url


class TestLogs(LogConformance):
    @pytest.fixture(
        params=[
            *(
                "memory",
                "metered",
                "sqlite process",
                "sqlite power",
                "sqlite small",
                "sqlite loading",
            ),
            *("redis", "redis cluster", "redis sentinel"),
        ]
    )
    def store(self, request: pytest.FixtureRequest, tmp_path: Path) -> LogStore:
        match request.param:
            case "memory":
                return MemoryStore()
            case "metered":
                return MeteredStore()
            case "redis":
                return RedisStore(shared_url())
            case "redis cluster":
                return RedisStore(shared_cluster_url())
            case "redis sentinel":
                return RedisStore(shared_sentinel_url())
            case "sqlite process":
                return SqliteStore(tmp_path, "process")
            case "sqlite power":
                return SqliteStore(tmp_path, "power")
            case "sqlite loading":
                return SqliteStore(tmp_path, "process", LOADING)
            case _:
                return SqliteStore(tmp_path, "process", SMALL)
