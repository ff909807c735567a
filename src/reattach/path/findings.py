"""Results of an examination."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from reattach.diagnostics import Level


class Fault(StrEnum):
    """Something that a proxy does to streams or requests, for which there are remedies."""

    BUFFERED = "buffered"
    LATE = "late"
    HEAD_WITHHELD = "head_withheld"
    COMPRESSED = "compressed"
    IDLE_CUT = "idle_cut"
    TOTAL_CUT = "total_cut"
    LOOKS_WHOLE = "looks_whole"
    REQUEST_HEADERS = "request_headers"
    RESPONSE_HEADERS = "response_headers"
    ERRORS_REPLACED = "errors_replaced"
    BODY_REFUSED = "body_refused"
    LEAVING_UNNOTICED = "leaving_unnoticed"
    CONNECTIONS_REFUSED = "connections_refused"
    NO_HTTP2 = "no_http2"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; ``wrong`` means that streams cannot work as promised."""

    level: Level
    what: str
    """The name of the check; the same every time."""
    detail: str
    fault: Fault | None = None
    remedy: str = ""
    """The next step, where no fault of a proxy was found."""
    figures: Mapping[str, float | int | str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """All results of one examination."""

    url: str
    version: str | None
    """The version of the server; None if it did not answer."""
    proxies: Sequence[str]
    """The proxies that were recognised, by the names of ``remedies.PLACES``."""
    findings: Sequence[Finding]
