"""Rounded layers: gradients go straight through, the written weights are those of training, and they last through the rounding."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.planning.plan import build_plan
from flows.planning.sizes import size_of
from tasks.distill.logits import Logits
from tasks.distill.sft import SFT
from tasks.distill.training.loop import prepared_model, train_model
from tasks.distill.training.objective import Answers
from tasks.distill.training.qat import Qat
from tasks.distill.training.rounded_layers import RoundedLinear, round_layers, rounded_layers, rounded_once, settle
from tasks.quantize.rtn import RTN
from tasks.shared.errors import ConfigError, ErrorList, TechniqueError
from tasks.shared.forecast import Rows, Workload
from tasks.shared.formats.rows import write_rows
from tasks.shared.gguf.types import Scheme
from tasks.shared.gguf.writer import write_gguf
from tasks.shared.model.encoding import collate, encode
from tasks.shared.model.grids import (
    BLOCKS,
    SERVED,
    Grid,
    GridName,
    find_levels,
    group_scales,
    is_two_bits,
    nearest_levels,
    round_to_grid,
)
from tasks.shared.model.linear_layers import input_sizes
from tasks.shared.model.loading import load_model
from tasks.shared.model.sizes import weight_bytes
from tasks.shared.technique import Artifact, Compute, Inputs, Kind
from tests.tiny_llama import build_model, build_tokenizer, chats, empty_run, inputs_of, save_tiny, trained_model
from tests.unit.tasks.distill.training.test_checkpoints import interrupted

GRIDS: tuple[GridName, ...] = tuple(SERVED)
every_grid = pytest.mark.parametrize("grid", GRIDS)
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 8, "precision": "float32", "validation": 0, "learning_rate": 3e-3}


def small_model() -> Any:
    return build_model(num_hidden_layers=1)


def batch() -> Any:
    return collate(encode(chats(6), build_tokenizer(), 512), 0)


def loss_of(model: Any) -> torch.Tensor:
    return sum(Answers().terms(model, batch(), None).values())  # type: ignore[return-value]


def rounded_model(model: Any, grid: Grid | dict[str, Grid]) -> Any:
    """The model with its linear layers on one grid, or each on its own."""
    for name in input_sizes(model):
        layer = model.get_submodule(name)
        layer.weight.data = round_to_grid(layer.weight.data, grid if isinstance(grid, Grid) else grid[name])
    return model


def trained(folder: Path, name: str, model: Path, rows: int = 16, **settings: Any) -> Any:
    """The reloaded model of a short training, and its figures."""
    out, run = empty_run(folder, name)
    figures = train_model(SFT(**QUICK | settings), model, chats(rows), Answers(), out, run)
    return load_model(out), figures, out


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("source") / "model", small_model())


@every_grid
@pytest.mark.parametrize("scales", ["extremes", "learned"])
def test_gradients_are_those_at_the_rounded_weights(grid: GridName, scales: Any) -> None:
    model = small_model()
    grids = round_layers(model, Qat(grid=grid, group_size=0 if grid in BLOCKS else 32, scales=scales))
    loss = loss_of(model)
    loss.backward()
    reference = rounded_model(small_model(), grids)
    wanted = loss_of(reference)
    wanted.backward()
    assert torch.equal(loss, wanted)
    found = dict(model.named_parameters())
    for name, weight in reference.named_parameters():
        assert torch.equal(found.pop(name).grad, weight.grad), name
    assert len(found) == (7 if scales == "learned" else 0) and all(one.grad.any() for one in found.values())


@every_grid
def test_a_factor_s_gradient_is_lsq_s(grid: GridName) -> None:
    """By a second way: autograd through the division, the clipping and the product, with rounding taken as the identity."""
    draw = torch.Generator().manual_seed(0)
    weight, factor = torch.randn(8, 64, generator=draw), torch.randn(8, 2, generator=draw) * 0.1 - 0.2
    layer = torch.nn.Linear(64, 8)
    layer.weight.data = weight
    rounded = RoundedLinear(layer, Grid(grid, 32), learned=True)
    assert rounded.factor is not None
    rounded.factor.data = factor
    outer = torch.randn(8, 64, generator=draw)
    (rounded.rounded() * outer).sum().backward()
    groups = weight.unflatten(-1, (-1, 32))
    scale, low = group_scales(groups, grid, factor.exp()[..., None])
    levels = nearest_levels(groups, scale, low, grid)
    ratio = factor.clone().requires_grad_()
    step = scale * (ratio - factor).exp()[..., None]
    top = low + (3 if is_two_bits(grid) else 15)
    ends = (-139.0, 125.0) if grid == "iq4_nl" else (low - 0.5, top + 0.5)
    steps = (groups / step).clamp(*ends)  # type: ignore[arg-type]
    steps = torch.where((steps == ends[0]) | (steps == ends[1]), levels, steps)
    ((steps + (levels - steps).detach()) * step * outer.unflatten(-1, (-1, 32))).sum().backward()
    assert ratio.grad is not None
    torch.testing.assert_close(rounded.factor.grad, ratio.grad, rtol=1e-3, atol=1e-3)


def test_weights_that_a_layer_rounds_are_cast_after_it(source: Path, tmp_path: Path) -> None:
    """bfloat16 first would give other integers."""
    _, figures, out = trained(tmp_path, "bf16", source, precision="bfloat16", qat={"grid": "int4_symmetric"})
    model = load_model(out)
    work = Workload({"model": (size_of(source),)}, Rows(), Compute(), 1e11)
    plain, forecast = (SFT(qat=Qat(grid=grid)).forecast(work) for grid in ("none", "int4_symmetric"))  # type: ignore[arg-type]
    assert forecast.size is not None and forecast.size.bytes == pytest.approx(weight_bytes(out), rel=0.05)
    assert forecast.memory > plain.memory, "copies for the backward pass"
    assert figures["group_size"] == 64 and json.loads((out / "config.json").read_text("utf-8"))["dtype"] == "float32"
    for name in input_sizes(model):
        assert find_levels(model.get_submodule(name).weight.unflatten(-1, (-1, 64)), "int4_symmetric") is not None


def test_the_written_weights_are_those_that_training_computed_with(source: Path) -> None:
    model = load_model(source)
    round_layers(model, Qat(grid="iq4_nl", scales="learned"))
    for layer in rounded_layers(model).values():
        assert layer.factor is not None
        layer.factor.data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    before = loss_of(model)
    with rounded_once(model), torch.no_grad():
        first = loss_of(model)
        held = [layer.held for layer in rounded_layers(model).values()]
        assert torch.equal(loss_of(model), first)
        assert all(layer.held is one for layer, one in zip(rounded_layers(model).values(), held, strict=True))
    assert all(layer.held is None for layer in rounded_layers(model).values())
    settle(model)
    assert torch.equal(loss_of(model), before) and torch.equal(first, before) and not rounded_layers(model)
    assert "factor" not in "".join(model.state_dict())


def test_frozen_layers_are_rounded_and_recomputed_ones_train_the_same(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "model", build_model(num_hidden_layers=2))
    settings = {"frozen_layers": 1, "qat": {"grid": "int4_asymmetric", "group_size": 32, "scales": "learned"}}
    first, *_ = trained(tmp_path, "kept", source, **settings)
    second, *_ = trained(tmp_path, "recomputed", source, gradient_checkpointing=True, **settings)
    wanted, other = first.state_dict(), second.state_dict()
    assert all(torch.equal(other[name], weight) for name, weight in wanted.items())
    expected = rounded_model(load_model(source), Grid("int4_asymmetric", 32)).state_dict()
    for name, weight in expected.items():
        if "layers.0" in name or "embed" in name:
            assert torch.equal(wanted[name], weight), name
    assert not torch.equal(wanted["model.layers.1.mlp.up_proj.weight"], expected["model.layers.1.mlp.up_proj.weight"])


def test_a_training_that_was_cut_goes_on_with_its_learned_scales(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.jsonl", chats(32))
    inputs = Inputs(
        {
            "model": (Artifact("model", Kind.MODEL, source),),
            "data": (Artifact("traces", Kind.TRACES, tmp_path / "data"),),
        }
    )
    technique = SFT(**QUICK, qat=Qat(grid="int4_symmetric", scales="learned"))
    whole, run = empty_run(tmp_path, "whole")
    technique(inputs, whole, run)
    cut, run = interrupted(technique, inputs, tmp_path, monkeypatch, lambda trainer: trainer.state.global_step == 2)
    technique(inputs, cut, run)
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize("symmetric", [True, False])
def test_rtn_takes_the_integers_over(
    source: Path, tmp_path: Path, symmetric: bool, caplog: pytest.LogCaptureFixture
) -> None:
    grid: GridName = "int4_symmetric" if symmetric else "int4_asymmetric"
    model, _, out = trained(tmp_path, "trained", source, qat={"grid": grid, "group_size": 32})
    packed, run = empty_run(tmp_path, "packed")
    with caplog.at_level("INFO"):
        RTN(group_size=32, symmetric=symmetric)(inputs_of(out), packed, run)
    assert "7 of 7 layers are on the grid already" in caplog.text
    unpacked = load_model(packed)
    unpacked(torch.arange(3, 9)[None])
    for name in input_sizes(model):
        weight = model.get_submodule(name).weight.detach()
        assert torch.equal(unpacked.get_submodule(name).weight, weight), name
        found = find_levels(weight.unflatten(-1, (-1, 32)), grid)
        assert found is not None
        scale, low, levels = found
        stored, zero = tensors_of(packed, name)
        assert torch.equal(stored["scale"].float(), scale[..., 0])
        assert torch.equal(stored["levels"].unflatten(-1, (-1, 32)) - zero[..., None], levels)
        assert symmetric or torch.equal(zero, -8 - low[..., 0])


def tensors_of(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Scale and integers of a packed layer, and its zero points (0 for symmetric ones)."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from safetensors import safe_open

    (file,) = folder.glob("*.safetensors")
    with safe_open(file, framework="pt") as tensors:
        shape = torch.Size(tensors.get_tensor(f"{name}.weight_shape").tolist())
        scale = tensors.get_tensor(f"{name}.weight_scale")
        levels = unpack_from_int32(tensors.get_tensor(f"{name}.weight_packed"), 4, shape)
        zero = torch.zeros(scale.shape)
        if f"{name}.weight_zero_point" in tensors.keys():  # noqa: SIM118 - not a mapping
            zero = unpack_from_int32(
                tensors.get_tensor(f"{name}.weight_zero_point"), 4, scale.shape, packed_dim=0
            ).float()
    return {"scale": scale, "levels": levels.float()}, zero


@pytest.mark.parametrize(
    ("grid", "scheme"),
    [("int4_symmetric", "q4_0"), ("int4_asymmetric", "q4_1"), ("q4_0", "q4_0"), ("iq4_nl", "iq4_nl"), ("q2_0", "q2_0")],
)
def test_a_gguf_file_holds_the_same_weights(source: Path, tmp_path: Path, grid: GridName, scheme: Scheme) -> None:
    model, _, out = trained(tmp_path, "trained", source, qat={"grid": grid, "scales": "learned"})
    write_gguf(out, tmp_path / "model.gguf", scheme, "f32")
    served = load_model(tmp_path / "model.gguf")
    for name in input_sizes(model):
        assert torch.equal(served.get_submodule(name).weight, model.get_submodule(name).weight), name


def uneven(model: Any, factor: float = 12.0) -> Any:
    """The same function with every eighth input of a layer smaller and its column larger, as outliers of real models are."""
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for norm, parts in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                norm.weight[::8] /= factor
                for part in parts:
                    part.weight[:, ::8] *= factor
            mlp.up_proj.weight[::8] /= factor
            mlp.down_proj.weight[:, ::8] *= factor
    return model


def test_a_model_trained_through_the_rounding_lasts_through_it(tmp_path: Path) -> None:
    """Less is lost than to rounding after the same training, though the training loss without rounding is lower."""
    source = save_tiny(tmp_path / "model", uneven(trained_model()))
    held, losses = collate(encode(chats(160)[128:], build_tokenizer(), 512), 0), {}
    for name in ("none", "int4_symmetric"):
        settings = {"qat": {"grid": name}, "epochs": 2, "learning_rate": 1e-3}
        model, *_ = trained(tmp_path, name, source, rows=128, **settings)
        for kind in ("as trained", "rounded"):
            with torch.no_grad():
                losses[name, kind] = float(sum(Answers().terms(model, held, None).values()))
            rounded_model(model, Grid("int4_symmetric", 64))
    dense, grid = losses["none", "as trained"], losses["int4_symmetric", "as trained"]
    assert losses["int4_symmetric", "rounded"] == grid
    assert losses["none", "rounded"] > dense + 0.15 and grid < losses["none", "rounded"] - 0.1, losses


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"qat": {"grid": "q4_0", "group_size": 64}}, "the block of this type"),
        ({"qat": {"grid": "int4_symmetric"}, "lora": {"rank": 4}}, "lora.rank: 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], words: str) -> None:
    for technique in (SFT, Logits):
        with pytest.raises(ConfigError, match=words):
            technique(**settings)


def test_groups_that_do_not_divide_a_layer_are_refused(source: Path, tmp_path: Path) -> None:
    _, run = empty_run(tmp_path)
    with pytest.raises(TechniqueError, match=r"qat\.group_size.*48 does not divide"):
        prepared_model(SFT(qat=Qat(grid="int4_symmetric", group_size=48)), source, run)


def plan_problems(model: Path, qat: dict[str, Any], target: str, **settings: Any) -> list[str]:
    """Errors of a plan that trains a model and passes it to another step."""
    steps = {
        "corpus": {"_target_": "tasks.curate.support.Support"},
        "trained": {
            "_target_": "tasks.distill.sft.SFT",
            "inputs": {"model": "models.student", "data": "corpus"},
            "qat": qat,
        },
        "last": {"_target_": target, "inputs": {"model": "trained", "calibration": "corpus"}, **settings},
    }
    try:
        build_plan({"name": "trial", "seed": 0, "models": {"student": {"path": str(model)}}, "steps": steps})
    except ErrorList as error:
        return [str(one) for one in error.errors]
    return []


def test_a_plan_that_would_round_again_is_refused(source: Path) -> None:
    rtn, gptq, gguf = "tasks.quantize.rtn.RTN", "tasks.quantize.gptq.GPTQ", "tasks.export.gguf.Gguf"
    symmetric = {"grid": "int4_symmetric", "group_size": 32}
    assert not plan_problems(source, symmetric, rtn, group_size=32, symmetric=True)
    assert not plan_problems(source, {"grid": "int4_asymmetric"}, rtn)
    assert not plan_problems(source, symmetric, rtn, group_size=32, bits=8), "next to nothing is lost"
    for qat in (symmetric, {"grid": "int4_asymmetric", "group_size": 32}, {"grid": "q4_0"}, {"grid": "iq4_nl"}):
        assert not plan_problems(source, qat, gguf), "auto finds the grid"
    assert not plan_problems(source, symmetric, gguf, scheme="q4_1")
    assert not plan_problems(source, symmetric, gguf, scheme="q8_0")
    assert not plan_problems(source, {}, gptq)
    for qat, target, settings, words in (
        (
            symmetric,
            rtn,
            {"group_size": 64, "symmetric": True},
            "quantize/rtn with bits=4, group_size=32 and symmetric=true",
        ),
        (symmetric, gptq, {"group_size": 32}, "quantize/rtn"),
        (symmetric, gguf, {"scheme": "iq4_nl"}, "scheme=q4_0"),
        ({"grid": "int4_asymmetric", "group_size": 32}, gguf, {"scheme": "q4_0"}, "scheme=q4_1"),
        ({"grid": "iq4_nl"}, rtn, {}, "export/gguf with scheme=iq4_nl"),
        (symmetric | {"group_size": 48}, gguf, {"scheme": "f16"}, r"steps.trained.qat.group_size"),
    ):
        (problem,) = plan_problems(source, qat, target, **settings)
        assert words in problem
