"""A push parser of server-sent events."""

import codecs
from dataclasses import dataclass
from typing import Final

KEEPALIVE: Final = "keepalive"
"""The comment by which the server shows during silence that it is there."""


@dataclass(slots=True)
class Frame:
    """A block of a stream. A keepalive, which is a comment, is a frame with the event ``ping``."""

    event: str = ""
    id: str = ""
    data: str | None = None
    retry: str = ""


class Parser:
    """Gets a stream in pieces and returns the frames that each piece completes.

    Lines end with LF, CRLF or CR, also when a piece ends within CRLF or within a character. A frame
    without its blank line is never returned.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._rest: list[str] = []
        """The pieces of a line that is not complete."""
        self._ended_with_cr = False
        self._frame = Frame()

    def feed(self, data: bytes) -> list[Frame]:
        text = self._decoder.decode(data)
        if self._ended_with_cr and text:
            text = text.removeprefix("\n")
        if text:
            self._ended_with_cr = text.endswith("\r")
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        first, *others = text.split("\n")
        self._rest.append(first)
        if not others:
            return []
        lines = ["".join(self._rest), *others]
        self._rest = [lines.pop()]
        frames: list[Frame] = []
        for line in lines:
            self._take(line, frames)
        return frames

    def _take(self, line: str, frames: list[Frame]) -> None:
        if not line:
            frames.append(self._frame)
            self._frame = Frame()
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        frame = self._frame
        match name:
            case "":
                if value == KEEPALIVE:
                    frames.append(Frame(event="ping"))
            case "data":
                frame.data = value if frame.data is None else f"{frame.data}\n{value}"
            case "event":
                frame.event = value
            case "id":
                frame.id = value
            case "retry":
                frame.retry = value
            case _:
                pass
