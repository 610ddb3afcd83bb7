"""URLs, keys and settings of an endpoint: what is refused, and that no secret is shown."""

import pytest

from tasks.shared.engines.endpoint_settings import EndpointSettings, check_url, read_key, shown
from tasks.shared.errors import ConfigError


def test_a_missing_key_is_an_error_that_names_the_variable(monkeypatch):
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(ConfigError, match="TEACHER_KEY"):
        read_key("TEACHER_KEY")
    assert read_key("") is None


def test_a_key_that_no_header_can_carry_is_refused_unseen(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "sk-\u00e9 secret")
    with pytest.raises(ConfigError, match="TEACHER_KEY") as caught:
        read_key("TEACHER_KEY")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "localhost:80", "ftp://host/v1", "http://", "http://host:port/v1", "https://user:hunter2@host/v1"]
)
def test_bad_urls_are_refused_without_their_secrets(url):
    with pytest.raises(ConfigError) as caught:
        check_url(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "api-key",
        "api_key",
        "key",
        "Token",
        "access_token",
        "sig",
        "secret",
        "client_secret",
        "subscription-key",
        "apikey",
    ],
)
def test_a_key_in_the_query_is_refused_unseen(name):
    with pytest.raises(ConfigError, match="api_key_env") as caught:
        check_url(f"https://host/v1?api-version=2024-10-21&{name}=hunter2")
    assert "hunter2" not in str(caught.value)


def test_other_query_parameters_pass():
    url = "https://host/v1?api-version=2024-10-21&deployment=monkey&max_tokens=3"
    assert check_url(url) == url


def test_shown_urls_have_no_secrets():
    assert shown("https://u:p@host:8/v1/x?key=1#f") == "https://host:8/v1/x"


def test_settings_refuse_a_bad_url_and_take_none():
    assert EndpointSettings().base_url == ""
    with pytest.raises(ConfigError, match="base_url"):
        EndpointSettings(base_url="localhost:80")
