"""``reattach tokens issue``, ``list`` and ``revoke`` ask a server, which tests share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from reattach.testing.programs.server import ServerProcess
from tests.support.commands import Ended, reattach_here

SECRET = "rk_" + "x" * 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    data_dir: Path = tmp_path_factory.mktemp("server")
    with ServerProcess(data_dir, arguments=["--scripted", "--log-level", "warning"]) as server:
        yield server


@pytest.fixture
def conversation(server: ServerProcess) -> str:
    with httpx2.Client(base_url=server.url) as http:
        agent = http.post("/v1/agents/", json={"name": "a", "model": "scripted/echo"}).json()
        created = http.post("/v1/conversations/", params={"agent_id": agent["id"]}, json={})
        conversation_id: str = created.json()["id"]
    return conversation_id


def tokens(server: ServerProcess, *arguments: str, status: int = 0) -> Ended:
    ended = reattach_here("tokens", *arguments, "--url", server.url)
    assert ended.status == status, ended
    return ended


def test_an_issued_token_opens_its_conversation_until_it_is_revoked(
    server: ServerProcess, conversation: str
) -> None:
    issued = tokens(server, "issue", "--conversation-id", conversation, "--expires", "5m")
    assert f"for {conversation}, scopes read, valid until" in issued.err
    token = issued.out.strip()
    assert token.startswith("rt1.")
    with httpx2.Client(base_url=server.url, headers={"authorization": f"Bearer {token}"}) as page:
        path = f"/v1/conversations/{conversation}/messages"
        assert page.get(path).status_code == 200

        [line] = tokens(server, "list", "--conversation-id", conversation).out.splitlines()
        columns = line.split("\t")
        assert columns[1:5] == [conversation, "read", "any origin", "no key"]
        assert "left" in columns[6]
        assert token not in line

        revoked = tokens(server, "revoke", columns[0])
        assert revoked.err == "1 token is revoked.\n"
        [row] = json.loads(tokens(server, "list", "--conversation-id", conversation, "--json").out)
        assert row["revoked_at"] is not None


def test_the_limits_of_a_token_reach_the_server(server: ServerProcess, conversation: str) -> None:
    limits = ("--scope", "send", "--scope", "read", "--origin", "https://a.example")
    ended = tokens(server, "issue", "--conversation-id", conversation, *limits, "--json")
    issued = json.loads(ended.out)
    assert issued["scope"] == ["read", "send"]
    [row] = json.loads(tokens(server, "list", "--conversation-id", conversation, "--json").out)
    assert (row["id"], row["origin"]) == (issued["id"], "https://a.example")


def test_all_tokens_of_a_conversation_are_revoked_together(
    server: ServerProcess, conversation: str
) -> None:
    for _ in range(2):
        tokens(server, "issue", "--conversation-id", conversation)
    ended = tokens(server, "revoke", "--conversation-id", conversation, "--json")
    assert json.loads(ended.out) == {"revoked": 2}


def test_a_list_that_is_cut_says_that_more_tokens_exist(
    server: ServerProcess, conversation: str
) -> None:
    for _ in range(2):
        tokens(server, "issue", "--conversation-id", conversation)
    ended = tokens(server, "list", "--conversation-id", conversation, "--limit", "1")
    assert len(ended.out.splitlines()) == 1
    assert "More tokens exist" in ended.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("issue",), "Give exactly one of --run-id and --conversation-id."),
        (("revoke",), "--conversation-id, or ids of tokens."),
        (("revoke", "tok-1", "--run-id", "run-1"), "Give either."),
        (("issue", "--run-id", "run-1", "--expires", "soon"), "a token can be valid"),
    ],
)
def test_a_call_that_names_no_subject_is_refused_before_any_request(
    arguments: tuple[str, ...], said: str
) -> None:
    ended = reattach_here("tokens", *arguments, "--url", "http://127.0.0.1:1", COLUMNS="200")
    assert ended.status == 2
    assert said in ended.err


def test_a_refusal_of_the_server_is_one_line(server: ServerProcess) -> None:
    ended = tokens(server, "issue", "--run-id", "run-nope", status=1)
    assert len(ended.err.splitlines()) == 1
    assert "run-nope" in ended.err
    assert ended.out == ""


def test_a_server_that_is_not_there_is_named_with_the_command_that_starts_one() -> None:
    ended = reattach_here("tokens", "list", REATTACH_URL="http://127.0.0.1:1")
    assert ended.status == 1
    assert ended.err == (
        "reattach: The server at http://127.0.0.1:1 cannot be reached: connection refused. Start "
        "one with `reattach serve`, or name another one with --url or REATTACH_URL.\n"
    )


def test_missing_refused_and_limited_keys_are_explained(tmp_path: Path) -> None:
    created = reattach_here(
        "keys", "create", "reader", "--scope", "read", "--data-dir", str(tmp_path)
    )
    with ServerProcess(tmp_path, arguments=["--scripted", "--log-level", "warning"]) as server:
        none = tokens(server, "list", status=1).err
        wrong = reattach_here("tokens", "list", "--url", server.url, REATTACH_API_KEY=SECRET)
        password = reattach_here("tokens", "list", "--url", server.url, REATTACH_API_KEY="hunter2")
        key = created.out.strip()
        limited = reattach_here(
            *("tokens", "revoke", "tok-1", "--url", server.url), REATTACH_API_KEY=key
        )
    assert "requires an API key, and none was given. Create one" in none
    assert "set REATTACH_API_KEY" in none
    assert f"refused the API key {SECRET[:8]}…" in wrong.err
    assert SECRET not in wrong.err
    assert "refused the API key: it is not one of its keys" in password.err
    assert "hunter" not in password.err
    assert limited.status == 1
    assert "the API key has only: read" in limited.err
    assert "reattach keys create NAME --scope read --scope" in limited.err
