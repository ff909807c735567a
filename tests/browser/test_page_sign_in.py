"""Signing in to the server's page with keys and stream tokens, and what is left when they end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from typer.testing import CliRunner

from reattach.cli.commands import app as cli
from reattach.testing.programs.server import ServerProcess
from tests.browser.page_views import (
    answers,
    assert_usable_by_everyone,
    chat_of,
    say,
    texts,
    view,
    wait_for_end,
    wait_for_text,
)
from tests.clients.conftest import scripted_server
from tests.support.browser import Browser, Page
from tests.support.threads import Thread, Threads, raw_client

LONG = "[chunks=250][rate=25]"


class Keyed(NamedTuple):
    server: ServerProcess
    directory: str
    key: str
    raw: httpx.Client
    """With the key."""

    def command(self, *words: str) -> str:
        done = CliRunner().invoke(cli, [*words, "--data-dir", self.directory])
        assert done.exit_code == 0, done.output
        return done.stdout.strip()

    def thread(self) -> Thread:
        return Threads(self.raw).conversation()

    def token(self, scope: str = "read send cancel", **subject: Any) -> str:
        body = {"scope": scope.split(), **subject}
        issued = self.raw.post("/v1/tokens", json=body)
        assert issued.status_code == 200, issued.text
        token: str = issued.json()["token"]
        return token


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    directory = str(tmp_path_factory.mktemp("keyed-page"))
    made = CliRunner().invoke(cli, ["keys", "create", "backend", "--data-dir", directory])
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    settings = {"REATTACH_PAGE": "on", "REATTACH_PING_INTERVAL_SECONDS": "0.5"}
    server = scripted_server(tmp_path_factory.getbasetemp() / directory, **settings)
    server.api_key = key
    with server, raw_client(server.url, authorization=f"Bearer {key}") as raw:
        yield Keyed(server, directory, key, raw)


def sign_in(page: Page, secret: str) -> None:
    page.act("#secret", "fill", secret)
    page.act(".sign-in button[type=submit]", "click")


def test_the_page_asks_for_a_key_and_forgets_it_when_one_signs_out(
    browser: Browser, keyed: Keyed
) -> None:
    thread = keyed.thread()
    with browser.page(f"{keyed.server.url}/#{chat_of(thread)}") as page:
        wait_for_text(page, "h1", "Sign in to Reattach")
        assert_usable_by_everyone(page)
        assert not [one for one in page.requests if "/v1/" in one]
        sign_in(page, "wrong")
        wait_for_text(page, ".sign-in .fault", "unauthorized")
        sign_in(page, keyed.key)
        say(page, "hello")
        wait_for_text(page, ".answer", "hello")
        page.reload()
        wait_for_text(page, ".answer", "hello")
        page.act("#message", "fill", "a secret draft")
        page.act("[aria-label='Sign out']", "click")
        wait_for_text(page, "h1", "Sign in")
        assert page.evaluate("() => sessionStorage.length") == 0
        page.reload()
        wait_for_text(page, "h1", "Sign in")
        assert not [line for line in page.log if line.startswith("pageerror")]


def test_a_token_in_the_fragment_is_used_and_removed_from_the_address(
    browser: Browser, keyed: Keyed
) -> None:
    thread = keyed.thread()
    token = keyed.token(conversation_id=thread.conversation_id)
    with browser.page(f"{keyed.server.url}/#token={token}") as page:
        wait_for_text(page, ".head", "Conversation")
        say(page, "hello")
        wait_for_text(page, ".answer", "hello")
        wait_for_end(page)
        assert token not in page.evaluate("() => location.href")
        assert texts(page, ".sidebar") == []  # It opens this conversation alone.
        assert not [one for one in page.requests if token in one]
        page.reload()
        wait_for_text(page, ".answer", "hello")


def test_a_token_that_only_reads_has_no_field_for_messages(browser: Browser, keyed: Keyed) -> None:
    thread = keyed.thread()
    sent = thread.post("messages", {"messages": [thread.message("hello")], "streaming": False})
    assert sent.status_code == 200, sent.text
    token = keyed.token("read", conversation_id=thread.conversation_id)
    with browser.page(f"{keyed.server.url}/#token={token}") as page:
        wait_for_text(page, ".answer", "hello")
        wait_for_text(page, "p.composer", "may read, and not send")


@pytest.mark.parametrize("scope", ["admin", "operator", "send"])
def test_a_key_of_one_scope_sees_in_each_view_what_it_has_or_what_is_missing(
    browser: Browser, keyed: Keyed, scope: str
) -> None:
    made = json.loads(keyed.command("keys", "create", "x", "--scope", scope, "--json"))
    needs_read = (".empty h2", "This needs the scope read")
    with view(browser, keyed.server.url, f"chat&token={made['secret']}") as page:
        for name in ("chat", "inspector", "inspector/run-1"):
            page.evaluate("(name) => { location.hash = name; }", name)
            wait_for_text(page, *needs_read)
            wait_for_text(page, ".empty", f"This key has {scope}.")
            wait_for_text(page, ".empty pre", "reattach keys create NAME --scope read")
        page.evaluate("() => { location.hash = 'runs'; }")
        if scope == "send":
            wait_for_text(page, *needs_read)
        else:
            wait_for_text(page, ".sums", "in all")
        page.evaluate("() => { location.hash = 'server'; }")
        if scope == "send":
            wait_for_text(page, ".empty h2", "This needs the scope admin")
        else:
            wait_for_text(page, "[aria-label=Processes] td", "serving")


def test_a_command_for_a_missing_scope_is_for_the_tenant_of_the_key(
    browser: Browser, keyed: Keyed
) -> None:
    words = ("keys", "create", "x", "--scope", "read", "--tenant", "new", "--json")
    made = json.loads(keyed.command(*words))
    with view(browser, keyed.server.url, f"server&token={made['secret']}") as page:
        wait_for_text(page, ".empty pre", f"--scope admin --tenant {made['tenant']}")


def test_a_token_without_read_says_whom_to_ask(browser: Browser, keyed: Keyed) -> None:
    token = keyed.token("send", conversation_id=keyed.thread().conversation_id)
    with view(browser, keyed.server.url, f"token={token}") as page:
        wait_for_text(page, ".empty", "This stream token has send. Ask the application")


def test_an_idle_conversation_of_a_token_opens_without_an_error(
    browser: Browser, keyed: Keyed
) -> None:
    token = keyed.token(conversation_id=keyed.thread().conversation_id)
    with view(browser, keyed.server.url, f"token={token}") as page:
        wait_for_text(page, ".empty", "Nothing here yet")


def test_a_tokens_user_whose_link_has_expired_is_sent_to_the_application(
    browser: Browser, keyed: Keyed
) -> None:
    subject = {"conversation_id": keyed.thread().conversation_id}
    token = keyed.token("read", expires_in_seconds=1, **subject)
    with browser.page(f"{keyed.server.url}/#token={token}") as page:
        wait_for_text(page, ".sign-in h1", "This link has expired")
        wait_for_text(page, ".sign-in", "Go back to the application")
        assert "keys create" not in texts(page, ".sign-in")[0]


def test_after_a_revocation_one_signs_in_again_and_the_draft_and_the_answer_are_there(
    browser: Browser, keyed: Keyed
) -> None:
    thread = keyed.thread()
    made = json.loads(keyed.command("keys", "create", "first", "--json"))
    first = made["secret"]
    with browser.page(f"{keyed.server.url}/#{chat_of(thread)}&token={first}") as page:
        say(page, LONG)
        wait_for_text(page, ".answer", "t5")
        page.act("#message", "fill", "a draft")
        keyed.command("keys", "revoke", made["id"])
        wait_for_text(page, "h1", "Sign in again")
        sign_in(page, keyed.key)
        wait_for_end(page)
        assert answers(page) == [" ".join(f"t{at}" for at in range(250))]
        assert page.evaluate("() => document.querySelector('#message').value") == "a draft"
        assert len(thread.runs()) == 1
