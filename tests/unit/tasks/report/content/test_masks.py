"""Notes on masks: a reader must not take zeros for savings."""

from pathlib import Path

import torch

from tasks.report.content.masks import mask_notes
from tasks.shared.model.masks import write_masks
from tasks.shared.technique import Artifact, Kind
from tests.tiny_llama import build_model, save_tiny


def test_a_model_with_masks_is_noted_and_no_other(tmp_path: Path) -> None:
    model, name = build_model(num_hidden_layers=1), "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(name).unflatten(-1, (-1, 4))[..., :2] = 0.0
    folder = save_tiny(tmp_path / "sparse", model)
    write_masks(folder, [name], "2:4")
    (tmp_path / "dense").mkdir()
    models = [Artifact(each, Kind.MODEL, tmp_path / each) for each in ("sparse", "dense", "absent.gguf")]
    (note,) = mask_notes(models)
    assert note.startswith(
        "sparse: 50.0 % of the weights in 1 matrices are zero, 2:4. Zeros alone make no file smaller"
    )
