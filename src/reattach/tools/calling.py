"""One bounded call of a tool, which always produces a return."""

import asyncio
from dataclasses import dataclass

import structlog

from reattach.domain.errors import ToolError
from reattach.domain.limits import MAX_ERROR_CHARS, MAX_TOOL_OUTPUT_CHARS
from reattach.domain.messages import ToolCallPart, ToolReturnPart
from reattach.engine.intake import storable_return
from reattach.tools.base import NO_CONTEXT, Tool, ToolContext

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Failure:
    kind: str


async def call_tool(
    tool: Tool,
    call: ToolCallPart,
    *,
    seconds: float,
    context: ToolContext = NO_CONTEXT,
    run_id: str | None = None,
) -> ToolReturnPart:
    """Run the call and return its storable return.

    An exception, a call longer than ``seconds`` and a result that is too large become error
    returns. On a timeout or a cancellation the tool is cancelled, but not waited for. Log lines
    have ``run_id``, also those of the tool itself if it uses structlog.
    """
    return storable_return(await _call(tool, call, seconds, context, run_id))


async def _call(
    tool: Tool, call: ToolCallPart, seconds: float, context: ToolContext, run_id: str | None
) -> ToolReturnPart:
    outcome = _outcome(tool, call, context, run_id)
    task = asyncio.create_task(outcome, name=f"tool {tool.name}")
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
    if not task.done():
        logger.warning("tool out of time", run_id=run_id, tool=tool.name, seconds=seconds)
        return call.error_return(
            f"The tool did not return within {seconds:g} seconds. "
            "Whether it did its work is not known.",
        )
    if task.cancelled():
        return call.error_return("The tool cancelled itself. Whether it did its work is not known.")
    match task.result():
        case ToolError(detail=detail):
            return call.error_return(detail[:MAX_TOOL_OUTPUT_CHARS])
        case _Failure(kind):
            return call.error_return(f"The tool failed: {kind[:MAX_ERROR_CHARS]}.")
        case str(output) if len(output) > MAX_TOOL_OUTPUT_CHARS:
            return call.error_return(
                f"The tool ran, but returned {len(output)} characters, more than the "
                f"{MAX_TOOL_OUTPUT_CHARS} allowed. Ask it for less.",
            )
        case str(output):
            return ToolReturnPart(call.tool_call_id, call.name, "success", output)


async def _outcome(
    tool: Tool, call: ToolCallPart, context: ToolContext, run_id: str | None
) -> str | ToolError | _Failure:
    """Return the outcome of the call; raise nothing but its own cancellation."""
    if run_id is not None:
        structlog.contextvars.bind_contextvars(run_id=run_id)  # In the task of this call alone.
    try:
        output: object = await tool.call_for(context, call.arguments)
        return output if isinstance(output, str) else _Failure(f"it gave {type(output).__name__}")
    except asyncio.CancelledError:
        raise
    except ToolError as error:
        return error
    except BaseException as error:
        # SystemExit too, because no tool may end the server.
        logger.exception("tool failed", run_id=run_id, tool=tool.name)
        return _Failure(type(error).__name__)
