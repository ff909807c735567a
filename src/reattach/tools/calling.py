"""One call of a tool, bounded: it always has a return, whatever the tool does."""

import asyncio
from dataclasses import dataclass

import structlog

from reattach.domain.errors import ToolError
from reattach.domain.limits import MAX_ERROR_CHARS, MAX_TOOL_OUTPUT_CHARS
from reattach.domain.messages import ToolCallPart
from reattach.engine.base import ToolReturn
from reattach.engine.intake import storable_return
from reattach.tools.base import NO_CONTEXT, Tool, ToolContext

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Fault:
    kind: str


async def call_tool(
    tool: Tool, call: ToolCallPart, *, seconds: float, context: ToolContext = NO_CONTEXT
) -> ToolReturn:
    """Run the call. What raises, takes longer than ``seconds`` or returns too much is an error.

    The return's text can be stored. When it is cancelled, or time is up, the tool is told so and
    not waited for.
    """
    return storable_return(await _called(tool, call, seconds, context))


async def _called(
    tool: Tool, call: ToolCallPart, seconds: float, context: ToolContext
) -> ToolReturn:
    task = asyncio.create_task(_outcome(tool, call, context), name=f"tool {tool.name}")
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
    if not task.done():
        logger.warning("tool out of time", tool=tool.name, seconds=seconds)
        return _failed(
            call,
            f"The tool did not return within {seconds:g} seconds. "
            "Whether it did its work is not known.",
        )
    if task.cancelled():
        return _failed(call, "The tool cancelled itself. Whether it did its work is not known.")
    match task.result():
        case ToolError(detail=detail):
            return _failed(call, detail[:MAX_TOOL_OUTPUT_CHARS])
        case _Fault(kind):
            return _failed(call, f"The tool failed: {kind[:MAX_ERROR_CHARS]}.")
        case str(output) if len(output) > MAX_TOOL_OUTPUT_CHARS:
            return _failed(
                call,
                f"The tool ran, and returned {len(output)} characters; {MAX_TOOL_OUTPUT_CHARS} "
                "are the most that is taken. Ask it for less.",
            )
        case str(output):
            return ToolReturn(call.tool_call_id, call.name, "success", output)


async def _outcome(
    tool: Tool, call: ToolCallPart, context: ToolContext
) -> str | ToolError | _Fault:
    """What came of the call; it raises nothing but its own cancellation."""
    try:
        output: object = await tool.call_for(context, call.arguments)
        return output if isinstance(output, str) else _Fault(f"it gave {type(output).__name__}")
    except asyncio.CancelledError:
        raise
    except ToolError as error:
        return error
    except BaseException as error:
        # SystemExit too: a tool does not end the server.
        logger.exception("tool failed", tool=tool.name)
        return _Fault(type(error).__name__)


def _failed(call: ToolCallPart, text: str) -> ToolReturn:
    return ToolReturn(call.tool_call_id, call.name, "error", text)
