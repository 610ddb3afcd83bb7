"""Output to terminals that are not UTF-8: spelled otherwise, never a traceback."""

import os
import subprocess
import sys

import pytest

from flows.console.terminal import HANDLER, prepare_streams
from tasks.shared.store.keys import PROJECT
from tests.project_files import matching

SAY = """
import logging, sys
from rich.console import Console
from flows.console.terminal import prepare_terminal
from flows.console.model_table import model_table
from tests.verdict_samples import a_verdict

prepare_terminal()
Console().print(model_table(a_verdict()))
Console().print("\\u2212 5.0 \\u6771 caf\\u00e9 \\udcff")
logging.getLogger("stillroom").error("cannot read %s", "caf\\u00e9-\\udcff")
"""
COMMANDS = [file for file in matching("flows/*.py") if file.name != "__init__.py"]


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-1", "cp1252", "utf-8"])
def test_every_terminal_can_show_our_output(encoding: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "100"}
    command = [sys.executable, "-c", SAY]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    shown = done.stdout.decode(encoding)
    assert "student" in shown and (encoding == "utf-8" or "- 5.0" in shown)
    assert "cannot read caf" in done.stderr.decode(encoding) and "\\udcff" in done.stderr.decode(encoding)


def test_what_has_no_spelling_becomes_an_escape() -> None:
    prepare_streams()
    assert "\u2212\u00d7\u202f\u00e9\u2026".encode("ascii", HANDLER) == b"-x e."
    assert "\u6771".encode("ascii", HANDLER) == rb"\u6771"
    assert "\udcff".encode("utf-8", HANDLER) == rb"\udcff"


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("file", COMMANDS, ids=lambda file: file.stem)
def test_every_command_prepares_its_streams(file: object) -> None:
    text = file.read_text("utf-8")  # type: ignore[attr-defined]
    assert "    prepare_terminal()\n" in text or "    prepare_streams()\n" in text
