"""A Prefect server for tests: started as `make ui` starts it, asked over its API, ended with all that it started."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.workshop import Workshop


def wait_until(happened: Callable[[], Any], seconds: float = 90, every: float = 0.2) -> Any:
    """What `happened` says once it is true; fails after a time that only a hang exceeds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := happened():
            return found
        time.sleep(every)
    raise AssertionError(f"did not happen within {seconds} s")


BUSY = 503
"""Status of a server whose database is locked."""
CLIENT = httpx.Client(timeout=60)
"""One for all requests: a new one each time reads all certificates first."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int
    home: Path
    process: "subprocess.Popen[bytes]"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        return {"PREFECT_API_URL": self.url, "PREFECT_HOME": str(self.home)}

    def post(self, path: str, **content: Any) -> Any:
        answer = CLIENT.post(f"{self.url}{path}", json=content)
        until = time.monotonic() + 10
        while (
            answer.status_code == BUSY and time.monotonic() < until
        ):  # its database is locked; Prefect's client tries again too
            time.sleep(0.5)
            answer = CLIENT.post(f"{self.url}{path}", json=content)
        assert answer.is_success, answer.text
        return answer.json()

    def get(self, path: str) -> Any:
        answer = CLIENT.get(f"{self.url}{path}")
        assert answer.is_success, answer.text
        return answer.json()

    def flow_run(self, name: str) -> dict[str, Any]:
        """The latest flow run of that name; empty if there is none."""
        found = self.post(
            "/flow_runs/filter", flow_runs={"name": {"any_": [name]}}, sort="EXPECTED_START_TIME_DESC", limit=1
        )
        return found[0] if found else {}

    def state(self, name: str) -> str:
        """The type of that flow run's state."""
        return str((self.flow_run(name).get("state") or {}).get("type", ""))

    def tasks(self, name: str) -> dict[str, dict[str, Any]]:
        """The flow run's tasks by name."""
        found = self.post("/task_runs/filter", flow_runs={"id": {"any_": [self.flow_run(name)["id"]]}})
        return {task["name"]: task for task in found}

    def edges(self, name: str) -> set[tuple[str, str]]:
        """From which task to which, as the run graph on the page has it."""
        nodes = self.get(f"/flow_runs/{self.flow_run(name)['id']}/graph-v2")["nodes"]
        label = {key: node["label"] for key, node in nodes}
        return {(label[parent["id"]], node["label"]) for _, node in nodes for parent in node["parents"]}

    def artifacts(self, name: str) -> dict[str, dict[str, Any]]:
        """The flow run's artifacts by key."""
        found = self.post("/artifacts/filter", flow_runs={"id": {"any_": [self.flow_run(name)["id"]]}})
        return {artifact["key"]: artifact for artifact in found}

    def history(self, task: Mapping[str, Any]) -> list[str]:
        """Names of the states that a task went through."""
        states = self.get(f"/task_run_states/?task_run_id={task['id']}")
        return [state["name"] for state in sorted(states, key=lambda state: state["timestamp"])]

    def kill(self) -> None:
        """End it the hard way, with whatever it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def cancel(self, name: str) -> None:
        """What the button on the flow run's page does."""
        state = {"type": "CANCELLING", "name": "Cancelling"}
        self.post(f"/flow_runs/{self.flow_run(name)['id']}/set_state", state=state, force=False)


@contextmanager
def run_server(shop: Workshop, home: Path) -> Iterator[Server]:
    """Serve from the copy on a free port; everything is gone afterwards."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    home.mkdir(parents=True, exist_ok=True)
    environment = shop.environment | {"PREFECT_HOME": str(home)}
    environment.pop("TOY_LOG")
    with (home / "said.log").open("ab") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "flows.ui", str(port)],
            cwd=shop.folder,
            env=environment,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    server = Server(port, home, child)
    try:
        wait_until(lambda: child.poll() is not None or answers(server.url), 180)
        assert child.poll() is None, (home / "said.log").read_text()
        yield server
    finally:
        server.kill()


def answers(url: str) -> bool:
    try:
        return CLIENT.get(f"{url}/health", timeout=5).is_success
    except httpx.HTTPError:
        return False


def leftovers(shop: Workshop) -> list[str]:
    """Command lines of processes that a command in this copy started, or one of its children."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TOY_LOG") == str(shop.log) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:200])
        except (psutil.Error, OSError):
            continue
    return found


@contextmanager
def started(shop: Workshop, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator["subprocess.Popen[str]"]:
    """A command that goes on while the test looks, the toys' log empty before; killed at the end if it still does."""
    shop.log.unlink(missing_ok=True)
    child = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=shop.folder,
        env=shop.environment | dict(env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate()


def runs_now(shop: Workshop, step: str) -> bool:
    """Whether a toy step has begun and not ended."""
    words = shop.log.read_text().splitlines() if shop.log.exists() else []
    mine = [line.split()[0] for line in words if line.split()[1] == step]
    return bool(mine) and mine[-1] == "start"


def intervals(shop: Workshop) -> dict[str, tuple[float, float]]:
    """When each toy step began and ended."""
    times: dict[str, list[float]] = {}
    for line in shop.log.read_text().splitlines():
        _, step, _, moment = line.split()
        times.setdefault(step, []).append(float(moment))
    return {step: (moments[0], moments[-1]) for step, moments in times.items()}


def overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] < other[1] and other[0] < one[1]
