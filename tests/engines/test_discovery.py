"""Hosted models are offered as soon as the environment has a key or a base URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from reattach.domain.clock import SystemClock
from reattach.domain.errors import NotFoundError, StartupError
from reattach.domain.limits import MAX_MODEL_LIST_BYTES
from reattach.embed import Reattach, Turn
from reattach.engine.base import Engine
from reattach.engine.catalog import Catalog
from reattach.engine.openai_responses import OpenAIResponsesEngine
from reattach.engine.providers import PROVIDERS, accounts, missing_key
from reattach.http.context import Context
from reattach.server.assembly import assemble, engines_of
from reattach.settings import Settings, unknown_variables
from tests.support.model_lists import ModelLists, listing, openai_list

BOUND_SECONDS = 30
ANTHROPIC = {"data": [{"type": "model", "id": "claude-x", "display_name": "Claude X"}]}
GOOGLE = {
    "models": [
        {
            "name": "models/gemini-x",
            "inputTokenLimit": 1_000_000,
            "supportedGenerationMethods": ["generateContent", "countTokens"],
        },
        {"name": "models/embedding-1", "supportedGenerationMethods": ["embedContent"]},
    ]
}


async def catalog_of(**settings: Any) -> Catalog:
    chosen = Settings(**settings)
    return Catalog(await asyncio.to_thread(engines_of, chosen, SystemClock()))


def handles(catalog: Catalog) -> list[str]:
    return [m.handle for m in catalog.models() if not m.handle.startswith("local/")]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(BOUND_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("variables", "answer", "handle", "header"),
    [
        (
            ("OPENAI_API_KEY", "OPENAI_BASE_URL"),
            openai_list("gpt-x", "text-embedding-3-small"),
            "openai/gpt-x",
            "Bearer sesame",
        ),
        (("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"), ANTHROPIC, "anthropic/claude-x", "sesame"),
        (("GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL"), GOOGLE, "google/gemini-x", "sesame"),
    ],
    ids=["openai", "anthropic", "google"],
)
async def test_a_key_in_the_environment_offers_the_models_that_its_provider_lists(
    variables: tuple[str, str],
    answer: dict[str, Any],
    handle: str,
    header: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """E4: a provider whose key is in the environment offers its models without more."""
    async with listing(answer) as server:
        monkeypatch.setenv(variables[0], "sesame")
        monkeypatch.setenv(variables[1], server.url)
        catalog = await catalog_of()
        assert handles(catalog) == []
        await catalog.refresh()

        assert handles(catalog) == [handle]
        assert f": {header}\r\n" in server.heads[0]
        if handle.startswith("google"):
            assert catalog.model(handle).context_window_tokens == 1_000_000
        await catalog.aclose()


@pytest.mark.parametrize("way", ["setting", "environment"])
async def test_a_base_url_alone_offers_what_the_server_there_lists(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E4: Ollama and vLLM need a base URL and nothing else."""
    answer = openai_list("llama3.2:1b", "nomic-embed-text", max_model_len=8192)
    async with listing(answer) as server:
        given = {"openai_base_url": f"{server.url}/v1"} if way == "setting" else {}
        if way == "environment":
            monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1/")
        catalog = await catalog_of(**given)
        await catalog.refresh()

        assert handles(catalog) == ["openai/llama3.2:1b"]
        assert catalog.model("openai/llama3.2:1b").context_window_tokens == 8192
        assert server.heads[0].startswith("GET /v1/models HTTP/1.1\r\n")
        assert "authorization" not in server.heads[0].lower()
        await catalog.aclose()


async def test_a_handle_that_is_not_listed_works_for_a_provider_with_a_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """E4: a handle of an available provider works though it is not listed."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sesame")
    catalog = await catalog_of()

    assert catalog.model("anthropic/claude-of-tomorrow").provider_type == "anthropic"
    for other in ("openai/gpt-x", "anthropic/", "anthropic", "nobody/x"):
        with pytest.raises(NotFoundError):
            catalog.model(other)
    await catalog.aclose()


async def test_the_setting_of_models_narrows_what_is_offered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """E4: REATTACH_MODELS leaves only the handles that it names."""
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    catalog = await catalog_of(models=("openai/gpt-x",))
    await catalog.refresh()

    assert handles(catalog) == ["openai/gpt-x"]
    with pytest.raises(NotFoundError):
        catalog.model("openai/gpt-y")
    await catalog.aclose()


@pytest.fixture
async def broken() -> AsyncIterator[ModelLists]:
    async with listing() as server:
        yield server


async def test_a_provider_that_hangs_does_not_delay_the_start_and_is_listed_later(
    broken: ModelLists, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E4: lists are asked for within a bound and never block the start."""
    monkeypatch.setattr("reattach.engine.pydantic_ai.discovery.MODEL_LIST_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr("reattach.engine.pydantic_ai.discovery.MODEL_LIST_RETRY_SECONDS", 0.01)
    settings = Settings(data_dir=tmp_path, openai_base_url=broken.url)
    async with assemble(settings) as context:
        assert handles(context.catalog) == []
        await until(lambda: bool(context.catalog.problems()))
        broken.answer = openai_list("gpt-x")
        await until(lambda: handles(context.catalog) == ["openai/gpt-x"])
        assert context.catalog.problems() == []


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"error": "no"}, 401),
        ("<html>", 200),
        ("[1, 2]", 200),
        ("null", 200),
        ('{"data": 3}', 200),
        ('{"data": [{"id": null}, {"id": 5}, {}, 7]}', 200),
        ("x" * (MAX_MODEL_LIST_BYTES + 1), 200),
        ({}, 302),
    ],
    ids=["refused", "html", "numbers", "null", "no list", "odd entries", "too long", "redirect"],
)
async def test_a_list_that_cannot_be_read_leaves_the_provider_usable(
    answer: Any, status: int
) -> None:
    """E4: nothing that a provider answers for its list stops the server."""
    async with listing(answer, status) as server:
        catalog = await catalog_of(openai_base_url=server.url)
        await catalog.refresh()
        assert set(handles(catalog)) <= {"openai/5"}
        assert catalog.model("openai/gpt-x").name == "gpt-x"
        await catalog.aclose()


async def test_what_lists_say_is_logged_without_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """E4: the log says why a list is missing, and no secret."""
    async with listing({"error": "no"}, 401) as server:
        url = server.url.replace("//", "//user:hidden@")
        catalog = await catalog_of(openai_base_url=url, openai_api_key="sesame")
        with structlog.testing.capture_logs() as logs:
            await catalog.refresh()
            await catalog.refresh()
        await catalog.aclose()

    [line] = logs
    assert line["problem"] == "it answers 401"
    assert "sesame" not in str(line)
    assert "hidden" not in str(line)


async def answer_nothing(_turn: Turn) -> AsyncIterator[str]:
    yield "x"


async def start_lines(settings: Settings, engines: list[Engine] | None = None) -> list[Any]:
    with structlog.testing.capture_logs() as logs:
        async with assemble(settings, engines=engines):
            pass
    return list(logs)


async def test_the_start_says_which_models_answer_and_that_no_key_was_made(tmp_path: Path) -> None:
    """E4: a few lines at the start say what the server offers."""
    lines = await start_lines(
        Settings(data_dir=tmp_path, scripted=True, default_model="scripted/echo")
    )
    by_event = {line["event"]: line for line in lines}

    assert "scripted/echo" in by_event["models"]["handles"]
    assert by_event["models"]["default"] == "scripted/echo"
    assert by_event["API keys"]["keys"].startswith("none exists")
    assert {"records", "event log"} <= set(by_event)


@pytest.mark.parametrize(("host", "is_open"), [("127.0.0.1", True), ("0.0.0.0", False)])
async def test_a_server_counts_as_open_to_its_machine_only_if_it_listens_there_alone(
    tmp_path: Path, host: str, is_open: bool
) -> None:
    lines = await start_lines(Settings(data_dir=tmp_path, host=host, scripted=True))
    [keys] = [line["keys"] for line in lines if line["event"] == "API keys"]
    assert ("open to programs on this machine" in keys) is is_open


async def test_the_start_warns_of_a_hosted_model_without_its_key_and_of_no_model(
    tmp_path: Path,
) -> None:
    """E4: a server that cannot answer says so at its start."""
    lines = await start_lines(Settings(data_dir=tmp_path / "a", models=("openai/gpt-x",)))
    assert [one["event"] for one in lines if one["log_level"] == "warning"] == [
        "openai/gpt-x cannot answer: OPENAI_API_KEY is not set."
    ]
    lines = await start_lines(Settings(data_dir=tmp_path / "b"), engines=[])
    [warning] = [one["event"] for one in lines if one["log_level"] == "warning"]
    assert warning == "No model can answer."


async def test_unknown_variables_are_named_with_a_guess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E4: a misspelt variable is not ignored in silence."""
    said = unknown_variables(
        {"REATTACH_MODLES": "x", "reattach_prot": "1", "REATTACH_PORT": "1", "REATTACH_ZZZ": ""}
    )
    assert said[0].detail == "REATTACH_MODLES is not a setting."
    assert said[0].remedy == "Did you mean REATTACH_MODELS?"
    assert said[1].remedy == "Unset it, or correct its name."
    assert said[2].detail == "reattach_prot is not a setting."
    assert said[2].remedy == "Did you mean REATTACH_PORT?"
    assert len(said) == 3

    monkeypatch.setenv("REATTACH_MODLES", "openai/gpt-x")
    lines = await start_lines(Settings(data_dir=tmp_path))
    assert any(one["event"].startswith("REATTACH_MODLES is not") for one in lines)


async def test_a_default_model_that_does_not_exist_is_an_error_at_start(tmp_path: Path) -> None:
    """E4: a server does not start with a default model that it does not offer."""
    settings = Settings(data_dir=tmp_path, scripted=True, default_model="scripted/ecco")
    with pytest.raises(StartupError, match=r"names scripted/ecco.*Did you mean scripted/echo\?"):
        async with assemble(settings):
            pass


async def test_a_default_model_may_be_one_that_no_list_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E4: the default may be any handle of an available provider."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sesame")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    settings = Settings(data_dir=tmp_path, default_model="anthropic/claude-x")
    async with assemble(settings) as context:
        assert isinstance(context, Context)


async def test_an_embedded_server_does_not_take_the_default_model_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E4: the functions that code names are the models of an embedded server."""
    monkeypatch.setenv("REATTACH_DEFAULT_MODEL", "openai/gpt-x")
    async with Reattach(answer_nothing, data_dir=tmp_path) as streams:
        run = await streams.ask("hello")
        assert run.id


def test_every_provider_is_available_by_each_of_its_keys() -> None:
    """E4: each variable of a key makes its provider available."""
    for provider in PROVIDERS:
        for variable in provider.key_variables:
            [account] = accounts({variable: "sesame"})
            assert (account.provider, account.key, account.source) == (provider, "sesame", variable)
            assert missing_key(f"{provider.name}/x", {variable: "sesame"}) is None
        assert missing_key(f"{provider.name}/x", {}) == " or ".join(provider.key_variables)
    assert accounts({"OPENAI_API_KEY": ""}) == []
    assert missing_key("unheard-of/x", {}) is None


async def test_kept_answers_are_offered_with_openais_key_beside_its_listed_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with aclosing(await catalog_of(openai_base_url="http://127.0.0.1:9/v1")) as catalog:
        with pytest.raises(NotFoundError):
            catalog.engine("openai-responses/gpt-x")
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    async with aclosing(await catalog_of()) as catalog:
        assert isinstance(catalog.engine("openai-responses/gpt-x"), OpenAIResponsesEngine)
        assert not isinstance(catalog.engine("openai/gpt-x"), OpenAIResponsesEngine)


async def test_named_models_keep_their_order_whichever_engine_answers() -> None:
    named = ("openai-responses/gpt-x", "openai/gpt-x")
    for models in (named, named[::-1], named[:1]):
        async with aclosing(await catalog_of(models=models)) as catalog:
            assert handles(catalog) == list(models)
            assert isinstance(catalog.engine(named[0]), OpenAIResponsesEngine)
            with pytest.raises(NotFoundError):
                catalog.engine("openai-responses/other")


def test_kept_answers_need_the_key_of_openai() -> None:
    assert missing_key("openai-responses/gpt-x", {}) == "OPENAI_API_KEY"
    assert missing_key("openai-responses/gpt-x", {"OPENAI_API_KEY": "sesame"}) is None
