"""Where settings come from, and what of them is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reattach.domain.errors import StartupError
from reattach.settings import Settings

POSTGRESQL = "postgresql://ada:sesame@records/reattach"
REDIS = "redis://:sesame@log:6379/0"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"REATTACH_{name.upper()}", raising=False)


def file_with(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "reattach.toml"
    path.write_text(text)
    return path


def refusal(config: Path) -> str:
    with pytest.raises(StartupError) as refused:
        Settings(config=config)
    return refused.value.detail


def test_a_flag_wins_over_the_environment_and_that_over_the_file_and_that_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_with(tmp_path, 'port = 1\nhost = "file"\nlog_level = "error"\nmodels = ["a", "b"]')
    monkeypatch.setenv("REATTACH_CONFIG", str(file))
    monkeypatch.setenv("REATTACH_PORT", "2")
    monkeypatch.setenv("REATTACH_HOST", "environment")

    settings = Settings(port=3)

    assert (settings.port, settings.host, settings.log_level) == (3, "environment", "error")
    assert settings.models == ("a", "b")
    assert settings.drain_seconds == 30


def test_the_file_of_a_flag_is_read_instead_of_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REATTACH_CONFIG", str(tmp_path / "missing.toml"))
    assert Settings(config=file_with(tmp_path, "port = 1")).port == 1


def test_an_unknown_setting_of_the_file_is_named_with_those_that_look_like_it(
    tmp_path: Path,
) -> None:
    said = refusal(file_with(tmp_path, 'REATTACH_PORT = 1\nretention = 2\n[log]\nurl = "x"'))
    assert "'REATTACH_PORT' (did you mean port?)" in said
    assert "'retention' (did you mean retention_seconds?)" in said
    assert "'log'" in said
    assert "lease_seconds" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"port = ", "is not valid TOML: Invalid value"),
        (b"port = 1\nport = 2", "is not valid TOML: Cannot overwrite a value"),
        (b'host = "\xff"', "is not valid TOML"),
    ],
)
def test_a_file_that_is_not_toml_is_refused_with_what_is_wrong_in_it(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "reattach.toml"
    path.write_bytes(content)
    assert said in refusal(path)


def test_a_file_that_is_missing_or_none_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.toml")
    assert "is not a file" in refusal(tmp_path)


def test_a_file_that_may_not_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_with(tmp_path, "port = 1")

    def forbidden(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    # An administrator, who may run the tests, may read every file.
    monkeypatch.setattr(Path, "open", forbidden)
    assert "cannot be read: Permission denied" in refusal(file)


def test_a_wrong_value_of_the_file_names_the_file_and_its_setting(tmp_path: Path) -> None:
    file = file_with(tmp_path, 'port = "many"\nmcp = 3')
    said = refusal(file)
    assert f"{file}: port: Expected a whole number; got 'many'." in said
    assert f"{file}: mcp: Expected a table." in said
    assert said.endswith("Correct this and start again.")


def test_an_unknown_setting_of_an_mcp_server_is_named_with_one_that_looks_like_it(
    tmp_path: Path,
) -> None:
    file = file_with(tmp_path, '[mcp.files]\ncomand = "x"')
    assert f"{file}: mcp.files.comand: It is unknown. Did you mean command?" in refusal(file)


def test_a_wrong_value_names_the_variable_or_the_argument_that_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(StartupError, match=r"not valid\. port: Expected 65535 or less; got 99999"):
        Settings(port=99999)
    monkeypatch.setenv("REATTACH_PORT", "many")
    with pytest.raises(StartupError, match=r"REATTACH_PORT: .* Correct this and start again\."):
        Settings()


def test_the_urls_of_stores_never_print_their_passwords() -> None:
    settings = Settings(database_url=POSTGRESQL, log_url=REDIS)
    for said in (repr(settings), str(settings), settings.model_dump_json(), repr(settings.stores)):
        assert "sesame" not in said
    assert settings.stores is not None
    assert settings.stores.database.get_secret_value() == POSTGRESQL
    assert settings.stores.log.get_secret_value() == REDIS


def test_without_urls_the_stores_are_in_the_data_directory() -> None:
    assert Settings().stores is None
    assert Settings(database_url="", log_url="").stores is None


def test_a_pair_of_local_stores_is_refused_for_the_data_directory() -> None:
    settings = Settings(
        database_url="sqlite:////tmp/records.db",
        log_url="sqlite:/tmp/events.db",
    )
    with pytest.raises(StartupError, match="set REATTACH_DATA_DIR"):
        _ = settings.stores


@pytest.mark.parametrize(
    ("database_url", "log_url", "named"),
    [
        (POSTGRESQL, None, "Set REATTACH_LOG_URL too, for example to redis://"),
        (None, REDIS, "Set REATTACH_DATABASE_URL too, for example to postgresql://"),
        (POSTGRESQL, "sqlite:/tmp/events.db", "Set REATTACH_LOG_URL to a shared store"),
        (POSTGRESQL, "memory:", "Set REATTACH_LOG_URL to a shared store"),
        ("sqlite:////tmp/r.db", REDIS, "Set REATTACH_DATABASE_URL to a shared store"),
    ],
)
def test_a_shared_store_beside_a_local_one_is_refused_with_what_to_set_and_why(
    database_url: str | None, log_url: str | None, named: str
) -> None:
    settings = Settings(database_url=database_url, log_url=log_url)
    with pytest.raises(StartupError) as refused:
        _ = settings.stores
    assert named in refused.value.detail
    assert "runs whose events they cannot read" in refused.value.detail
    assert "sesame" not in refused.value.detail


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({}, ""),
        ({"data_dir": Path("a b")}, " --data-dir 'a b'"),
        ({"database_url": POSTGRESQL, "log_url": REDIS}, " --database-url URL"),
    ],
)
def test_a_command_in_a_remedy_names_the_stores_of_these_settings(
    given: dict[str, Any], flags: str
) -> None:
    assert Settings(**given).command("keys list") == f"reattach keys list{flags}"


def test_a_command_in_a_remedy_names_the_settings_file_and_no_store_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_with(tmp_path, "port = 1")
    assert Settings(config=file).command("db upgrade") == f"reattach db upgrade --config {file}"
    monkeypatch.setenv("REATTACH_DATABASE_URL", POSTGRESQL)
    assert Settings().command("db upgrade") == "reattach db upgrade"


def test_an_entry_of_models_that_continue_must_be_a_pattern_with_a_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REATTACH_CONTINUE_MODELS", "openai/*=flags, deepseek/a=b=prefix")
    assert Settings().continue_models == ("openai/*=flags", "deepseek/a=b=prefix")
    for wrong in ("openai/*", "openai/*=trailing", "flags", "small=flags", "=prefix"):
        with pytest.raises(StartupError) as refused:
            Settings(continue_models=("openai/*=flags", wrong))
        said = refused.value.detail
        assert "continue_models: " in said
        assert f"'{wrong}' is not a pattern of handles with a form" in said
