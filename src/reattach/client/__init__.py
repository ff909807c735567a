"""A client that reconnects by itself and yields the events of a run exactly once, in order.

The official SDKs work with Reattach unmodified but leave reconnecting to their caller. ``Client``
works over asyncio, and ``SyncClient`` in the calling thread. ``reattach attach`` uses it.
"""

from reattach.client.asynchronous import Client, ManyStream, Stream
from reattach.client.calls import Snapshot
from reattach.client.errors import ClosedError, GaveUpError
from reattach.client.states import Retry, State
from reattach.client.steps import Event
from reattach.client.storage import FileStorage
from reattach.client.synchronous import SyncClient, SyncManyStream, SyncStream
from reattach.client.takeovers import Takeover
from reattach.client.tokens import Token, TokenSource
from reattach.domain.errors import (
    ConflictError,
    ExpiredError,
    NotFoundError,
    ReattachError,
    UnauthorizedError,
    UnavailableError,
)

__all__ = [
    "Client",
    "ClosedError",
    "ConflictError",
    "Event",
    "ExpiredError",
    "FileStorage",
    "GaveUpError",
    "ManyStream",
    "NotFoundError",
    "ReattachError",
    "Retry",
    "Snapshot",
    "State",
    "Stream",
    "SyncClient",
    "SyncManyStream",
    "SyncStream",
    "Takeover",
    "Token",
    "TokenSource",
    "UnauthorizedError",
    "UnavailableError",
]
