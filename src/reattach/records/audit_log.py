"""The audit log: who changed or gave away something, and when.

An entry is written in the transaction of its act, so that neither exists without the other.
"""

import builtins
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, delete, insert, select

from reattach.domain.errors import NotFoundError
from reattach.domain.ids import TenantId, new_uuid
from reattach.domain.limits import MAX_AUDIT_ENTRIES
from reattach.records.base import Actor
from reattach.records.database import schema
from reattach.records.repository import Repository

_SWEEP_ROWS: Final = 1000

_log, _keys = schema.audit_log, schema.api_keys


class Action(StrEnum):
    """The acts in the audit log."""

    KEY_CREATED = "key.created"
    KEY_REVOKED = "key.revoked"
    TOKEN_ISSUED = "token.issued"  # noqa: S105  no password
    TOKEN_REVOKED = "token.revoked"  # noqa: S105
    SIGNING_KEY_ROTATED = "signing_key.rotated"
    CALLBACK_SECRET_ROTATED = "callback_secret.rotated"  # noqa: S105
    AGENT_DELETED = "agent.deleted"
    CONVERSATION_DELETED = "conversation.deleted"
    RUN_CANCELLED = "run.cancelled"
    RUN_DELETED = "run.deleted"
    TENANT_EXPORTED = "tenant.exported"
    TENANT_DELETION_BEGUN = "tenant.deletion_begun"
    TENANT_DELETED = "tenant.deleted"
    BACKUP_MADE = "backup.made"
    BACKUP_RESTORED = "backup.restored"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One act."""

    id: str
    at: datetime
    tenant: TenantId | None
    """The tenant to whom the changed thing belongs; None for one of the server."""
    actor_kind: str
    actor_id: str | None
    actor_name: str | None
    action: str
    subject: str | None
    """The id of the changed thing."""
    detail: Mapping[str, Any] = field(default_factory=dict)


_FIELDS: Final = tuple(one.name for one in fields(AuditEntry))
_ROWS: Final = select(_log.c.ordinal, *(_log.c[name] for name in _FIELDS))


def note(
    connection: Connection,
    actor: Actor | None,
    action: Action,
    at: datetime,
    *,
    tenant: TenantId | None = None,
    subject: str | None = None,
    **detail: object,
) -> None:
    """Write an entry in the transaction of the act; nothing for an act of the server itself."""
    if actor is None:
        return
    values = {
        "id": f"audit-{new_uuid()}",
        "at": at,
        "tenant": tenant,
        "actor_kind": actor.kind,
        "actor_id": actor.id,
        "actor_name": actor.name,
        "action": action.value,
        "subject": subject,
        "detail": {name: value for name, value in detail.items() if value is not None},
    }
    connection.execute(insert(_log), values)


class AuditLog(Repository):
    """The audit log of all tenants."""

    async def add(
        self,
        actor: Actor,
        action: Action,
        *,
        tenant: TenantId | None = None,
        subject: str | None = None,
        **detail: object,
    ) -> None:
        """Write an entry for an act outside the database, such as a backup."""

        def write(connection: Connection) -> None:
            now = self._clock.now()
            note(connection, actor, action, now, tenant=tenant, subject=subject, **detail)

        await self._database.in_write(write)

    async def list(
        self,
        tenant: TenantId | None,
        *,
        limit: int,
        after: str | None = None,
        shows_outsiders: bool = True,
    ) -> builtins.list[AuditEntry]:
        """List the entries of the tenant, or of all tenants and the server for None.

        The newest come first. ``after`` is the id of the entry before the page; raises
        NotFoundError if it is not among them. Without ``shows_outsiders`` actors from outside of
        the tenant, keys of other tenants and users of the command line, have no id and no name.
        """
        rows = _ROWS if tenant is None else _ROWS.where(_log.c.tenant == tenant)

        def read(connection: Connection) -> builtins.list[AuditEntry]:
            page = rows.order_by(_log.c.ordinal.desc()).limit(limit)
            if after is not None:
                last = connection.execute(rows.where(_log.c.id == after)).one_or_none()
                if last is None:
                    raise NotFoundError(
                        f"Audit log entry not found with id={after[:100]}.",
                        remedy="It may be older than the server keeps. Begin without 'after'.",
                    )
                page = page.where(_log.c.ordinal < last.ordinal)
            found = [AuditEntry(*row[1:]) for row in connection.execute(page)]
            if shows_outsiders or tenant is None:
                return found
            return _without_outsiders(connection, tenant, found)

        return await self._database.in_read(read)

    async def sweep(self, kept: timedelta) -> None:
        """Delete entries older than ``kept``, and a tenant's oldest beyond MAX_AUDIT_ENTRIES.

        The bound holds for each tenant, so that none can push out the entries of another.
        """
        before = self._clock.now() - kept
        old = select(_log.c.ordinal).where(_log.c.at < before)
        while await self._database.rows(old.limit(1)):
            await self._database.in_write(_delete, old.limit(_SWEEP_ROWS))
        for row in await self._database.rows(select(_log.c.tenant).distinct()):
            own = select(_log.c.ordinal).where(_log.c.tenant.is_not_distinct_from(row["tenant"]))
            surplus = own.order_by(_log.c.ordinal.desc()).offset(MAX_AUDIT_ENTRIES)
            while await self._database.rows(surplus.limit(1)):
                await self._database.in_write(_delete, surplus.limit(_SWEEP_ROWS))


def _without_outsiders(
    connection: Connection, tenant: TenantId, entries: list[AuditEntry]
) -> list[AuditEntry]:
    """Return the entries without the names and ids of actors who are not of the tenant."""
    own = own_actors(connection, tenant, {(one.actor_kind, one.actor_id) for one in entries})
    return [
        entry
        if (entry.actor_kind, entry.actor_id) in own
        else replace(entry, actor_id=None, actor_name=None)
        for entry in entries
    ]


def own_actors(
    connection: Connection, tenant: TenantId, actors: Set[tuple[str, str | None]]
) -> Set[tuple[str, str | None]]:
    """Return those of the actors, each a kind and an id, who are of the tenant.

    The others are keys of other tenants and users of the command line; the tenant may know neither
    their ids nor their names.
    """
    keys = {actor_id for kind, actor_id in actors if kind == "key"}
    of_tenant = select(_keys.c.id).where(_keys.c.tenant == tenant, _keys.c.id.in_(keys))
    own = {*connection.scalars(of_tenant)} if keys else set()
    return {
        (kind, actor_id)
        for kind, actor_id in actors
        if kind in {"token", "open"} or actor_id in own
    }


def _delete(connection: Connection, ordinals: Any) -> None:
    found = connection.scalars(ordinals).all()
    connection.execute(delete(_log).where(_log.c.ordinal.in_(found)))
