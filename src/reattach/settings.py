"""What an operator can set, where it is read from, and what it is by default.

Every setting has an environment variable ``REATTACH_…``. Those that people change most have a flag
of ``reattach serve`` too, which wins.
"""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def _default_data_dir() -> Path:
    return Path.home() / ".local" / "share" / "reattach"


def _words(value: object) -> object:
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    return value


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
"""In the environment: words with commas between them."""


class Settings(BaseSettings):
    """The settings of one server."""

    model_config = SettingsConfigDict(env_prefix="REATTACH_", env_file=None, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8283, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data_dir: Path = Field(
        default_factory=_default_data_dir, description="Directory that holds the databases."
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
    scripted: bool = Field(
        False, description="Offer the deterministic models scripted/…, for tests and trying out."
    )
    cors_origins: Words = Field(
        (),
        description="Origins of web pages that may call this server, besides this machine's own.",
    )
    log_format: Literal["console", "json"] = Field("console", description="Form of the log lines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that is logged."
    )
