"""Steps forked from a run's template: they run the code as it is then, and go on without a template that is lost."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.workshop import STEPS, Workshop, build_workshop, copy_workshop


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return build_workshop(tmp_path_factory.mktemp("template") / "shop")


@pytest.fixture
def shop(built: Workshop, tmp_path: Path) -> Workshop:
    return copy_workshop(built, tmp_path / "shop")


def start(shop: Workshop, *arguments: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "flows.compress", "+recipe=toy", *arguments, "runtime.orchestrator=none"]
    return subprocess.Popen(
        [*words, "tracking=none", "runtime.dvc=false"],
        cwd=shop.folder,
        env=shop.environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(shop: Workshop, step: str) -> psutil.Process:
    """The process of a toy step that is at work."""
    deadline = time.monotonic() + 60
    while True:
        lines = shop.log.read_text().splitlines() if shop.log.exists() else []
        for line in lines:
            if line.startswith(f"start {step} "):
                return psutil.Process(int(line.split()[2]))
        assert time.monotonic() < deadline
        time.sleep(0.05)


def output_of(shop: Workshop, step: str) -> dict[str, object]:
    return dict(json.loads((shop.folder / f"artifacts/toy/{step}/out/content.json").read_text()))


def test_code_that_is_edited_during_a_run_is_what_the_next_step_runs_and_is_keyed_by(shop: Workshop) -> None:
    done = shop.compress("+recipe=toy")
    assert done.returncode == 0 and "template" not in done.stderr, done.stderr
    before = json.loads((shop.folder / "artifacts/toy/slim/manifest.json").read_text())
    shop.executed()
    flow = start(shop, "seed=1", "steps.corpus.delay_s=2")
    try:
        step = wait_for(shop, "corpus")
        assert step.ppid() in {child.pid for child in psutil.Process(flow.pid).children()} - {step.pid}, (
            "a template's child"
        )
        assert step.cmdline()[1:5] == ["-m", "flows.stage", "toy", "corpus"]
        file = shop.folder / "tasks/prune/toy.py"
        file.write_text(file.read_text().replace('"seed": run.seed', '"seed": run.seed, "edited": True'))
        assert flow.communicate(timeout=120) is not None and flow.returncode == 0
    finally:
        flow.kill()
    made = [json.loads(path.read_text()) for path in shop.folder.glob("artifacts/.store/slim/*/manifest.json")]
    (after,) = [manifest for manifest in made if manifest["seed"] == 1]
    assert after["code"] != before["code"]
    contents = [json.loads(path.read_text()) for path in shop.folder.glob("artifacts/.store/slim/*/out/content.json")]
    assert [content for content in contents if content["seed"] == 1 and content.get("edited")]
    assert "nothing to do" in shop.compress("+recipe=toy", "seed=1").stderr, "its key holds the edited code"


def test_a_template_that_is_killed_is_told_once_and_costs_no_step(shop: Workshop) -> None:
    flow = start(shop, "steps.corpus.delay_s=5")
    try:
        step = wait_for(shop, "corpus")
        for template in psutil.Process(flow.pid).children():
            template.kill()
        _, said = flow.communicate(timeout=120)
    finally:
        flow.kill()
    assert flow.returncode == 0, said
    assert said.count("no template process") == 1, said
    assert sorted(shop.executed()) == sorted(STEPS)
    assert not step.is_running()


def test_steps_start_without_a_template_on_request(shop: Workshop) -> None:
    flow = start(shop, "runtime.template=false", "steps.corpus.delay_s=1")
    try:
        assert wait_for(shop, "corpus").ppid() == flow.pid
        _, said = flow.communicate(timeout=120)
    finally:
        flow.kill()
    assert flow.returncode == 0 and "template" not in said
    assert sorted(shop.executed()) == sorted(STEPS)


def test_an_interrupt_reaches_the_step_and_leaves_nobody(shop: Workshop) -> None:
    flow = start(shop, "steps.corpus.delay_s=60")
    try:
        step = wait_for(shop, "corpus")
        family = psutil.Process(flow.pid).children(recursive=True)
        flow.terminate()
        _, said = flow.communicate(timeout=30)
    finally:
        flow.kill()
    assert flow.returncode == 130 and "interrupted" in said, said
    _, left = psutil.wait_procs([step, *family], timeout=5)
    assert not left
