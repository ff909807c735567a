"""Authentication by ``Authorization: Bearer <key or stream token>``, before anything else is done.

Pages that cannot send the header put their token into the query of the GETs for them.

The other methods of the retired server are not supported: a shared password in ``X-BARE-PASSWORD``,
and a ``user_id`` header that nobody checked.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Final, NamedTuple

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from reattach.domain.clock import Clock
from reattach.domain.errors import (
    KeyRequiredError,
    QuotaError,
    ReattachError,
    TokenExpiredError,
    UnauthorizedError,
)
from reattach.domain.limits import KEY_CACHE_ENTRIES, KEY_CACHE_SECONDS, MAX_API_KEY_CHARS
from reattach.domain.origins import origin_of
from reattach.domain.stream_tokens import is_stream_token
from reattach.http.errors import error_response
from reattach.http.middleware.access import ACCESS, Access, AccessWatch, TokenAccess
from reattach.http.middleware.key_uses import KeyUses
from reattach.http.middleware.loopback import (
    Address,
    are_both_here,
    require_direct_headers,
    require_direct_loopback,
)
from reattach.http.middleware.pages import Pages
from reattach.http.middleware.quotas import Quotas
from reattach.http.middleware.refusals import Audit
from reattach.http.middleware.tokens import StreamTokens
from reattach.http.paths import PAGE_FILES, page_resource, path_of
from reattach.records.base import ALL_SCOPES
from reattach.records.keys import Keys
from reattach.single_flight import SingleFlight

_REFUSED: Final = "reattach.refused"
"""Key of the ASGI scope that marks a request whose refusal is in the audit log."""

OPEN_PATHS: Final = frozenset(
    {
        *("/", "", "/v1/health", "/v1/health/", "/v1/ready", "/v1/ready/", "/openapi.json"),
        *PAGE_FILES,
    }
)
"""Paths that need no key."""


class Credentials(NamedTuple):
    """The facts of a request's headers by which ``known_access`` answers."""

    key_digest: bytes | None
    """None without a key."""
    is_direct: bool
    """They are those of a direct request to a loopback name, and of no page of elsewhere."""


class Authenticator:
    """Determines the tenant and the rights of a request.

    Look-ups are cached for KEY_CACHE_SECONDS, so a new key works and a revoked one stops working
    within that time. Concurrent requests share a look-up. Keys are cached and compared by digest,
    so neither the memory nor response times reveal them.

    A server on which no key was ever created is open to the default tenant if ``may_be_open``. It
    closes within KEY_CACHE_SECONDS of its first key and stays closed. While open, it accepts only
    direct requests from its own machine, those of web pages only as ``pages`` says, or all requests
    if ``open_to_all``.
    """

    def __init__(
        self,
        keys: Keys,
        clock: Clock,
        *,
        may_be_open: bool,
        open_to_all: bool = False,
        pages: Pages | None = None,
        watch_seconds: float = KEY_CACHE_SECONDS,
        quotas: Quotas | None = None,
        tokens: StreamTokens | None = None,
    ) -> None:
        self._keys = keys
        self._tokens = tokens
        self._clock = clock
        self._may_be_open = may_be_open or open_to_all
        self._open_to_all = open_to_all
        self._pages = pages or Pages(None)
        self._has_keys = False
        self._keyless_until = 0.0  # no look-up before
        self._known = _Cache()
        self._unknown = _Cache()  # separate, so that guesses evict no known keys
        self._watch = AccessWatch(keys, tokens, clock, watch_seconds)
        self._quotas = quotas or Quotas(clock=clock)
        self._keyless = Access(self._watch, self._quotas, None)
        if open_to_all:  # Those are an application's users, not its operators.
            self._keyless.scopes = ALL_SCOPES
        self._uses = KeyUses(keys, clock)
        self._audit = Audit(clock)
        self._openings = SingleFlight[None, bool]("key look-up")
        self._look_ups = SingleFlight[bytes, Access | None]("key look-up")

    async def access(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Access:
        """Return the rights of the request.

        Raises UnauthorizedError (KeyRequiredError while the server has no keys, TokenExpiredError),
        MisdirectedError, StoreUnavailableError.
        """
        is_open = self._may_be_open and await self._is_keyless()
        if is_open and not self._open_to_all:
            require_direct_loopback(scope, headers)
            self._pages.require_local(headers)
        authorization = headers.get(b"authorization", b"").decode("latin-1")
        scheme, _, secret = authorization.partition(" ")
        secret = secret.strip()
        is_bearer = scheme.lower() == "bearer"
        if self._tokens is not None:
            token = secret if is_bearer and is_stream_token(secret) else None
            if not (is_bearer and secret):
                token = self._tokens.in_query(scope)
            if token is not None:  # Even an open server gives a token no more than its rights.
                return await self._access_of_token(self._tokens, scope, headers, token)
        if is_open:
            return self._keyless
        if not is_bearer or not secret or len(secret) > MAX_API_KEY_CHARS:
            raise await self._refusal(scope, secret)
        digest = _digest_of(secret)
        now = self._clock.monotonic_seconds()
        known = self._known.get(digest, now)
        if known is not None:
            return known
        access = None
        if not self._unknown.get(digest, now):
            access = await self._look_ups.do(digest, partial(self._look_up, digest, secret, now))
        if access is None:
            raise await self._refusal(scope, secret)
        return access

    def credentials(self, headers: Mapping[bytes, bytes]) -> Credentials | None:
        """Return the facts of these headers, which never change; None if they have a token."""
        scheme, _, secret = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        secret = secret.strip()
        if is_stream_token(secret):
            return None
        is_key = scheme.lower() == "bearer" and 0 < len(secret) <= MAX_API_KEY_CHARS
        try:
            require_direct_headers(headers)
            self._pages.require_local(headers)
            is_direct = True
        except ReattachError:
            is_direct = False
        return Credentials(_digest_of(secret) if is_key else None, is_direct)

    def known_access(
        self, credentials: Credentials, client: Address, server: Address | None
    ) -> Access | None:
        """Return the rights of a request without a token in its query, by recent look-ups alone.

        None: ``access`` decides, with or without a look-up.
        """
        now = self._clock.monotonic_seconds()
        if self._may_be_open and not self._has_keys:
            is_here = self._open_to_all or (credentials.is_direct and are_both_here(client, server))
            return self._keyless if is_here and now < self._keyless_until else None
        digest = credentials.key_digest
        return None if digest is None else self._known.get(digest, now)

    async def is_open_to(self, scope: Scope) -> bool:
        """Return whether the request comes from this machine, and needs no key there."""
        try:
            require_direct_loopback(scope, dict(scope["headers"]))
            return self._may_be_open and await self._is_keyless()
        except ReattachError:
            return False

    async def _access_of_token(
        self, tokens: StreamTokens, scope: Scope, headers: Mapping[bytes, bytes], token: str
    ) -> Access:
        claims = await tokens.verify(token)
        if claims is None or not _is_from(claims.origin, scope, headers):
            raise await self._refusal(scope, token)
        if self._clock.now() >= claims.expires_at:
            raise TokenExpiredError
        used = self._watch.used(claims.id)
        return used or TokenAccess(self._watch, self._quotas, token, claims, tokens)

    async def _refusal(self, scope: Scope, secret: str) -> UnauthorizedError:
        """Record a refused request and return its error."""
        if not scope.get(_REFUSED):  # The routes repeat the refusal of the fast path.
            scope[_REFUSED] = True
            self._audit.refused(scope, secret)
        if not is_stream_token(secret) and await self._is_keyless():
            return KeyRequiredError("accepts only requests with a key")
        return UnauthorizedError()

    async def _look_up(self, digest: bytes, secret: str, now: float) -> Access | None:
        key = await self._keys.find(secret)
        if key is None:
            self._unknown.put(digest, self._keyless, now + KEY_CACHE_SECONDS)
            return None
        access = self._watch.used(key.id) or Access(self._watch, self._quotas, key)
        seconds = KEY_CACHE_SECONDS
        if key.expires_at is not None:
            seconds = min(seconds, (key.expires_at - self._clock.now()).total_seconds())
        self._known.put(digest, access, now + seconds)
        self._uses.note(key.id)
        return access

    async def _is_keyless(self) -> bool:
        """Whether no key was ever created, as of KEY_CACHE_SECONDS ago."""
        if self._has_keys:
            return False
        now = self._clock.monotonic_seconds()
        if now >= self._keyless_until:
            self._has_keys = await self._openings.do(None, partial(self._look_for_keys, now))
        return not self._has_keys

    async def _look_for_keys(self, now: float) -> bool:
        if await self._keys.exist():
            return True
        self._keyless_until = now + KEY_CACHE_SECONDS
        return False


def _digest_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _is_from(origin: str | None, scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Return whether ``origin`` may have sent the request; None stands for all origins.

    Browsers name the page's origin, except in GETs of pages of the server's own origin and in those
    whose answer no page can read. Programs that are no browsers need none.
    """
    given = headers.get(b"origin")
    if origin is None or given is not None:
        return origin is None or given == origin.encode()
    site = headers.get(b"sec-fetch-site")
    if site == b"same-origin":
        return origin in _own_origins(scope, headers)
    return site is None or site == b"none"  # none: a person opened the address, and no page did.


def _own_origins(scope: Scope, headers: Mapping[bytes, bytes]) -> set[str]:
    """Return the origins that the server may have for a browser; a proxy may have ended its TLS."""
    host = headers.get(b"host", b"").decode("latin-1")
    schemes = ("https",) if scope["scheme"] == "https" else ("http", "https")
    try:
        return {origin_of(f"{scheme}://{host}") for scheme in schemes}
    except ValueError:
        return set()


class _Cache:
    """Look-ups with an expiry; the oldest are evicted when there are too many."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, tuple[Access, float]] = OrderedDict()

    def get(self, digest: bytes, now: float) -> Access | None:
        access, until = self._entries.get(digest, (None, 0.0))
        return access if now < until else None

    def put(self, digest: bytes, access: Access, until: float) -> None:
        self._entries[digest] = (access, until)
        self._entries.move_to_end(digest)
        if len(self._entries) > KEY_CACHE_ENTRIES:
            self._entries.popitem(last=False)


class Authentication:
    """ASGI middleware that rejects requests without a tenant."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or path_of(scope) in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            access = await self._authenticator.access(scope, dict(scope["headers"]))
            if ACCESS not in scope:  # Otherwise it has been counted already.
                self._admit(access)
        except TokenExpiredError as error:
            await _answer_expired(error, scope)(scope, receive, send)
            return
        except ReattachError as error:
            response = error_response(error)
            if isinstance(error, UnauthorizedError):
                response.headers["www-authenticate"] = _challenge(scope)
            await response(scope, receive, send)
            return
        if isinstance(access, TokenAccess):
            access.note_use()
        scope[ACCESS] = access
        await self._app(scope, receive, send)

    @staticmethod
    def _admit(access: Access) -> None:
        try:
            access.use.admit()
        except QuotaError:
            access.use.note_refused_request()
            raise


def _challenge(scope: Scope) -> str:
    """Return ``WWW-Authenticate``, which says whether credentials arrived (RFC 6750, section 3)."""
    given = dict(scope["headers"]).get(b"authorization")
    return "Bearer" if given is None else 'Bearer error="invalid_token"'


def _answer_expired(error: TokenExpiredError, scope: Scope) -> Response:
    """Return a 401, or for an ``EventSource`` a 204, after which it stops.

    One that has received no event reconnects without an id, so its first request gets a 204 too.
    """
    scheme = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")[0].lower()
    if scheme != b"bearer" and page_resource(scope) == "stream":
        return Response(status_code=204, headers={"cache-control": "no-store"})
    return error_response(error)
