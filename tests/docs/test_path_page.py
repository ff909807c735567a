"""The page about the path to the server has every remedy, and those of deploy/ are in its files."""

from pathlib import Path

import pytest

from reattach.path.findings import Fault
from reattach.path.proxies import recognise
from reattach.path.remedies import ADVICE, PLACES, remedies_of
from tests.docs import remedies

DEPLOY = Path(__file__).parents[2] / "deploy"
OF_TLS = {"http2 on;", "bind :443 ssl crt … alpn h2,http/1.1"}
DEFAULTS = {"tcp_nodelay on;", "proxy_ignore_client_abort off;"}


def test_the_page_has_all_remedies() -> None:
    assert remedies.on_the_page() == remedies.written(), (
        "docs/path.md is stale: run `.venv/bin/python -m tests.docs.remedies`"
    )


@pytest.mark.parametrize(("place", "file"), [("nginx", "nginx.conf"), ("haproxy", "haproxy.cfg")])
def test_the_lines_of_proxies_that_are_tested_are_in_their_files(place: str, file: str) -> None:
    text = (DEPLOY / file).read_text("utf-8")
    lines = {
        line
        for advice in ADVICE.values()
        if place in advice.places
        for line in advice.places[place].lines
    }
    assert len(lines) > 3
    assert {line for line in lines if line not in text} <= OF_TLS | DEFAULTS


def test_every_fault_has_advice_and_every_place_a_name() -> None:
    assert ADVICE.keys() == set(Fault)
    assert all(advice.places.keys() <= PLACES.keys() for advice in ADVICE.values())
    for advice in ADVICE.values():
        assert all(one.lines or one.note for one in advice.places.values())


def test_the_remedies_of_recognised_proxies_come_first() -> None:
    places = [place for place, _ in remedies_of(Fault.IDLE_CUT, ("netlify", "cloudflare"))]
    assert places[:2] == ["cloudflare", "nginx"]
    assert len(places) == len(set(places)) == len(ADVICE[Fault.IDLE_CUT].places)


@pytest.mark.parametrize(
    ("responses", "requests", "expected"),
    [
        ([{}], [], ()),
        ([{"server": "nginx/1.31.3"}], ["x-forwarded-for"], ("nginx",)),
        ([{"server": "cloudflare", "cf-ray": "1"}], ["cf-ray"], ("cloudflare",)),
        ([{"server": "Caddy"}, {"via": "1.1 Caddy"}], [], ("caddy",)),
        ([{"via": "1.1 google"}], ["x-cloud-trace-context"], ("google",)),
        ([{}], ["x-amzn-trace-id", "x-forwarded-for"], ("alb",)),
        ([{}], ["x-forwarded-server", "x-real-ip"], ("traefik",)),
        ([{"server": "Apache"}], ["x-forwarded-server"], ("apache",)),
        ([{}], ["x-forwarded-for"], ("haproxy",)),
    ],
)
def test_proxies_are_recognised_by_the_headers_that_they_add(
    responses: list[dict[str, str]], requests: list[str], expected: tuple[str, ...]
) -> None:
    assert recognise(responses, requests) == expected
