"""Slots for callbacks, so that receivers that hang delay only their own tenant.

Every tenant has slots, and within them every host. A host that did not answer several callbacks
in a row is skipped for a while; then one callback probes it, and the others follow once it answers.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from reattach.domain.backoff import Backoff
from reattach.domain.clock import Clock
from reattach.domain.ids import TenantId
from reattach.domain.limits.outbound import (
    CALLBACK_BREAKER_FAILURES,
    CALLBACK_BREAKER_SECONDS,
    CALLBACK_BREAKERS,
    CALLBACK_MAX_RETRY_SECONDS,
    CALLBACKS_AT_ONCE,
    CALLBACKS_PER_RECEIVER,
    CALLBACKS_PER_TENANT,
)
from reattach.records.callbacks import Receiver, Room


@dataclass(slots=True)
class _Breaker:
    """A circuit breaker for one receiver: the callbacks in a row that it did not answer."""

    failures: int = 0
    closed_until: float = 0.0
    """On the monotonic clock, in seconds."""

    @property
    def is_tripped(self) -> bool:
        return self.failures >= CALLBACK_BREAKER_FAILURES


class CallbackSlots:
    """The callbacks in progress of a process, and the circuit breakers of receivers."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_tenant: Counter[TenantId] = Counter()
        self._by_receiver: Counter[Receiver] = Counter()
        self._breakers: OrderedDict[Receiver, _Breaker] = OrderedDict()

    def room(self) -> Room:
        """Return the free slots."""
        full = [
            tenant for tenant, taken in self._by_tenant.items() if taken >= CALLBACKS_PER_TENANT
        ]
        return Room(
            CALLBACKS_AT_ONCE - self._by_tenant.total(), full, self._closed_receivers(), self.take
        )

    def take(self, receiver: Receiver) -> bool:
        """Take a slot for a callback; return False if the tenant or the receiver has none."""
        if self._by_tenant[receiver.tenant] >= CALLBACKS_PER_TENANT or self._by_receiver[
            receiver
        ] >= self._limit_of(receiver):
            return False
        self._by_tenant[receiver.tenant] += 1
        self._by_receiver[receiver] += 1
        return True

    def give_back(self, receiver: Receiver) -> None:
        """Return the slot of a finished callback."""
        self._by_tenant[receiver.tenant] -= 1
        self._by_receiver[receiver] -= 1
        # Counters keep zeros.
        self._by_tenant += Counter()
        self._by_receiver += Counter()

    def note(self, receiver: Receiver, *, has_answered: bool) -> None:
        """Record whether the receiver answered, with any status."""
        if has_answered:
            self._breakers.pop(receiver, None)
            return
        breaker = self._breakers.setdefault(receiver, _Breaker())
        self._breakers.move_to_end(receiver)
        breaker.failures += 1
        if breaker.is_tripped:
            failures = breaker.failures - CALLBACK_BREAKER_FAILURES
            backoff = Backoff(CALLBACK_BREAKER_SECONDS, CALLBACK_MAX_RETRY_SECONDS, failures)
            breaker.closed_until = self._clock.monotonic_seconds() + backoff.seconds
        if len(self._breakers) > CALLBACK_BREAKERS:
            self._breakers.popitem(last=False)

    def _limit_of(self, receiver: Receiver) -> int:
        breaker = self._breakers.get(receiver)
        if breaker is None or not breaker.is_tripped:
            return CALLBACKS_PER_RECEIVER
        return 1 if breaker.closed_until <= self._clock.monotonic_seconds() else 0

    def _closed_receivers(self) -> Collection[Receiver]:
        known = self._by_receiver.keys() | self._breakers.keys()
        return [one for one in known if self._by_receiver[one] >= self._limit_of(one)]
