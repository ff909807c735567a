"""Parsing of message content as clients write it."""

import base64
import binascii
from typing import Final

from reattach.domain.errors import NotImplementedHereError, UrlRefusedError, ValidationFailedError
from reattach.domain.limits import MAX_IMAGE_BYTES
from reattach.domain.limits.requests import MAX_IMAGE_URL_CHARS, MAX_SEND_IMAGES
from reattach.domain.messages import (
    IMAGE_TYPES,
    ContentPart,
    ImagePart,
    Message,
    TextPart,
    ToolReturnPart,
)
from reattach.http.json import Fault, invalid
from reattach.http.schemas.sending import ImageSource, SentContent, SentImage, SentReturn
from reattach.outbound.requests import checked_url

_DEFAULT_TYPE: Final = "image/png"
_PLACE: Final = ("body", "messages", "content", "source")


def parts_of(content: SentContent) -> tuple[ContentPart, ...]:
    """Raises ValidationFailedError, and NotImplementedHereError for images by file id."""
    if isinstance(content, str):
        return (TextPart(content),)
    return tuple(
        image_of(part.source) if isinstance(part, SentImage) else TextPart(part.text)
        for part in content
    )


def return_of(sent: SentReturn) -> ToolReturnPart:
    """Return the result of a tool that the client ran; the tool's name is not known yet."""
    parts = parts_of(sent.tool_return)
    return ToolReturnPart(
        sent.tool_call_id,
        "",
        sent.status,
        "".join(part.text for part in parts if isinstance(part, TextPart)),
        None if sent.stdout is None else tuple(sent.stdout),
        None if sent.stderr is None else tuple(sent.stderr),
        tuple(part for part in parts if isinstance(part, ImagePart)),
    )


def check_images(messages: tuple[Message, ...], *, to_private: bool) -> None:
    """Check the number of images, and that the server may fetch their URLs.

    Raises:
        ValidationFailedError: There are too many images, or a URL is refused.
    """
    images: list[ImagePart] = []
    for part in (part for message in messages for part in message.parts):
        images += [part] if isinstance(part, ImagePart) else ()
        images += part.images if isinstance(part, ToolReturnPart) else ()
    if len(images) > MAX_SEND_IMAGES:
        message = f"The request has {len(images)} images; at most {MAX_SEND_IMAGES} are allowed."
        raise invalid([Fault(["body", "messages"], message, "too_many_images")])
    for image in images:
        if image.base64_data is None and image.url is not None:
            try:
                checked_url(image.url, to_private=to_private)
            except UrlRefusedError as error:
                raise _wrong(f"The URL of an image was refused. {error.detail}") from None


def image_of(source: ImageSource) -> ImagePart:
    """Return the image; a data URL becomes an inline image."""
    if source.type == "letta" and source.data is None:
        raise NotImplementedHereError(
            "Reattach does not support images by file id.", remedy="Send a URL or base64 data."
        )
    needed = "url" if source.type == "url" else "data"
    if getattr(source, needed) is None:
        raise _wrong(f"An image of type '{source.type}' requires '{needed}'.")
    if source.url is not None and source.type == "url":
        if not source.url.startswith("data:"):
            return _by_url(source.url, source.detail)
        head, separator, data = source.url.removeprefix("data:").partition(";base64,")
        if not separator:
            raise _wrong("The data URL of an image lacks ';base64,' before its data.")
        return _inline(data, head, source.detail)
    return _inline(source.data or "", source.media_type, source.detail)


def _by_url(url: str, detail: str | None) -> ImagePart:
    if not url.startswith(("https://", "http://")):
        raise _wrong("The URL of an image must start with https://, http:// or data:.")
    if len(url) > MAX_IMAGE_URL_CHARS:
        raise _wrong(f"The URL of an image may have at most {MAX_IMAGE_URL_CHARS} characters.")
    return ImagePart(url=url, detail=detail)


def _inline(data: str, media_type: str | None, detail: str | None) -> ImagePart:
    media_type = media_type or _DEFAULT_TYPE
    if media_type not in IMAGE_TYPES:
        raise _wrong(f"The type of an image must be one of {', '.join(sorted(IMAGE_TYPES))}.")
    if len(data) // 4 * 3 > MAX_IMAGE_BYTES:
        raise _wrong(f"An image may have at most {MAX_IMAGE_BYTES} bytes.")
    try:
        decoded = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise _wrong("The data of an image is not valid base64.") from None
    if not decoded:
        raise _wrong("The data of an image is empty.")
    return ImagePart(url=None, media_type=media_type, base64_data=data, detail=detail)


def _wrong(message: str) -> ValidationFailedError:
    return invalid([Fault(list(_PLACE), message, "image_source")])
