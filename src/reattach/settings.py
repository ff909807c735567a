"""What an operator can set, where it is read from, and what it is by default.

Every setting has an environment variable ``REATTACH_…`` and a line in the settings file; those that
people change most have a flag too. A flag wins over the environment, and that over the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from typing_extensions import override

from reattach.domain.errors import StartupError
from reattach.domain.limits import (
    LEASE_SECONDS,
    TENANT_BODY_BYTES,
    TENANT_BODY_BYTES_PER_MINUTE,
    TENANT_REQUESTS_PER_SECOND,
    TENANT_RUNS,
    TENANT_STREAMS,
    TOOL_SECONDS,
)
from reattach.domain.origins import origin_of
from reattach.redact import is_local, redact_url
from reattach.settings_file import SettingsFile, near_names
from reattach.tools.servers import McpServer


def _default_data_dir() -> Path:
    return Path.home() / ".local" / "share" / "reattach"


def _words(value: object) -> object:
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    return value


def _origins(value: object) -> object:
    """Origins as browsers send them. Raises ValueError for what is none."""
    words = _words(value)
    if not isinstance(words, list | tuple):
        return words
    return tuple(dict.fromkeys(origin_of(word) for word in words if isinstance(word, str)))


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
"""In the environment: words with commas between them."""


def _or_none(value: object) -> object:
    """A variable that is set to nothing is not set: files of containers are written so."""
    return None if value == "" else value


StoreUrl = Annotated[SecretStr | None, BeforeValidator(_or_none)]
"""It may hold a password."""


@dataclass(frozen=True, slots=True)
class Stores:
    """The URLs of two stores that any number of processes share, with their secrets."""

    database: SecretStr
    log: SecretStr


class Settings(BaseSettings):
    """The settings of one server. Raises StartupError for a settings file that can not be used."""

    model_config = SettingsConfigDict(
        env_prefix="REATTACH_", env_file=None, extra="ignore", hide_input_in_errors=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8283, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data_dir: Path = Field(
        default_factory=_default_data_dir, description="Directory that holds the databases."
    )
    database_url: StoreUrl = Field(
        None, description="URL of the records' database; None: a file in the data directory."
    )
    log_url: StoreUrl = Field(
        None, description="URL of the runs' event logs; None: a file in the data directory."
    )
    config: Annotated[Path | None, BeforeValidator(_or_none)] = Field(
        None, description="A TOML file with settings."
    )
    workers: int = Field(1, ge=1, description="Processes that share the port.")
    lease_seconds: float = Field(
        LEASE_SECONDS,
        gt=0,
        description="How long a process may be silent before others end its runs.",
    )
    durability: Literal["process", "power"] = Field(
        "process",
        description="What an acknowledged event survives: a killed process, or a power cut too.",
    )
    retention_seconds: float = Field(
        timedelta(hours=24).total_seconds(),
        gt=0,
        description="How long the log of a run is kept after its end.",
    )
    ping_interval_seconds: float = Field(
        15.0, gt=0, le=55.0, description="Silence after which a reader gets a keepalive ping."
    )
    stall_seconds: float = Field(
        30.0, gt=0, description="How long a reader may take nothing before it is closed."
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        description="Connections that a process may have; None: what its limit of open files "
        "allows.",
    )
    max_connections_per_address: int | None = Field(
        None,
        ge=1,
        description="How many of them may come from one address, such as a proxy's; None: three "
        "quarters.",
    )
    drain_seconds: float = Field(
        30.0, ge=0, description="How long open runs may go on after SIGTERM."
    )
    default_model: str | None = Field(
        None, description="Handle of the model for agents that name none; None: the first one."
    )
    models: Words = Field(
        (), description="Handles of hosted models to offer, such as openai/gpt-4o-mini."
    )
    openai_base_url: str | None = Field(
        None, description="Base URL of an OpenAI-compatible server, for handles openai/…"
    )
    openai_api_key: SecretStr | None = Field(
        None, description="Key for that server; else OPENAI_API_KEY."
    )
    local_model: Path | None = Field(
        None, description="A GGUF file to offer as local/<name>; else an installed one is found."
    )
    tools: Words = Field(
        (), description="Functions that agents may have as tools, as package.module:function."
    )
    tool_seconds: float = Field(
        TOOL_SECONDS, gt=0, description="How long one call of a tool may take."
    )
    mcp: dict[str, McpServer] = Field(
        default_factory=dict,
        description="MCP servers by name, whose tools agents may have; tables [mcp.name] in the "
        "file, or a JSON object.",
    )
    scripted: bool = Field(
        False, description="Offer the deterministic models scripted/…, for tests and trying out."
    )
    callbacks_to_private: bool = Field(
        False,
        description="Allow callbacks and URLs of images to loopback, private and other addresses "
        "that are not public.",
    )
    quota_runs: int = Field(
        TENANT_RUNS, ge=0, description="Open runs of a tenant on each process; 0: no bound."
    )
    quota_streams: int = Field(
        TENANT_STREAMS, ge=0, description="Open streams of a tenant on each process; 0: no bound."
    )
    quota_requests_per_second: float = Field(
        TENANT_REQUESTS_PER_SECOND,
        ge=0,
        description="Requests of a tenant on each process over some time; 0: no bound.",
    )
    quota_body_mib: int = Field(
        TENANT_BODY_BYTES // 1024**2,
        ge=0,
        description="MiB of requests of a tenant that each process holds at a time; 0: no bound.",
    )
    quota_body_mib_per_minute: int = Field(
        TENANT_BODY_BYTES_PER_MINUTE // 1024**2,
        ge=0,
        description="MiB of requests of a tenant that each process takes in a minute; 0: no bound.",
    )
    require_key: bool = Field(
        False,
        description="Refuse everything until an API key exists, also what comes from this machine.",
    )
    cors_origins: Annotated[tuple[str, ...] | None, NoDecode, BeforeValidator(_origins)] = Field(
        None,
        description="Origins of web pages that may call this server, all of them; None: those of "
        "this machine.",
    )
    access_log: bool = Field(False, description="Log a line for each request.")
    log_format: Literal["console", "json"] = Field("console", description="Form of the log lines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that is logged."
    )

    @property
    def stores(self) -> Stores | None:
        """The stores that the URLs name; None if both are files in the data directory.

        Raises StartupError unless both are named, and both can be shared.
        """
        database, log = self.database_url, self.log_url
        if database is None and log is None:
            return None
        if database is None or log is None:
            missing = "log_url" if log is None else "database_url"
            present = "database_url" if log is None else "log_url"
            raise StartupError(
                f"{_variable(present)} is set and {_variable(missing)} is not: other processes "
                f"would see runs whose events they can not read. Set {_variable(missing)} too "
                f"(such as {_EXAMPLES[missing]}), or neither to keep everything in the data "
                "directory."
            )
        local = {
            name: url
            for name, url in (("database_url", database), ("log_url", log))
            if is_local(url.get_secret_value().partition(":")[0])
        }
        if len(local) == 2:
            raise StartupError(
                "REATTACH_DATABASE_URL and REATTACH_LOG_URL name stores of one process alone. They "
                "are for stores that processes share; to keep everything in files, set "
                "REATTACH_DATA_DIR instead, which no two servers can have at once."
            )
        for name, url in local.items():
            raise StartupError(
                f"{_variable(name)} names a store of this process alone "
                f"({redact_url(url.get_secret_value())}), and the other store is shared: other "
                "processes would see runs whose events they can not read. "
                f"Set {_variable(name)} to a shared one (such as {_EXAMPLES[name]}), or neither "
                "to keep everything in the data directory."
            )
        return Stores(database, log)

    @classmethod
    @override
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        said: dict[str, Any] = {**env_settings(), **init_settings()}
        if not said.get("config"):
            return init_settings, env_settings
        return init_settings, env_settings, SettingsFile(settings_cls, Path(said["config"]))


_OTHERS: Final = frozenset({"REATTACH_URL", "REATTACH_API_KEY"})
"""Variables of `reattach attach`, which are no settings of a server."""


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Say of each variable ``REATTACH_…`` that is no setting what was probably meant."""
    known = [_variable(name) for name in Settings.model_fields]
    said = []
    for name in sorted(environment):
        if (
            not name.upper().startswith("REATTACH_")
            or name.upper() in {*known, *_OTHERS}
            or name.startswith(("REATTACH_TEST_", "REATTACH_BENCH_"))
        ):
            continue
        near = near_names(name[len("REATTACH_") :].lower(), Settings.model_fields)
        guess = f" Did you mean {_variable(near[0])}?" if near else ""
        said.append(f"{name} is not a setting.{guess}")
    return said


_EXAMPLES: Final = {
    "database_url": "postgresql://user:password@host/database",
    "log_url": "redis://host:6379/0",
}


def _variable(name: str) -> str:
    return f"REATTACH_{name.upper()}"
