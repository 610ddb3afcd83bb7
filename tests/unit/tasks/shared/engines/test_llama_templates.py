"""llama.cpp renders the templates that we change as transformers does."""

from pathlib import Path

import pytest

from tasks.shared.engines.llama_client import LlamaClient
from tasks.shared.engines.llama_server import serve
from tasks.shared.gguf.writer import write_gguf
from tasks.shared.model.loading import load_tokenizer
from tasks.shared.model.prompts import render
from tasks.shared.model.sources import ModelSource
from tests.chat_templates import FOLDER
from tests.tiny_llama import save_tiny

TALK = [
    {"role": "system", "content": "Be short."}, {"role": "user", "content": "It's a?"}, {"role": "user", "content": "And b?"},
    {"role": "assistant", "content": "One."}, {"role": "assistant", "content": "Two."}, {"role": "user", "content": "c?"},
]  # fmt: skip
GREETED = [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "a?"}]


def file_of(folder: Path, name: str, **settings: str) -> tuple[Path, Path]:
    """A model folder with one of our templates, and its GGUF file."""
    model = save_tiny(folder / "model").resolve()
    (model / "chat_template.jinja").write_text((FOLDER / f"{name}.jinja").read_text("utf-8"), "utf-8")
    source = ModelSource(path=str(model), **settings).locate("models.m")  # type: ignore[arg-type]
    write_gguf(source, folder / "model.gguf", "f16")
    return source, folder / "model.gguf"


def test_turns_are_folded_and_joined_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source, file = file_of(tmp_path, "gemma", system="fold")
    tokenizer = load_tokenizer(source)
    with serve(file, threads=1, parallel=1, context=256) as url:
        for talk in (TALK, GREETED, TALK[1:2]):
            assert LlamaClient(url).render(talk) == render(tokenizer, talk)
    assert "Be short.\n\nIt's a?\n\nAnd b?" in render(tokenizer, TALK) and "Hello!" not in render(tokenizer, GREETED)


@pytest.mark.parametrize("name", ["llama3", "computed_clock"])
def test_a_clock_in_a_file_of_somebody_else_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("tasks.shared.model.prompts.pinned", lambda template: template)
        _, file = file_of(tmp_path, name)
    assert b"strftime_now(" in file.read_bytes()
    with serve(file, threads=1, parallel=1, context=256) as url:
        text = LlamaClient(url).render(TALK[:2])
    assert text == render(load_tokenizer(file), TALK[:2]) and ("26 Jul 2024" in text or "2024-07-26" in text)
