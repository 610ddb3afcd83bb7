"""The client of llama.cpp's server: straight to loopback, and with time for what is asked."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tasks.shared.engines.llama_client import LlamaClient
from tasks.shared.errors import EndpointError

TOLD = {"choices": [{"text": "words", "finish_reason": "stop"}]}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = b"{torn" if body.get("prompt") == "torn" else json.dumps(TOLD).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + (body.get("prompt") == "short")))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_no_proxy_of_the_environment_is_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert LlamaClient(url).complete("Hello", 3) == TOLD["choices"][0]


def test_the_time_limit_grows_with_the_answer(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limits, opening = [], urllib.request.OpenerDirector.open

    def watch(self: Any, request: Any, data: Any = None, timeout: float = 0.0) -> Any:
        limits.append(timeout)
        return opening(self, request, data, timeout)

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", watch)
    for tokens in (1, 400):
        LlamaClient(url).complete("Hello", tokens)
    assert limits == [65.0, 2060.0]


@pytest.mark.parametrize("prompt", ["torn", "short"])
def test_half_an_answer_is_an_error_that_names_the_route(url: str, prompt: str) -> None:
    with pytest.raises(EndpointError, match=r"/v1/completions: no answer: "):
        LlamaClient(url).complete(prompt, 3)


def test_a_server_that_is_gone_is_told() -> None:
    with pytest.raises(EndpointError, match="no answer"):
        LlamaClient("http://127.0.0.1:9/v1").tokens("Hello")
