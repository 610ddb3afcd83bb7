"""vLLM's OpenAI-compatible server for one model folder, as a context manager.

vLLM runs from an environment of its own, since it pins other versions of this project's libraries.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from tasks.shared.engines.loopback_client import ServerClient
from tasks.shared.errors import ConfigError, MachineError, ModelError

NAME = "model"
"""Model name in requests."""
POLL_S = 0.05
STOP_LIMIT_S = 10.0
OURS = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
"""Environment variables that would make vLLM's Python use this project's environment."""


@dataclass(frozen=True)
class VllmServer:
    """A running server.  url: base URL, ends in /v1.  pid: of the parent of its workers."""

    url: str
    pid: int


def find_vllm(command: str) -> str:
    """Return the executable's path.  Raises ConfigError if there is none."""
    found = shutil.which(command) if command else None
    if found is None:
        got = f"{command!r} is not an executable file" if command else "empty, but `engines` includes vllm"
        fix = "vllm_command: /path/to/its/environment/bin/vllm"
        raise ConfigError("vllm_command", got, "the `vllm` of an environment in which vLLM is installed", fix)
    return found


def vllm_version(command: str) -> str:
    """Version of vLLM in the executable's environment; "unknown" without package metadata."""
    packages = Path(find_vllm(command)).resolve().parents[1].glob("lib/python*/site-packages/vllm-*.dist-info")
    return next((folder.name.removeprefix("vllm-").removesuffix(".dist-info") for folder in packages), "unknown")


@contextmanager
def serve_vllm(command: str, model: Path, context: int, limit: float) -> Iterator[VllmServer]:
    """Run `command serve` on a model folder, on loopback; yield once it is ready.

    context: tokens of prompt and answer together.  limit: seconds until it must be ready.
    Prefix caching is off, so that a repeated prompt costs the same again.
    Raises ConfigError, ModelError with the last line of vLLM's output if it exits, MachineError if it is not ready in time.
    """
    port = _free_port()
    arguments = [
        find_vllm(command), "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME,
        "--max-model-len", str(context), "--no-enable-prefix-caching",
    ]  # fmt: skip
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    environment = {name: value for name, value in os.environ.items() if name not in OURS} | quiet
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(arguments, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            root = f"http://127.0.0.1:{port}"
            _await_ready(process, root, model, limit, log)
            yield VllmServer(f"{root}/v1", process.pid)
        finally:
            _stop(process.pid)
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_ready(process: subprocess.Popen[bytes], root: str, model: Path, limit: float, log: IO[bytes]) -> None:
    client, deadline = ServerClient(root), time.monotonic() + limit
    while time.monotonic() < deadline:
        if process.poll() is not None:
            log.seek(0)
            lines = log.read().decode("utf-8", "replace").strip().splitlines() or [f"exit code {process.returncode}"]
            raise ModelError(str(model), f"vLLM cannot serve it: {lines[-1].strip()}", "a model that vLLM knows")
        if client.is_ready("/health", limit=POLL_S * 20):
            return
        time.sleep(POLL_S)
    raise MachineError(str(model), f"vLLM was not ready after {limit:.0f} s", "", "raise limit_s, or free memory")


def _stop(pid: int) -> None:
    """End the server and its workers: terminate, then kill after a delay."""
    with suppress(psutil.NoSuchProcess):
        server = psutil.Process(pid)
        family = [server, *server.children(recursive=True)]
        server.terminate()
        _, left = psutil.wait_procs(family, STOP_LIMIT_S)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
