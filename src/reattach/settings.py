"""The settings of a server: their names, defaults and sources.

Every setting has an environment variable ``REATTACH_…`` and a key in the settings file; the most
common ones have a command-line flag too. A flag overrides the environment, which overrides the
file.
"""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)
from typing_extensions import override

from reattach.diagnostics import Diagnostic
from reattach.domain.errors import StartupError
from reattach.domain.limits import (
    CONTEXT_CACHE_BYTES,
    LEASE_SECONDS,
    MIN_TOKEN_KEY_CHARS,
    MODEL_SILENCE_SECONDS,
    TOOL_SECONDS,
)
from reattach.domain.limits.requests import (
    TENANT_BODY_BYTES,
    TENANT_BODY_BYTES_PER_MINUTE,
    TENANT_REQUESTS_PER_SECOND,
    TENANT_RUNS,
    TENANT_STREAMS,
)
from reattach.domain.origins import origin_of
from reattach.engine.providers import continue_forms
from reattach.redact import is_local, redact_url
from reattach.settings_file import SettingsFile, near_names
from reattach.tools.servers import McpServer
from reattach.validation import HTTP_URL_PATTERN, explain


def _default_data_dir() -> Path:
    return Path.home() / ".local" / "share" / "reattach"


def _words(value: object) -> object:
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    return value


def _origins(value: object) -> object:
    """Parse a list of origins, in the form that browsers send. Raises ValueError."""
    words = _words(value)
    if not isinstance(words, list | tuple):
        return words
    return tuple(dict.fromkeys(origin_of(word) for word in words if isinstance(word, str)))


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
"""A list of words; in the environment, separated by commas."""


def _continue_models(entries: tuple[str, ...]) -> tuple[str, ...]:
    """Raise ValueError if an entry is not a pattern with a form."""
    continue_forms(entries)
    return entries


DialectName = Literal["openai", "ai-sdk", "ag-ui", "durable-streams"]
DIALECT_NAMES: Final[tuple[DialectName, ...]] = get_args(DialectName)

Dialects = Annotated[tuple[DialectName, ...], NoDecode, BeforeValidator(_words)]

ContinueModels = Annotated[Words, AfterValidator(_continue_models)]


def _or_none(value: object) -> object:
    """Treat an empty variable as unset, because container files often declare empty ones."""
    return None if value == "" else value


def _secrets(secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    """Raise ValueError for a secret that could be guessed."""
    if any(len(one.get_secret_value()) < MIN_TOKEN_KEY_CHARS for one in secrets):
        raise ValueError(
            f"a key has fewer than {MIN_TOKEN_KEY_CHARS} characters; make one with "
            "`openssl rand -base64 32`"
        )
    return secrets


SecretWords = Annotated[
    tuple[SecretStr, ...], NoDecode, BeforeValidator(_words), AfterValidator(_secrets)
]

StoreUrl = Annotated[SecretStr | None, BeforeValidator(_or_none)]
"""A URL that may contain a password."""

HttpUrl = Annotated[
    Annotated[str, Field(pattern=HTTP_URL_PATTERN)] | None, BeforeValidator(_or_none)
]


@dataclass(frozen=True, slots=True)
class Stores:
    """The URLs, with secrets, of two stores that several processes share."""

    database: SecretStr
    log: SecretStr


class Settings(BaseSettings):
    """The settings of one server. Raises StartupError for those that cannot be used."""

    model_config = SettingsConfigDict(
        env_prefix="REATTACH_", env_file=None, extra="ignore", hide_input_in_errors=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8283, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    fd: Annotated[int | None, BeforeValidator(_or_none)] = Field(
        None,
        ge=0,
        le=2**31 - 1,
        description="File descriptor of a listening socket that another process keeps open, used "
        "instead of host and port; None: the socket that systemd passes, if any.",
    )
    data_dir: Path = Field(
        default_factory=_default_data_dir, description="Directory of the database files."
    )
    database_url: StoreUrl = Field(
        None, description="URL of the database for records; None: a file in the data directory."
    )
    log_url: StoreUrl = Field(
        None, description="URL of the store for event logs; None: a file in the data directory."
    )
    config: Annotated[Path | None, BeforeValidator(_or_none)] = Field(
        None, description="Path of a TOML file with settings."
    )
    workers: int = Field(1, ge=1, description="Number of processes that share the port.")
    lease_seconds: float = Field(
        LEASE_SECONDS,
        gt=0,
        description="Seconds after which a process that does not renew its lease loses its runs.",
    )
    durability: Literal["process", "power"] = Field(
        "process",
        description="Failure that written events survive: process (a killed process) or power "
        "(also a power cut).",
    )
    retention_seconds: float = Field(
        timedelta(hours=24).total_seconds(),
        gt=0,
        description="Seconds for which a run's event log is kept after the run has ended.",
    )
    ping_interval_seconds: float = Field(
        15.0, gt=0, le=55.0, description="Seconds of silence after which a stream gets a ping."
    )
    stall_seconds: float = Field(
        30.0, gt=0, description="Seconds after which a connection that reads nothing is closed."
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        description="Most connections of a process; None: as many as its limit of open files "
        "allows.",
    )
    max_connections_per_address: int | None = Field(
        None,
        ge=1,
        description="Most connections from one address, for example a proxy; None: three quarters "
        "of max_connections.",
    )
    drain_seconds: float = Field(
        30.0, ge=0, description="Seconds for which open runs may continue after SIGTERM."
    )
    continue_runs: bool = Field(
        True,
        validation_alias=AliasChoices("REATTACH_CONTINUE", "continue_runs"),
        description="Whether a run goes on after its process or its provider's stream broke off.",
    )
    continue_asks: bool = Field(
        False,
        description="Whether a model that cannot continue its own text is shown it and asked to.",
    )
    continue_tries: int = Field(
        5, ge=1, le=1000, description="How often a run is continued without a finished step."
    )
    continue_silent_tries: int = Field(
        2, ge=1, le=1000, description="How often in a row a run is continued without a new event."
    )
    continue_within_seconds: float = Field(
        600.0, gt=0, description="Age of an interruption after which the run ends instead."
    )
    default_model: str | None = Field(
        None, description="Handle of the model for agents without one; None: the first model."
    )
    models: Words = Field(
        (), description="Handles of hosted models to offer, such as openai/gpt-4o-mini."
    )
    openai_base_url: HttpUrl = Field(
        None,
        description="Base URL of an OpenAI-compatible server, used for handles openai/… and "
        "openai-responses/….",
    )
    openai_api_key: SecretStr | None = Field(
        None, description="API key for openai_base_url; None: OPENAI_API_KEY."
    )
    model_silence_seconds: float = Field(
        MODEL_SILENCE_SECONDS,
        gt=0,
        description="Seconds without a byte after which the answer of a hosted model has broken "
        "off, once its output has begun.",
    )
    continue_models: ContinueModels = Field(
        (),
        description="Models on servers of chat completions that continue a begun answer, as "
        "pattern=form: openai/*=flags (vLLM, SGLang, llama.cpp), deepseek/*=prefix (DeepSeek, "
        "Mistral).",
    )
    local_model: Path | None = Field(
        None, description="GGUF file to offer as local/<name>; None: the built-in model, if any."
    )
    tools: Words = Field(
        (), description="Python functions that agents can use as tools: package.module:function."
    )
    tool_seconds: float = Field(
        TOOL_SECONDS, gt=0, description="Seconds that one tool call may take."
    )
    mcp: dict[str, McpServer] = Field(
        default_factory=dict,
        description="MCP servers whose tools agents can use, by name: tables [mcp.name] in the "
        "settings file, or a JSON object.",
    )
    scripted: bool = Field(
        False, description="Offer the deterministic models scripted/…, for tests and demos."
    )
    callbacks_to_private: bool = Field(
        False,
        description="Allow callbacks and image URLs to loopback, private and other non-public "
        "addresses.",
    )
    quota_runs: int = Field(
        TENANT_RUNS, ge=0, description="Open runs per tenant and process; 0: no limit."
    )
    quota_streams: int = Field(
        TENANT_STREAMS, ge=0, description="Open streams per tenant and process; 0: no limit."
    )
    quota_requests_per_second: float = Field(
        TENANT_REQUESTS_PER_SECOND,
        ge=0,
        description="Sustained requests per second, tenant and process; 0: no limit.",
    )
    quota_body_mib: int = Field(
        TENANT_BODY_BYTES // 1024**2,
        ge=0,
        description="MiB of request bodies held at a time per tenant and process; 0: no limit.",
    )
    quota_body_mib_per_minute: int = Field(
        TENANT_BODY_BYTES_PER_MINUTE // 1024**2,
        ge=0,
        description="MiB of request bodies per minute, tenant and process; 0: no limit.",
    )
    require_key: bool = Field(
        False,
        description="Refuse all requests until an API key exists, even those from this machine.",
    )
    cors_origins: Annotated[tuple[str, ...] | None, NoDecode, BeforeValidator(_origins)] = Field(
        None,
        description="Origins of web pages that may call this server; None: pages served from this "
        "machine.",
    )
    dialects: Dialects = Field(
        DIALECT_NAMES,
        description="Dialects beside Letta's that clients may speak; an empty list switches all "
        "off.",
    )
    chat_disconnect: Literal["continue", "cancel"] = Field(
        "continue",
        description="Whether a chat completion goes on or is cancelled when its client closes the "
        "connection.",
    )
    nameless_chats: Literal["keep", "delete"] = Field(
        "keep",
        description="Whether the hidden conversations of chat completions whose clients name none "
        "stay, or are deleted after the retention.",
    )
    token_keys: SecretWords = Field(
        (),
        description="Secrets that sign stream tokens, of at least 32 characters: the first one "
        "signs, all verify. None: keys in the database.",
    )
    tokens_in_query: bool = Field(
        True,
        description="Accept stream tokens in the query of GETs, as EventSource needs; proxies may "
        "log queries.",
    )
    context_cache_mib: int = Field(
        CONTEXT_CACHE_BYTES // 1024**2,
        ge=0,
        description="MiB of conversations that a process keeps decoded between turns; 0: none.",
    )
    audit_days: int = Field(
        90, ge=1, description="Days for which the entries of the audit log are kept."
    )
    metrics: bool = Field(
        True, description="Measure, and show the metrics at /metrics to keys with scope operator."
    )
    metrics_host: str = Field("127.0.0.1", description="Address of the port for metrics.")
    metrics_port: Annotated[int | None, BeforeValidator(_or_none)] = Field(
        None,
        ge=0,
        le=65535,
        description="Port that serves only /metrics, without a key; None: no such port.",
    )
    page: Literal["auto", "on", "off"] = Field(
        "auto",
        description="The page at / for browsers: auto (on this machine while no API key exists), "
        "on (everywhere, and it asks for a key) or off.",
    )
    access_log: bool = Field(False, description="Log one line per request.")
    log_format: Literal["console", "json"] = Field("console", description="Format of log lines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged."
    )

    if not TYPE_CHECKING:  # Type checkers know the names and types of the settings without it.

        def __init__(self, **given: Any) -> None:
            try:
                super().__init__(**given)
            except ValidationError as error:
                fact = f"The settings are not valid. {_explain(error, given)}"
                raise StartupError(fact, remedy=_CORRECT) from None
            except SettingsError as error:  # A variable that holds JSON does not.
                cause = f" ({error.__cause__})" if error.__cause__ else ""
                fact = f"The settings are not valid: {error}{cause}."
                raise StartupError(fact, remedy=_CORRECT) from None

    @property
    def stores(self) -> Stores | None:
        """The shared stores; None if everything is in the data directory.

        Raises StartupError if only one URL is set, or if a URL names a store that cannot be shared.
        """
        database, log = self.database_url, self.log_url
        if database is None and log is None:
            return None
        if database is None or log is None:
            missing = "log_url" if log is None else "database_url"
            present = "database_url" if log is None else "log_url"
            raise StartupError(
                f"{variable_of(present)} is set and {variable_of(missing)} is not: other processes "
                "would see runs whose events they cannot read.",
                remedy=f"Set {variable_of(missing)} too, for example to {_EXAMPLES[missing]}, or "
                "unset both to keep everything in the data directory.",
            )
        local = {
            name: url
            for name, url in (("database_url", database), ("log_url", log))
            if is_local(url.get_secret_value().partition(":")[0])
        }
        if len(local) == 2:
            raise StartupError(
                "REATTACH_DATABASE_URL and REATTACH_LOG_URL name stores that only one process can "
                "use, and are meant for shared stores.",
                remedy="To keep everything in files, unset both and set REATTACH_DATA_DIR.",
            )
        for name, url in local.items():
            raise StartupError(
                f"{variable_of(name)} names a store that only one process can use "
                f"({redact_url(url.get_secret_value())}), and the other store is shared: other "
                "processes would see runs whose events they cannot read.",
                remedy=f"Set {variable_of(name)} to a shared store, for example "
                f"{_EXAMPLES[name]}, or unset both to keep everything in the data directory.",
            )
        return Stores(database, log)

    def command(self, words: str) -> str:
        """Return a command line of ``reattach`` that uses the same stores, for a remedy.

        It shows no URL of a database, which may contain a password.
        """
        flags = [] if self.config is None else ["--config", str(self.config)]
        if self.database_url is None and self.data_dir != _default_data_dir():
            flags += ["--data-dir", str(self.data_dir)]
        elif self.database_url is not None and not flags and not _in_environment("database_url"):
            flags += ["--database-url", "URL"]
        return f"reattach {shlex.join([*words.split(), *flags])}"

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
        given: dict[str, Any] = {**env_settings(), **init_settings()}
        if not given.get("config"):
            return init_settings, env_settings
        return init_settings, env_settings, SettingsFile(settings_cls, Path(given["config"]))


_CLIENT_VARIABLES: Final = frozenset({"REATTACH_URL", "REATTACH_API_KEY"})
"""Variables of `reattach attach`, which are not settings of a server."""


def unknown_variables(environment: Mapping[str, str]) -> list[Diagnostic]:
    """Return a warning for each variable ``REATTACH_…`` that is not a setting."""
    known = [variable_of(name) for name in Settings.model_fields]
    found = []
    for name in sorted(environment):
        if (
            not name.upper().startswith("REATTACH_")
            or name.upper() in {*known, *_CLIENT_VARIABLES}
            or name.startswith(("REATTACH_TEST_", "REATTACH_BENCH_"))
        ):
            continue
        near = near_names(name[len("REATTACH_") :].lower(), Settings.model_fields)
        remedy = (
            f"Did you mean {variable_of(near[0])}?" if near else "Unset it, or correct its name."
        )
        found.append(Diagnostic("warning", "environment", f"{name} is not a setting.", remedy))
    return found


def _explain(error: ValidationError, given: Mapping[str, object]) -> str:
    """Return a sentence for each setting that is not valid, without values that may be secret.

    ``given`` are the settings that have precedence over the environment and the file.
    """
    sentences = []
    for fault in error.errors():
        name, *inside = map(str, fault["loc"])
        source, dict_name = variable_of(name), "an object"
        if name in given:
            source = name
        elif not _in_environment(name):  # The defaults are valid.
            file = given.get("config") or os.environ.get(variable_of("config"))
            source, dict_name = f"{file}: {name}", "a table"
        sentence = explain(fault, shows_value=name not in _SECRET, dict_name=dict_name)
        sentence = sentence.removesuffix(".") + "."
        if fault["type"] == "extra_forbidden":  # Only tables of MCP servers have it.
            near = near_names(inside[-1], McpServer.model_fields)
            sentence += f" Did you mean {near[0]}?" if near else ""
        sentences.append(f"{'.'.join([source, *inside])}: {sentence}")
    return " ".join(sentences)


_CORRECT: Final = "Correct this and start again."

_SECRET: Final = frozenset({"database_url", "log_url", "openai_api_key", "openai_base_url", "mcp"})
"""Settings whose values may contain a secret."""

_EXAMPLES: Final = {
    "database_url": "postgresql://user:password@host/database",
    "log_url": "redis://host:6379/0",
}


def _in_environment(name: str) -> bool:
    return any(one.upper() == variable_of(name) for one in os.environ)


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    alias = Settings.model_fields[name].validation_alias
    own = alias.choices[0] if isinstance(alias, AliasChoices) else None
    return str(own or f"REATTACH_{name.upper()}")
