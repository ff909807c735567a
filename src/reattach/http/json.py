"""JSON bodies: strict, bounded parsing, and fast encoding.

A request body is refused, with the place and the reason, if it has too many values, is not UTF-8,
is not JSON, or could be read differently by two parsers: a repeated name in one object, a number
that is not finite or too large for the stores, half of a surrogate pair, a NUL character.
"""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import msgspec
import structlog
from starlette.responses import Response
from starlette.types import Scope

from reattach.domain.arguments import finite_number, is_deeper_than
from reattach.domain.errors import ValidationFailedError
from reattach.domain.limits import MAX_INTEGER, MAX_VALIDATION_ERRORS
from reattach.domain.limits.requests import (
    INLINE_BODY_BYTES,
    INLINE_BODY_VALUES,
    MAX_JSON_DEPTH,
    MAX_JSON_VALUES,
)

PARSE_QUEUE: Final = "reattach.parse_queue"
"""Key of the ASGI scope under which the middleware stores the ``ParseQueue``."""

MAX_INLINE_ROWS: Final = 200
"""Rows of a list that are encoded on the event loop, where 100 take less than a millisecond."""

_Row = TypeVar("_Row")

_encode = msgspec.json.Encoder().encode


class JsonResponse(Response):
    """A response with ``content`` as compact JSON: dicts, lists, structs and dataclasses."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return _encode(content)


async def list_response(
    rows: Sequence[_Row], items_of: Callable[[Sequence[_Row]], object]
) -> Response:
    """Return the response with the items of the rows; long lists are made in a thread."""
    if len(rows) <= MAX_INLINE_ROWS:
        return JsonResponse(items_of(rows))
    return await asyncio.to_thread(lambda: JsonResponse(items_of(rows)))


class Fault(NamedTuple):
    """One fault of a request."""

    loc: Sequence[str | int]
    """``path``, ``query`` or ``body``, followed by the path to the value."""
    msg: str
    type: str


def invalid(faults: Sequence[Fault], *, omitted: int = 0, **extra: object) -> ValidationFailedError:
    """Return the error for a request with these faults; it lists the first ones.

    ``omitted`` is the number of further faults that are not among them.
    """
    shown = faults[:MAX_VALIDATION_ERRORS]
    lines = [f"{'.'.join(map(str, fault.loc))}: {fault.msg}" for fault in shown]
    omitted += len(faults) - len(shown)
    if omitted:
        lines.append(f"{omitted} more faults are not shown.")
    error = ValidationFailedError(" ".join(lines))
    trace_id = structlog.contextvars.get_contextvars().get("trace_id", "")
    error.extra = {"trace_id": trace_id, "errors": [fault._asdict() for fault in shown], **extra}
    return error


class ParseQueue(Protocol):
    """Parses large bodies outside the event loop."""

    async def parse(self, scope: Scope, body: bytes) -> Any:
        """Wait in the queue, then parse ``body``. Raises ValidationFailedError."""


# Parsing.

NUL: Final = "The NUL character cannot be stored. Remove it."
_SURROGATE: Final = "The text contains half of a surrogate pair. Send whole characters."
_TOO_DEEP: Final = f"Objects and arrays are nested more than {MAX_JSON_DEPTH} levels deep."
_TOO_MANY: Final = (
    f"The body has more than {MAX_JSON_VALUES} values, counting arrays and objects. Send "
    "fewer per request."
)
_SUSPICIOUS: Final = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_DEEP: Final = b"[" * (MAX_JSON_DEPTH + 1)
_FIRST_LOOK_BYTES: Final = 1024 * 1024
"""A body of many small values is recognised by its first part."""

_MOST_QUOTES: Final = 4 * MAX_JSON_VALUES
"""A member of an object is one value with two quoted strings at most: its name and its value."""


def is_small(body: bytes) -> bool:
    """Return whether ``body`` is cheap enough to parse on the event loop."""
    return len(body) <= INLINE_BODY_BYTES and _most_values(body) <= INLINE_BODY_VALUES


def parse(body: bytes) -> Any:
    """Return the JSON value of ``body``. Raises ValidationFailedError."""
    try:
        _refuse_too_many_values(body)
        value = _decode(body.decode("utf-8"))
        if _brackets(body) > MAX_JSON_DEPTH and is_deeper_than(MAX_JSON_DEPTH, value):
            raise ValueError(_TOO_DEEP)
        # Encoding fails at half of a surrogate pair, and escapes NUL and nothing else like it.
        if _SUSPICIOUS.search(body) and rb"\u0000" in _encode(value).replace(rb"\\", b""):
            raise ValueError(NUL)
    except UnicodeDecodeError as error:
        message, kind = f"Not UTF-8: byte {error.start} is invalid.", "unicode_invalid"
    except UnicodeEncodeError:
        message, kind = _SURROGATE, "json_refused"
    except json.JSONDecodeError as error:
        reason = error.msg.removesuffix(" at").replace("Expecting", "Expected")
        message, kind = f"Not valid JSON at character {error.pos}: {reason}.", "json_invalid"
    except RecursionError:
        message, kind = _TOO_DEEP, "json_refused"
    except ValueError as error:
        message, kind = str(error), "json_refused"
    else:
        return value
    raise invalid([Fault(["body"], message, kind)])


def _brackets(body: bytes) -> int:
    return body.count(b"[") + body.count(b"{")


def _most_values(body: bytes) -> int:
    """Return an upper bound of the number of values; it counts commas within strings too."""
    return body.count(b",") + _brackets(body)


def _refuse_too_many_values(body: bytes) -> None:
    """Count the values without decoding them. Raises ValueError."""
    if len(body) <= MAX_JSON_VALUES or _most_values(body) <= MAX_JSON_VALUES:
        return
    for length in (_FIRST_LOOK_BYTES, len(body)):
        # Without escapes every quotation mark starts or ends a string, so every second piece
        # between quotation marks is outside strings.
        bare = body[:length].replace(rb"\\", b"").replace(rb"\"", b"")
        if bare.count(b'"') > _MOST_QUOTES:
            raise ValueError(_TOO_MANY)
        outside = b"".join(bare.split(b'"')[::2])
        if _most_values(outside) > MAX_JSON_VALUES:
            raise ValueError(_TOO_DEEP if _DEEP in outside else _TOO_MANY)


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("An object has the same name twice.")
    return result


def _bounded_integer(text: str) -> int:
    if len(text) > 20 or abs(number := int(text)) > MAX_INTEGER:
        raise ValueError(f"An integer is larger than {MAX_INTEGER} in magnitude.")
    return number


_decode: Final = json.JSONDecoder(
    object_pairs_hook=_unrepeated,
    parse_int=_bounded_integer,
    parse_float=finite_number,
    parse_constant=finite_number,
).decode
