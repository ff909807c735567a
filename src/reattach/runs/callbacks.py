"""Telling the receivers that clients named how their runs ended: at least once, and signed."""

import asyncio
import hashlib
import hmac
import json
import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final

import structlog

from reattach.clock import Clock, sleep_unless_set
from reattach.errors import ReattachError
from reattach.limits import (
    CALLBACK_BODY_BYTES,
    CALLBACK_GIVE_UP_SECONDS,
    CALLBACK_LEASE_SECONDS,
    CALLBACK_LOOK_SECONDS,
    CALLBACK_MAX_RETRY_SECONDS,
    CALLBACK_RETRY_SECONDS,
    CALLBACKS_AT_ONCE,
)
from reattach.records.base import Run
from reattach.records.callbacks import CallbackOutcome, DueCallback
from reattach.records.records import Records
from reattach.runs.answers import whole_answer
from reattach.runs.patience import patiently
from reattach.runs.receivers import Answered, Receivers

logger = structlog.get_logger(__name__)

SIGNATURE_HEADER: Final = "Reattach-Signature"


class Callbacks:
    """Makes the calls that are due in the records, in this process and one at a time for each run.

    What is due is written when a run is settled, by whoever settles it, so neither a restart nor
    the death of a process loses a call. A process that dies after a call and before it has written
    what came of it leaves the call to be made once more.
    """

    def __init__(
        self,
        records: Records,
        clock: Clock,
        receivers: Receivers,
        secret: str,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._records = records
        self._clock = clock
        self._receivers = receivers
        self._secret = secret.encode()
        self._uniform = uniform
        self._word = asyncio.Event()
        self._calls: set[asyncio.Task[None]] = set()

    def ring(self) -> None:
        """A call may be due now."""
        self._word.set()

    async def keep_calling(self) -> None:
        """Make the calls that are due, until cancelled; those under way are given up then."""
        try:
            while True:
                self._word.clear()
                try:
                    await self.begin_due()
                except ReattachError as error:
                    logger.warning("callbacks not looked for", reason=error.detail)
                except Exception:
                    logger.exception("callbacks not looked for")
                await sleep_unless_set(self._clock, CALLBACK_LOOK_SECONDS, self._word)
        finally:
            calls = set(self._calls)
            for call in calls:
                call.cancel()
            if calls:
                await asyncio.wait(calls)

    async def begin_due(self) -> Sequence[asyncio.Task[None]]:
        """Begin the calls that are due, as many as may be made at once, and return them.

        Raises StoreUnavailableError.
        """
        free = CALLBACKS_AT_ONCE - len(self._calls)
        if free <= 0:
            return ()
        begun: list[asyncio.Task[None]] = []
        for due in await self._records.callbacks.claim(free, CALLBACK_LEASE_SECONDS):
            call = asyncio.create_task(self._call(due), name=f"callback of {due.run.id}")
            begun.append(call)
            self._calls.add(call)
            call.add_done_callback(self._called)
        return begun

    def _called(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self.ring()  # There is room for another.

    async def _call(self, due: DueCallback) -> None:
        try:
            await self._call_and_note(due)
        except ReattachError as error:
            logger.warning("callback not made", run_id=due.run.id, reason=error.detail)
        except Exception:
            logger.exception("callback not made", run_id=due.run.id)

    async def _call_and_note(self, due: DueCallback) -> None:
        run = due.run
        body = await self._body(run)
        sent_at = self._clock.now()
        timestamp = int(sent_at.timestamp())
        headers = {
            "content-type": "application/json",
            "user-agent": "Reattach",
            SIGNATURE_HEADER: f"t={timestamp},v1={signature(self._secret, timestamp, body)}",
        }
        answered = await self._receivers.post(run.callback_url or "", body, headers)
        outcome = CallbackOutcome(
            sent_at,
            answered.status_code,
            answered.error,
            None
            if answered.is_final
            else sent_at + timedelta(seconds=self._wait_seconds(due.tries)),
        )
        outcome = self._within_bounds(run, answered, outcome)
        if answered.error is not None:
            logger.info(
                "callback failed",
                run_id=run.id,
                tries=due.tries,
                reason=answered.error,
                again=outcome.again_at is not None,
            )
        await patiently(
            self._clock, lambda: self._records.callbacks.note(run.id, due.tries, outcome)
        )

    def _wait_seconds(self, tries: int) -> float:
        longest = min(CALLBACK_MAX_RETRY_SECONDS, CALLBACK_RETRY_SECONDS * 2 ** min(tries - 1, 30))
        return self._uniform(longest / 2, longest)

    def _within_bounds(
        self, run: Run, answered: Answered, outcome: CallbackOutcome
    ) -> CallbackOutcome:
        """The outcome without another try, if that would be too late."""
        ended_at = run.completed_at or run.created_at
        last_at = ended_at + timedelta(seconds=CALLBACK_GIVE_UP_SECONDS)
        if outcome.again_at is None or outcome.again_at <= last_at:
            return outcome
        error = f"{answered.error}; given up"
        return CallbackOutcome(outcome.sent_at, outcome.status_code, error, None)

    async def _body(self, run: Run) -> bytes:
        metadata: dict[str, Any] = {"run_type": run.run_type}
        if run.error is not None:
            metadata["error"] = dict(run.error)
        types = run.request_config.get("include_return_message_types")
        told = {
            "run_id": run.id,
            "status": run.status.value,
            "stop_reason": None if run.stop_reason is None else run.stop_reason.value,
            "agent_id": run.thread.agent_id,
            "conversation_id": run.thread.conversation_id,
            "completed_at": None
            if run.completed_at is None
            else run.completed_at.isoformat().replace("+00:00", "Z"),
            "metadata": metadata | {"result": await whole_answer(self._records, run, types)},
        }
        body = json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()
        if len(body) <= CALLBACK_BODY_BYTES:
            return body
        told["metadata"] = metadata | {"result": None}
        return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()


def signature(secret: bytes, timestamp: int, body: bytes) -> str:
    """HMAC-SHA256 over the timestamp in seconds, a dot and the body; in hexadecimal."""
    return hmac.new(secret, f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
