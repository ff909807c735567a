"""Issued stream tokens: which ones there are, which are revoked, and how often each was used.

A row makes no token valid, since only its signature does. It exists until the token expires.
"""

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    case,
    delete,
    exists,
    insert,
    or_,
    select,
    update,
)

from reattach.domain.errors import NotFoundError
from reattach.domain.ids import TenantId
from reattach.domain.limits import KEY_CACHE_SECONDS, MAX_STREAM_TOKEN_SECONDS
from reattach.domain.stream_tokens import new_signing_secret
from reattach.records import lookup
from reattach.records.audit_log import Action, note
from reattach.records.base import Actor, Page
from reattach.records.database import schema
from reattach.records.paging import SortOrder, page_of
from reattach.records.repository import Repository, advisory_lock, execute

_KEYS_LOCK: Final = int.from_bytes(b"rtokkey")
"""The lock of those who create signing keys."""

_SWEEP_ROWS: Final = 1000
_SIGNS_ON: Final = timedelta(seconds=2 * KEY_CACHE_SECONDS)
"""How long a process that has not seen it may sign with a retired key."""

_tokens, _keys = schema.stream_tokens, schema.signing_keys
_conversations, _runs = schema.conversations, schema.runs


@dataclass(frozen=True, slots=True)
class StreamToken:
    """An issued token, without the token itself, which is shown once."""

    id: str
    tenant: TenantId
    run_id: str | None
    conversation_id: str | None
    key_id: str | None
    """The API key that issued it; None on a server without keys."""
    scope_names: tuple[str, ...]
    origin: str | None
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None
    uses: int = 0
    """Requests with it, except those of the last seconds."""
    last_used_at: datetime | None = None


_FIELDS: Final = tuple(field.name for field in fields(StreamToken))


@dataclass(frozen=True, slots=True)
class Uses:
    """The uses of a token since they were last written."""

    count: int
    last_at: datetime


@dataclass(frozen=True, slots=True)
class Standing:
    """The facts that decide whether a signed token is valid, of all tenants."""

    secrets: tuple[str, ...]
    """The secrets that verify, of which the first one signs."""
    signs: bool
    """Whether the first one may sign."""
    revoked: frozenset[str]
    """The ids of the revoked tokens that have not expired."""


class Tokens(Repository):
    """The stream tokens of all tenants, and the keys that sign them."""

    async def add(self, token: StreamToken, *, by: Actor | None = None) -> None:
        """Record an issued token.

        Raises NotFoundError if its conversation, or that of its run, was deleted meanwhile.
        """
        values = {name: getattr(token, name) for name in _FIELDS}

        def write(connection: Connection) -> None:
            conversation_id = token.conversation_id or connection.scalar(
                select(_runs.c.conversation_id).where(_runs.c.id == token.run_id)
            )
            if conversation_id is not None:  # Locked, so that its deletion revokes this token.
                lookup.lock(connection, schema.conversations, token.tenant, conversation_id)
            execute(connection, insert(_tokens).values(values))
            note(
                connection,
                by,
                Action.TOKEN_ISSUED,
                token.created_at,
                tenant=token.tenant,
                subject=token.id,
                run_id=token.run_id,
                conversation_id=token.conversation_id,
                scopes=list(token.scope_names),
                expires_at=token.expires_at.isoformat(),
            )

        await self._database.in_write(write)

    async def list(
        self,
        tenant: TenantId,
        page: Page,
        *,
        run_id: str | None = None,
        conversation_id: str | None = None,
    ) -> builtins.list[StreamToken]:
        """List the tokens that have not expired.

        Those of a conversation include the ones of its runs. Raises NotFoundError for an unknown
        cursor.
        """
        rows = lookup.owned(_tokens, tenant).where(_tokens.c.expires_at > self._clock.now())
        if run_id is not None:
            rows = rows.where(_tokens.c.run_id == run_id)
        if conversation_id is not None:
            rows = rows.where(_within(conversation_id))
        order = SortOrder(_tokens, _tokens.c.created_at, page.ascending)
        found = await self._database.in_read(page_of, rows, tenant, page, order)
        return [StreamToken(*(row[name] for name in _FIELDS)) for row in found]

    async def revoke(self, tenant: TenantId, token_id: str, *, by: Actor | None = None) -> None:
        """Make a token invalid from now on. The time of the first revocation stays.

        Raises NotFoundError for an unknown or expired one.
        """

        def write(connection: Connection) -> None:
            if lookup.find(connection, _tokens, tenant, token_id) is None:
                raise NotFoundError(
                    f"Token not found with id={token_id[:100]}.",
                    remedy="It may have expired. GET /v1/tokens lists the others.",
                )
            now = self._clock.now()
            if _revoke(connection, now, _tokens.c.id == token_id):
                note(connection, by, Action.TOKEN_REVOKED, now, tenant=tenant, subject=token_id)

        await self._database.in_write(write)

    async def revoke_all(
        self,
        tenant: TenantId,
        *,
        run_id: str | None = None,
        conversation_id: str | None = None,
        by: Actor | None = None,
    ) -> int:
        """Make all tokens of a run, or of a conversation and its runs, invalid.

        Return how many were valid.
        """
        is_meant = (
            _tokens.c.run_id == run_id if run_id is not None else _within(conversation_id or "")
        )
        now = self._clock.now()

        def write(connection: Connection) -> int:
            count = _revoke(connection, now, _tokens.c.tenant == tenant, is_meant)
            if count:
                subject = run_id or conversation_id
                note(
                    connection,
                    by,
                    Action.TOKEN_REVOKED,
                    now,
                    tenant=tenant,
                    subject=subject,
                    count=count,
                )
            return count

        return await self._database.in_write(write)

    async def count_uses(self, uses: Mapping[str, Uses]) -> None:
        """Add the uses of tokens, by id; for many at once, because each call is a write."""
        rows = [
            {"token_id": token_id, "count": one.count, "last_at": one.last_at}
            # Ordered, so that two processes do not wait for each other.
            for token_id, one in sorted(uses.items())
        ]
        await self._database.in_write(_count_uses, rows)

    async def standing(self) -> Standing:
        """Return which keys verify and which tokens are revoked."""
        return await self._database.in_read(_standing, self._clock.now())

    async def create_first_key(self) -> None:
        """Create the key that signs, unless there is one. All processes get the same."""
        await self._database.in_write(_first_key, self._clock.now())

    async def rotate_key(self, *, at_once: bool = False, by: Actor | None = None) -> None:
        """Create a key that signs from now on.

        The others verify for the longest life of a token, or no more with ``at_once``, which makes
        all issued tokens invalid.
        """
        now = self._clock.now()

        def write(connection: Connection) -> None:
            _rotate(connection, now, at_once=at_once)
            note(connection, by, Action.SIGNING_KEY_ROTATED, now, at_once=at_once)

        await self._database.in_write(write)

    async def sweep(self) -> None:
        """Delete expired tokens, and keys that verify none. Writes only if there are some."""
        now = self._clock.now()
        while await self._database.in_read(_has_old, now):
            await self._database.in_write(_sweep, now)


def revoke_of_key(connection: Connection, key_id: str, now: datetime) -> None:
    """Revoke the tokens that an API key has issued, in the transaction that revokes the key."""
    _revoke(connection, now, _tokens.c.key_id == key_id)


def revoke_of_run(connection: Connection, run_id: str, now: datetime) -> None:
    """Revoke the tokens of a run, in the transaction that deletes it."""
    _revoke(connection, now, _tokens.c.run_id == run_id)


def revoke_of_conversation(connection: Connection, conversation_id: str, now: datetime) -> None:
    """Revoke the tokens of a conversation and its runs, in the transaction that deletes it."""
    _revoke(connection, now, _within(conversation_id))


def revoke_of_agent(connection: Connection, agent_id: str, now: datetime) -> None:
    """Revoke the tokens of all conversations and runs of an agent, before it is deleted."""
    of_agent = _conversations.c.agent_id == agent_id
    conversations = select(_conversations.c.id).where(of_agent)
    runs = select(_runs.c.id).where(_runs.c.agent_id == agent_id)
    _revoke(
        connection,
        now,
        or_(_tokens.c.conversation_id.in_(conversations), _tokens.c.run_id.in_(runs)),
    )


def _within(conversation_id: str) -> ColumnElement[bool]:
    """Return the condition that a token is for the conversation or for one of its runs."""
    runs = select(_runs.c.id).where(_runs.c.conversation_id == conversation_id)
    return or_(_tokens.c.conversation_id == conversation_id, _tokens.c.run_id.in_(runs))


def _revoke(connection: Connection, now: datetime, *which: ColumnElement[bool]) -> int:
    revocation = update(_tokens).where(*which, _tokens.c.revoked_at.is_(None))
    return connection.execute(revocation.values(revoked_at=now)).rowcount


_COUNT_USES: Final = (
    update(_tokens)
    .where(_tokens.c.id == bindparam("token_id"))
    .values(
        uses=_tokens.c.uses + bindparam("count"),
        last_used_at=case(
            (_tokens.c.last_used_at > bindparam("last_at"), _tokens.c.last_used_at),
            else_=bindparam("last_at"),
        ),
    )
)


def _count_uses(connection: Connection, rows: Sequence[Mapping[str, object]]) -> None:
    connection.execute(_COUNT_USES, rows)


def _standing(connection: Connection, now: datetime) -> Standing:
    keys = connection.execute(
        select(_keys.c.secret, _keys.c.retired_at)
        .where(or_(_keys.c.retired_at.is_(None), _keys.c.retired_at > _verifies_after(now)))
        .order_by(_keys.c.ordinal.desc())
    ).all()
    revoked = select(_tokens.c.id).where(schema.REVOKED, _tokens.c.expires_at > now)
    return Standing(
        tuple(secret for secret, _ in keys),
        bool(keys) and keys[0][1] is None,
        frozenset(connection.scalars(revoked)),
    )


def _verifies_after(now: datetime) -> datetime:
    """Return the time such that a key that was retired before it verifies nothing any more."""
    return now - timedelta(seconds=MAX_STREAM_TOKEN_SECONDS) - _SIGNS_ON


def _first_key(connection: Connection, now: datetime) -> None:
    advisory_lock(connection, _KEYS_LOCK)
    if connection.scalar(select(_keys.c.ordinal).where(_keys.c.retired_at.is_(None))) is None:
        _new_key(connection, now)


def _rotate(connection: Connection, now: datetime, *, at_once: bool) -> None:
    advisory_lock(connection, _KEYS_LOCK)
    if at_once:
        connection.execute(delete(_keys))
    else:
        present = update(_keys).where(_keys.c.retired_at.is_(None))
        connection.execute(present.values(retired_at=now))
    _new_key(connection, now)


def _new_key(connection: Connection, now: datetime) -> None:
    values = {"secret": new_signing_secret(), "created_at": now}
    connection.execute(insert(_keys), values)


def _has_old(connection: Connection, now: datetime) -> bool:
    old_token = exists().where(_tokens.c.expires_at <= now)
    old_key = exists().where(_keys.c.retired_at <= _verifies_after(now))
    return bool(connection.scalar(select(or_(old_token, old_key))))


def _sweep(connection: Connection, now: datetime) -> None:
    some = select(_tokens.c.ordinal).where(_tokens.c.expires_at <= now).limit(_SWEEP_ROWS)
    connection.execute(delete(_tokens).where(_tokens.c.ordinal.in_(some)))
    connection.execute(delete(_keys).where(_keys.c.retired_at <= _verifies_after(now)))
