"""The output of a run as one JSON object."""

from collections.abc import Container
from datetime import datetime
from typing import Any

import msgspec

from reattach.domain.clock import utc_text
from reattach.domain.events import Stopped, StopReason, Usage
from reattach.domain.ids import FIRST_SEQ, Seq
from reattach.domain.messages import Role
from reattach.records.base import Run
from reattach.records.records import Records
from reattach.records.runs.lists.summaries import RunSummary
from reattach.wire import letta, stored


def metadata_of(run: Run | RunSummary) -> dict[str, Any]:
    """Return the ``metadata`` of the API's run, which JSON can hold.

    It has the type, the error of a run that failed, and the attempts of a run that was interrupted.
    """
    metadata: dict[str, Any] = {"run_type": run.run_type}
    if run.error is not None:
        metadata["error"] = msgspec.to_builtins(run.error)
    if run.attempts:
        metadata["attempts"] = [
            _shown(run.created_at, FIRST_SEQ, way=None, interruption=None),
            *(
                _shown(one.began_at, one.first_seq, way=one.way, interruption=one.interruption)
                for one in run.attempts
            ),
        ]
    return metadata


def _shown(
    began_at: datetime, first_seq: Seq, *, way: str | None, interruption: str | None
) -> dict[str, Any]:
    return {
        "began_at": utc_text(began_at, "microseconds"),
        "first_seq": first_seq,
        "way": way,
        "interruption": interruption,
    }


async def whole_answer(
    records: Records,
    run: Run,
    types: Container[str] | None,
    *,
    compaction_messages: bool = False,
) -> dict[str, Any]:
    """Return the output messages of a settled run, its stop reason and its usage.

    Only messages of the ``types`` are included, unless they are None; summaries only with
    ``compaction_messages``.
    """
    messages = await records.messages.all_of_run(run.tenant, run.id)
    sent = {message.id for message in run.input}
    items = [
        item
        for message in messages
        if message.id not in sent and (compaction_messages or message.role is not Role.SUMMARY)
        for item in stored.message_items(message)
        if types is None or item["message_type"] in types
    ]
    return {
        "messages": items,
        "stop_reason": letta.body(Stopped(run.stop_reason or StopReason.ERROR), None, None),
        "usage": letta.body(run.usage or Usage(), None, None),
        "logprobs": None,
        "turns": None,
    }
