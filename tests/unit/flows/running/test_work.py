"""A step that meets a full disk ends in one message, leaves no artifact, and is made by the next run."""

import errno
from pathlib import Path

import pytest

from flows.planning.config import Runtime
from flows.planning.plan import build_plan
from flows.planning.session import Session
from flows.running.work import make
from tasks.curate.reading import files
from tasks.shared.errors import MachineError
from tests.chat_files import chat, question, write


@pytest.mark.parametrize("target", ["tasks.curate.jsonl.Jsonl", "tasks.curate.read.Read"])
def test_a_full_disk_leaves_nothing_that_could_be_taken_for_an_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    path = write(tmp_path / "rows.jsonl", *(chat(question(number), "Yes.") for number in range(40)))
    plan = build_plan({"name": "trial", "steps": {"mine": {"_target_": target, "path": path}}})
    session, step = Session(plan, Runtime(root=str(tmp_path / "root"))), plan.steps[0]
    key, written = session.key(step), 0

    def full(row: object) -> bytes:
        nonlocal written
        written += 1
        if written > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return b"{}\n"

    with monkeypatch.context() as patched, pytest.raises(MachineError, match="the disk is full"):
        patched.setattr(files, "row_line", full)
        make(session, step, key)
    assert session.find(step, key) is None
    left = {file.name for file in (tmp_path / "root").rglob("*") if file.is_file()}
    assert not left & {"rows.jsonl", "train.jsonl", "quarantine.jsonl", "manifest.json"}, "room is given back"
    assert make(session, step, key) and session.find(step, key) is not None
