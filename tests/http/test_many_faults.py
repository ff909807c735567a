"""Bodies with thousands of faults: few are looked at, because live streams wait meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from reattach.domain.errors import ValidationFailedError
from reattach.domain.limits import MAX_VALIDATION_ERRORS
from reattach.http.routes import DeferredRoute
from tests.support.asgi_server import Server

MANY: Final = 3000
MOST: Final = 1000
"""Faults that are found, of which a few are shown."""

WRONG: Final[dict[str, list[Any]]] = {
    "numbers": [1.5] * MANY,
    "objects": [{}] * MANY,
    "texts": ["a"] * MANY,
}
UNKNOWN: Final = {f"k{number}": 1.5 for number in range(MANY)}
DEEPEST: Final = 9


@pytest.fixture
def server(shared_server: Server) -> Server:
    return shared_server


def values(
    schema: dict[str, Any], schemas: dict[str, Any], depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """Values for a schema, each with thousands of wrong values in one place, and that place."""
    if depth > DEEPEST:
        return
    while "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from values(option, schemas, depth + 1)
    if schema.get("type") == "array":
        for name, items in WRONG.items():
            yield f" of {name}", items
        for place, item in values(schema.get("items", {}), schemas, depth + 1):
            yield f"[0]{place}", [item]
    if schema.get("type") == "object":
        yield " of unknown members", UNKNOWN
        members = schema.get("properties", {})
        constants = {name: one["const"] for name, one in members.items() if "const" in one}
        for name, one in members.items():
            for place, value in values(one, schemas, depth + 1):
                yield f".{name}{place}", {**constants, name: value}


def bodies(server: Server) -> Iterator[tuple[str, str, str, Any, Any]]:
    """The method and path of each operation with a body, its place of faults, body and field."""
    description = server.app.openapi()
    for route in server.app.all_routes():
        if not isinstance(route, DeferredRoute) or route.built.body_field is None:
            continue
        for method in route.built.methods or ():
            operation = description["paths"].get(route.path, {}).get(method.lower())
            if operation is None:
                continue
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            for place, body in values(schema, description["components"]["schemas"]):
                yield method, route.path, place, body, route.built.body_field


async def test_no_body_makes_thousands_of_faults(server: Server) -> None:
    found = 0
    for method, path, place, body, field in bodies(server):
        try:
            _, faults = field.validate(body, {}, loc=("body",))
        except ValidationFailedError as error:  # Unknown members, where they are refused.
            faults = error.extra["errors"]
        assert len(faults) <= MOST, (method, path, place, len(faults))
        found += bool(faults)
    assert found > 100


@pytest.mark.parametrize("path", ["/v1/tokens", "/v1/admin/keys"])
async def test_of_many_unknown_members_the_first_are_named(server: Server, path: str) -> None:
    response = await server.client.post(path, json=UNKNOWN)
    assert response.status_code == 422
    error = response.json()
    assert len(error["errors"]) == MAX_VALIDATION_ERRORS
    assert error["errors"][-1]["type"] == "extra_forbidden"
    assert f"{MANY - MAX_VALIDATION_ERRORS} more faults are not shown." in error["detail"]
