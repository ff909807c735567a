"""The history of a chat as UI messages, made of the stored messages by the fold of the stream."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from reattach.domain.errors import NotFoundError
from reattach.domain.events import Failed, Output, Place, Stopped, StopReason, Usage
from reattach.domain.ids import AgentId, MessageId, RunId, StepId, TenantId
from reattach.domain.limits.requests import MAX_PAGE_ITEMS
from reattach.domain.messages import (
    ApprovalPart,
    ImagePart,
    Message,
    Role,
    ToolReturnPart,
)
from reattach.http.context import Context
from reattach.http.dialects.ai_sdk.incoming import METADATA, OUTPUTS, shown_id, user_parts
from reattach.records.base import Page, RequestExtras, Run, Span, Thread
from reattach.runs.translation.facts import facts_of
from reattach.wire.dialects.dialect import RunFacts
from reattach.wire.dialects.ui_message_state import UiMessageState
from reattach.wire.dialects.ui_messages import (
    UiMessageFold,
    UiMessages,
    chunk_frame,
    message_id_of,
    returned_chunk,
)

Json = dict[str, Any]

_LOOKUPS: Final = 8
"""Runs of other conversations that are looked up at once."""


async def history(
    context: Context, tenant: TenantId, thread: Thread, *, limit: int, before: str | None
) -> list[Json]:
    """Return the newest UI messages of a thread that are older than ``before``, oldest first.

    The message of a turn that is active is left out, because its stream delivers it from the
    beginning.

    Raises:
        NotFoundError: No message has the id ``before``.
    """
    active = await context.records.runs.active(tenant, thread)
    stored = await _stored(context, tenant, thread, limit, before)
    if active is not None and any(one.run_id == active.id for one in stored):
        active = None  # It has just ended.
    runs = await _runs_of(context, tenant, thread, stored)
    shown = _Messages(runs)
    for message in stored:
        shown.add(message)
    messages = shown.finish()
    if active is not None:
        if messages and all(one.role in {Role.APPROVAL, Role.TOOL} for one in active.input):
            messages.pop()
        messages += [_user_message(one, active) for one in active.input if one.role is Role.USER]
    end = len(messages)
    if before is not None:
        ids = [one["id"] for one in messages]
        if before not in ids:
            raise NotFoundError(f"The chat has no message '{before}'.")
        end = ids.index(before)
    return messages[max(end - limit, 0) : end]


async def stored_frames(context: Context, run: Run, dialect: UiMessages) -> list[bytes]:
    """Return the frames of a run whose events are gone, from its messages."""
    fold = dialect.fold(facts_of(run))
    chunks = fold.begin_chunks()
    sent = {message.id for message in run.input}
    for message in await context.records.messages.all_of_run(run.tenant, run.id):
        chunks += _chunks(fold, message) if message.id not in sent else ()
    return [chunk_frame(chunk) for chunk in (*chunks, *_end(fold, run))]


def returned_by_client(run: Run) -> list[Json]:
    """Return the chunks of the results that the sender of a run gave."""
    return [
        chunk
        for message in run.input
        if message.role is Role.APPROVAL
        for chunk in _client_returns(message, run)
    ]


def _client_returns(message: Message, run: Run | None) -> list[Json]:
    outputs = _given(run).get(OUTPUTS) or {}
    chunks = []
    for part in message.parts:
        if isinstance(part, ToolReturnPart):
            chunk = returned_chunk(part, is_clients=True)
            if part.tool_call_id in outputs:
                chunk["output"] = outputs[part.tool_call_id]
            chunks.append(chunk)
    return chunks


def _is_sent(message: Message, run: Run) -> bool:
    return any(one.id == message.id for one in run.input)


def _given(run: Run | None) -> Mapping[str, Any]:
    extras = (run.request_extras if run else None) or RequestExtras()
    return msgspec.json.decode(extras.given, type=dict)


# Reading.


async def _stored(
    context: Context, tenant: TenantId, thread: Thread, limit: int, before: str | None
) -> list[Message]:
    """Return the newest messages, oldest first, that make at least ``limit`` UI messages.

    Each message of a person is one UI message. They begin with one, unless they are all messages.
    """
    newest_first: list[Message] = []
    oldest: MessageId | None = None
    complete_until, left, is_counted = 0, limit, before is None
    while True:
        span = Span(MAX_PAGE_ITEMS, ascending=False, before=oldest)
        page = await context.records.messages.list(tenant, thread, span, system_too=False)
        if not page:
            return newest_first[::-1]
        newest_first += page
        for number, message in enumerate(newest_first[complete_until:], complete_until + 1):
            if message.role is Role.USER:
                left -= is_counted
                is_counted = is_counted or before in {shown_id(message), _ui_id(message)}
            if left < 0:
                return newest_first[:number][::-1]
            is_counted = is_counted or before == _ui_id(message)
        complete_until = len(newest_first)
        oldest = page[-1].id


def _ui_id(message: Message) -> str:
    """Return the id of the UI message that the run of a message begins."""
    return message_id_of(message.run_id) if message.run_id else message.id


async def _runs_of(
    context: Context, tenant: TenantId, thread: Thread, stored: Sequence[Message]
) -> dict[RunId, Run]:
    """Return the runs of the messages; those of a fork are in other conversations."""
    records, runs = context.records.runs, dict[RunId, Run]()
    page = Page(limit=MAX_PAGE_ITEMS, ascending=False)
    for run in await records.list(tenant, page, conversation_id=thread.conversation_id):
        runs[run.id] = run
    wanted = dict.fromkeys(one.run_id for one in stored if one.run_id not in runs)
    slots = asyncio.Semaphore(_LOOKUPS)

    async def look_up(run_id: RunId) -> None:
        async with slots:
            try:
                runs[run_id] = await records.get(tenant, run_id)
            except NotFoundError:
                return  # It was deleted; its messages stay.

    await asyncio.gather(*(look_up(one) for one in wanted if one is not None))
    return runs


# Folding.


@dataclass(slots=True)
class _Turn:
    """A message of the assistant that is being put together."""

    run_id: RunId | None
    fold: UiMessageFold
    state: UiMessageState = field(default_factory=UiMessageState)


class _Messages:
    """Stored messages as UI messages. ``add`` each in order, then call ``finish``."""

    def __init__(self, runs: Mapping[RunId, Run]) -> None:
        self._runs = runs
        self._shown: list[Json] = []
        self._turn: _Turn | None = None
        self._first_run_id: RunId | None = None

    def add(self, message: Message) -> None:
        run = self._runs.get(message.run_id) if message.run_id else None
        if message.role is Role.TOOL and run is not None and _is_sent(message, run):
            return  # The answer before it has the same.
        match message.role:
            case Role.USER:
                self._end_turn()
                self._shown.append(_user_message(message, run))
            case Role.SYSTEM:
                pass
            case Role.APPROVAL:
                self._answer(message, run)
            case _:
                turn = self._turn_for(message, run)
                turn.state.add(_chunks(turn.fold, message))

    def finish(self) -> list[Json]:
        self._end_turn()
        return self._shown

    def _turn_for(self, message: Message, run: Run | None) -> _Turn:
        turn = self._turn
        if turn is not None and turn.run_id == message.run_id:
            return turn
        self._end_turn()
        self._first_run_id = message.run_id
        facts = _facts(message, run)
        turn = self._turn = _Turn(message.run_id, UiMessageFold(facts))
        turn.state.add(turn.fold.begin_chunks())
        if message.run_id is None:
            turn.state.id, turn.state.metadata = shown_id(message), {}
        return turn

    def _answer(self, message: Message, run: Run | None) -> None:
        """Continue the turn that asked with the run that answers."""
        turn = self._turn
        if turn is None:
            return
        self._end_run()
        denied = [
            part.tool_call_id
            for part in message.parts
            if isinstance(part, ApprovalPart) and not part.approve
        ]
        for part in message.parts:
            if isinstance(part, ApprovalPart):
                turn.state.decide(part)
        turn.state.add(_client_returns(message, run))
        if run is not None and any(one.role is Role.USER for one in run.input):
            self._close(turn)  # The run also got a new message, so its output is another message.
            return
        turn.run_id = message.run_id
        turn.fold = UiMessageFold(_facts(message, run), self._first_run_id, denied)
        turn.state.add(turn.fold.begin_chunks())

    def _end_run(self) -> None:
        turn = self._turn
        if turn is not None:
            run = self._runs.get(turn.run_id) if turn.run_id else None
            turn.state.add(_end(turn.fold, run))

    def _end_turn(self) -> None:
        self._end_run()
        if self._turn is not None:
            self._close(self._turn)

    def _close(self, turn: _Turn) -> None:
        self._turn = None
        self._shown.append(turn.state.message())


def _facts(message: Message, run: Run | None) -> RunFacts:
    if run is not None:
        return facts_of(run)
    return RunFacts(
        run_id=message.run_id or RunId(""),
        created_at=message.created_at,
        agent_id=AgentId(""),
        conversation_id=None,
        model=None,
        background=True,
    )


def _chunks(fold: UiMessageFold, message: Message) -> list[Json]:
    """Return the chunks of the output that a message holds."""
    if message.role not in {Role.ASSISTANT, Role.TOOL, Role.SUMMARY}:
        return []
    step_id = message.step_id or StepId(message.id)
    return [
        chunk
        for index, part in enumerate(message.parts)
        if not isinstance(part, ImagePart | ApprovalPart)
        for chunk in fold.chunks(
            Output(Place(message.id, step_id, index, message.created_at), (part,))
        )
    ]


def _end(fold: UiMessageFold, run: Run | None) -> list[Json]:
    """Return the chunks of the end of a run; without its record, those that close its parts."""
    reason = run.stop_reason if run is not None else None
    chunks = list(fold.chunks(Stopped(reason or StopReason.END_TURN)))
    if run is not None and run.error is not None:
        chunks += fold.chunks(Failed(run.error.error_type, run.error.message, run.error.detail))
    if run is not None and run.event_count:
        fold.seq = run.event_count - 1  # The last event is that of the usage.
    chunks += fold.chunks((run.usage if run is not None else None) or Usage())
    if reason is None:
        return [one for one in chunks if "messageMetadata" not in one]
    return chunks


def _user_message(message: Message, run: Run | None) -> Json:
    shown: Json = {"id": shown_id(message), "role": "user", "parts": user_parts(message)}
    metadata = _given(run).get(METADATA)
    if metadata is not None:
        shown["metadata"] = metadata
    return shown
