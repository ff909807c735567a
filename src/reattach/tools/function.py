"""Python functions as tools.

Pydantic derives the arguments' schema from the signature: annotations give the types, and
``Annotated[str, Field(description="…")]`` adds descriptions. The model reads the docstring.
"""

import inspect
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final, Literal, ParamSpec, TypeVar, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.experimental.arguments_schema import generate_arguments_schema
from pydantic_core import SchemaValidator, to_json, to_jsonable_python

from reattach.domain.arguments import NO_OBJECT, decoded_arguments, json_object
from reattach.domain.errors import StartupError, ToolError
from reattach.domain.limits import MAX_VALIDATION_ERRORS
from reattach.tools.base import NO_CONTEXT, Tool, ToolContext
from reattach.tools.threads import Threads

ENTRY_POINTS: Final = "reattach.tools"
"""The group of entry points through which installed packages provide tools."""

_OPTIONS: Final = "__reattach_tool__"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the ``tool`` decorator."""

    name: str | None = None
    requires_approval: bool = False
    idempotent: bool = False
    tenants: frozenset[str] | None = None


def tool(
    *,
    name: str | None = None,
    requires_approval: bool = False,
    idempotent: bool = False,
    tenants: Collection[str] | None = None,
) -> Callable[[Callable[Arguments, Returned]], Callable[Arguments, Returned]]:
    """Set options of a function that is a tool; the function itself is unchanged.

    Without it, the tool has the function's name and needs no approval. ``requires_approval`` holds
    for every agent. Only agents of ``tenants`` may use the tool; None: all. ``idempotent`` says
    that running the function twice has the effect of running it once, or that it only reads: after
    a crash of the server during a call it then runs again.
    """
    if isinstance(tenants, str):
        raise StartupError(
            f"The tenants of a tool must be a list, and are {tenants!r}.",
            remedy=f"Write tenants=[{tenants!r}].",
        )
    limited = None if tenants is None else frozenset(tenants)

    def mark(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
        setattr(function, _OPTIONS, Options(name, requires_approval, idempotent, limited))
        return function

    return mark


class FunctionTool(Tool):
    """Calls a function: an async one in the event loop, any other in a thread."""

    kind = "custom"

    def __init__(self, function: Callable[..., Any], threads: Threads) -> None:
        """Raises StartupError for a function that no model can call."""
        options: Options = getattr(function, _OPTIONS, Options())
        self.name = options.name or str(getattr(function, "__name__", ""))
        self.requires_approval = options.requires_approval
        self.idempotent = options.idempotent
        self.tenants = options.tenants
        self.description = inspect.getdoc(function)
        if not _NAME.fullmatch(self.name):
            raise StartupError(
                f"The tool name {self.name!r} is not valid.",
                remedy="Use 1 to 64 letters, digits, _ or -.",
            )
        try:
            self._context_name = _context_parameter(function)
            adapter: TypeAdapter[Any] = TypeAdapter(cast("Any", function))
            self.parameters = _without(self._context_name, adapter.json_schema())
            self._validator = SchemaValidator(
                generate_arguments_schema(function, parameters_callback=self._skipping_context)
            )
        except (PydanticUserError, NameError) as error:
            raise StartupError(
                f"The arguments of the tool {self.name} have no JSON schema: {error}",
                remedy="Annotate its parameters with types that Pydantic supports.",
            ) from error
        if self.parameters.get("type") != "object":
            raise StartupError(
                f"The tool {self.name} has positional-only or variadic parameters.",
                remedy="Give each parameter a name that callers can use.",
            )
        self._function = function
        self._signature = inspect.signature(function)
        self._threads = threads

    def _skipping_context(self, index: int, name: str, annotation: Any) -> Literal["skip"] | None:  # noqa: ARG002
        return "skip" if name == self._context_name else None

    async def call(self, arguments: str) -> str:
        return await self.call_for(NO_CONTEXT, arguments)

    async def call_for(self, context: ToolContext, arguments: str) -> str:
        if decoded_arguments(arguments) is None:
            raise ToolError(NO_OBJECT)
        try:
            args, kwargs = self._validator.validate_json(json_object(arguments))
        except ValidationError as error:
            raise ToolError(f"The arguments are invalid. {_faults(error)}") from error
        if self._context_name is not None:
            # By name, because the parameter may precede others.
            names = [one for one in self._signature.parameters if one != self._context_name]
            kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
            args = ()
            kwargs[self._context_name] = context
        bound = partial(self._function, *args, **kwargs)
        if inspect.iscoroutinefunction(self._function):
            return _text(await bound())
        return await self._threads.run(lambda: _text(bound()), context.tenant)


def _without(parameter: str | None, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of arguments without the parameter that the server fills in."""
    if parameter is None:
        return schema
    schema.get("properties", {}).pop(parameter, None)
    schema["required"] = [name for name in schema.get("required", ()) if name != parameter]
    schema.get("$defs", {}).pop(ToolContext.__name__, None)
    return {name: value for name, value in schema.items() if value or name == "properties"} | {
        "additionalProperties": schema.get("additionalProperties", False)
    }


def _context_parameter(function: Callable[..., Any]) -> str | None:
    """Return the name of the parameter that the server fills in; None if there is none.

    Raises:
        NameError: An annotation names nothing.
        StartupError: There are several such parameters.
    """
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        hints = get_type_hints(target)
    except TypeError:
        return None
    names = [
        name for name in inspect.signature(function).parameters if hints.get(name) is ToolContext
    ]
    if len(names) > 1:
        raise StartupError(
            f"A tool may have one parameter of type ToolContext, and this one has {len(names)}.",
            remedy="Remove all of them except one.",
        )
    return names[0] if names else None


def function_tools(names: Sequence[str], threads: Threads) -> list[Tool]:
    """Import the functions that the settings name and those of installed packages.

    Call it outside of the event loop. Raises StartupError for one that cannot be imported.
    """
    return [function_tool(name, threads) for name in function_names(names)]


def function_names(names: Sequence[str]) -> list[str]:
    """Return ``names`` and those that installed packages provide, each once."""
    points = (point.value for point in entry_points(group=ENTRY_POINTS))
    return list(dict.fromkeys((*names, *points)))


def function_tool(name: str, threads: Threads) -> Tool:
    """Import ``package.module:function`` and return its tool. Raises StartupError."""
    return FunctionTool(_import(name), threads)


def _import(name: str) -> Callable[..., Any]:
    module, _, path = name.partition(":")
    if not module or not path:
        raise StartupError(
            f"The tool '{name}' does not have the form package.module:function.",
            remedy="Correct REATTACH_TOOLS.",
        )
    try:
        found: Any = import_module(module)
        for member in path.split("."):
            found = getattr(found, member)
    except Exception as error:
        raise StartupError(
            f"The tool {name} cannot be imported: {type(error).__name__}: {error}.",
            remedy="Install its package, or remove it from REATTACH_TOOLS.",
        ) from error
    if not callable(found):
        raise StartupError(f"The tool {name} is not a function.", remedy="Correct REATTACH_TOOLS.")
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
    except ValueError:  # A nested text is invalid Unicode; the caller makes it storable.
        return json.dumps(to_jsonable_python(result, fallback=str), ensure_ascii=False)
