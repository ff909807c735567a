"""Rights of a request, and the streams that end when its key is revoked or expires."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, TypeVar

import structlog

from reattach.domain.clock import Clock
from reattach.domain.errors import ForbiddenError, QuotaError, ReattachError, UnauthorizedError
from reattach.domain.ids import DEFAULT_TENANT, TenantId
from reattach.http.middleware.quotas import Quotas
from reattach.records.base import ALL_SCOPES, ApiKey, KeyScope
from reattach.records.keys import Keys

logger = structlog.get_logger(__name__)

_T = TypeVar("_T")

ACCESS = "reattach.access"
"""Key of the ASGI scope under which the authentication stores the ``Access`` of the request."""


class Access:
    """The rights of one key in this process, and the streams and waits that are open with it."""

    __slots__ = ("_ends", "_watch", "expires_at", "is_over", "key_id", "scopes", "tenant", "use")

    def __init__(self, watch: "AccessWatch", quotas: Quotas, key: ApiKey | None) -> None:
        self._watch = watch
        self._ends: set[Callable[[], object]] = set()
        self.is_over = False
        """The key was revoked or has expired."""
        self.key_id = None if key is None else key.id
        """None while the server requires no key."""
        self.tenant: TenantId = DEFAULT_TENANT if key is None else key.tenant
        self.use = quotas.of(self.tenant)
        self.scopes = ALL_SCOPES if key is None else key.scopes
        self.expires_at: datetime | None = None if key is None else key.expires_at

    @property
    def is_used(self) -> bool:
        """Whether streams or waits are open with the key."""
        return bool(self._ends)

    def require(self, scope: KeyScope) -> None:
        """Raises ForbiddenError if the key lacks the scope."""
        if scope not in self.scopes:
            raise ForbiddenError(scope, sorted(self.scopes))

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


class AccessWatch:
    """Finds keys that became invalid while streams are open with them.

    Other processes can revoke keys, so the records are queried every ``interval_seconds``: one
    statement for all keys in use here, and none if no key is in use.
    """

    def __init__(self, keys: Keys, clock: Clock, interval_seconds: float) -> None:
        self._keys = keys
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
        key_ids = [access.key_id for access in used if access.key_id is not None]
        valid = await self._keys.filter_valid(key_ids) if key_ids else frozenset()
        open_to_all = len(key_ids) < len(used) and not await self._keys.exist()
        for access in used:
            if access.key_id in valid or (access.key_id is None and open_to_all):
                continue
            self._used.pop(access.key_id, None)
            logger.info("key revoked or expired", key=access.key_id, tenant=access.tenant)
            access.end()
