"""Refusals of connections, and of requests that are not valid HTTP/1.1.

They continue the tree of ``errors``, which says how errors are written.
"""

from reattach.domain.errors import LimitExceededError, ReattachError, UnavailableError


class InvalidHttpError(ReattachError):
    """A request is not valid HTTP/1.1, or two parsers could read it differently."""

    code = "invalid_http"

    def __init__(self, fault: str = "is not valid HTTP/1.1") -> None:
        super().__init__(f"The request {fault}. It was not processed.")


class HttpVersionError(ReattachError):
    """A request uses a version of HTTP that the server does not support."""

    code = "http_version_not_supported"

    def __init__(self) -> None:
        super().__init__(
            "The server does not support this version of HTTP.",
            remedy="Send the request as HTTP/1.1.",
        )


class TunnelRefusedError(ReattachError):
    """A CONNECT request; the server is not a proxy."""

    code = "method_not_allowed"

    def __init__(self) -> None:
        super().__init__("CONNECT is not supported: this server is not a proxy.")


class ExpectationFailedError(ReattachError):
    """An ``Expect`` header asks for anything but ``100-continue``."""

    code = "expectation_failed"

    def __init__(self) -> None:
        super().__init__("The server supports only the expectation `Expect: 100-continue`.")


class HeadTooLargeError(LimitExceededError):
    """The head, the trailers, or the chunk extensions of a request exceed their limit."""

    def __init__(self, bound: str) -> None:
        super().__init__(f"A request may have at most {bound}. It was not processed.")


class RequestTimeoutError(ReattachError):
    """The rest of a request did not arrive in time."""

    code = "request_timeout"

    def __init__(self) -> None:
        super().__init__(
            "The rest of the request did not arrive in time.", remedy="Send the request again."
        )


class TooManyConnectionsError(UnavailableError):
    """The server, or one client address, has reached its limit of connections."""

    code = "too_many_connections"

    def __init__(self, whose: str, most: int) -> None:
        super().__init__(
            f"{whose} has reached its limit of {most} connections.",
            remedy="Close unused connections, or try again later.",
        )
