"""Record of masks: it holds for the weights it was written for, and for no others."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.shared.errors import ModelError, TechniqueError
from tasks.shared.model.masks import MASKS_FILE, carry_masks, follows, hold_zeros, read_masks, write_masks, zeros_of
from tests.tiny_llama import build_model, save_tiny

NAMES = ["model.layers.0.mlp.up_proj.weight", "model.layers.3.self_attn.q_proj.weight"]


def masked_model(pattern: str = "2:4") -> Any:
    """A model with 2:4 zeros in two matrices."""
    model = build_model()
    with torch.no_grad():
        for name in NAMES:
            model.get_parameter(name).unflatten(-1, (-1, 4))[..., 1:3] = 0.0
    return model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = save_tiny(tmp_path / "source", masked_model())
    write_masks(folder, NAMES, "2:4")
    return folder


def resaved(folder: Path, model: Any, record: Path) -> Path:
    """A model beside the record of another one."""
    save_tiny(folder, model)
    (folder / MASKS_FILE).write_bytes((record / MASKS_FILE).read_bytes())
    return folder


def test_what_is_read_is_what_was_written(source: Path) -> None:
    masks = read_masks(source)
    assert masks is not None and list(masks.tensors) == NAMES
    assert masks.pattern == "2:4" and masks.sparsity == 0.5
    assert masks.tensors[NAMES[0]].shape == (128, 64) and masks.tensors[NAMES[0]].zeros == 128 * 32


def test_a_model_without_a_record_has_no_masks(tmp_path: Path) -> None:
    plain = save_tiny(tmp_path / "plain")
    assert read_masks(plain) is None and read_masks(tmp_path / "model.gguf") is None
    assert carry_masks(plain, plain) == {}


def test_other_values_in_the_same_places_are_the_same_masks(source: Path, tmp_path: Path) -> None:
    model = masked_model()
    with torch.no_grad():
        model.get_parameter(NAMES[0]).mul_(3.0)
    assert read_masks(resaved(tmp_path / "other", model, source)) == read_masks(source)


@pytest.mark.parametrize("change", ["refilled", "more zeros", "another shape", "gone"])
def test_masks_of_a_model_that_was_changed_since_are_refused(source: Path, tmp_path: Path, change: str) -> None:
    model = masked_model()
    with torch.no_grad():
        if change == "refilled":
            model.get_parameter(NAMES[0])[5, 1] = 1.0
        if change == "more zeros":
            model.get_parameter(NAMES[0])[5, 0] = 0.0
    if change == "another shape":
        model = build_model(intermediate_size=96)
    if change == "gone":
        model = build_model(num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"masks of another state of the model: [12] of 2 matrices"):
        read_masks(resaved(tmp_path / "other", model, source))


def test_a_damaged_record_is_refused(source: Path) -> None:
    (source / MASKS_FILE).write_text('{"tensors": 3}', "utf-8")
    with pytest.raises(ModelError, match="not a record of masks"):
        read_masks(source)


def test_a_broken_pattern_is_not_recorded(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "dense")
    with pytest.raises(TechniqueError, match=r"more than 2:4 weights"):
        write_masks(folder, NAMES, "2:4")
    assert not (folder / MASKS_FILE).exists()
    assert not follows(torch.zeros(2, 6), "2:4"), "groups are whole"


def test_masks_move_with_their_layers_and_end_with_them(source: Path, tmp_path: Path) -> None:
    model = masked_model()
    del model.model.layers[0]
    out = save_tiny(tmp_path / "out", model)
    before, after = read_masks(source), read_masks_of(source, out)
    assert before is not None and after.pattern == "2:4"
    assert dict(after.tensors) == {NAMES[1].replace("layers.3", "layers.2"): before.tensors[NAMES[1]]}


def read_masks_of(source: Path, out: Path) -> Any:
    """The masks of a model without its first layer."""
    from tasks.shared.model.layout import LAYOUTS

    assert carry_masks(source, out, LAYOUTS[0].origin([1, 2, 3])) == {"masked_sparsity": 0.5}
    return read_masks(out)


def test_a_cut_that_breaks_the_pattern_keeps_the_zeros(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model(intermediate_size=96)
    with torch.no_grad():
        for name in NAMES:
            model.get_parameter(name)[:, 8:40] = 0.0
    out = save_tiny(tmp_path / "out", model)
    carry_masks(source, out, lambda name: name if name == NAMES[0] else None)
    masks = read_masks(out)
    assert masks is not None and masks.pattern == "" and masks.tensors[NAMES[0]].zeros == 96 * 32
    assert "no longer has the pattern 2:4" in caplog.text


def test_weights_that_came_back_are_refused(source: Path, tmp_path: Path) -> None:
    out = save_tiny(tmp_path / "out", build_model())
    with pytest.raises(TechniqueError, match="2 matrices have weights again where they were pruned"):
        carry_masks(source, out)


def test_held_zeros_are_counted(source: Path) -> None:
    model = masked_model()
    zeros = zeros_of(model, read_masks(source))
    assert set(zeros) == set(NAMES)
    with torch.no_grad():
        model.get_parameter(NAMES[0])[:, 1:3] = 1.0
    assert hold_zeros(model, zeros) == pytest.approx(256 / (128 * 32 + 64 * 32))
    assert hold_zeros(model, zeros) == 0.0
