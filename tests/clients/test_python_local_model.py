"""A real answer of the built-in model, cut and resumed."""

from __future__ import annotations

from typing import Any

import pytest

from reattach.testing.programs.relay import Relay
from tests.support.python_sdk import Reader
from tests.support.threads import Thread, Threads, assert_one_whole_run


@pytest.fixture
def with_local_model(threads: Threads, reader: Reader) -> Thread:
    """A conversation with an agent that says at most 120 tokens."""
    models = [model.handle for model in reader.sdk.models.list()]
    local = [handle for handle in models if handle and handle.startswith("local/")]
    assert local, f"scripts/setup installs the model that should be among {models}"
    agent = reader.sdk.agents.create(
        name="local",
        model=local[0],
        model_settings={"provider_type": "openai", "max_output_tokens": 120},
    )
    return threads.conversation(agent.id)


@pytest.mark.promise("P4", "P6", "S4", "S5", "S6")
def test_a_real_answer_that_was_cut_twice_is_whole_after_resuming(
    reader: Reader, relay: Relay, with_local_model: Thread
) -> None:
    thread = with_local_model

    def cut_early_and_again(chunk: Any) -> None:
        if chunk.seq_id in {6, 12}:
            relay.cut()

    reader.read(
        lambda: reader.send(thread, "Name ten animals, with a sentence about each of them."),
        cut_early_and_again,
    )
    assert reader.broken is not None
    reader.read(lambda: reader.resume(thread), cut_early_and_again)
    reader.read(lambda: reader.resume(thread, run_id=None, otid=thread.otid))
    assert reader.error is None
    assert reader.complete
    assert reader.joined == thread.replay(reader.run_id)
    assert_one_whole_run(reader.joined)
    assert reader.text == thread.text()
    assert len(reader.text.split()) > 5
    assert reader.chunks[-2].stop_reason in {"end_turn", "max_tokens_exceeded"}
    assert reader.sdk.runs.retrieve(reader.run_id).stop_reason == reader.chunks[-2].stop_reason
