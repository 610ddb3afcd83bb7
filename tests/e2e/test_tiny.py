"""The whole graph in a subprocess, as a user runs it: a recipe of one's own on a tiny model and a teacher behind a URL."""

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.shared.store.keys import PROJECT
from tests.forked import run_module
from tests.trial_recipe import KEY, STEPS, Teacher, command_of, teacher_server, write_recipe


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    with teacher_server() as url:
        yield url


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, teacher: str) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_recipe(folder, teacher)
    return folder


def run(home: Path, *arguments: str, key: str = KEY) -> "subprocess.CompletedProcess[str]":
    """A later run, forked from a process that has loaded Hydra; so are its steps."""
    command, environment = command_of(home, *arguments, key=key)
    return run_module(command[2], command[3:], PROJECT, environment)


@pytest.fixture(scope="module")
def first(home: Path) -> "subprocess.CompletedProcess[str]":
    """The first run, in a new interpreter."""
    command, environment = command_of(home)
    return subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=400, check=False
    )


def test_the_first_run_makes_every_step(home: Path, first: "subprocess.CompletedProcess[str]") -> None:
    assert first.returncode == 0, first.stderr
    made = {path.parent.name: json.loads(path.read_text()) for path in home.glob("artifacts/trial/*/manifest.json")}
    assert set(made) == set(STEPS)
    for manifest in made.values():
        assert {
            "key",
            "code",
            "inputs",
            "settings",
            "versions",
            "seed",
            "duration_s",
            "peak_memory_bytes",
            "output",
        } <= set(manifest)
    assert not list(home.glob("artifacts/.work/*/out")), "no half artifact is left"


def test_the_figures_are_those_of_these_models(home: Path, first: "subprocess.CompletedProcess[str]") -> None:
    verdict = json.loads((home / "artifacts/trial/verdict/out/verdict.json").read_text())
    assert set(verdict["models"]) == {"tuned", "student", "int4", "gguf"}
    sizes = {name: model["size_bytes"] for name, model in verdict["models"].items()}
    assert sizes["student"] < sizes["tuned"] and sizes["gguf"] < sizes["student"]
    assert all(model["figures"]["tokens_per_second"]["value"] > 0 for model in verdict["models"].values())
    page = (home / "artifacts/trial/report/out/report.html").read_text()
    assert "tuned" in page and not re.search(r"(src|href)=[\"']https?:", page)


def test_the_screen_ends_in_table_verdict_and_places(first: "subprocess.CompletedProcess[str]") -> None:
    for words in ("tuned", "gguf", "not enough data", "report.html", "mlflow ui"):
        assert words in first.stdout
    assert "Traceback" not in first.stdout + first.stderr


def test_mlflow_has_a_parent_and_a_child_per_step(home: Path, first: "subprocess.CompletedProcess[str]") -> None:
    import sqlite3

    with sqlite3.connect(home / "mlflow.db") as database:
        parents = database.execute("select count(*) from tags where key = 'mlflow.parentRunId'").fetchone()[0]
        runs = database.execute("select count(*) from runs").fetchone()[0]
    database.close()
    assert (parents, runs) == (11, 12)


def test_mlflow_names_commit_prefect_run_and_key(home: Path, first: "subprocess.CompletedProcess[str]") -> None:
    import sqlite3

    database = sqlite3.connect(home / "mlflow.db")
    tags: dict[str, dict[str, str]] = {}
    for run, key, value in database.execute("select run_uuid, key, value from tags"):
        tags.setdefault(run, {})[key] = value
    database.close()
    parent = next(found for found in tags.values() if "mlflow.parentRunId" not in found and "recipe" in found)
    assert len(parent["git.commit"]) == 40 and parent["git.dirty"] in {"True", "False"}
    children = [found for found in tags.values() if "mlflow.parentRunId" in found]
    assert {found["prefect.flow_run_id"] for found in children} == {parent["prefect.flow_run_id"]}
    assert all(len(found["stage_key"]) == 64 and found["prefect.task_run_id"] for found in children)


def test_the_key_stands_nowhere(home: Path, first: "subprocess.CompletedProcess[str]") -> None:
    assert KEY not in first.stdout + first.stderr
    holders = [file for file in home.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]
    assert holders == []


def test_a_second_run_does_nothing(home: Path, first: "subprocess.CompletedProcess[str]") -> None:
    asked = Teacher.asked
    again = run(home)
    assert again.returncode == 0, again.stderr
    assert "nothing to do: all 11 steps" in again.stderr
    assert Teacher.asked == asked


def test_the_gate_turns_the_verdict_into_an_exit_code(home: Path, first: "subprocess.CompletedProcess[str]") -> None:
    verdict = json.loads((home / "artifacts/trial/verdict/out/verdict.json").read_text())
    assert verdict["decision"] == "not enough data", "a dozen items can prove nothing"
    assert run(home, "gate.enforce=true").returncode == 4


class Mute(BaseHTTPRequestHandler):
    """Never answers."""

    asked = threading.Event()

    def do_POST(self) -> None:
        Mute.asked.set()
        time.sleep(60)

    def log_message(self, *_: Any) -> None:
        return


def stored(home: Path, step: str) -> set[str]:
    """Keys of a step's artifacts in the store, whole or not."""
    return {path.name for path in home.glob(f"artifacts/.store/{step}/*")}


@pytest.mark.parametrize(("orchestrator", "template"), [("prefect", "true"), ("none", "false")])
def test_ctrl_c_ends_everything_and_says_so(
    home: Path, first: "subprocess.CompletedProcess[str]", orchestrator: str, template: str
) -> None:
    """With steps that are forked, and with steps that are plain processes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mute)
    server.daemon_threads = True
    Mute.asked.clear()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    teacher = [f"steps.traces.base_url={url}", "steps.traces.model=mute"]
    runtime = [f"runtime.orchestrator={orchestrator}", f"runtime.template={template}"]
    arguments = ["tracking=none", *runtime, *teacher, "seed=7"]
    before = {name: stored(home, name) for name in ("corpus", "traces")}
    command, environment = command_of(home, *arguments)
    child = subprocess.Popen(command, cwd=PROJECT, env=environment, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    said = ""
    while "[2/11] traces" not in said:
        line = child.stderr.readline()
        assert line, said
        said += line
    assert Mute.asked.wait(60), "the step's own process is at work"
    started = [process.pid for process in psutil.Process(child.pid).children(recursive=True)]
    child.send_signal(signal.SIGINT)
    said += child.communicate(timeout=60)[1]
    server.shutdown()
    server.server_close()
    assert child.returncode == 130, said
    assert "interrupted" in said and "Traceback" not in said
    assert started and not [pid for pid in started if psutil.pid_exists(pid)], "no orphan"
    assert stored(home, "traces") == before["traces"], "no half artifact"
    assert stored(home, "corpus") >= before["corpus"], "the finished corpus stays"


def test_an_override_is_a_variant_that_shares_what_it_can(
    home: Path, first: "subprocess.CompletedProcess[str]"
) -> None:
    before = {path: path.stat().st_mtime_ns for path in home.glob("artifacts/trial/*/manifest.json")}
    had = {name: stored(home, name) for name in ("tuned", "report")}
    done = run(home, "runtime.orchestrator=none", "tracking=none", "steps.report.title=Another")
    assert done.returncode == 0, done.stderr
    assert len(stored(home, "report") - had["report"]) == 1 and stored(home, "tuned") == had["tuned"]
    assert before == {path: path.stat().st_mtime_ns for path in home.glob("artifacts/trial/*/manifest.json")}


def test_a_damaged_artifact_is_made_again(home: Path, first: "subprocess.CompletedProcess[str]") -> None:
    file = home / "artifacts/trial/report/out/report.html"
    whole = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(whole[:100])
    done = run(home, "runtime.orchestrator=none", "tracking=none")
    assert done.returncode == 0, done.stderr
    assert "report is made again: its files were changed" in done.stderr
    assert file.read_bytes() == whole


def test_a_refused_key_is_one_message_and_keeps_finished_steps(
    home: Path, first: "subprocess.CompletedProcess[str]"
) -> None:
    had = {name: stored(home, name) for name in ("corpus", "traces")}
    done = run(home, "runtime.orchestrator=none", "tracking=none", "runtime.template=false", "seed=1", key="wrong")
    assert done.returncode == 2
    assert "401" in done.stderr and "step traces" in done.stderr and "Traceback" not in done.stderr
    assert len(stored(home, "corpus") - had["corpus"]) == 1, "the finished corpus stays"
    assert stored(home, "traces") == had["traces"]
