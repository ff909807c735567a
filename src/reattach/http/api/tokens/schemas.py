"""Schemas of stream tokens."""

from typing import Annotated, Any, Final, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from reattach.domain.ids import CONVERSATION_PATTERN, RUN_PATTERN
from reattach.domain.limits import MAX_STREAM_TOKEN_SECONDS, STREAM_TOKEN_SECONDS
from reattach.domain.limits.requests import (
    MAX_NAME_CHARS,
    MAX_TOKEN_CLIENT_TOOLS,
    MAX_TOKEN_MODELS,
)
from reattach.domain.origins import ANY, LOCAL, origin_of
from reattach.domain.stream_tokens import TokenScope
from reattach.http.schemas.fields import NUMERIC, Answer, Handle, StrictBody, UtcTime, members_of
from reattach.records.tokens.tokens import StreamToken

_ONE_SCOPE: Final = {"type": "string", "enum": [scope.value for scope in TokenScope]}
Scopes = Annotated[
    list[TokenScope],
    Field(min_length=1, max_length=len(TokenScope), fail_fast=True),
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
    WithJsonSchema(
        {
            "anyOf": [
                _ONE_SCOPE,
                {
                    "type": "array",
                    "items": _ONE_SCOPE,
                    "minItems": 1,
                    "maxItems": len(TokenScope),
                },
            ]
        }
    ),
]


def _one_origin(text: str) -> str:
    origin = origin_of(text)
    if origin in {ANY, LOCAL}:
        raise ValueError(f"'{origin}' is no single origin. Leave it out to allow pages of any.")
    return origin


class TokenBody(StrictBody):
    """The rights of a new token: on exactly one run or conversation."""

    run_id: str | None = Field(None, pattern=RUN_PATTERN, description="The run that it is for.")
    conversation_id: str | None = Field(
        None,
        pattern=CONVERSATION_PATTERN,
        description="The conversation that it is for, with all its runs.",
    )
    scope: Scopes = Field(
        description="`read` follows runs and reads messages, `send` sends to the conversation, "
        "`cancel` cancels its runs. `send` and `cancel` need a key with the scope `send`."
    )
    expires_in_seconds: Annotated[int, Field(ge=1, le=MAX_STREAM_TOKEN_SECONDS), NUMERIC] = Field(
        STREAM_TOKEN_SECONDS,
        description="How long it is valid; never longer than the API key that asks for it.",
    )
    origin: Annotated[str, Field(max_length=MAX_NAME_CHARS), AfterValidator(_one_origin)] | None = (
        Field(None, description="Only pages of this origin may use it, `https://app.example.com`.")
    )
    models: list[Handle] = Field(
        [],
        max_length=MAX_TOKEN_MODELS,
        fail_fast=True,
        description="With `send`: models that a send may choose by `override_model`.",
    )
    client_tools: list[Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]] = Field(
        [],
        max_length=MAX_TOKEN_CLIENT_TOOLS,
        fail_fast=True,
        description="With `send`: names of `client_tools` that a send may offer.",
    )

    @property
    def scopes(self) -> tuple[TokenScope, ...]:
        return tuple(one for one in TokenScope if one in self.scope)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.run_id is None) is (self.conversation_id is None):
            raise PydanticCustomError("subject", "Send exactly one of run_id and conversation_id.")
        if self.run_id is not None and TokenScope.SEND in self.scopes:
            raise PydanticCustomError(
                "subject", "A send goes to a conversation. Send conversation_id, not run_id."
            )
        if TokenScope.SEND not in self.scopes and (self.models or self.client_tools):
            raise PydanticCustomError(
                "scope", "models and client_tools limit sends, and the scope has no 'send'."
            )
        return self


class IssuedToken(Answer):
    """A new token, which cannot be shown again."""

    token: str = Field(description="Send it as `Authorization: Bearer <token>`.")
    id: str
    expires_at: UtcTime
    scope: list[TokenScope]
    run_id: str | None
    conversation_id: str | None


class TokenState(Answer):
    """A token that has not expired."""

    id: str
    run_id: str | None
    conversation_id: str | None
    scope: list[str]
    origin: str | None
    key_id: str | None = Field(description="The API key that issued it.")
    created_at: UtcTime
    expires_at: UtcTime
    revoked_at: UtcTime | None
    uses: int = Field(description="Requests with it, without those of the last 10 s.")
    last_used_at: UtcTime | None

    @classmethod
    def of(cls, token: StreamToken) -> Self:
        members: dict[str, Any] = members_of(token, cls)
        return cls(**members, scope=list(token.scope_names))


class RevokedTokens(Answer):
    revoked: int = Field(description="Number of tokens that were valid.")
