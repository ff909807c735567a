from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from reattach.domain.errors import StartupError
from reattach.log.open import open_log
from tests.support.redis_server import shared_url


@pytest.mark.parametrize(
    ("options", "survives_power_loss"),
    [("", False), ("?durability=process", False), ("?durability=power", True)],
)
async def test_a_url_names_a_file_and_its_durability(
    tmp_path: Path, options: str, survives_power_loss: bool
) -> None:
    path = tmp_path / "with ? and %.db"
    log = await open_log(f"sqlite:{tmp_path}/with %3F and %25.db{options}")
    try:
        assert log.capabilities.survives_power_loss is survives_power_loss
        await log.open("run", 1)
        assert path.stat().st_size > 0
    finally:
        await log.aclose()


async def test_memory_is_a_log_too() -> None:
    log = await open_log("memory:")
    assert not log.capabilities.survives_process_kill
    await log.aclose()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("kafka:somewhere", "Use one of memory:, sqlite:"),
        ("", "Use one of memory:, sqlite:"),
        ("memory:place", "takes no path and no options"),
        ("sqlite:", "needs a file"),
        ("sqlite:x.db?durability=none", "Use process or power"),
        ("sqlite:x.db?mode=fast", "has no option mode"),
        ("sqlite:x.db?durability", "cannot be parsed"),
        ("sqlite:/nowhere/at/all/x.db", "cannot be opened"),
        ("redis://127.0.0.1:1", "cannot be used"),
        ("redis://127.0.0.1:1?nothing=1", "the option nothing"),
        ("redis://127.0.0.1:1?wait_replicas=x", "wait_replicas must be a number"),
        ("redis://:secret@127.0.0.1:x", "cannot be parsed"),
        ("redis+sentinel://127.0.0.1:1", "a service is missing"),
        ("redis+sentinel://127.0.0.1:1/mine", "cannot be used"),
        ("redis+cluster://:secret@127.0.0.1:1", "cannot be used"),
        ("redis+cluster://127.0.0.1:1?wait_replicas=1", "cannot wait for replicas"),
        ("unix:", "a path is missing"),
        ("unix:///nowhere/at/all?db=0", "cannot be used"),
    ],
)
async def test_a_url_that_makes_no_sense_is_refused_with_what_would(url: str, told: str) -> None:
    with pytest.raises(StartupError, match=told) as caught:
        await open_log(url)
    assert "secret" not in str(caught.value)


async def test_a_url_names_a_redis_and_how_it_is_used() -> None:
    log = await open_log(f"{shared_url()}?prefix=named-{uuid.uuid4().hex}&wait_replicas=0")
    try:
        assert log.capabilities.shared_between_processes
        await log.open("run", 1)
    finally:
        await log.aclose()
