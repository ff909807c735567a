"""Python functions as tools.

The arguments' schema comes from the signature, by Pydantic: annotations say the types, and
``Annotated[str, Field(description="…")]`` says more. The docstring is what the model reads.
"""

import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final, ParamSpec, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.experimental.arguments_schema import generate_arguments_schema
from pydantic_core import SchemaValidator, to_json, to_jsonable_python

from reattach.arguments import NO_OBJECT, decoded_arguments, json_object
from reattach.errors import StartupError, ToolError
from reattach.limits import MAX_VALIDATION_ERRORS
from reattach.tools.base import Tool
from reattach.tools.threads import Threads

ENTRY_POINTS: Final = "reattach.tools"
"""The group of entry points by which installed packages bring tools."""

_OPTIONS: Final = "__reattach_tool__"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


@dataclass(frozen=True, slots=True)
class Options:
    """What ``tool`` says of a function."""

    name: str | None = None
    requires_approval: bool = False


def tool(
    *, name: str | None = None, requires_approval: bool = False
) -> Callable[[Callable[Arguments, Returned]], Callable[Arguments, Returned]]:
    """Decorate a function that is a tool; without it, it has its own name and needs no approval.

    The function itself stays as it is.
    """

    def mark(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
        setattr(function, _OPTIONS, Options(name, requires_approval))
        return function

    return mark


class FunctionTool(Tool):
    """Calls a function: one that is async in the event loop, any other in a thread."""

    kind = "custom"

    def __init__(self, function: Callable[..., Any], threads: Threads) -> None:
        """Raises StartupError for a function that no model can call."""
        options: Options = getattr(function, _OPTIONS, Options())
        self.name = options.name or str(getattr(function, "__name__", ""))
        self.requires_approval = options.requires_approval
        self.description = inspect.getdoc(function)
        if not _NAME.fullmatch(self.name):
            raise StartupError(
                f"The tool {self.name!r} needs another name: 1 to 64 letters, digits, _ or -."
            )
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(cast("Any", function))
            self.parameters = adapter.json_schema()
            self._validator = SchemaValidator(generate_arguments_schema(function))
        except (PydanticUserError, NameError) as error:
            raise StartupError(
                f"The arguments of the tool {self.name} have no JSON schema: {error}"
            ) from error
        if self.parameters.get("type") != "object":
            raise StartupError(f"The tool {self.name} has arguments without names; name them.")
        self._function = function
        self._threads = threads

    async def call(self, arguments: str) -> str:
        if decoded_arguments(arguments) is None:
            raise ToolError(NO_OBJECT)
        try:
            args, kwargs = self._validator.validate_json(json_object(arguments))
        except ValidationError as error:
            raise ToolError(f"The arguments do not fit. {_faults(error)}") from error
        bound = partial(self._function, *args, **kwargs)
        if inspect.iscoroutinefunction(self._function):
            return _text(await bound())
        return await self._threads.run(lambda: _text(bound()))


def function_tools(names: Sequence[str], threads: Threads) -> list[Tool]:
    """The tools that the settings name, ``package.module:function``, and those of packages.

    Imports them, so it is not for the event loop. Raises StartupError for one that can not be had.
    """
    return [function_tool(name, threads) for name in function_names(names)]


def function_names(names: Sequence[str]) -> list[str]:
    """These, and those that installed packages bring, each once."""
    points = (point.value for point in entry_points(group=ENTRY_POINTS))
    return list(dict.fromkeys((*names, *points)))


def function_tool(name: str, threads: Threads) -> Tool:
    """The tool that ``package.module:function`` names; imports it. Raises StartupError."""
    return FunctionTool(_imported(name), threads)


def _imported(name: str) -> Callable[..., Any]:
    module, _, path = name.partition(":")
    if not module or not path:
        raise StartupError(f"The tool {name} must be named package.module:function.")
    try:
        found: Any = import_module(module)
        for member in path.split("."):
            found = getattr(found, member)
    except Exception as error:
        raise StartupError(
            f"The tool {name} can not be imported: {type(error).__name__}: {error}. "
            "Install its package, or leave it out."
        ) from error
    if not callable(found):
        raise StartupError(f"The tool {name} is no function.")
    function: Callable[..., Any] = found
    return function


def _faults(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    said = [f"{'.'.join(map(str, one['loc'])) or 'all'}: {one['msg']}" for one in found]
    return "; ".join(said[:MAX_VALIDATION_ERRORS])


def _text(result: object) -> str:
    if isinstance(result, str):
        return result
    try:
        return to_json(result, fallback=str).decode()
    except ValueError:  # A text within it is no Unicode; the caller makes it storable.
        return json.dumps(to_jsonable_python(result, fallback=str), ensure_ascii=False)
