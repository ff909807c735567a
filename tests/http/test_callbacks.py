"""Callbacks of a whole server, over sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from reattach.domain.ids import DEFAULT_TENANT, new_tenant_id
from tests.docs.test_docs import ROOT, blocks
from tests.support.callback_receiver import receiving
from tests.support.live_server import WAIT_SECONDS, LiveServer, listening, message_body, new_threads


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    directory = tmp_path_factory.mktemp("live")
    async with listening(directory, callbacks_to_private=True) as live:
        yield live


async def asked(live: LiveServer, message: str, url: str, **body: Any) -> dict[str, Any]:
    agent = (await live.agent())["id"]
    path = f"/v1/agents/{agent}/messages/async"
    return await live.made(path, message_body(message, callback_url=url, **body))


async def noted(live: LiveServer, run_id: str) -> dict[str, Any]:
    """The run, once the outcome of its callback is recorded."""
    async with asyncio.timeout(WAIT_SECONDS):
        while (run := await live.run(run_id))["callback_sent_at"] is None:
            await asyncio.sleep(0.01)
    return run


@pytest.mark.promise("P16")
async def test_a_receiver_gets_one_callback_when_the_run_ends(live: LiveServer) -> None:
    async with receiving() as receiver:
        run = await asked(live, "lantern", receiver.url)
        assert run["callback_url"] == receiver.url
        call = await receiver.call()
        ended = await noted(live, run["id"])
        assert (ended["callback_status_code"], ended["callback_error"]) == (200, None)
        assert len(receiver.calls) == 1
    assert call.line == "POST /done HTTP/1.1"
    assert call.headers["content-type"] == "application/json"
    payload = call.payload
    result = payload["metadata"].pop("result")
    assert payload == {
        "callback_url": receiver.url,
        "tenant": DEFAULT_TENANT,
        "run_id": run["id"],
        "status": "completed",
        "stop_reason": "end_turn",
        "agent_id": run["agent_id"],
        "conversation_id": None,
        "completed_at": ended["completed_at"],
        "metadata": {"run_type": "send_message_async"},
    }
    assert [item["content"] for item in result["messages"]] == ["lantern"]
    assert result["stop_reason"]["stop_reason"] == "end_turn"


@pytest.mark.promise("P16")
async def test_a_callback_is_sent_after_the_run_is_recorded(live: LiveServer) -> None:
    async with receiving(None) as receiver:
        run = await asked(live, "[fail=1]", receiver.url)
        call = await receiver.call()
        ended = await live.run(run["id"])
        assert ended["status"] == call.payload["status"] == "failed"
        assert call.payload["metadata"]["error"] == ended["metadata"]["error"]


async def test_a_cancelled_run_sends_a_callback(live: LiveServer) -> None:
    async with receiving() as receiver:
        agent = (await live.agent())["id"]
        live.gates.hold(agent)
        path = f"/v1/agents/{agent}/messages/async"
        run = await live.made(path, message_body("never", callback_url=receiver.url))
        await live.made(f"/v1/agents/{agent}/messages/cancel", {"run_ids": [run["id"]]})
        assert (await receiver.call()).payload["status"] == "cancelled"


async def test_a_repeated_send_makes_no_second_callback(live: LiveServer) -> None:
    async with receiving() as receiver:
        agent = (await live.agent())["id"]
        path = f"/v1/agents/{agent}/messages/async"
        body = {"messages": [{"role": "user", "content": "x", "otid": "cb-1"}]}
        run = await live.made(path, {**body, "callback_url": receiver.url})
        await noted(live, run["id"])
        again = await live.made(path, {**body, "callback_url": receiver.url + "/else"})
        assert (again["id"], again["callback_url"]) == (run["id"], receiver.url)
        assert len(receiver.calls) == 1


async def test_the_documented_code_verifies_signatures(live: LiveServer) -> None:
    """D5: calls are signed as Standard Webhooks, by the tenant's secret, receiver included."""
    page: dict[str, Any] = {}
    exec(blocks(ROOT / "docs" / "callbacks.md", "python"), page)
    genuine = page["genuine_callback"]
    [secret] = await live.context.records.callbacks.secrets(DEFAULT_TENANT)
    async with receiving() as receiver:
        run = await asked(live, "signed ünïcode", receiver.url)
        call = await receiver.call()
    payload = genuine(secret, receiver.url, call.headers, call.body)
    assert (payload["run_id"], call.headers["webhook-id"]) == (run["id"], run["id"])
    other = await live.context.records.callbacks.rotate_secret(new_tenant_id())
    for wrong in (
        (other, receiver.url, call.headers, call.body),
        (secret, receiver.url + "/else", call.headers, call.body),
        (secret, receiver.url, call.headers, call.body + b" "),
        (secret, receiver.url, call.headers | {"webhook-id": "run-1"}, call.body),
        (secret, receiver.url, call.headers | {"webhook-timestamp": "1"}, call.body),
        (secret, receiver.url, {}, call.body),
    ):
        with pytest.raises(page["WebhookVerificationError"]):
            genuine(*wrong)


async def test_a_call_is_genuine_by_the_old_and_by_the_new_secret_while_both_sign(
    live: LiveServer,
) -> None:
    """D5: a receiver can take the new secret at any time of the overlap."""
    [old, *_] = await live.context.records.callbacks.secrets(DEFAULT_TENANT)
    new = await live.context.records.callbacks.rotate_secret(DEFAULT_TENANT)
    async with receiving() as receiver:
        await asked(live, "lantern", receiver.url)
        call = await receiver.call()
    assert call.headers["webhook-signature"].count("v1,") >= 2
    for secret in (old, new):
        Webhook(secret).verify(call.body, call.headers)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "example.com/done",
        "http://",
        "/done",
        "http://user:password@example.com/",
        "http://example.com:99999/",
        "http://exa mple.com/",
        "https://example.com/" + "x" * 2048,
        7,
    ],
)
async def test_an_invalid_callback_url_gets_422_and_starts_nothing(
    live: LiveServer, url: Any
) -> None:
    agent = (await live.agent())["id"]
    before = live.rows()
    path = f"/v1/agents/{agent}/messages/async"
    response = await live.client.post(path, json=message_body("hi", callback_url=url))
    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"] == ["body", "callback_url"]
    assert "password" not in response.json()["detail"] or "user or password" in response.text
    assert live.rows() == before


@pytest.mark.parametrize(
    "path",
    ["/v1/conversations/{1}/messages", "/v1/agents/{0}/messages", "/v1/agents/{0}/messages/stream"],
)
async def test_a_callback_url_on_a_route_without_callbacks_is_refused(
    live: LiveServer, path: str
) -> None:
    agent, conversation = await new_threads(live)
    before = live.rows()
    path = path.format(agent, conversation)
    body = {"input": "hi", "callback_url": "https://example.com/done"}
    response = await live.client.post(path, json=body)
    assert response.status_code == 422
    assert "POST /v1/agents/{agent_id}/messages/async" in response.json()["detail"]
    assert live.rows() == before
    live.gates.open(agent)
    assert (await live.client.post(path, json={**body, "callback_url": None})).is_success


PRIVATE = [
    "127.0.0.1", "127.9.9.9", "[::1]", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1",
    "169.254.169.254", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]",
    "[fd00:ec2::254]", "[fe80::1]", "[ff02::1]", "224.0.0.1", "255.255.255.255",
    "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "168.63.129.16", "192.0.0.192", "192.88.99.1",
    "[3fff::1]", "[fec0::1]", "127.1", "0x7f000001", "2130706433", "localhost", "LOCALHOST.",
    "a.localhost",
]  # fmt: skip


async def test_addresses_that_are_not_public_are_422_unless_the_settings_allow_them(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path) as live:
        agent = (await live.agent())["id"]
        path = f"/v1/agents/{agent}/messages/async"
        for host in PRIVATE:
            url = f"http://{host}/done"
            response = await live.client.post(path, json=message_body("hi", callback_url=url))
            assert response.status_code == 422, host
            assert "REATTACH_CALLBACKS_TO_PRIVATE" in response.json()["detail"]
        assert await live.run_ids() == []
