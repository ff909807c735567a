"""Images that clients name by URL, in the form that the provider gets.

A hosted provider that fetches images from the internet itself gets the URL. A model server in the
operator's network could be made to fetch what only that network reaches, and Pydantic AI fetches
here for providers that accept only bytes. Both get the bytes instead, fetched like callbacks: only
from addresses that clients may name.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urljoin, urlsplit

from reattach.domain.errors import ModelError, UrlRefusedError, UrlUnreachableError
from reattach.domain.limits import MAX_ERROR_CHARS, MAX_IMAGE_BYTES
from reattach.domain.limits.outbound import (
    IMAGE_FETCH_SECONDS,
    IMAGE_REDIRECTS,
    IMAGES_FETCH_SECONDS,
    IMAGES_FETCHED_AT_ONCE,
    IMAGES_FETCHED_BYTES,
)
from reattach.domain.messages import IMAGE_TYPES, ImagePart, Message, ToolReturnPart
from reattach.engine.base import Turn
from reattach.outbound.requests import Outbound, Resolve, checked_url, resolve

if TYPE_CHECKING:
    from reattach.outbound.requests import Response

FETCHING_HOSTS: Final = frozenset(
    {
        "api.anthropic.com",
        "api.fireworks.ai",
        "api.groq.com",
        "api.mistral.ai",
        "api.openai.com",
        "api.together.xyz",
        "api.x.ai",
        "openrouter.ai",
    }
)
"""Providers that fetch images themselves, outside of the operator's network."""


class FetchedImage(NamedTuple):
    """The bytes of an image and their media type."""

    data: bytes
    media_type: str


ImagesByUrl = Mapping[str, FetchedImage | None]
"""None for an image that the provider fetches itself. A URL without a key is left out."""


class ImageFetcher:
    """Fetches the images of turns, and caches the newest for later steps and turns."""

    def __init__(self, *, to_private: bool = False, resolve: Resolve = resolve) -> None:
        """``to_private`` allows addresses that are not of the public internet."""
        self._to_private = to_private
        self._outbound = Outbound(to_private=to_private, resolve=resolve)
        self._cache: OrderedDict[str, FetchedImage] = OrderedDict()

    async def images(self, turn: Turn, provider_url: str | None) -> ImagesByUrl:
        """Return the images that the turn names by URL, for the provider at ``provider_url``.

        An image of the history that cannot be fetched is left out, because no stored message may
        make a conversation unusable.

        Raises:
            ModelError: An image of the turn's input cannot be fetched.
        """
        fetches_itself = urlsplit(provider_url or "").hostname in FETCHING_HOSTS
        needed = list(dict.fromkeys(_urls_of(turn.input)))
        # The newest come first, so that the oldest are left out if the bound is reached.
        urls = list(dict.fromkeys((*needed, *_urls_of(turn.history))))
        found: ImagesByUrl
        if fetches_itself:
            found = dict.fromkeys(url for url in urls if self._may_be_shown(url))
        else:
            found = await self._fetch_all(urls)
        if missing := [url for url in needed if url not in found]:
            raise ModelError(
                f"The image at {missing[0][:MAX_ERROR_CHARS]} cannot be fetched. Send it as "
                "base64, or by a URL on the public internet that answers with an image."
            )
        return found

    def _may_be_shown(self, url: str) -> bool:
        try:
            checked_url(url, to_private=self._to_private)
        except UrlRefusedError:
            return False
        return True

    async def _fetch_all(self, urls: Sequence[str]) -> dict[str, FetchedImage]:
        """Return the first images that together fit into the bounds of size and time."""
        found: dict[str, FetchedImage] = {}
        left_bytes = IMAGES_FETCHED_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(IMAGES_FETCH_SECONDS):
                for start in range(0, len(urls), IMAGES_FETCHED_AT_ONCE):
                    batch = urls[start : start + IMAGES_FETCHED_AT_ONCE]
                    images = await asyncio.gather(*map(self._image, batch))
                    for url, image in zip(batch, images, strict=True):
                        left_bytes -= 0 if image is None else len(image.data)
                        if left_bytes < 0:
                            return found
                        if image is not None:
                            found[url] = image
        return found

    async def _image(self, url: str) -> FetchedImage | None:
        """Return the image, or None without a reason, which could reveal the operator's network."""
        image = self._cache.pop(url, None)
        if image is None:
            try:
                async with asyncio.timeout(IMAGE_FETCH_SECONDS):
                    image = await self._fetch(url)
            except (UrlRefusedError, UrlUnreachableError, TimeoutError, ValueError):
                return None
        if image is not None:
            self._cache[url] = image
            while sum(len(one.data) for one in self._cache.values()) > IMAGES_FETCHED_BYTES:
                self._cache.popitem(last=False)
        return image

    async def _fetch(self, url: str) -> FetchedImage | None:
        headers = {"accept": ", ".join(sorted(IMAGE_TYPES)), "accept-encoding": "identity"}
        for _ in range(1 + IMAGE_REDIRECTS):
            async with self._outbound.stream("GET", url, headers=headers) as response:
                if response.is_redirect:
                    # The next address is checked like the first.
                    url = urljoin(url, response.headers.get("location", ""))
                    continue
                return await _read(response)
        return None


async def _read(response: "Response") -> FetchedImage | None:
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = response.headers.get("content-encoding", "identity").lower()
    if response.status_code != 200 or media_type not in IMAGE_TYPES or encoding != "identity":
        return None
    data = bytearray()
    async for piece in response.aiter_raw():
        data += piece
        if len(data) > MAX_IMAGE_BYTES:
            return None
    return FetchedImage(bytes(data), media_type) if data else None


def _urls_of(messages: Sequence[Message]) -> Iterator[str]:
    for message in reversed(messages):
        for part in message.parts:
            images = part.images if isinstance(part, ToolReturnPart) else (part,)
            for image in images:
                if isinstance(image, ImagePart) and image.base64_data is None and image.url:
                    yield image.url
