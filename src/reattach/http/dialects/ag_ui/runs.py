"""Runs for requests of AG-UI: begun once, and streamed any number of times."""

from typing import Final

from starlette.responses import Response

from reattach.domain.errors import NotFoundError
from reattach.http.content import check_images
from reattach.http.context import Context
from reattach.http.dialects.ag_ui.bodies import RunInput
from reattach.http.dialects.ag_ui.input import (
    LAST,
    check_repetition,
    client_tools,
    parse_input,
)
from reattach.http.dialects.ag_ui.threads import (
    FAMILY,
    ClientThread,
    find_thread,
    history_of,
    interrupts_of,
    known_run,
    newest_kept,
    newest_run,
)
from reattach.http.dialects.sending import DialectSend, DialectSends
from reattach.http.dialects.streaming import dialect_stream
from reattach.http.middleware.access import Access
from reattach.http.stream.framing import EVENT_STREAM
from reattach.http.stream.response import RunStream
from reattach.records.base import Agent, Run
from reattach.runs.translation.facts import facts_of
from reattach.wire.dialects.ag_ui import RUN, THREAD, AgUi, idle, names_of, snapshot, started
from reattach.wire.dialects.ag_ui_messages import before

_DIALECT: Final = AgUi()
_AFTER_START: Final = 1
"""The cursor after the first frame, which the prelude has in its place."""


async def run_stream(
    context: Context, access: Access, sends: DialectSends, agent: Agent, body: RunInput
) -> Response:
    """Begin the run that a request asks for, or find it if the request is a repetition.

    Raises:
        ConflictError: The thread has another run with this runId.
        ReattachError: Any error of ``DialectSends.start``.
    """
    thread = await find_thread(context.records, access.tenant, agent.id, body.thread_id)
    run = await known_run(context, access.tenant, thread, body.run_id)
    if run is None:
        run = await _begin(context, access, sends, agent, thread, body)
    else:
        check_repetition(body, run)
        return await _repeat(context, access, thread, body, run)
    if names_of(facts_of(run))[RUN] != body.run_id:  # An answer that was given before.
        return await _repeat(context, access, thread, body, run)
    return dialect_stream(context, run, _DIALECT)


async def connect_stream(
    context: Context, access: Access, agent: Agent, body: RunInput
) -> Response:
    """Return the messages of a thread, and the rest of its active run."""
    tenant, records = access.tenant, context.records
    thread = await find_thread(records, tenant, agent.id, body.thread_id)
    if thread.conversation is None:  # The client keeps the messages that it has.
        return Response(b"", headers=_HEADERS)
    run = await newest_run(records, tenant, thread)
    if run is not None and run.status.is_active:
        return await _replay(context, access, thread, body, run)
    messages = await history_of(records, tenant, thread)
    waiting = await interrupts_of(records, tenant, thread, run)
    names = {THREAD: body.thread_id, RUN: body.run_id}
    return Response(idle(names, messages, waiting), headers=_HEADERS)


_HEADERS: Final = {
    EVENT_STREAM[0].decode(): EVENT_STREAM[1].decode(),
    "cache-control": "no-store, no-transform",
}


async def stop_run(
    context: Context, access: Access, agent: Agent, thread_id: str, run_id: str | None
) -> bool:
    """Cancel the run of this name, or else the active one, and return whether one was active.

    Raises:
        NotFoundError: The server does not have the thread.
    """
    tenant = access.tenant
    thread = await find_thread(context.records, tenant, agent.id, thread_id)
    if thread.conversation is None:
        raise NotFoundError(
            f"Thread not found with id={thread_id[:100]}.",
            remedy="A thread begins with its first run.",
        )
    run = None if run_id is None else await known_run(context, tenant, thread, run_id)
    if run is None:
        run = await newest_run(context.records, tenant, thread)
    if run is None or not run.status.is_active:
        return False
    await context.runs.cancel([run], by=access.actor)
    return True


async def _begin(
    context: Context,
    access: Access,
    sends: DialectSends,
    agent: Agent,
    thread: ClientThread,
    body: RunInput,
) -> Run:
    newest = await newest_kept(context.records, access.tenant, thread)
    is_known = thread.conversation is not None
    parsed = parse_input(body, context.clock.now(), newest, is_known=is_known)
    to_private = context.settings.callbacks_to_private
    check_images((*parsed.earlier, *parsed.messages), to_private=to_private)
    send = DialectSend(
        dialect=FAMILY,
        agent=agent,
        messages=parsed.messages,
        payload=[body.thread_id, body.run_id],
        conversation=thread.conversation if thread.is_id else None,
        key=None if thread.is_id else thread.name,
        idempotency_key=thread.request_key(body.run_id),
        key_name="runId",
        client_tools=client_tools(body.tools or ()),
        system_suffix=parsed.instructions,
        given=parsed.given,
        earlier=parsed.earlier,
    )
    return await sends.start(access, send)


async def _repeat(
    context: Context, access: Access, thread: ClientThread, body: RunInput, run: Run
) -> RunStream:
    """Return the whole stream of a run after the messages that its client had before it."""
    last = facts_of(run).given.get(LAST)
    places = [place for place, one in enumerate(body.messages) if one.id == last]
    if not places:
        return await _replay(context, access, thread, body, run)
    shown = [one.as_sent for one in body.messages]
    return _with_prelude(context, body, run, shown[: places[-1] + 1], shown)


async def _replay(
    context: Context, access: Access, thread: ClientThread, body: RunInput, run: Run
) -> RunStream:
    """Return the whole stream of a run after the messages that the server had before it."""
    thread = await find_thread(context.records, access.tenant, thread.agent_id, thread.name)
    messages = await history_of(context.records, access.tenant, thread, run)
    shown = [one.as_sent for one in body.messages]
    return _with_prelude(context, body, run, messages, shown)


def _with_prelude(
    context: Context,
    body: RunInput,
    run: Run,
    messages: list[dict[str, object]],
    shown: list[dict[str, object]],
) -> RunStream:
    facts = facts_of(run)
    names = {**names_of(facts), THREAD: body.thread_id}
    prelude = started(facts, names) + snapshot(before(messages, shown))
    return dialect_stream(
        context,
        run,
        _DIALECT,
        cursor=_AFTER_START,
        resumes=True,
        prelude=prelude,
    )
