"""Groups of tensors and their sensitivity: every matrix is in one group, and the model is left as it was."""

from pathlib import Path

import pytest
import torch

from tasks.export.sensitivity import Meter, group_tensors
from tasks.shared.errors import TechniqueError
from tasks.shared.gguf.types import PlannedTensor
from tasks.shared.gguf.writer import plan_tensors, write_gguf
from tasks.shared.model.loading import load_model
from tasks.shared.model.weights import read_gguf
from tests.families import FAMILIES, save_family
from tests.tiny_llama import build_model, save_tiny

IDS = [[3, 4, 5, 6], [7, 8]]


def tensor(name: str, row: int = 64) -> PlannedTensor:
    return PlannedTensor(name, row, 2 * row, "f32", "f32")


def test_layers_are_divided_into_runs_by_role() -> None:
    names = [
        f"model.layers.{index}.{part}.weight"
        for index in range(5)
        for part in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
    ]
    groups = group_tensors([*map(tensor, names), tensor("model.embed_tokens.weight")], 2)
    assert [(group.name, len(group.tensors)) for group in groups] == [
        ("embedding", 1), ("layers 0-1 attention", 2), ("layers 0-1 gate_up", 2), ("layers 0-1 down", 2),
        ("layers 2-4 attention", 3), ("layers 2-4 gate_up", 3), ("layers 2-4 down", 3),
    ]  # fmt: skip
    assert len(group_tensors([*map(tensor, names)], 99)) == 15  # at most a run per layer


@pytest.mark.parametrize("name", FAMILIES)
def test_every_matrix_of_a_family_is_in_one_group_and_found_in_the_model(name: str, tmp_path: Path) -> None:
    """By the weights' names in files, which may be other ones than in the model."""
    source = save_family(tmp_path / "source", name)
    planned = plan_tensors(source, "f32")
    groups = group_tensors(planned, 1)
    assert sorted(each.name for group in groups for each in group.tensors) == sorted(each.name for each in planned)
    assert [group.name for group in groups if group.name.startswith("layers")] == [
        "layers 0-1 attention",
        "layers 0-1 gate_up",
        "layers 0-1 down",
    ]
    meter = Meter(load_model(source), groups, IDS, {})
    losses = {kind: [meter.divergence({group.name: kind}) for group in groups] for kind in ("f32", "q8_0", "iq4_nl")}
    assert max(losses["f32"]) == 0.0
    assert all(0 <= fine < coarse for fine, coarse in zip(losses["q8_0"], losses["iq4_nl"], strict=True))


def test_a_group_that_the_model_lacks_is_refused() -> None:
    groups = group_tensors([tensor("model.layers.0.self_attn.q_proj.weight")], 1)
    with pytest.raises(TechniqueError, match="weights in the loaded model, and 128 in its files"):
        Meter(build_model(num_hidden_layers=1), groups, IDS, {})


def test_types_that_do_not_fill_the_rows_are_not_offered() -> None:
    (group,) = group_tensors([tensor("model.layers.0.mlp.down_proj.weight", 96)], 1)
    assert group.sizes(("q3_k", "q8_0", "f16")) == {"q8_0": 6 * 34, "f16": 192 * 2}


def test_the_rounding_is_the_file_s_and_is_undone(tmp_path: Path) -> None:
    """With importance: the model computes with the weights that the file will hold."""
    from gguf.quants import dequantize

    source = save_tiny(tmp_path / "source", build_model(num_hidden_layers=1))
    model, groups = load_model(source), group_tensors(plan_tensors(source, "f32"), 1)
    importance = {"model.layers.0.mlp.down_proj.weight": torch.rand(128)}
    write_gguf(source, tmp_path / "model.gguf", "iq4_nl", "q8_0", importance=importance)
    file = {each.name: dequantize(each.data, each.tensor_type) for each in read_gguf(tmp_path / "model.gguf").tensors}
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    meter = Meter(model, groups, IDS, importance)
    with meter.rounded({"layer 0 down": "iq4_nl", "embedding": "q8_0"}):
        for name, there in (
            ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down"),
            ("model.embed_tokens.weight", "token_embd"),
        ):
            assert model.get_parameter(name).equal(torch.from_numpy(file[f"{there}.weight"].copy()))
    assert all(weight.equal(before[name]) for name, weight in model.named_parameters())


def test_several_groups_diverge_about_as_much_as_each_alone() -> None:
    model = build_model(num_hidden_layers=2)
    names = [name for name, weight in model.named_parameters() if weight.dim() > 1]
    shapes = {name: model.get_parameter(name).shape for name in names}
    groups = group_tensors(
        [PlannedTensor(name, shape[1], shape.numel(), "f32", "f32") for name, shape in shapes.items()], 1
    )
    meter = Meter(model, groups, IDS, {})
    alone = sum(meter.divergence({group.name: "q5_0"}) for group in groups)
    assert meter.divergence({group.name: "q5_0" for group in groups}) == pytest.approx(alone, rel=0.5)
