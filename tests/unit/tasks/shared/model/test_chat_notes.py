"""What the plan says of a chat template before anything is loaded."""

import json
from pathlib import Path

import pytest

from tasks.shared.errors import ModelError
from tasks.shared.model.chat_notes import chat_notes
from tasks.shared.model.loading import load_tokenizer
from tasks.shared.model.prompts import render
from tests.chat_templates import FAMILIES, FOLDER
from tests.tiny_llama import build_model, save_tiny

SYSTEM, ALTERNATE, DATE = "no system turn", "alternate", "today's date"
NOTES = {
    "gemma": (SYSTEM, ALTERNATE), "mistral": (SYSTEM, ALTERNATE), "llama2": (ALTERNATE,), "drops_system": (SYSTEM,),
    "llama3": (DATE,), "smollm3": (DATE,), "granite": (DATE,), "computed_clock": (DATE,), "harmony": (DATE,),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted({family.name for family in FAMILIES} | NOTES.keys()))
@pytest.mark.parametrize("inside", [False, True])
def test_limits_are_told(name: str, inside: bool, tmp_path: Path) -> None:
    text = (FOLDER / f"{name}.jinja").read_text("utf-8")
    config = {"eos_token": {"content": "</s>"}, "bos_token": "<s>"} | ({"chat_template": text} if inside else {})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    if not inside:
        (tmp_path / "chat_template.jinja").write_text(text, "utf-8")
    found = chat_notes("models.m", tmp_path)
    wanted = NOTES.get(name, ())
    assert len(found) == len(wanted) and all(any(part in note for note in found) for part in wanted)


def test_a_base_model_is_told(tmp_path: Path) -> None:
    (note,) = chat_notes("models.m", tmp_path)
    assert "no chat template" in note and "models.m.template" in note


@pytest.mark.parametrize(
    "program", ["{{ 1 / 0 }}", "{% for n in range(10 ** 9) %}x{% endfor %}", "{{ 'a' + 1 }}", "{% for"]
)
def test_a_template_that_fails_is_told_and_refused_with_its_reason(program: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", build_model(num_hidden_layers=1))
    (folder / "chat_template.jinja").write_text(program, "utf-8")
    assert chat_notes("models.m", folder) == ["models.m: its chat template does not render a question and its answer"]
    with pytest.raises(ModelError, match="chat template: it refuses turns of user: "):
        render(load_tokenizer(folder), [{"role": "user", "content": "Well?"}])
