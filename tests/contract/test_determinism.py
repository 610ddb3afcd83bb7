"""The same inputs and settings give the same bytes, in another process, another folder and another order of sets.

Early cut-off rests on it (a step made again to the same bytes makes nothing below it run again), and so does resuming.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.shared.keys import PROJECT
from tests.all_techniques import OPTIONS

IDS = [f"{file.parent.name}/{file.stem}" for file in OPTIONS]


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("all")
    found = []
    for hash_seed, name in (("1", "one"), ("2", "another/place")):
        (folder / name).mkdir(parents=True)
        done = subprocess.run(
            [sys.executable, "-m", "tests.all_techniques", str(folder / "inputs"), str(folder / name)],
            cwd=PROJECT, env=os.environ | {"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return found


@pytest.mark.parametrize("option", IDS)
def test_a_technique_run_twice_writes_the_same(option: str, twice: list[dict[str, dict[str, str]]], tmp_path: Path) -> None:
    first, second = (run[option] for run in twice)
    assert first and first == second
