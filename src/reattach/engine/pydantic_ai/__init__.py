"""Hosted models and OpenAI-compatible servers, through Pydantic AI.

Keys come from each provider's usual environment variable. The handle ``provider/name`` is Pydantic
AI's ``provider:name``. With a base URL, ``openai/name`` is the model ``name`` of that server's chat
completions. Importing this module raises StartupError if Pydantic AI is not installed.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, Final, cast

from reattach.domain.errors import StartupError
from reattach.domain.limits import MODEL_FIRST_SECONDS, MODEL_SILENCE_SECONDS
from reattach.domain.messages import ReasoningPart, TextPart, ToolCallPart, ToolReturnPart
from reattach.engine.base import (
    ONLY_STEP,
    ClientTool,
    Delta,
    Engine,
    Model,
    ServerTool,
    Turn,
    Way,
    closing_deltas,
)
from reattach.engine.prefix import (
    PREFIX_OR_STEP,
    Rest,
    prefix_of,
    refuse_to_repeat,
    without_partial,
)
from reattach.engine.providers import continue_forms
from reattach.extras import install_hint

try:
    import pydantic_ai.messages as pm
    from pydantic_ai import exceptions
    from pydantic_ai.direct import model_request_stream
    from pydantic_ai.models import Model as ProviderModel
    from pydantic_ai.models import (
        ModelRequestParameters,
        StreamedResponse,
        infer_model,
        infer_model_profile,
    )
    from pydantic_ai.providers import infer_provider_class
    from pydantic_ai.settings import ModelSettings as ProviderSettings
    from pydantic_ai.tools import ToolDefinition
except ImportError as error:
    raise StartupError(
        "Hosted models need the package Pydantic AI, which is not installed.",
        remedy=f"{install_hint('providers')} Or remove REATTACH_MODELS.",
    ) from error

from reattach.engine.pydantic_ai.answer import Answer, counted_usage
from reattach.engine.pydantic_ai.begun import Begun, form_of, has_chat
from reattach.engine.pydantic_ai.body import Body, watch
from reattach.engine.pydantic_ai.failures import engine_error, is_prefix_refusal
from reattach.engine.pydantic_ai.images import ImageFetcher
from reattach.engine.pydantic_ai.provider_messages import provider_messages
from reattach.engine.pydantic_ai.settings import provider_settings

_DEFAULT_CONTEXT_TOKENS: Final = 128_000
_PROVIDERS: Final[Mapping[str, str]] = {"google_ai": "google", "google_vertex": "google-cloud"}
"""Pydantic AI's names of providers that the Letta API names differently."""

_PROVIDER_TYPES: Final[Mapping[str, str]] = {
    "google": "google_ai",
    "google-cloud": "google_vertex",
    "huggingface": "hugging-face",
    "moonshotai": "moonshot",
    **{
        name: name
        for name in (
            "anthropic", "azure", "bedrock", "cerebras", "deepseek", "fireworks", "groq",
            "mistral", "ollama", "openrouter", "together", "vllm", "xai", "zai",
        )
    },
}  # fmt: skip
"""The SDK's provider types; every other provider is ``openai``."""


class PydanticAIEngine(Engine):
    """Answers with any model that Pydantic AI supports; one call of the model is one turn.

    The client's tools are offered to the model; a call of one ends the turn with
    ``requires_approval``. Clients and connections are created with a model's first turn, and belong
    to that turn's event loop.
    """

    announces_tools = True  # It runs none itself.
    own_tools = ()

    def __init__(
        self,
        handles: Sequence[str] = (),
        *,
        openai_base_url: str | None = None,
        openai_api_key: str | None = None,
        models: Mapping[str, ProviderModel] | None = None,
        max_retries: int = 0,
        silence_seconds: float = MODEL_SILENCE_SECONDS,
        first_seconds: float = MODEL_FIRST_SECONDS,
        images: ImageFetcher | None = None,
        continue_models: Sequence[str] = (),
    ) -> None:
        """Offer ``handles``, and ``models`` constructed elsewhere by their handles.

        ``openai_base_url`` and ``openai_api_key`` take precedence over ``OPENAI_BASE_URL`` and
        ``OPENAI_API_KEY``. Of a provider's client, a request is repeated up to ``max_retries``
        times; the caller repeats a turn whose error may pass, so more would multiply the requests.
        A provider that sends no byte for ``first_seconds`` before its first output, or for
        ``silence_seconds`` after it, has timed out. ``images`` decides which image URLs may be
        fetched; None: those on the public internet. ``continue_models`` are entries
        ``pattern=form`` (``ContinueForm``) of models that continue a begun answer.

        Imports the providers' packages, so construct it before the event loop runs. A missing key
        is an error of the turn that needs it.

        Raises:
            StartupError: A handle is not ``provider/name``, its provider is unknown, or the
                provider's package is not installed.
            ValueError: An entry of ``continue_models`` is not ``pattern=form``.
        """
        self._continue_forms = continue_forms(continue_models)
        self._base_url = openai_base_url or os.environ.get("OPENAI_BASE_URL")
        self._api_key = openai_api_key or os.environ.get("OPENAI_API_KEY")
        self._max_retries = max_retries
        self._silence_seconds = silence_seconds
        self._first_seconds = max(first_seconds, silence_seconds)
        self._prefix_refused: set[str] = set()
        """The handles whose provider refused a prefix, until the process ends."""
        self._images = images or ImageFetcher()
        self._provider_models = dict(models or {})
        self._opened: dict[str, ProviderModel] = {}
        self._opening = asyncio.Lock()
        self._closing = AsyncExitStack()
        self._offered = [
            *(_offer(handle, _context_tokens(handle)) for handle in handles),
            *(_offer(handle, model.context_window) for handle, model in (models or {}).items()),
        ]

    def models(self) -> Sequence[Model]:
        return self._offered

    def ways(self, turn: Turn) -> Collection[Way]:
        """Return ``prefix`` too for models that are known to continue a begun answer.

        These are those of ``continue_models``, and Anthropic's Haiku 4.5 and Opus 4.5 while they do
        not reason; none whose provider refused a prefix.
        """
        if turn.model in self._prefix_refused or self._begun(turn) is None:
            return ONLY_STEP
        return PREFIX_OR_STEP

    def run(self, turn: Turn) -> AsyncIterator[Delta]:
        return self._run(turn, self._begun(turn))

    async def rest_of(self, turn: Turn, *, most_chars: int) -> Rest:
        """Return how the model continues ``turn.partial``, to check whether it can.

        Stops reading at about ``most_chars``.

        Raises:
            EngineError: The call failed, or ``ways`` has no ``prefix`` for the turn.
        """
        begun = self._begun(turn)
        text, has_reasoning = "", False
        async with closing_deltas(self._run(turn, begun)) as deltas:
            async for delta in deltas:
                if isinstance(delta, TextPart):
                    text += delta.text
                has_reasoning = has_reasoning or isinstance(delta, ReasoningPart)
                if len(text) >= most_chars:
                    break
        return Rest(text, has_reasoning, begun is not None and begun.was_repeated)

    async def _run(self, turn: Turn, begun: Begun | None) -> AsyncIterator[Delta]:
        if begun is None:
            refuse_to_repeat(turn)
        turn = without_partial(turn)
        answer = Answer(has_text=begun is not None)
        body = Body(silence_seconds=self._silence_seconds)
        returns = [unknown_tool(call) for call in turn.due]
        for returned in returns:
            yield returned
        model: ProviderModel | None = None
        stream: StreamedResponse | None = None
        try:
            model = await self._open(turn.model)
            sees = model.profile.get("supports_image_input", True)
            images = await self._images.images(turn, _base_url(model)) if sees else {}
            messages = provider_messages(turn, returns, sees_images=sees, images=images)
            asked, settings = model, self._settings(turn, model)
            if begun is not None:
                asked, messages, settings = begun.request(model, messages, settings)
            request = model_request_stream(
                asked,
                messages,
                model_settings=settings,
                model_request_parameters=_parameters(turn),
            )
            async with AsyncExitStack() as stack:
                stack.push_async_callback(body.aclose)
                with body.watching():
                    stream = await stack.enter_async_context(request)
                events = cast("AsyncGenerator[pm.ModelResponseStreamEvent]", aiter(stream))
                async with aclosing(events):
                    async for event in events:
                        for delta in answer.deltas(event):
                            body.has_begun = True
                            for joined in (delta,) if begun is None else begun.joined(delta):
                                yield joined
        except (exceptions.AgentRunError, exceptions.UserError, ImportError) as error:
            failure = engine_error(
                error,
                turn,
                body,
                base_url=None if model is None else _base_url(model),
                secrets=[self._api_key] if self._api_key else [],
                sent_prefix=begun is not None,
            )
            if begun is not None and is_prefix_refusal(error):
                self._prefix_refused.add(turn.model)
            if stream is not None:
                for step in counted_usage(stream, body, broke_off=failure.may_pass):
                    yield step
            raise failure from error
        for delta in answer.end(stream, body, turn.model):
            for joined in (delta,) if begun is None else begun.joined(delta):
                yield joined

    async def aclose(self) -> None:
        """Close the connections to the providers."""
        self._opened.clear()
        await self._closing.aclose()

    def _begun(self, turn: Turn) -> Begun | None:
        """Return the beginning of the turn's answer; None if the model gets none."""
        provider, _ = _provider_and_name(turn.model)
        known = self._provider_models.get(turn.model)
        chats = has_chat(provider, known, has_base_url=self._base_url is not None)
        form = form_of(turn.model, turn.settings, self._continue_forms, has_chat=chats)
        found = None if form is None else prefix_of(turn)
        return None if form is None or found is None else Begun(found.text, form)

    async def _open(self, handle: str) -> ProviderModel:
        async with self._opening:
            model = self._opened.get(handle)
            if model is None:
                # In a thread, because it imports packages and reads certificates.
                model = await asyncio.to_thread(self._provider_model, handle)
                await self._closing.enter_async_context(model)
                watch(model)
                self._opened[handle] = model
            return model

    def _provider_model(self, handle: str) -> ProviderModel:
        if handle in self._provider_models:
            return self._provider_models[handle]
        provider, name = _provider_and_name(handle)
        if provider != "openai" or self._base_url is None:
            return infer_model(f"{provider}:{name}")
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

        compatible = OpenAICompatibleProvider(
            "openai-compatible", base_url=self._base_url, api_key=self._api_key
        )
        return OpenAIChatModel(name, provider=compatible)

    def _settings(self, turn: Turn, model: ProviderModel) -> ProviderSettings:
        provider, _ = _provider_and_name(turn.model)
        has_tools = bool(turn.client_tools or turn.tools)
        settings = provider_settings(turn.settings, provider, model.profile, has_tools=has_tools)
        # The others' clients would warn that they ignore the setting.
        if "max_retries" not in model.unsupported_settings:
            settings["max_retries"] = self._max_retries
        if "timeout" not in model.unsupported_settings:
            settings["timeout"] = self._first_seconds
        return settings


def _base_url(model: ProviderModel) -> str | None:
    """Return the base URL of the model's provider; None if the model has none."""
    return getattr(model, "base_url", None)


# The models on offer.


def _provider_and_name(handle: str) -> tuple[str, str]:
    provider, _, name = handle.partition("/")
    if not provider or not name:
        raise StartupError(
            f"The model handle '{handle}' does not have the form provider/name.",
            remedy="Write it as in openai/gpt-4o-mini.",
        )
    return _PROVIDERS.get(provider, provider), name


def _offer(handle: str, context_tokens: int | None) -> Model:
    provider, name = _provider_and_name(handle)
    return Model(
        handle=handle,
        name=name,
        provider_name=handle.partition("/")[0],
        provider_type=_PROVIDER_TYPES.get(provider, "openai"),
        context_window_tokens=context_tokens or _DEFAULT_CONTEXT_TOKENS,
    )


def offered_model(handle: str, *, context_tokens: int | None = None) -> Model:
    """Return the model of a handle. Raises StartupError as the engine does."""
    return _offer(handle, context_tokens or _context_tokens(handle))


def _context_tokens(handle: str) -> int | None:
    return model_profile(handle).get("context_window")


def model_profile(handle: str) -> Mapping[str, Any]:
    """Return the known facts of a handle's model. Raises StartupError as the engine does."""
    provider, name = _provider_and_name(handle)
    try:
        infer_provider_class(provider)
        return cast("Mapping[str, Any]", infer_model_profile(f"{provider}:{name}"))
    except ImportError as error:
        raise StartupError(
            f"The model {handle} needs a package that is not installed.", remedy=str(error)
        ) from error
    except ValueError as error:
        raise StartupError(
            f"The model {handle} names the unknown provider {provider}.",
            remedy="Correct REATTACH_MODELS.",
        ) from error


def unknown_tool(call: ToolCallPart) -> ToolReturnPart:
    """Return the error for an approved call of a tool that the server does not have."""
    return call.error_return(
        f"The server has no tool {call.name}. The client has to run it and send its return."
    )


def _parameters(turn: Turn) -> ModelRequestParameters:
    tools: list[ClientTool | ServerTool] = [*turn.client_tools, *turn.tools]
    return ModelRequestParameters(
        function_tools=[
            ToolDefinition(
                name=tool.name,
                description=tool.description,
                parameters_json_schema=dict(tool.parameters or {"type": "object"}),
            )
            for tool in tools
        ]
    )
