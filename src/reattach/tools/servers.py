"""The settings of MCP servers: how each is reached, and its rules."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from reattach.domain.errors import StartupError
from reattach.domain.ids import derived_uuid
from reattach.domain.limits import MCP_START_SECONDS
from reattach.redact import MASK

_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]|_(?!_)){0,30}[A-Za-z0-9]|[A-Za-z0-9]")
_COMMAND_MEMBERS: Final = {"args", "env", "inherit_env", "cwd"}
_URL_MEMBERS: Final = {"headers", "bearer_token_env"}


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class McpServer(BaseModel):
    """One MCP server: a command to start, or a URL."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str | None = None
    """The program to start; it speaks MCP over standard input and output."""
    args: tuple[str, ...] = ()
    env: Mapping[str, SecretStr] = Field(default_factory=dict)
    """Variables for the process, in addition to HOME, LOGNAME, PATH, SHELL, TERM and USER."""
    inherit_env: Names = ()
    """Names of this process's variables to pass on."""
    cwd: Path | None = None

    url: str | None = None
    """The URL of a server that speaks streamable HTTP."""
    headers: Mapping[str, SecretStr] = Field(default_factory=dict)
    bearer_token_env: str | None = None
    """The name of this process's variable with the bearer token."""

    requires_approval: bool | Names = False
    """Whether all calls, or those of the named tools, wait for an approval."""
    trust_hints: bool = False
    """Whether its hints ``readOnlyHint`` and ``idempotentHint`` count, so that an interrupted call
    of such a tool runs again. A hint is the server's own word; nothing checks it."""
    tenants: Names | None = None
    """The tenants whose agents may use its tools; None: all."""
    tool_seconds: float | None = Field(None, gt=0)
    """The time limit of one call; None: the setting for all tools."""
    start_seconds: float = Field(MCP_START_SECONDS, gt=0)
    """The time limit for connecting and listing the tools."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("name either a command or a url")
        foreign = _URL_MEMBERS if self.url is None else _COMMAND_MEMBERS
        if wrong := sorted(foreign & self.model_fields_set):
            goes_with = "url" if self.url is None else "command"
            raise ValueError(f"{', '.join(wrong)} goes with a {goes_with} only")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError("the url must begin with http:// or https://")
        return self

    @property
    def place(self) -> str:
        """The server's address for people, without secrets."""
        if self.command is not None:
            return f"the command {Path(self.command).name}"
        assert self.url is not None
        scheme, _, rest = self.url.partition("://")
        host = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
        return f"{scheme}://{host}"

    def needs_approval(self, tool_name: str) -> bool:
        """Whether calls of that tool wait for an approval."""
        rule = self.requires_approval
        return rule if isinstance(rule, bool) else tool_name in rule

    def environment(self) -> dict[str, str]:
        """Return the additional variables of the process. Raises StartupError if one is not set."""
        inherited = {name: _variable(name) for name in self.inherit_env}
        return inherited | {name: value.get_secret_value() for name, value in self.env.items()}

    def request_headers(self) -> dict[str, str]:
        """Return the headers of requests. Raises StartupError if a variable is not set."""
        headers = {name: value.get_secret_value() for name, value in self.headers.items()}
        if self.bearer_token_env is not None:
            headers["Authorization"] = f"Bearer {_variable(self.bearer_token_env)}"
        return headers

    def redact(self, text: str) -> str:
        """Replace the server's secrets in ``text``."""
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
"""Shorter values are not secret, and occur in words by chance."""


def server_id(name: str) -> str:
    """Return the id of a server, the same in every process and after every restart."""
    return f"mcp_server-{derived_uuid(f'reattach mcp server {name}')}"


def check_names(servers: Mapping[str, McpServer]) -> None:
    """Raise StartupError for a name that cannot be part of tool names."""
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
