"""The template process: what it has to import so that a step's process does not."""

import json
import subprocess
import sys

import pytest

from flows.running.fork_template import EVERY_STEP, STARTS_THREADS, third_party
from tasks.shared.store.keys import PROJECT

START = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
before = set(sys.modules)
import flows.stage
from tasks.shared.processes import ProcessId
ProcessId.of()
new = {name.partition(".")[0] for name in set(sys.modules) - before} - {name.partition(".")[0] for name in before}
print(json.dumps(sorted(new - sys.stdlib_module_names)))
"""


@pytest.mark.parametrize("technique", ["generation", "divergence", "runtime"])
def test_the_template_imports_no_library_that_starts_threads(technique: str) -> None:
    found = {name.partition(":")[0].partition(".")[0] for name in third_party(f"tasks.evaluate.{technique}")}
    assert "torch" in found and not found & STARTS_THREADS


def test_a_step_s_process_starts_without_a_third_party_library_that_the_template_lacks() -> None:
    command = [sys.executable, "-c", START, *EVERY_STEP]
    shown = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout) == ["flows", "tasks"]
