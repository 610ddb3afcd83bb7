"""export/vllm: tensors of every format, what vLLM fuses, its kernels' sizes, and answers of a stand-in for it."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.export import vllm
from tasks.export.packed_schema import packed_layers, read_config, schema_problems, tensors_of
from tasks.export.vllm import Vllm
from tasks.export.vllm_kernels import FP8 as FP8_KERNEL
from tasks.export.vllm_kernels import MARLIN, head_problem, kernel_of, matrices_on_gpu
from tasks.quantize.fp4 import FP4
from tasks.quantize.fp8 import FP8
from tasks.quantize.rtn import RTN
from tasks.quantize.smoothquant import SmoothQuant
from tasks.shared.errors import ConfigError, ModelError, ParityError, TechniqueError
from tasks.shared.model.loading import load_model
from tasks.shared.technique import Upstream
from tests.fake_vllm import write_command
from tests.settings_case import Case, Change
from tests.tiny_files import bare_gguf
from tests.tiny_llama import build_model, empty_run, inputs_of, save_tiny, write_corpus

STATIC: dict[str, Any] = {"activations": "static", "kv_cache": "fp8", "calibration_rows": 4, "check_rows": 1}
QUANTIZERS: dict[str, Any] = {
    "int4": RTN(group_size=32), "int4 symmetric": RTN(group_size=32, symmetric=True), "int8": RTN(bits=8, group_size=32),
    "fp8": FP8(), "fp8 static": FP8(**STATIC), "w8a8": SmoothQuant(calibration_rows=4, check_rows=1), "nvfp4": FP4(),
    "fp4 activations": FP4(activations="dynamic", calibration_rows=4, check_rows=1), "mxfp4 activations": FP4(format="mxfp4", activations="dynamic"),
    "mxfp4": FP4(format="mxfp4"),
}  # fmt: skip
FEW_BITS: dict[str, Any] = {"int2": RTN(bits=2, group_size=32), "int3": RTN(bits=3, group_size=32)}
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of each format, made once."""
    base, made = tmp_path_factory.mktemp("packed"), dict[str, Path]()
    inputs = inputs_of(save_tiny(base / "model", build_model(num_hidden_layers=1)), write_corpus(base / "corpus"))

    def folder(name: str) -> Path:
        if name == "dense":
            return inputs.one("model").path
        if name not in made:
            made[name], run = empty_run(base, name.replace(" ", "-"))
            (QUANTIZERS | FEW_BITS)[name](inputs, made[name], run)
        return made[name]

    return folder


def export(folder: Path, place: Path, **settings: Any) -> tuple[Path, dict[str, Any]]:
    place.mkdir(exist_ok=True)
    out, run = empty_run(place, f"vllm{len(list(place.iterdir()))}")
    return out, Vllm(**settings)(inputs_of(folder), out, run)


def changed(folder: Path, place: Path, change: Callable[[Tensors], Any]) -> Path:
    """A copy whose tensors were changed."""
    copy = place / "changed"
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy


@pytest.mark.parametrize("name", ["dense", *QUANTIZERS])
def test_what_our_quantizers_write_fits_its_format(packed: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    folder = packed(name)
    out, metrics = export(folder, tmp_path)
    assert metrics["packed_layers"] == (0 if name == "dense" else 7)
    ids = torch.arange(3, 23)[None]
    with torch.inference_mode():
        assert torch.equal(load_model(out)(ids).logits, load_model(folder)(ids).logits)
    record = json.loads((out / "vllm.json").read_text("utf-8"))
    least = {
        "dense": "8.0",
        "fp8": "8.9",
        "fp8 static": "8.9",
        "mxfp4": "8.0",
        "fp4 activations": "10.0",
        "mxfp4 activations": "10.0",
    }.get(name, "7.5")
    assert record["compute_capability"] == least and len(record["kernels"]) == 1
    assert ("--kv-cache-dtype fp8" in record["serve"]) == (name == "fp8 static")
    assert not {file.name for file in out.iterdir()} & {"masks.json", "curve.csv"}


def drop(name: str) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.pop(name)


def put(name: str, make: Callable[[torch.Tensor], torch.Tensor], under: str = "") -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({under or name: make(tensors[name]).contiguous()})


UP, KEY = "model.layers.0.mlp.up_proj", "model.layers.0.self_attn.k_proj"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("int4", drop(f"{UP}.weight_zero_point"), "weight_zero_point"),
        ("int4", put(f"{UP}.weight_scale", torch.zeros_like), "up_proj.weight_scale has scales that are not finite and above zero"),
        ("int4", put(f"{UP}.weight_scale", lambda scale: scale.to(torch.float64)), "up_proj.weight_scale is F64, not BF16 or F16 or F32"),
        ("int4 symmetric", put(f"{UP}.weight_scale", lambda scale: scale[:, :1]), "up_proj.weight_scale"),
        ("fp8 static", put(f"{KEY}.input_scale", lambda scale: scale * torch.nan), "k_proj.input_scale has scales that are not finite"),
        ("fp8 static", put("model.layers.0.self_attn.k_scale", torch.zeros_like), "self_attn.k_scale has scales"),
        ("nvfp4", put(f"{KEY}.weight_global_scale", lambda scale: 2 * scale), "qkv_proj has parts with different global scales"),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(
    packed: Callable[[str], Path], tmp_path: Path, name: str, change: Callable[[Tensors], Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        export(changed(packed(name), tmp_path, change), tmp_path / "run")
    assert not list((tmp_path / "run" / "vllm0-out").iterdir())


def edited(folder: Path, place: Path, **settings: Any) -> Path:
    """A copy whose arguments of weights were changed."""
    copy = place / "edited"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text("utf-8"))
    config["quantization_config"]["config_groups"]["group_0"]["weights"] |= settings
    (copy / "config.json").write_text(json.dumps(config), "utf-8")
    return copy


def test_a_configuration_outside_the_schema_is_one_message(packed: Callable[[str], Path], tmp_path: Path) -> None:
    folder = packed("int4")
    settings = json.loads((folder / "config.json").read_text("utf-8"))["quantization_config"]
    settings["config_groups"]["group_0"]["weights"]["num_bits"] = "four"
    with pytest.raises(ModelError, match=r"quantization_config\.config_groups.*num_bits"):
        read_config(folder, settings)
    with pytest.raises(ModelError, match="quantized by awq"):
        read_config(folder, {"quant_method": "awq"})


def test_weights_without_a_kernel_are_refused(packed: Callable[[str], Path], tmp_path: Path) -> None:
    run = inputs_of(packed("dense"))
    for settings, message in (
        ({"group_size": 16}, "groups of 16"),
        ({"bits": 8, "symmetric": False, "group_size": 32}, "8 bits with zero"),
        ({"bits": 3, "group_size": 32}, "3 bits"),
    ):
        made, made_run = empty_run(tmp_path, message.replace(" ", "-"))
        RTN(**settings)(run, made, made_run)
        with pytest.raises(TechniqueError, match=message):
            export(made, tmp_path / "run")
    upstream = {"small": Upstream(RTN(bits=3), {})}
    (problem,) = Vllm().plan_problems("steps.served", {"model": ("small",)}, upstream)
    assert "small, of 3 bits" in str(problem)
    assert not list(Vllm().plan_problems("steps.served", {"model": ("small",)}, {"small": Upstream(RTN(), {})}))


def test_sizes_that_marlin_does_not_take_are_named(
    packed: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The tiny model is 64 wide and 128 in its neurons: only the last projection has 128 inputs and 64 outputs."""
    caplog.set_level("WARNING")
    _, metrics = export(packed("int4"), tmp_path)
    assert metrics["slow_matrices"] == 3 and "outputs in multiples of 64 and inputs in multiples of 128" in caplog.text
    with pytest.raises(TechniqueError, match="3 matrices have other sizes"):
        export(packed("int4"), tmp_path, kernels="refuse")
    caplog.clear()
    assert export(packed("fp8"), tmp_path)[1]["slow_matrices"] == 0 and not caplog.text


def test_gpus_share_heads_and_widths(packed: Callable[[str], Path], tmp_path: Path) -> None:
    config = build_model().config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    assert (
        (heads, groups) == (4, 2)
        and not head_problem(config, 1)
        and not head_problem(config, 2)
        and not head_problem(config, 4)
    )
    assert "3 GPUs do not divide 4 attention heads" in head_problem(config, 3)
    with pytest.raises(ConfigError, match="tensor_parallel: 3 GPUs"):
        export(packed("dense"), tmp_path, tensor_parallel=3)
    found = matrices_on_gpu({"a.q_proj": (64, 32), "a.k_proj": (16, 32), "a.v_proj": (16, 32), "a.o_proj": (32, 64)}, 2)
    assert {name: (each.outputs, each.inputs) for name, each in found.items()} == {
        "a.qkv_proj": (48, 32),
        "a.o_proj": (32, 32),
    }


def test_a_format_s_kernel(packed: Callable[[str], Path]) -> None:
    """Names, types and shapes are known of formats without a kernel, too: 3 bits are packed without gaps."""
    kernels = {"int2": "2 bits", "int3": "3 bits", "int4": MARLIN, "int8": MARLIN, "fp8": FP8_KERNEL}
    for name, kernel in kernels.items():
        folder = packed(name)
        model = vllm.architecture(folder)
        layers = packed_layers(folder, read_config(folder, model.config.quantization_config), model)
        assert {kernel_of(layer) for layer in layers.values()} == {kernel}
        stored = load_file(folder / "model.safetensors")
        for layer_name, layer in layers.items():
            for part, tensor in tensors_of(layer).items():
                assert tuple(stored[f"{layer_name}.{part}"].shape) == tensor.shape
        assert not list(schema_problems(folder, layers))


def test_a_gguf_file_is_refused(tmp_path: Path) -> None:
    bare_gguf(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match="a GGUF file"):
        export(tmp_path / "model.gguf", tmp_path / "run")


def test_answers_that_are_not_the_source_s_leave_nothing(packed: Callable[[str], Path], tmp_path: Path) -> None:
    command = str(write_command(tmp_path))
    with pytest.raises(ParityError, match=r"the source's greedy text in 0\.0%"):
        export(packed("dense"), tmp_path / "run", vllm_command=command, prompts=2, tokens=2)
    assert not list((tmp_path / "run" / "vllm0-out").iterdir())
    _, metrics = export(packed("dense"), tmp_path / "run", vllm_command=command, prompts=2, tokens=2, min_same_text=0)
    assert metrics["same_text"] == 0
    (problem,) = Vllm(vllm_command="/no/such/vllm").plan_problems("steps.served", {}, {})
    assert "steps.served.vllm_command" in str(problem)


@pytest.mark.gpu
@pytest.mark.skipif("VLLM_COMMAND" not in os.environ, reason="VLLM_COMMAND names no vllm executable")
@pytest.mark.parametrize("name", ["dense", *QUANTIZERS])
def test_vllm_itself_reads_the_folder(packed: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    _, metrics = export(packed(name), tmp_path, vllm_command=os.environ["VLLM_COMMAND"], prompts=4, min_same_text=0)
    assert metrics["same_text"] >= 0.25


CHANGES = {
    "tensor_parallel": Change(2),
    "kernels": Change("refuse", refused="matrices have other sizes"),
    "vllm_command": Change(""),
    "prompts": Change(1),
    "tokens": Change(1),
    "min_same_text": Change(1.0, refused="greedy text"),
    "limit_s": Change(300.0),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    made, run = empty_run(folder, "packed")
    RTN(group_size=32)(inputs_of(save_tiny(folder / "model", build_model(num_hidden_layers=1))), made, run)
    settings = {"prompts": 2, "tokens": 2, "min_same_text": 0.0, "vllm_command": str(write_command(folder))}
    yield Case(folder, inputs_of(made, write_corpus(folder / "corpus")), settings)
