"""The providers of hosted models: the variables with their keys, and the forms of their lists."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

Listing = Literal["openai", "anthropic", "google"]
"""The form of a provider's list of models."""

ContinueForm = Literal["flags", "prefix"]
"""How a chat completions server learns that the last message is the beginning of its answer.

``flags``: members of the request, ``continue_final_message`` and ``add_generation_prompt``.
``prefix``: a member of that message.
"""


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider in handles and in the environment."""

    name: str
    """The part of a handle before the slash."""
    key_variables: tuple[str, ...]
    base_url: str
    url_variable: str | None = None
    """The variable for another server of the same API, if the client supports one."""
    listing: Listing = "openai"


PROVIDERS: Final = (
    Provider("openai", ("OPENAI_API_KEY",), "https://api.openai.com/v1", "OPENAI_BASE_URL"),
    Provider(
        *("anthropic", ("ANTHROPIC_API_KEY",), "https://api.anthropic.com", "ANTHROPIC_BASE_URL"),
        listing="anthropic",
    ),
    Provider(
        *("google", ("GEMINI_API_KEY", "GOOGLE_API_KEY")),
        *("https://generativelanguage.googleapis.com", "GOOGLE_GEMINI_BASE_URL"),
        listing="google",
    ),
    Provider("openrouter", ("OPENROUTER_API_KEY",), "https://openrouter.ai/api/v1"),
    Provider("deepseek", ("DEEPSEEK_API_KEY",), "https://api.deepseek.com"),
    Provider("together", ("TOGETHER_API_KEY",), "https://api.together.xyz/v1"),
    Provider("fireworks", ("FIREWORKS_API_KEY",), "https://api.fireworks.ai/inference/v1"),
    Provider("cerebras", ("CEREBRAS_API_KEY",), "https://api.cerebras.ai/v1"),
    Provider("moonshotai", ("MOONSHOTAI_API_KEY",), "https://api.moonshot.ai/v1"),
    Provider("groq", ("GROQ_API_KEY",), "https://api.groq.com/openai/v1"),
    Provider("mistral", ("MISTRAL_API_KEY",), "https://api.mistral.ai/v1"),
    Provider("xai", ("XAI_API_KEY",), "https://api.x.ai/v1"),
)

OPENAI_RESPONSES: Final = "openai-responses"
"""The provider in handles of OpenAI's models whose answers are kept; it uses OpenAI's account."""

VARIABLES: Final = frozenset(
    name
    for provider in PROVIDERS
    for name in (*provider.key_variables, provider.url_variable)
    if name is not None
)
"""Every environment variable that makes a provider available."""


@dataclass(frozen=True, slots=True)
class Account:
    """An available provider with its URL and key."""

    provider: Provider
    base_url: str
    key: str | None
    source: str
    """The variable that made it available."""


def accounts(
    environment: Mapping[str, str],
    *,
    openai_base_url: str | None = None,
    openai_api_key: str | None = None,
) -> Sequence[Account]:
    """Return the providers with a key in the environment, and OpenAI's API if it has a base URL.

    The arguments are the server's own settings and win over the environment.
    """
    found = []
    for provider in PROVIDERS:
        url = environment.get(provider.url_variable or "") or None
        keys = [name for name in provider.key_variables if environment.get(name)]
        key, source = (environment[keys[0]], keys[0]) if keys else (None, "")
        if provider.name == "openai":
            if openai_api_key:
                key, source = openai_api_key, "REATTACH_OPENAI_API_KEY"
            if openai_base_url:
                url, source = openai_base_url, "REATTACH_OPENAI_BASE_URL"
            elif url is not None:
                source = "OPENAI_BASE_URL"
            if key is None and url is None:
                continue
        elif key is None:
            continue
        found.append(Account(provider, (url or provider.base_url).rstrip("/"), key, source))
    return found


def missing_key(
    handle: str, environment: Mapping[str, str], *, openai_settings: bool = False
) -> str | None:
    """Return the variables of which a hosted model needs one; None if one is set or unknown.

    ``openai_settings`` says that the server's settings have a key or URL for OpenAI's API.
    """
    name = handle.partition("/")[0]
    name = {"google_ai": "google", OPENAI_RESPONSES: "openai"}.get(name, name)
    for provider in PROVIDERS:
        if provider.name != name:
            continue
        variables = list(provider.key_variables)
        if name == "openai":
            variables.append("OPENAI_BASE_URL")
            if openai_settings:
                return None
        if any(environment.get(variable) for variable in variables):
            return None
        return " or ".join(provider.key_variables)
    return None


def continue_forms(entries: Sequence[str]) -> Sequence[tuple[str, ContinueForm]]:
    """Return the patterns of handles with their forms, from entries ``pattern=form``.

    Raises ValueError for an entry that is not of that form.
    """
    forms: list[tuple[str, ContinueForm]] = []
    for entry in entries:
        pattern, _, form = (word.strip() for word in entry.rpartition("="))
        if "/" not in pattern or form not in get_args(ContinueForm):
            raise ValueError(
                f"'{entry}' is not a pattern of handles with a form, such as openai/*=flags or "
                "deepseek/*=prefix"
            )
        forms.append((pattern, cast("ContinueForm", form)))
    return forms
