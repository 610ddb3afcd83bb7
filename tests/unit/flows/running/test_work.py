"""A step that meets a full disk ends in one message, leaves no artifact, and is made by the next run."""

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from flows.planning.config import Runtime
from flows.planning.plan import build_plan
from flows.planning.session import Session
from flows.running.work import make
from tasks.curate.reading import files
from tasks.shared.errors import MachineError
from tests.chat_files import chat, question, write
from tests.tiny_llama import save_tiny


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


@pytest.mark.parametrize(
    ("saver", "failure"),
    [
        ("modeling_utils.safe_save_file", SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")),
        ("PreTrainedTokenizerFast.save_pretrained", Exception("No space left on device (os error 28)")),
    ],
    ids=["safetensors", "tokenizers"],
)  # fmt: skip
def test_a_full_disk_is_known_by_what_libraries_in_rust_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saver: str, failure: Exception
) -> None:
    """They raise no OSError, with texts as they are on a full tmpfs."""
    source = save_tiny(tmp_path / "model")
    steps = {"half": {"_target_": "tasks.quantize.cast.Cast", "inputs": {"model": "models.base"}}}
    plan = build_plan({"name": "trial", "models": {"base": {"path": str(source)}}, "steps": steps})
    session, step = Session(plan, Runtime(root=str(tmp_path / "root"))), plan.steps[0]
    key = session.key(step)

    def full(*_: object, **__: object) -> None:
        raise failure

    with monkeypatch.context() as patched, pytest.raises(MachineError, match="the disk is full"):
        patched.setattr(f"transformers.{saver}", full)
        make(session, step, key)
    assert session.find(step, key) is None
    left = {file.name for file in (tmp_path / "root").rglob("*") if file.is_file()}
    assert not left & {"config.json", "model.safetensors", "manifest.json"}, "room is given back"
    assert make(session, step, key) and session.find(step, key) is not None
