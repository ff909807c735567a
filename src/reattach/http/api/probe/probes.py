"""The probes of this process: at most one for each tenant, with the state of its streams."""

import asyncio
from dataclasses import dataclass, field
from typing import Final, Literal

from reattach.domain.clock import Clock
from reattach.domain.errors import ConflictError
from reattach.domain.ids import TenantId
from reattach.domain.limits.requests import MAX_PROBE_SECONDS, MAX_PROBE_STREAMS
from reattach.http.stream.body import Body

StreamEnd = Literal["finished", "broken", "client_left", "cut_off"]

_AGAIN: Final = "Begin another one."


@dataclass(slots=True)
class ProbeStream:
    """One stream of a probe, as the server sees it."""

    name: str
    began_at_seconds: float
    """By the monotonic clock of the server."""
    frames: int = 0
    """Frames that were written."""
    end: StreamEnd | None = None
    """None while it is open."""
    ended_after_seconds: float | None = None
    body: Body | None = None
    """While it is open."""
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the stream is to stop: the client left, or nobody may go on with it."""

    @property
    def client_closed(self) -> bool:
        """Whether the client has closed the connection, as far as this server can see.

        A client may close only its sending side and read on, so its stream stays open.
        """
        if self.body is not None:
            return self.body.half_closed
        return self.end == "client_left"


class Probe:
    """The streams of one examination. It ends MAX_PROBE_SECONDS after its first request."""

    def __init__(self, probe_id: str, clock: Clock) -> None:
        self.id = probe_id
        self.streams: dict[str, ProbeStream] = {}
        self._clock = clock
        self._ends_at_seconds = clock.monotonic_seconds() + MAX_PROBE_SECONDS

    @property
    def left_seconds(self) -> float:
        """Time until it ends; 0 if it has ended."""
        return max(self._ends_at_seconds - self._clock.monotonic_seconds(), 0.0)

    @property
    def is_in_use(self) -> bool:
        """Whether a client may still read one of its streams."""
        return any(one.end is None and not one.client_closed for one in self.streams.values())

    def open(self, name: str) -> ProbeStream:
        """Add a stream.

        Raises:
            ConflictError: The name is taken, or there are too many streams.
        """
        if name in self.streams:
            raise ConflictError(f"This probe already has a stream '{name}'.")
        if len(self.streams) >= MAX_PROBE_STREAMS:
            raise ConflictError(f"A probe has at most {MAX_PROBE_STREAMS} streams.", remedy=_AGAIN)
        stream = self.streams[name] = ProbeStream(name, self._clock.monotonic_seconds())
        return stream

    def close(self, stream: ProbeStream, end: StreamEnd) -> None:
        """Note how and when a stream has ended. The first call counts."""
        if stream.end is None:
            stream.end = end
            stream.body = None
            stream.ended_after_seconds = self._clock.monotonic_seconds() - stream.began_at_seconds

    def stop(self) -> None:
        """Cut off all streams that are open."""
        self._ends_at_seconds = self._clock.monotonic_seconds()
        for stream in self.streams.values():
            stream.stopped.set()


class Probes:
    """The probes that are known to this process. Other processes have their own."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._probes: dict[TenantId, Probe] = {}

    def find(self, tenant: TenantId, probe_id: str | None) -> Probe | None:
        """Return the tenant's probe if this is its id."""
        probe = self._probes.get(tenant)
        return probe if probe is not None and probe.id == probe_id else None

    def enter(self, tenant: TenantId, probe_id: str) -> Probe:
        """Return the probe, which begins with its first request.

        Raises:
            ConflictError: It has ended, or another one of the tenant has open streams.
        """
        probe = self._probes.get(tenant)
        if probe is not None and probe.id == probe_id:
            if not probe.left_seconds:
                raise ConflictError("This probe has ended.", remedy=_AGAIN)
            return probe
        if probe is not None and probe.left_seconds and probe.is_in_use:
            raise ConflictError(
                "Another probe of this tenant is running on this server.",
                remedy=f"Wait until it has ended, at most {probe.left_seconds:.0f} seconds.",
            )
        if probe is not None:
            probe.stop()
        self._forget_ended()
        probe = self._probes[tenant] = Probe(probe_id, self._clock)
        return probe

    def end(self, tenant: TenantId, probe_id: str) -> None:
        """Cut off the streams of the probe and forget it, if this process knows it."""
        probe = self.find(tenant, probe_id)
        if probe is not None:
            probe.stop()
            del self._probes[tenant]

    def _forget_ended(self) -> None:
        self._probes = {
            tenant: probe for tenant, probe in self._probes.items() if probe.left_seconds
        }
