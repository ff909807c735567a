"""Observers of runs see each attempt, model call and tool, also after a crash."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import structlog

from reattach.domain.limits import LOST_LOG_FIRST_SEQ
from reattach.domain.messages import ToolReturnPart
from reattach.records.base import Run, Settlement, StepRecord
from reattach.runs.attempts.policy import ContinuePolicy
from reattach.runs.observing.observer import (
    AttemptOutcome,
    ObservedAttempt,
    RunObserver,
    Takeover,
)
from reattach.tools.base import Toolbox
from tests.recovery.test_tools import Launch, sent
from tests.support.faulty_stores import Life
from tests.support.stores import Stores

WAIT_SECONDS = 10.0
GOES_ON = ContinuePolicy()


@dataclass
class Seen(RunObserver):
    """Notes every call, in order."""

    calls: list[str] = field(default_factory=list)
    takeovers: list[Takeover] = field(default_factory=list)
    attempts: list[ObservedAttempt] = field(default_factory=list)

    def run_began(self, run: Run) -> None:
        self.calls.append("run_began")

    def run_ended(self, run: Run, settlement: Settlement) -> None:
        self.calls.append(f"run_ended {settlement.stop_reason}")

    def run_taken_over(self, takeover: Takeover) -> None:
        self.calls.append(f"run_taken_over {takeover.interruption}")
        self.takeovers.append(takeover)

    def attempt_began(self, attempt: ObservedAttempt) -> None:
        self.calls.append(f"attempt_began {attempt.number}")
        self.attempts.append(attempt)

    def attempt_ended(
        self, attempt: ObservedAttempt, outcome: AttemptOutcome, error: BaseException | None
    ) -> None:
        name = "" if error is None else f" {type(error).__name__}"
        self.calls.append(f"attempt_ended {attempt.number} {outcome}{name}")

    def first_output(self, attempt: ObservedAttempt, seconds: float) -> None:
        assert seconds >= 0
        self.calls.append("first_output")

    def model_asked(self, attempt: ObservedAttempt) -> None:
        self.calls.append("model_asked")

    def step_began(self, attempt: ObservedAttempt, step: StepRecord) -> None:
        self.calls.append("step_began")

    def step_ended(self, attempt: ObservedAttempt, step: StepRecord) -> None:
        assert step.usage.completion_tokens > 0
        self.calls.append("step_ended")

    def tool_began(self, attempt: ObservedAttempt, call_id: str, name: str) -> None:
        self.calls.append(f"tool_began {name}")

    def tool_ended(self, attempt: ObservedAttempt, returned: ToolReturnPart) -> None:
        self.calls.append(f"tool_ended {returned.name} {returned.status}")


class Failing(RunObserver):
    def run_began(self, run: Run) -> None:
        raise RuntimeError("observer fault")


async def observed(stores: Stores, text: str, *observers: RunObserver) -> Run:
    """Return the ended run of a new process with these observers."""
    service = stores.service(
        policy=GOES_ON, toolbox=Toolbox([Launch(hangs=False)]), observers=observers
    )
    async with asyncio.timeout(WAIT_SECONDS):
        await service.start()
        run = await service.send(sent(stores, await stores.conversation(), text=text))
        return await service.wait_until_settled(run)


async def test_an_observer_sees_one_attempt_with_its_model_calls(stores: Stores) -> None:
    seen = Seen()
    await observed(stores, "[steps=2] hello", seen)
    assert seen.calls == [
        "run_began",
        "attempt_began 1",
        "model_asked",
        "first_output",
        "step_began",
        "step_ended",
        "step_began",
        "step_ended",
        "run_ended end_turn",
        "attempt_ended 1 run_ended",
    ]
    (attempt,) = seen.attempts
    assert attempt.turn is not None
    assert attempt.last_seq > 0
    assert [message.text for message in attempt.output()]


async def test_an_observer_sees_each_tool_between_the_model_calls(stores: Stores) -> None:
    seen = Seen()
    await observed(stores, "[tool=launch] hello", seen)
    assert seen.calls[2:-2] == [
        "model_asked",
        "first_output",
        "step_began",
        "step_ended",
        "tool_began launch",
        "tool_ended launch success",
        "model_asked",
        "step_began",
        "step_ended",
    ]


async def test_an_observer_sees_the_error_that_ended_an_attempt(stores: Stores) -> None:
    seen = Seen()
    await observed(stores, "[fail]", seen)
    assert seen.calls[-2:] == ["run_ended llm_api_error", "attempt_ended 1 run_ended ModelError"]


async def test_an_observer_that_fails_is_logged_and_changes_nothing(stores: Stores) -> None:
    seen = Seen()
    with structlog.testing.capture_logs() as logs:
        run = await observed(stores, "hello", Failing(), seen)
    assert run.stop_reason == "end_turn"
    assert seen.calls[0] == "run_began"
    (line,) = [one for one in logs if one["event"] == "observer failed"]
    assert line["observer"] == "Failing"


async def test_a_crash_is_reported_as_a_takeover_by_the_next_process(stores: Stores) -> None:
    """The process that died reports nothing; the next one knows the times of its attempt."""
    life, before, after = Life("after log.append", 3), Seen(), Seen()
    service = stores.service_upon(life, policy=GOES_ON, observers=[before])
    async with asyncio.timeout(WAIT_SECONDS):
        await service.start()
        send = sent(stores, await stores.conversation(), text="[chunks=6] one two three four")
        run = await service.send(send)
        await life.ended.wait()
    assert [call for call in before.calls if call.startswith("attempt_ended")] == []

    following = stores.service(policy=GOES_ON, observers=[after])
    async with asyncio.timeout(WAIT_SECONDS):
        with structlog.testing.capture_logs() as logs:
            await following.start()
            await following.wait_until_settled(run)
    assert after.calls[:2] == ["run_taken_over crash", "attempt_began 2"]
    assert after.calls[-1] == "attempt_ended 2 run_ended"
    assert "first_output" not in after.calls
    (takeover,) = after.takeovers
    assert takeover.attempt_number == 1
    assert takeover.continues
    assert takeover.attempt_began_at == run.created_at <= takeover.attempt_ended_at
    (ended,) = [one for one in logs if one["event"] == "run ended"]
    assert ended["attempts"] == 2


async def test_a_run_that_recovery_ends_has_its_line_and_its_takeover(stores: Stores) -> None:
    life, after = Life("after log.append", 3), Seen()
    service = stores.service_upon(life)
    async with asyncio.timeout(WAIT_SECONDS):
        await service.start()
        run = await service.send(sent(stores, await stores.conversation(), text="[chunks=6] one"))
        await life.ended.wait()
        with structlog.testing.capture_logs() as logs:
            await stores.service(observers=[after]).start()
    assert after.calls == ["run_ended error", "run_taken_over crash"]
    assert not after.takeovers[0].continues
    (ended,) = [one for one in logs if one["event"] == "run ended"]
    assert ended["run_id"] == run.id
    assert (ended["outcome"], ended["error"]) == ("error", "stream_incomplete")
    assert ended["events"] > 0


async def test_the_lines_of_a_run_that_lost_its_log_count_the_events_that_exist(
    stores: Stores,
) -> None:
    life = Life("after log.append", 3)
    service = stores.service_upon(life)
    async with asyncio.timeout(WAIT_SECONDS):
        await service.start()
        run = await service.send(sent(stores, await stores.conversation(), text="[chunks=6] one"))
        await life.ended.wait()
        await stores.log.delete(run.id)
        with structlog.testing.capture_logs() as logs:
            await stores.service().start()
    (recovered,) = [one for one in logs if one["event"] == "run recovered"]
    (ended,) = [one for one in logs if one["event"] == "run ended"]
    head = await stores.log.head(run.id)
    assert head.first_seq >= LOST_LOG_FIRST_SEQ
    assert (recovered["events"], ended["events"]) == (0, head.last_seq + 1 - head.first_seq)
