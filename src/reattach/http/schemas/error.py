"""The bodies of errors, for the API's description; ``http.errors`` makes them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class ErrorBody(BaseModel):
    """Why a request was not done."""

    model_config = ConfigDict(extra="allow")

    detail: str = Field(description="What failed and what to do next, for people.")
    code: str = Field(description="What failed, for programs; never changes.")


class FaultBody(BaseModel):
    loc: list[str | int] = Field(description="`path`, `query` or `body`, then the way to it.")
    msg: str
    type: str


class ValidationErrorBody(ErrorBody):
    """What does not fit in a request."""

    code: Literal["validation_error"]
    trace_id: str | None = None
    errors: list[FaultBody] | None = None
    examples: list[Any] | None = Field(None, description="How an id in the path should look.")
