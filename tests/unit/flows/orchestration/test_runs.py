import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from filelock import FileLock

prefect_runs = pytest.importorskip("flows.orchestration.runs")


class Client:
    """Stands in for Prefect's: flow runs and tasks by id, with their states."""

    def __init__(self) -> None:
        self.runs: dict[UUID, bool] = {}
        self.forced: list[UUID] = []
        self.tasks: list[Any] = []
        self.down = False

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def read_flow_run(self, key: UUID) -> Any:
        if self.down:
            raise httpx.ConnectError("down")
        if key not in self.runs:
            raise prefect_runs.ObjectNotFound(Exception())
        return SimpleNamespace(state=SimpleNamespace(is_final=lambda: self.runs[key]))

    def read_task_runs(self, **_: Any) -> list[Any]:
        return self.tasks

    def set_task_run_state(self, key: UUID, *_: Any, force: bool) -> None:
        self.forced.append(key)

    set_flow_run_state = set_task_run_state


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    made = Client()
    monkeypatch.setattr(prefect_runs, "get_client", lambda sync_client: made)
    yield made


def note(folder: Path, server: str = "temporary") -> UUID:
    key = uuid4()
    (folder / f"{key}.json").write_text(json.dumps({"server": server, "pid": 1}))
    return key


def test_a_dead_run_and_its_open_tasks_are_crashed(client: Client, tmp_path: Path) -> None:
    dead, ended, unknown = note(tmp_path), note(tmp_path), note(tmp_path)
    client.runs = {dead: False, ended: True}
    tasks = [
        SimpleNamespace(id=uuid4(), state=SimpleNamespace(is_final=lambda final=final: final))
        for final in (True, False)
    ]
    client.tasks = tasks
    prefect_runs.sweep(tmp_path)
    assert client.forced == [tasks[1].id, dead], "neither what had ended nor what is unknown"
    assert unknown and not list(tmp_path.glob("*.json"))


def test_a_live_run_and_another_servers_are_left_alone(client: Client, tmp_path: Path) -> None:
    live, other = note(tmp_path), note(tmp_path, "http://elsewhere/api")
    client.runs = {live: False, other: False}
    with FileLock(tmp_path / f"{live}.lock"):
        prefect_runs.sweep(tmp_path)
    assert not client.forced and len(list(tmp_path.glob("*.json"))) == 2


def test_a_server_that_is_down_is_asked_again_next_time(client: Client, tmp_path: Path) -> None:
    note(tmp_path)
    client.down = True
    prefect_runs.sweep(tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_presence_is_a_lock_and_a_note_that_stays(client: Client, tmp_path: Path) -> None:
    key = uuid4()
    client.runs = {key: False}
    folder = tmp_path / "artifacts/.runs"
    with prefect_runs.present(tmp_path, str(key)):
        prefect_runs.sweep(folder)
        assert not client.forced
    prefect_runs.sweep(folder)
    assert client.forced == [key]


def test_without_a_server_there_is_no_slot_to_wait_for(client: Client) -> None:
    with prefect_runs.gpu_slot("gpu", threading.Event()):
        pass


def test_a_slot_that_is_taken_can_be_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_runs, "has_server", lambda: True)
    stop = threading.Event()
    asked = []

    def taken(*_: Any, **__: Any) -> Any:
        asked.append(stop.is_set())
        stop.set()
        raise TimeoutError

    monkeypatch.setattr(prefect_runs, "concurrency", taken)
    with pytest.raises(prefect_runs.Stopped), prefect_runs.gpu_slot("gpu", stop):
        pass
    assert asked == [False]
