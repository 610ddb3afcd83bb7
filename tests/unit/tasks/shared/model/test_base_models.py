"""Models without a chat template: plain text calibrates them, and training writes its format into the model."""

from pathlib import Path

import pytest

from tasks.distill.sft import SFT
from tasks.prune.depth import Depth
from tasks.shared.errors import ModelError
from tasks.shared.formats.rows import write_rows
from tasks.shared.model.calibration import calibration_ids
from tasks.shared.model.generation import write_answers
from tasks.shared.model.loading import load_model, load_tokenizer, training_tokenizer
from tasks.shared.model.prompts import learned_turn, render
from tasks.shared.technique import Artifact, Inputs, Kind
from tests.tiny_llama import build_model, chats, empty_run, inputs_of, make_row, save_tiny, write_corpus

TALK = [("user", "When?"), ("assistant", "Soon."), ("user", "Really?"), ("assistant", "Yes.")]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder without a template, whose tokenizer knows no chat markup."""
    folder = save_tiny(tmp_path / "base", build_model(num_hidden_layers=3))
    (folder / "chat_template.jinja").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text("utf-8")
        (folder / name).write_text(text.replace("<|im_end|>", "<|done|>"), "utf-8")
    return folder


def test_calibration_reads_plain_text(base: Path) -> None:
    tokenizer, row = load_tokenizer(base, chat=False), make_row([("system", "Be short."), *TALK])
    (ids,) = calibration_ids(tokenizer, [row], 512)
    assert tokenizer.decode(ids) == (
        "System: Be short.\n\nUser: When?\n\nAssistant: Soon.<|done|>\n\nUser: Really?\n\nAssistant: Yes.<|done|>\n\n"
    )
    assert not tokenizer.chat_template
    with pytest.raises(ModelError, match=r"(?s)chat template.*models.NAME.template"):
        load_tokenizer(base)


def test_a_layer_is_dropped_and_the_model_stays_a_base_model(base: Path, tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    metrics = Depth(ratio=0.4, protect_first=0, protect_last=0)(
        inputs_of(base, write_corpus(tmp_path / "corpus", 4)), out, run
    )
    assert (
        metrics and load_model(out).config.num_hidden_layers == 2 and not load_tokenizer(out, chat=False).chat_template
    )


def test_training_writes_its_format_into_the_model(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write_rows(data / "train.jsonl", chats(4))
    out, run = empty_run(tmp_path)
    inputs = Inputs({"model": (Artifact("m", Kind.MODEL, base),), "data": (Artifact("d", Kind.TRACES, data),)})
    with caplog.at_level("INFO"):
        SFT(epochs=1, batch_size=2, precision="float32", validation=0)(inputs, out, run)
    assert "plain text" in caplog.text
    trained = load_tokenizer(out)
    prompt = render(trained, [{"role": "user", "content": "When?"}])
    assert prompt == "User: When?\n\nAssistant:" and write_answers(load_model(out), trained, [prompt], 2)
    turn = learned_turn(training_tokenizer(base), [{"role": role, "content": content} for role, content in TALK[:2]])
    assert (turn.prompt, turn.text) == ("User: When?\n\nAssistant:", " Soon.<|done|>")
