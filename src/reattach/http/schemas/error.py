"""Schemas of error bodies, which ``http.errors`` creates; used only in the API's description."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class ErrorBody(BaseModel):
    """The reason why a request failed."""

    model_config = ConfigDict(extra="allow")

    detail: str = Field(description="The failure and the next step, for people.")
    code: str = Field(description="The failure, for programs; stable.")


class FaultBody(BaseModel):
    loc: list[str | int] = Field(
        description="`path`, `query` or `body`, then the path to the value."
    )
    msg: str
    type: str


class ValidationErrorBody(ErrorBody):
    """The faults of a request."""

    code: Literal["validation_error"]
    trace_id: str | None = None
    errors: list[FaultBody] | None = None
    examples: list[Any] | None = Field(None, description="Example of a well-formed id.")
