"""The form of stream tokens and their signatures."""

from __future__ import annotations

import hmac
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reattach.domain.ids import TenantId
from reattach.domain.limits import MAX_STREAM_TOKEN_CHARS
from reattach.domain.stream_tokens import (
    Claims,
    SigningKey,
    TokenScope,
    kid_of,
    new_signing_secret,
    sign,
    verify,
)
from reattach.redact import redact_text

KEY, OTHER = SigningKey.of(new_signing_secret()), SigningKey.of(new_signing_secret())
KEYS = {KEY.kid: KEY}
CLAIMS = Claims(
    id="token-1",
    tenant=TenantId("org-1"),
    scopes=(TokenScope.READ,),
    issued_at_seconds=1_795_000_000,
    expires_at_seconds=1_795_000_600,
    run_id="run-1",
)
TOKEN = sign(CLAIMS, KEY)


@pytest.mark.promise("S11")
def test_a_signed_token_gives_back_its_claims() -> None:
    whole = Claims(
        id="token-2",
        tenant=TenantId("a tenant's name ü"),
        scopes=tuple(TokenScope),
        issued_at_seconds=1,
        expires_at_seconds=2,
        conversation_id="conv-1",
        origin="https://app.example.com",
        models=("openai/gpt-4o",),
        client_tools=("weather",),
    )
    for claims in (CLAIMS, whole):
        assert verify(sign(claims, KEY), KEYS) == claims
    assert TOKEN.startswith(f"rt1.{KEY.kid}.")
    assert len(TOKEN) < 300


@pytest.mark.promise("S11")
@given(st.integers(0, len(TOKEN) - 1), st.sampled_from(string.printable))
def test_a_token_with_another_character_is_refused(place: int, character: str) -> None:
    changed = TOKEN[:place] + character + TOKEN[place + 1 :]
    assert (verify(changed, KEYS) == CLAIMS) is (changed == TOKEN)


@pytest.mark.promise("S11")
@given(st.text(max_size=200))
def test_no_other_text_is_a_token(text: str) -> None:
    for tried in (text, f"rt1.{text}", f"rt1.{KEY.kid}.{text}", f"{TOKEN}{text}" if text else ""):
        assert verify(tried, KEYS) is None


@pytest.mark.promise("S11")
def test_a_token_of_another_key_is_refused_even_under_a_known_id() -> None:
    foreign = sign(CLAIMS, OTHER)
    assert verify(foreign, KEYS) is None
    assert verify(foreign.replace(OTHER.kid, KEY.kid), KEYS) is None
    assert verify(TOKEN, {}) is None
    assert verify(TOKEN, {KEY.kid: OTHER}) is None


@pytest.mark.promise("S11")
def test_a_token_that_is_too_long_is_refused_before_anything_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hmac, "digest", lambda *_: pytest.fail("it was computed"))
    for tried in (f"{TOKEN}{'A' * MAX_STREAM_TOKEN_CHARS}", TOKEN.replace(".", "..", 1), "rt1.ü"):
        assert kid_of(tried) is None
        assert verify(tried, KEYS) is None


def test_a_token_in_the_text_of_another_program_is_redacted() -> None:
    said = redact_text(f"cannot open {TOKEN} now", max_chars=1000)
    assert (said[:12], said[-4:]) == ("cannot open ", " now")
    assert not [part for part in TOKEN.split(".")[1:] if part in said]


@pytest.mark.promise("S11")
def test_a_key_does_not_show_its_secret() -> None:
    secret = new_signing_secret()
    key = SigningKey.of(secret)
    assert secret not in repr(key)
    assert key._derived.hex() not in repr(key)
    assert SigningKey.of(secret) == key
