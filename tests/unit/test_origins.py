from __future__ import annotations

import pytest

from reattach.domain.errors import StartupError
from reattach.domain.origins import origin_of
from reattach.server.announcing import check_origins
from reattach.settings import Settings


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://app.example.com/", "https://app.example.com"),
        ("HTTPS://App.Example.COM:443", "https://app.example.com"),
        ("http://app.example.com:80//", "http://app.example.com"),
        ("http://app.example.com:443", "http://app.example.com:443"),
        (" http://localhost:3000 ", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("tauri://localhost", "tauri://localhost"),
        ("localhost", "localhost"),
        ("*", "*"),
    ],
)
def test_an_origin_is_kept_as_browsers_write_it(text: str, origin: str) -> None:
    """B11: slashes, capitals and usual ports do not keep it from matching."""
    assert origin_of(text) == origin


@pytest.mark.parametrize(
    "text",
    [
        "app.example.com", "https://", "https://app.example.com/x", "//app.example.com",
        "https://*.example.com", "https://user@app.example.com", "https://app.example.com:x",
        "https://app..example.com", "https://app,example.com", "https://%zz", "https://.", "https://:80",
        "https://app.example.com?x", "app.example.com:443", "https://bücher.example",
    ],
)  # fmt: skip
def test_what_is_no_origin_is_refused_with_the_right_form(text: str) -> None:
    """B11: it would silently never match."""
    with pytest.raises(StartupError, match=r"not an origin.*https://app\.example\.com"):
        Settings(cors_origins=(text,))


def test_a_list_of_origins_is_the_whole_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """B11: pages of this machine can be left out."""
    assert Settings().cors_origins is None
    monkeypatch.setenv("REATTACH_CORS_ORIGINS", "https://a.example/, https://b.example:443")
    assert Settings().cors_origins == ("https://a.example", "https://b.example")
    monkeypatch.setenv("REATTACH_CORS_ORIGINS", "")
    assert Settings().cors_origins == ()


def test_all_pages_are_allowed_with_a_warning() -> None:
    warned = check_origins(Settings(cors_origins=("*", "https://a.example")))
    assert warned.level == "warning"
    assert warned.detail.startswith("REATTACH_CORS_ORIGINS is *: every web page may call")
    for origins, shown in (
        (None, "pages of this machine"),
        ((), "none"),
        (("localhost", "https://a.example"), "pages of this machine, https://a.example"),
    ):
        named = check_origins(Settings(cors_origins=origins))
        assert (named.level, named.detail) == ("ok", f"may call this server: {shown}")
