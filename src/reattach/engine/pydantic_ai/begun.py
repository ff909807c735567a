"""The beginning of an answer, in the form in which a provider accepts it and adds the rest."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

import pydantic_ai.messages as pm
from pydantic_ai.models import Model as ProviderModel
from pydantic_ai.models import OpenAIChatCompatibleProvider
from pydantic_ai.settings import ModelSettings as ProviderSettings

from reattach.domain.context import text_tokens
from reattach.domain.messages import TextPart
from reattach.engine.base import Delta, ModelSettings
from reattach.engine.prefix import Seam
from reattach.engine.providers import ContinueForm
from reattach.engine.pydantic_ai.settings import provider_settings

if TYPE_CHECKING:
    from pydantic_ai.models.openai import OpenAIChatModel

Form = ContinueForm | Literal["last"]
"""How a provider learns that the last message is the beginning of its answer. ``last``: it always
takes an assistant's last message for that."""

_CHAT_PROVIDERS: Final = frozenset(get_args(OpenAIChatCompatibleProvider.__value__)) - {"meta"}
"""Pydantic AI's names of providers with chat completions, which the forms of the settings need."""

_ANTHROPIC: Final = re.compile(r"claude-(haiku|opus)-4-5(?!\d)")
"""Anthropic's models that accept a beginning. All from 4.6 on refuse it."""

_FLAGS: Final = {"continue_final_message": True, "add_generation_prompt": False}
_SHAPING: Final = frozenset({"n", "response_format", "tool_choice"})
"""Members of a request with which a beginning of plain text does not fit."""


def form_of(
    handle: str,
    settings: ModelSettings,
    configured: Sequence[tuple[str, ContinueForm]],
    *,
    has_chat: bool,
) -> Form | None:
    """Return the form for a model; None if it accepts no beginning.

    ``configured`` are patterns of handles, of which the first that matches counts. They apply to
    models with chat completions (``has_chat``).
    """
    provider, _, name = handle.partition("/")
    if provider == "anthropic":
        accepts = _ANTHROPIC.match(name) is not None and not _reasons(settings)
        return "last" if accepts else None
    if not has_chat:
        return None
    return next((form for pattern, form in configured if fnmatchcase(handle, pattern)), None)


def has_chat(provider: str, model: ProviderModel | None, *, has_base_url: bool) -> bool:
    """Whether the model uses chat completions, without settings of its own that shape the answer.

    ``model`` is one constructed elsewhere; ``provider`` is Pydantic AI's name of any other's.
    """
    if model is None:
        return provider in _CHAT_PROVIDERS or (provider == "openai" and has_base_url)
    own = model.settings or {}
    extra = own.get("extra_body")
    shaping = _SHAPING & {*own, *(extra if isinstance(extra, dict) else ())}
    return _is_chat(model) and not shaping


def _is_chat(model: ProviderModel) -> bool:
    chat = sys.modules.get("pydantic_ai.models.openai")  # Importing it takes long.
    return chat is not None and isinstance(model, chat.OpenAIChatModel)


def _reasons(settings: ModelSettings) -> bool:
    """Whether Anthropic's models reason with these settings."""
    asked = provider_settings(settings, "anthropic", {}, has_tools=False)
    return bool(asked.get("thinking")) or "anthropic_thinking" in asked


class Begun:
    """The text of an answer so far, which the model continues."""

    def __init__(self, text: str, form: Form) -> None:
        self._seam = Seam(text, may_echo=True)
        self._form = form

    @property
    def was_repeated(self) -> bool:
        """Whether the provider repeated the text before the rest."""
        return self._seam.was_repeated

    def request(
        self,
        model: ProviderModel,
        messages: Sequence[pm.ModelMessage],
        settings: ProviderSettings,
    ) -> tuple[ProviderModel, list[pm.ModelMessage], ProviderSettings]:
        """Return the model, the messages and the settings with which the answer is continued."""
        sent = self._seam.sent
        continuing = _continuing(model, marks_last=bool(sent) and self._form == "prefix")
        if not sent:
            return continuing, list(messages), settings
        own: Mapping[str, Any] = model.settings or {}
        changed: dict[str, Any] = {**settings}
        limit = settings.get("max_tokens", own.get("max_tokens"))
        if limit is not None:
            changed["max_tokens"] = max(1, limit - text_tokens(sent))
        if self._form == "flags":
            changed["extra_body"] = {**own.get("extra_body", {}), **_FLAGS}
        beginning = pm.ModelResponse([pm.TextPart(sent)])
        return continuing, [*messages, beginning], cast("ProviderSettings", changed)

    def joined(self, delta: Delta) -> Iterator[Delta]:
        """Yield what a delta of the rest adds to the text so far."""
        text = self._seam.take(delta.text) if isinstance(delta, TextPart) else self._seam.flush()
        if text:
            yield TextPart(text)
        if not isinstance(delta, TextPart):
            yield delta


def _continuing(model: ProviderModel, *, marks_last: bool) -> ProviderModel:
    """Return the model with the changes that the rest of an answer needs.

    Its text may begin with whitespace, which Pydantic AI drops at the beginning of some models'
    answers. ``marks_last`` sets ``prefix`` on the last message.
    """
    if not _is_chat(model):
        return model
    chat = cast("OpenAIChatModel", model)
    profile = {**chat.profile, "ignore_streamed_leading_whitespace": False}
    rest = type(chat)(
        chat.model_name,
        provider=_beta(chat) if marks_last else cast("Any", chat.provider),
        profile=cast("Any", profile),
        settings=chat.settings,
    )
    if marks_last:
        _mark_last(rest)
    return rest


def _beta(model: "OpenAIChatModel") -> Any:
    """Return the model's provider; for DeepSeek's own API, at the address that takes prefixes."""
    provider = model.provider
    assert provider is not None
    address = str(model.client.base_url).rstrip("/")
    if provider.name != "deepseek" or address != provider.base_url.rstrip("/"):
        return provider
    from pydantic_ai.providers.deepseek import DeepSeekProvider

    return DeepSeekProvider(openai_client=model.client.with_options(base_url=f"{address}/beta"))


def _mark_last(model: "OpenAIChatModel") -> None:
    """Set ``prefix`` on the last message of requests.

    Pydantic AI has no setting for it, so this wraps a private method; pyproject bounds its version.
    """
    map_messages = model._map_messages

    async def marked(*args: Any, **kwargs: Any) -> Any:
        messages = await map_messages(*args, **kwargs)
        last = cast("dict[str, Any]", messages[-1])
        last["prefix"] = True
        return messages

    model._map_messages = marked  # type: ignore[method-assign]
