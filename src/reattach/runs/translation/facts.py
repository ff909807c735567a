"""The facts of a run for the frames of a dialect."""

from reattach.records.base import Run
from reattach.wire.dialects.dialect import RunFacts


def facts_of(run: Run) -> RunFacts:
    """Return the facts of a run, which are the same at every time of its life."""
    return RunFacts(
        run_id=run.id,
        created_at=run.created_at,
        agent_id=run.thread.agent_id,
        conversation_id=run.conversation_id,
        model=run.model,
        background=run.background,
        client_tools=frozenset(run.request_config.client_tools),
        given=run.request_config.given,
    )
