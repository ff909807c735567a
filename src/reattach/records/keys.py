"""API keys. Only their digests are stored, so a stolen database gives access to no server."""

import builtins
import hashlib
import secrets
from collections.abc import Collection, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, and_, bindparam, insert, or_, select, update

from reattach.domain.errors import NotFoundError
from reattach.domain.ids import TenantId, new_uuid
from reattach.records.audit_log import Action, note
from reattach.records.base import ALL_SCOPES, Actor, ApiKey, KeyScope
from reattach.records.database import schema
from reattach.records.database.prepared import PreparedStatement
from reattach.records.repository import Repository, execute
from reattach.records.tokens.tokens import revoke_of_key

_SECRET_BYTES: Final = 32
_PREFIX_CHARACTERS: Final = 8
_IDS_AT_ONCE: Final = 500
_FIELDS: Final = tuple(field.name for field in fields(ApiKey))

_keys = schema.api_keys
_ALL: Final = select(*(_keys.c[name] for name in _FIELDS))
_BY_SECRET: Final = PreparedStatement(
    _ALL.where(_keys.c.secret_sha256 == bindparam("digest"), _keys.c.revoked_at.is_(None))
)
_ANY: Final = PreparedStatement(select(_keys.c.id).limit(1))


class Keys(Repository):
    """The API keys of all tenants."""

    async def create(
        self,
        tenant: TenantId,
        name: str,
        *,
        scopes: Collection[KeyScope] = ALL_SCOPES,
        expires_at: datetime | None = None,
        by: Actor | None = None,
    ) -> tuple[ApiKey, str]:
        """Create a key and return it with its secret, which cannot be read again."""
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
        row = {"secret_sha256": _digest(secret), **values}

        def write(connection: Connection) -> None:
            connection.execute(insert(schema.api_keys).values(row))
            expiry = None if expires_at is None else expires_at.isoformat()
            note(
                connection,
                by,
                Action.KEY_CREATED,
                key.created_at,
                tenant=tenant,
                subject=key.id,
                name=name,
                scopes=sorted(key.scopes),
                expires_at=expiry,
            )

        await self._database.in_write(write)
        return key, secret

    async def list(self, tenant: TenantId | None) -> builtins.list[ApiKey]:
        """List the keys of the tenant, or of all tenants for None, oldest first."""
        rows = _ALL.order_by(_keys.c.ordinal)
        if tenant is not None:
            rows = rows.where(_keys.c.tenant == tenant)
        return [ApiKey(*row.values()) for row in await self._database.rows(rows)]

    async def page(
        self, tenant: TenantId | None, *, limit: int, after: str | None = None
    ) -> builtins.list[ApiKey]:
        """List keys of the tenant, or of all tenants for None, newest first.

        ``after`` is the id of the key before the page; raises NotFoundError for an unknown one.
        """
        rows = _ALL if tenant is None else _ALL.where(_keys.c.tenant == tenant)

        def read(connection: Connection) -> builtins.list[ApiKey]:
            page = rows.order_by(_keys.c.ordinal.desc()).limit(limit)
            if after is not None:
                before = rows.with_only_columns(_keys.c.ordinal).where(_keys.c.id == after)
                ordinal = connection.scalar(before)
                if ordinal is None:
                    raise _unknown(after)
                page = page.where(_keys.c.ordinal < ordinal)
            return [ApiKey(*row) for row in connection.execute(page)]

        return await self._database.in_read(read)

    async def get(self, tenant: TenantId | None, key_id: str) -> ApiKey:
        """Return the key of the tenant, or of any tenant for None. Raises NotFoundError."""
        rows = _ALL.where(_keys.c.id == key_id)
        if tenant is not None:
            rows = rows.where(_keys.c.tenant == tenant)
        for row in await self._database.rows(rows):
            return ApiKey(*row.values())
        raise _unknown(key_id)

    async def revoke(
        self, key_id: str, *, tenant: TenantId | None = None, by: Actor | None = None
    ) -> None:
        """Make the key and the tokens that it issued invalid from now on.

        The time of the first revocation stays. Raises NotFoundError for an unknown key, and for one
        of another tenant than ``tenant`` unless that is None.
        """
        now = self._clock.now()
        known = select(_keys.c.tenant, _keys.c.name).where(_keys.c.id == key_id)
        if tenant is not None:
            known = known.where(_keys.c.tenant == tenant)
        revocation = (
            update(_keys)
            .where(_keys.c.id == key_id, _keys.c.revoked_at.is_(None))
            .values(revoked_at=now)
        )

        def write(connection: Connection) -> None:
            found = connection.execute(known).one_or_none()
            if found is None:
                raise _unknown(key_id)
            owner, name = found
            if connection.execute(revocation).rowcount:
                note(
                    connection,
                    by,
                    Action.KEY_REVOKED,
                    now,
                    tenant=owner,
                    subject=key_id,
                    name=name,
                )
            revoke_of_key(connection, key_id, now)

        await self._database.in_write(write)

    async def find(self, secret: str) -> ApiKey | None:
        """Return the key of the secret; None if it is unknown, revoked or expired."""
        for row in await self._database.run_prepared(_BY_SECRET, digest=_digest(secret)):
            key = ApiKey(*row)
            if key.expires_at is None or self._clock.now() < key.expires_at:
                return key
        return None

    async def filter_valid(self, key_ids: Sequence[str]) -> frozenset[str]:
        """Return those of the keys that are neither revoked nor expired; for many at once."""
        is_valid = and_(
            _keys.c.revoked_at.is_(None),
            or_(_keys.c.expires_at.is_(None), _keys.c.expires_at > self._clock.now()),
        )

        def read(connection: Connection) -> frozenset[str]:
            found: set[str] = set()
            for start in range(0, len(key_ids), _IDS_AT_ONCE):
                some = _keys.c.id.in_(key_ids[start : start + _IDS_AT_ONCE])
                found.update(connection.scalars(select(_keys.c.id).where(some, is_valid)))
            return frozenset(found)

        return await self._database.in_read(read)

    async def exist(self) -> bool:
        """Whether a key was ever created: revoking the last key must not open the server."""
        return bool(await self._database.run_prepared(_ANY))

    async def mark_used(self, key_ids: Sequence[str], at: datetime) -> None:
        """Record the last use of the keys; for many at once, because each call is a write."""
        used = update(_keys).where(_keys.c.id.in_(key_ids)).values(last_used_at=at)
        await self._database.in_write(execute, used)


def _unknown(key_id: str) -> NotFoundError:
    return NotFoundError(
        f"API key not found with id={key_id[:100]}.",
        remedy="`reattach keys list`, with the same settings, shows the ids.",
    )


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
