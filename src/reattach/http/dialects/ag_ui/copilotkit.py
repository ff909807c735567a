"""The routes of CopilotKit's runtime, which its clients use under ``runtimeUrl``."""

from typing import Annotated, Final

from fastapi import Path
from starlette.responses import Response

from reattach import __version__
from reattach.domain.errors import NotFoundError
from reattach.domain.ids import AgentId, TenantId
from reattach.domain.limits.requests import MAX_NAME_CHARS
from reattach.http.context import AccessDep, Context, ContextDep, TenantDep
from reattach.http.dialects.ag_ui.bodies import AgentInfo, RunInput, RuntimeInfo, StopBody, Stopped
from reattach.http.dialects.ag_ui.routes import STREAM
from reattach.http.dialects.ag_ui.runs import connect_stream, run_stream, stop_run
from reattach.http.dialects.sending import DialectSendsDep
from reattach.http.routes import routes
from reattach.records.base import Agent, Page

router = routes("ag-ui")

DEFAULT: Final = "default"
"""The agent of clients that name none: the tenant's only one."""

_ALL: Final = Page(limit=1000, ascending=False)
_TWO: Final = Page(limit=2, ascending=True)

NamedAgent = Annotated[
    str,
    Path(
        alias="agent_name",
        max_length=MAX_NAME_CHARS,
        description="Id of the agent, or `default` for the only one.",
    ),
]
ThreadName = Annotated[
    str, Path(max_length=MAX_NAME_CHARS, description="The client's id of the thread.")
]


@router.get(
    "/copilotkit/info",
    operation_id="copilotkit_info",
    summary="List the agents for CopilotKit",
    description="The agents by their ids. A single agent is also `default`, the one that "
    "CopilotKit takes if an application names none.",
)
async def info(context: ContextDep, tenant: TenantDep) -> RuntimeInfo:
    agents = await context.records.agents.list(tenant, _ALL)
    named: dict[str, Agent] = {agent.id: agent for agent in agents}
    if len(agents) == 1:
        named[DEFAULT] = agents[0]
    return RuntimeInfo(
        version=__version__,
        agents={
            name: AgentInfo(name=agent.name, description=agent.description or "")
            for name, agent in named.items()
        },
    )


@router.post(
    "/copilotkit/agent/{agent_name}/run",
    operation_id="copilotkit_run",
    summary="Run an agent for CopilotKit",
    description="As `POST /ag-ui/{agent_id}`.",
    responses=STREAM,
)
async def run_agent(
    agent_name: NamedAgent,
    body: RunInput,
    context: ContextDep,
    access: AccessDep,
    sends: DialectSendsDep,
) -> Response:
    agent = await _agent_of(context, access.tenant, agent_name)
    return await run_stream(context, access, sends, agent, body)


@router.post(
    "/copilotkit/agent/{agent_name}/connect",
    operation_id="copilotkit_connect",
    summary="Get a thread and follow its active run",
    description="A snapshot of the thread's messages, and the active run from its beginning. "
    "Starts nothing. A thread that the server does not have gets an empty body.",
    responses=STREAM,
)
async def connect(
    agent_name: NamedAgent, body: RunInput, context: ContextDep, access: AccessDep
) -> Response:
    agent = await _agent_of(context, access.tenant, agent_name)
    return await connect_stream(context, access, agent, body)


@router.post(
    "/copilotkit/agent/{agent_name}/stop/{thread_name}",
    operation_id="copilotkit_stop",
    summary="Cancel the active run of a thread",
)
async def stop(
    agent_name: NamedAgent,
    thread_name: ThreadName,
    context: ContextDep,
    access: AccessDep,
    body: StopBody | None = None,
) -> Stopped:
    agent = await _agent_of(context, access.tenant, agent_name)
    run_id = None if body is None else body.run_id
    return Stopped(stopped=await stop_run(context, access, agent, thread_name, run_id))


async def _agent_of(context: Context, tenant: TenantId, name: str) -> Agent:
    """Return the agent of a path.

    Raises:
        NotFoundError: There is none, or ``default`` could be several.
    """
    if name != DEFAULT:
        return await context.records.agents.get(tenant, AgentId(name))
    agents = await context.records.agents.list(tenant, _TWO)
    if len(agents) != 1:
        count = "no agent" if not agents else "several agents"
        raise NotFoundError(
            f"There is {count}, so none is '{DEFAULT}'."
            if not agents
            else f"There are {count}, so none is '{DEFAULT}'.",
            remedy='Name one by its id, as in <CopilotKit agent="agent-…">; GET /copilotkit/info '
            "lists them.",
        )
    return agents[0]
