"""Callbacks to the receivers that clients name: how their runs ended, at least once, and signed."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

import structlog
from standardwebhooks import Webhook

from reattach.domain.backoff import Backoff, until_available
from reattach.domain.clock import Clock, sleep_unless_set, utc_text
from reattach.domain.errors import ReattachError
from reattach.domain.limits.outbound import (
    CALLBACK_BODY_BYTES,
    CALLBACK_GIVE_UP_SECONDS,
    CALLBACK_LEASE_SECONDS,
    CALLBACK_LOOK_SECONDS,
    CALLBACK_MAX_RETRY_SECONDS,
    CALLBACK_RETRY_SECONDS,
)
from reattach.meters.meters import Meters
from reattach.records.base import Run
from reattach.records.callbacks import CallbackOutcome, DueCallback, Receiver
from reattach.records.records import Records
from reattach.runs.answers import metadata_of, whole_answer
from reattach.webhooks.receivers import CallbackResult, Receivers
from reattach.webhooks.slots import CallbackSlots

logger = structlog.get_logger(__name__)


class Callbacks:
    """Sends the callbacks that the records say are due, one at a time for each run.

    The transaction that settles a run makes its callback due, so neither a restart nor a crash
    loses one. A process that dies between a callback and the record of its outcome leaves the
    callback to be repeated.
    """

    def __init__(
        self,
        records: Records,
        clock: Clock,
        receivers: Receivers,
        *,
        meters: Meters | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._records = records
        self._clock = clock
        self._receivers = receivers
        self._meters = meters or Meters()
        self._slots = CallbackSlots(clock)
        self._uniform = uniform
        self._due = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Look for due callbacks at once."""
        self._due.set()

    async def run(self) -> None:
        """Send the due callbacks until cancelled; those in progress are then given up."""
        try:
            while True:
                self._due.clear()
                try:
                    await self.start_due()
                except ReattachError as error:
                    logger.warning("callbacks not looked for", reason=error.detail)
                except Exception:
                    logger.exception("callbacks not looked for")
                await sleep_unless_set(self._clock, CALLBACK_LOOK_SECONDS, self._due)
        finally:
            sending = set(self._sending)
            for task in sending:
                task.cancel()
            if sending:
                await asyncio.wait(sending)

    async def start_due(self) -> Sequence[asyncio.Task[None]]:
        """Start the due callbacks that fit into the limits, and return their tasks.

        Raises:
            StoreUnavailableError: The records do not answer.
        """
        room = self._slots.room()
        if room.callbacks <= 0:
            return ()
        taken: list[Receiver] = []
        try:
            claimed = await self._records.callbacks.claim(
                replace(room, take=partial(self._take, taken)), CALLBACK_LEASE_SECONDS
            )
        except BaseException:
            for receiver in taken:
                self._slots.give_back(receiver)
            raise
        unused = Counter(taken) - Counter(due.receiver for due in claimed)
        for receiver in unused.elements():  # Another process was faster.
            self._slots.give_back(receiver)
        return [self._begin(due) for due in claimed]

    def _take(self, taken: list[Receiver], receiver: Receiver) -> bool:
        if not self._slots.take(receiver):
            return False
        taken.append(receiver)
        return True

    def _begin(self, due: DueCallback) -> asyncio.Task[None]:
        task = asyncio.create_task(self._send(due), name=f"callback of {due.run.id}")
        self._sending.add(task)

        def end(task: asyncio.Task[None]) -> None:
            self._sending.discard(task)
            self._slots.give_back(due.receiver)
            self.wake()  # A slot is free.

        task.add_done_callback(end)
        return task

    async def _send(self, due: DueCallback) -> None:
        structlog.contextvars.bind_contextvars(run_id=due.run.id)  # In the task of this callback.
        try:
            await self._send_and_record(due)
        except ReattachError as error:
            logger.warning("callback not made", run_id=due.run.id, reason=error.detail)
        except Exception:
            logger.exception("callback not made", run_id=due.run.id)

    async def _send_and_record(self, due: DueCallback) -> None:
        run = due.run
        body = await self._body(run)
        sent_at = self._clock.now()
        secrets = await self._records.callbacks.secrets(run.tenant)
        headers = {
            "content-type": "application/json",
            "user-agent": "Reattach",
            "webhook-id": run.id,
            "webhook-timestamp": str(int(sent_at.timestamp())),
            "webhook-signature": " ".join(
                Webhook(secret).sign(run.id, sent_at, body) for secret in secrets
            ),
        }
        if run.traceparent is not None:
            headers["traceparent"] = run.traceparent
        result = await self._receivers.post(run.callback_url or "", body.encode(), headers)
        self._slots.note(due.receiver, has_answered=result.status_code is not None)
        backoff = Backoff(
            CALLBACK_RETRY_SECONDS,
            CALLBACK_MAX_RETRY_SECONDS,
            failures=due.tries - 1,
            uniform=self._uniform,
        )
        outcome = CallbackOutcome(
            sent_at,
            result.status_code,
            result.error,
            None if result.is_final else sent_at + timedelta(seconds=backoff.next_seconds()),
        )
        outcome = self._within_bounds(run, result, outcome)
        self._meters.callbacks.add(_outcome_label(outcome))
        if result.error is not None:
            logger.info(
                "callback failed",
                run_id=run.id,
                tries=due.tries,
                reason=result.error,
                again=outcome.again_at is not None,
            )
        await until_available(
            self._clock, lambda: self._records.callbacks.note(run.id, due.tries, outcome)
        )

    def _within_bounds(
        self, run: Run, result: CallbackResult, outcome: CallbackOutcome
    ) -> CallbackOutcome:
        """Return the outcome without another attempt if that would be too late."""
        ended_at = run.completed_at or run.created_at
        last_at = ended_at + timedelta(seconds=CALLBACK_GIVE_UP_SECONDS)
        if outcome.again_at is None or outcome.again_at <= last_at:
            return outcome
        error = f"{result.error}; given up"
        return CallbackOutcome(outcome.sent_at, outcome.status_code, error, None)

    async def _body(self, run: Run) -> str:
        metadata = metadata_of(run)
        types = run.request_config.include_return_message_types
        payload = {
            # Signed too, so that a callback cannot be replayed to another receiver.
            "callback_url": run.callback_url,
            "tenant": run.tenant,
            "run_id": run.id,
            "status": run.status.value,
            "stop_reason": None if run.stop_reason is None else run.stop_reason.value,
            "agent_id": run.thread.agent_id,
            "conversation_id": run.thread.conversation_id,
            "completed_at": None if run.completed_at is None else utc_text(run.completed_at),
            "metadata": metadata | {"result": await whole_answer(self._records, run, types)},
        }
        body = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
        if len(body.encode()) <= CALLBACK_BODY_BYTES:
            return body
        payload["metadata"] = metadata | {"result": None}
        return json.dumps(payload, ensure_ascii=False, separators=(",", ":"))


def _outcome_label(outcome: CallbackOutcome) -> str:
    if outcome.error is None:
        return "delivered"
    return "given_up" if outcome.again_at is None else "failed"
