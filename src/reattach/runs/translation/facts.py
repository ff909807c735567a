"""The facts of a run for the frames of a dialect."""

import msgspec

from reattach.records.base import RequestExtras, Run
from reattach.wire.dialects.dialect import RunFacts


def facts_of(run: Run) -> RunFacts:
    """Return the facts of a run, which are the same at every time of its life."""
    extras = run.request_extras or RequestExtras()
    return RunFacts(
        run_id=run.id,
        created_at=run.created_at,
        agent_id=run.thread.agent_id,
        conversation_id=run.conversation_id,
        model=run.model,
        background=run.background,
        client_tools=frozenset(extras.client_tools),
        given=msgspec.json.decode(extras.given, type=dict),
    )
