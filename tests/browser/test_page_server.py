"""The view Server of the page: its cards, keys, and what it says to keys that may see less."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reattach.testing.programs.server import ServerProcess
from tests.browser.page_views import (
    assert_usable_by_everyone,
    background_run,
    key_of,
    texts,
    view,
    wait_for_text,
)
from tests.clients.conftest import scripted_server
from tests.support.browser import Browser
from tests.support.threads import Threads, raw_client

CARDS = ["Processes", "Tenants and quotas", "Stores", "Keys", "Doctor", "Audit log"]


@dataclass(frozen=True)
class Keyed:
    """A server that wants keys, and one key for each kind of right."""

    server: ServerProcess
    operator: str
    admin: str
    reader: str


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    directory = tmp_path_factory.mktemp("page")
    operator = key_of(directory, "read", "send", "admin", "operator")
    admin = key_of(directory, "read", "send", "admin")
    reader = key_of(directory, "read", "send")
    with scripted_server(directory, REATTACH_PAGE="on") as server:
        with raw_client(server.url, authorization=f"Bearer {admin}") as raw:
            background_run(Threads(raw).conversation(), "[chunks=1]")
        yield Keyed(server, operator, admin, reader)


def test_an_operator_sees_every_part_of_the_server(browser: Browser, keyed: Keyed) -> None:
    with view(browser, keyed.server.url, f"server&token={keyed.operator}") as page:
        wait_for_text(page, "[aria-label=Processes] td", "serving")
        assert texts(page, ".card h2") == CARDS
        wait_for_text(page, "[aria-label=Stores] td", "append")
        wait_for_text(page, "[aria-label=Doctor] .lamp", "data directory")
        wait_for_text(page, "[aria-label=Doctor]", "Logs and records agree")
        wait_for_text(page, "[aria-label=Tenants]", "requests per second")
        wait_for_text(page, "[aria-label='Audit log'] td", "key.created")
        checked = texts(page, "[aria-label=Doctor] .hint")
        page.act("button:has-text('Run')", "click")
        page.wait_until("() => document.querySelector('[aria-label=Doctor] .findings li')")
        assert checked[0].startswith("Checked ")
        assert_usable_by_everyone(page)


def test_a_key_is_created_shown_once_and_revoked(browser: Browser, keyed: Keyed) -> None:
    with view(browser, keyed.server.url, f"server&token={keyed.admin}") as page:
        page.act("button:has-text('New key')", "click")
        page.act("dialog input[name=name]", "fill", "billing")
        assert texts(page, "dialog fieldset label") == ["read", "send", "admin"]
        page.act("dialog input[value=admin]", "uncheck")
        assert_usable_by_everyone(page)
        page.act("dialog button.primary", "click")
        wait_for_text(page, "dialog h2", "Key billing")
        [secret] = texts(page, "dialog pre")
        with raw_client(keyed.server.url, authorization=f"Bearer {secret}") as raw:
            assert raw.get("/v1/server").json()["scopes"] == ["read", "send"]
        page.act("dialog button:has-text('Done')", "click")
        wait_for_text(page, "[aria-label=Keys] th", "billing")
        page.act("button[aria-label='Revoke billing']", "click")
        page.act("dialog button.primary", "click")
        page.wait_until("() => !document.querySelector('[aria-label=\"Revoke billing\"]')")
        wait_for_text(page, "[aria-label=Keys] tr", "revoked")
        wait_for_text(page, "[aria-label='Audit log'] td", "key.revoked")


def test_a_card_that_needs_operator_says_so_and_the_others_are_there(
    browser: Browser, keyed: Keyed
) -> None:
    with view(browser, keyed.server.url, f"server&token={keyed.admin}") as page:
        wait_for_text(page, "[aria-label=Doctor] pre", "--scope operator")
        wait_for_text(page, "[aria-label=Stores] pre", "--scope operator")
        wait_for_text(page, "[aria-label=Processes] td", "serving")
        wait_for_text(page, "[aria-label=Keys] td", "active")


def test_a_key_without_admin_is_shown_the_command_for_one_with_it(
    browser: Browser, keyed: Keyed
) -> None:
    with view(browser, keyed.server.url, f"server&token={keyed.reader}") as page:
        wait_for_text(page, ".empty", "This key has read and send.")
        wait_for_text(page, ".empty pre", "reattach keys create NAME --scope read --scope admin")
        assert not [one for one in page.requests if "/v1/admin/" in one]
        assert_usable_by_everyone(page)


def test_a_server_that_is_away_is_said_once_and_its_state_is_unknown(
    browser: Browser, tmp_path: Path
) -> None:
    with scripted_server(tmp_path) as server, browser.page(f"{server.url}/#server") as page:
        wait_for_text(page, "[aria-label=Processes] td", "serving")
        server.kill()
        wait_for_text(page, "[aria-label=Processes] td", "unknown")
        assert len(texts(page, ".fault")) == 1
        wait_for_text(page, ".stale", "Last news at")
        server.start()
        wait_for_text(page, "[aria-label=Processes] td", "serving")
        page.wait_until("() => !document.querySelector('.fault')")


def test_an_open_server_has_no_keys_and_fits_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    with scripted_server(tmp_path) as server, view(browser, server.url, "server") as page:
        page.resize(390, 780)
        wait_for_text(page, "[aria-label=Keys]", "No keys")
        wait_for_text(page, "[aria-label='Audit log']", "Nothing yet")
        wait_for_text(page, "[aria-label=Doctor] .lamp", "settings")
        assert_usable_by_everyone(page)
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
