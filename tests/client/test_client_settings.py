from __future__ import annotations

import pytest

from optimd._settings import FLOOR_BYTES_PER_S, Settings
from optimd.errors import InvalidSetting


def test_defaults_need_nothing() -> None:
    settings = Settings.resolve(environ={})
    assert (settings.url, settings.api_key, settings.timeout_s, settings.retries) == (
        "http://127.0.0.1:8000",
        None,
        30.0,
        5,
    )


def test_the_environment_fills_in_what_no_argument_gives() -> None:
    environ = {"OPTIMD_URL": "https://a/x/", "OPTIMD_API_KEY": "k", "OPTIMD_TIMEOUT": "2.5", "OPTIMD_RETRIES": "0"}
    from_environ = Settings.resolve(environ=environ)
    assert from_environ == Settings("https://a/x", "k", 2.5, 0)
    assert Settings.resolve("http://b", "j", 1.0, 9, environ) == Settings("http://b", "j", 1.0, 9)
    assert Settings.resolve(retries=0, environ={"OPTIMD_RETRIES": "7"}).retries == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPTIMD_URL", "127.0.0.1:8000"),
        ("OPTIMD_URL", "ftp://h"),
        ("OPTIMD_URL", "http://h:99999"),
        ("OPTIMD_URL", "http://h?x=1"),
        ("OPTIMD_URL", "http://h /"),
        ("OPTIMD_API_KEY", "k\n"),
        ("OPTIMD_TIMEOUT", "soon"),
        ("OPTIMD_TIMEOUT", "-1"),
        ("OPTIMD_TIMEOUT", "nan"),
        ("OPTIMD_RETRIES", "1.5"),
        ("OPTIMD_RETRIES", "-1"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(name: str, value: str) -> None:
    with pytest.raises(InvalidSetting, match=name):
        Settings.resolve(environ={name: value})


def test_patience_grows_with_the_body() -> None:
    settings = Settings.resolve(timeout=30.0, environ={})
    assert settings.timeout_for(0) == 30.0
    assert settings.timeout_for(4 * FLOOR_BYTES_PER_S) == 34.0


def test_the_api_key_is_not_in_the_repr() -> None:
    assert "sesame" not in repr(Settings.resolve(api_key="sesame", environ={}))
