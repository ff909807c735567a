"""Schemas of the requests and answers of probes."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from reattach.domain.ids import PROBE_PATTERN
from reattach.domain.limits import MAX_REQUEST_BYTES
from reattach.domain.limits.requests import (
    MAX_PROBE_BURST_BYTES,
    MAX_PROBE_FRAMES,
    MAX_PROBE_SECONDS,
)
from reattach.http.schemas.fields import NUMERIC, Answer, Body

ProbeId = Annotated[
    str, Field(pattern=PROBE_PATTERN, description="The id of the probe, which the client chooses.")
]
_Seconds = Annotated[float, Field(ge=0, le=MAX_PROBE_SECONDS, allow_inf_nan=False), NUMERIC]


class ProbeStreamBody(Body):
    """The times of a stream: its first frame, the others, a silence, a burst, and its end."""

    probe: ProbeId
    stream: str = Field(
        "stream", pattern=r"^[a-z0-9-]{1,40}$", description="A name that the probe uses only once."
    )
    first_seconds: _Seconds = Field(0, description="Seconds from the head to the first frame.")
    frames: Annotated[int, Field(ge=0, le=MAX_PROBE_FRAMES), NUMERIC] = Field(
        1, description="Number of frames."
    )
    interval_seconds: _Seconds = Field(0.1, description="Seconds from one frame to the next.")
    silence_seconds: _Seconds = Field(0, description="Seconds of silence after the frames.")
    burst_bytes: Annotated[int, Field(ge=0, le=MAX_PROBE_BURST_BYTES), NUMERIC] = Field(
        0, description="The size of one more frame after the silence; 0: none."
    )
    last_seconds: _Seconds = Field(0, description="Seconds from the last frame to the end.")
    end: Literal["whole", "broken"] = Field(
        "whole", description="`broken`: the connection closes before the body is complete."
    )

    @model_validator(mode="after")
    def _ends_in_time(self) -> Self:
        seconds = (
            self.first_seconds
            + max(self.frames - 1, 0) * self.interval_seconds
            + self.silence_seconds
            + self.last_seconds
        )
        if seconds > MAX_PROBE_SECONDS:
            raise ValueError(
                f"The stream would take {seconds:g} seconds; at most {MAX_PROBE_SECONDS:g} are "
                "allowed."
            )
        return self


class ProbeUploadBody(Body):
    """A large body."""

    probe: ProbeId
    padding: str = Field("", max_length=MAX_REQUEST_BYTES, description="Ignored.")


class ProbeErrorBody(Body):
    """The error to answer with."""

    probe: ProbeId
    status: Literal[404, 503]


class ProbeUpload(Answer):
    received_bytes: int = Field(ge=0, description="Bytes of the padding.")


class ProbeStreamState(Answer):
    stream: str
    frames: int = Field(ge=0, description="Frames that were written.")
    end: Literal["finished", "broken", "client_left", "cut_off"] | None = Field(
        description="Null while the stream is open."
    )
    ended_after_seconds: float | None
    client_closed: bool = Field(
        description="Whether the server sees that the client has closed its connection."
    )


class ProbeRequest(Answer):
    """The request as it arrived."""

    http_version: str
    header_names: list[str] = Field(description="All names, in lower case.")
    headers: dict[str, str] = Field(
        description="Values of headers that proxies add or change, without any secret."
    )
    authorization_sha256: str | None = Field(
        description="Digest of `Authorization`, with which the client sees whether it was changed."
    )


class ProbeState(Answer):
    version: str
    process: str = Field(description="Distinguishes processes behind the same address.")
    ping_interval_seconds: float
    max_seconds: float = Field(description="Seconds after which a probe ends.")
    request: ProbeRequest
    streams: list[ProbeStreamState] | None = Field(
        description="The streams of the probe; null if this process does not know it."
    )
