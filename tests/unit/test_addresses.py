from __future__ import annotations

from ipaddress import ip_address

import pytest

from reattach.domain.errors import UrlRefusedError
from reattach.outbound.addresses import (
    SPECIAL_RANGES,
    is_public,
    is_reachable,
    literal_address,
    special_range,
)
from reattach.outbound.requests import checked_url

SPECIAL = {
    "168.63.129.16": "Azure",
    "192.0.0.192": "Oracle Cloud",
    "100.100.100.200": "Alibaba Cloud",
    "169.254.169.254": "RFC 3927",
    "192.0.0.8": "RFC 6890",
    "192.0.0.9": "RFC 7723",
    "192.0.0.10": "RFC 8155",
    "192.88.99.1": "RFC 7526",
    "192.31.196.1": "RFC 7535",
    "192.52.193.1": "RFC 7450",
    "192.175.48.1": "RFC 7534",
    "100.64.0.1": "RFC 6598",
    "0.1.2.3": "RFC 791",
    "198.19.255.255": "RFC 2544",
    "203.0.113.9": "RFC 5737",
    "239.1.1.1": "RFC 5771",
    "255.255.255.255": "RFC 1112",
    "::": "RFC 4291",
    "::1": "RFC 4291",
    "::8.8.8.8": "RFC 4291",
    "::ffff:0:8.8.8.8": "RFC 2765",
    "::ffff:168.63.129.16": "Azure",
    "64:ff9b::10.0.0.1": "RFC 1918",
    "64:ff9b:1::10.0.0.1": "RFC 1918",
    "64:ff9b:1:a00:0:100::": "RFC 1918",
    "64:ff9b:1:ffff:ffff:ffff:ffff:ffff": "RFC 1112",
    "2606:4700::5efe:10.0.0.1": "RFC 1918",
    "2606:4700::200:5efe:10.0.0.1": "RFC 1918",
    "100::1": "RFC 6666",
    "100:0:0:1::1": "RFC 9780",
    "2001::1": "RFC 4380",
    "2001:2::1": "RFC 2928",
    "2001:20::1": "RFC 2928",
    "2001:db8::1": "RFC 3849",
    "2002:808:808::": "RFC 3056",
    "2620:4f:8000::1": "RFC 7534",
    "3fff::1": "RFC 9637",
    "3fff:fff:ffff::1": "RFC 9637",
    "5f00::1": "RFC 9602",
    "fd00::1": "RFC 4193",
    "fe80::1%eth0": "RFC 4291",
    "fec0::1": "RFC 3879",
    "ff02::1": "RFC 4291",
    "4000::1": "RFC 4291",
    "1::1": "RFC 4291",
}


@pytest.mark.parametrize(("text", "source"), SPECIAL.items())
def test_an_address_of_a_special_range_is_refused_with_its_source(text: str, source: str) -> None:
    """D7: the table is ours, and names the RFC of each range."""
    found = special_range(ip_address(text))
    assert found is not None
    assert found.source == source


@pytest.mark.parametrize("found", SPECIAL_RANGES, ids=lambda found: str(found.network))
def test_both_ends_of_every_special_range_are_refused(found: object) -> None:
    """D7: no range of the table is shadowed by a public one."""
    network = found.network  # type: ignore[attr-defined]
    assert not is_public(network[0])
    assert not is_public(network[-1])


@pytest.mark.parametrize(
    "text",
    [
        "8.8.8.8",
        "93.184.215.14",
        "168.63.129.15",
        "192.0.1.1",
        "192.88.98.1",
        "2606:4700::1111",
        "2001:200::1",
        "3ffe:ffff::1",
        "64:ff9b::5db8:d70e",
        "64:ff9b:1::5db8:d70e",
        "::ffff:8.8.8.8",
    ],
)
def test_addresses_of_the_internet_are_public(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize("text", ["169.254.169.254", "168.63.129.16", "fd00:ec2::254", "fe80::1"])
def test_metadata_services_are_refused_in_private_networks_too(text: str) -> None:
    """D7: allowing the operator's network does not allow the credentials of its machines."""
    assert not is_reachable(ip_address(text), to_private=True)
    assert is_reachable(ip_address("10.0.0.1"), to_private=True)
    host = f"[{text}]" if ":" in text else text
    with pytest.raises(UrlRefusedError):
        checked_url(f"http://{host}/", to_private=True)


@pytest.mark.parametrize(
    "host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "127.0.0.1."]
)
def test_an_address_in_an_odd_form_is_refused_before_it_is_looked_up(host: str) -> None:
    """D7: resolvers read these as 127.0.0.1."""
    assert str(literal_address(host.rstrip("."))) == "127.0.0.1"
    with pytest.raises(UrlRefusedError):
        checked_url(f"http://{host}/", to_private=False)


def test_every_refused_address_gets_the_same_text() -> None:
    """D7: one text for all refusals."""
    hosts = ["127.0.0.1", "10.0.0.1", "168.63.129.16", "[fec0::1]", "localhost", "a.localhost"]
    texts = set()
    for host in hosts:
        with pytest.raises(UrlRefusedError) as refused:
            checked_url(f"http://{host}:8080/x", to_private=False)
        texts.add(refused.value.detail)
    assert len(texts) == 1
