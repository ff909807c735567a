"""The version and state of the server, and the rights of a client there."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import Request
from pydantic import Field

from reattach import __version__
from reattach.http.context import AccessDep, ContextDep
from reattach.http.front import landing
from reattach.http.middleware.auth import Authenticator
from reattach.http.routes import routes
from reattach.http.schemas.fields import Answer

router = routes("server")


class TokenLimits(Answer):
    """The limits of a stream token."""

    run_id: str | None
    conversation_id: str | None
    scopes: list[str]
    expires_at: datetime


class Server(Answer):
    version: str
    status: Literal["ok", "draining"]
    tenant: str
    scopes: Annotated[list[str], Field(description="Scopes of the key; none with a token.")]
    is_operator: Annotated[bool, Field(description="Whether the request may see all tenants.")]
    open: Annotated[bool, Field(description="Whether the request needs no key.")]
    page: Annotated[bool, Field(description="Whether browsers get the page at `/`.")]
    token: Annotated[TokenLimits | None, Field(description="Limits of the stream token, if any.")]
    ping_interval_seconds: Annotated[
        float, Field(description="Seconds of silence after which a stream gets a keepalive.")
    ]


@router.get("/v1/server", operation_id="retrieve_server", summary="Who am I here?")
async def retrieve_server(request: Request, context: ContextDep, access: AccessDep) -> Server:
    authenticator: Authenticator = request.app.state.authenticator
    is_open = access.key_id is None
    claims = access.claims
    shows_page = landing.is_on(
        context.settings, is_open=is_open and await authenticator.is_open_to(request.scope)
    )
    return Server(
        version=__version__,
        status="draining" if context.runs.draining else "ok",
        tenant=access.tenant,
        scopes=sorted(access.scopes),
        is_operator=access.is_operator,
        open=is_open,
        page=shows_page,
        token=None
        if claims is None
        else TokenLimits(
            run_id=claims.run_id,
            conversation_id=claims.conversation_id,
            scopes=sorted(claims.scopes),
            expires_at=claims.expires_at,
        ),
        ping_interval_seconds=context.settings.ping_interval_seconds,
    )
