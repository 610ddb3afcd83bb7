"""A loopback chat endpoint that plays the replies that a test gives it."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = {
    "choices": [{"message": {"content": "Hello."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2},
}


class Fake(ThreadingHTTPServer):
    """Plays a list of replies (status, body, headers, delay); the last one is repeated.

    A function in place of a reply gets the request's body and returns one.
    """

    daemon_threads = True

    def __init__(self, *replies):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.seen, self.lock, self.busy, self.most_busy = list(replies), [], threading.Lock(), 0, 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *failure):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that went away is part of these tests."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.seen.append((self.path, dict(self.headers), body))
            played = server.replies[min(len(server.seen), len(server.replies)) - 1]
            status, content, headers, delay = played(body) if callable(played) else played
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
        time.sleep(delay)
        with server.lock:
            server.busy -= 1
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *ignored):
        pass


def reply(status=200, body=GOOD, headers=None, delay=0.0):
    return (status, body, headers or {}, delay)


def says(content="Hello.", reason="stop", usage=None, **message):
    """A reply with one choice."""
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}
    return reply(body={"choices": [choice], **({"usage": usage} if usage else {})})
