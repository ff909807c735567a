"""JSON bodies: read strictly, within bounds, and written fast.

A request's body is refused, with a text that says where and why, if it has too many values, is not
UTF-8, is not JSON, or is JSON that two readers could take differently: a name twice in one object,
a number that is none (NaN) or too large for the stores, half of a surrogate pair, a NUL character.
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
"""The key of an ASGI scope under which the middleware puts the ``ParseQueue`` of the request."""

_encode = msgspec.json.Encoder().encode


class JsonResponse(Response):
    """``content`` as compact JSON: dicts, lists, structs and dataclasses of plain values."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return _encode(content)


class Fault(NamedTuple):
    """One thing that is wrong with a request."""

    loc: Sequence[str | int]
    """Where: ``path``, ``query`` or ``body``, then the way to the value."""
    msg: str
    type: str


def invalid(faults: Sequence[Fault], **extra: object) -> ValidationFailedError:
    """The error of a request with these faults, of which the first ones are told."""
    told = faults[:MAX_VALIDATION_ERRORS]
    lines = [f"{'.'.join(map(str, fault.loc))}: {fault.msg}" for fault in told]
    if len(faults) > len(told):
        lines.append(f"and {len(faults) - len(told)} more")
    errors = [fault._asdict() for fault in told]
    return ValidationFailedError("; ".join(lines), trace_id="", errors=errors, **extra)


class ParseQueue(Protocol):
    """Parses large bodies outside of the event loop."""

    async def parse(self, scope: Scope, body: bytes) -> Any:
        """Parse ``body`` when it is its turn. Raises ValidationFailedError."""


# Parsing.

NUL: Final = "The NUL character can not be stored."
_SURROGATE: Final = "Half of a surrogate pair is no text."
_SUSPICIOUS: Final = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


class _RefusedError(ValueError):
    """JSON that is well-formed and still not taken."""


def is_small(body: bytes) -> bool:
    """Whether parsing ``body`` in the event loop holds up nobody."""
    return len(body) <= INLINE_BODY_BYTES and _most_values(body) <= INLINE_BODY_VALUES


def _most_values(body: bytes) -> int:
    """An upper bound of the number of values: commas and brackets within texts count too."""
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _refuse_too_many_values(body: bytes) -> None:
    """Count the values without making any. Raises _RefusedError."""
    if len(body) <= MAX_JSON_VALUES or _most_values(body) <= MAX_JSON_VALUES:
        return
    for length in (_FIRST_LOOK_BYTES, len(body)):
        # Without escapes every quotation mark begins or ends a text, so every second piece between
        # them is outside of texts.
        bare = body[:length].replace(b"\\\\", b"").replace(b'\\"', b"")
        if bare.count(b'"') > _MOST_QUOTES:
            raise _RefusedError(_TOO_MANY)
        outside = b"".join(bare.split(b'"')[::2])
        if _most_values(outside) > MAX_JSON_VALUES:
            raise _RefusedError(_TOO_DEEP if _DEEP in outside else _TOO_MANY)


_FIRST_LOOK_BYTES: Final = 1024 * 1024
"""A body of many small values is recognised in its beginning."""

_MOST_QUOTES: Final = 4 * MAX_JSON_VALUES
"""A member of an object is one value, with a text as its name and perhaps another one."""

_DEEP: Final = b"[" * (MAX_JSON_DEPTH + 1)


def parse(body: bytes) -> Any:
    """The JSON value of ``body``. Raises ValidationFailedError."""
    try:
        _refuse_too_many_values(body)
        value = _decode(body.decode("utf-8"))
        if _SUSPICIOUS.search(body) or body.count(b"[") + body.count(b"{") > MAX_JSON_DEPTH:
            _look_through(value)
    except UnicodeDecodeError as error:
        message = f"The body is not UTF-8: byte {error.start} is wrong."
        raise invalid([Fault(["body", error.start], message, "unicode_invalid")]) from None
    except json.JSONDecodeError as error:
        message = f"The body is not JSON: {error.msg} at character {error.pos}."
        raise invalid([Fault(["body", error.pos], message, "json_invalid")]) from None
    except RecursionError:
        raise invalid([Fault(["body"], _TOO_DEEP, "json_refused")]) from None
    except _RefusedError as error:
        raise invalid([Fault(["body"], str(error), "json_refused")]) from None
    return value


_TOO_DEEP: Final = f"Objects and arrays are nested deeper than {MAX_JSON_DEPTH}."
_TOO_MANY: Final = (
    f"There are more than {MAX_JSON_VALUES} values: arrays, objects and everything in them. Send "
    "fewer in one request."
)
_TOO_LARGE: Final = f"An integer is beyond {MAX_INTEGER} in magnitude."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _RefusedError("A name stands twice in one object.")
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


def _look_through(value: Any) -> None:
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
