import http.server
import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.orchestration import servers
from flows.orchestration.servers import Servers, has_server, profile_url, server_answers, server_name


class Health(http.server.BaseHTTPRequestHandler):
    code = 200

    def do_GET(self) -> None:
        self.send_response(self.code)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("PREFECT", servers.TEMPORARY))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(Health, "code", 200)


def a_dead_url() -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}/api"


def test_no_server_is_no_server() -> None:
    assert not Servers().find() and not has_server() and server_name() == "temporary"


def test_the_environments_server_is_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    assert Servers().find() and server_name() == url


def test_the_profiles_server_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> None:
    (tmp_path / "profiles.toml").write_text(
        f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{url}"\n[profiles.bare]\n'
    )
    monkeypatch.setenv("PREFECT_API_URL", "")
    assert profile_url() == url and Servers().find() and server_name() == url
    monkeypatch.setenv("PREFECT_PROFILE", "bare")
    assert profile_url() == ""


def test_profiles_that_are_no_toml_are_no_server(tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text("active = [")
    assert profile_url() == ""


def test_a_dead_server_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    dead = a_dead_url()
    command = Servers()
    with caplog.at_level(logging.WARNING, "stillroom"):
        for _ in range(2):
            monkeypatch.setenv("PREFECT_API_URL", dead)
            assert not command.find()
    assert [dead in record.message for record in caplog.records] == [True]


def test_our_temporary_server_is_not_the_users(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    monkeypatch.setenv(servers.TEMPORARY, "1")
    assert not Servers().find() and not has_server() and server_name() == "temporary"


@pytest.mark.parametrize(("code", "answers"), [(200, True), (401, True), (403, True), (404, False), (500, False)])
def test_who_asks_for_a_key_answers(monkeypatch: pytest.MonkeyPatch, url: str, code: int, answers: bool) -> None:
    monkeypatch.setattr(Health, "code", code)
    assert server_answers(url) is answers


def test_a_command_leaves_nothing_to_the_next_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", dead := a_dead_url())
    with caplog.at_level(logging.WARNING, "stillroom"):
        for _ in range(2):
            with Servers() as command:
                assert not command.find() and "PREFECT_API_URL" not in os.environ
                command.until_end.callback(lambda: os.environ.pop("PREFECT_HOME"))
            assert os.environ["PREFECT_API_URL"] == dead and "PREFECT_HOME" in os.environ
    assert [dead in record.message for record in caplog.records] == [True, True], "each command says it"
