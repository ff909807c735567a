"""The components of the pages with the real hook ``useChat``, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.browser.bundle import bundled
from tests.clients.conftest import scripted_server
from tests.support.browser import Browser, Page, PageServer
from tests.support.threads import raw_client

DOCS: Final = Path(__file__).parents[2] / "docs"
_MAIN: Final = """
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { Chat } from "./chat.jsx";

const api = new URLSearchParams(location.search).get("api");
const messages = await (await fetch(`${api}/page/messages`)).json();
const chat = <Chat api={api} id="page" messages={messages} />;
createRoot(document.getElementById("root")).render(<StrictMode>{chat}</StrictMode>);
"""
_RETURNS: Final = """(least) => {
  document.dispatchEvent(new Event("visibilitychange"));
  return document.querySelectorAll("p")[1].textContent.split(" ").length > least;
}"""
"""Returns to the tab until the answer has more words: the hook may not have noticed the cut yet."""

_ENDLESS: Final = "[chunks=5000][rate=50]"


def built(folder: Path, docs: str) -> dict[str, str | bytes]:
    """Build the component of a page of the documentation, and return files by path."""
    found = re.search(r"```jsx\n(.*?)```", (DOCS / docs).read_text(), re.DOTALL)
    assert found is not None
    (folder / "chat.jsx").write_text(found[1])
    (folder / "main.jsx").write_text(_MAIN)
    return bundled(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with scripted_server(tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.fixture(scope="module")
def raw(server: ServerProcess) -> Iterator[httpx.Client]:
    with raw_client(server.url) as raw:
        yield raw


def wait_for_words(page: Page, words: int) -> None:
    code = "document.querySelectorAll('p')[1]?.textContent.split(' ').length"
    page.wait_until(f"(least) => {code} > least", words)


def shown(page: Page) -> list[str]:
    texts: list[str] = page.evaluate(
        "() => [...document.querySelectorAll('p')].map((one) => one.textContent.trim())"
    )
    return texts


def texts_of(messages: list[Any]) -> list[str]:
    return ["".join(part.get("text", "") for part in one["parts"]).strip() for one in messages]


@pytest.mark.promise("P4", "P8")
@pytest.mark.parametrize("docs", ["ai-sdk.md", "recipes.md"])
def test_use_chat_shows_a_whole_answer_over_a_cut_and_a_reload(
    browser: Browser, server: ServerProcess, raw: httpx.Client, tmp_path: Path, docs: str
) -> None:
    agent_id = raw.post("/v1/agents/", json={"name": "guide"}).json()["id"]
    path = f"/ai-sdk/{agent_id}/chat"
    with (
        Relay(server.address) as relay,
        PageServer(built(tmp_path, docs)) as pages,
        browser.page(f"{pages.url}/?api={relay.url}{path}") as page,
    ):
        page.act("[name=text]", "fill", _ENDLESS)
        page.act("[name=text]", "press", "Enter")
        wait_for_words(page, 10)
        relay.cut()
        before = len(shown(page)[1].split(" "))
        page.wait_until(_RETURNS, before + 20)
        page.reload()
        wait_for_words(page, before + 40)
        assert list(raw.post(f"{path}/page/stop").json().values()) == ["cancelled"]
        whole = texts_of(raw.get(f"{path}/page/messages").json())
        page.wait_until(
            "(text) => document.querySelectorAll('p')[1].textContent.trim() === text", whole[1]
        )
        assert shown(page) == whole
        page.reload()
        page.wait_until("() => document.querySelectorAll('p').length === 2")
        assert shown(page) == whole
        assert not [line for line in page.log if line.startswith("pageerror")]
    runs = raw.get("/v1/runs/", params={"agent_id": agent_id}).json()
    assert [run["status"] for run in runs] == ["cancelled"]
