"""vLLM from an environment of its own: how it is started, waited for and ended; a stand-in plays its part."""

import json
import socket
from pathlib import Path

import psutil
import pytest

from tasks.evaluate.models_under_test.model_under_test import Prompt
from tasks.evaluate.timing.streams import stream_answer
from tasks.shared.engines.vllm_server import NAME, find_vllm, serve_vllm, vllm_version
from tasks.shared.errors import ConfigError, MachineError, ModelError
from tests.fake_vllm import write_command


def test_it_answers_on_loopback_without_its_cache_and_ends_with_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = str(write_command(tmp_path))
    with serve_vllm(command, tmp_path / "folder", 256, 20) as server:
        assert stream_answer(server.url, NAME, Prompt([{"role": "user", "content": "Hello?"}]), 3, 5).tokens == 3
    assert not psutil.pid_exists(server.pid)
    started = json.loads((tmp_path / "log").read_text("utf-8"))
    arguments = started["arguments"]
    assert arguments[:2] == ["serve", str(tmp_path / "folder")]
    assert {"--host", "127.0.0.1", "--max-model-len", "256", "--no-enable-prefix-caching"} <= set(arguments)
    assert started["python_path"] is None, "its Python must not find our packages"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(server.url.split(":")[2].split("/")[0]))), "nobody listens any more"


def test_its_last_words_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "dies")
    command = str(write_command(tmp_path))
    with pytest.raises(ModelError, match="no such architecture"), serve_vllm(command, tmp_path, 256, 20):
        pass


def test_one_that_is_never_ready_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "never-ready")
    command = str(write_command(tmp_path))
    with pytest.raises(MachineError, match="not ready after 1 s"), serve_vllm(command, tmp_path, 256, 1):
        pass
    assert not [
        child for child in psutil.Process().children(recursive=True) if "fake_vllm" in " ".join(child.cmdline())
    ]


def test_its_version_is_read_from_its_own_environment(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    command = str(write_command(tmp_path / "bin"))
    assert vllm_version(command) == "unknown"
    (tmp_path / "lib" / "python3.12" / "site-packages" / "vllm-0.21.0.dist-info").mkdir(parents=True)
    assert vllm_version(command) == "0.21.0"


@pytest.mark.parametrize(("command", "said"), [("", "empty"), ("/nowhere/bin/vllm", "not an executable file")])
def test_no_executable_is_refused(command: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        find_vllm(command)
