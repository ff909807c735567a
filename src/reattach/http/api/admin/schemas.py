"""Schemas of tenants, keys and the audit log."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field

from reattach.domain.ids import TENANT_PATTERN
from reattach.domain.limits.requests import MAX_ID_CHARS, MAX_NAME_CHARS
from reattach.http.schemas.fields import Answer, GivenTime, StrictBody, UtcTime, members_of
from reattach.records.audit_log import AuditEntry
from reattach.records.base import ApiKey, KeyScope

NEW_TENANT = "new"


def _one_line(name: str) -> str:
    if not name.strip() or not name.isprintable():
        raise ValueError(
            "The name is empty, or has line ends or other control characters. Give one that "
            "identifies the key, such as the application's."
        )
    return name


class QuotaUse(Answer):
    """A limit of a tenant in the process that answers."""

    name: str = Field(description="The setting without `REATTACH_QUOTA_`, in lower case.")
    used: float | None = Field(description="Null for a rate, which is not counted.")
    limit: float | None = Field(description="Null for no limit.")


class TenantUse(Answer):
    tenant: str
    agents: int
    conversations: int
    keys: int = Field(description="Keys that are neither revoked nor expired.")
    active_runs: int
    runs_last_day: int
    prompt_tokens_last_day: int
    completion_tokens_last_day: int
    last_run_at: UtcTime | None
    quotas: list[QuotaUse] = Field(
        description="Each process counts for itself; these are the counts of the one that answers."
    )


class TenantList(Answer):
    items: list[TenantUse]
    has_more: bool


class NewKey(StrictBody):
    """An API key to create."""

    name: Annotated[str, Field(max_length=MAX_NAME_CHARS), AfterValidator(_one_line)] = Field(
        description="Identifies the key, such as the name of the application."
    )
    scopes: list[KeyScope] | None = Field(
        None,
        min_length=1,
        max_length=len(KeyScope),
        fail_fast=True,
        description="None that the key of the request lacks. Default: `read`, `send`, `admin`.",
    )
    expires_at: GivenTime | None = Field(
        None, description="Default: never. A key that expires makes none that expires later."
    )
    tenant: Annotated[str, Field(pattern=TENANT_PATTERN, max_length=MAX_ID_CHARS)] | None = Field(
        None,
        description="`new` creates a tenant. Another one than that of the key needs `operator`.",
    )


class KeyState(Answer):
    """A key without its secret."""

    id: str
    name: str
    prefix: str = Field(description="The first characters of the secret.")
    tenant: str
    scopes: list[str]
    state: Literal["active", "expired", "revoked"]
    created_at: UtcTime
    expires_at: UtcTime | None
    revoked_at: UtcTime | None
    last_used_at: UtcTime | None = Field(description="Accurate to the minute.")

    @classmethod
    def of(cls, key: ApiKey, now: datetime, **more: Any) -> Self:
        state = "active"
        if key.revoked_at is not None:
            state = "revoked"
        elif key.expires_at is not None and key.expires_at <= now:
            state = "expired"
        members: dict[str, Any] = members_of(key, cls) | {"scopes": sorted(key.scopes)}
        return cls(**members, state=state, **more)


class CreatedKey(KeyState):
    secret: str = Field(description="Cannot be shown again. `Authorization: Bearer <secret>`.")


class KeyList(Answer):
    items: list[KeyState]
    has_more: bool


class AuditActor(Answer):
    kind: str = Field(
        description="`key`, `token`, `cli` for the command line, or `open` for a client of a "
        "server without keys."
    )
    id: str | None = Field(description="The id of the key or token.")
    name: str | None = Field(
        description="The name of the key, or the operating system's user of the command line."
    )


class AuditItem(Answer):
    id: str
    at: UtcTime
    tenant: str | None = Field(description="Null for an act on the server itself.")
    actor: AuditActor = Field(
        description="Without `operator`, an actor from outside of the tenant has no id and name."
    )
    action: str
    subject: str | None
    detail: dict[str, Any]

    @classmethod
    def of(cls, entry: AuditEntry) -> Self:
        actor = AuditActor(kind=entry.actor_kind, id=entry.actor_id, name=entry.actor_name)
        members: dict[str, Any] = members_of(entry, cls)
        return cls(**members, actor=actor)


class AuditPage(Answer):
    items: list[AuditItem]
    has_more: bool
