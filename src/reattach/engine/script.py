"""The directives of a message for the scripted engine; its docstring lists them."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from reattach.domain.arguments import decoded_arguments
from reattach.domain.errors import (
    EngineError,
    ModelAuthenticationError,
    ModelEmptyResponseError,
    ModelError,
    ModelRateLimitError,
    ModelTimeoutError,
)
from reattach.domain.events import StopReason

_DIRECTIVE = re.compile(r"\[([a-z_]+)(?:=([^\[\]]*))?\]")
_ERRORS: Final[Mapping[str, type[EngineError]]] = {
    kind.code: kind
    for kind in (
        EngineError,
        ModelError,
        ModelTimeoutError,
        ModelRateLimitError,
        ModelAuthenticationError,
        ModelEmptyResponseError,
    )
}


@dataclass(frozen=True, slots=True)
class _Failure:
    after: int
    error: type[EngineError] = ModelError


def _count(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        number = int(value) if re.fullmatch(r"-?[0-9]{1,9}", value) else None
        if number is None or not minimum <= number <= maximum:
            raise ValueError(f"must be a whole number from {minimum} to {maximum}")
        return number

    return parse


def _number(maximum: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        with suppress(ValueError):
            if 0 < (number := float(value)) <= maximum:
                return number
        raise ValueError(f"must be a number above 0, at most {maximum:.0f}")

    return parse


def _failure(value: str) -> _Failure:
    after, _, code = value.partition(":")
    if code and code not in _ERRORS:
        raise ValueError(f"must name one of the errors {', '.join(_ERRORS)}")
    return _Failure(_deltas(after), _ERRORS[code] if code else ModelError)


def _stop_reason(value: str) -> StopReason:
    if value not in set(StopReason):
        raise ValueError(f"must be one of {', '.join(StopReason)}")
    return StopReason(value)


def _tool_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value):
        raise ValueError("must be 1 to 64 letters, digits, _ or -")
    return value


def _tool_names(value: str) -> list[str]:
    return [_tool_name(name.strip()) for name in value.split(",")]


def _arguments(value: str) -> list[str]:
    if decoded_arguments(value) is None:
        raise ValueError("must be a JSON object")
    return [value[start : start + 8] for start in range(0, len(value), 8)]


_deltas = _count(0, 1_000_000)
_FLAGS: Final = frozenset({"unicode", "history", "system"})
# The maxima bound the memory and time that one message can request.
_VALUES: Final[Mapping[str, Callable[[str], object]]] = {
    "chunks": _deltas,
    "think": _deltas,
    "size": _count(1, 1_048_576),
    "steps": _count(1, 1_000),
    "tool": _tool_name,
    "client_tool": _tool_names,
    "approve": _tool_names,
    "with": _tool_names,
    "arguments": _arguments,
    "rounds": _count(1, 1_000),
    "rate": _number(1_000_000),
    "wait": _number(86_400),
    "fail": _failure,
    "break": _deltas,
    "crash": _deltas,
    "hang": _deltas,
    "stop": _stop_reason,
    "context": _deltas,
}

_FIELDS: Final = {"with": "without_approval", "break": "breaks"}
"""The fields of directives whose names are Python keywords."""


@dataclass(slots=True)
class Script:
    """The directives of one message, as fields."""

    words: str = ""
    chunks: int | None = None
    think: int = 0
    size: int = 0
    unicode: bool = False
    steps: int = 1
    tool: str | None = None
    client_tool: Sequence[str] = ()
    approve: Sequence[str] = ()
    without_approval: Sequence[str] = ()
    arguments: Sequence[str] = ('{"n":', " 1}")
    rounds: int = 1
    history: bool = False
    system: bool = False
    rate: float | None = None
    wait: float = 0.0
    fail: _Failure | None = None
    breaks: int | None = None
    crash: int | None = None
    hang: int | None = None
    stop: StopReason | None = None
    context: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Script":
        script = cls()
        script.words = _DIRECTIVE.sub(script._take, text).strip()
        return script

    def _take(self, match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name not in _FLAGS and name not in _VALUES and value is None:
            return match[0]
        try:
            if name in _FLAGS:
                if value is not None:
                    raise ValueError("takes no value")
                setattr(self, name, True)
            elif name in _VALUES:
                if value is None:
                    raise ValueError(f"needs a value: [{name}=…]")
                setattr(self, _FIELDS.get(name, name), _VALUES[name](value))
            else:
                known = ", ".join(sorted(_FLAGS | _VALUES.keys()))
                raise ValueError(f"is unknown; there are {known}")
        except ValueError as error:
            raise ModelError(f"The directive {match[0]} of the scripted model {error}.") from error
        return ""
