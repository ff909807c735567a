"""Stream tokens: issued, verified, and checked against the records."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from urllib.parse import parse_qsl

import msgspec
import structlog
from starlette.types import Scope

from reattach.domain.clock import Clock
from reattach.domain.errors import LimitExceededError, ReattachError
from reattach.domain.ids import TenantId
from reattach.domain.limits import (
    KEY_CACHE_SECONDS,
    MAX_STREAM_TOKEN_CHARS,
    TOKEN_GRACE_SECONDS,
    TOKEN_USES_SECONDS,
)
from reattach.domain.stream_tokens import (
    Claims,
    SigningKey,
    is_stream_token,
    kid_of,
    new_token_id,
    sign,
    verify,
)
from reattach.http.paths import page_resource
from reattach.records.base import Actor
from reattach.records.records import Records
from reattach.records.tokens.tokens import StreamToken, Uses
from reattach.single_flight import SingleFlight

logger = structlog.get_logger(__name__)

_GRACE: Final = timedelta(seconds=TOKEN_GRACE_SECONDS)


@dataclass(frozen=True, slots=True)
class _Standing:
    keys: Mapping[str, SigningKey]
    """The keys that verify, by id."""
    signer: SigningKey | None
    revoked: frozenset[str]
    read_at_seconds: float


class StreamTokens:
    """Issues and verifies the stream tokens of all tenants.

    The keys and the revoked tokens are read together, at most once per KEY_CACHE_SECONDS, however
    many tokens are used: a signature needs no look-up. So a revoked token stops working within that
    time. ``given_keys`` replace the keys of the records; the first one signs. Without
    ``allows_query`` a token in a query is ignored.
    """

    def __init__(
        self,
        records: Records,
        clock: Clock,
        *,
        given_keys: Sequence[str] = (),
        allows_query: bool = True,
    ) -> None:
        self._records = records.tokens
        self._runs = records.runs
        self._clock = clock
        self._allows_query = allows_query
        self._given = tuple(SigningKey.of(secret) for secret in given_keys)
        self._standing: _Standing | None = None
        self._reads = SingleFlight[None, _Standing]("read token keys")
        self._uses: dict[str, Uses] = {}
        self._writer: asyncio.Task[None] | None = None

    async def issue(
        self, claims: Claims, key_id: str | None, *, by: Actor | None = None
    ) -> tuple[Claims, str]:
        """Record a token for the claims under a new id, and return its claims and itself.

        ``key_id`` is the API key that asks for it; revoking that revokes the token. ``by`` is for
        the audit log.

        Raises:
            LimitExceededError: The token is too long.
            StoreUnavailableError: It cannot be recorded.
        """
        claims = msgspec.structs.replace(claims, id=new_token_id())
        standing = await self._read_if_old()
        if standing.signer is None:
            await self._records.create_first_key()
            standing = await self._read()
        assert standing.signer is not None, "it was just created"
        token = sign(claims, standing.signer)
        if len(token) > MAX_STREAM_TOKEN_CHARS:
            raise LimitExceededError(
                f"The token would have {len(token)} characters; at most {MAX_STREAM_TOKEN_CHARS} "
                "are allowed.",
                remedy="Name fewer models and client tools.",
            )
        await self._records.add(
            StreamToken(
                id=claims.id,
                tenant=claims.tenant,
                run_id=claims.run_id,
                conversation_id=claims.conversation_id,
                key_id=key_id,
                scope_names=claims.scopes,
                origin=claims.origin,
                created_at=claims.issued_at,
                expires_at=claims.expires_at,
            ),
            by=by,
        )
        return claims, token

    async def verify(self, token: str) -> Claims | None:
        """Return the claims of a token that is valid, or was until it expired; None for others.

        Raises StoreUnavailableError.
        """
        kid = kid_of(token)
        if kid is None:
            return None
        asked_at_seconds = self._clock.monotonic_seconds()
        standing = await self._read_if_old()
        if kid not in standing.keys:  # Another process may just have created it.
            standing = await self._read()
        if kid not in standing.keys and standing.read_at_seconds < asked_at_seconds:
            standing = await self._read()
        claims = verify(token, standing.keys)
        return None if claims is None or claims.id in standing.revoked else claims

    def in_query(self, scope: Scope) -> str | None:
        """Return the token in the query of a GET that may have one there: a page opens its URL."""
        query: bytes = scope.get("query_string", b"")
        if not self._allows_query or b"token=" not in query or page_resource(scope) is None:
            return None
        pairs = parse_qsl(query.decode("latin-1"))
        return next(
            (text for name, text in pairs if name == "token" and is_stream_token(text)), None
        )

    async def conversation_of(self, tenant: TenantId, run_id: str) -> str | None:
        """Return the run's conversation; None if it has none, or if there is no such run."""
        return await self._runs.conversation_of(tenant, run_id)

    async def refresh(self) -> None:
        """Read which keys verify and which tokens are revoked. Raises StoreUnavailableError."""
        await self._read()

    def is_valid(self, claims: Claims, kid: str) -> bool:
        """Whether a verified token is valid, by the last ``refresh``.

        Streams that announce their end get TOKEN_GRACE_SECONDS more to do so.
        """
        standing, ends_at = self._standing, claims.expires_at + _GRACE
        return (
            standing is not None
            and kid in standing.keys
            and claims.id not in standing.revoked
            and self._clock.now() < ends_at
        )

    def note_use(self, token_id: str) -> None:
        """Count a request. The counts are written together, every TOKEN_USES_SECONDS."""
        now = self._clock.now()
        use = self._uses.get(token_id)
        self._uses[token_id] = Uses(1, now) if use is None else Uses(use.count + 1, now)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_uses(), name="count uses of tokens")

    async def _write_uses(self) -> None:
        while self._uses:
            await self._clock.sleep(TOKEN_USES_SECONDS)
            uses, self._uses = self._uses, {}
            try:
                await self._records.count_uses(uses)
            except ReattachError as error:  # A count is a hint, so it is not repeated.
                logger.warning("cannot count the uses of tokens", reason=error.detail)

    async def _read_if_old(self) -> _Standing:
        standing, now = self._standing, self._clock.monotonic_seconds()
        if standing is None or now - standing.read_at_seconds >= KEY_CACHE_SECONDS:
            return await self._read()
        return standing

    async def _read(self) -> _Standing:
        return await self._reads.do(None, self._read_records)

    async def _read_records(self) -> _Standing:
        read_at_seconds = self._clock.monotonic_seconds()
        found = await self._records.standing()
        keys = self._given or tuple(SigningKey.of(secret) for secret in found.secrets)
        signer = keys[0] if self._given or found.signs else None
        by_id = {key.kid: key for key in keys}
        self._standing = _Standing(by_id, signer, found.revoked, read_at_seconds)
        return self._standing
