"""Rights of a request, and the streams that end when its key is revoked or expires."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

import structlog
from typing_extensions import override

from reattach.domain.clock import Clock
from reattach.domain.errors import (
    ForbiddenError,
    QuotaError,
    ReattachError,
    TokenForbiddenError,
    UnauthorizedError,
)
from reattach.domain.ids import DEFAULT_TENANT, TenantId
from reattach.domain.stream_tokens import Claims, TokenScope, kid_of
from reattach.http.middleware.quotas import Quotas
from reattach.http.middleware.scopes import OF_TOKENS, is_operating
from reattach.http.middleware.tokens import StreamTokens
from reattach.records.base import Actor, ApiKey, KeyScope
from reattach.records.keys import Keys

logger = structlog.get_logger(__name__)

_T = TypeVar("_T")

ACCESS = "reattach.access"
"""Key of the ASGI scope under which the authentication stores the ``Access`` of the request."""


EVERY_SCOPE: Final = frozenset(KeyScope)
"""The scopes of a request to a server that requires no key."""


class Access:
    """The rights of one key in this process, and the streams and waits that are open with it."""

    __slots__ = (
        "_ends",
        "_watch",
        "expires_at",
        "is_over",
        "key_id",
        "key_name",
        "scopes",
        "tenant",
        "use",
    )

    claims: Claims | None = None
    """The limits of a stream token; None: the access of a key."""

    def __init__(self, watch: "AccessWatch", quotas: Quotas, key: ApiKey | None) -> None:
        self._watch = watch
        self._ends: set[Callable[[], object]] = set()
        self.is_over = False
        """The key was revoked or has expired."""
        self.key_id = None if key is None else key.id
        """None while the server requires no key."""
        self.key_name = None if key is None else key.name
        self.tenant: TenantId = DEFAULT_TENANT if key is None else key.tenant
        self.use = quotas.of(self.tenant)
        self.scopes = EVERY_SCOPE if key is None else key.scopes
        self.expires_at: datetime | None = None if key is None else key.expires_at

    @property
    def is_used(self) -> bool:
        """Whether streams or waits are open with the key."""
        return bool(self._ends)

    @property
    def actor(self) -> Actor:
        """The holder of the key, for the audit log."""
        if self.key_id is None:
            return Actor("open")
        return Actor("key", self.key_id, self.key_name)

    def require(self, scope: KeyScope) -> None:
        """Raises ForbiddenError if the key lacks the scope."""
        if scope not in self.scopes:
            raise self.lacks(scope)

    def lacks(self, scope: KeyScope) -> ForbiddenError:
        """Return the error for a request that needs a scope which the key lacks."""
        return ForbiddenError(scope, sorted(self.scopes), self.tenant)

    async def require_operation(
        self,
        operation_id: str | None,
        scope: KeyScope,
        path: Mapping[str, object],  # noqa: ARG002
    ) -> None:
        """Check an operation that needs a key with ``scope``, and what its path names.

        Raises ForbiddenError.
        """
        if not (self.is_operator and is_operating(operation_id)):
            self.require(scope)

    @property
    def is_operator(self) -> bool:
        """Whether it reaches beyond its tenant."""
        return KeyScope.OPERATOR in self.scopes

    def tenant_filter(self, wanted: TenantId | None = None) -> TenantId | None:
        """Return the tenant to whose objects an operator's request is limited; None: no limit.

        ``wanted`` is the tenant that the request names, if any.

        Raises:
            ForbiddenError: It is another tenant, and the key reaches only its own.
        """
        if not self.is_operator and wanted not in (None, self.tenant):
            raise self.lacks(KeyScope.OPERATOR)
        return wanted if self.is_operator else self.tenant

    @property
    def shows_system_messages(self) -> bool:
        """Whether its holder may read prompts: the application's, not those of its users."""
        return self.claims is None

    async def covers(self, run_id: str) -> bool:  # noqa: ARG002
        """Return whether the run, if it exists for the tenant, may be used."""
        return True

    async def require_runs(self, run_ids: Sequence[str]) -> None:
        """Raises TokenForbiddenError, whether or not such runs exist, if it does not cover them."""

    def add(self, end: Callable[[], object]) -> None:
        """Call ``end`` once when the key becomes invalid, unless it is discarded before."""
        if self.is_over:
            end()
            return
        self._ends.add(end)
        self._watch.watch(self)

    def discard(self, end: Callable[[], object]) -> None:
        self._ends.discard(end)

    def end(self) -> None:
        """Mark the key as invalid and end everything that is open with it."""
        self.is_over = True
        ends, self._ends = self._ends, set()
        for end in ends:
            end()

    async def during(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Await ``work``, count it as a stream, and cancel it when the key becomes invalid.

        Raises UnauthorizedError in that case, and QuotaError.
        """
        try:
            self.use.open_stream()
        except QuotaError:
            self.use.note_refused_stream()
            work.close()
            raise
        task = asyncio.ensure_future(work)
        self.add(task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            if self.is_over and not asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise UnauthorizedError from None
            raise
        finally:
            self.discard(task.cancel)
            self.use.close_stream()


class TokenAccess(Access):
    """The rights of one stream token: on one run, or on one conversation and its runs."""

    __slots__ = ("_covered", "_tokens", "claims", "kid")

    def __init__(
        self,
        watch: "AccessWatch",
        quotas: Quotas,
        token: str,
        claims: Claims,
        tokens: StreamTokens,
    ) -> None:
        super().__init__(watch, quotas, None)
        self._tokens = tokens
        self._covered: set[str] = set()
        self.claims: Claims = claims
        self.kid = kid_of(token) or ""
        self.key_id = claims.id
        self.tenant = claims.tenant
        self.use = quotas.of(claims.tenant)
        self.scopes = frozenset()
        self.expires_at = claims.expires_at

    @property
    @override
    def actor(self) -> Actor:
        return Actor("token", self.claims.id)

    @override
    def require(self, scope: KeyScope) -> None:
        raise _closed()

    @override
    async def require_operation(
        self, operation_id: str | None, scope: KeyScope, path: Mapping[str, object]
    ) -> None:
        needed = OF_TOKENS.get(operation_id or "")
        if needed is None:
            raise _closed()
        if needed not in self.claims.scopes:
            raise TokenForbiddenError(
                f"This request needs the scope '{needed}', and the stream token has only: "
                f"{', '.join(self.claims.scopes)}.",
                remedy="Ask your application for a token with that scope.",
                missing_scope=needed,
            )
        if "run_id" in path:
            await self.require_runs([str(path["run_id"])])
        elif "conversation_id" in path and path["conversation_id"] != self.claims.conversation_id:
            raise self._outside()

    @override
    async def covers(self, run_id: str) -> bool:
        claims = self.claims
        if run_id == claims.run_id or run_id in self._covered:
            return True
        if claims.conversation_id is None:
            return False
        if await self._tokens.conversation_of(claims.tenant, run_id) != claims.conversation_id:
            return False
        self._covered.add(run_id)  # A run stays in its conversation.
        return True

    @override
    async def require_runs(self, run_ids: Sequence[str]) -> None:
        for run_id in run_ids:
            if not await self.covers(run_id):
                raise self._outside()

    @property
    def is_valid(self) -> bool:
        """Whether it is neither revoked nor expired, by the last look at the records."""
        return self._tokens.is_valid(self.claims, self.kid)

    def note_use(self) -> None:
        """Count a request with the token."""
        self._tokens.note_use(self.claims.id)

    def _outside(self) -> TokenForbiddenError:
        subject = self.claims.run_id or self.claims.conversation_id
        return TokenForbiddenError(f"This stream token is only for {subject}.")


def _closed() -> TokenForbiddenError:
    scopes = ", ".join(TokenScope)
    return TokenForbiddenError(
        f"A stream token does not open this route, whatever its scopes are ({scopes}).",
        remedy="Use an API key, on your own server.",
    )


class AccessWatch:
    """Finds keys and tokens that became invalid while streams are open with them.

    Other processes can revoke keys, so the records are queried every ``interval_seconds``: one
    statement for all keys in use here and one for all tokens, and none if none is in use.
    """

    def __init__(
        self, keys: Keys, tokens: StreamTokens | None, clock: Clock, interval_seconds: float
    ) -> None:
        self._keys = keys
        self._tokens = tokens
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._used: dict[str | None, Access] = {}
        self._task: asyncio.Task[None] | None = None

    def used(self, key_id: str) -> Access | None:
        """Return the access of a key that is in use here."""
        access = self._used.get(key_id)
        return None if access is None or access.is_over else access

    def watch(self, access: Access) -> None:
        self._used[access.key_id] = access
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep_looking(), name="watch keys")

    async def _keep_looking(self) -> None:
        while self._used:
            await self._clock.sleep(self._interval_seconds)
            self._used = {key: access for key, access in self._used.items() if access.is_used}
            try:
                await self._look()
            except ReattachError as error:  # The next interval checks again.
                logger.warning("cannot check the keys of open streams", reason=error.detail)

    async def _look(self) -> None:
        used = list(self._used.values())
        tokens = [access for access in used if isinstance(access, TokenAccess)]
        others = [access for access in used if access.claims is None]
        if tokens and self._tokens is not None:
            await self._tokens.refresh()
        key_ids = [access.key_id for access in others if access.key_id is not None]
        valid = await self._keys.filter_valid(key_ids) if key_ids else frozenset()
        open_to_all = len(key_ids) < len(others) and not await self._keys.exist()
        for access in others:
            if access.key_id in valid or (access.key_id is None and open_to_all):
                continue
            self._end(access)
        for token in tokens:
            if not token.is_valid:
                self._end(token)

    def _end(self, access: Access) -> None:
        self._used.pop(access.key_id, None)
        logger.info("key revoked or expired", key=access.key_id, tenant=access.tenant)
        access.end()
