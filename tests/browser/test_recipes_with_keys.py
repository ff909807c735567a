"""The recipes whose server wants keys: sign-in with stream tokens, and a mobile web view."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import httpx
import pytest
from typer.testing import CliRunner

from reattach.cli.commands import app as cli
from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.browser.pages import (
    ENDLESS,
    ask,
    assert_accessible,
    listed,
    statuses_of,
    wait_for_status,
)
from tests.clients.conftest import scripted_server
from tests.support.application_server import EXAMPLES, program_served
from tests.support.browser import Browser, Page, PageServer
from tests.support.javascript_client import PACKAGE, require_client
from tests.support.threads import WAIT_SECONDS, Thread, Threads, raw_client

TOKEN_SECONDS = 3
PING_SECONDS = 0.5


class Keyed(NamedTuple):
    server: ServerProcess
    key: str
    raw: httpx.Client
    """With the key."""


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    directory = tmp_path_factory.mktemp("keyed")
    made = CliRunner().invoke(cli, ["keys", "create", "backend", "--data-dir", str(directory)])
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    server = scripted_server(directory, REATTACH_PING_INTERVAL_SECONDS=str(PING_SECONDS))
    server.api_key = key
    with server, raw_client(server.url, authorization=f"Bearer {key}") as raw:
        yield Keyed(server, key, raw)


class Backend(NamedTuple):
    url: str
    relay: Relay
    keyed: Keyed

    def thread(self, user: str) -> Thread:
        """Return the conversation of a user."""
        raw = self.keyed.raw
        [agent] = raw.get("/v1/agents/", params={"name": f"guide of {user}"}).json()
        [found] = raw.get("/v1/conversations/", params={"agent_id": agent["id"]}).json()
        return Thread(raw, agent["id"], found["id"])

    def tokens(self, thread: Thread) -> list[str]:
        """List the tokens of the conversation that are valid."""
        issued = thread.get("/v1/tokens", conversation_id=str(thread.conversation_id))
        return [one["id"] for one in issued if one["revoked_at"] is None]


@pytest.fixture(scope="module")
def backend(keyed: Keyed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """The backend of the recipe, whose page reaches the server through the relay."""
    require_client()
    folder = tmp_path_factory.mktemp("sign_in")
    shutil.copytree(EXAMPLES / "sign_in", folder, dirs_exist_ok=True)
    shutil.copy(PACKAGE / "dist/index.js", folder / "reattach.js")
    with (
        Relay(keyed.server.address) as relay,
        program_served(
            folder / "backend.py",
            API_KEY=keyed.key,
            SERVER=relay.url,
            ORIGIN="{url}",
            TOKEN_SECONDS=str(TOKEN_SECONDS),
        ) as url,
    ):
        yield Backend(url, relay, keyed)


def sign_in(page: Page, user: str, password: str) -> None:
    page.act("#user", "fill", user)
    page.act("#password", "fill", password)
    page.act("#password", "press", "Enter")


def wait_for_words(page: Page, count: int) -> None:
    """Wait until the last message on the page has this many words."""
    words = "[...document.querySelectorAll('li')].at(-1)?.textContent.split(' ')"
    page.wait_until(f"(least) => {words}?.length > least", count)


@pytest.mark.promise("P4", "P11")
def test_a_page_reads_with_tokens_of_its_own_backend_over_a_renewal_a_cut_and_a_reload(
    browser: Browser, backend: Backend
) -> None:
    with browser.page(backend.url) as page:
        page.act("#sign-in", "waitFor")
        assert_accessible(page)
        sign_in(page, "ada", "wrong")
        wait_for_status(page, "Wrong name or password.")
        sign_in(page, "ada", "lighthouse")
        page.act("#chat", "waitFor")
        assert_accessible(page)
        ask(page, ENDLESS)
        wait_for_words(page, 10)
        backend.relay.cut()
        tokens = (
            "performance.getEntriesByType('resource').filter(({ name }) => /token$/.test(name))"
        )
        page.wait_until(f"() => {tokens}.length >= 2")
        wait_for_words(page, 30)
        page.reload()
        wait_for_words(page, 60)
        assert_shows_the_cancelled_answer(page, backend.thread("ada"))


def assert_shows_the_cancelled_answer(page: Page, thread: Thread) -> None:
    """Cancel the endless answer, and assert that the page shows all of it, after its question."""
    thread.post("cancel")
    wait_for_status(page, "The answer has ended.")
    assert listed(page) == [ENDLESS, thread.text()]
    assert statuses_of(thread) == ["cancelled"]
    assert not [line for line in page.log if line.startswith("pageerror")]


@pytest.mark.promise("P11")
def test_signing_out_ends_the_tokens_of_the_session_and_the_answer_goes_on(
    browser: Browser, backend: Backend
) -> None:
    with browser.page(backend.url) as page:
        sign_in(page, "grace", "compiler")
        page.act("#chat", "waitFor")
        ask(page, ENDLESS)
        wait_for_words(page, 5)
        thread = backend.thread("grace")
        assert backend.tokens(thread)
        page.act("#sign-out", "click")
        wait_for_status(page, "You are signed out.")
        assert backend.tokens(thread) == []
        assert listed(page) == []
        sign_in(page, "grace", "compiler")
        wait_for_words(page, 20)
        assert_shows_the_cancelled_answer(page, thread)


@pytest.mark.promise("P11")
def test_a_person_gets_neither_the_key_nor_the_conversation_of_another(backend: Backend) -> None:
    with httpx.Client(base_url=backend.url, timeout=WAIT_SECONDS) as strangers:
        assert strangers.post("/token").status_code == 401
        assert strangers.get("/conversation").status_code == 401
        assert strangers.post("/sign-out").status_code in {401, 422}
    with (
        httpx.Client(base_url=backend.url, timeout=WAIT_SECONDS) as ada,
        httpx.Client(base_url=backend.url, timeout=WAIT_SECONDS) as grace,
    ):
        signed_in = ada.post("/sign-in", json={"user": "ada", "password": "lighthouse"})
        assert "httponly" in signed_in.headers["set-cookie"].lower()
        grace.post("/sign-in", json={"user": "grace", "password": "compiler"})
        answers = [ada.get("/"), ada.get("/reattach.js"), ada.get("/conversation")]
        answers.append(ada.post("/token"))
        assert not [one for one in answers if backend.keyed.key in one.text]
        others = grace.get("/conversation").json()["id"]
        bearer = {"authorization": f"Bearer {answers[-1].json()['token']}", "origin": backend.url}
        path = f"{backend.keyed.server.url}/v1/conversations/{{}}/messages"
        own = ada.get("/conversation").json()["id"]
        assert httpx.get(path.format(own), headers=bearer).status_code == 200
        assert httpx.get(path.format(others), headers=bearer).status_code == 403
        elsewhere = bearer | {"origin": "https://elsewhere.example"}
        assert httpx.get(path.format(own), headers=elsewhere).status_code == 401


BRIDGES = {
    "ios": """
const reattach = { postMessage: async ({ name }) => answers[name] };
window.webkit = { messageHandlers: { reattach } };
""",
    "android": """
window.reattach = { ask: (text) => JSON.stringify(answers[JSON.parse(text).name]) };
""",
}
"""Stand-ins for the objects that apps put into their web views."""


class WebView(NamedTuple):
    url: str
    relay: Relay
    thread: Thread


@pytest.fixture(params=BRIDGES)
def web_view(keyed: Keyed, request: pytest.FixtureRequest) -> Iterator[WebView]:
    """The page, a new conversation, and an app that passes them to it."""
    require_client()
    thread = Threads(keyed.raw).conversation()
    wanted = {"conversation_id": thread.conversation_id, "scope": ["read", "send"]}
    token = keyed.raw.post("/v1/tokens", json=wanted).json()
    html = (EXAMPLES / "web_view/index.html").read_text()
    with Relay(keyed.server.address) as relay:
        given = {
            "server": relay.url,
            "conversation": thread.conversation_id,
            "keepaliveMs": PING_SECONDS * 1000,
        }
        answers = json.dumps({"conversation": given, "token": token})
        bridge = f"<script>const answers = {answers};{BRIDGES[request.param]}</script>"
        files: dict[str, str | bytes] = {
            "/": html.replace("<body>", f"<body>{bridge}"),
            "/reattach.js": (PACKAGE / "dist/index.js").read_bytes(),
            "/blank": "",
        }
        with PageServer(files) as pages:
            yield WebView(pages.url, relay, thread)


@pytest.mark.promise("P4", "P6", "P8", "P12")
def test_a_web_view_shows_a_whole_answer_over_suspensions_and_the_end_of_its_app(
    browser: Browser, web_view: WebView
) -> None:
    with browser.page(f"{web_view.url}/blank") as profile:
        with browser.page(web_view.url, beside=profile) as page:
            assert_accessible(page)
            ask(page, ENDLESS)
            wait_for_words(page, 10)
            with browser.asleep():
                web_view.relay.strand()  # The sockets die, and nobody notices.
            wait_for_words(page, 40)
            with browser.asleep():
                web_view.relay.cut()
            wait_for_words(page, 80)
            assert not [line for line in page.log if line.startswith("pageerror")]
        with browser.page(web_view.url, beside=profile) as page:
            wait_for_words(page, 100)
            web_view.thread.post("cancel")
            wait_for_status(page, "The answer has ended.")
            assert listed(page) == [ENDLESS, web_view.thread.text()]
            assert statuses_of(web_view.thread) == ["cancelled"]
            assert not [line for line in page.log if line.startswith("pageerror")]
