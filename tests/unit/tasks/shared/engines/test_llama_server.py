import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tasks.shared.engines.llama_server import found_answer, serve, start
from tasks.shared.errors import MachineError, ModelError
from tasks.shared.gguf.writer import write_gguf
from tests.tiny_llama import save_tiny

ROOT = Path(__file__).parents[5]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_gguf(save_tiny(folder / "hf"), folder / "tiny.gguf")
    return folder / "tiny.gguf"


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def listening(url: str) -> bool:
    try:
        with urllib.request.urlopen(url + "/models", timeout=2):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


def gone(pid: int, within: float = 8.0) -> bool:
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_answers_chats_and_constrained_completions_then_stops(gguf):
    with start(gguf, threads=1, parallel=2, context=256) as server:
        chat = post(
            server.url + "/chat/completions", {"messages": [{"role": "user", "content": "returns?"}], "max_tokens": 4}
        )
        assert chat["choices"][0]["finish_reason"] in ("stop", "length")
        assert chat["usage"]["prompt_tokens"] > 0
        body = {"prompt": "returns", "max_tokens": 8, "grammar": 'root ::= "a" | "b"', "logprobs": 2}
        choice = post(server.url + "/completions", body)["choices"][0]
        assert choice["text"] in ("a", "b") and choice["logprobs"]["content"]
        assert "predicted_per_second" in chat["timings"]
        assert server.url.startswith("http://127.0.0.1:")
    assert not listening(server.url)
    assert gone(server.pid, within=1.0)


def test_stops_when_its_block_raises(gguf):
    with pytest.raises(KeyboardInterrupt), serve(gguf, threads=1, parallel=1, context=256) as url:
        raise KeyboardInterrupt
    assert not listening(url)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_does_not_outlive_its_parent(gguf, how):
    code = (
        "import sys, time; from pathlib import Path; from tasks.shared.engines.llama_server import start\n"
        f"with start(Path({str(gguf)!r}), threads=1, parallel=1, context=256) as server:\n"
        "    print(server.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        child = int(parent.stdout.readline())
        parent.send_signal(how)
        parent.wait(10)
        assert gone(child)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match="absent.gguf"), serve(tmp_path / "absent.gguf", threads=1, parallel=1):
        pass


def test_another_file_format_is_refused(tmp_path):
    (tmp_path / "page.gguf").write_text("<html>")
    with pytest.raises(ModelError, match="page.gguf"), serve(tmp_path / "page.gguf", threads=1, parallel=1):
        pass


def test_a_file_cut_short_is_refused_with_llamas_reason(gguf, tmp_path):
    half = tmp_path / "half.gguf"
    half.write_bytes(gguf.read_bytes()[: gguf.stat().st_size // 2])
    with (
        pytest.raises(ModelError, match="half.gguf: llama.cpp cannot load it") as caught,
        serve(half, threads=1, parallel=1),
    ):
        pass
    assert "within the file bounds" in str(caught.value)


def test_lines_that_llama_prints_before_the_answer_are_passed_over():
    printed = [b"[New LWP 7]\n", b'{"other": 1}\n', b"17\n", b'{"url": "http://127.0.0.1:9"}\n']
    assert found_answer(io.BytesIO(b"".join(printed))) == {"url": "http://127.0.0.1:9"}
    assert found_answer(io.BytesIO(b"[New LWP 7]\n")) == {}


def test_a_port_in_use_is_named(gguf):
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        port = owner.getsockname()[1]
        with pytest.raises(MachineError, match=str(port)) as caught, serve(gguf, threads=1, parallel=1, port=port):
            pass
    assert "port: 0" in str(caught.value)


def test_a_server_that_is_not_ready_in_time_is_stopped(gguf):
    with pytest.raises(MachineError, match="not ready"), start(gguf, threads=1, parallel=1, limit=0.01):
        pass
