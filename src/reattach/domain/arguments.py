"""Arguments of tool calls: JSON text of a model, decoded in one place and within bounds.

A model may write anything, or be cut off. Text that is not a JSON object for every later decoder
(NaN, half a surrogate pair, thousands of nested arrays) counts as no arguments.
"""

import json
import math
from typing import Any, Final

from reattach.domain.limits import MAX_ARGUMENTS_DEPTH
from reattach.domain.text import storable_text

NO_OBJECT: Final = (
    "The arguments are invalid. They are not a JSON object, or nest objects and arrays more than "
    f"{MAX_ARGUMENTS_DEPTH} levels deep."
)
"""The error for a model whose arguments are not a JSON object."""


def decoded_arguments(text: str) -> dict[str, Any] | None:
    """Return the members of a JSON object with storable texts; None if ``text`` is not one.

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
    brackets = text.count("[") + text.count("{")
    if brackets > MAX_ARGUMENTS_DEPTH and is_deeper_than(MAX_ARGUMENTS_DEPTH, value):
        return None
    return _storable(value) if "\\ud" in text.lower() else value


def json_object(text: str) -> str:
    """Return ``text`` if every decoder accepts it as a JSON object, else an equivalent object.

    Text that is not an object becomes ``{}``.
    """
    members = decoded_arguments(text)
    if not members:
        return "{}"
    return json.dumps(members) if "\\ud" in text.lower() else text


def finite_number(text: str) -> float:
    """Return the number. Raises ValueError for NaN, infinity and numbers that are too large."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:_SHOWN_CHARS]} is too large, or not a JSON number.")
    return number


_SHOWN_CHARS: Final = 40

_decode: Final = json.JSONDecoder(parse_float=finite_number, parse_constant=finite_number).decode


def is_deeper_than(levels: int, value: object) -> bool:
    """Whether objects and arrays are nested more than ``levels`` deep."""
    level: list[object] = [value]
    for _ in range(levels):
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
