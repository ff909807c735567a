"""MCP servers as an operator names them: how each is reached, and what it may do."""

import os
import re
import uuid
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from reattach.domain.errors import StartupError
from reattach.domain.limits import MCP_START_SECONDS
from reattach.redact import MASK

_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]|_(?!_)){0,30}[A-Za-z0-9]|[A-Za-z0-9]")
_OF_A_COMMAND: Final = {"args", "env", "inherit_env", "cwd"}
_OF_A_URL: Final = {"headers", "bearer_token_env"}


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class McpServer(BaseModel):
    """One server: a command that is started, or a URL."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str | None = None
    """The program to start; it speaks MCP over its standard input and output."""
    args: tuple[str, ...] = ()
    env: Mapping[str, SecretStr] = Field(default_factory=dict)
    """Variables that it gets besides HOME, LOGNAME, PATH, SHELL, TERM and USER."""
    inherit_env: Names = ()
    """The names of variables of this process that it gets too."""
    cwd: Path | None = None

    url: str | None = None
    """Of a server that speaks streamable HTTP."""
    headers: Mapping[str, SecretStr] = Field(default_factory=dict)
    bearer_token_env: str | None = None
    """The name of the variable of this process that holds the token for it."""

    requires_approval: bool | Names = False
    """Whether calls wait for an approval whatever an agent says, or of which tools."""
    tenants: Names | None = None
    """The tenants whose agents may have its tools; None: all."""
    tool_seconds: float | None = Field(None, gt=0)
    """How long one call may take; None: as all tools."""
    start_seconds: float = Field(MCP_START_SECONDS, gt=0)
    """How long it may take to be reached and to list its tools."""

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("name either a command or a url")
        foreign = _OF_A_URL if self.url is None else _OF_A_COMMAND
        if wrong := sorted(foreign & self.model_fields_set):
            goes_with = "url" if self.url is None else "command"
            raise ValueError(f"{', '.join(wrong)} goes with a {goes_with} only")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError("the url has to begin with http:// or https://")
        return self

    @property
    def place(self) -> str:
        """Where it is, for people, without anything that may be secret."""
        if self.command is not None:
            return f"the command {Path(self.command).name}"
        assert self.url is not None
        scheme, _, rest = self.url.partition("://")
        host = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
        return f"{scheme}://{host}"

    def needs_approval(self, tool_name: str) -> bool:
        """Whether calls of its tool of that name wait for an approval."""
        rule = self.requires_approval
        return rule if isinstance(rule, bool) else tool_name in rule

    def environment(self) -> dict[str, str]:
        """The variables that its process gets besides the usual ones. Raises StartupError."""
        inherited = {name: _variable(name) for name in self.inherit_env}
        return inherited | {name: value.get_secret_value() for name, value in self.env.items()}

    def request_headers(self) -> dict[str, str]:
        """Raises StartupError."""
        headers = {name: value.get_secret_value() for name, value in self.headers.items()}
        if self.bearer_token_env is not None:
            headers["Authorization"] = f"Bearer {_variable(self.bearer_token_env)}"
        return headers

    def redact(self, text: str) -> str:
        """The text without what is secret of the server."""
        names = [*self.inherit_env, *([self.bearer_token_env] if self.bearer_token_env else ())]
        values = [
            value.get_secret_value() for value in (*self.env.values(), *self.headers.values())
        ]
        values += [os.environ.get(name, "") for name in names]
        values += [word for value in values for word in value.split()]
        if self.url is not None:
            values.append(self.url.partition("://")[2])
        for value in sorted(set(values), key=len, reverse=True):
            if len(value) >= _MIN_SECRET_CHARS:
                text = text.replace(value, MASK)
        return text


_MIN_SECRET_CHARS: Final = 4
"""Shorter values are no secrets, and stand in words by accident."""


def server_id(name: str) -> str:
    """The same for the same name, in every process and after every restart."""
    digest = sha256(f"reattach mcp server {name}".encode()).digest()
    return f"mcp_server-{uuid.UUID(bytes=digest[:16], version=4)}"


def check_names(servers: Mapping[str, McpServer]) -> None:
    """Raise StartupError for a name that tools can not be named after."""
    for name in servers:
        if not _NAME.fullmatch(name):
            raise StartupError(
                f"The name of the MCP server {name!r} is not valid.",
                remedy="Use 1 to 32 letters, digits, - or _, with a letter or digit at both ends "
                "and no two _ in a row.",
            )


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise StartupError(
            f"The environment variable {name} is not set.", remedy="Set it, or name another one."
        )
    return value
