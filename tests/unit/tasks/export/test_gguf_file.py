"""What exports to GGUF share: another model's file is refused, lost zeros are told."""

from pathlib import Path

import pytest
import torch

from tasks.export import gguf_file
from tasks.export.gguf import Gguf
from tasks.shared.errors import ParityError
from tasks.shared.gguf.types import PlannedTensor
from tasks.shared.gguf.writer import write_gguf
from tasks.shared.model.masks import write_masks
from tests.tiny_llama import build_model, empty_run, inputs_of, save_tiny


def test_masks_that_a_type_cannot_hold_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name, other = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"
    source = save_tiny(tmp_path / "source", build_model(num_hidden_layers=1))
    mixed = [PlannedTensor(name, 64, 8192, "q4_0", "q4_0"), PlannedTensor(other, 64, 32768, "iq4_nl", "iq4_nl")]
    shifted = [PlannedTensor(name, 64, 8192, "iq4_nl", "iq4_nl")]
    gguf_file.warn_of_masks(source, shifted)
    write_masks(source, [name])
    gguf_file.warn_of_masks(source, mixed)
    assert not caplog.text
    gguf_file.warn_of_masks(source, shifted)
    assert "iq4_nl has no exact zero" in caplog.text


def test_another_model_s_weights_are_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, other = save_tiny(tmp_path / "source"), save_tiny(tmp_path / "other", shuffled(build_model()))
    monkeypatch.setattr(gguf_file, "write_gguf", lambda model, out, *rest: write_gguf(other, out, *rest))
    out, run = empty_run(tmp_path)
    with pytest.raises(ParityError, match=r"at .*% of \d+ positions, mean KL"):
        Gguf(scheme="f16", embedding="same", prompts=4, tokens=4)(inputs_of(source), out, run)
    assert list(out.iterdir()) == []


def shuffled(model: torch.nn.Module) -> torch.nn.Module:
    """The model with the rows of one projection per layer in another order, as a wrong head permutation would leave them."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight.copy_(layer.self_attn.v_proj.weight.flip(0))
            layer.mlp.up_proj.weight.copy_(layer.mlp.up_proj.weight.roll(1, 0))
    return model
