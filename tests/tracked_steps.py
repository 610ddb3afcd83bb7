"""Finished steps as a flow reports them: artifacts with manifests on disk, and servers to report them to."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flows.tracking import StepRecord, Tracker
from tasks.shared.store.keys import PROJECT
from tasks.shared.technique import Artifact, Kind
from tests.forked import TRACKING, ForkedCode
from tests.verdict_samples import shipping

RECIPE = "trial"
LOSS = "step,epoch,train_loss,validation_loss\n" + "".join(f"{i},0.5,{1 / (i + 1)},\n" for i in range(50))


def step(
    root: Path,
    name: str,
    kind: Kind,
    inputs: Mapping[str, tuple[StepRecord, ...]] | None = None,
    files: Mapping[str, str] | None = None,
    digest: str = "",
    **metrics: Any,
) -> StepRecord:
    """Write one step's artifact; its digest is made of its name unless given."""
    ports = {
        port: tuple(Artifact(item.name, item.kind, item.folder / "out") for item in items)
        for port, items in (inputs or {}).items()
    }
    manifest = {
        "recipe": RECIPE,
        "step": name,
        "kind": str(kind),
        "key": f"key-of-{name}{digest}".ljust(64, "0"),
        "technique": f"tasks.stage.{name}.Some",
        "settings": {"ratio": 0.5, "nested": {"bits": 4}},
        "seed": 7,
        "inputs": {p: {item.name: item.manifest["output"] for item in items} for p, items in (inputs or {}).items()},
        "output": (digest or f"content-of-{name}-").ljust(64, "1"),
        "metrics": metrics,
        "duration_s": 2.5,
        "peak_memory_bytes": 1_000_000,
    }
    folder = root / "artifacts" / RECIPE / name
    (folder / "out").mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for file, text in (files or {}).items():
        (folder / "out" / file).write_text(text)
    return StepRecord(name, kind, manifest, folder, True, ports, {"prefect.task_run_id": f"task-{name}"})


def recipe(root: Path, verdict: Any = None, gguf: str = "") -> list[StepRecord]:
    """A whole recipe, executed: corpus, tuned, gguf, verdict, report.  verdict: a shipping one unless given."""
    corpus = step(root, "corpus", Kind.CORPUS, files={"card.json": "{}"}, train=70, calibration=10, test=20)
    tuned = step(root, "tuned", Kind.MODEL, {"data": (corpus,)}, {"loss.csv": LOSS, "model.safetensors": "w" * 5000})
    engine = step(root, "gguf", Kind.ENGINE, {"model": (tuned,)}, {"model.gguf": "w" * 5000}, digest=gguf, size=66)
    text = (verdict or shipping()).model_dump_json()
    compared = {"baseline": (tuned,), "candidates": (engine,), "data": (corpus,)}
    judged = step(root, "verdict", Kind.VERDICT, compared, {"verdict.json": text}, digest=gguf, decision="ship")
    report = step(root, "report", Kind.REPORT, {"verdict": (judged,)}, {"report.html": "<p>", "report.json": "{}"})
    return [corpus, tuned, engine, judged, report]


def tell(tracker: Tracker, steps: list[StepRecord], status: str = "FINISHED") -> None:
    """A flow from start to end."""
    tracker.start(RECIPE, {"git.commit": "abc", "git.dirty": "false", "prefect.flow_run_id": "flow-1"})
    for record in steps:
        tracker.step(record)
    tracker.finish(status)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """A real tracking server on loopback, its database and artifacts below the folder; killed at the end."""
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "store"),
    ]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("a") as log:
        server = subprocess.Popen(
            command, env=os.environ | quiet, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(600):
            assert server.poll() is None, (folder / "server.log").read_text()[-2000:]
            with suppress(OSError):
                urllib.request.urlopen(f"{uri}/health", timeout=2).close()
                break
            time.sleep(0.2)
        else:
            raise AssertionError("the tracking server did not start within two minutes")
        yield uri
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, 9)
        server.wait()


def in_process(code: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """Python code in a process of its own, with this project importable."""
    paths = {"PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | paths | environment,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def with_mlflow(code: str, *arguments: str) -> ForkedCode:
    """The same for code that imports MLflow, which is loaded once for all."""
    return ForkedCode(code, *arguments, libraries=TRACKING)
