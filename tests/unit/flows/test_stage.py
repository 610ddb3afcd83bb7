"""One step: made once, found again, made anew when it must be, and nothing half made is left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flows.planning.config import Runtime
from flows.planning.plan import build_plan
from flows.planning.session import Session
from flows.running import runner
from flows.running import work as work_module
from flows.running.child import StepFailed
from flows.running.runner import Run, run_in_threads
from flows.running.work import make, pin_inputs, read_job, write_job
from tasks.curate.support import Support
from tasks.shared.errors import ConfigError, MachineError, ModelError, StillroomError
from tasks.shared.store.keys import PROJECT
from tests.tiny_files import bare_gguf


def recipe(**settings: Any) -> dict[str, Any]:
    corpus = {
        "_target_": "tasks.curate.support.Support",
        "train_size": 48,
        "test_size": 12,
        "calibration_size": 4,
        "articles": 2,
        "min_train_phrasings": 2,
    }
    return {"name": "trial", "seed": 0, "models": {}, "steps": {"corpus": corpus | settings}}


def session(root: Path, variant: bool = False, **settings: Any) -> Session:
    return Session(build_plan(recipe(**settings)), Runtime(root=str(root), dvc=False), variant)


def execute(root: Path, **settings: Any) -> str:
    opened = session(root, **settings)
    return run_in_threads(Run(opened, tracked=False))[0].status


def test_a_step_is_made_once(tmp_path: Path) -> None:
    assert execute(tmp_path) == "made"
    assert execute(tmp_path) == "cached"
    manifest = json.loads((tmp_path / "artifacts/trial/corpus/manifest.json").read_text())
    assert manifest["settings"]["train_size"] == 48 and manifest["metrics"]


def test_a_recipes_folder_that_was_edited_is_restored_with_a_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    execute(tmp_path)
    file = tmp_path / "artifacts/trial/corpus/out/train.jsonl"
    whole = file.read_bytes()
    file.unlink()  # as an editor does: another file in its place, the store's stays
    file.write_text("edited")
    with caplog.at_level("INFO", "stillroom"):
        assert execute(tmp_path) == "cached"
    assert file.read_bytes() == whole and "restored from the store" in caplog.text


def test_a_changed_setting_or_seed_makes_it_again(tmp_path: Path) -> None:
    step = session(tmp_path).plan.steps[0]
    keys = {
        session(tmp_path, train_size=size).key(session(tmp_path, train_size=size).plan.steps[0]) for size in (48, 50)
    }
    reseeded = Session(build_plan(recipe() | {"seed": 1}), Runtime(root=str(tmp_path)))
    keys.add(reseeded.key(reseeded.plan.steps[0]))
    assert len(keys) == 3 and session(tmp_path).key(step) in keys


def test_runtime_is_in_no_key(tmp_path: Path) -> None:
    plan = build_plan(recipe())
    keys = {
        Session(plan, Runtime(root=str(tmp_path), threads=threads, device="cpu")).key(plan.steps[0])
        for threads in (1, 2)
    }
    assert len(keys) == 1


def test_a_users_own_files_are_in_the_key(tmp_path: Path) -> None:
    knowledge = tmp_path / "knowledge"
    shutil.copytree(PROJECT / "tasks/curate/shop/knowledge", knowledge)
    before = session(tmp_path, knowledge=str(knowledge))
    first = before.key(before.plan.steps[0])
    file = sorted(knowledge.glob("*.yaml"))[0]
    file.write_text(file.read_text() + "\n# a remark\n")
    after = session(tmp_path, knowledge=str(knowledge))
    assert after.key(after.plan.steps[0]) != first


def test_a_variant_leaves_the_recipes_own_artifact_alone(tmp_path: Path) -> None:
    execute(tmp_path)
    before = (tmp_path / "artifacts/trial/corpus/manifest.json").read_bytes()
    opened = session(tmp_path, variant=True, train_size=50)
    step = opened.plan.steps[0]
    assert make(opened, step, opened.key(step))
    assert ".store" in opened.place("corpus").folder.parts
    assert (tmp_path / "artifacts/trial/corpus/manifest.json").read_bytes() == before
    assert execute(tmp_path, train_size=50) == "cached", "promoting a variant runs nothing"


def test_a_failing_technique_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="step corpus"):
        execute(tmp_path, max_similarity=0.01)
    assert not (tmp_path / "artifacts/trial/corpus").exists()


def test_an_unmade_input_says_what_to_run(tmp_path: Path) -> None:
    opened = session(tmp_path)
    with pytest.raises(ConfigError, match="flows.stage trial corpus"):
        opened.digest("corpus")


def test_a_full_disk_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Support, "__call__", full)
    opened = session(tmp_path)
    step = opened.plan.steps[0]
    with pytest.raises(MachineError, match="disk is full"):
        make(opened, step, opened.key(step))
    assert not (tmp_path / "artifacts/trial").exists()


def test_a_model_of_another_digest_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    bare_gguf(file)
    content = recipe() | {"models": {"teacher": {"path": str(file), "sha256": "0" * 64}}}
    opened = Session(build_plan(content), Runtime(root=str(tmp_path)))
    with pytest.raises(ModelError, match="0000"):
        opened.digest("models.teacher")


def test_a_job_file_carries_the_session(tmp_path: Path) -> None:
    opened = session(tmp_path, variant=True)
    job = read_job("trial", write_job(opened, tmp_path))
    again = job.open("corpus")
    assert again.variant and again.runtime == opened.runtime and job.result == tmp_path / "result.json"
    assert again.plan.steps == opened.plan.steps


SLEEPER = """
import sys, time
from flows import stage
from tasks.curate.support import Support
def slow(self, inputs, out, run):
    (out / "half").write_text("half")
    print("working", flush=True)
    time.sleep(60)
Support.__call__ = slow
sys.exit(stage.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("nohup", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_step_leaves_no_half_artifact_and_can_run_again(
    tmp_path: Path, number: signal.Signals, nohup: bool
) -> None:
    job = write_job(session(tmp_path), tmp_path)
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)" if nohup else ""
    command = [sys.executable, "-c", ignoring + SLEEPER, "trial", "corpus", "--job", str(job)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True)
    assert child.stdout is not None and child.stdout.readline().strip() == "working"
    child.send_signal(number)
    assert child.wait(20) != 0
    child.stdout.close()
    assert not (tmp_path / "artifacts/trial/corpus").exists()
    assert execute(tmp_path) == "made"
    assert not (tmp_path / "artifacts/trial/corpus/out/half").exists()


COUNTED = """
import logging, sys, time
from pathlib import Path
from flows import stage
from tasks.curate.support import Support
make, calls = Support.__call__, Path(sys.argv.pop(1))
waits = calls.with_name("waits")
class Waits(logging.Handler):
    def emit(self, record):
        if "being made by another run" in record.getMessage():
            waits.touch()
logging.getLogger("tasks.shared.store.artifacts").addHandler(Waits())
def counted(self, inputs, out, run):
    with calls.open("a") as stream:
        stream.write("made ")
    until = time.monotonic() + 30
    while not waits.exists() and time.monotonic() < until:
        time.sleep(0.05)
    return make(self, inputs, out, run)
Support.__call__ = counted
sys.exit(stage.main(sys.argv[1:]))
"""


def test_two_runs_at_once_make_a_step_once(tmp_path: Path) -> None:
    job = write_job(session(tmp_path), tmp_path)
    command = [sys.executable, "-c", COUNTED, str(tmp_path / "calls"), "trial", "corpus", "--job", str(job)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    children = [subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True) for _ in range(2)]
    messages = [child.communicate(timeout=60)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], messages
    assert (tmp_path / "calls").read_text().split() == ["made"]
    assert sum("being made by another run" in message for message in messages) == 1
    assert execute(tmp_path) == "cached"


PARENT = """
import subprocess, sys
command = [sys.executable, "-c", sys.argv[1], "trial", "corpus", "--job", sys.argv[2]]
child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
print(child.pid, child.stdout.readline().strip(), flush=True)
child.wait()
"""


def test_a_step_ends_when_the_flow_is_killed(tmp_path: Path) -> None:
    job = write_job(session(tmp_path), tmp_path)
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, SLEEPER, str(job)], stdout=subprocess.PIPE, env=environment, text=True
    )
    assert parent.stdout is not None
    pid, word = parent.stdout.readline().split()
    assert word == "working"
    parent.kill()
    parent.wait(10)
    parent.stdout.close()
    deadline = time.monotonic() + 15
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        if "zombie" in Path(f"/proc/{pid}/status").read_text():
            break
        time.sleep(0.2)
    else:
        assert not Path(f"/proc/{pid}").exists()


def test_a_step_that_is_killed_when_its_artifact_is_in_place_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runner.run_child

    def killed_late(*arguments: Any) -> bool:
        real(*arguments)
        raise StepFailed("corpus", "it was killed (signal 9)")

    monkeypatch.setattr(runner, "run_child", killed_late)
    assert execute(tmp_path) == "made"


def test_code_that_is_edited_while_a_step_starts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = read_job("trial", write_job(session(tmp_path), tmp_path))
    digests = iter(["before", "after"])
    monkeypatch.setattr(work_module, "code_digest", lambda module: next(digests))
    with pytest.raises(StillroomError, match="edited while it started"):
        job.open("corpus")


def test_an_input_that_changes_while_a_step_runs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knowledge = tmp_path / "knowledge"
    shutil.copytree(PROJECT / "tasks/curate/shop/knowledge", knowledge)
    work = Support.__call__

    def edited(self: Support, *arguments: Any) -> Any:
        figures = work(self, *arguments)
        file = sorted(knowledge.glob("*.yaml"))[0]
        file.write_text(file.read_text() + "\n# a remark\n")
        return figures

    monkeypatch.setattr(Support, "__call__", edited)
    opened = session(tmp_path, knowledge=str(knowledge))
    step = opened.plan.steps[0]
    with pytest.raises(StillroomError, match="its files changed while it ran"):
        make(opened, step, opened.key(step))
    assert not list(tmp_path.glob("artifacts/.store/*/*"))


def test_what_is_there_is_found_where_nothing_can_be_written(tmp_path: Path) -> None:
    execute(tmp_path)
    shutil.rmtree(tmp_path / "artifacts/.locks")
    (tmp_path / "artifacts/.locks").write_text("no folder")
    opened = session(tmp_path)
    assert Run(opened, tracked=False).find_all() is not None
    with pytest.raises(StillroomError, match="cannot be written"):
        execute(tmp_path, train_size=50)


def test_dvc_is_refused_an_input_that_was_edited(tmp_path: Path) -> None:
    execute(tmp_path)
    opened = session(tmp_path)
    file = opened.view("corpus").out / "train.jsonl"
    file.chmod(0o644)
    file.write_text("edited")
    reader: Any = type("Reader", (), {"needs": ("corpus",)})()
    with pytest.raises(ConfigError, match="flows.stage trial corpus"):
        pin_inputs(opened, reader)
