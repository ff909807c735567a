"""Limits of a request with a stream token. Its chat is the conversation that it opens."""

from reattach.domain.errors import TokenForbiddenError
from reattach.http.dialects.ai_sdk.bodies import ChatBody
from reattach.http.middleware.access import Access


async def require_chat(access: Access, chat_id: str) -> None:
    """Raises TokenForbiddenError if the id names neither the token's conversation nor its runs."""
    if access.claims is not None and chat_id != access.claims.conversation_id:
        await access.require_runs([chat_id])


async def require_send(access: Access, body: ChatBody) -> None:
    """Refuse a choice that a token does not leave to its holder. Raises TokenForbiddenError."""
    claims = access.claims
    if claims is None:
        return
    await require_chat(access, body.id)
    if body.system is not None:
        raise TokenForbiddenError(
            "A stream token cannot change the system prompt with 'system'.",
            remedy="Leave it out.",
        )
    for name in body.tools:
        if name not in claims.client_tools:
            raise TokenForbiddenError(
                f"This stream token may not offer the tool '{name[:100]}'.",
                remedy="Ask your application for a token that allows it, or leave it out.",
            )
