"""``reattach doctor --models`` lets models continue a text, over HTTP, and says how they do it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from reattach.testing.providers import openai
from tests.support.commands import reattach_here
from tests.support.http_server import listening, read_request

WHOLE = ", ".join(map(str, range(1, 21)))
PREFILL = "This model does not support assistant message prefill."

CASES: Mapping[str, tuple[Sequence[str] | str, str, str]] = {
    # The rest or a refusal of each model, and the level and the words of the result.
    "continues": ([" ", "5", ", 6"], "ok", "continues an interrupted answer (flags)"),
    "echoes": (["1, 2, ", "3, 4,", " 5, 6"], "ok", "repeats the beginning, which is dropped"),
    "joins": (["5", ", 6,"], "warning", "without the space before its rest"),
    "begins": (["1", ", 2", ", 3,"], "wrong", "answers anew instead of continuing"),
    "ignores-the-limit": ([WHOLE], "wrong", "answers anew instead of continuing"),
    "chats": (["Sure!", " Here is"], "wrong", "after '1, 2, 3, 4,' came 'Sure! Here is'"),
    "stops": ([], "wrong", "produces nothing when it has to continue"),
    "echoes-only": (["1, 2, 3, 4,"], "wrong", "repeats the beginning of its answer"),
    "reasons": ("reasoning", "warning", "reasons before it continues"),
    "refuses": (PREFILL, "warning", f"refuses to continue an answer (flags)|{PREFILL}"),
    "forbids": ("Unknown member.", "warning", "refuses to continue an answer (flags)"),
    "busy": ("busy", "warning", "could not be checked"),
}


@asynccontextmanager
async def counting_server() -> AsyncIterator[tuple[str, list[Mapping[str, Any]]]]:
    """Continue as the model's name says; yield the base URL and the requests to continue."""
    continuing: list[Mapping[str, Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = (await read_request(reader)).body
        answer: Sequence[str] | str = ["Yes."]
        if body["messages"][-1]["role"] == "assistant":
            continuing.append(body)
            answer = CASES[body["model"]][0]
        status, kind, content = 200, "text/event-stream", b""
        if isinstance(answer, str) and answer != "reasoning":
            status, kind = (503 if answer == "busy" else 400), "application/json"
            content = json.dumps({"error": {"message": answer}}).encode()
        elif answer == "reasoning":
            content = openai.chunk({"reasoning_content": "First"}) + openai.stops("length")
        else:
            content = b"".join(openai.says(*answer)) + openai.stops("length")
        end = openai.DONE if status == 200 else b""
        writer.write(
            f"HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n".encode()
            + content
            + end
        )
        await writer.drain()
        writer.close()

    async with listening(serve) as origin:
        yield f"{origin}/v1", continuing


async def findings(url: str, path: Path, *arguments: str, **more: str) -> list[dict[str, str]]:
    """Return the findings about models that continue."""
    # Each model opens a client of its own, and all authorities would take 0.2 s of CPU each time.
    authority = path / "authority.pem"
    trustme.CA().cert_pem.write_to_path(str(authority))
    variables = {
        "SSL_CERT_FILE": str(authority),
        "REATTACH_DATA_DIR": str(path),
        "REATTACH_MODELS": ",".join(f"openai/{name}" for name in CASES),
        "REATTACH_OPENAI_BASE_URL": url,
        "REATTACH_CONTINUE_MODELS": "openai/*=flags,deepseek/*=prefix",
        **more,
    }
    ended = await asyncio.to_thread(
        reattach_here, "doctor", "--json", *arguments, OPENAI_API_KEY="sk-test", **variables
    )
    found: list[dict[str, str]] = json.loads(ended.out)["findings"]
    return [one for one in found if one["what"] == "continuing"]


@pytest.mark.promise("P19")
async def test_each_way_to_continue_or_not_is_reported_with_its_remedy(tmp_path: Path) -> None:
    async with counting_server() as (url, continuing):
        idle, *found = await findings(url, tmp_path, "--models")
    assert len(found) == len(CASES)
    for finding, (name, (_, level, words)) in zip(found, CASES.items(), strict=True):
        assert finding["level"] == level, finding
        assert all(one in finding["detail"] for one in (f"openai/{name}", *words.split("|")))
        assert ("openai/*=flags" in finding["remedy"]) == (level != "ok" and name != "busy")
    assert idle["level"] == "warning"
    assert "deepseek/*=prefix names no model" in idle["detail"]
    for request in continuing:
        assert request["messages"][-1] == {"role": "assistant", "content": "1, 2, 3, 4,"}
        assert request["temperature"] == 0
        assert request.get("max_completion_tokens", request.get("max_tokens")) == 6


async def test_without_the_option_no_model_is_called(tmp_path: Path) -> None:
    async with counting_server() as (url, continuing):
        idle, found = await findings(url, tmp_path)
        named = await findings(
            url,
            tmp_path,
            "--models",
            REATTACH_MODELS="openai/continues",
            REATTACH_CONTINUE_MODELS="openai/continues=prefix",
        )
    assert [idle["level"], found["level"]] == ["warning", "ok"]
    assert "12 models are set to continue" in found["detail"]
    assert "reattach doctor --models" in found["detail"]
    assert [one["detail"] for one in named] == [
        "openai/continues continues an interrupted answer (prefix)"
    ]
    [request] = continuing
    assert request["messages"][-1]["prefix"] is True
