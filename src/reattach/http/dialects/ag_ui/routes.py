"""The route of AG-UI."""

from typing import Any, Final

from starlette.responses import Response

from reattach.http.context import AccessDep, ContextDep
from reattach.http.dialects.ag_ui.bodies import RunInput
from reattach.http.dialects.ag_ui.runs import run_stream
from reattach.http.dialects.sending import DialectSendsDep
from reattach.http.routes import routes
from reattach.http.schemas.fields import AgentPath

router = routes("ag-ui")

STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The events of the run. A stream without `RUN_FINISHED` or `RUN_ERROR` was "
        "cut off: send the same request again for the whole run.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "headers": {"X-Run-Id": {"description": "Id of the run.", "schema": {"type": "string"}}},
    }
}


@router.post(
    "/ag-ui/{agent_id}",
    operation_id="ag_ui_run",
    summary="Run an agent",
    description="For `HttpAgent` of `@ag-ui/client`. The run goes on if the client leaves. A "
    "request with the `threadId` and `runId` of an earlier one gets that run, after a snapshot of "
    "the messages before it.",
    responses=STREAM,
)
async def run_agent(
    agent_id: AgentPath,
    body: RunInput,
    context: ContextDep,
    access: AccessDep,
    sends: DialectSendsDep,
) -> Response:
    agent = await context.records.agents.get(access.tenant, agent_id)
    return await run_stream(context, access, sends, agent, body)
