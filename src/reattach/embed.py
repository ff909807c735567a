"""Reattach inside an application of yours: any async generator as a resumable stream.

    streams = Reattach(answer, data_dir="data")
    app = FastAPI(lifespan=streams.lifespan)
    app.add_exception_handler(ReattachError, streams.on_error)

    @app.post("/ask")
    async def ask(question: Question):
        run = await streams.ask(question.text, otid=question.otid)
        return streams.stream(run)

    @app.get("/runs/{run_id}")
    async def resume(run_id: str, starting_after: int = 0):
        return streams.stream(await streams.run(run_id), starting_after=starting_after)

``app.mount("/letta", streams.app)`` offers the whole API beside that, for the official SDKs.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

from reattach.agent.turns import Overrides
from reattach.domain.errors import (
    ConflictError,
    ConversationBusyError,
    CursorAheadError,
    EngineError,
    ExpiredError,
    InvalidArgumentError,
    NotFoundError,
    OtidConflictError,
    ReattachError,
    StartupError,
    StoreUnavailableError,
    UnavailableError,
)
from reattach.domain.events import Usage
from reattach.domain.ids import (
    DEFAULT_TENANT,
    DIALECT_OTID,
    ConversationId,
    Seq,
    TenantId,
    derived_uuid,
    new_agent_id,
    new_conversation_id,
    new_message_id,
)
from reattach.domain.limits import MAX_TENANT_CHARS
from reattach.domain.limits.requests import MAX_OTID_CHARS
from reattach.domain.messages import (
    HiddenReasoningPart,
    Message,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallDelta,
    ToolReturnPart,
)
from reattach.domain.text import is_storable
from reattach.engine.base import Delta, Engine, Finished, Model, StepFinished, Turn
from reattach.engine.function import AnswerFunction, FunctionEngine
from reattach.http.app import create_app
from reattach.http.context import Context
from reattach.http.errors import error_response
from reattach.http.stream.response import RunStream
from reattach.observe import log_through_application
from reattach.records.base import Agent, Conversation, Page, Run
from reattach.runs.following.follow import Target
from reattach.runs.reading import events_of
from reattach.runs.representation import Representation
from reattach.runs.service import Send
from reattach.server.assembly import assemble
from reattach.server.signals import handle_stop_signals
from reattach.server.tune_gc import tune_gc
from reattach.settings import Settings

__all__ = [
    "AnswerFunction",
    "ConflictError",
    "ConversationBusyError",
    "CursorAheadError",
    "Delta",
    "Engine",
    "EngineError",
    "ExpiredError",
    "Finished",
    "FunctionEngine",
    "HiddenReasoningPart",
    "InvalidArgumentError",
    "Model",
    "NotFoundError",
    "OtidConflictError",
    "ReasoningPart",
    "Reattach",
    "ReattachError",
    "Run",
    "RunStream",
    "Settings",
    "StartupError",
    "StepFinished",
    "StoreUnavailableError",
    "TextPart",
    "ToolCallDelta",
    "ToolReturnPart",
    "Turn",
    "UnavailableError",
    "Usage",
    "tune_gc",
]

_AGENT_NAME: Final = "embedded"


class Reattach:
    """A whole server except its port, on the event loop of your application.

    ``answer`` is an async generator function that receives a Turn and yields text (or Deltas, for
    reasoning and tools), several such functions by name, or an Engine. Events and records are in
    ``data_dir``, which only this process may use.

    Use it as an async context manager, or pass ``lifespan`` to your application. On exit every open
    run is ended, or left to the next start if that can continue it. Entering raises StartupError if
    the directory cannot be used.

    ``open`` allows everyone who can reach ``app`` to use it as long as no API key exists; your
    application decides who that is. Without ``open``, ``app`` accepts only direct requests from
    this machine until a key exists.
    """

    def __init__(
        self,
        answer: AnswerFunction | Mapping[str, AnswerFunction] | Engine,
        *,
        data_dir: Path | str | None = None,
        settings: Settings | None = None,
        open: bool = False,  # noqa: A002  the word for it
    ) -> None:
        if isinstance(answer, Mapping) and not answer:
            raise ValueError("answer is an empty mapping; name at least one function")
        self._engine = answer if isinstance(answer, Engine) else FunctionEngine(answer)
        if not isinstance(settings, Settings | None):
            raise TypeError(f"settings must be Settings; got {type(settings).__name__}")
        said: dict[str, Any] = {}
        if settings is None:
            # The environment's default may be a model of another server on this machine.
            settings, said["default_model"] = Settings(), None
            if data_dir is not None:
                said |= {"database_url": None, "log_url": None}
        if data_dir is not None:
            said["data_dir"] = Path(data_dir)
        self._settings = settings.model_copy(update=said)
        self._open = open
        self._stack = AsyncExitStack()
        self._context: Context | None = None
        self._api: Any = None
        self._making_agent = asyncio.Lock()
        self._drains: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        log_through_application()
        opened = assemble(self._settings, engines=[self._engine])
        self._context = context = await self._stack.enter_async_context(opened)
        self._stack.enter_context(handle_stop_signals(self._begin_drain))
        self._api = create_app(context, open_to_all=self._open)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        self._context = None

    def _begin_drain(self) -> None:
        """Drain at the first signal; cut the drain short at the second."""
        context = self._opened()
        seconds = 0 if context.runs.draining else context.settings.drain_seconds
        task = asyncio.create_task(context.runs.drain(seconds), name="drain")
        self._drains.add(task)
        task.add_done_callback(self._drains.discard)

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        """For ``FastAPI(lifespan=…)`` and ``Starlette(lifespan=…)``."""
        async with self:
            yield

    async def on_error(self, _request: object, error: Exception) -> Any:
        """Return the response for an error; for ``app.add_exception_handler(ReattachError, …)``."""
        assert isinstance(error, ReattachError)
        return error_response(error)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """The whole API as an ASGI application, to be mounted into yours.

        It checks API keys as the server does. Until the first key is created, it accepts only
        direct loopback requests that no proxy forwarded and that use a loopback host name, or all
        requests with ``open=True``.
        """
        self._opened()
        await self._api(scope, receive, send)

    async def ask(
        self,
        text: str,
        *,
        otid: str | None = None,
        conversation_id: str | None = None,
        model: str | None = None,
        tenant: str | None = None,
    ) -> Run:
        """Start a run that answers ``text``, or return the run that ``otid`` started before.

        ``conversation_id`` continues the conversation of an earlier run; None starts a new one,
        whose id is the run's ``conversation_id``. ``model`` is a handle; None uses the first
        function. ``tenant`` is any name that your application gives to the caller: agents, OTIDs,
        conversations and runs of one tenant are invisible to all others. None is the tenant of a
        server without keys.

        Raises InvalidArgumentError, ConversationBusyError, OtidConflictError, NotFoundError,
        UnavailableError.
        """
        context = self._opened()
        tenant_id = _tenant(tenant)
        _check_text("text", text)
        if otid is not None:
            _check_text("otid", otid, MAX_OTID_CHARS)
            if otid.startswith(DIALECT_OTID):
                raise InvalidArgumentError(
                    f"The otid begins with '{DIALECT_OTID}', as those of the server do.",
                    remedy="Choose another one.",
                )
        agent = await self._agent(context, tenant_id)
        conversation = await self._conversation(context, tenant_id, agent, conversation_id, otid)
        now = context.clock.now()
        message = Message(
            id=new_message_id(), role=Role.USER, parts=(TextPart(text),), created_at=now, otid=otid
        )
        send = Send(
            tenant=tenant_id,
            agent=agent,
            conversation=conversation,
            messages=(message,),
            background=True,
            run_type="send_conversation_message",
            representation=Representation(stream_tokens=True, include_pings=False),
            overrides=Overrides(model=model),
        )
        return await context.runs.send(send)

    async def run(self, run_id: str, *, tenant: str | None = None) -> Run:
        """Return the run. Raises InvalidArgumentError for a malformed id, NotFoundError."""
        return await self._opened().runs.by_id(_tenant(tenant), run_id)

    async def run_of(self, otid: str, *, tenant: str | None = None) -> Run:
        """Return the newest run that the OTID started. Raises NotFoundError."""
        return await self._opened().runs.by_otid(_tenant(tenant), otid)

    async def cancel(self, run: Run, *, tenant: str | None = None) -> str:
        """Cancel the run and return its state, as ``RunService.cancel`` does.

        Raises NotFoundError if ``tenant`` is given and is not the run's tenant.
        """
        context = self._opened()
        _check_tenant(run, tenant)
        return (await context.runs.cancel([run]))[run.id]

    def stream(
        self,
        run: Run,
        *,
        starting_after: int = 0,
        include_pings: bool = True,
        headers: Mapping[str, str] | None = None,
        tenant: str | None = None,
    ) -> RunStream:
        """Return a response that streams ``run`` after a cursor, live until its end.

        Create one per reader; a reader that leaves stops nothing. The response has ``headers``, and
        headers and cookies that you set on it afterwards. ``X-Run-Id`` and ``X-Conversation-Id``
        identify the run. Raises NotFoundError as ``cancel`` does.
        """
        context = self._opened()
        _check_tenant(run, tenant)
        response = RunStream(
            context.runs,
            Target.of(run),
            context.clock,
            cursor=starting_after,
            include_pings=include_pings,
            stall_seconds=context.settings.stall_seconds,
            headers={"x-conversation-id": run.conversation_id} if run.conversation_id else None,
        )
        response.headers.update(headers or {})
        return response

    async def events(
        self, run: Run, after: int = 0, *, tenant: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the run's events after a cursor as they are streamed, live until its end.

        For WebSockets and frameworks that are not ASGI. Each event is a dict with ``seq_id`` and
        ``message_type``; the last one ends the run. A slow or cancelled consumer does not affect
        the run. Raises NotFoundError as ``cancel`` does, CursorAheadError, ExpiredError, and
        StoreUnavailableError, after which the consumer may continue after the last event that it
        received.
        """
        context = self._opened()
        _check_tenant(run, tenant)
        async with aclosing(events_of(context.runs, Target.of(run), Seq(after))) as events:
            async for event in events:
                yield event

    def _opened(self) -> Context:
        if self._context is None:
            raise StartupError(
                "This Reattach instance is not open.",
                remedy="Pass its lifespan to your application, or use it as an async context "
                "manager.",
            )
        return self._context

    async def _agent(self, context: Context, tenant: TenantId) -> Agent:
        """Return the agent behind ``ask``; the tenant's first question creates it."""
        agents = context.records.agents
        page = Page(limit=1, ascending=True)
        async with self._making_agent:
            found = await agents.list(tenant, page, name=_AGENT_NAME)
            if found:
                return found[0]
            now = context.clock.now()
            agent = Agent(
                id=new_agent_id(), name=_AGENT_NAME, system="", created_at=now, updated_at=now
            )
            return await agents.create(tenant, agent)

    async def _conversation(
        self,
        context: Context,
        tenant: TenantId,
        agent: Agent,
        conversation_id: str | None,
        otid: str | None,
    ) -> Conversation:
        """Return the named conversation, otherwise that of the OTID, otherwise a new one."""
        conversations = context.records.conversations
        if conversation_id is not None:
            return await conversations.get(tenant, ConversationId(conversation_id))
        identity = new_conversation_id() if otid is None else _conversation_of(otid, tenant)
        now = context.clock.now()
        system = Message(
            id=new_message_id(), role=Role.SYSTEM, parts=(TextPart(""),), created_at=now
        )
        try:
            return await conversations.create(
                tenant, Conversation(identity, agent.id, now, now), system
            )
        except ConflictError:
            return await conversations.get(tenant, identity)


def _tenant(name: str | None) -> TenantId:
    if name is None:
        return DEFAULT_TENANT
    _check_text("tenant", name, MAX_TENANT_CHARS)
    return TenantId(name)


def _check_text(name: str, value: object, max_chars: int | None = None) -> None:
    """Raise InvalidArgumentError for a value that requests cannot have either."""
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name} must be a str; got {type(value).__name__}.")
    if not is_storable(value):
        raise InvalidArgumentError(f"{name} contains NUL, or half of a surrogate pair.")
    if max_chars is not None and not 1 <= len(value) <= max_chars:
        raise InvalidArgumentError(
            f"{name} has {len(value)} characters.", remedy=f"Use 1 to {max_chars} characters."
        )


def _check_tenant(run: Run, tenant: str | None) -> None:
    if not isinstance(run, Run):
        raise TypeError(
            f"run must be a Run; got {type(run).__name__}. Use `await streams.run(run_id)`."
        )
    if tenant is not None and run.tenant != _tenant(tenant):
        raise NotFoundError(
            f"Run {run.id} not found for this tenant.",
            remedy="Look it up with `run(run_id, tenant=…)`.",
        )


def _conversation_of(otid: str, tenant: TenantId) -> ConversationId:
    """Return the same conversation id for the same OTID, so that repeated questions are one."""
    whose = "" if tenant == DEFAULT_TENANT else f"{tenant}\0"
    return ConversationId(f"conv-{derived_uuid(f'reattach conversation of {whose}{otid}')}")
