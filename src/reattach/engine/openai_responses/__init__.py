"""OpenAI's models through the Responses API, whose answers the provider keeps.

An answer is produced in the background and stored, so it goes on when the connection breaks or the
server dies, and it is followed again by its id: nothing is generated twice. The handle is
``openai-responses/name``. Importing this module raises StartupError if the extra ``providers`` is
not installed.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from typing import Any, Final

from reattach.domain.clock import Clock, SystemClock
from reattach.domain.errors import ModelAuthenticationError, StartupError
from reattach.engine.base import (
    ONLY_STEP,
    Delta,
    Engine,
    Model,
    Turn,
    Way,
    closing_deltas,
)
from reattach.engine.providers import OPENAI_RESPONSES
from reattach.engine.pydantic_ai import model_profile, offered_model, unknown_tool
from reattach.engine.pydantic_ai.images import ImageFetcher
from reattach.extras import install_hint
from reattach.outbound.bodies import end_reading_on_close

try:
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout
except ImportError as error:
    raise StartupError(
        "Models of OpenAI need the package openai, which is not installed.",
        remedy=f"{install_hint('providers')} Or remove openai-responses/… from REATTACH_MODELS.",
    ) from error

from reattach.engine.openai_responses.failures import Failures
from reattach.engine.openai_responses.following import (
    AnswerFailedForNowError,
    Following,
    stop_answer,
)
from reattach.engine.openai_responses.request import Json, response_request

_CONNECT_SECONDS: Final = 10.0
_SILENCE_SECONDS: Final = 300.0
"""Reasoning models are silent for minutes."""

_CANCEL_WAIT_SECONDS: Final = 0.9
"""The wait of a run that ends; the request goes on in the background."""


def _is_own(handle: str) -> bool:
    provider, _, name = handle.partition("/")
    return provider == OPENAI_RESPONSES and bool(name)


class OpenAIResponsesEngine(Engine):
    """Answers with OpenAI's models; one call of the model is one turn.

    AnswerKept comes before everything else of a call. A turn whose partial output has an
    ``upstream_id`` is continued with the answer of that id, so the model is called again only if
    that answer failed before any output of it was shown.

    Closing a turn's generator leaves the answer at the provider. An exception are answers whose id
    was not yielded yet: nobody could follow them, so they are stopped in the background.

    Connections are made with the first turn, and belong to that turn's event loop.
    """

    announces_tools = True  # It runs none itself.
    own_tools = ()

    def __init__(
        self,
        handles: Sequence[str] = (),
        *,
        accepts_any: bool = False,
        base_url: str | None = None,
        api_key: str | None = None,
        clock: Clock | None = None,
        images: ImageFetcher | None = None,
        silence_seconds: float = _SILENCE_SECONDS,
    ) -> None:
        """Offer ``handles``, and with ``accepts_any`` every other handle ``openai-responses/…``.

        ``base_url`` and ``api_key`` take precedence over ``OPENAI_BASE_URL`` and
        ``OPENAI_API_KEY``. ``clock`` times the pauses between requests for an answer that can no
        longer be streamed. ``images`` decides which image URLs may be fetched; None: those on the
        public internet. A stream without a byte for ``silence_seconds`` counts as broken.

        Imports the provider's package, so construct it before the event loop runs. A missing key is
        an error of the turn that needs it. Raises StartupError if a handle is not one of these.
        """
        for handle in handles:
            if not _is_own(handle):
                raise StartupError(
                    f"The model handle '{handle}' does not have the form {OPENAI_RESPONSES}/name.",
                    remedy="Write it as in openai-responses/gpt-5.1.",
                )
        offered_model(f"{OPENAI_RESPONSES}/any")  # Imports what ``find`` needs.
        self._offered = [offered_model(handle) for handle in handles]
        self._accepts_any = accepts_any
        self._base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        self._api_key = api_key or os.environ.get("OPENAI_API_KEY") or None
        self._clock = clock or SystemClock()
        self._images = images or ImageFetcher()
        self._timeout = Timeout(silence_seconds, connect=_CONNECT_SECONDS)
        self._client: AsyncOpenAI | None = None
        self._opening = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()

    def models(self) -> Sequence[Model]:
        return self._offered

    def find(self, handle: str) -> Model | None:
        if self._accepts_any and _is_own(handle):
            return super().find(handle) or offered_model(handle)
        return super().find(handle)

    def ways(self, turn: Turn) -> Collection[Way]:
        """Return ``upstream`` too if the partial output has the id of an answer."""
        return ONLY_STEP if _kept_id(turn) is None else {Way.UPSTREAM, Way.STEP}

    async def run(self, turn: Turn) -> AsyncIterator[Delta]:
        following = await self._following(turn)
        kept_id = _kept_id(turn)
        if kept_id is not None:
            try:
                async with closing_deltas(following.follow(kept_id)) as deltas:
                    async for delta in deltas:
                        yield delta
            except AnswerFailedForNowError:
                pass  # Nothing of it was shown, so another call of the model replaces it.
            else:
                return
        returns = [unknown_tool(call) for call in turn.due]
        for returned in returns:
            yield returned
        request = await self._request(following.client, turn, returns)
        created = following.create(request, in_background=self._in_background)
        async with closing_deltas(created) as deltas:
            async for delta in deltas:
                yield delta

    async def cancel_upstream(self, model: str, upstream_id: str) -> None:
        try:
            client = await self._open(model)
        except ModelAuthenticationError:
            return  # Without a key there is no answer.
        stopping = self._in_background(stop_answer(client, model, upstream_id))
        await asyncio.wait({stopping}, timeout=_CANCEL_WAIT_SECONDS)

    async def aclose(self) -> None:
        """Close the connections, after a last short wait for answers that are being stopped."""
        if self._background:
            _, late = await asyncio.wait(self._background, timeout=_CANCEL_WAIT_SECONDS)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _open(self, model: str) -> AsyncOpenAI:
        async with self._opening:
            if self._client is None:
                if self._api_key is None and self._base_url is None:
                    raise ModelAuthenticationError(
                        f"There is no key for the provider of {model}. Set OPENAI_API_KEY in "
                        "the server's environment and start it again."
                    )
                # In a thread, because it reads certificates.
                self._client = await asyncio.to_thread(self._make_client)
            return self._client

    def _make_client(self) -> AsyncOpenAI:
        # A repeated request would be a second answer that is paid for.
        return AsyncOpenAI(
            api_key=self._api_key or "none",
            base_url=self._base_url,
            max_retries=0,
            timeout=self._timeout,
            http_client=DefaultAsyncHttpxClient(event_hooks={"response": [end_reading_on_close]}),
        )

    async def _following(self, turn: Turn) -> Following:
        """Return the requests for a turn. Raises ModelAuthenticationError without a key."""
        client = await self._open(turn.model)
        secrets = [self._api_key] if self._api_key else []
        failures = Failures(turn, self._clock, str(client.base_url), secrets)
        return Following(client, turn, failures, self._clock)

    async def _request(self, client: AsyncOpenAI, turn: Turn, returns: Sequence[Any]) -> Json:
        profile: Mapping[str, Any] = model_profile(turn.model)
        sees_images = profile.get("supports_image_input", True)
        images = await self._images.images(turn, str(client.base_url)) if sees_images else None
        return response_request(turn, profile, returns, images)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _kept_id(turn: Turn) -> str | None:
    return None if turn.partial is None else turn.partial.upstream_id
