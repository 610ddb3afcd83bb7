"""The template process: what it has to import so that a step's process does not."""

import json
import subprocess
import sys

from flows.running.fork_template import EVERY_STEP
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


def test_a_step_s_process_starts_without_a_third_party_library_that_the_template_lacks() -> None:
    command = [sys.executable, "-c", START, *EVERY_STEP]
    shown = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout) == ["flows", "tasks"]
