"""Parsing of a send: its messages, idempotency key, options and conversation."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from reattach.agent.turns import Overrides
from reattach.domain.errors import NotFoundError
from reattach.domain.ids import AgentId, ConversationId, TenantId, is_agent_id, new_message_id
from reattach.domain.limits.requests import MAX_CLIENT_TOOL_BYTES
from reattach.domain.messages import (
    ApprovalPart,
    ContentPart,
    Message,
    Role,
)
from reattach.domain.prompt import Skill
from reattach.engine.base import ClientTool
from reattach.http.content import check_images, parts_of, return_of
from reattach.http.json import Fault, invalid
from reattach.http.schemas.sending import (
    AgentSendBody,
    AsyncSendBody,
    ConversationSendBody,
    SentApproval,
    SentMessage,
    SentReturn,
    SentToolReturn,
)
from reattach.records.base import Agent, Conversation, RequestConfig, RequestExtras, Thread
from reattach.records.records import Records
from reattach.runs.representation import Representation
from reattach.runs.service import Send

SendBody = ConversationSendBody | AgentSendBody | AsyncSendBody


@dataclass(frozen=True, slots=True)
class Addressed:
    """The conversation that a request names; None for the agent's default conversation."""

    agent: Agent
    conversation: Conversation | None

    @property
    def thread(self) -> Thread:
        return Thread(self.agent.id, self.conversation.id if self.conversation else None)


def parse_send(
    body: SendBody,
    tenant: TenantId,
    addressed: Addressed,
    *,
    run_type: str,
    now: datetime,
    to_private: bool,
) -> Send:
    """Raises ValidationFailedError, and NotImplementedHereError for unsupported content."""
    messages = _messages(body, now)
    check_images(messages, to_private=to_private)
    types = body.include_return_message_types
    return Send(
        tenant=tenant,
        agent=addressed.agent,
        conversation=addressed.conversation,
        messages=messages,
        background=isinstance(body, AsyncSendBody) or bool(body.background),
        run_type=run_type,
        request_config=RequestConfig(
            body.use_assistant_message,
            body.assistant_message_tool_name,
            body.assistant_message_tool_kwarg,
            None if types is None else tuple(types),
            include_compaction_messages=bool(body.include_compaction_messages),
        ),
        request_extras=RequestExtras(tuple(tool.name for tool in body.client_tools))
        if body.client_tools
        else None,
        representation=Representation(
            stream_tokens=bool(body.stream_tokens),
            include_pings=bool(body.include_pings),
            message_types=None if types is None else frozenset(types),
            compaction_messages=bool(body.include_compaction_messages),
        ),
        overrides=Overrides(
            body.override_model,
            body.override_system,
            50 if body.max_steps is None else body.max_steps,
            _client_tools(body),
            tuple(
                Skill(one.name, one.description, one.location) for one in body.client_skills or ()
            ),
        ),
    )


async def find_addressed(
    records: Records, tenant: TenantId, path_id: str, agent_id: str | None
) -> Addressed:
    """Return the agent and the conversation that a request names. Raises NotFoundError."""
    if path_id.startswith("conv-"):
        conversation, agent = await records.addressees.conversation(tenant, ConversationId(path_id))
        return Addressed(agent, conversation)
    return await find_agent(records, tenant, _default_of(path_id, agent_id))


async def find_agent(records: Records, tenant: TenantId, agent_id: AgentId) -> Addressed:
    """Return an agent's default conversation. Raises NotFoundError."""
    return Addressed(await records.addressees.agent(tenant, agent_id), None)


async def find_thread(
    records: Records, tenant: TenantId, path_id: str, agent_id: str | None
) -> Thread:
    """Return the thread that a path and an agent_id name; its agent need not exist.

    Raises NotFoundError for ``default`` without an agent.
    """
    if path_id.startswith("conv-"):
        conversation = await records.conversations.get(tenant, ConversationId(path_id))
        return Thread(conversation.agent_id, conversation.id)
    return Thread(_default_of(path_id, agent_id), None)


def _default_of(path_id: str, agent_id: str | None) -> AgentId:
    named = path_id if path_id.startswith("agent-") else agent_id
    if not named:
        raise NotFoundError(
            "Conversation not found with id=default.",
            remedy="Name the agent of the default conversation in 'agent_id'.",
        )
    return AgentId(named)


def check_agent_id(agent_id: str) -> None:
    """Raises ValidationFailedError for a malformed agent id."""
    if not is_agent_id(agent_id):
        message = "An agent id is 'agent-' followed by a UUIDv4 in lower case."
        raise invalid([Fault(["body", "agent_id"], message, "agent_id")])


def _client_tools(body: SendBody) -> tuple[ClientTool, ...]:
    tools = body.client_tools or ()
    names: set[str] = set()
    for number, tool in enumerate(tools):
        place: list[str | int] = ["body", "client_tools", number]
        if tool.name in names:
            raise invalid([Fault([*place, "name"], "Another tool has this name.", "unique")])
        names.add(tool.name)
        check_schema_size(tool.parameters, [*place, "parameters"])
    return tuple(ClientTool(tool.name, tool.description, tool.parameters) for tool in tools)


def check_schema_size(parameters: object, place: Sequence[str | int]) -> None:
    """Raises ValidationFailedError if the schema of a client's tool is too large."""
    if len(msgspec.json.encode(parameters)) > MAX_CLIENT_TOOL_BYTES:
        message = f"The schema may have at most {MAX_CLIENT_TOOL_BYTES} bytes as JSON."
        raise invalid([Fault(place, message, "too_long")])


def _messages(body: SendBody, now: datetime) -> tuple[Message, ...]:
    if (body.messages is None) == (body.input is None):
        message = "Send exactly one of 'messages' and 'input'."
        raise invalid([Fault(["body"], message, "messages_or_input")])
    if body.input is not None:
        return (_message(SentMessage(role="user", content=body.input), now),)
    sent = body.messages or ()
    if not sent:
        raise invalid([Fault(["body", "messages"], "Messages must not be empty", "empty")])
    for number, item in enumerate(sent):
        is_late = number > 0 and isinstance(sent[number - 1], SentMessage)
        if is_late and not isinstance(item, SentMessage):
            message = "An approval response must precede all other messages."
            raise invalid([Fault(["body", "messages", number], message, "order")])
    return tuple(
        _message(item, now) if isinstance(item, SentMessage) else _answer(item, number, now)
        for number, item in enumerate(sent)
    )


def _message(sent: SentMessage, now: datetime) -> Message:
    return Message(
        id=new_message_id(),
        role=Role(sent.role),
        parts=parts_of(sent.content),
        created_at=now,
        name=sent.name,
        otid=sent.otid,
        sender_id=sent.sender_id,
    )


def _answer(sent: SentApproval | SentToolReturn, number: int, now: datetime) -> Message:
    parts: list[ContentPart]
    if isinstance(sent, SentToolReturn):
        parts = [return_of(one) for one in sent.tool_returns]
    elif sent.approvals is not None:
        parts = [
            return_of(one)
            if isinstance(one, SentReturn)
            else ApprovalPart(one.tool_call_id, one.approve, one.reason)
            for one in sent.approvals
        ]
    elif sent.approve is not None:
        parts = [ApprovalPart("", sent.approve, sent.reason, sent.approval_request_id or None)]
    else:
        message = "An approval response requires 'approvals': a decision for each pending call."
        raise invalid([Fault(["body", "messages", number, "approvals"], message, "missing")])
    return Message(
        id=new_message_id(),
        role=Role.APPROVAL,
        parts=tuple(parts),
        created_at=now,
        otid=sent.otid,
    )
