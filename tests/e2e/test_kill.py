"""Everything that records is killed with the run, at random moments; the next runs make and record what is missing, once."""

import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.workshop import STEPS, Workshop, build_workshop

LONGEST_S = 6.0


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return build_workshop(tmp_path / "shop")


def kill_all(child: "subprocess.Popen[bytes]") -> None:
    """What a power cut does to a run: nobody gets to tidy up."""
    family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    for process in family:
        if process.is_running():
            process.kill()
    child.wait()


def stored(shop: Workshop) -> set[str]:
    return {path.parent.parent.name for path in shop.folder.glob("artifacts/.store/*/*/manifest.json")}


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_with_dvc_and_mlflow_at_work(shop: Workshop, kills: int) -> None:
    chance = random.Random(seed := int(os.environ.get("CHAOS_SEED") or time.time()))
    sys.stderr.write(f"CHAOS_SEED={seed}\n")
    command = [sys.executable, "-m", "flows.compress", "+recipe=toy", "runtime.orchestrator=none"]
    for _ in range(kills):
        before = stored(shop)
        child = subprocess.Popen(
            command, cwd=shop.folder, env=shop.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + chance.uniform(0.3, LONGEST_S)
        while time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.05)
        if child.poll() is None:
            kill_all(child)
        assert not before & set(shop.executed()), "what was there was made again"
    done = shop.compress("+recipe=toy", "tracking=mlflow")
    assert done.returncode == 0, done.stderr
    flushed = shop.python("flows.track", "flush")
    assert flushed.returncode == 0, flushed.stdout + flushed.stderr
    shop.executed()

    assert "nothing to do" in shop.compress("+recipe=toy", "tracking=mlflow").stderr
    repro = shop.dvc("repro", *(f"toy-{name}" for name in STEPS))
    assert repro.returncode == 0 and shop.executed() == [], repro.stderr
    assert not list(shop.folder.glob("artifacts/.work/*/out")), "no half artifact"
    finished = Counter(finished_steps(shop.folder / "mlflow.db"))
    assert finished == dict.fromkeys(STEPS, 1), "every step is recorded once"


def finished_steps(database: Path) -> list[str]:
    """Names of the steps' runs in MLflow that ended well."""
    query = """
        select t.value from runs r join tags t on t.run_uuid = r.run_uuid and t.key = 'step'
        where r.status = 'FINISHED'
    """
    connection = sqlite3.connect(database)
    try:
        return [row[0] for row in connection.execute(query)]
    finally:
        connection.close()
