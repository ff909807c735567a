"""Recognition of proxies by the headers that they add."""

from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple


class _Sign(NamedTuple):
    place: str
    header: str
    part: str = ""
    """Occurs in the value of the header, in any case."""


_IN_RESPONSES: Final = (
    _Sign("cloudflare", "server", "cloudflare"),
    _Sign("cloudflare", "cf-ray"),
    _Sign("netlify", "x-nf-request-id"),
    _Sign("vercel", "x-vercel-id"),
    _Sign("heroku", "via", "heroku"),
    _Sign("heroku", "via", "vegur"),
    _Sign("azure_front_door", "x-azure-ref"),
    _Sign("azure_gateway", "server", "microsoft-azure-application-gateway"),
    _Sign("google", "via", "google"),
    _Sign("alb", "server", "awselb"),
    _Sign("caddy", "server", "caddy"),
    _Sign("caddy", "via", "caddy"),
    _Sign("envoy", "server", "envoy"),
    _Sign("envoy", "x-envoy-upstream-service-time"),
    _Sign("apache", "server", "apache"),
    _Sign("apache", "via", "apache"),
    _Sign("nginx", "server", "nginx"),
    _Sign("nginx", "server", "openresty"),
)
_IN_REQUESTS: Final = {
    "cf-ray": "cloudflare",
    "x-nf-client-connection-ip": "netlify",
    "x-vercel-id": "vercel",
    "x-azure-fdid": "azure_front_door",
    "x-appgw-trace-id": "azure_gateway",
    "x-cloud-trace-context": "google",
    "x-amzn-trace-id": "alb",
    "x-envoy-external-address": "envoy",
    "x-forwarded-server": "traefik",
}
_OF_ANY_PROXY: Final = frozenset({"forwarded", "via", "x-forwarded-for", "x-real-ip"})


def recognise(
    responses: Iterable[Mapping[str, str]], request_names: Collection[str]
) -> tuple[str, ...]:
    """Return the places of ``remedies`` that are on the path, the surest first.

    ``responses`` are headers that the client got, and ``request_names`` the names of headers with
    which its requests arrived, all in lower case. HAProxy does not name itself, so it is returned
    if a proxy is there and none was recognised.
    """
    found: dict[str, None] = {}
    for headers in responses:
        for sign in _IN_RESPONSES:
            if sign.part in headers.get(sign.header, "").lower() and sign.header in headers:
                found[sign.place] = None
    for name, place in _IN_REQUESTS.items():
        if name in request_names:
            found[place] = None
    if not found and not _OF_ANY_PROXY.isdisjoint(request_names):
        found["haproxy"] = None
    if "apache" in found and "x-forwarded-server" in request_names:
        found.pop("traefik", None)  # Both send that header.
    return tuple(found)
