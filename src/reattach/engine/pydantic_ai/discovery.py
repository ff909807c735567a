"""Hosted models that no setting names: each provider with a key is asked for its list.

The list is fetched in the background, within a bound, and kept. A handle of such a provider works
whether it is listed or not.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx2
import msgspec
import structlog
from typing_extensions import override

from reattach.domain.backoff import Backoff
from reattach.domain.errors import StartupError
from reattach.domain.limits import (
    MAX_LISTED_MODELS,
    MAX_MODEL_LIST_BYTES,
    MODEL_LIST_RETRY_SECONDS,
    MODEL_LIST_SECONDS,
    MODEL_LIST_TIMEOUT_SECONDS,
    MODEL_SILENCE_SECONDS,
)
from reattach.engine.base import Model
from reattach.engine.providers import Account
from reattach.engine.pydantic_ai import PydanticAIEngine, offered_model
from reattach.engine.pydantic_ai.images import ImageFetcher
from reattach.redact import redact_url

logger = structlog.get_logger(__name__)

_NO_CHAT: Final = re.compile(
    r"embed|rerank|whisper|tts|dall-e|moderation|realtime|transcri|-audio|gpt-image|-image|sora"
    r"|imagen|veo|davinci|babbage|computer-use|-instruct$|^omni|aqa",
)
"""Names of OpenAI's and Google's models that hold no conversation."""

_NO_CHAT_ANYWHERE: Final = re.compile(r"embed|rerank|whisper")
_WINDOWS: Final = (
    *("max_model_len", "context_length", "context_window"),
    *("inputTokenLimit", "max_input_tokens", "max_context_length"),
)
"""The members with a model's context window in the lists of providers."""


class DiscoveringEngine(PydanticAIEngine):
    """Offers the listed models of ``accounts``, and accepts any other handle of theirs.

    ``keep_current`` fetches the lists; until then, no model is listed.
    """

    lists_later = True

    def __init__(
        self,
        accounts: Sequence[Account],
        *,
        openai_base_url: str | None = None,
        openai_api_key: str | None = None,
        silence_seconds: float = MODEL_SILENCE_SECONDS,
        images: ImageFetcher | None = None,
        continue_models: Sequence[str] = (),
    ) -> None:
        """Imports the providers' packages, so construct it before the event loop runs.

        A provider whose package is not installed is left out; ``problems`` reports it.
        """
        super().__init__(
            (),
            openai_base_url=openai_base_url,
            openai_api_key=openai_api_key,
            silence_seconds=silence_seconds,
            images=images,
            continue_models=continue_models,
        )
        self._left_out: list[str] = []
        self._accounts: dict[str, Account] = {}
        for account in accounts:
            name = account.provider.name
            try:
                offered_model(f"{name}/any")
            except StartupError:
                self._left_out.append(
                    f"{account.source} is set, but the package for {name}/… is not installed."
                )
            else:
                self._accounts[name] = account
        self._listed: dict[str, list[Model]] = {name: [] for name in self._accounts}
        self._problems: dict[str, str] = {}
        self._wanted = asyncio.Event()

    @override
    def models(self) -> Sequence[Model]:
        self._wanted.set()
        return [model for models in self._listed.values() for model in models]

    @override
    def find(self, handle: str) -> Model | None:
        provider, _, name = handle.partition("/")
        if provider not in self._accounts or not name:
            return None
        for model in self._listed[provider]:
            if model.handle == handle:
                return model
        return offered_model(handle)

    @override
    async def keep_current(self) -> None:
        backoff = Backoff(MODEL_LIST_RETRY_SECONDS, MODEL_LIST_SECONDS)
        while True:
            if await self.refresh():
                backoff.reset()
                self._wanted.clear()
                await asyncio.sleep(MODEL_LIST_SECONDS)
                await self._wanted.wait()
            else:
                await backoff.wait()

    @override
    async def refresh(self) -> bool:
        async with await asyncio.to_thread(_client) as client:
            return all(
                await asyncio.gather(
                    *(self._refresh(client, account) for account in self._accounts.values())
                )
            )

    @override
    def problems(self) -> Sequence[str]:
        said = [
            f"{self._accounts[name].source}: the models of {name} are not listed: {problem}"
            for name, problem in self._problems.items()
            if problem
        ]
        return [*self._left_out, *said]

    async def _refresh(self, client: httpx2.AsyncClient, account: Account) -> bool:
        name = account.provider.name
        problem, reached = "", True
        try:
            async with asyncio.timeout(MODEL_LIST_TIMEOUT_SECONDS):
                entries = await _fetch_entries(client, account)
            models = await asyncio.to_thread(_models, account, entries)
        except _RefusedError as refused:
            problem = f"it answers {refused}"
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, TimeoutError) as error:
            problem, reached = type(error).__name__, False
        except (msgspec.DecodeError, TypeError, AttributeError, ValueError):
            problem = "its list of models cannot be read"
        else:
            if [model.handle for model in models] != [m.handle for m in self._listed[name]]:
                self._listed[name] = models
                shown = ", ".join(model.handle for model in models[:5])
                logger.info("models listed", provider=name, count=len(models), first=shown)
        if problem and self._problems.get(name) != problem:
            logger.warning(
                "models not listed",
                provider=name,
                url=redact_url(account.base_url),
                problem=problem,
                remedy=f"Check {account.source}, or set REATTACH_MODELS. Any handle {name}/… works "
                "without the list.",
            )
        self._problems[name] = problem
        return reached


class _RefusedError(Exception):
    """The provider answered with a status other than 200."""


def _client() -> httpx2.AsyncClient:
    """Make the HTTP client. Reads certificates, so call it in a thread."""
    return httpx2.AsyncClient(timeout=MODEL_LIST_TIMEOUT_SECONDS, follow_redirects=False)


async def _fetch_entries(
    client: httpx2.AsyncClient, account: Account
) -> Sequence[Mapping[str, Any]]:
    """Return the entries of the provider's list.

    Raises _RefusedError, and any error of the connection or the format.
    """
    key = account.key or ""
    match account.provider.listing:
        case "openai":
            path, headers = "/models", {"authorization": f"Bearer {key}"} if key else {}
        case "anthropic":
            path = "/v1/models?limit=1000"
            headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
        case "google":
            path, headers = "/v1beta/models?pageSize=1000", {"x-goog-api-key": key}
    body = bytearray()
    async with client.stream("GET", account.base_url + path, headers=headers) as response:
        if response.status_code != 200:
            raise _RefusedError(response.status_code)
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > MAX_MODEL_LIST_BYTES:
                raise ValueError("too long")
    answer = msgspec.json.decode(bytes(body))
    entries = answer if isinstance(answer, list) else answer.get("data") or answer.get("models")
    return [entry for entry in entries or [] if isinstance(entry, dict)][:MAX_LISTED_MODELS]


def _models(account: Account, entries: Sequence[Mapping[str, Any]]) -> list[Model]:
    """Return the models of a list that hold conversations, the newest first."""
    hosts_many = account.base_url != account.provider.base_url.rstrip("/")
    unfit = _NO_CHAT_ANYWHERE if hosts_many else _NO_CHAT
    models: dict[str, Model] = {}
    for entry in sorted(entries, key=_age):
        name = str(entry.get("id") or entry.get("name") or "").removeprefix("models/")
        methods = entry.get("supportedGenerationMethods")
        if not name or unfit.search(name) or (methods and "generateContent" not in methods):
            continue
        handle = f"{account.provider.name}/{name}"
        models[handle] = offered_model(handle, context_tokens=_window(entry))
    return list(models.values())


def _age(entry: Mapping[str, Any]) -> float:
    created = entry.get("created")
    return -float(created) if isinstance(created, int | float) else 0.0


def _window(entry: Mapping[str, Any]) -> int | None:
    for name in _WINDOWS:
        value = entry.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
