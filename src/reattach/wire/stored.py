"""Stored messages as items of the Letta dialect's lists. Pure functions."""

from reattach.domain.events import Output, Place
from reattach.domain.ids import StepId, part_otid
from reattach.domain.messages import (
    ApprovalPart,
    ContentPart,
    Fragment,
    HiddenReasoningPart,
    ImagePart,
    Message,
    ReasoningPart,
    Role,
    SummaryPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.wire.letta import Json, body, head, return_members, summary_members


def message_items(message: Message) -> list[Json]:
    """Return the list items of ``message``, in order; at least one."""
    if message.role is Role.APPROVAL:
        return [_answer(message)]
    if message.role is Role.TOOL:
        return [_tool_returns(message)]
    if message.role is Role.SUMMARY:
        return [_summary(message)]
    if message.role in {Role.SYSTEM, Role.USER} or message.step_id is None:
        item = _head(f"{message.role}_message", message)
        item["content"] = _content(message)
        return [item]
    return [body(output, None, message.run_id) for output in _outputs(message)]


def approval_request(message: Message) -> Json:
    """Return the item with the approval request of a message whose calls need approval."""
    items = message_items(message)
    return next(item for item in items if item["message_type"] == "approval_request_message")


def _head(message_type: str, message: Message) -> Json:
    return head(
        message_type,
        message.id,
        message.created_at,
        seq=None,
        run_id=message.run_id,
        name=message.name,
        otid=message.otid,
        sender_id=message.sender_id,
        step_id=message.step_id,
    )


def _answer(message: Message) -> Json:
    """Return the item of an answer to an approval request.

    The legacy members show its first approval.
    """
    item = _head("approval_response_message", message)
    item["approvals"] = approvals = [_answer_item(part) for part in message.parts]
    first = next((one for one in approvals if one["type"] == "approval"), {})
    item["approve"] = first.get("approve")
    item["approval_request_id"] = first.get("tool_call_id")
    item["reason"] = first.get("reason")
    return item


def _answer_item(part: ContentPart) -> Json:
    if isinstance(part, ToolReturnPart):
        return _whole_return(part)
    assert isinstance(part, ApprovalPart), f"{type(part).__name__} is no answer"
    return {
        "type": "approval",
        "tool_call_id": part.tool_call_id,
        "approve": part.approve,
        "reason": part.reason,
    }


def _summary(message: Message) -> Json:
    item = _head("summary_message", message)
    item["otid"] = part_otid(message.id, 0)
    part = message.parts[0]
    assert isinstance(part, SummaryPart), f"{message.id} is no summary"
    return item | summary_members(part)


def _tool_returns(message: Message) -> Json:
    """Return the item of a message of returns.

    The members beside the list repeat the first return.
    """
    item = _head("tool_return_message", message)
    item["otid"] = part_otid(message.id, 0)
    returns = [part for part in message.parts if isinstance(part, ToolReturnPart)]
    item |= return_members(returns[0])
    item["tool_returns"] = [_whole_return(one) for one in returns]
    return item


def _whole_return(returned: ToolReturnPart) -> Json:
    """Return a return with its images, which only the list can show."""
    whole = {"type": "tool", **return_members(returned)}
    if returned.images:
        parts: list[ContentPart] = [TextPart(returned.output)] if returned.output else []
        whole["tool_return"] = [_content_part(part) for part in (*parts, *returned.images)]
    return whole


def _content(message: Message) -> str | list[Json]:
    if all(isinstance(part, TextPart) for part in message.parts):
        return message.text
    return [_content_part(part) for part in message.parts]


def _content_part(part: ContentPart) -> Json:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, ImagePart):
        source: Json = {"type": "url", "url": part.url}
        if part.url is None:
            source = {"type": "base64", "media_type": part.media_type, "data": part.base64_data}
        if part.detail is not None:
            source["detail"] = part.detail
        return {"type": "image", "source": source}
    raise TypeError(f"{type(part).__name__} does not stand in a message of a user or the system")


def _outputs(message: Message) -> list[Output]:
    """Return the events of a stored answer: its parts in order, then its calls.

    The calls that may run share an event, and so do those that wait.
    """
    calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
    parts: list[tuple[Fragment, ...]] = [
        (part,)
        for part in message.parts
        if isinstance(part, TextPart | ReasoningPart | HiddenReasoningPart)
    ]
    requests = [
        tuple(one for one in calls if one.needs_approval is waits) for waits in (False, True)
    ]
    step_id = message.step_id or StepId("")  # answers have one

    def output(index: int, parts: tuple[Fragment, ...]) -> Output:
        return Output(Place(message.id, step_id, index, message.created_at), parts)

    outputs = [output(index, part) for index, part in enumerate(parts)]
    return outputs + [output(len(parts), request) for request in requests if request]
