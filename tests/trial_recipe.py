"""A recipe of one's own for end-to-end tests: the whole graph on a tiny random model and a teacher behind a URL."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.tiny_llama import build_model, save_tiny

KEY = "sk-test-0123456789-not-a-real-key"
STEPS = ("corpus", "traces", "tuned", "slim", "student", "int4", "gguf", "answers", "speed", "verdict", "report")
RECIPE = """# @package _global_
defaults:
  - tiny
  - override /model@models.teacher: path
  - _self_
name: trial
models: {{teacher: {{path: {model}}}}}
steps:
  corpus: {{grounded_rate: 0.0, held_out_share: 0.0}}
  traces: {{base_url: "{url}", model: fake, api_key_env: TRIAL_KEY}}
  tuned: {{max_tokens: 2048}}
  slim: {{ratio: 0.5}}
  student: {{max_tokens: 2048}}
  gguf: {{scheme: q8_0, min_top1: 0.0, max_kl: 100.0}}
  answers: {{context: 4096}}
  speed: {{context: 4096}}
"""


class Teacher(BaseHTTPRequestHandler):
    """Answers every chat completion with one sentence; counts requests; insists on the key."""

    asked = 0

    def do_POST(self) -> None:
        Teacher.asked += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        allowed = self.headers.get("Authorization") == f"Bearer {KEY}"
        message = {"role": "assistant", "content": "I can't help with that."}
        body: dict[str, Any] = {
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 6, "total_tokens": 16},
        }
        payload = json.dumps(body if allowed else {"error": {"message": "bad key"}}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        try:
            self.wfile.write(payload)
        except ConnectionError:  # a test killed the asker
            return

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def teacher_server() -> Iterator[str]:
    """The teacher's URL while the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Teacher)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def write_recipe(folder: Path, url: str) -> Path:
    """A configuration folder with the recipe `trial`, and beside it the model that it names."""
    (folder / "model").mkdir()
    model = save_tiny(folder / "model", build_model(max_position_embeddings=4096))
    (folder / "conf" / "recipe").mkdir(parents=True)
    (folder / "conf" / "recipe" / "trial.yaml").write_text(RECIPE.format(model=model, url=url))
    return folder / "conf"


def command_of(
    home: Path, *arguments: str, key: str = KEY, conf: Path | None = None
) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a run of the recipe with its artifacts below `home`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")} | {
        "TRIAL_KEY": key,
        "COLUMNS": "120",
    }
    command = [sys.executable, "-m", "flows.compress", "+recipe=trial", f"runtime.root={home}"]
    return [*command, "--config-dir", str(conf or home / "conf"), *arguments], environment
