"""The port for metrics needs no key, and is no way around the keys for web pages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from reattach.meters.scrape import Workers
from reattach.server.metrics.port import metrics_port
from reattach.settings import Settings
from reattach.testing.programs.ports import free_port


async def nothing() -> Workers:
    return {}


@asynccontextmanager
async def port_of(host: str, directory: Path) -> AsyncIterator[httpx2.AsyncClient]:
    port = free_port()
    settings = Settings(data_dir=directory, metrics_host=host, metrics_port=port)
    async with (
        metrics_port(settings, nothing),
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20.0) as client,
    ):
        yield client


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9464", "127.0.0.1.evil.example"])
async def test_a_name_that_was_rebound_to_this_machine_is_misdirected(
    tmp_path: Path, host: str
) -> None:
    async with port_of("127.0.0.1", tmp_path) as client:
        refused = await client.get("/metrics", headers={"host": host})
    assert refused.status_code == 421
    assert f"'{host}'" in refused.text
    assert "REATTACH_METRICS_HOST" in refused.text


@pytest.mark.parametrize(
    "headers", [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}]
)
async def test_a_page_of_another_machine_is_refused(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    async with port_of("127.0.0.1", tmp_path) as client:
        assert (await client.get("/metrics", headers=headers)).status_code == 403


@pytest.mark.parametrize("host", ["localhost:9464", "127.0.0.1:9464", "[::1]:9464"])
async def test_every_loopback_name_is_accepted(tmp_path: Path, host: str) -> None:
    async with port_of("127.0.0.1", tmp_path) as client:
        assert (await client.get("/metrics", headers={"host": host})).status_code == 200


async def test_a_port_that_others_may_reach_accepts_every_name(tmp_path: Path) -> None:
    async with port_of("0.0.0.0", tmp_path) as client:
        answer = await client.get("/metrics", headers={"host": "metrics.internal:9464"})
    assert answer.status_code == 200
