"""Who is asking: ``Authorization: Bearer <key>``, looked up before anything else is done.

The other ways of the retired server, a shared password in ``X-BARE-PASSWORD`` and a ``user_id``
header that nobody checks, are not offered.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Final, Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from reattach.clock import Clock
from reattach.errors import ReattachError, UnauthorizedError
from reattach.http.errors import error_response
from reattach.http.loopback import refuse_others
from reattach.ids import DEFAULT_TENANT, TenantId
from reattach.limits import KEY_CACHE_ENTRIES, KEY_CACHE_SECONDS, MAX_API_KEY_CHARS
from reattach.records.base import ApiKey
from reattach.single_flight import SingleFlight

OPEN_PATHS: Final = frozenset(
    {"/v1/health", "/v1/health/", "/v1/ready", "/v1/ready/", "/openapi.json"}
)
"""What is answered without a key."""


class Keys(Protocol):
    """Where API keys are looked up."""

    async def find(self, secret: str) -> ApiKey | None:
        """Find a key by its secret, unless there is none or it was revoked."""

    async def any(self) -> bool:
        """Whether there is any key."""


class Authenticator:
    """Finds the tenant behind a header.

    A look-up is remembered for KEY_CACHE_SECONDS: a new key works, and a revoked one stops
    working, within that time. Those who ask while it goes on wait for the same one. Keys are
    remembered and compared by their digests, so neither the memory nor the time that an answer
    takes tells one.

    A server on which no key was ever made is open, to the default tenant, if ``may_be_open``. It
    closes within KEY_CACHE_SECONDS of its first key, and stays closed from then on. While it is
    open it answers only to requests that come from its own machine directly, or, if it is
    ``open_to_all``, to every request.
    """

    def __init__(
        self, keys: Keys, clock: Clock, *, may_be_open: bool, open_to_all: bool = False
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._may_be_open = may_be_open or open_to_all
        self._open_to_all = open_to_all
        self._open_until = 0.0
        self._known = _Remembered()
        self._unknown = _Remembered()  # apart, so that guesses do not drive the known ones out
        self._openings = SingleFlight[None, bool]("key look-up")
        self._look_ups = SingleFlight[bytes, TenantId | None]("key look-up")

    async def tenant(self, scope: Scope, headers: Mapping[bytes, bytes]) -> TenantId:
        """The tenant. Raises UnauthorizedError, MisdirectedError, StoreUnavailableError."""
        if await self._is_open():
            if not self._open_to_all:
                refuse_others(scope, headers)
            return DEFAULT_TENANT
        authorization = headers.get(b"authorization", b"").decode("latin-1")
        scheme, _, secret = authorization.partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret or len(secret) > MAX_API_KEY_CHARS:
            raise UnauthorizedError
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
        now = self._clock.monotonic_seconds()
        known = self._known.get(digest, now)
        if known is not None:
            return known
        if self._unknown.get(digest, now) is not None:
            raise UnauthorizedError
        tenant = await self._look_ups.do(digest, partial(self._look_up, digest, secret, now))
        if tenant is None:
            raise UnauthorizedError
        return tenant

    async def _look_up(self, digest: bytes, secret: str, now: float) -> TenantId | None:
        key = await self._keys.find(secret)
        if key is None:
            self._unknown.put(digest, DEFAULT_TENANT, now + KEY_CACHE_SECONDS)
            return None
        self._known.put(digest, key.tenant, now + KEY_CACHE_SECONDS)
        return key.tenant

    async def _is_open(self) -> bool:
        if not self._may_be_open:
            return False
        now = self._clock.monotonic_seconds()
        if now < self._open_until:
            return True
        return await self._openings.do(None, partial(self._look_whether_open, now))

    async def _look_whether_open(self, now: float) -> bool:
        if await self._keys.any():
            self._may_be_open = False
            return False
        self._open_until = now + KEY_CACHE_SECONDS
        return True


class _Remembered:
    """Look-ups that hold until a time, the oldest of which go first when there are too many."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, tuple[TenantId, float]] = OrderedDict()

    def get(self, digest: bytes, now: float) -> TenantId | None:
        tenant, until = self._entries.get(digest, (None, 0.0))
        return tenant if now < until else None

    def put(self, digest: bytes, tenant: TenantId, until: float) -> None:
        self._entries[digest] = (tenant, until)
        self._entries.move_to_end(digest)
        if len(self._entries) > KEY_CACHE_ENTRIES:
            self._entries.popitem(last=False)


class Authentication:
    """ASGI middleware: a request without a tenant goes no further than this."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _path(scope) in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            tenant = await self._authenticator.tenant(scope, dict(scope["headers"]))
        except ReattachError as error:
            await error_response(error)(scope, receive, send)
            return
        scope["reattach.tenant"] = tenant
        await self._app(scope, receive, send)


def _path(scope: Scope) -> str:
    """The path below where the application is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
