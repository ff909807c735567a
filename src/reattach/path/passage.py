"""Checks of what passes unchanged: headers, errors, large bodies, and that a client left."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing, suppress
from typing import Any, Final

import httpx2

from reattach.path.findings import Fault, Finding
from reattach.path.probe import LAST_EVENT_ID, Answer, Probe
from reattach.path.recording import Recording
from reattach.path.timing import Timing

_MIB: Final = 1024 * 1024
_SMALLER_BYTES: Final = (8 * _MIB, 4 * _MIB, _MIB - 4096, 64 * 1024)
"""Sizes to try after a refusal; the third is below the default limit of nginx."""

_ASKED_TOGETHER: Final = (1, 3, 16)
"""Requests for the state of a stream that are sent together, one group after the other. Each may
reach another process. A proxy that chooses the process with the fewest connections gives requests
to several of them only if they come at the same time."""


def judge_request_headers(probe: Probe, seen: Mapping[str, Any]) -> Finding:
    """Judge the headers with which a request arrived."""
    wrong = []
    got = seen["headers"].get("last-event-id")
    if got != LAST_EVENT_ID:
        wrong.append("Last-Event-ID is " + ("lost" if got is None else "changed"))
    digest = seen["authorization_sha256"]
    if probe.authorization_sha256 is not None and digest != probe.authorization_sha256:
        wrong.append("Authorization is " + ("lost" if digest is None else "changed"))
    if wrong:
        detail = " and ".join(wrong) + " on the way to the server"
        return Finding("wrong", "request headers", detail, Fault.REQUEST_HEADERS)
    return Finding("ok", "request headers", "Authorization and Last-Event-ID arrive unchanged")


def judge_response_headers(probe: Probe, recording: Recording) -> Finding:
    """Judge the headers with which a stream arrived."""
    headers = recording.headers
    expected = {"x-run-id": probe.id, "x-run-status": "running", "x-stream-starts-after": "0"}
    wrong = [
        f"{_title(name)} is {'lost' if name not in headers else 'changed'}"
        for name, value in expected.items()
        if headers.get(name) != value
    ]
    kind = headers.get("content-type", "")
    if not kind.startswith("text/event-stream"):
        wrong.append(f"Content-Type is {kind or 'lost'}")
    if wrong:
        detail = " and ".join(wrong) + " on the way from the server"
        return Finding("wrong", "response headers", detail, Fault.RESPONSE_HEADERS)
    control = headers.get("cache-control", "")
    if "no-transform" not in control:
        detail = f"Cache-Control is {control or 'lost'}, without no-transform: the next proxy may "
        return Finding(
            "warning", "response headers", detail + "compress streams", Fault.RESPONSE_HEADERS
        )
    # nginx removes X-Accel-Buffering, which is meant for itself.
    used = "" if "x-accel-buffering" in headers else "; X-Accel-Buffering was used up"
    return Finding("ok", "response headers", f"all arrive unchanged{used}")


async def check_errors(probe: Probe) -> Finding:
    """Check that errors of the server arrive as it sent them."""
    wrong = []
    for status, code in ((404, "not_found"), (503, "unavailable")):
        answer = await probe.error(status)
        if answer.status != status:
            wrong.append(f"a {status} arrives as {answer.status}")
        elif answer.members.get("code") != code:
            kind = answer.headers.get("content-type", "no type").partition(";")[0]
            wrong.append(f"the body of a {status} is replaced ({kind})")
        elif status == 503 and "retry-after" not in answer.headers:
            wrong.append("a 503 loses Retry-After")
    if wrong:
        return Finding("wrong", "errors", "; ".join(wrong), Fault.ERRORS_REPLACED)
    return Finding("ok", "errors", "404 and 503 arrive unchanged")


async def check_body(probe: Probe, timing: Timing) -> Finding:
    """Check that the largest body that the server accepts reaches it."""
    size_bytes = timing.body_bytes
    refusal = await _upload(probe, size_bytes, timing)
    if refusal is None:
        return Finding("ok", "large bodies", f"a body of {_size(size_bytes)} arrives",
                       figures={"largest_bytes": size_bytes})  # fmt: skip
    passing = 0
    for smaller_bytes in _SMALLER_BYTES:
        if smaller_bytes < size_bytes and await _upload(probe, smaller_bytes, timing) is None:
            passing = smaller_bytes
            break
    detail = f"a body of {_size(size_bytes)} {refusal}; one of {_size(passing)} arrives"
    figures = {"largest_bytes": passing}
    return Finding("warning", "large bodies", detail, Fault.BODY_REFUSED, figures=figures)


async def _upload(probe: Probe, size_bytes: int, timing: Timing) -> str | None:
    """Send a body; return None if it arrived, or else what became of it."""
    try:
        answer = await probe.upload(size_bytes, timing.upload_seconds)
    except TimeoutError:
        return f"does not arrive within {timing.upload_seconds:g} s"
    except httpx2.RequestError:
        return "breaks the connection"
    if answer.status == 200:
        return None
    return f"gets {answer.status} from {_author(answer)}"


def _author(answer: Answer) -> str:
    """Name the one that answered: a server of this project sends a code."""
    server = answer.headers.get("server")
    if isinstance(answer.members.get("code"), str):
        return "the server or a proxy that answers as it does"
    return f"the proxy ({server})" if server else "a proxy"


async def check_connections(probe: Probe, timing: Timing) -> Finding:
    """Check that many streams can be open at the same time, each over its own connection."""
    recordings = await asyncio.gather(
        *(
            probe.record(
                f"connection-{number}",
                within_seconds=timing.grace_seconds,
                frames=2,
                interval_seconds=timing.burst_seconds,
            )
            for number in range(timing.connections)
        )
    )
    open_count = sum(one.is_complete for one in recordings)
    figures = {"opened": timing.connections, "completed": open_count}
    if open_count == timing.connections:
        detail = f"{open_count} streams are open at a time, over a connection each"
        return Finding("ok", "connections", detail, figures=figures)
    worst = next(one for one in recordings if not one.is_complete)
    detail = (
        f"{timing.connections - open_count} of {timing.connections} parallel streams end early, "
        f"one {worst.how_it_ended}"
    )
    return Finding("warning", "connections", detail, Fault.CONNECTIONS_REFUSED, figures=figures)


async def check_leaving(probe: Probe, timing: Timing) -> Finding:
    """Check that the server sees that a client has left during silence."""
    longest = max(timing.leaving_seconds)
    silence_seconds = longest + timing.grace_seconds
    async with probe.opened("leaving", silence_seconds=silence_seconds) as response:
        with suppress(TimeoutError, httpx2.RequestError, StopAsyncIteration):
            async with (
                asyncio.timeout(timing.first_piece_seconds),
                aclosing(response.aiter_raw()) as body,
            ):
                await anext(body)
    left_at = asyncio.get_running_loop().time()
    for seconds in timing.leaving_seconds:
        await asyncio.sleep(left_at + seconds - asyncio.get_running_loop().time())
        has_closed = await _client_closed(probe)
        if has_closed is None:
            detail = "the process that had the stream did not answer"
            return Finding("warning", "leaving", detail,
                           remedy="Run this against one process at a time.")  # fmt: skip
        if has_closed:
            detail = f"the server sees within {seconds:g} s that a client has left during silence"
            return Finding("ok", "leaving", detail, figures={"seen_after_seconds": seconds})
    detail = f"the server does not see within {longest:g} s that a client has left during silence"
    figures = {"seen_after_seconds": None}
    return Finding("warning", "leaving", detail, Fault.LEAVING_UNNOTICED, figures=figures)


async def _client_closed(probe: Probe) -> bool | None:
    """Ask whether the client of the stream has closed; None if no process knows the stream."""
    for count in _ASKED_TOGETHER:
        for answer in await asyncio.gather(*(probe.state() for _ in range(count))):
            for one in answer.members.get("streams") or ():
                if one["stream"] == "leaving":
                    return bool(one["client_closed"])
    return None


def _title(header: str) -> str:
    return "-".join(part.capitalize() for part in header.split("-"))


def _size(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.3g} MiB" if size_bytes >= _MIB else f"{size_bytes // 1024} KiB"
