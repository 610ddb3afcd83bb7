"""Settings of a model's chat template: written into the template that everything made from the model carries."""

from pathlib import Path

import pytest

from tasks.shared.errors import ConfigError, ModelError
from tasks.shared.model.loading import load_tokenizer
from tasks.shared.model.prompts import learned_turn, render
from tasks.shared.model.sources import ModelSource
from tasks.shared.model.turns import examples
from tests.chat_templates import FOLDER
from tests.tiny_files import bare_gguf
from tests.tiny_llama import make_row, save_tiny

ASKED = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What?"}]
TALK = [*ASKED, {"role": "assistant", "content": "That."}]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return save_tiny(tmp_path / "model").resolve()


def source(model: Path, name: str, **settings: object) -> Path:
    (model / "chat_template.jinja").write_text((FOLDER / f"{name}.jinja").read_text("utf-8"), "utf-8")
    return ModelSource(path=str(model), **settings).locate("models.m")  # type: ignore[arg-type]


def test_nothing_set_is_the_folder_itself(model: Path) -> None:
    assert source(model, "chatml") == model


def test_thinking_off_is_in_the_prompt_and_not_learned(model: Path) -> None:
    on, off = (load_tokenizer(source(model, "qwen3", thinking=value)) for value in (True, False))
    assert render(on, ASKED).endswith("assistant\n") and learned_turn(on, TALK).text.startswith(
        "<think>\n\n</think>\n\n"
    )
    assert render(off, ASKED).endswith("<think>\n\n</think>\n\n") and learned_turn(off, TALK).text == "That.<|im_end|>"
    smol = load_tokenizer(source(model, "smollm3", thinking=False))
    assert render(smol, ASKED).endswith("<think>\n\n</think>\n") and learned_turn(smol, TALK).text == "That.<|im_end|>"


@pytest.mark.parametrize("template", ["gemma", "drops_system"])
def test_a_system_turn_is_refused_unless_it_is_folded(
    model: Path, template: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ModelError, match=r"(?s)system.*system=fold"):
        render(load_tokenizer(source(model, template)), ASKED)
    folded = load_tokenizer(source(model, template, system="fold"))
    assert "Be short.\n\nWhat?" in render(folded, ASKED)
    turns = [{**ASKED[0], "role": "developer"}, ASKED[1], TALK[2], ASKED[0], {"role": "user", "content": "And?"}]
    assert "Be short.\n\nAnd?" in render(folded, turns)
    with caplog.at_level("INFO"):
        examples([make_row([(turn["role"], turn["content"]) for turn in TALK])] * 2, folded, "all")
    assert "next user turn in 2 of 2 conversations" in caplog.text


def test_a_date_is_held(model: Path) -> None:
    assert "Today Date: 26 Jul 2024" in render(load_tokenizer(source(model, "llama3")), ASKED)
    assert "Today Date: 03 May 2025" in render(load_tokenizer(source(model, "llama3", date="2025-05-03")), ASKED)
    assert "Today: 2025-05-03" in render(load_tokenizer(source(model, "computed_clock", date="2025-05-03")), ASKED)


def test_another_template_is_taken_and_changed_again(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    for word in ("Q", "Question"):
        file.write_text("{% for m in messages %}" + word + ": {{ m.content }}\n{% endfor %}", "utf-8")
        found = ModelSource(path=str(model), template=str(file)).locate("models.m")
        assert found != model and render(load_tokenizer(found), ASKED).endswith(f"{word}: What?\n")
    assert {each.name for each in found.iterdir()} >= {each.name for each in model.iterdir()}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("zephyr", {"thinking": False}),
        ("zephyr", {"date": "2025-05-03"}),
        ("llama3", {"date": "soon"}),
        ("zephyr", {"template": "/no.jinja"}),
    ],
)
def test_settings_that_change_nothing_are_refused(model: Path, name: str, settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"models.m.{next(iter(settings))}"):
        source(model, name, **settings)


def test_the_template_inside_a_gguf_is_not_changed(tmp_path: Path) -> None:
    bare_gguf(tmp_path / "model.gguf")
    with pytest.raises(ConfigError, match="GGUF"):
        ModelSource(path=str(tmp_path / "model.gguf"), system="fold").locate("models.m")
