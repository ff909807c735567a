"""Places for calls, so that receivers that hang delay nobody else's.

Every tenant has places of its own, and within them every host. A host that gave no answer several
times in a row is left alone for a while; then one call tries it, and the others follow only after
an answer.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from reattach.domain.clock import Clock
from reattach.domain.ids import TenantId
from reattach.domain.limits import CALLBACK_MAX_RETRY_SECONDS, CALLBACKS_AT_ONCE
from reattach.outbound.limits import (
    CALLBACK_BREAKER_FAILURES,
    CALLBACK_BREAKER_SECONDS,
    CALLBACK_BREAKERS,
    CALLBACKS_PER_RECEIVER,
    CALLBACKS_PER_TENANT,
)
from reattach.records.callbacks import Receiver, Room


@dataclass(slots=True)
class _Breaker:
    """Silence of one receiver: calls in a row that it did not answer."""

    failures: int = 0
    closed_until: float = 0.0
    """On the monotonic clock, in seconds."""

    @property
    def is_tripped(self) -> bool:
        return self.failures >= CALLBACK_BREAKER_FAILURES


class CallbackSlots:
    """The calls of a process that are under way, and the receivers that are left alone."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_tenant: Counter[TenantId] = Counter()
        self._by_receiver: Counter[Receiver] = Counter()
        self._breakers: OrderedDict[Receiver, _Breaker] = OrderedDict()

    def room(self) -> Room:
        """Return the room that is left."""
        full = [
            tenant for tenant, calls in self._by_tenant.items() if calls >= CALLBACKS_PER_TENANT
        ]
        return Room(
            CALLBACKS_AT_ONCE - self._by_tenant.total(), full, self._closed_receivers(), self.take
        )

    def take(self, receiver: Receiver) -> bool:
        """Take a place for a call; False if the tenant or the receiver has none left."""
        if self._by_tenant[receiver.tenant] >= CALLBACKS_PER_TENANT or self._by_receiver[
            receiver
        ] >= self._places_of(receiver):
            return False
        self._by_tenant[receiver.tenant] += 1
        self._by_receiver[receiver] += 1
        return True

    def give_back(self, receiver: Receiver) -> None:
        """Give back the place of a call that is over."""
        self._by_tenant[receiver.tenant] -= 1
        self._by_receiver[receiver] -= 1
        # Counters keep zeros.
        self._by_tenant += Counter()
        self._by_receiver += Counter()

    def note(self, receiver: Receiver, *, has_answered: bool) -> None:
        """Remember whether the receiver answered, whatever it said."""
        if has_answered:
            self._breakers.pop(receiver, None)
            return
        breaker = self._breakers.setdefault(receiver, _Breaker())
        self._breakers.move_to_end(receiver)
        breaker.failures += 1
        if breaker.is_tripped:
            times = min(breaker.failures - CALLBACK_BREAKER_FAILURES, 10)
            wait_seconds = min(CALLBACK_BREAKER_SECONDS * 2**times, CALLBACK_MAX_RETRY_SECONDS)
            breaker.closed_until = self._clock.monotonic_seconds() + wait_seconds
        if len(self._breakers) > CALLBACK_BREAKERS:
            self._breakers.popitem(last=False)

    def _places_of(self, receiver: Receiver) -> int:
        breaker = self._breakers.get(receiver)
        if breaker is None or not breaker.is_tripped:
            return CALLBACKS_PER_RECEIVER
        return 1 if breaker.closed_until <= self._clock.monotonic_seconds() else 0

    def _closed_receivers(self) -> Collection[Receiver]:
        known = self._by_receiver.keys() | self._breakers.keys()
        return [one for one in known if self._by_receiver[one] >= self._places_of(one)]
