"""Commands that ask a server, when another program answers at the URL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typing_extensions import override

from tests.support.commands import reattach_here

NOWHERE = "http://127.0.0.1:1"
RUN = "run-00000000-0000-4000-8000-000000000000"


class Other(ThreadingHTTPServer):
    """Answers every request with the same body."""

    body = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Other

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_POST = do_DELETE = do_GET  # noqa: N815

    @override
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def other() -> Iterator[Other]:
    with Other(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("body", ["{}", "[]", '{"items": null}', '{"items": [{}]}', "null", "7"])
@pytest.mark.parametrize(
    "command",
    [
        "runs list",
        f"runs show {RUN}",
        f"runs tail {RUN}",
        "tokens list",
        "tokens issue --run-id x",
        "tokens revoke --run-id x",
        "top --once",
    ],
)
def test_an_answer_of_another_program_is_an_error_of_one_line(
    other: Other, command: str, body: str
) -> None:
    other.body = body.encode()
    ended = reattach_here(*command.split(), "--url", other.url)
    assert (ended.status, ended.out) == (1, "")
    [line] = ended.err.splitlines()
    assert "did not answer as a Reattach server" in line
    assert other.url in line


def test_the_fragment_of_an_address_of_the_page_is_ignored(other: Other) -> None:
    other.body = b'{"items": [], "has_more": false, "active": 0}'
    ended = reattach_here("runs", "list", "--url", f"{other.url}/#inspector/{RUN}")
    assert "No runs yet" in ended.err
    assert ended.status == 0


@pytest.mark.parametrize("command", ["runs list", "attach", "top --once"])
def test_a_url_with_a_query_is_refused(command: str) -> None:
    ended = reattach_here(*command.split(), "--url", f"{NOWHERE}/?x=1#y")
    assert ended.status == 1
    assert ended.err == (
        f"reattach: The URL {NOWHERE}/?x=1 has a query. Leave it out: the URL of a server ends "
        "with its port or a path.\n"
    )


@pytest.mark.parametrize("command", ["runs list", "top --once", "doctor --quick --through"])
def test_the_token_in_the_fragment_of_a_url_is_not_shown(command: str) -> None:
    named = [] if "--through" in command else ["--url"]
    ended = reattach_here(*command.split(), *named, f"{NOWHERE}/#token=rt1.hunter2")
    assert ended.status == 1
    assert NOWHERE in ended.err
    assert "hunter2" not in ended.out + ended.err


@pytest.mark.parametrize(
    "url",
    ["http://me:hunter2@127.0.0.1:1", "http://me:hunter2#b@x", "ftp://me:hunter2@x", "hunter2@x"],
)
@pytest.mark.parametrize("command", ["runs list", "top --once", "doctor --quick --through"])
def test_the_password_in_a_url_is_not_shown(command: str, url: str) -> None:
    named = [url] if "--through" in command else ["--url", url]
    ended = reattach_here(*command.split(), *named)
    assert ended.status == 1
    assert "hunter2" not in ended.out + ended.err
    assert "***@" in ended.err
