"""Trackers against real stores: sqlite files, a real server over HTTP, and nobody at all."""

import dataclasses
import json
import logging
import math
import shutil
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.tracking import MlflowTracker, NullTracker, StepRecord
from flows.tracking.address import mask, resolve_uri
from flows.tracking.delivery import Delivery, deliver, flush
from flows.tracking.errors import Unreachable
from flows.tracking.events import POINTS, read_curve, step_content
from flows.tracking.mlflow_runs import Runs
from flows.tracking.models import Models
from flows.tracking.outbox import Header, base, list_outboxes, new_outbox
from flows.tracking.server import Server
from tasks.shared.errors import ConfigError
from tasks.shared.store.keys import PROJECT
from tasks.shared.technique import Kind
from tests.tracked_steps import RECIPE, free_port, mlflow_server, recipe, step, tell, with_mlflow
from tests.verdict_samples import a_verdict


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An opened, empty database: making the tables takes a second."""
    root = tmp_path_factory.mktemp("schema")
    server = Server(resolve_uri("", root), root)
    assert server.client.search_experiments()
    server.settle()
    return root / "mlflow.db"


@pytest.fixture
def root(tmp_path: Path, schema: Path) -> Path:
    shutil.copy(schema, tmp_path / "mlflow.db")
    return tmp_path


DYING = """
import sys, time; from pathlib import Path; from flows.tracking import MlflowTracker
tracker = MlflowTracker("", Path(sys.argv[1]), "trial"); tracker.start("trial", {})
print("ready", flush=True); time.sleep(120)
"""


class View:
    """What a server holds of the recipe."""

    def __init__(self, uri: str) -> None:
        import mlflow

        self.client = mlflow.MlflowClient(uri)
        self.experiment = self.client.get_experiment_by_name(RECIPE).experiment_id
        runs = [self.client.get_run(run.info.run_id) for run in self.client.search_runs([self.experiment])]
        self.parents = [run for run in reversed(runs) if "mlflow.parentRunId" not in run.data.tags]
        self.children = {run.data.tags["step"]: run for run in runs if "mlflow.parentRunId" in run.data.tags}
        self.runs = len(runs)
        self.models = {model.name: model for model in self.client.search_logged_models([self.experiment])}
        self.versions = sorted(self.client.search_model_versions(f"name = '{RECIPE}'"), key=lambda v: int(v.version))

    def files(self, run: Any) -> set[str]:
        return {item.path for item in self.client.list_artifacts(run.info.run_id)}

    def champion(self) -> str:
        return str(self.client.get_model_version_by_alias(RECIPE, "champion").tags["digest"])


def view(root: Path) -> View:
    return View(f"sqlite:///{root / 'mlflow.db'}")


def found_again(steps: list[StepRecord]) -> list[StepRecord]:
    return [dataclasses.replace(record, executed=False) for record in steps]


def check_recorded(seen: View, steps: list[StepRecord]) -> None:
    """Everything that a whole executed recipe leaves on a server."""
    (parent,) = seen.parents
    assert parent.info.status == "FINISHED" and seen.runs == 6
    assert (
        parent.data.tags.items() >= {"git.commit": "abc", "git.dirty": "false", "prefect.flow_run_id": "flow-1"}.items()
    )
    assert parent.data.tags["mlflow.note.content"].startswith("**Ship: gguf is 66.0 MB, 4.1x smaller"), (
        "on top of its page"
    )
    assert parent.data.metrics["gguf.size"] == 66
    assert [item.dataset.name for item in parent.inputs.dataset_inputs] == ["corpus"]
    assert {item.model_id for item in parent.outputs.model_outputs} == {m.model_id for m in seen.models.values()}
    assert seen.files(parent) == {"report.html", "report.json", "verdict.json"}
    for record in steps:
        child = seen.children[record.name]
        assert child.info.status == "FINISHED"
        assert child.info.end_time - child.info.start_time == 2500
        assert (
            child.data.tags.items()
            >= {
                "mlflow.parentRunId": parent.info.run_id,
                "stage_key": record.manifest["key"],
                "prefect.task_run_id": f"task-{record.name}",
            }.items()
        )
        assert child.data.params == {"ratio": "0.5", "nested.bits": "4"}
        assert child.data.metrics["duration_s"] == 2.5
        assert "manifest.json" in seen.files(child) and "model.gguf" not in seen.files(child)
    tuned, engine = seen.children["tuned"], seen.children["gguf"]
    assert len(seen.client.get_metric_history(tuned.info.run_id, "train_loss")) == 50
    (data,) = tuned.inputs.dataset_inputs
    assert data.dataset.digest == steps[0].manifest["output"][:36] and data.dataset.name == "corpus"
    assert json.loads(data.dataset.profile) == {"num_rows": 100, "train": 70, "calibration": 10, "test": 20}
    assert json.loads(data.dataset.source)["uri"] == str(steps[0].folder / "out")
    assert set(seen.models) == {"tuned", "gguf"}
    assert [item.model_id for item in tuned.outputs.model_outputs] == [seen.models["tuned"].model_id]
    assert [item.model_id for item in engine.inputs.model_inputs] == [seen.models["tuned"].model_id]
    assert len(seen.children["verdict"].inputs.model_inputs) == 2
    model = seen.client.get_logged_model(seen.models["gguf"].model_id)
    assert (
        model.tags.items()
        >= {
            "digest": steps[2].manifest["output"],
            "key": steps[2].manifest["key"],
            "path": str(steps[2].folder / "out"),
        }.items()
    )
    assert sorted(metric.value for metric in model.metrics if metric.key == "fact") == [0.74]
    (version,) = seen.versions
    assert version.tags["digest"] == steps[2].manifest["output"] == seen.champion()
    assert version.run_id == engine.info.run_id


def test_a_run_is_recorded_with_children_datasets_models_and_champion(root: Path) -> None:
    tracker, steps = MlflowTracker("", root, RECIPE), recipe(root)
    assert tracker.run_id == "" and not base(root).exists()
    tell(tracker, steps)
    seen = view(root)
    check_recorded(seen, steps)
    assert tracker.run_id == seen.parents[0].info.run_id
    assert tracker.address == f"sqlite:///{root / 'mlflow.db'}"
    assert seen.versions[0].source == (steps[2].folder / "out").as_uri()
    assert list_outboxes(root) == [], "what was sent does not wait"
    copies = [file for file in (root / "mlartifacts").rglob("*") if file.suffix in {".safetensors", ".gguf"}]
    assert copies == [] and any((root / "mlartifacts").rglob("report.html"))


def test_an_experiment_opens_on_its_runs_unless_the_user_chose_otherwise(root: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    client.create_experiment("older")
    client.create_experiment("chosen", tags={"mlflow.experimentKind": "genai_development"})
    kinds = []
    for name in ("older", "chosen", RECIPE):
        tell(MlflowTracker("", root, name), [])
        kinds.append(client.get_experiment_by_name(name).tags["mlflow.experimentKind"])
    assert kinds == ["custom_model_development", "genai_development", "custom_model_development"]


def test_the_next_run_ends_one_whose_process_was_killed(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    children = [with_mlflow(DYING, str(root)) for _ in range(2)]
    assert [child.stdout.readline() for child in children] == ["ready\n"] * 2
    children[0].kill()
    children[0].communicate()
    waiting, header = new_outbox(root), Header(uuid.uuid4().hex, RECIPE, "http://elsewhere:1", 1)
    waiting.put(waiting.event(header, "start", {"name": RECIPE, "tags": {}}))
    waiting.release()
    with caplog.at_level(logging.INFO, "stillroom"):
        tell(MlflowTracker("", root, RECIPE), [])
    assert sorted(run.info.status for run in view(root).parents) == ["FINISHED", "KILLED", "RUNNING"]
    assert "process is gone" in caplog.text and len(list_outboxes(root)) == 2, "a living one, and another server's"
    children[1].kill()
    children[1].communicate()


def test_a_run_that_ended_while_the_server_was_down_is_not_taken_for_a_killed_one(root: Path) -> None:
    tracker = MlflowTracker("", root, RECIPE)
    tracker.start(RECIPE, {})
    tracker._down = True
    tracker.finish("FINISHED")
    tell(MlflowTracker("", root, RECIPE), [])
    assert sorted(run.info.status for run in view(root).parents) == ["FINISHED", "RUNNING"]
    assert flush(root, "").problems == []
    assert [run.info.status for run in view(root).parents] == ["FINISHED"] * 2


def test_cached_steps_lead_to_the_run_that_made_them(root: Path) -> None:
    steps = recipe(root)
    tell(MlflowTracker("", root, RECIPE), steps)
    tell(MlflowTracker("", root, RECIPE), found_again(steps))
    seen = view(root)
    assert seen.runs == 7, "no children"
    again = seen.parents[1]
    assert {name: again.data.tags[f"reused.{name}"] for name in seen.children} == {
        name: run.info.run_id for name, run in seen.children.items()
    }
    assert again.data.metrics["gguf.size"] == 66
    assert {item.model_id for item in again.outputs.model_outputs} == {m.model_id for m in seen.models.values()}
    assert "report.html" in seen.files(again)
    assert len(seen.versions) == 1 and len(seen.models) == 2


def test_a_cached_step_that_nobody_recorded_is_recorded_now(root: Path) -> None:
    steps = recipe(root)
    tell(MlflowTracker("", root, RECIPE), found_again(steps))
    seen = view(root)
    assert set(seen.children) == {step.name for step in steps}, "`dvc repro` made them, or a run that was killed"
    assert not any(name.startswith("reused.") for name in seen.parents[0].data.tags)
    assert all(run.info.status == "FINISHED" for run in seen.children.values())
    assert seen.champion() == steps[2].manifest["output"], "a verdict found in place decides as well"


def test_rows_that_a_step_read_are_a_dataset(root: Path) -> None:
    rows = step(root, "rows", Kind.ROWS, rows=40, read=41)
    corpus = step(root, "corpus", Kind.CORPUS, inputs={"rows": (rows,)}, train=30, test=10)
    (found,) = step_content(corpus)["datasets"]
    assert (found["name"], found["port"], found["profile"]) == ("rows", "rows", {"num_rows": 40})


def test_a_step_whose_flow_was_killed_before_it_could_tell_is_recorded_once(root: Path) -> None:
    """The killed flow's event waits in the outbox while a later flow finds the artifact, and tells of it."""
    (corpus, *_) = recipe(root)
    corpus = dataclasses.replace(corpus, manifest={**corpus.manifest, "made": "2026-11-26T19:21:25+00:00"})
    waiting, header = new_outbox(root), Header(uuid.uuid4().hex, RECIPE, "", 1)
    waiting.put(waiting.event(header, "start", {"name": RECIPE, "tags": {}}))
    waiting.put(waiting.event(header, "step", step_content(corpus)))
    waiting.release()
    tell(MlflowTracker("", root, RECIPE), found_again([corpus]))
    seen = view(root)
    assert set(seen.children) == {"corpus"}
    assert flush(root, "").problems == []
    after = view(root)
    assert after.runs == seen.runs + 1, "the killed flow's own run, and no second one of the step"
    killed = next(run for run in after.parents if run.info.status == "KILLED")
    assert killed.data.tags["reused.corpus"] == seen.children["corpus"].info.run_id
    later = dataclasses.replace(corpus, manifest={**corpus.manifest, "made": "2026-11-26T20:00:00+00:00"})
    tell(MlflowTracker("", root, RECIPE), [later])
    assert view(root).runs == after.runs + 2, "made again, it is recorded again"


def test_a_step_that_another_recipe_made_is_linked(root: Path) -> None:
    steps = recipe(root)
    tell(MlflowTracker("", root, RECIPE), steps[:1])
    MlflowTracker("", root, "other").start("other", {})
    other = MlflowTracker("", root, "other")
    tell(other, found_again(steps[:1]))
    seen = view(root)
    assert seen.client.get_run(other.run_id).data.tags["reused.corpus"] == seen.children["corpus"].info.run_id


def test_only_a_ship_verdict_moves_the_champion(root: Path) -> None:
    first = recipe(root)
    tell(MlflowTracker("", root, RECIPE), first)
    tell(MlflowTracker("", root, RECIPE), recipe(root, a_verdict(), gguf="2"))
    assert view(root).champion() == first[2].manifest["output"]
    tell(MlflowTracker("", root, RECIPE), second := recipe(root, gguf="3"))
    seen = view(root)
    assert seen.champion() == second[2].manifest["output"]
    assert [version.tags["digest"] for version in seen.versions] == [first[2].manifest["output"], "3".ljust(64, "1")]
    tell(MlflowTracker("", root, RECIPE), found_again(recipe(root)))
    seen = view(root)
    assert seen.champion() == first[2].manifest["output"] and len(seen.versions) == 2


def test_a_model_that_is_worse_than_the_champion_does_not_take_its_place(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tell(MlflowTracker("", root, RECIPE), first := recipe(root))
    asked: list[tuple[str, str]] = []

    def against(_: Models, event: Any, weights: Any, champion: Any) -> tuple[str, bool]:
        asked.append((weights.digest, champion.tags["digest"]))
        return "against the champion: fact -0.13 [-0.16, -0.1] on 500 items, allowed 0.05", True

    monkeypatch.setattr(Models, "_against", against)
    tell(MlflowTracker("", root, RECIPE), recipe(root, gguf="3"))
    seen = view(root)
    assert asked == [("3".ljust(64, "1"), first[2].manifest["output"])]
    assert seen.champion() == first[2].manifest["output"] and len(seen.versions) == 2
    assert any("-0.13" in version.tags.get("champion.compared", "") for version in seen.versions)
    assert "does not become champion" in caplog.text


def test_what_a_variant_ships_is_a_version_but_no_champion(root: Path) -> None:
    tell(MlflowTracker("", root, RECIPE), written := recipe(root))
    tell(MlflowTracker("", root, RECIPE), [replace(step, variant=True) for step in recipe(root, gguf="3")])
    seen = view(root)
    assert len(seen.versions) == 2 and seen.champion() == written[2].manifest["output"]


def test_a_late_record_does_not_take_the_alias_from_a_newer_decision(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = f"http://127.0.0.1:{free_port()}"
    tell(MlflowTracker(offline, root, RECIPE), recipe(root, gguf="old"))
    tell(MlflowTracker("", root, RECIPE), recipe(root, gguf="new"))
    found = flush(root, f"sqlite:///{root / 'mlflow.db'}")
    assert (found.sent, found.waiting, found.problems) == (7, 0, [])
    seen = view(root)
    assert len(seen.versions) == 2 and seen.champion() == "new".ljust(64, "1")


def test_a_replaced_artifact_gives_its_figures_and_no_files(root: Path) -> None:
    tell(MlflowTracker(f"http://127.0.0.1:{free_port()}", root, RECIPE), steps := recipe(root))
    recipe(root, a_verdict(), gguf="other")  # the same places, other content
    shutil.rmtree(steps[1].folder)
    assert flush(root, f"sqlite:///{root / 'mlflow.db'}").waiting == 0
    seen = view(root)
    gone = {name for name in seen.children if f"files.skipped.{name}" in seen.parents[0].data.tags}
    assert gone == {"tuned", "gguf", "verdict"}, "corpus and report are what they were"
    assert seen.files(seen.children["gguf"]) == set()
    assert seen.children["gguf"].data.metrics["size"] == 66
    assert len(seen.client.get_metric_history(seen.children["tuned"].info.run_id, "train_loss")) == 50
    assert seen.champion() == steps[2].manifest["output"], "the verdict is told from the record, not from the disk"


def test_a_server_over_http_that_dies_and_comes_back_has_everything_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "server").mkdir()
    port, steps = free_port(), recipe(tmp_path)
    with mlflow_server(tmp_path / "server", port) as uri:
        tracker = MlflowTracker(uri, tmp_path, RECIPE)
        tracker.start(RECIPE, {"git.commit": "abc", "git.dirty": "false", "prefect.flow_run_id": "flow-1"})
        for record in steps[:3]:
            tracker.step(record)
        assert not caplog.records and tracker.run_id
    for record in steps[3:]:
        tracker.step(record)
    tracker.finish("FINISHED")
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "stillroom"]
    assert uri in warning and "python -m flows.track flush" in warning and str(base(tmp_path)) in warning
    assert [file.name for file in list_outboxes(tmp_path)[0].files()] == [
        "0004-step.json",
        "0005-step.json",
        "0006-finish.json",
    ]
    assert len(flush(tmp_path, "").problems) == 1, "still down: nothing lost"
    with mlflow_server(tmp_path / "server", port):
        found = flush(tmp_path, "")
        assert (found.sent, found.waiting, found.problems) == (3, 0, [])
        seen = View(uri)
        check_recorded(seen, steps)
        assert seen.versions[0].source.startswith("models:/m-")
        tell(MlflowTracker(uri, tmp_path, RECIPE), found_again(steps))
        assert len(View(uri).versions) == 1
    assert list_outboxes(tmp_path) == []


def test_a_server_that_is_down_is_asked_once_and_never_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    send = Runs.send
    monkeypatch.setattr(
        Runs, "send", lambda self, event, late: (asked.append(event.identity), send(self, event, late))[1]
    )
    tracker = MlflowTracker(f"http://127.0.0.1:{free_port()}", tmp_path, RECIPE)
    with caplog.at_level(logging.WARNING):
        tell(tracker, recipe(tmp_path), "FAILED")
    assert asked == ["0000-start"]
    assert tracker.run_id == ""
    assert len([record for record in caplog.records if record.name == "stillroom"]) == 1
    (outbox,) = list_outboxes(tmp_path)
    assert len(outbox.files()) == 7 and not outbox.alive()


class Odd(BaseHTTPRequestHandler):
    """Something that is no tracking server."""

    answer: tuple[int, bytes] = (200, b"")

    def do_POST(self) -> None:
        code, body = self.answer
        if not code:
            time.sleep(3)  # longer than the client's patience in the test
            return
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        return


@pytest.mark.parametrize(
    "answer",
    [
        (0, b""),
        (200, b"<html>please log in</html>"),
        (200, b'["a list"]'),
        (200, b"{}"),
        (401, b"no"),
        (404, b"<html>"),
        (500, b""),
        (503, b"{}"),
    ],
)
def test_whatever_answers_instead_of_a_server_is_a_server_that_is_down(
    tmp_path: Path, answer: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(Odd, "answer", answer)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        tell(MlflowTracker(f"http://127.0.0.1:{server.server_port}", tmp_path, RECIPE), recipe(tmp_path))
    finally:
        server.shutdown()
        server.server_close()
    assert len(list_outboxes(tmp_path)[0].files()) == 7


@pytest.mark.parametrize("harm", ["no directory", "garbage"])
def test_a_database_that_cannot_be_opened_is_a_server_that_is_down(tmp_path: Path, harm: str) -> None:
    if harm == "garbage":
        (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    else:
        (tmp_path / "mlflow.db").mkdir()
    tell(MlflowTracker("", tmp_path, RECIPE), recipe(tmp_path))
    assert len(list_outboxes(tmp_path)[0].files()) == 7


def test_an_outbox_that_cannot_be_written_does_not_stop_the_record(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = recipe(root)
    base(root).write_text("a file where the folder should be")
    tell(MlflowTracker("", root, RECIPE), steps)
    check_recorded(view(root), steps)
    assert "cannot be kept" in caplog.text


OPENING = """
import sys; from pathlib import Path; from flows.tracking import MlflowTracker
tracker = MlflowTracker("", Path(sys.argv[1]), "trial"); tracker.start("trial", {}); tracker.finish("FINISHED"); print(tracker.run_id)
"""


def test_four_processes_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    children = [with_mlflow(OPENING, str(tmp_path)) for _ in range(4)]
    told = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0] * 4, told
    assert len({out for out, _ in told}) == 4
    assert view(tmp_path).runs == 4 and list_outboxes(tmp_path) == []


KILLED = """
import os, sys; from pathlib import Path
from flows.tracking.outbox import Outbox
from flows.tracking.server import Server
from flows.tracking.delivery import flush
def die(*_, **__): os.kill(os.getpid(), 9)
if sys.argv[2] == "sent": Outbox.sent = die
else:
    log, left = Server.log, [int(sys.argv[2])]
    def count(self, *args, **kwargs):
        left[0] -= 1
        if left[0] < 0: die()
        log(self, *args, **kwargs)
    Server.log = count
flush(Path(sys.argv[1]), f"sqlite:///{sys.argv[1]}/mlflow.db")
"""


def test_a_flush_killed_anywhere_leaves_nothing_out_and_nothing_twice(root: Path) -> None:
    tell(MlflowTracker(f"http://127.0.0.1:{free_port()}", root, RECIPE), steps := recipe(root))
    for moment in ("1", "sent", "4"):
        child = with_mlflow(KILLED, str(root), moment)
        child.communicate()
        assert child.returncode == -9, moment
    assert flush(root, f"sqlite:///{root / 'mlflow.db'}").problems == []
    check_recorded(view(root), steps)


def test_two_flushes_at_once_share_the_work(root: Path) -> None:
    tell(MlflowTracker(f"http://127.0.0.1:{free_port()}", root, RECIPE), steps := recipe(root))
    code = "import sys; from pathlib import Path; from flows.tracking.delivery import flush\n"
    code += "print(flush(Path(sys.argv[1]), f'sqlite:///{sys.argv[1]}/mlflow.db').sent)"
    told = [child.communicate() for child in [with_mlflow(code, str(root)) for _ in range(2)]]
    assert all(out for out, _ in told), told
    assert sum(int(out) for out, _ in told) == 7
    check_recorded(view(root), steps)


def test_a_refused_event_stays_and_lets_the_others_pass(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(MlflowTracker(f"http://127.0.0.1:{free_port()}", root, RECIPE), recipe(root))
    record = Runs._record

    def refuse(self: Runs, event: Any, run: str) -> None:
        from mlflow.entities import Metric

        record(self, event, run)
        if event.content["name"] == "tuned":
            self.server.client.log_batch(run, [Metric("bad\tkey", 1.0, 0, 0)])

    monkeypatch.setattr(Runs, "_record", refuse)
    (outbox,), found = list_outboxes(root), Delivery()
    deliver(outbox, Runs(f"sqlite:///{root / 'mlflow.db'}", root), found, late=True)
    assert [file.name for file in outbox.files()] == ["0002-step.json"]
    assert found.sent == 6 and len(found.problems) == 1 and "0002-step.json" in found.problems[0]
    monkeypatch.undo()
    assert flush(root, f"sqlite:///{root / 'mlflow.db'}").problems == []
    assert view(root).children["tuned"].info.status == "FINISHED"


def test_odd_names_many_settings_and_no_numbers_are_recorded(root: Path) -> None:
    odd = step(
        root,
        "odd",
        Kind.CORPUS,
        None,
        None,
        "",
        **{"a+b (%)": 1.5, "x" * 300: 2, "nan": math.nan, "inf": math.inf, "word": "w"},
    )
    odd.manifest["settings"].update({f"many{i}": "v" * 9000 for i in range(250)})  # type: ignore[attr-defined]
    tell(MlflowTracker("", root, RECIPE), [odd])
    child = view(root).children["odd"]
    assert child.data.metrics["a_b (_)".replace("(", "_").replace(")", "_")] == 1.5
    assert "x" * 250 in child.data.metrics and "word" not in child.data.metrics
    assert len(child.data.params) == 252


def test_a_long_curve_is_thinned_and_a_damaged_line_left_out(tmp_path: Path) -> None:
    file = tmp_path / "loss.csv"
    file.write_text("step,epoch,train_loss\n" + "".join(f"{i},0,{i}.5\n" for i in range(5000)) + "x,0,1\n7\n6,0,oops\n")
    curve = read_curve(file)
    assert len(curve) == POINTS and curve[0] == ["train_loss", 0, 0.5] and curve[-1] == ["train_loss", 4999, 4999.5]
    assert read_curve(tmp_path / "absent.csv") == []


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:hunter22@host:5000",
        "https://hunter22@host",
        "postgresql://user:hunter22@db/mlflow",
        "mysql+pymysql://user:p@ss:hunter22@db/mlflow",
        "https://host/path?access_token=hunter22",
        "postgresql://db/mlflow?user=u&password=hunter22",
    ],
)
def test_credentials_in_a_configured_address_are_refused_and_masked(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        MlflowTracker(uri, tmp_path, RECIPE)
    assert "hunter22" not in str(caught.value)
    assert "hunter22" not in mask(f"cannot reach {uri}: refused", uri)
    with pytest.raises(ConfigError, match="--uri"):
        flush(tmp_path, uri)


def test_credentials_of_the_environment_are_used_but_stand_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:hunter22@127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter33")
    tracker = MlflowTracker("", tmp_path, RECIPE)
    tell(tracker, recipe(tmp_path))
    texts = [caplog.text, tracker.address, *(file.read_text() for file in list_outboxes(tmp_path)[0].files())]
    assert all("hunter" not in text for text in texts) and "***@127.0.0.1" in tracker.address
    found = flush(tmp_path, "")
    assert found.waiting == 7 and "hunter" not in str(found.problems)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert flush(tmp_path, "").waiting == 7, "without the variable nobody knows where; nothing goes to some other place"
    assert not (tmp_path / "mlflow.db").exists()


def test_the_address_is_the_configured_one_then_the_environment_then_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_uri("", tmp_path) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:1")
    assert resolve_uri("", tmp_path) == "http://elsewhere:1"
    assert resolve_uri("sqlite:///runs.db", tmp_path) == f"sqlite:///{tmp_path / 'runs.db'}", (
        "not below the working directory"
    )
    assert resolve_uri("postgresql://user@db/mlflow", tmp_path) == "postgresql://user@db/mlflow"
    with pytest.raises(ConfigError, match="no URI"):
        resolve_uri("http://[1", tmp_path)


def test_nothing_heavy_is_imported_before_the_first_event(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from flows.tracking import MlflowTracker\n"
    code += "MlflowTracker('', Path(sys.argv[1]), 'trial'); print({'mlflow', 'sqlalchemy', 'torch'} & set(sys.modules))"
    shown = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=PROJECT, capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout.strip() == "set()" and list(tmp_path.iterdir()) == []


def test_the_null_tracker_leaves_no_trace(tmp_path: Path) -> None:
    steps = recipe(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    tracker = NullTracker()
    tell(tracker, steps)
    assert sorted(tmp_path.rglob("*")) == before and (tracker.run_id, tracker.address) == ("", "")


def test_unreachable_says_what_happened_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(Unreachable) as caught:
        Runs(f"http://127.0.0.1:{free_port()}", tmp_path).abandon(MlflowTracker("", tmp_path, RECIPE)._header)
    assert str(caught.value).endswith("Connection refused") and "\n" not in str(caught.value)
