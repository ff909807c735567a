"""Schemas of tools."""

from typing import Any, Literal, Self

from pydantic import ConfigDict, Field

from reattach.domain.limits import MAX_TOOL_OUTPUT_CHARS
from reattach.http.schemas.fields import Answer, Body
from reattach.tools.base import AttachedTool, Tool


class ToolBody(Answer):
    """A tool that the server runs."""

    model_config = ConfigDict(populate_by_name=True)

    id: str
    name: str
    description: str | None
    tool_type: Literal["custom", "external_mcp"]
    json_schema: dict[str, Any] = Field(description="The definition that providers receive.")
    args_json_schema: dict[str, Any]
    default_requires_approval: bool = Field(
        description="Whether calls require approval; for an agent's tool, with that agent."
    )
    return_char_limit: int = MAX_TOOL_OUTPUT_CHARS
    enable_parallel_execution: bool = False
    tags: list[str] = Field(default_factory=list)
    source_type: str | None = None
    source_code: str | None = None
    pip_requirements: list[dict[str, Any]] | None = None
    npm_requirements: list[dict[str, Any]] | None = None
    created_by_id: str | None = None
    last_updated_by_id: str | None = None
    project_id: str | None = None
    metadata_: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, tool: Tool, *, requires_approval: bool | None = None) -> Self:
        parameters = dict(tool.parameters)
        schema = {"name": tool.name, "description": tool.description, "parameters": parameters}
        return cls(
            id=tool.id,
            name=tool.name,
            description=tool.description,
            tool_type=tool.kind,
            json_schema=schema,
            args_json_schema=parameters,
            default_requires_approval=tool.requires_approval
            if requires_approval is None
            else requires_approval,
            source_type="python" if tool.kind == "custom" else None,
            tags=[f"mcp:{tool.server}"] if tool.server else [],
        )

    @classmethod
    def attached(cls, attached: AttachedTool) -> Self:
        return cls.of(attached.tool, requires_approval=attached.requires_approval)


class ApprovalRule(Body):
    requires_approval: bool
