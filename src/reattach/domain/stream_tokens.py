"""Stream tokens: rights on one run or conversation for a limited time, signed by the server.

A token is ``rt1.<kid>.<claims>.<mac>``: the id of the key that signed it, the claims as JSON in
URL-safe Base64, and an HMAC-SHA256 over everything before it. A server verifies it without a look
at its records. The algorithm belongs to the version, so a token cannot choose a weaker one.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Self

import msgspec

from reattach.domain.ids import TenantId, new_uuid
from reattach.domain.limits import MAX_STREAM_TOKEN_CHARS

PREFIX: Final = "rt1."
_PARTS: Final = 4
_KID_CHARS: Final = 8
_SECRET_BYTES: Final = 32
_SIGNING: Final = b"reattach stream token 1"
_NAMING: Final = b"reattach stream token key id"


class TokenScope(StrEnum):
    """A permission of a stream token."""

    READ = "read"
    """Follow the run or the runs of the conversation, and read their messages."""
    SEND = "send"
    """Send to the conversation."""
    CANCEL = "cancel"
    """Cancel the run, or runs of the conversation."""


class Claims(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    rename={
        "id": "n",
        "tenant": "t",
        "scopes": "s",
        "issued_at_seconds": "i",
        "expires_at_seconds": "e",
        "run_id": "r",
        "conversation_id": "c",
        "origin": "o",
        "models": "m",
        "client_tools": "f",
    },
):
    """The rights of a token. It names a run or a conversation."""

    id: str
    tenant: TenantId
    scopes: tuple[TokenScope, ...]
    issued_at_seconds: int
    """Seconds since 1970, as is ``expires_at_seconds``."""
    expires_at_seconds: int
    run_id: str | None = None
    conversation_id: str | None = None
    origin: str | None = None
    """The only origin whose pages may use it; None: those of any."""
    models: tuple[str, ...] = ()
    """Handles of models that a send may choose. Without them it gets the agent's."""
    client_tools: tuple[str, ...] = ()
    """Names of tools of the client that a send may offer."""

    @property
    def expires_at(self) -> datetime:
        return datetime.fromtimestamp(self.expires_at_seconds, UTC)

    @property
    def issued_at(self) -> datetime:
        return datetime.fromtimestamp(self.issued_at_seconds, UTC)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs tokens. Its id and its use are derived from one secret."""

    kid: str
    _derived: bytes = field(repr=False)

    @classmethod
    def of(cls, secret: str) -> Self:
        root = secret.encode()
        kid = hmac.digest(root, _NAMING, hashlib.sha256).hex()[:_KID_CHARS]
        return cls(kid, hmac.digest(root, _SIGNING, hashlib.sha256))

    def mac(self, signed: str) -> str:
        return _encode(hmac.digest(self._derived, signed.encode(), hashlib.sha256))


def new_signing_secret() -> str:
    return secrets.token_urlsafe(_SECRET_BYTES)


def new_token_id() -> str:
    return f"token-{new_uuid()}"


def is_stream_token(text: str) -> bool:
    """Return whether the text claims to be a stream token, and is not an API key."""
    return text.startswith(PREFIX)


def sign(claims: Claims, key: SigningKey) -> str:
    """Return the token for the claims."""
    signed = f"{PREFIX}{key.kid}.{_encode(msgspec.json.encode(claims))}"
    return f"{signed}.{key.mac(signed)}"


def kid_of(token: str) -> str | None:
    """Return the id of the key that the token names; None if it has not the form of a token."""
    if len(token) > MAX_STREAM_TOKEN_CHARS or not token.isascii():
        return None
    parts = token.split(".")
    return parts[1] if len(parts) == _PARTS and is_stream_token(token) else None


def verify(token: str, keys: Mapping[str, SigningKey]) -> Claims | None:
    """Return the claims of a token that one of the keys signed, by id, even if it has expired.

    Returns None for every other text, in a time that does not depend on where it is wrong.
    """
    kid = kid_of(token)
    key = None if kid is None else keys.get(kid)
    if key is None:
        return None
    signed, _, mac = token.rpartition(".")
    # Compared as text: Base64 has several texts for some bytes, and only one is the token.
    if not hmac.compare_digest(key.mac(signed), mac):
        return None
    try:
        return _decoder.decode(_decode(signed.rpartition(".")[2]))
    except (ValueError, msgspec.DecodeError):
        return None  # Signed by a version with other claims.


_decoder: Final = msgspec.json.Decoder(Claims)


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
