"""A collector of traces on a loopback port, which takes OTLP over HTTP with protobuf."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

WAIT_SECONDS = 20.0


@dataclass(frozen=True)
class Collected:
    """A span that has arrived."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    """The trace id and the span id of each."""
    events: int
    is_error: bool
    resource: dict[str, Any]
    scope: str
    schema_url: str


@dataclass
class Collector:
    """Keeps all spans. ``answers`` are the status lines of the next answers; later ones are 200."""

    url: str = ""
    spans: list[Collected] = field(default_factory=list)
    requests: int = 0
    answers: list[str] = field(default_factory=list)
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    """While it is cleared, requests get no answer."""
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that send a server's spans here at once."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_BSP_SCHEDULE_DELAY": "20",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "5",
        }

    def found(self, wanted: Callable[[Collected], bool]) -> list[Collected]:
        return [one for one in self.spans if wanted(one)]

    async def wait(self, wanted: Callable[[Collected], bool], count: int = 1) -> list[Collected]:
        """Wait until that many wanted spans have arrived, and return them, the earliest first."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while len(found := self.found(wanted)) < count:
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            names = [(one.name, one.attributes.get("reattach.run.id")) for one in self.spans]
            raise AssertionError(f"{len(found)} of {count} spans arrived among {names}") from None
        return sorted(found, key=lambda one: one.start_ns)

    async def of_run(self, run_id: str, name: str, count: int = 1) -> list[Collected]:
        """Wait for spans of the run whose names begin so."""
        return await self.wait(
            lambda one: (
                one.name.startswith(name) and one.attributes.get("reattach.run.id") == run_id
            ),
            count,
        )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()[:-1]
                pairs = (one.partition(": ") for one in lines)
                headers = {name.lower(): value for name, _, value in pairs}
                body = await reader.readexactly(int(headers["content-length"]))
                assert line == "POST /v1/traces HTTP/1.1", line
                assert headers["content-type"] == "application/x-protobuf"
                self.requests += 1
                await self.is_open.wait()
                status = self.answers.pop(0) if self.answers else "200 OK"
                if status.startswith("200"):
                    is_packed = headers.get("content-encoding") == "gzip"
                    self._take(gzip.decompress(body) if is_packed else body)
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _take(self, body: bytes) -> None:
        for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = _attributes(resource_spans.resource.attributes)
            for scope_spans in resource_spans.scope_spans:
                self.spans += [
                    _collected(span, resource, scope_spans.scope.name, scope_spans.schema_url)
                    for span in scope_spans.spans
                ]
        self._came.set()


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    collector.is_open.set()
    server = await asyncio.start_server(collector.serve, "127.0.0.1", 0)
    collector.url = "http://{}:{}".format(*server.sockets[0].getsockname())
    try:
        yield collector
    finally:
        collector.is_open.set()
        server.close()


def _collected(span: ProtoSpan, resource: dict[str, Any], scope: str, schema: str) -> Collected:
    return Collected(
        name=span.name,
        kind=ProtoSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        events=len(span.events),
        is_error=span.status.code == Status.STATUS_CODE_ERROR,
        resource=resource,
        scope=scope,
        schema_url=schema,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs if isinstance(pair, KeyValue)}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return None if kind is None else getattr(value, kind)
