"""API keys. Only their digests are kept, so a stolen database opens no server."""

import builtins
import hashlib
import secrets
from collections.abc import Collection, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, insert, or_, select, update

from reattach.domain.clock import Clock
from reattach.domain.errors import NotFoundError
from reattach.domain.ids import TenantId, new_uuid
from reattach.records.base import ALL_SCOPES, ApiKey, KeyScope
from reattach.records.database import schema
from reattach.records.database.database import Database
from reattach.records.database.prepared import PreparedQuery

_SECRET_BYTES: Final = 32
_PREFIX_CHARACTERS: Final = 8
_IDS_AT_ONCE: Final = 500
_FIELDS: Final = tuple(field.name for field in fields(ApiKey))

_keys = schema.api_keys
_ALL: Final = select(*(_keys.c[name] for name in _FIELDS))
_BY_SECRET: Final = PreparedQuery(
    _ALL.where(_keys.c.secret_sha256 == bindparam("digest"), _keys.c.revoked_at.is_(None))
)
_ANY: Final = PreparedQuery(select(_keys.c.id).limit(1))


class Keys:
    """The API keys of all tenants."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def create(
        self,
        tenant: TenantId,
        name: str,
        *,
        scopes: Collection[KeyScope] = ALL_SCOPES,
        expires_at: datetime | None = None,
    ) -> tuple[ApiKey, str]:
        """Make a key, and return it with its secret, which nobody can read again."""
        secret = f"rk_{secrets.token_urlsafe(_SECRET_BYTES)}"
        key = ApiKey(
            id=f"key-{new_uuid()}",
            tenant=tenant,
            name=name,
            prefix=secret[:_PREFIX_CHARACTERS],
            created_at=self._clock.now(),
            expires_at=expires_at,
            scope_names=None if set(scopes) == ALL_SCOPES else tuple(sorted(scopes)),
        )
        values = {field: getattr(key, field) for field in _FIELDS}
        async with self._database.write() as connection:
            await connection.execute(
                insert(schema.api_keys), {"secret_sha256": _digest(secret), **values}
            )
        return key, secret

    async def list(self, tenant: TenantId | None) -> builtins.list[ApiKey]:
        """The keys of the tenant, or of all for None, revoked ones included, the oldest first."""
        rows = _ALL.order_by(_keys.c.ordinal)
        if tenant is not None:
            rows = rows.where(_keys.c.tenant == tenant)
        async with self._database.read() as connection:
            return [ApiKey(*row) for row in await connection.execute(rows)]

    async def revoke(self, key_id: str) -> None:
        """Let the key open nothing from now on. The time of the first revocation stays.

        Raises NotFoundError for an unknown key.
        """
        table = schema.api_keys
        async with self._database.write() as connection:
            if await connection.scalar(select(table.c.id).where(table.c.id == key_id)) is None:
                raise NotFoundError(f"API key not found with id={key_id}")
            await connection.execute(
                update(table)
                .where(table.c.id == key_id, table.c.revoked_at.is_(None))
                .values(revoked_at=self._clock.now())
            )

    async def find(self, secret: str) -> ApiKey | None:
        """The key of the secret; None if there is none, it was revoked, or it has expired."""
        for row in await self._database.run_prepared(_BY_SECRET, digest=_digest(secret)):
            key = ApiKey(*row)
            if key.expires_at is None or self._clock.now() < key.expires_at:
                return key
        return None

    async def valid(self, key_ids: Sequence[str]) -> frozenset[str]:
        """Which of the keys are neither revoked nor expired; for many at once."""
        found: set[str] = set()
        async with self._database.read() as connection:
            for start in range(0, len(key_ids), _IDS_AT_ONCE):
                rows = select(_keys.c.id).where(
                    _keys.c.id.in_(key_ids[start : start + _IDS_AT_ONCE]),
                    _keys.c.revoked_at.is_(None),
                    or_(_keys.c.expires_at.is_(None), _keys.c.expires_at > self._clock.now()),
                )
                found.update(await connection.scalars(rows))
        return frozenset(found)

    async def any(self) -> bool:
        """Whether a key was ever made: a server whose last key was revoked does not open."""
        return bool(await self._database.run_prepared(_ANY))

    async def mark_used(self, key_ids: Sequence[str], at: datetime) -> None:
        """Remember the last use of the keys; for many at once, since each call is a write."""
        table = schema.api_keys
        async with self._database.write() as connection:
            await connection.execute(
                update(table).where(table.c.id.in_(key_ids)).values(last_used_at=at)
            )


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
