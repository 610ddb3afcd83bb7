"""bitsandbytes: levels and integers are those of the papers, a process without our code loads them, and what does not fit is refused.

What needs the extra `bitsandbytes` is skipped without it; settings, plan and refusals are tested everywhere.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.planning.sizes import size_of
from tasks.evaluate.models_under_test.model_under_test import Prompt, folder_format, inspect_model
from tasks.evaluate.timing.probes import make_probe
from tasks.quantize.bitsandbytes import BitsAndBytes
from tasks.report.documents.model_card import use
from tasks.shared import extras
from tasks.shared.engines.engine import weight_form
from tasks.shared.engines.protocol import Opening
from tasks.shared.engines.transformers_engine import TRANSFORMERS
from tasks.shared.errors import ModelError, TechniqueError
from tasks.shared.forecast import Rows, Workload
from tasks.shared.gguf.writer import write_gguf
from tasks.shared.model.inspection import find_fault
from tasks.shared.model.linear_layers import input_sizes
from tasks.shared.model.loading import load_model
from tasks.shared.model.masks import write_masks
from tasks.shared.model.saving import dense_copy
from tasks.shared.model.sizes import parameter_count, weight_bytes
from tasks.shared.technique import Artifact, Compute, Inputs, Kind
from tests.families import save_family
from tests.optional_packages import needs_extra
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, empty_run, inputs_of, one_layer_inputs, save_tiny
from tests.unit.flows.planning.test_families import problems, steps

STEP = "quantize.bitsandbytes.BitsAndBytes"
NAME = "model.layers.0.mlp.up_proj"
FORMATS: Mapping[str, Mapping[str, Any]] = {
    "nf4": {}, "nf4 with plain scales": {"double_quantization": False}, "fp4": {"format": "fp4"}, "int8": {"format": "int8"},
}  # fmt: skip
needed = needs_extra(BitsAndBytes)


@pytest.fixture(scope="module")
def written(trained: Inputs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Folder and figures of the trained tiny model in every format."""
    made = {}
    for name, settings in FORMATS.items():
        out, run = empty_run(tmp_path_factory.mktemp("bitsandbytes"))
        made[name] = out, BitsAndBytes(**settings)(trained, out, run)
    return made


def normal_levels() -> torch.Tensor:
    """The 16 levels of NF4 by its definition: quantiles of a normal distribution, 8 above zero and 7 below (QLoRA, section 3)."""
    ends = torch.linspace(0.9677083, 0.5, 9)[:-1], torch.linspace(0.9677083, 0.5, 8)[:-1]
    above, below = ([NormalDist().inv_cdf(float(share)) for share in part] for part in ends)
    levels = torch.tensor([*(-value for value in below), 0.0, *reversed(above)])
    return levels / levels.max()


def float_levels() -> torch.Tensor:
    """FP4 with two bits of exponent: twelfths of the largest, and one subnormal."""
    above = torch.tensor([0.0625, 2, 3, 4, 6, 8, 12]) / 12
    return torch.cat([-above.flip(0), torch.zeros(1), above])


@needed
@pytest.mark.parametrize("format", ["nf4", "fp4"])
def test_each_weight_is_the_nearest_level_of_its_block(trained: Inputs, tmp_path: Path, format: str) -> None:
    out, run = empty_run(tmp_path)
    BitsAndBytes(format=format, double_quantization=False)(inputs_of(trained.one("model").path), out, run)
    before = load_model(trained.one("model").path).get_submodule(NAME).weight.detach().bfloat16().float()
    blocks = before.reshape(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    levels = normal_levels() if format == "nf4" else float_levels()
    nearest = levels[(blocks / scales).unsqueeze(-1).sub(levels).abs().argmin(-1)] * scales
    after = load_model(out).get_submodule(NAME).weight.detach()
    # In bfloat16, as the library computes with them; a weight halfway between two levels may be either.
    close = torch.isclose(after.reshape(-1, 64), nearest, rtol=2**-7, atol=float(scales.max()) * 1e-4)
    assert float(close.float().mean()) > 0.999
    assert load_file(out / "model.safetensors")[f"{NAME}.weight"].numel() * 2 == before.numel()


@needed
def test_integers_have_a_scale_per_output(written: dict[str, tuple[Path, Any]], trained: Inputs) -> None:
    stored = load_file(written["int8"][0] / "model.safetensors")
    weight = load_model(trained.one("model").path).get_submodule(NAME).weight.detach().bfloat16().float()
    assert torch.equal(stored[f"{NAME}.SCB"], weight.abs().amax(1))
    steps = stored[f"{NAME}.weight"].float() * stored[f"{NAME}.SCB"][:, None] / 127
    assert bool(((steps - weight).abs() <= stored[f"{NAME}.SCB"][:, None] / 127 * 0.51).all())


@needed
def test_every_format_is_close_to_its_source_and_as_large_as_forecast(
    written: dict[str, tuple[Path, Any]], trained: Inputs
) -> None:
    source = size_of(trained.one("model").path)
    work = Workload({"model": (source,)}, Rows(), Compute(), 1e9)
    for name, (out, figures) in written.items():
        assert 0 < figures["kl_to_source"] < (0.001 if name == "int8" else 0.05), name
        forecast = BitsAndBytes(**FORMATS[name]).forecast(work).size
        assert forecast is not None and forecast.bytes == pytest.approx(figures["size_bytes"], rel=0.01), name
        assert figures["size_bytes"] == weight_bytes(out) and parameter_count(out) == source.parameters, name
        assert weight_form(out) == "bitsandbytes" and find_fault(out) is None, name
    assert folder_format(written["fp4"][0]) == "fp4 bitsandbytes safetensors"
    assert folder_format(written["int8"][0]) == "int8 bitsandbytes safetensors"


STOCK = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        logits = model(ids).logits[0].float()
    answer = model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, attention_mask=torch.ones_like(ids))
    print(json.dumps([str(model.dtype), logits.log_softmax(-1).tolist(), tokenizer.decode(answer[0, 37:])]))
assert "tasks" not in sys.modules
"""


@needed
def test_a_process_without_our_code_loads_generates_and_agrees(
    written: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    folders = [str(out) for out, _ in written.values()]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"TQDM_DISABLE": "1"}
    # With PYTHONSAFEPATH nothing of the working folder can be imported.
    done = subprocess.run(
        [sys.executable, "-c", STOCK, *folders], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=environment | {"PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for name, line in zip(written, done.stdout.splitlines(), strict=True):
        dtype, stock, text = json.loads(line)
        assert dtype == "torch.bfloat16" and text, name
        with torch.inference_mode():
            ours = load_model(written[name][0])(torch.arange(3, 40)[None]).logits[0].log_softmax(-1)
        theirs = torch.tensor(stock)
        kl = float((ours.exp() * (ours - theirs)).sum(-1).mean())
        assert kl < 1e-3, f"{name}: the arithmetic in bfloat16 is all that differs"


@needed
def test_levels_are_unpacked_and_the_integers_of_llm_int8_stay(written: dict[str, tuple[Path, Any]]) -> None:
    from bitsandbytes.nn import Linear8bitLt

    levels, integers = load_model(written["nf4"][0], "bfloat16"), load_model(written["int8"][0])
    assert all(type(levels.get_submodule(name)) is torch.nn.Linear for name in input_sizes(levels))
    assert levels.dtype == torch.bfloat16 and not hasattr(levels.config, "quantization_config")
    assert levels.float().dtype == torch.float32, "transformers refuses to cast a model that it thinks quantized"
    layer = integers.get_submodule(NAME)
    assert isinstance(layer, Linear8bitLt)
    inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    inputs[:, 7] *= 20  # an outlier's channel stays out of the integers
    with torch.inference_mode():
        found = layer(inputs)
    weight = layer.weight.float() * layer.state.SCB[:, None] / 127
    exact = inputs @ weight.T
    assert 0 < float((found - exact).norm() / exact.norm()) < 0.01


@needed
@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_answers_do_not_depend_on_the_batch(written: dict[str, tuple[Path, Any]], name: str) -> None:
    """LLM.int8 by itself mixes the rows of a batch, so each prompt is read alone."""
    prompts = ["<|im_start|>user\nHow much is postage?<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>user\nReturns"]
    found = []
    for batch, reuse in ((1, False), (2, True)):
        with TRANSFORMERS.open(written[name][0], Opening(1, batch_size=batch, reuse=reuse)) as session:
            found.append([answer.text for answer in session.answer(prompts, 6)])
            assert (session.batch_size == 1) == (name == "int8" or batch == 1)
            assert ("each alone" in session.reading) == (name == "int8")
    assert found[0] == found[1] and all(found[0])


@needed
@pytest.mark.parametrize("format", ["nf4", "fp4", "int8"])
def test_masked_weights_stay_zero(tmp_path: Path, format: str) -> None:
    model = build_model(num_hidden_layers=1)
    with torch.no_grad():
        weight = model.get_submodule(NAME).weight
        weight[:, ::2] = 0.0
        weight[3:9] = 0.0  # rows and blocks without a weight
    source = save_tiny(tmp_path / "source", model)
    write_masks(source, [f"{NAME}.weight"])
    out, run = empty_run(tmp_path)
    figures = BitsAndBytes(format=format)(inputs_of(source), out, run)
    after = load_model(out).get_submodule(NAME).weight
    assert not after[weight == 0].any() and after[weight != 0].any() and float(figures["masked_sparsity"]) > 0.5


@needed
def test_a_gguf_file_and_gpt_2_s_matrices_become_folders(tmp_path: Path) -> None:
    write_gguf(save_tiny(tmp_path / "source", build_model(num_hidden_layers=1)), tmp_path / "model.gguf", "f16")
    for name, source in {"gguf": tmp_path / "model.gguf", "gpt2": save_family(tmp_path / "gpt2", "gpt2")}.items():
        before = load_model(source)
        out, run = empty_run(tmp_path, name)
        BitsAndBytes()(inputs_of(source), out, run)
        ids = torch.arange(3, 40)[None]
        with torch.inference_mode():
            ours, theirs = (model(ids).logits.log_softmax(-1) for model in (load_model(out), before))
        assert 0 < float((theirs.exp() * (theirs - ours)).sum(-1).mean()) < 0.1, name


def without_scales(stored: dict[str, torch.Tensor]) -> None:
    for name in [name for name in stored if NAME in name and name != f"{NAME}.weight"]:
        del stored[name]


def without_levels(stored: dict[str, torch.Tensor]) -> None:
    stored[f"{NAME}.weight"] = stored[f"{NAME}.weight"][:100].clone()


def with_nan(stored: dict[str, torch.Tensor]) -> None:
    stored[f"{NAME}.SCB"][3] = float("nan")


@needed
@pytest.mark.parametrize(
    ("name", "change", "config", "fault"),
    [
        ("nf4", without_scales, {}, "have no scales in the files"),
        ("int8", without_scales, {}, "have no scales in the files"),
        ("int8", with_nan, {}, "have scales that are not finite"),
        ("nf4", without_levels, {}, "have another shape in the files"),
        ("nf4", dict, {"intermediate_size": 192}, "have another shape in the files"),
    ],
)
def test_a_folder_with_broken_layers_is_refused(
    written: dict[str, tuple[Path, Any]], tmp_path: Path, name: str, change: Any, config: dict[str, int], fault: str
) -> None:
    """Transformers itself loads it, without a word."""
    stored = load_file(written[name][0] / "model.safetensors")
    change(stored)
    for file in written[name][0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    settings = json.loads((tmp_path / "config.json").read_text()) | config
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=rf"quantized by bitsandbytes, but \d+ layers {fault} \(.*{NAME}"):
        load_model(tmp_path)
    assert fault in str(find_fault(tmp_path))


@needed
def test_levels_in_another_storage_type_are_read_and_counted(trained: Inputs, tmp_path: Path) -> None:
    """As FSDP needs them: two bytes of levels in a number that calls itself bfloat16."""
    from transformers import BitsAndBytesConfig

    source = load_model(trained.one("model").path)
    folders = []
    for storage in ("uint8", "bfloat16"):
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage=storage)
        made = type(source).from_pretrained(
            None, config=source.config, state_dict=source.state_dict(), quantization_config=config, dtype=torch.bfloat16
        )
        made.save_pretrained(tmp_path / storage)
        folders.append(tmp_path / storage)
    plain, stored = (load_model(folder) for folder in folders)
    assert torch.equal(plain.get_submodule(NAME).weight, stored.get_submodule(NAME).weight)
    assert parameter_count(folders[0]) == parameter_count(folders[1]) == parameter_count(trained.one("model").path)


@needed
def test_nothing_copies_it_as_dense_weights(written: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no other format holds their levels"):
        dense_copy(written["int8"][0], tmp_path / "copy")
    out, run = empty_run(tmp_path)
    with pytest.raises(TechniqueError, match="quantized already"):
        BitsAndBytes()(inputs_of(written["nf4"][0]), out, run)


@pytest.mark.parametrize("settings", [{"format": "int8"}, {"dtype": "float16"}])
def test_weights_beyond_float16_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = build_model(num_hidden_layers=1)
    with torch.no_grad():
        model.model.norm.weight[0] = 1e5
    out, run = empty_run(tmp_path)
    with pytest.raises(TechniqueError, match=rf"{next(iter(settings))}: float16 ends at 65504.*model.norm.weight"):
        BitsAndBytes(**settings)(inputs_of(save_tiny(tmp_path / "source", model)), out, run)
    assert not list(out.iterdir())


def test_the_plan_refuses_widths_that_a_4_bit_kernel_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "_is_installed", lambda package: True)
    four, eight = (steps(small=(STEP, "models.m", {"format": name})) for name in ("fp4", "int8"))
    (message,) = problems(tmp_path, "llama", four, intermediate_size=96)
    assert "steps.small.format: for models.m, the groups of fp4 have 64 weights" in message and "(in=96)" in message
    (message,) = problems(tmp_path, "llama", four, num_key_value_heads=1)
    assert "keys and values of 16 channels" in message and "fix: format=int8" in message
    assert not problems(tmp_path, "llama", eight, intermediate_size=100, num_key_value_heads=1)
    assert "experts" in problems(tmp_path, "mixtral", eight)[0]


def test_outputs_that_only_the_model_shows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TechniqueError, match=r"32 outputs together.*fused \(out=80\)"):
        BitsAndBytes().check_shapes({"fused": (64, 80)})
    BitsAndBytes(format="int8").check_shapes({"fused": (63, 80)})


@pytest.mark.parametrize(
    ("technique", "inputs"),
    [
        ("export.gguf.Gguf", {}),
        ("export.onnx.Onnx", {}),
        ("prune.magnitude.Magnitude", {}),
        ("distill.sft.SFT", {"data": "corpus"}),
        ("quantize.rtn.RTN", {}),
    ],
)
def test_what_needs_other_weights_refuses_it_in_the_plan(
    tmp_path: Path, technique: str, inputs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "_is_installed", lambda package: True)
    chain = steps(small=(STEP, "models.m", {}), after=(technique, "small", {}))
    chain["after"]["inputs"] |= inputs
    (message,) = problems(tmp_path, "llama", chain)
    assert "steps.after.inputs.model: small, whose weights are bitsandbytes" in message
    assert "fix: steps.after.inputs.model=models.m" in message


def test_the_plan_refuses_a_folder_of_the_user_s_too(tmp_path: Path) -> None:
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    for technique in ("export.gguf.Gguf", "prune.magnitude.Magnitude"):
        chain = steps(after=(technique, "models.m", {}))
        (message,) = problems(tmp_path, "llama", chain, quantization_config=quantization)
        assert "models.m, whose weights are quantized already (bitsandbytes)" in message
        assert "fix: use the model before its quantization" in message


def test_it_is_measured_in_transformers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_is_installed", lambda package: True)

    def measured(technique: str, **settings: Any) -> list[str]:
        chain = steps(small=(STEP, "models.m", {}), measured=(f"evaluate.{technique}", "small", settings))
        chain["measured"]["inputs"] = {"baseline": "small", "candidates": ["models.m"], "data": "corpus"}
        return problems(tmp_path, "llama", chain)

    for technique in ("generation.Generation", "perplexity.Perplexity", "divergence.Divergence"):
        assert not measured(technique), technique
    (message,) = measured("runtime.Runtime", engines=["llama.cpp"])
    assert "small, whose weights are bitsandbytes: no engine runs them" in message


def test_timings_and_cards_name_what_the_folder_needs(tmp_path: Path) -> None:
    config = save_tiny(tmp_path, build_model(num_hidden_layers=1)) / "config.json"
    quantization = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": quantization}))
    model = inspect_model(Artifact("small", Kind.MODEL, tmp_path), "candidate")
    assert model.format == "int8 bitsandbytes safetensors"
    probe, note = make_probe(model, "auto", Prompt([]), tmp_path)
    assert probe is not None and probe.engine == "transformers"
    assert note.startswith("small: timed in transformers: llama.cpp does not read int8 bitsandbytes safetensors;")
    row: Any = SimpleNamespace(measured=SimpleNamespace(format=model.format, kind="model"))
    assert "in transformers with bitsandbytes" in use(row)


def test_a_model_trained_on_another_grid_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_is_installed", lambda package: True)
    chain = steps(tuned=("distill.sft.SFT", "models.m", {"qat": {"grid": "int4_symmetric"}}), small=(STEP, "tuned", {}))
    chain["tuned"]["inputs"]["data"] = "corpus"
    (message,) = problems(tmp_path, "llama", chain)
    assert "steps.small" in message and "its rounding is not the one that tuned was trained with" in message
    chain["small"]["format"] = "int8"
    assert not problems(tmp_path, "llama", chain)


def test_a_missing_extra_is_one_error_of_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_is_installed", lambda package: package != "bitsandbytes")
    (message,) = problems(tmp_path, "llama", steps(small=(STEP, "models.m", {})))
    assert message.startswith("steps.small: bitsandbytes is not installed")
    assert "the extra `bitsandbytes`" in message and "--editable '.[bitsandbytes]'" in message


def test_a_folder_names_the_extra_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.quantizers import quantizer_bnb_4bit

    monkeypatch.setattr(extras, "_is_installed", lambda package: False)
    monkeypatch.setattr(quantizer_bnb_4bit, "is_bitsandbytes_available", lambda: False)
    config = save_tiny(tmp_path, build_model(num_hidden_layers=1)) / "config.json"
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": quantization}))
    with pytest.raises(ModelError, match=r"bitsandbytes is not installed(?s:.*)--editable '\.\[bitsandbytes\]'"):
        load_model(tmp_path)
    assert "not installed" in str(find_fault(tmp_path))


CHANGES = {
    "format": Change("int8"),
    "double_quantization": Change(False),
    "dtype": Change("float16"),
    "check_rows": Change(1),  # only the figures know it, and the next one
    "max_tokens": Change(16),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    yield Case(folder, one_layer_inputs(folder), {"check_rows": 2, "max_tokens": 32})
