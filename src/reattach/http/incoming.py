"""A send as a client wrote it, understood: messages, idempotency key, thread."""

from datetime import datetime

from reattach.errors import NotFoundError, NotImplementedHereError
from reattach.http.body import Fault, invalid
from reattach.http.schemas.sending import (
    AgentSendBody,
    ConversationSendBody,
    SentApproval,
    SentContent,
    SentImage,
    SentMessage,
    SentPart,
    SentToolReturn,
)
from reattach.ids import AgentId, ConversationId, TenantId, is_agent_id, new_message_id
from reattach.messages import ContentPart, ImagePart, Message, Role, TextPart
from reattach.records.base import Agent, Conversation, Thread
from reattach.records.records import Records
from reattach.runs.service import Send
from reattach.runs.turns import Overrides
from reattach.runs.worker import Options

SendBody = ConversationSendBody | AgentSendBody


def understand(
    body: SendBody,
    tenant: TenantId,
    agent: Agent,
    conversation: Conversation | None,
    *,
    run_type: str,
    now: datetime,
) -> Send:
    """Raises ValidationFailedError, and NotImplementedHereError for what is not offered yet."""
    _refuse_what_is_not_offered(body)
    sent = _sent_messages(body)
    types = body.include_return_message_types
    return Send(
        tenant=tenant,
        agent=agent,
        conversation=conversation,
        messages=tuple(_message(message, now) for message in sent),
        background=bool(body.background),
        run_type=run_type,
        request_config={
            "use_assistant_message": body.use_assistant_message,
            "assistant_message_tool_name": body.assistant_message_tool_name,
            "assistant_message_tool_kwarg": body.assistant_message_tool_kwarg,
            "include_return_message_types": types,
        },
        options=Options(
            stream_tokens=bool(body.stream_tokens),
            include_pings=bool(body.include_pings),
            message_types=None if types is None else frozenset(types),
        ),
        overrides=Overrides(
            body.override_model,
            body.override_system,
            50 if body.max_steps is None else body.max_steps,
        ),
    )


async def find_thread(
    records: Records, tenant: TenantId, path_id: str, agent_id: str | None
) -> Thread:
    """The thread that a path and an agent_id name; it need not exist.

    Raises NotFoundError for ``default`` without an agent.
    """
    if path_id.startswith("conv-"):
        conversation = await records.conversations.get(tenant, ConversationId(path_id))
        return Thread(conversation.agent_id, conversation.id)
    named = path_id if path_id.startswith("agent-") else agent_id
    if not named:
        raise NotFoundError(
            "Conversation not found with id=default. "
            "Name the agent whose default conversation is meant in 'agent_id'."
        )
    return Thread(AgentId(named), None)


def check_agent_id(agent_id: str) -> None:
    """Raises ValidationFailedError for what is no agent's id."""
    if not is_agent_id(agent_id):
        message = "An agent's id is 'agent-' and a UUIDv4 in lower case."
        raise invalid([Fault(["body", "agent_id"], message, "agent_id")])


def _refuse_what_is_not_offered(body: SendBody) -> None:
    for name in ("client_tools", "client_skills"):
        if getattr(body, name):
            raise NotImplementedHereError(
                f"'{name}' is not offered yet. Send without it; the agent answers in text."
            )
    for item in body.messages or ():
        if isinstance(item, SentApproval | SentToolReturn):
            raise NotImplementedHereError(
                f"Messages of type '{item.type}' are not offered yet, as no agent has tools."
            )


def _sent_messages(body: SendBody) -> list[SentMessage]:
    if (body.messages is None) == (body.input is None):
        message = "Give exactly one of 'messages' and 'input'."
        raise invalid([Fault(["body"], message, "messages_or_input")])
    if body.input is not None:
        return [SentMessage(role="user", content=body.input)]
    sent = [item for item in body.messages or () if isinstance(item, SentMessage)]
    if not sent:
        raise invalid([Fault(["body", "messages"], "Messages must not be empty", "empty")])
    return sent


def _message(sent: SentMessage, now: datetime) -> Message:
    return Message(
        id=new_message_id(),
        role=Role(sent.role),
        parts=_parts(sent.content),
        created_at=now,
        name=sent.name,
        otid=sent.otid or None,
        sender_id=sent.sender_id,
    )


def _parts(content: SentContent) -> tuple[ContentPart, ...]:
    if isinstance(content, str):
        return (TextPart(content),)
    return tuple(_part(part) for part in content)


def _part(part: SentPart) -> ContentPart:
    if not isinstance(part, SentImage):
        return TextPart(part.text)
    source = part.source
    if source.type == "letta":
        raise NotImplementedHereError("Images by file id are not offered; send a URL or base64.")
    needed = "url" if source.type == "url" else "data"
    if getattr(source, needed) is None:
        message = f"An image of type '{source.type}' needs its '{needed}'."
        raise invalid([Fault(["body", "messages", "content", "source"], message, "image_source")])
    if source.type == "url":
        return ImagePart(url=source.url)
    return ImagePart(url=None, media_type=source.media_type, base64_data=source.data)
