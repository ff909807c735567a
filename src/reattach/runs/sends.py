"""The path of a send to a run: checked for repetition, admitted, created, started."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec
import structlog

from reattach.agent.turns import Overrides, TurnPlan
from reattach.domain.backoff import until_available
from reattach.domain.errors import QuotaError, StoreUnavailableError, UnavailableError
from reattach.domain.errors.stores import CommitUnknownError
from reattach.domain.events import RunStatus
from reattach.domain.ids import FIRST_TOKEN, TenantId, new_rising_uuid, new_run_id
from reattach.domain.messages import Message
from reattach.futures import settle
from reattach.records.base import (
    Agent,
    Conversation,
    RequestConfig,
    RequestExtras,
    Run,
    RunKnown,
    Thread,
)
from reattach.records.runs.created import RunCreated
from reattach.records.runs.openings import Opening
from reattach.records.runs.retries import RequestDigest
from reattach.runs.attempts.plan import RunPlan
from reattach.runs.driver import RunDriver
from reattach.runs.drivers import Drivers
from reattach.runs.endings import Ending
from reattach.runs.idempotency import otid_alias, request_key
from reattach.runs.ownership.lease import Ownership
from reattach.runs.representation import Representation

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Send:
    """A validated request for a turn."""

    tenant: TenantId
    agent: Agent
    conversation: Conversation | None
    """None: the agent's default thread."""
    messages: tuple[Message, ...]
    """At least one, with the OTIDs that the client gave."""
    background: bool
    run_type: str
    representation: Representation
    overrides: Overrides
    request_config: RequestConfig = field(default_factory=RequestConfig)
    request_extras: RequestExtras | None = None
    callback_url: str | None = None
    """The URL to call when the run has ended."""
    opening: Opening | None = None
    """Creates ``conversation`` together with the run."""
    digest: RequestDigest | None = None
    """Finds the run of an earlier equal request, where no OTIDs of the client do."""
    place: str | None = None
    """Stands for the thread in the idempotency key; None: its id does."""

    @property
    def thread(self) -> Thread:
        return Thread(self.agent.id, self.conversation.id if self.conversation else None)


class Sends:
    """Creates runs for sends and starts a driver for each.

    ``give_up`` leaves a run to recovery.
    """

    def __init__(
        self, drivers: Drivers, ownership: Ownership, give_up: Callable[[Run, Ending], None]
    ) -> None:
        self._log = drivers.log
        self._records = drivers.records
        self._clock = drivers.clock
        self._drivers = drivers
        self._open_runs = drivers.open_runs
        self._engine_factory = drivers.engine_factory
        self._ownership = ownership
        self._give_up = give_up

    async def send(self, send: Send, admit: Callable[[int], None]) -> Run:
        """See ``RunService.send``."""
        try:
            if self._open_runs.draining:
                raise UnavailableError(
                    "The server is shutting down. Send the same request again in a few seconds.",
                    retry_after_seconds=2,
                )
            with self._open_runs.sending():
                admitted = await self._start(send, admit)
        except (QuotaError, UnavailableError) as error:
            known = await self._find_known(send)
            if known is None:
                if isinstance(error, QuotaError):
                    self._drivers.meters.refused.add("runs")
                elif self._open_runs.draining:
                    self._drivers.meters.refused.add("draining")
                raise
            return known
        return await admitted  # A sender that is cancelled cancels only this future.

    async def _find_known(self, send: Send) -> Run | None:
        """Return the run that an earlier send with the same key created (P9)."""
        key = request_key(send.messages, send.thread, send.place)
        return None if key is None else await self._records.runs.find_by_key(send.tenant, key)

    async def _start(self, send: Send, admit: Callable[[int], None]) -> asyncio.Future[Run]:
        """Start the run of ``send``. The future yields the run once the records have it."""
        model = self._engine_factory.model(send.agent, send.conversation, send.overrides.model)
        plan = RunPlan(
            TurnPlan.of(send.agent, send.conversation, send.overrides), send.representation
        )
        run = self._new_run(send, model, plan.encode() if self._drivers.policy.enabled else None)
        if not self._log.has_just_answered():
            # Probes the log: while it does not answer, a new run could not start.
            await self._log.find(otid_alias(run.tenant, run.input[0].otid or ""))
        driver = self._drivers.make(run, plan, send.agent, send.conversation)
        admitted: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        admit(self._open_runs.count_of(send.tenant))  # No await may separate this from the start.
        # Register the driver before the record exists: readers of the record wait for its log.
        self._drivers.start(driver, self._create_and_drive(driver, send, admitted), self._give_up)
        return admitted

    def _new_run(self, send: Send, model: str, turn_plan: str | None = None) -> Run:
        sent = tuple(
            message if message.otid else msgspec.structs.replace(message, otid=new_rising_uuid())
            for message in send.messages
        )
        return Run(
            id=new_run_id(),
            tenant=send.tenant,
            thread=send.thread,
            status=RunStatus.CREATED,
            background=send.background,
            created_at=self._clock.now(),
            model=model,
            run_type=send.run_type,
            request_config=send.request_config,
            request_extras=send.request_extras,
            input=sent,
            owner=self._ownership.owner,
            token=FIRST_TOKEN,
            first_owner=self._ownership.owner,
            callback_url=send.callback_url,
            turn_plan=turn_plan,
            traceparent=self._drivers.observer.traceparent(),
        )

    async def _create_and_drive(
        self, driver: RunDriver, send: Send, admitted: asyncio.Future[Run]
    ) -> None:
        """Create the driver's run and drive it, unless an earlier send created one with this key.

        ``admitted`` gets the run, or the error.
        """
        run = driver.run
        try:
            outcome = await self._create(run, send)
        except Exception as error:  # noqa: BLE001  the sender raises it
            # If the store's answer was lost, the run may exist all the same.
            driver.given_up = isinstance(error, StoreUnavailableError)
            settle(admitted, None, error)
        else:
            settle(admitted, outcome.run, None)
            if isinstance(outcome, RunCreated):
                driver.record.run = outcome.run  # with its approval answers completed
                driver.admitted = True
                driver.context = outcome.context
                await driver.drive()

    async def _create(self, run: Run, send: Send) -> RunCreated | RunKnown:
        """Create the run. An unconfirmed commit is resolved by inserting the same id again.

        If the store does not answer that either, the run may still appear later. It has no driver
        then, and the audit ends it.
        """
        key = request_key(send.messages, send.thread, send.place)
        otids = [message.otid for message in run.input if message.otid]
        create = partial(
            self._records.runs.create,
            run.tenant,
            run,
            key,
            otids,
            digest=send.digest,
            opening=send.opening,
        )
        try:
            return await create()
        except CommitUnknownError:
            logger.warning("commit of a send not confirmed", run_id=run.id)
            return await until_available(self._clock, partial(create, repeated=True))
