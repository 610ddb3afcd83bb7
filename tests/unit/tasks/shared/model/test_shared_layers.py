"""The record of shared layers: true of the weights, or refused."""

import json
from pathlib import Path

import pytest
import torch

from tasks.prune.selection.sharing import share_layers
from tasks.shared.errors import ModelError
from tasks.shared.model.layout import decoder_layers
from tasks.shared.model.shared_layers import (
    SHARED_FILE,
    SharedLayers,
    carry_shared,
    digest_of,
    read_shared,
    write_shared,
)
from tests.tiny_llama import build_model, save_tiny

SHARED = SharedLayers(layers="model.layers", groups=((0, 2), (1, 3)))


def shared_folder(folder: Path) -> Path:
    model = build_model()
    share_layers(list(decoder_layers(model)), SHARED.groups, "copy_first")
    save_tiny(folder, model)
    write_shared(folder, SHARED)
    return folder


def test_copies_are_found_by_their_names() -> None:
    names = ["model.layers.1.a", "model.layers.11.a", "model.layers.0.b.c", "model.layers.2.b.c", "lm_head.weight"]
    assert SHARED.copies(names) == [
        ["model.layers.0.b.c", "model.layers.2.b.c"],
        ["model.layers.1.a", "model.layers.3.a"],
    ]


def test_a_record_is_read_while_it_is_true(tmp_path: Path) -> None:
    folder = shared_folder(tmp_path / "model")
    assert read_shared(folder) == SHARED
    assert read_shared(save_tiny(tmp_path / "other")) is None
    (tmp_path / "other" / SHARED_FILE).write_bytes((folder / SHARED_FILE).read_bytes())
    with pytest.raises(ModelError, match=r"another state of the model: 14 of 18 weights .*self_attn"):
        read_shared(tmp_path / "other")
    assert carry_shared(save_tiny(tmp_path / "plain"), tmp_path / "nowhere") == {}


def test_one_weight_that_differs_is_enough(tmp_path: Path) -> None:
    model = build_model()
    share_layers(list(decoder_layers(model)), SHARED.groups, "copy_first")
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight[5, 7] += 1e-3
    with pytest.raises(ModelError, match=r"1 of 18 weights .*\(model.layers.1.mlp.up_proj.weight\)"):
        write_shared(save_tiny(tmp_path / "model", model), SHARED)


@pytest.mark.parametrize(
    "text", ["", "[]", json.dumps({"layers": "model.layers", "groups": [[1]]}), '{"groups": [[0, 1]]}']
)
def test_a_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    folder = save_tiny(tmp_path / "model")
    (folder / SHARED_FILE).write_text(text, "utf-8")
    with pytest.raises(ModelError, match="not a record of shared layers"):
        read_shared(folder)


def test_a_record_of_other_layers_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    with pytest.raises(ModelError, match="0 of 0 weights"):
        write_shared(folder, SharedLayers(layers="transformer.h", groups=((0, 1),)))
    with pytest.raises(ModelError, match="9 of 9 weights"):
        write_shared(folder, SharedLayers(layers="model.layers", groups=((0, 9),)))


def test_digests_tell_bytes_apart_in_any_type() -> None:
    weight = torch.arange(6.0).view(2, 3)
    assert digest_of(weight) == digest_of(weight.clone()) != digest_of(weight.T)
    assert digest_of(weight.bfloat16()) != digest_of(weight)
    assert digest_of(torch.tensor(1.0)) != digest_of(torch.tensor(2.0))
