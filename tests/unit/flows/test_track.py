"""The command that shows and sends what a server has missed, as a user runs it."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flows.console.show import where_tracked
from flows.track import main
from flows.tracking import MlflowTracker, NullTracker
from flows.tracking.outbox import DAMAGED, base, list_outboxes
from tasks.shared.store.keys import PROJECT
from tests.tracked_steps import RECIPE, free_port, recipe, tell, with_mlflow


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def queue(root: Path, harm: str = "sqlite") -> str:
    """A whole run that waits; for a database that was broken while it ran, or for a port that nobody listens on."""
    if harm == "http":
        tell(MlflowTracker(address := f"http://127.0.0.1:{free_port()}", root, RECIPE), recipe(root))
        return address
    database = root / "mlflow.db"
    database.mkdir(parents=True)
    tell(MlflowTracker("", root, RECIPE), recipe(root))
    database.rmdir()
    return f"sqlite:///{database}"


def runs(root: Path) -> list[tuple[str, str]]:
    """Name and status of every run in the root's database."""
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        return sorted(database.execute("select name, status from runs"))


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "flows.track", *arguments],
        cwd=PROJECT,
        env=os.environ | {"COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_what_waits_is_shown_then_sent_then_gone(tmp_path: Path) -> None:
    address = queue(tmp_path)
    shown = command("--root", str(tmp_path))
    assert shown.returncode == 0 and not shown.stderr
    assert RECIPE in shown.stdout and re.search(r"\b7\b", shown.stdout) and "ended" in shown.stdout
    assert address.removeprefix("sqlite:///")[:40] in shown.stdout
    sent = command("flush", "--root", str(tmp_path))
    assert (sent.returncode, sent.stdout) == (0, "7 events sent, 0 waiting\n"), sent.stderr
    assert runs(tmp_path) == sorted(
        (name, "FINISHED") for name in ("corpus", "gguf", "report", RECIPE, "tuned", "verdict")
    )
    again = command("--root", str(tmp_path))
    assert again.stdout == "no records wait\n"


def test_a_server_still_down_is_exit_code_1_and_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = queue(tmp_path, "http")
    before = {file.name: file.read_bytes() for file in list_outboxes(tmp_path)[0].files()}
    assert main(["flush", "--root", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "0 events sent, 7 waiting" in told and f"not sent: API request to {address}" in told and "refused" in told
    assert {file.name: file.read_bytes() for file in list_outboxes(tmp_path)[0].files()} == before


def test_an_address_with_a_password_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queue(tmp_path, "http")
    assert main(["flush", "--root", str(tmp_path), "--uri", "http://me:hunter22@127.0.0.1:1"]) == 2
    told = capsys.readouterr().err
    assert "MLFLOW_TRACKING_PASSWORD" in told and "hunter22" not in told


def test_runs_for_one_dead_server_do_not_block_those_for_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue(tmp_path, "http")
    queue(tmp_path)
    assert main(["flush", "--root", str(tmp_path)]) == 1
    assert "7 events sent, 7 waiting" in capsys.readouterr().out
    assert len(runs(tmp_path)) == 6


def test_garbage_and_interrupted_files_are_set_aside_and_block_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue(tmp_path)
    (outbox,) = list_outboxes(tmp_path)
    cut = outbox.files()[2]
    cut.write_bytes(cut.read_bytes()[:50])
    (outbox.folder / "0007-step.json.part").write_text("{")
    (base(tmp_path) / "not-a-run").mkdir()
    assert main(["flush", "--root", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "6 events sent, 0 waiting" in told and told.count("set aside") == 2
    assert (RECIPE, "FINISHED") in runs(tmp_path) and len(runs(tmp_path)) == 5, "all but the damaged step"
    assert len(list((base(tmp_path) / DAMAGED).iterdir())) == 2 and list_outboxes(tmp_path) == []
    assert main(["--root", str(tmp_path)]) == 0
    assert "unreadable: 2" in capsys.readouterr().out


DYING = """
import sys, time; from pathlib import Path; from flows.tracking import MlflowTracker, NullTracker
tracker = MlflowTracker("", Path(sys.argv[1]), "trial"); tracker.start("trial", {"git.commit": "abc"})
print("ready", flush=True); time.sleep(120)
"""


def test_a_run_whose_process_was_killed_is_closed_and_a_living_one_is_not(tmp_path: Path) -> None:
    child = with_mlflow(DYING, str(tmp_path))
    assert child.stdout.readline() == "ready\n"
    assert main(["flush", "--root", str(tmp_path)]) == 0
    assert runs(tmp_path) == [(RECIPE, "RUNNING")] and list_outboxes(tmp_path)[0].alive()
    child.kill()
    child.communicate()
    assert main(["flush", "--root", str(tmp_path)]) == 0
    assert runs(tmp_path) == [(RECIPE, "KILLED")] and list_outboxes(tmp_path) == []


def test_help_is_there_at_once_and_imports_nothing_heavy() -> None:
    code = "import sys, flows.track\ntry: flows.track.main(['--help'])\nexcept SystemExit as end: code = end.code\n"
    code += "print(code, {'mlflow', 'sqlalchemy', 'prefect', 'hydra', 'torch'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert shown.stdout.endswith("0 set()\n") and "flush" in shown.stdout


def test_an_unknown_root_has_nothing_waiting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flush", "--root", str(tmp_path / "absent")]) == 0
    assert "0 events sent, 0 waiting" in capsys.readouterr().out
    assert not (tmp_path / "absent").exists()


def test_the_screen_names_a_servers_page_or_the_command_for_a_database(tmp_path: Path) -> None:
    def shown(uri: str) -> str:
        return where_tracked(MlflowTracker(uri, tmp_path, RECIPE))

    assert shown("http://host:5000") == "http://host:5000"
    assert f"--backend-store-uri sqlite:///{tmp_path / 'mlflow.db'} " in shown("")
    assert "--backend-store-uri postgresql://***@db/runs " in shown("postgresql://me@db/runs")
    assert where_tracked(NullTracker()) == ""


def test_events_hold_figures_and_paths_but_no_weights(tmp_path: Path) -> None:
    queue(tmp_path, "http")
    texts = [file.read_text() for file in list_outboxes(tmp_path)[0].files()]
    events: list[dict[str, Any]] = [json.loads(text) for text in texts]
    assert [event["kind"] for event in events] == ["start", *["step"] * 5, "finish"]
    assert events[2]["content"]["manifest"]["output"] and events[4]["content"]["verdict"]["shipped"] == "gguf"
    assert all("wwww" not in text for text in texts)
    shutil.rmtree(base(tmp_path))
