"""Limits of a send with a stream token, which were set when the token was issued."""

from reattach.domain.errors import TokenForbiddenError
from reattach.domain.stream_tokens import Claims
from reattach.http.schemas.sending import ConversationSendBody, SentMessage

_ASK = "Ask your application for a token that allows it, or leave it out."


def require_allowed(claims: Claims | None, body: ConversationSendBody) -> None:
    """Refuse a choice that the token does not leave to its holder; a key may choose everything.

    The agent's prompt is never left to it. Raises TokenForbiddenError.
    """
    if claims is None:
        return
    if body.override_model is not None and body.override_model not in claims.models:
        raise TokenForbiddenError(
            f"This stream token may not choose the model '{body.override_model[:100]}'.",
            remedy=_ASK,
        )
    for tool in body.client_tools or ():
        if tool.name not in claims.client_tools:
            raise TokenForbiddenError(
                f"This stream token may not offer the tool '{tool.name[:100]}'.", remedy=_ASK
            )
    for name, given in (
        ("override_system", body.override_system is not None),
        ("client_skills", bool(body.client_skills)),
    ):
        if given:
            raise TokenForbiddenError(
                f"A stream token cannot change the system prompt with '{name}'.",
                remedy="Leave it out.",
            )
    for item in body.messages or ():
        if isinstance(item, SentMessage) and item.role != "user":
            raise TokenForbiddenError(
                f"A stream token cannot send messages with the role '{item.role}'.",
                remedy="Send them with the role 'user'.",
            )
