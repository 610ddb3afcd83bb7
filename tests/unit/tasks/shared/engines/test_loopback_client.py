"""JSON requests to a server on loopback: whole answers, streams, health, and the words of their errors."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tasks.shared.engines.loopback_client import QUOTE, ServerClient
from tasks.shared.errors import EndpointError

EVENTS = b': a comment\ndata: {"n": 1}\n\ndata: {"n": 2}\n\ndata: [DONE]\n'


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._reply(200 if self.path == "/health" else 503, b"")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/refused":
            self._reply(422, b"x" * 2 * QUOTE)
        elif self.path == "/stream":
            self._reply(200, EVENTS)
        elif self.path == "/torn":
            self._reply(200, b'data: {"n": 1}\ndata: {"n"\n')
        else:
            self._reply(200, json.dumps(body).encode())

    def _reply(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def client() -> Iterator[ServerClient]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield ServerClient(f"http://127.0.0.1:{server.server_port}/v1/")
    server.shutdown()
    server.server_close()


def test_routes_begin_at_the_root_and_answers_are_objects(client: ServerClient) -> None:
    assert client.post("/echo", {"prompt": "Grüße"}) == {"prompt": "Grüße"}


def test_events_come_one_by_one_without_what_surrounds_them(client: ServerClient) -> None:
    assert list(client.stream("/stream", {}, 5)) == [{"n": 1}, {"n": 2}]


def test_a_torn_event_is_an_error(client: ServerClient) -> None:
    events = client.stream("/torn", {}, 5, "2 tokens")
    assert next(events) == {"n": 1}
    with pytest.raises(EndpointError, match=r"/torn: no answer: .*\n.*2 tokens"):
        next(events)


def test_a_refusal_is_quoted_with_its_status(client: ServerClient) -> None:
    with pytest.raises(EndpointError) as caught:
        client.post("/refused", {})
    assert caught.value.got == "422: " + "x" * QUOTE


def test_no_server_is_an_error_with_the_limit_and_not_ready() -> None:
    gone = ServerClient("http://127.0.0.1:9")
    with pytest.raises(EndpointError, match=r"no answer: .*refused"):
        gone.post("/echo", {}, 7)
    assert not gone.is_ready("/health", 1)


def test_only_status_200_is_ready(client: ServerClient) -> None:
    assert client.is_ready("/health", 5) and not client.is_ready("/loading", 5)
