"""Routes that issue, list and revoke stream tokens."""

from datetime import timedelta
from typing import Annotated

from fastapi import Query, Response

from reattach.domain.ids import CONVERSATION_PATTERN, RUN_PATTERN, ConversationId
from reattach.domain.stream_tokens import Claims, TokenScope
from reattach.http.api.tokens.schemas import IssuedToken, RevokedTokens, TokenBody, TokenState
from reattach.http.context import AccessDep, ContextDep, StreamTokensDep, TenantDep
from reattach.http.json import Fault, invalid
from reattach.http.paging import NewestPage
from reattach.http.readable import readable_items
from reattach.http.routes import routes
from reattach.http.schemas.fields import StreamTokenPath
from reattach.records.base import KeyScope

router = routes("tokens")

RunQuery = Annotated[
    str | None, Query(pattern=RUN_PATTERN, description="Only tokens for this run.")
]
ConversationQuery = Annotated[
    str | None,
    Query(
        pattern=CONVERSATION_PATTERN, description="Only tokens for this conversation and its runs."
    ),
]


@router.post(
    "/v1/tokens",
    operation_id="create_token",
    summary="Issue a stream token",
    description="Returns a token with which a web page can use one run or one conversation. The "
    "server does not keep it. It gets no rights that the API key of this request lacks, and is "
    "revoked together with it.",
)
async def create_token(
    body: TokenBody,
    context: ContextDep,
    access: AccessDep,
    tokens: StreamTokensDep,
    response: Response,
) -> IssuedToken:
    if body.scopes != (TokenScope.READ,):
        access.require(KeyScope.SEND)
    if body.run_id is not None:
        await context.runs.target(access.tenant, body.run_id)
    else:
        conversation_id = ConversationId(body.conversation_id or "")
        await context.records.conversations.get(access.tenant, conversation_id)
    now = context.clock.now()
    expires_at = now + timedelta(seconds=body.expires_in_seconds)
    if access.expires_at is not None:
        expires_at = min(expires_at, access.expires_at)
    claims = Claims(
        id="",
        tenant=access.tenant,
        scopes=body.scopes,
        issued_at_seconds=int(now.timestamp()),
        expires_at_seconds=int(expires_at.timestamp()),
        run_id=body.run_id,
        conversation_id=body.conversation_id,
        origin=body.origin,
        models=tuple(body.models),
        client_tools=tuple(body.client_tools),
    )
    claims, token = await tokens.issue(claims, access.key_id, by=access.actor)
    response.headers["cache-control"] = "no-store"
    return IssuedToken(
        token=token,
        id=claims.id,
        expires_at=claims.expires_at,
        scope=list(body.scopes),
        run_id=body.run_id,
        conversation_id=body.conversation_id,
    )


@router.get(
    "/v1/tokens",
    operation_id="list_tokens",
    summary="List stream tokens",
    description="The tokens that have not expired, with their uses, but without the tokens.",
)
async def list_tokens(
    context: ContextDep,
    tenant: TenantDep,
    page: NewestPage,
    run_id: RunQuery = None,
    conversation_id: ConversationQuery = None,
) -> list[TokenState]:
    found = await context.records.tokens.list(
        tenant, page, run_id=run_id, conversation_id=conversation_id
    )
    return await readable_items("stream_tokens", found, TokenState.of)


@router.delete(
    "/v1/tokens/{token_id}",
    operation_id="revoke_token",
    summary="Revoke a stream token",
    description="It stops working within 5 s on every server, and its open streams end.",
)
async def revoke_token(
    token_id: StreamTokenPath,
    context: ContextDep,
    access: AccessDep,
) -> None:
    await context.records.tokens.revoke(access.tenant, token_id, by=access.actor)


@router.delete(
    "/v1/tokens",
    operation_id="revoke_tokens",
    summary="Revoke all stream tokens of a run or a conversation",
    description="Exactly one of `run_id` and `conversation_id` is required. Those of a "
    "conversation include the ones of its runs.",
)
async def revoke_tokens(
    context: ContextDep,
    access: AccessDep,
    run_id: RunQuery = None,
    conversation_id: ConversationQuery = None,
) -> RevokedTokens:
    if (run_id is None) is (conversation_id is None):
        message = "Send exactly one of run_id and conversation_id."
        raise invalid([Fault(["query"], message, "subject")])
    count = await context.records.tokens.revoke_all(
        access.tenant, run_id=run_id, conversation_id=conversation_id, by=access.actor
    )
    return RevokedTokens(revoked=count)
