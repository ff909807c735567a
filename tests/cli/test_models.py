"""The command line lists models, and reasons why models cannot answer."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.commands import reattach_here


def findings(*arguments: str, **variables: str) -> dict[tuple[str, str], str]:
    """The findings of the doctor, by level and subject."""
    ended = reattach_here("doctor", "--json", *arguments, **variables)
    return {
        (one["level"], one["what"]): f"{one['detail']} {one['remedy']}"
        for one in json.loads(ended.out)["findings"]
    }


def test_the_models_are_listed_for_programs_with_the_default_among_them() -> None:
    """E11: `models --json`."""
    ended = reattach_here(
        "models", "--json", REATTACH_SCRIPTED="true", REATTACH_DEFAULT_MODEL="scripted/slow"
    )
    models = {one["handle"]: one["default"] for one in json.loads(ended.out)}

    assert models["scripted/slow"] is True
    assert models["scripted/echo"] is False


def test_the_version_is_shown() -> None:
    """E11: `--version`."""
    ended = reattach_here("--version")

    assert (ended.status, ended.out) == (0, f"reattach {version('reattach')}\n")


def test_a_shell_can_complete_the_commands() -> None:
    """E11: shell completion."""
    ended = reattach_here(
        _REATTACH_COMPLETE="complete_bash", COMP_WORDS="reattach se", COMP_CWORD="1"
    )

    assert ended.out.split() == ["serve"]


def test_keys_are_listed_for_programs_without_their_secret(tmp_path: Path) -> None:
    """E11: `keys list --json` and `keys create --json`."""
    here = {"REATTACH_DATA_DIR": str(tmp_path)}
    made = json.loads(reattach_here("keys", "create", "app", "--json", **here).out)
    [listed] = json.loads(reattach_here("keys", "list", "--json", **here).out)

    assert made["secret"].startswith(listed["prefix"])
    assert (listed["id"], listed["name"], listed["revoked_at"]) == (made["id"], "app", None)
    assert made["secret"] not in str(listed)


def test_a_server_does_not_start_with_a_default_model_that_is_not_there(tmp_path: Path) -> None:
    """E4: a default model that does not exist is an error at start."""
    ended = reattach_here("serve", "--scripted", "--default-model", "scripted/ecco")

    assert ended.status == 1
    assert "Did you mean scripted/echo?" in ended.err


def test_the_doctor_finds_missing_keys_and_misspelt_variables(tmp_path: Path) -> None:
    """E4: the doctor looks at keys and handles."""
    here = {"REATTACH_DATA_DIR": str(tmp_path)}
    found = findings(REATTACH_MODELS="openai/gpt-x", REATTACH_MODLES="x", **here)
    assert "OPENAI_API_KEY" in found["wrong", "model"]
    assert "Did you mean REATTACH_MODELS?" in found["warning", "environment"]

    found = findings(REATTACH_MODELS="openai/gpt-x", OPENAI_API_KEY="sesame", **here)
    assert "openai/gpt-x is offered" in found["ok", "model"]
    assert "sesame" not in str(found)

    found = findings(REATTACH_MODELS="nobody/x", **here)
    assert "unknown provider nobody" in found["wrong", "models"]

    found = findings(REATTACH_DEFAULT_MODEL="openai/gpt-x", **here)
    assert "REATTACH_DEFAULT_MODEL names openai/gpt-x" in found["wrong", "models"]


def test_the_doctor_asks_every_model_for_a_token_with_models(tmp_path: Path) -> None:
    """E4: `doctor --models` finds a provider that does not answer."""
    here = {
        "REATTACH_DATA_DIR": str(tmp_path),
        "REATTACH_MODELS": "openai/gpt-x",
        "REATTACH_OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
        "REATTACH_SCRIPTED": "true",
    }
    found = findings("--models", **here)

    assert "openai/gpt-x" in found["wrong", "answer"]
    assert "scripted/slow answers" in found["ok", "answer"]
    assert ("wrong", "answer") not in findings(**here)


@pytest.mark.parametrize("command", ["models", "doctor", "serve"])
def test_a_variable_with_broken_json_is_refused_in_one_line(command: str) -> None:
    ended = reattach_here(command, REATTACH_MCP="{")
    assert ended.status == 1
    assert "mcp" in ended.err
    assert "Traceback" not in ended.err
    assert ended.err.count("\n") == 1


def test_a_setting_that_is_not_valid_is_named_with_its_value_unless_that_may_be_secret() -> None:
    ended = reattach_here(
        "models",
        REATTACH_PORT="99999",
        REATTACH_LOG_LEVEL="loud",
        REATTACH_CORS_ORIGINS="nonsense",
        REATTACH_OPENAI_BASE_URL="sesame/v1",
        REATTACH_MCP='{"files": {"command": "x", "env": ["sesame"]}}',
    )
    assert ended.status == 1
    assert ended.err.startswith("reattach: The settings are not valid. ")
    for sentence in (
        "REATTACH_PORT: Expected 65535 or less; got '99999'.",
        "REATTACH_LOG_LEVEL: Expected 'debug', 'info', 'warning' or 'error'; got 'loud'.",
        "REATTACH_CORS_ORIGINS: 'nonsense' is not an origin of a web page.",
        "REATTACH_OPENAI_BASE_URL: Expected an http:// or https:// URL.",
        "REATTACH_MCP.files.env: Expected an object.",
        "Correct this and start again.",
    ):
        assert sentence in ended.err
    assert "sesame" not in ended.err
