"""Stands in for vLLM: the same command line, an OpenAI-compatible server that writes words, and faults to ask for.

    fake_vllm.py serve FOLDER --host 127.0.0.1 --port 8000 --served-model-name model ...

$FAKE_VLLM says what goes wrong: dies, never-ready, short, refuses, thinks; empty: nothing.  Each start adds a line to $FAKE_VLLM_LOG.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FIRST_S, EACH_S = 0.03, 0.01


class Handler(BaseHTTPRequestHandler):
    """Two health checks fail before one succeeds, as with a model that takes a moment."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server: Any = self.server
        server.checks += 1
        late = self.path == "/health" and (server.fault == "never-ready" or server.checks < 3)
        self._send(503 if late else 200, b"")

    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append(body)
        if server.fault == "refuses":
            self._send(400, b'{"error": "max_tokens is too large"}')
            return
        if not body.get("stream"):
            ended = bool(body.get("stop"))
            choice = {
                "text": "word" if ended else "word " * body["max_tokens"],
                "finish_reason": "stop" if ended else "length",
            }
            choices = [] if server.fault == "short" else [choice]
            self._send(200, json.dumps({"choices": choices, "prompt": body["prompt"]}).encode())
            return
        self.send_response(200)
        self.end_headers()
        tokens = body["max_tokens"] - (1 if server.fault == "short" else 0)
        name = "reasoning_content" if server.fault == "thinks" else "content"
        time.sleep(FIRST_S)
        self._event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        for number in range(tokens):
            time.sleep(EACH_S if number else 0)
            self._event({"choices": [{"delta": {name: "word "}, "finish_reason": None}]})
        self._event({"choices": [{"delta": {}, "finish_reason": "length"}]})
        self._event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": tokens}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, content: Any) -> None:
        self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())
        self.wfile.flush()

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(fault: str = "", port: int = 0) -> Iterator[Any]:
    """The server in a thread.  `.asked` holds the requests; `.url` ends in /v1."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.fault, server.asked, server.checks = fault, [], 0
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def write_command(folder: Path) -> Path:
    """An executable that runs this file, as `vllm` in an environment of its own would."""
    command = folder / "vllm"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    return command


def main() -> None:
    fault = os.environ.get("FAKE_VLLM", "")
    if log := os.environ.get("FAKE_VLLM_LOG"):
        with Path(log).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"arguments": sys.argv[1:], "python_path": os.environ.get("PYTHONPATH")}) + "\n")
    if fault == "dies":
        sys.exit("ValueError: no such architecture")
    with serving(fault, int(sys.argv[sys.argv.index("--port") + 1])):
        threading.Event().wait()


if __name__ == "__main__":
    main()
