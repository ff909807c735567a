"""Approvals: the calls that a conversation waits for, and the effect of an answer. Pure.

A conversation waits when the model's last message has calls that need approval and have no return.
Nothing is stored beside the messages, so every process finds the same pending calls, also after a
restart, and a fork waits like its source.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from reattach.domain.errors import NoPendingApprovalError, PendingApprovalError, ToolCallIdsError
from reattach.domain.ids import new_message_id
from reattach.domain.messages import ApprovalPart, Message, Role, ToolCallPart, ToolReturnPart

FOLLOWING = frozenset({Role.TOOL, Role.APPROVAL, Role.SUMMARY})
"""The roles of messages that may stand between a call and the model's next message."""

CANCELLED = "The call was cancelled before it ran."


@dataclass(frozen=True, slots=True)
class PendingApproval:
    """An unanswered approval request."""

    request: Message
    """The model's message with the calls."""
    waiting: tuple[ToolCallPart, ...]
    """The calls that an answer must decide on; at least one."""
    allowed: tuple[ToolCallPart, ...]
    """Calls of the same message without an approval rule; they run once the others are decided."""

    @property
    def tool_call_ids(self) -> list[str]:
        return [call.tool_call_id for call in self.waiting]

    def error(self) -> PendingApprovalError:
        """Return the error for a send that is not an answer."""
        return PendingApprovalError(self.request.id, self.tool_call_ids, self.request.run_id)

    def cancellation(self, at: datetime) -> Message:
        """Return the message that ends the wait without running a call."""
        calls = (*self.allowed, *self.waiting)
        return self._returns([call.error_return(CANCELLED) for call in calls], at)

    def _returns(self, parts: Sequence[ToolReturnPart], at: datetime) -> Message:
        return Message(
            id=new_message_id(),
            role=Role.TOOL,
            parts=tuple(parts),
            created_at=at,
            run_id=self.request.run_id,
            step_id=self.request.step_id,
        )

    def due(self, sent: Sequence[Message]) -> list[ToolCallPart]:
        """Return the calls to run on the server after the answer ``sent``."""
        approved = {part.tool_call_id for part in _decisions(sent) if part.approve}
        return [*self.allowed, *(one for one in self.waiting if one.tool_call_id in approved)]

    def resolve(self, sent: Sequence[Message]) -> tuple[Message, ...]:
        """Return ``sent`` as the run's input: answers with explicit call ids, then their returns.

        Returns of the client and denials form one message, in the order of the calls.

        Raises:
            ToolCallIdsError: The answers do not decide on each waiting call exactly once.
        """
        answers = [self._complete(message) for message in sent if message.role is Role.APPROVAL]
        parts = {}
        received = []
        for part in (part for answer in answers for part in answer.parts):
            assert isinstance(part, ApprovalPart | ToolReturnPart)
            parts[part.tool_call_id] = part
            received.append(part.tool_call_id)
        if sorted(received) != sorted(self.tool_call_ids):
            raise ToolCallIdsError(self.tool_call_ids, received, self.request.id)
        returns = []
        for call in self.waiting:
            part = parts[call.tool_call_id]
            if isinstance(part, ToolReturnPart):
                returns.append(part)
            elif not part.approve:
                returns.append(call.error_return(denial(part.reason)))
        returned = [self._returns(returns, answers[-1].created_at)] if returns else []
        rest = [message for message in sent if message.role is not Role.APPROVAL]
        return (*answers, *returned, *rest)

    def _complete(self, answer: Message) -> Message:
        """Return the answer with an id for every call that it covers, and the tools' names."""
        names = {call.tool_call_id: call.name for call in self.waiting}
        parts: list[ApprovalPart | ToolReturnPart] = []
        for part in answer.parts:
            match part:
                case ToolReturnPart():
                    name = names.get(part.tool_call_id, "")
                    parts.append(msgspec.structs.replace(part, name=name))
                case ApprovalPart(tool_call_id="", request_id=request_id):
                    if request_id not in {None, self.request.id, *names}:
                        raise ToolCallIdsError(
                            self.tool_call_ids, [str(request_id)], self.request.id
                        )
                    parts += (msgspec.structs.replace(part, tool_call_id=one) for one in names)
                case ApprovalPart():
                    parts.append(part)
                case _:
                    pass  # Answers have no other parts.
        return msgspec.structs.replace(answer, parts=tuple(parts))


def pending_approval(messages: Sequence[Message]) -> PendingApproval | None:
    """Return the approval that a conversation ending with ``messages``, oldest first, waits for."""
    returned: set[str] = set()
    for message in reversed(messages):
        if message.role is Role.TOOL:
            returned |= {p.tool_call_id for p in message.parts if isinstance(p, ToolReturnPart)}
        if message.role in FOLLOWING:
            continue
        calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
        still_open = [call for call in calls if call.tool_call_id not in returned]
        waiting = tuple(call for call in still_open if call.needs_approval)
        allowed = tuple(call for call in still_open if not call.needs_approval)
        return PendingApproval(message, waiting, allowed) if waiting else None
    return None


def resolve_input(
    sent: tuple[Message, ...], pending: PendingApproval | None
) -> tuple[Message, ...]:
    """Return the run's input for ``sent``, in a conversation that waits for ``pending``.

    Raises:
        PendingApprovalError: ``sent`` is not an answer, but an approval is pending.
        AnswerRefusedError: ``sent`` is an answer that nothing waits for.
    """
    if not has_answer(sent):
        if pending is not None:
            raise pending.error()
        return sent
    if pending is None:
        raise NoPendingApprovalError
    return pending.resolve(sent)


def has_answer(messages: Sequence[Message]) -> bool:
    return any(message.role is Role.APPROVAL for message in messages)


def same_answer(one: Sequence[Message], other: Sequence[Message]) -> bool:
    """Whether both answer the same calls and have the same other messages.

    The answers' content is not compared: a client that lost its state runs its tool again, and the
    first answer stands.
    """
    return answered_ids(one) == answered_ids(other) and _rest(one) == _rest(other)


def answered_ids(messages: Sequence[Message]) -> set[str]:
    """Return the ids of the calls that the answers decide on."""
    return {
        part.tool_call_id
        for message in messages
        if message.role is Role.APPROVAL
        for part in message.parts
        if isinstance(part, ApprovalPart | ToolReturnPart)
    }


def _rest(messages: Sequence[Message]) -> list[object]:
    return [(one.role, one.parts, one.name) for one in messages if one.role not in FOLLOWING]


def _decisions(messages: Sequence[Message]) -> list[ApprovalPart]:
    return [part for one in messages for part in one.parts if isinstance(part, ApprovalPart)]


def denial(reason: str | None) -> str:
    """Return the text that a denied call has as its result."""
    denied = "The user denied this call."
    return f"{denied} Reason: {reason}" if reason else denied
