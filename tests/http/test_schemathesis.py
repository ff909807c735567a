"""The server behaves as its OpenAPI description says, for generated requests.

Schemathesis is imported where it is used, because it takes half a second.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings

from reattach.domain.ids import DEFAULT_TENANT
from reattach.records.base import KeyScope
from tests.support.asgi_server import serving

pytestmark = pytest.mark.slow


class _Announcing(uvicorn.Server):
    """Sets ``ready`` once its port answers."""

    def __init__(self, config: uvicorn.Config, ready: threading.Event) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready.set()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, dict[str, str]]]:
    """The description as it is served, by a server in a thread of its own.

    The server has a key, because the first one that a request made would close it to the others.
    """
    import schemathesis

    served: list[_Announcing] = []
    secrets: list[str] = []
    ready = threading.Event()

    async def serve(directory: Path) -> None:
        async with serving(directory) as server:
            agent = await server.agent(memory_blocks=[{"label": "human", "value": "Ada"}])
            conversation = await server.conversation(agent["id"])
            await server.send(conversation["id"], "hi")
            keys = server.context.records.keys
            _, secret = await keys.create(DEFAULT_TENANT, "test", scopes=[*KeyScope])
            secrets.append(secret)
            config = uvicorn.Config(server.app, port=0, log_config=None, lifespan="off")
            served.append(_Announcing(config, ready))
            await served[0].serve()

    directory = tmp_path_factory.mktemp("schemathesis")
    thread = threading.Thread(target=lambda: asyncio.run(serve(directory)), daemon=True)
    thread.start()
    assert ready.wait(30)
    port = served[0].servers[0].sockets[0].getsockname()[1]
    yield (
        schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json"),
        {"Authorization": f"Bearer {secrets[0]}"},
    )
    served[0].should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def test_no_request_gets_an_answer_that_the_description_does_not_have(
    api: tuple[Any, dict[str, str]],
) -> None:
    from schemathesis import checks

    description, headers = api
    tried: set[str] = set()
    examples = settings().max_examples // 50  # 2, or 20 with the profile "long"
    wanted = [
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
    ]

    def check(operation: Any) -> None:
        @settings(
            max_examples=examples,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def answers_as_described(case: Any) -> None:
            response = case.call_and_validate(checks=wanted, timeout=20, headers=headers)
            tried.add(f"{case.method} {case.path}")
            # 501 is an answer: a part of the API that is not offered. So is the 503 of a probe.
            asked_for = case.path == "/v1/admin/probe/error"
            assert response.status_code < 500 or response.status_code == 501 or asked_for
            assert response.status_code != 401

        answers_as_described()

    for operation in description.get_all_operations():
        check(operation.ok())
    assert len(tried) > 40
