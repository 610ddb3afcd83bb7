"""What the gate compares by."""

from pathlib import Path

from tasks.export.parity import greedy_continuations
from tasks.shared.model.loading import load_model
from tests.tiny_llama import save_tiny


def test_the_source_continues_greedily_whatever_its_generation_config_says(tmp_path: Path) -> None:
    """llama.cpp gets no penalties with a GGUF, so that positions which only they lead to are not the file's to answer for."""
    model = load_model(save_tiny(tmp_path))
    prompts = [[1, 5, 6, 7], [1, 9]]
    plain = greedy_continuations(model, prompts, 12, 0)
    assert model.generation_config is not None
    model.generation_config.repetition_penalty, model.generation_config.no_repeat_ngram_size = 5.0, 1
    assert greedy_continuations(model, prompts, 12, 0) == plain
