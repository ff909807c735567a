"""JSON bodies: strict, bounded parsing, and fast encoding.

A request body is refused, with the place and the reason, if it has too many values, is not UTF-8,
is not JSON, or could be read differently by two parsers: a repeated name in one object, a number
that is not finite or too large for the stores, half of a surrogate pair, a NUL character.
"""

import json
import math
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, NoReturn, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Scope

from reattach.domain.errors import ValidationFailedError
from reattach.domain.limits import (
    INLINE_BODY_BYTES,
    INLINE_BODY_VALUES,
    MAX_INTEGER,
    MAX_JSON_DEPTH,
    MAX_JSON_VALUES,
    MAX_VALIDATION_ERRORS,
)

PARSE_QUEUE: Final = "reattach.parse_queue"
"""Key of the ASGI scope under which the middleware stores the ``ParseQueue``."""

_encode = msgspec.json.Encoder().encode


class JsonResponse(Response):
    """A response with ``content`` as compact JSON: dicts, lists, structs and dataclasses."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return _encode(content)


class Fault(NamedTuple):
    """One fault of a request."""

    loc: Sequence[str | int]
    """``path``, ``query`` or ``body``, followed by the path to the value."""
    msg: str
    type: str


def invalid(faults: Sequence[Fault], **extra: object) -> ValidationFailedError:
    """Return the error for a request with these faults; it lists the first ones."""
    shown = faults[:MAX_VALIDATION_ERRORS]
    lines = [f"{'.'.join(map(str, fault.loc))}: {fault.msg}" for fault in shown]
    if len(faults) > len(shown):
        lines.append(f"and {len(faults) - len(shown)} more")
    error = ValidationFailedError("; ".join(lines))
    error.extra = {"trace_id": "", "errors": [fault._asdict() for fault in shown], **extra}
    return error


class ParseQueue(Protocol):
    """Parses large bodies outside the event loop."""

    async def parse(self, scope: Scope, body: bytes) -> Any:
        """Wait in the queue, then parse ``body``. Raises ValidationFailedError."""


# Parsing.

NUL: Final = "The NUL character cannot be stored. Remove it."
_SURROGATE: Final = "The text contains half of a surrogate pair. Send whole characters."
_SUSPICIOUS: Final = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


class _RefusedError(ValueError):
    """Well-formed JSON that is not accepted."""


def is_small(body: bytes) -> bool:
    """Return whether ``body`` is cheap enough to parse on the event loop."""
    return len(body) <= INLINE_BODY_BYTES and _most_values(body) <= INLINE_BODY_VALUES


def _most_values(body: bytes) -> int:
    """Return an upper bound of the number of values; it counts commas within strings too."""
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _refuse_too_many_values(body: bytes) -> None:
    """Count the values without decoding them. Raises _RefusedError."""
    if len(body) <= MAX_JSON_VALUES or _most_values(body) <= MAX_JSON_VALUES:
        return
    for length in (_FIRST_LOOK_BYTES, len(body)):
        # Without escapes every quotation mark starts or ends a string, so every second piece
        # between quotation marks is outside strings.
        bare = body[:length].replace(b"\\\\", b"").replace(b'\\"', b"")
        if bare.count(b'"') > _MOST_QUOTES:
            raise _RefusedError(_TOO_MANY)
        outside = b"".join(bare.split(b'"')[::2])
        if _most_values(outside) > MAX_JSON_VALUES:
            raise _RefusedError(_TOO_DEEP if _DEEP in outside else _TOO_MANY)


_FIRST_LOOK_BYTES: Final = 1024 * 1024
"""A body of many small values is recognised by its first part."""

_MOST_QUOTES: Final = 4 * MAX_JSON_VALUES
"""A member of an object is one value with two quoted strings at most: its name and its value."""

_DEEP: Final = b"[" * (MAX_JSON_DEPTH + 1)


def parse(body: bytes) -> Any:
    """Return the JSON value of ``body``. Raises ValidationFailedError."""
    try:
        _refuse_too_many_values(body)
        value = _decode(body.decode("utf-8"))
        if _SUSPICIOUS.search(body) or body.count(b"[") + body.count(b"{") > MAX_JSON_DEPTH:
            _check_strings(value)
    except UnicodeDecodeError as error:
        message = f"The body is not UTF-8: byte {error.start} is invalid."
        raise invalid([Fault(["body", error.start], message, "unicode_invalid")]) from None
    except json.JSONDecodeError as error:
        message = f"The body is not JSON: {error.msg} at character {error.pos}."
        raise invalid([Fault(["body", error.pos], message, "json_invalid")]) from None
    except RecursionError:
        raise invalid([Fault(["body"], _TOO_DEEP, "json_refused")]) from None
    except _RefusedError as error:
        raise invalid([Fault(["body"], str(error), "json_refused")]) from None
    return value


_TOO_DEEP: Final = f"Objects and arrays are nested more than {MAX_JSON_DEPTH} levels deep."
_TOO_MANY: Final = (
    f"The body has more than {MAX_JSON_VALUES} values, counting arrays and objects. Send "
    "fewer per request."
)
_TOO_LARGE: Final = f"An integer is larger than {MAX_INTEGER} in magnitude."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _RefusedError("An object has the same name twice.")
    return result


def _integer(text: str) -> int:
    if len(text) > 20 or abs(number := int(text)) > MAX_INTEGER:
        raise _RefusedError(_TOO_LARGE)
    return number


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _RefusedError("A number is too large.")
    return number


def _constant(text: str) -> NoReturn:
    raise _RefusedError(f"{text} is not a JSON number.")


_decode = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
).decode


def _check_strings(value: Any) -> None:
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        inside: list[Any] = []
        nested = False
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, dict):
                nested = True
                inside.extend(item.keys())
                inside.extend(item.values())
            elif isinstance(item, list):
                nested = True
                inside.extend(item)
        if not nested:
            return
        level = inside
    raise _RefusedError(_TOO_DEEP)


def _check_text(text: str) -> None:
    if "\0" in text:
        raise _RefusedError(NUL)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _RefusedError(_SURROGATE) from None
