from __future__ import annotations

import pytest

from reattach.redact import redact_text, redact_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host", "redis://host"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:sesame@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://ada:sesame@host", "redis://ada:***@host"),
        ("redis://ada@host", "redis://ada@host"),
        ("redis://ada:@host", "redis://ada:***@host"),
        ("redis://ada:ses%2Fame%40@host", "redis://ada:***@host"),
        ("redis://host?password=sesame&db=3", "redis://host?password=***&db=3"),
        ("redis://host?PassWord=sesame", "redis://host?PassWord=***"),
        ("redis://host?pass%77ord=sesame", "redis://host?password=***"),
        ("redis://host?password=", "redis://host?password=***"),
        (
            "rediss://ada:sesame@[::1]:6380?ssl_ca_certs=/etc/ca.pem",
            "rediss://ada:***@[::1]:6380?ssl_ca_certs=/etc/ca.pem",
        ),
        ("unix://ada:sesame@/run/redis.sock?db=1", "unix://ada:***@/run/redis.sock?db=1"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        (
            "redis+sentinel://ada:sesame@one:26379,two:26379/mine?sentinel_password=sesame",
            "redis+sentinel://ada:***@one:26379,two:26379/mine?sentinel_password=***",
        ),
        ("rediss+cluster://:sesame@one:1,two:2", "rediss+cluster://:***@one:1,two:2"),
        (
            "postgresql://ada:sesame@host:5432/db?sslmode=require&sslpassword=sesame",
            "postgresql://ada:***@host:5432/db?sslmode=require&sslpassword=***",
        ),
        ("postgresql+psycopg://ada:sesame@host/db", "postgresql+psycopg://ada:***@host/db"),
        ("postgresql://ada:sesame@%2Frun%2Fpg/db", "postgresql://ada:***@%2Frun%2Fpg/db"),
        ("postgresql:///db?host=/run/pg&user=ada", "postgresql:///db?host=/run/pg&user=ada"),
        (
            "postgresql:///db?options=-c%20x.password%3Dsesame",
            "postgresql:///db?options=***",
        ),
        (
            "postgresql://host/db?oauth_client_secret=sesame",
            "postgresql://host/db?oauth_client_secret=***",
        ),
        (
            "postgresql://host/db?scram_client_key=sesame",
            "postgresql://host/db?scram_client_key=***",
        ),
        ("sqlite:////var/lib/records.db", "sqlite:////var/lib/records.db"),
        (
            "sqlite:/var/lib/events.db?durability=power",
            "sqlite:/var/lib/events.db?durability=power",
        ),
        ("memory:", "memory:"),
    ],
)
def test_a_url_is_shown_with_its_place_and_without_its_secrets(url: str, shown: str) -> None:
    assert redact_url(url) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://ada:ses/ame@host/0", "redis:***"),
        ("redis://ada:ses?ame@host/0", "redis:***"),
        ("redis://ada:ses#ame@host/0", "redis:***"),
        ("redis://ada:s@s/ame@host/0", "redis:***"),
        ("redis://ada:s@same@host/0", "redis:***"),
        ("redis://ada:sesame", "redis:***"),
        ("redis://[ada:sesame@host", "redis:***"),
        ("redis:sesame", "redis:***"),
        ("redis://ada:sesame@host?sesame", "redis:***"),
        ("redis://ada:sesame@host#sesame", "redis:***"),
        ("redis+sentinel://one:1,two:sesame/mine", "redis+sentinel:***"),
        ("postgresql://ada:ses/ame@host/db", "postgresql:***"),
        ("sesame", "***"),
        ("://sesame", "***"),
        ("ses ame://host", "***"),
        ("", "***"),
    ],
)
def test_of_a_url_that_can_not_be_read_for_sure_only_the_scheme_is_shown(
    url: str, shown: str
) -> None:
    assert redact_url(url) == shown


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("Incorrect API key provided: sk-proj-abc. Bye", "Incorrect API key provided: *** Bye"),
        ("at https://user:pw@host/x?api_key=abc&n=1", "at https://***@host/x?api_key=***&n=1"),
        ("Authorization: Bearer abcdef.ghi", "Authorization: *** ***"),
        ('{"token": "abc", "n": 1}', '{"token": "***", "n": 1}'),
        ("key AIzaSyA1234567890abcdefghij is off", "key *** is off"),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.sig denied", "*** denied"),
        ("limit of org-a1b2c3d4e5 reached", "limit of *** reached"),
        ("0123456789abcdef0123456789abcdef", "***"),
        ("the secret is my-own-key-of-this-server", "the secret is ***"),
        ("<html><body><h1>502</h1>\n\tBad Gateway</body>", "502 Bad Gateway"),
        ("max_tokens: 5000 is more than 4096 tokens", "max_tokens: 5000 is more than 4096 tokens"),
        ("model Meta-Llama-3.1-405B-Instruct-Turbo", "model Meta-Llama-3.1-405B-Instruct-Turbo"),
        ("org-wide rule\x1b[31m", "org-wide rule [31m"),
        ("x" * 99, "x" * 60),
    ],
)
def test_words_of_others_are_shown_on_one_line_without_secrets(words: str, shown: str) -> None:
    """A12: a provider's own text may hold keys, tokens and URLs with credentials."""
    secrets = ["my-own-key-of-this-server"]
    assert redact_text(words, max_chars=60, secrets=secrets) == shown


def test_keys_of_the_environment_are_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """A12: the keys that this server was given, whatever they look like."""
    monkeypatch.setenv("STRANGE_API_KEY", "correct horse battery")
    assert redact_text("no correct horse battery", max_chars=60) == "no ***"
