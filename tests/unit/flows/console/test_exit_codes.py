"""What our commands exit with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.shared.store.keys import PROJECT

INTERRUPTED_AMID_AN_EXEC = """
import sys
from flows.console import exit_codes

try:
    exec("raise KeyboardInterrupt")  # as when a signal comes while a dataclass is imported
except KeyboardInterrupt:
    {code}
sys.exit(code)
"""


@pytest.mark.parametrize(("code", "ends_with"), [("code = 130", -2), ("code = exit_codes.interrupted()", 130)])
def test_an_interrupted_command_ends_with_its_code_and_not_by_a_signal(
    tmp_path: Path, code: str, ends_with: int
) -> None:
    (tmp_path / "command.py").write_text(INTERRUPTED_AMID_AN_EXEC.format(code=code), "utf-8")
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-m", "command"], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == ends_with
