from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import letta_client

from reattach.http.api.not_offered import LATER, OUT_OF_SCOPE
from tests.support.asgi_server import Server

IDS = {
    "agent_id": "agent-123e4567-e89b-42d3-8456-426614174000",
    "block_id": "block-123e4567-e89b-42d3-8456-426614174000",
    "conversation_id": "conv-123e4567-e89b-42d3-8456-426614174000",
    "message_id": "message-123e4567-e89b-42d3-8456-426614174000",
    "run_id": "run-123e4567-e89b-42d3-8456-426614174000",
    "path_run_id": "run-123e4567-e89b-42d3-8456-426614174000",
}
VERBS = {"_get", "_post", "_put", "_patch", "_delete", "_get_api_list"}


def requests_of_the_sdk() -> set[tuple[str, str]]:
    """Every method and path that the SDK's resources ask for."""
    found: set[tuple[str, str]] = set()
    resources = Path(inspect.getfile(letta_client)).parent / "resources"
    for file in resources.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            if call.func.attr not in VERBS:
                continue
            for node in ast.walk(call.args[0]):
                if isinstance(node, ast.Constant) and str(node.value).startswith("/v1/"):
                    method = call.func.attr.removeprefix("_").removesuffix("_api_list").upper()
                    found.add((method, str(node.value)))
    return found


def filled(path: str) -> str:
    return re.sub(r"{(\w+)(:path)?}", lambda name: IDS.get(name[1], "some-value"), path)


async def test_every_request_of_the_sdk_is_answered_by_a_route(server: Server) -> None:
    requests = requests_of_the_sdk()
    assert len(requests) > 120
    for method, path in sorted(requests):
        response = await server.client.request(method, filled(path))
        assert response.status_code != 405, (method, path)
        assert "no route has this path" not in response.text, (method, path)


async def test_unsupported_parts_of_the_api_get_501_with_an_alternative(server: Server) -> None:
    for part in (*LATER, *OUT_OF_SCOPE):
        for path in part.paths:
            for method in part.methods:
                response = await server.client.request(method, filled(path))
                assert response.status_code == 501, (method, path)
                assert response.headers["x-should-retry"] == "false"
                assert response.json() == {
                    "detail": "Reattach does not support this part of the API: "
                    f"{part.what}. {part.instead}",
                    "code": "not_implemented",
                }
