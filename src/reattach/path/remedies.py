"""The lines of proxies' configurations that mend each fault.

The lines of nginx and HAProxy are those of the files in ``deploy/``, with which the tests run. All
others are from the documentation of the proxies.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from reattach.path.findings import Fault

PLACES: Final[Mapping[str, str]] = {
    "nginx": "nginx",
    "haproxy": "HAProxy",
    "caddy": "Caddy",
    "traefik": "Traefik",
    "envoy": "Envoy",
    "apache": "Apache",
    "cloudflare": "Cloudflare",
    "alb": "AWS ALB",
    "google": "Google Cloud",
    "azure_gateway": "Azure App Gateway",
    "azure_front_door": "Azure Front Door",
    "netlify": "Netlify",
    "vercel": "Vercel",
    "heroku": "Heroku",
    "kubernetes": "Kubernetes",
}
"""The proxies and services for which there are remedies, by their keys."""


class Lines(NamedTuple):
    """The remedy of one fault in one place."""

    lines: tuple[str, ...] = ()
    """Settings to copy."""
    note: str = ""
    """A sentence where there is nothing to copy, or beside it."""


class Advice(NamedTuple):
    """The remedies of one fault."""

    title: str
    """The fault, as the heading of its remedies."""
    step: str
    """The next step, in one sentence."""
    places: Mapping[str, Lines]


def _lines(*lines: str, note: str = "") -> Lines:
    return Lines(lines, note)


ADVICE: Final[Mapping[Fault, Advice]] = {
    Fault.BUFFERED: Advice(
        "Events are withheld",
        "Let the proxy forward each piece of a response at once.",
        {
            "nginx": _lines(
                "proxy_http_version 1.1;",
                "proxy_buffering off;",
                "gzip off;",
                note="Remove X-Accel-Buffering from proxy_ignore_headers.",
            ),
            "haproxy": _lines("option http-no-delay"),
            "caddy": _lines("flush_interval -1", note="This is the default for event streams."),
            "traefik": Lines(note="Remove the middleware `buffering` from the route."),
            "apache": _lines('ProxyPass "/" "http://…/" flushpackets=on', "SetEnv no-gzip 1"),
            "cloudflare": Lines(
                note="Use a named tunnel instead of a quick one, and exclude the path from the "
                "compression rules."
            ),
            "azure_gateway": Lines(note="Turn response buffers off."),
            "kubernetes": _lines('nginx.ingress.kubernetes.io/proxy-buffering: "off"'),
        },
    ),
    Fault.LATE: Advice(
        "The first events are late",
        "Let the proxy send small pieces without waiting for more.",
        {
            "nginx": _lines("tcp_nodelay on;", "proxy_buffering off;"),
            "haproxy": _lines("option http-no-delay"),
            "caddy": _lines("flush_interval -1"),
            "traefik": Lines(note="Remove the middleware `buffering` from the route."),
            "apache": _lines('ProxyPass "/" "http://…/" flushpackets=on'),
        },
    ),
    Fault.HEAD_WITHHELD: Advice(
        "The head of a response is withheld",
        "Let the proxy forward the head of a response before the body begins.",
        {
            "nginx": _lines(
                "proxy_buffering off;",
                note="Remove X-Accel-Buffering from proxy_ignore_headers.",
            ),
            "haproxy": _lines("option http-no-delay"),
            "apache": _lines('ProxyPass "/" "http://…/" flushpackets=on'),
            "heroku": Lines(note="The first byte has to come within 30 s; pings do."),
        },
    ),
    Fault.COMPRESSED: Advice(
        "Streams are compressed",
        "Exclude text/event-stream from compression.",
        {
            "nginx": _lines("gzip off;", note="Or remove text/event-stream from gzip_types."),
            "haproxy": Lines(note="Remove text/event-stream from `compression type`."),
            "caddy": Lines(note="Do not match event streams in `encode`."),
            "traefik": _lines("compress:", "  excludedContentTypes: [text/event-stream]"),
            "envoy": Lines(
                note="Remove text/event-stream from the content types of the compressor."
            ),
            "apache": _lines("SetEnv no-gzip 1"),
            "cloudflare": Lines(note="Exclude the path from the compression rules."),
            "kubernetes": _lines('use-gzip: "false"', note="In the ConfigMap of ingress-nginx."),
        },
    ),
    Fault.IDLE_CUT: Advice(
        "Silent streams are cut",
        "Let the proxy wait for 75 s, which is longer than any silence between two pings, or lower "
        "REATTACH_PING_INTERVAL_SECONDS.",
        {
            "nginx": _lines("proxy_read_timeout 75s;", "send_timeout 75s;"),
            "haproxy": _lines("timeout client 75s", "timeout server 75s"),
            "caddy": Lines(note="Remove `read_timeout` from `transport http`: it has no default."),
            "envoy": _lines("stream_idle_timeout: 0s", note="Or `idle_timeout` of the route."),
            "apache": _lines("ProxyTimeout 75"),
            "cloudflare": Lines(note="The limit is 120 s; the pings keep below it."),
            "alb": _lines("idle_timeout.timeout_seconds=120"),
            "google": _lines("timeoutSec: 3600"),
            "azure_gateway": Lines(note="Raise the request time-out of the backend settings."),
            "azure_front_door": _lines("originResponseTimeoutSeconds: 240"),
            "heroku": Lines(note="The limit is 55 s; the pings keep below it."),
            "kubernetes": _lines('nginx.ingress.kubernetes.io/proxy-read-timeout: "3600"'),
        },
    ),
    Fault.TOTAL_CUT: Advice(
        "Streams are cut after a time in all",
        "Raise the limit of a whole response. Until then let clients resume, as those of this "
        "project do.",
        {
            "nginx": Lines(note="It has no such limit; look at the proxy before or behind it."),
            "haproxy": Lines(note="It has no such limit; look at the proxy before or behind it."),
            "caddy": Lines(note="Remove `write` from `servers { timeouts { … } }`."),
            "traefik": _lines("respondingTimeouts:", '  writeTimeout: "0"'),
            "envoy": _lines("timeout: 0s", note="Of the route; its default is 15 s."),
            "google": _lines("timeoutSec: 3600", note="Of the backend; its default is 30 s."),
            "azure_front_door": _lines("originResponseTimeoutSeconds: 240"),
            "netlify": Lines(
                note="A rewrite lasts at most 26 s. Call the server by a name of its own."
            ),
            "vercel": Lines(
                note="A rewrite lasts at most 120 s. Call the server by a name of its own."
            ),
            "kubernetes": _lines("timeouts:", "  request: 0s", note="Of the HTTPRoute's rule."),
        },
    ),
    Fault.LOOKS_WHOLE: Advice(
        "A broken body looks whole",
        "Let the proxy use HTTP/1.1 or HTTP/2 on both sides, and break a response that its server "
        "has broken. HTTP/1.0 bodies have no end that a client could miss.",
        {
            "nginx": _lines("proxy_http_version 1.1;", 'proxy_set_header Connection "";'),
            "haproxy": Lines(note="This is its default."),
            "apache": Lines(note="Remove `force-proxy-request-1.0` and `downgrade-1.0`."),
        },
    ),
    Fault.REQUEST_HEADERS: Advice(
        "Headers of requests are lost or changed",
        "Let the proxy forward Authorization and Last-Event-ID as they are.",
        {
            "nginx": Lines(
                note="Remove the lines `proxy_set_header` for them, and `auth_basic`, which reads "
                "the same header."
            ),
            "haproxy": Lines(note="Remove `http-request del-header` and `set-header` for them."),
            "caddy": Lines(note="Remove `header_up` for them, and `basic_auth`."),
            "traefik": Lines(note="Remove them from `customRequestHeaders`, and `basicAuth`."),
            "envoy": Lines(note="Remove them from `request_headers_to_remove`."),
            "apache": Lines(note="Remove `RequestHeader unset` for them, and `AuthType Basic`."),
            "cloudflare": Lines(note="Remove the transform rules for them."),
        },
    ),
    Fault.RESPONSE_HEADERS: Advice(
        "Headers of responses are lost or changed",
        "Let the proxy forward the headers of responses as they are.",
        {
            "nginx": Lines(note="Remove the lines `proxy_hide_header` and `add_header` for them."),
            "haproxy": Lines(note="Remove `http-response del-header` and `set-header` for them."),
            "caddy": Lines(note="Remove `header_down` for them."),
            "traefik": Lines(note="Remove them from `customResponseHeaders`."),
            "envoy": Lines(note="Remove them from `response_headers_to_remove`."),
            "apache": Lines(note="Remove `Header unset` and `Header set` for them."),
            "cloudflare": Lines(note="Remove the transform rules for them."),
        },
    ),
    Fault.ERRORS_REPLACED: Advice(
        "Errors are replaced",
        "Let the proxy forward the errors of the server: clients read `code` and Retry-After.",
        {
            "nginx": _lines("proxy_intercept_errors off;"),
            "haproxy": Lines(note="Remove `http-response return` for these statuses."),
            "caddy": Lines(note="Remove `handle_response` for these statuses."),
            "traefik": Lines(note="Remove the middleware `errors` from the route."),
            "apache": _lines("ProxyErrorOverride Off"),
            "cloudflare": Lines(note="Remove the custom error rules for the path."),
            "google": Lines(note="Remove the custom error response policy."),
            "azure_gateway": Lines(note="Remove the custom error pages."),
            "kubernetes": Lines(note="Remove `custom-http-errors`."),
        },
    ),
    Fault.BODY_REFUSED: Advice(
        "Large bodies are refused",
        "Let the proxy accept bodies of 16 MiB: messages contain photographs.",
        {
            "nginx": _lines("client_max_body_size 16m;"),
            "haproxy": Lines(note="It has no limit of its own: look for `req.body_len`."),
            "caddy": _lines("request_body {", "    max_size 16MiB", "}"),
            "traefik": _lines("buffering:", "  maxRequestBodyBytes: 16777216"),
            "envoy": _lines("max_request_bytes: 16777216"),
            "apache": _lines("LimitRequestBody 16777216"),
            "azure_gateway": Lines(note="Raise the maximum request body size of the firewall."),
            "kubernetes": _lines('nginx.ingress.kubernetes.io/proxy-body-size: "16m"'),
        },
    ),
    Fault.LEAVING_UNNOTICED: Advice(
        "A client that leaves is not noticed",
        "Let the proxy close its connection to the server when the client leaves. Until then the "
        "server keeps such a stream until it writes the next event or ping.",
        {
            "nginx": _lines("proxy_ignore_client_abort off;", "proxy_buffering off;"),
            "haproxy": _lines("option abortonclose", note="Effective from HAProxy 2.8 on."),
        },
    ),
    Fault.CONNECTIONS_REFUSED: Advice(
        "Parallel connections are refused",
        "Let the proxy accept more connections from one address: each open stream is one.",
        {
            "nginx": Lines(note="Raise or remove `limit_conn`; raise `worker_connections`."),
            "haproxy": Lines(note="Raise `maxconn` of the frontend and of the servers."),
            "traefik": Lines(note="Raise the amount of the middleware `inFlightReq`."),
            "envoy": Lines(note="Raise the thresholds of `circuit_breakers`."),
        },
    ),
    Fault.NO_HTTP2: Advice(
        "HTTP/2 is not offered",
        "Offer HTTP/2: over HTTP/1.1 browsers open at most six connections to one origin, for all "
        "tabs together. Until then follow several runs over one connection.",
        {
            "nginx": _lines("http2 on;", note="Before nginx 1.25.1: `listen 443 ssl http2;`."),
            "haproxy": _lines("bind :443 ssl crt … alpn h2,http/1.1"),
            "caddy": Lines(note="It is the default with TLS; remove `protocols` without h2."),
            "traefik": Lines(note="It is the default with TLS; remove `alpnProtocols` without h2."),
            "envoy": _lines('alpn_protocols: ["h2", "http/1.1"]'),
            "apache": _lines("Protocols h2 http/1.1"),
            "cloudflare": Lines(note="Turn HTTP/2 on in the protocol settings."),
            "alb": _lines("routing.http2.enabled=true"),
            "azure_gateway": _lines("enableHttp2: true"),
            "kubernetes": _lines('use-http2: "true"', note="In the ConfigMap of ingress-nginx."),
        },
    ),
}  # fmt: skip


def remedies_of(fault: Fault, first: Sequence[str] = ()) -> Iterator[tuple[str, Lines]]:
    """Yield the places and lines that mend the fault, those of ``first`` before all others."""
    places = ADVICE[fault].places
    known = [place for place in first if place in places]
    for place in [*known, *(one for one in PLACES if one in places and one not in known)]:
        yield place, places[place]
