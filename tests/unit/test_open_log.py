from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from reattach.domain.errors import StartupError
from reattach.domain.ids import Token
from reattach.log.open import open_log
from tests.support.redis_server import shared_url


@pytest.mark.parametrize(
    ("options", "survives_power_loss"),
    [("", False), ("?durability=process", False), ("?durability=power", True)],
)
async def test_a_sqlite_url_sets_the_file_and_its_durability(
    tmp_path: Path, options: str, survives_power_loss: bool
) -> None:
    path = tmp_path / "with ? and %.db"
    log = await open_log(f"sqlite:{tmp_path}/with %3F and %25.db{options}")
    try:
        assert log.capabilities.survives_power_loss is survives_power_loss
        await log.open("run", Token(1))
        assert path.stat().st_size > 0
    finally:
        await log.aclose()


async def test_a_memory_url_opens_a_log_that_does_not_survive() -> None:
    log = await open_log("memory:")
    assert not log.capabilities.survives_process_kill
    await log.aclose()


@pytest.mark.parametrize(
    ("url", "text"),
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
        ("redis://127.0.0.1:1?nothing=1", "the option nothing does not work with its scheme"),
        ("redis://127.0.0.1:1?ssl_ca_certs=x", "ssl_ca_certs does not work .* use rediss:"),
        ("redis://127.0.0.1:1?wait_replicas=x", "wait_replicas must be a number"),
        ("redis://:secret@127.0.0.1:x", "is not valid"),
        ("redis+sentinel://127.0.0.1:1", "names no service"),
        ("redis+sentinel://127.0.0.1:1/mine", "cannot be used"),
        ("redis+cluster://:secret@127.0.0.1:1", "cannot be used"),
        ("redis+cluster://127.0.0.1:1?wait_replicas=1", "cannot wait for replicas"),
        ("unix:", "it has no path"),
        ("unix:///nowhere/at/all?db=0", "cannot be used"),
    ],
)
async def test_an_invalid_url_is_refused_with_the_correction(url: str, text: str) -> None:
    with pytest.raises(StartupError, match=text) as caught:
        await open_log(url)
    assert "secret" not in str(caught.value)


async def test_a_redis_url_sets_the_server_and_the_options_of_the_log() -> None:
    log = await open_log(f"{shared_url()}?prefix=named-{uuid.uuid4().hex}&wait_replicas=0")
    try:
        assert log.capabilities.shared_between_processes
        await log.open("run", Token(1))
    finally:
        await log.aclose()
