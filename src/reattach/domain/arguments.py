"""Arguments of tool calls: JSON text of a model, decoded in one place and within bounds.

A model may write anything, or be cut off. Text that is not a JSON object for every later decoder
(NaN, half a surrogate pair, thousands of nested arrays) counts as no arguments.
"""

import json
import math
from typing import Any, Final, NoReturn

from reattach.domain.limits import MAX_ARGUMENTS_DEPTH
from reattach.domain.text import storable_text

NO_OBJECT: Final = (
    "The arguments are invalid. They are not a JSON object, or nest objects and arrays more than "
    f"{MAX_ARGUMENTS_DEPTH} levels deep."
)
"""The error for a model whose arguments are not a JSON object."""


def decoded_arguments(text: str) -> dict[str, Any] | None:
    """Return the members of a JSON object with storable texts; None if ``text`` is no such object.

    Empty text counts as an empty object.
    """
    if not text.strip():
        return {}
    try:
        value = _decode(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    if text.count("[") + text.count("{") > MAX_ARGUMENTS_DEPTH and _is_too_deep(value):
        return None
    return _storable(value) if "\\ud" in text.lower() else value


def json_object(text: str) -> str:
    """Return ``text`` if every decoder accepts it as a JSON object, else an equivalent object.

    Text that is no object becomes ``{}``.
    """
    members = decoded_arguments(text)
    if not members:
        return "{}"
    return json.dumps(members) if "\\ud" in text.lower() else text


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


_decode: Final = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse).decode


def _is_too_deep(value: object) -> bool:
    level: list[object] = [value]
    for _ in range(MAX_ARGUMENTS_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)  # type: ignore[attr-defined]
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _storable(value: Any) -> Any:
    """Replace every half of a surrogate pair; the depth has been checked."""
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, dict):
        return {storable_text(name): _storable(inner) for name, inner in value.items()}
    return [_storable(one) for one in value] if isinstance(value, list) else value
