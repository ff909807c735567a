"""Sends of clients of other ecosystems, which retry, and name conversations in their own ways."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
from fastapi import Depends
from starlette.requests import Request
from typing_extensions import override

from reattach.agent.turns import Overrides, system_prompt
from reattach.domain.approvals import has_answer
from reattach.domain.errors import (
    ConversationBusyError,
    ConversationKeyTakenError,
    InvalidArgumentError,
    NotFoundError,
    OtidConflictError,
    QuotaError,
    UnavailableError,
)
from reattach.domain.ids import (
    DIALECT_OTID,
    ConversationId,
    RunId,
    TenantId,
    new_conversation_id,
    new_uuid,
)
from reattach.domain.limits.requests import MAX_OTID_CHARS
from reattach.domain.messages import Message, ToolReturnPart
from reattach.domain.prompt import system_message
from reattach.engine.base import ClientTool
from reattach.http.context import Context
from reattach.http.middleware.access import Access
from reattach.records.base import (
    Agent,
    Conversation,
    Page,
    RequestExtras,
    Run,
    Span,
    Thread,
)
from reattach.records.conversations import fork_of
from reattach.records.runs.openings import ConversationKey, Opening
from reattach.records.runs.retries import RequestDigest
from reattach.runs.idempotency import request_key
from reattach.runs.representation import Representation
from reattach.runs.service import Send
from reattach.runs.translation.facts import facts_of

RETRY_SECONDS: Final = 120.0
"""Age of a send up to which an equal one that is marked as a retry gets its run."""

IDEMPOTENCY_KEY: Final = "Idempotency-Key"

_EVER: Final = datetime.min.replace(tzinfo=UTC)

_MAX_REFUSED: Final = 10_000
"""The sends that are remembered as refused; each takes some 300 bytes."""

_TRIES: Final = 3
"""The times that a conversation is looked for, while others begin or continue it."""


_NEWEST: Final = Page(limit=1, ascending=False)


@dataclass(frozen=True, slots=True)
class DialectSend:
    """A request for a turn in another dialect, ready to be sent."""

    dialect: str
    """The family of the dialect, within which keys of conversations and requests are unique."""
    agent: Agent
    messages: Sequence[Message]
    """The new messages, without OTIDs."""
    payload: object
    """The content of the request, without the form of its answer. Two requests with one key have
    equal ones, and so may two others of which one is marked as a retry."""
    conversation: Conversation | None = None
    """The conversation; None: that of ``after``, the one of ``key``, or a new one."""
    key: str | None = None
    """The client's own name of the conversation."""
    after: Run | None = None
    """The run after which its conversation continues; in a fork, if others came since."""
    idempotency_key: str | None = None
    """The client's own name of the request."""
    key_name: str = IDEMPOTENCY_KEY
    """The client's word for it."""
    is_retry: bool = False
    """Whether the client says that it sends the request again."""
    client_tools: tuple[ClientTool, ...] = ()
    without_tools: bool = False
    """Whether the model gets none of the agent's own tools."""
    model: str | None = None
    system_suffix: str | None = None
    """Instructions for this turn, after those of the agent."""
    max_steps: int = 50
    given: Mapping[str, Any] = field(default_factory=dict)
    """Members of the request that its answers repeat."""
    hides_conversation: bool = False
    """Whether a new conversation is left out of lists, because the client will never name it."""
    earlier: Sequence[Message] = ()
    """Messages that a new conversation begins with."""
    opening: Opening | None = None
    """The conversation that it begins; None: as the other members say."""


def idempotency_key_of(request: Request) -> str | None:
    """Return the request's ``Idempotency-Key``. Raises InvalidArgumentError if it is too long."""
    key = request.headers.get("idempotency-key")
    if key is not None and len(key) > MAX_OTID_CHARS // 2:
        raise InvalidArgumentError(
            f"The Idempotency-Key has {len(key)} characters; at most {MAX_OTID_CHARS // 2} are "
            "allowed."
        )
    return key or None


def is_retry(request: Request) -> bool:
    """Return whether a client says that it has sent the request before.

    The SDKs of OpenAI count their attempts.
    """
    count = request.headers.get("x-stainless-retry-count", "")
    return count.isdecimal() and count.strip("0") != ""


def request_digest(
    dialect: str, content: object, now: datetime, *, is_retry: bool, has_key: bool = False
) -> RequestDigest:
    """Return the digest of a request, or of its ``Idempotency-Key`` if the content ``has_key``."""
    sha256 = hashlib.sha256(msgspec.json.encode([dialect, content, has_key])).hexdigest()
    name = f"{DIALECT_OTID}{dialect}-{sha256[:40]}"
    if has_key:
        return RequestDigest(name, _EVER)
    return RequestDigest(name, now - timedelta(seconds=RETRY_SECONDS) if is_retry else None)


def explained(error: OtidConflictError, key_name: str) -> OtidConflictError:
    """Return the error in the words of a client, which calls its key ``key_name``."""
    run_id = error.extra.get("run_id")
    named = "" if run_id is None else f" (run_id={run_id})"
    error.fact = f"The {key_name} of this request was already used by another request{named}."
    error.remedy = (
        f"To get the result of that one, send the same content. Otherwise use a new {key_name}."
    )
    error.detail = f"{error.prefix}{error.fact} {error.remedy}"
    return error


class DialectSends:
    """Starts runs for sends in other dialects; one for each server."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._starting: dict[tuple[TenantId, str], asyncio.Future[Run]] = {}
        """The sends that are about to have a run, by tenant and digest."""
        self._refused: OrderedDict[tuple[TenantId, str], datetime] = OrderedDict()
        """When the last send without a run came, by tenant and digest; the latest is last."""

    async def start(self, access: Access, send: DialectSend) -> Run:
        """Start the run, or return that of an earlier equal request.

        Requests are equal if they have the same idempotency key, or if this one is marked as a
        retry and has the content of another one of the last RETRY_SECONDS.

        Raises:
            OtidConflictError: The idempotency key came with another content.
            ConversationBusyError: Another run of the conversation is active.
            QuotaError: The tenant has too many open runs.
            StoreUnavailableError: A store does not answer; send again later.
        """
        began_at = self._context.clock.now()
        digest = self._digest(access.tenant, send)
        known = await self._earlier(access.tenant, send, digest)
        if known is not None:
            return known
        starting: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        place = (access.tenant, digest.name)
        self._starting[place] = starting
        try:
            run = await self._start(access, send, digest)
        except BaseException as error:
            starting.set_exception(error)
            starting.exception()  # Marks it as retrieved: often nobody else waits.
            if isinstance(error, QuotaError | UnavailableError):
                self._note_refused(place, began_at)
            if isinstance(error, OtidConflictError):
                raise explained(error, send.key_name) from None
            raise
        else:
            starting.set_result(run)
            return run
        finally:
            if self._starting.get(place) is starting:
                del self._starting[place]

    async def find(self, tenant: TenantId, send: DialectSend) -> Run | None:
        """Return the run of an earlier equal request, however long ago; None: it has none.

        Raises:
            OtidConflictError: The idempotency key came with another content.
        """
        digest = self._digest(tenant, send)
        if send.idempotency_key is not None:
            thread = Thread(send.agent.id, None)
            key = request_key(_with_otids(send.messages, _otid(send)), thread, digest.name)
            assert key is not None  # Every message has an OTID.
            return await self._context.records.runs.find_by_key(tenant, key)
        return await self._earlier(tenant, send, replace(digest, since=_EVER))

    async def _earlier(
        self, tenant: TenantId, send: DialectSend, digest: RequestDigest
    ) -> Run | None:
        """Return the run that a request repeats, if it says so."""
        if digest.since is None or send.idempotency_key is not None:  # The key finds it.
            return None
        starting = self._starting.get((tenant, digest.name))
        if starting is not None:
            return await asyncio.shield(starting)
        return await self._context.records.runs.find_by_digest(tenant, digest.name, digest.since)

    def _digest(self, tenant: TenantId, send: DialectSend) -> RequestDigest:
        where = send.conversation.id if send.conversation else _named(send)
        content = [send.agent.id, where, send.payload]
        now = self._context.clock.now()
        digest = request_digest(send.dialect, content, now, is_retry=send.is_retry)
        refused_at = self._refused.get((tenant, digest.name), _EVER)
        if digest.since is None or digest.since >= refused_at:
            return digest
        return replace(digest, since=refused_at)

    def _note_refused(self, place: tuple[TenantId, str], began_at: datetime) -> None:
        """Remember a request without a run, so that its retry does not get an older one's."""
        self._refused[place] = began_at
        self._refused.move_to_end(place)
        if len(self._refused) > _MAX_REFUSED:
            self._refused.popitem(last=False)

    async def _start(self, access: Access, send: DialectSend, digest: RequestDigest) -> Run:
        for _ in range(_TRIES - 1):
            try:
                return await self._try(access, send, digest)
            except ConversationKeyTakenError:
                pass  # Another request has just begun it.
            except ConversationBusyError as error:
                # Another request has just continued after the same run, so this one forks.
                if send.after is None or error.extra["run_id"] == send.after.id:
                    raise
        return await self._try(access, send, digest)

    async def _try(self, access: Access, send: DialectSend, digest: RequestDigest) -> Run:
        prepared = await self._prepared(access.tenant, send, digest)
        if has_answer(send.messages) and prepared.opening is None:
            await self._check_returns(prepared)
        return await self._context.runs.send(prepared, admit=access.use.admit_run)

    async def _prepared(self, tenant: TenantId, send: DialectSend, digest: RequestDigest) -> Send:
        conversation, opening = send.conversation, send.opening
        key = None
        if opening is not None:
            conversation = opening.conversation
        elif conversation is None and send.after is not None:
            conversation, opening = await self._continued(tenant, send, send.after)
        elif conversation is None and send.key is not None:
            key = ConversationKey(send.agent.id, send.dialect, send.key)
            conversation = await self._found(tenant, key)
        if conversation is None:
            opening = self._opening(send, key)
            conversation = opening.conversation
        return Send(
            tenant=tenant,
            agent=send.agent,
            conversation=conversation,
            messages=_with_otids(send.messages, _otid(send)),
            background=True,
            run_type=f"send_{send.dialect}",
            request_extras=RequestExtras(
                client_tools=tuple(tool.name for tool in send.client_tools),
                given=msgspec.json.encode(send.given).decode(),
            ),
            representation=Representation(
                stream_tokens=True, include_pings=False, compaction_messages=True
            ),
            overrides=Overrides(
                model=send.model,
                system=self._system(send, conversation),
                max_steps=send.max_steps,
                client_tools=send.client_tools,
                without_tools=send.without_tools,
            ),
            opening=opening,
            digest=digest if send.idempotency_key is None else None,
            place=digest.name,
        )

    async def _check_returns(self, send: Send) -> None:
        """Check that results of the client are for calls of its own tools.

        Raises:
            InvalidArgumentError: A call of the server, which waits for an approval, has a result.
        """
        returned = {
            part.tool_call_id
            for message in send.messages
            for part in message.parts
            if isinstance(part, ToolReturnPart) and part.status == "success"
        }
        if not returned or send.conversation is None:
            return
        thread = Thread(send.agent.id, send.conversation.id)
        pending = await self._context.records.messages.pending(send.tenant, thread)
        if pending is None:
            return
        of_client = await self._client_tools(send.tenant, pending.request.run_id)
        for call in pending.waiting:
            if call.tool_call_id not in returned:
                continue
            if of_client is None:
                is_of_server = call.name in send.agent.tools
            else:
                is_of_server = call.name not in of_client
            if is_of_server:
                raise InvalidArgumentError(
                    f"The call {call.tool_call_id} of '{call.name}' runs on the server and waits "
                    "for an approval, so a client cannot send its result.",
                    remedy="Approve or deny the call.",
                )

    async def _client_tools(self, tenant: TenantId, run_id: str | None) -> Collection[str] | None:
        """Return the names of the tools that the client of a run has; None: it was deleted."""
        if run_id is None:
            return None
        try:
            return facts_of(
                await self._context.records.runs.get(tenant, RunId(run_id))
            ).client_tools
        except NotFoundError:
            return None

    def _system(self, send: DialectSend, conversation: Conversation) -> str | None:
        if not send.system_suffix:
            return None
        return f"{system_prompt(send.agent, conversation)}\n\n{send.system_suffix}"

    async def _found(self, tenant: TenantId, key: ConversationKey) -> Conversation | None:
        conversation_id = await self._context.records.conversation_keys.find(tenant, key)
        if conversation_id is None:
            return None
        try:
            return await self._context.records.conversations.get(tenant, conversation_id)
        except NotFoundError:  # It was deleted meanwhile.
            return None

    async def _continued(
        self, tenant: TenantId, send: DialectSend, after: Run
    ) -> tuple[Conversation | None, Opening | None]:
        """Return the conversation of a run if it is the newest there, else that of a new fork.

        An answer to calls never begins a fork, in which the calls would wait once more (P17).

        Raises:
            InvalidArgumentError: The conversation has nothing of the run, so no fork ends with it.
                Or the answer is to calls outside of any conversation that has an id.
        """
        records, conversation = self._context.records, None
        is_answer = has_answer(send.messages)
        if after.thread.conversation_id is not None:
            conversation = await records.conversations.get(tenant, after.thread.conversation_id)
            if is_answer:
                return conversation, None
            newest = await records.runs.list(tenant, _NEWEST, conversation_id=conversation.id)
            if newest and newest[0].id == after.id:
                return conversation, None
        elif is_answer:
            raise InvalidArgumentError(
                f"The calls of {after.id} wait in the default conversation of {send.agent.id}.",
                remedy=f"Answer them with POST /v1/agents/{send.agent.id}/messages.",
            )
        last = await records.messages.of_run(tenant, after.id, Span(1, ascending=False))
        if not last:
            raise InvalidArgumentError(
                f"Nothing can continue after {after.id}, because its conversation kept no message "
                "of it.",
                remedy="Continue after an earlier run, and repeat the request.",
            )
        now = self._context.clock.now()
        is_hidden = conversation is not None and bool(conversation.hidden)
        hidden = send.hides_conversation or is_hidden
        fork = fork_of(send.agent, conversation, now, hidden=hidden)
        first = system_message(system_prompt(send.agent, fork), now)
        opening = Opening(fork, first, source=after.thread, up_to=last[0].id)
        return fork, opening

    def _opening(self, send: DialectSend, key: ConversationKey | None) -> Opening:
        now = self._context.clock.now()
        conversation = Conversation(
            id=ConversationId(new_conversation_id()),
            agent_id=send.agent.id,
            created_at=now,
            updated_at=now,
            hidden=True if send.hides_conversation else None,
        )
        first = system_message(system_prompt(send.agent, conversation), now)
        return Opening(conversation, first, key, tuple(send.earlier))


def _named(send: DialectSend) -> str:
    """Return the client's words for the conversation, which are the same when it sends again."""
    return f"after {send.after.id}" if send.after is not None else send.key or ""


def _otid(send: DialectSend) -> str:
    """Return the OTID of the first message: the same for equal requests with a key."""
    return f"{DIALECT_OTID}{send.dialect}:{send.idempotency_key or new_uuid()}"


def _with_otids(messages: Sequence[Message], otid: str) -> tuple[Message, ...]:
    first, *others = messages
    return (
        msgspec.structs.replace(first, otid=otid),
        *(
            msgspec.structs.replace(message, otid=f"{otid}:{number}")
            for number, message in enumerate(others, 2)
        ),
    )


class ResumingSends(DialectSends):
    """The sends of a request that continues a stream: it gets its run, and starts none (P8)."""

    def __init__(self, sends: DialectSends) -> None:
        self._sends = sends

    @override
    async def start(self, access: Access, send: DialectSend) -> Run:
        """Return the run of an earlier equal request.

        Raises:
            InvalidArgumentError: There is none.
            OtidConflictError: The idempotency key came with another content.
        """
        known = await self._sends.find(access.tenant, send)
        if known is None:
            raise InvalidArgumentError(
                "This request has a Last-Event-ID, so it continues a stream, and no run of an "
                "equal request is known.",
                remedy="Send it without that header to start a run.",
            )
        return known


async def dialect_sends(request: Request) -> DialectSends:
    """Clients that follow a stream repeat their request when it breaks, with a Last-Event-ID."""
    sends: DialectSends = request.app.state.dialect_sends
    return ResumingSends(sends) if "last-event-id" in request.headers else sends


DialectSendsDep = Annotated[DialectSends, Depends(dialect_sends)]
