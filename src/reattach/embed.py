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
import hashlib
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
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
    ConversationId,
    TenantId,
    new_agent_id,
    new_conversation_id,
    new_message_id,
)
from reattach.domain.limits import MAX_TENANT_CHARS
from reattach.domain.messages import Message, Role, TextPart
from reattach.engine.base import (
    Delta,
    Engine,
    Finished,
    Model,
    ReasoningDelta,
    ReasoningHidden,
    StepFinished,
    TextDelta,
    ToolCallDelta,
    ToolReturn,
    Turn,
)
from reattach.engine.function import AnswerFunction, FunctionEngine
from reattach.http.app import create_app
from reattach.http.context import Context
from reattach.http.errors import error_response
from reattach.http.stream.response import RunStream
from reattach.observe import log_through_application
from reattach.records.base import Agent, Conversation, Page, Run
from reattach.runs.driver import Options
from reattach.runs.follow import Target
from reattach.runs.reading import events_of
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
    "InvalidArgumentError",
    "Model",
    "NotFoundError",
    "OtidConflictError",
    "ReasoningDelta",
    "ReasoningHidden",
    "Reattach",
    "ReattachError",
    "Run",
    "RunStream",
    "Settings",
    "StartupError",
    "StepFinished",
    "StoreUnavailableError",
    "TextDelta",
    "ToolCallDelta",
    "ToolReturn",
    "Turn",
    "UnavailableError",
    "Usage",
    "tune_gc",
]

_AGENT_NAME: Final = "embedded"


class Reattach:
    """A whole server but for its port, in the event loop of your application.

    ``answer`` is an async generator function that is given a Turn and yields text (or Deltas, for
    reasoning and tools), several of them by name, or an Engine. Events and records are in
    ``data_dir``, of which this process is the only owner.

    Use it as an async context manager, or give ``lifespan`` to your application. On leaving, every
    open run has its end. Entering raises StartupError if the directory can not be used.

    ``open`` says that ``app`` may be used by everybody who reaches it as long as no API key exists:
    your application decides who that is. Without it, ``app`` then answers only to requests that
    come directly from this machine.
    """

    def __init__(
        self,
        answer: AnswerFunction | Mapping[str, AnswerFunction] | Engine,
        *,
        data_dir: Path | str | None = None,
        settings: Settings | None = None,
        open: bool = False,  # noqa: A002  the word for it
    ) -> None:
        self._engine = answer if isinstance(answer, Engine) else FunctionEngine(answer)
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

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()
        self._context = None

    def _begin_drain(self) -> None:
        """At a first signal let open runs go on for a while, at a second one no longer."""
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
        """For ``app.add_exception_handler(ReattachError, …)``: the answer that an error becomes."""
        assert isinstance(error, ReattachError)
        return error_response(error)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """The whole API as an ASGI application, to be mounted into yours.

        It looks at API keys as the server does. Until the first key is made it is closed, but for
        requests whose connection has both its ends on this machine, that nobody forwarded, and that
        address it by a loopback name; or it is open to all, if this was made with ``open=True``.
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
        """Start a run that answers ``text``, or find the one that ``otid`` started before.

        ``conversation_id`` is that of an earlier run's thread, which the answer then continues;
        None begins a new one, whose id is the run's ``conversation_id``. ``model`` is a handle;
        None takes the first function. ``tenant`` is any name of yours for whoever asks: agents,
        OTIDs, conversations and runs of one tenant are unknown to every other. None is the tenant
        of a server without keys.

        Raises InvalidArgumentError, ConversationBusyError, OtidConflictError, NotFoundError,
        UnavailableError.
        """
        context = self._opened()
        owner = _tenant(tenant)
        agent = await self._agent(context, owner)
        conversation = await self._conversation(context, owner, agent, conversation_id, otid)
        now = context.clock.now()
        message = Message(
            id=new_message_id(), role=Role.USER, parts=(TextPart(text),), created_at=now, otid=otid
        )
        send = Send(
            tenant=owner,
            agent=agent,
            conversation=conversation,
            messages=(message,),
            background=True,
            run_type="send_conversation_message",
            request_config={},
            options=Options(stream_tokens=True, include_pings=False),
            overrides=Overrides(model=model),
        )
        return await context.runs.send(send)

    async def run(self, run_id: str, *, tenant: str | None = None) -> Run:
        """The run. Raises InvalidArgumentError for a malformed id, NotFoundError."""
        return await self._opened().runs.by_id(_tenant(tenant), run_id)

    async def run_of(self, otid: str, *, tenant: str | None = None) -> Run:
        """The newest run that the OTID started. Raises NotFoundError."""
        return await self._opened().runs.by_otid(_tenant(tenant), otid)

    async def cancel(self, run: Run, *, tenant: str | None = None) -> str:
        """Cancel the run; return its state then, as ``RunService.cancel`` says.

        Raises NotFoundError if ``tenant`` is named and the run is not its own.
        """
        context = self._opened()
        _check_owner(run, tenant)
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
        """The response that streams ``run`` from a cursor, live until its end.

        It may be made as often as there are readers; a reader that goes away stops nothing. It has
        ``headers``, and those and the cookies that are set on it afterwards. ``X-Run-Id`` and
        ``X-Conversation-Id`` say what it is of. Raises NotFoundError as ``cancel`` does.
        """
        context = self._opened()
        _check_owner(run, tenant)
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

        For WebSockets and frameworks that are not ASGI. Each is a dict with ``seq_id`` and
        ``message_type``; the last one ends the run. A slow consumer is waited for, and one that
        stops changes nothing for the run. Raises NotFoundError as ``cancel`` does,
        CursorAheadError, ExpiredError, and StoreUnavailableError, after which the consumer may
        begin again behind the last event that it got.
        """
        context = self._opened()
        _check_owner(run, tenant)
        async with aclosing(events_of(context.runs, Target.of(run), after)) as events:
            async for event in events:
                yield event

    def _opened(self) -> Context:
        if self._context is None:
            raise StartupError(
                "This Reattach is not open. Give its lifespan to your application, or use it as "
                "an async context manager."
            )
        return self._context

    async def _agent(self, context: Context, tenant: TenantId) -> Agent:
        """The agent behind ``ask``, made with the tenant's first question."""
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
        """The conversation that is named; else the one that belongs to the OTID; else a new one."""
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
    if not name or len(name) > MAX_TENANT_CHARS or "\0" in name:
        raise InvalidArgumentError(
            f"A tenant's name has 1 to {MAX_TENANT_CHARS} characters; this one has {len(name)}, "
            "or a null character. Name the tenant by an id of yours."
        )
    return TenantId(name)


def _check_owner(run: Run, tenant: str | None) -> None:
    if tenant is not None and run.tenant != _tenant(tenant):
        raise NotFoundError(f"Run {run.id} not found. Look for it by `run(run_id, tenant=…)`.")


def _conversation_of(otid: str, tenant: TenantId) -> ConversationId:
    """The same conversation for the same OTID, so that a question asked twice is one request."""
    whose = "" if tenant == DEFAULT_TENANT else f"{tenant}\0"
    digest = hashlib.sha256(f"reattach conversation of {whose}{otid}".encode()).digest()
    return ConversationId(f"conv-{uuid.UUID(bytes=digest[:16], version=4)}")
