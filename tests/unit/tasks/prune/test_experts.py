"""Expert pruning: experts that are really gone, the least important ones, in a smaller mixture that plain transformers and llama.cpp run."""

import csv
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.planning.sizes import size_of
from tasks.export.gguf import Gguf
from tasks.prune.experts import Experts
from tasks.prune.selection.mixtures import find_mixtures
from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Rows, Workload
from tasks.shared.gguf.writer import write_gguf
from tasks.shared.model.loading import load_model
from tasks.shared.technique import Compute
from tests.families import FAMILIES, save_family
from tests.optional_packages import needs_extra
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, empty_run, inputs_of, write_corpus

MIXTURES = ("mixtral", "qwen3_moe")
IDS = torch.arange(3, 40)[None]


def run(folder: Path, source: Path, **settings: Any) -> tuple[Path, Any]:
    out, step = empty_run(folder, f"step{len(list(folder.iterdir()))}")
    technique = Experts(**({"calibration_rows": 8, "max_tokens": 64} | settings))
    return out, technique(inputs_of(source, write_corpus(folder / "corpus")), out, step)


def shunning(name: str, shunned: int = 1, **changes: Any) -> Any:
    """A family's model whose last experts, in every layer, are taken by no token, in bfloat16's numbers.

    The first channel is large for every token; of what reads it, only these experts' rows of the router count.
    """
    model = FAMILIES[name].build(**changes)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 2.0
        for index, layer in enumerate(model.model.layers):
            layer.input_layernorm.weight[0], layer.post_attention_layernorm.weight[0] = 0.0, 1.0
            if index in find_mixtures(model):
                layer.mlp.gate.weight[:, 0] = 0.0
                layer.mlp.gate.weight[-shunned:] = 0.0
                layer.mlp.gate.weight[-shunned:, 0] = -1000.0
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().float()
    return model


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def table(out: Path) -> list[dict[str, str]]:
    with (out / "experts.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(
    ("name", "changes"),
    [("mixtral", {}), ("qwen3_moe", {}), ("qwen3_moe", {"norm_topk_prob": False}), ("qwen3_moe", {"mlp_only_layers": [0]})],
)  # fmt: skip
def test_an_expert_that_no_token_takes_goes_first_and_the_model_stays_as_it_was(
    name: str, changes: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoModelForCausalLM

    model = shunning(name, **changes)
    source, layers = save_family(tmp_path / "source", name, model), sorted(find_mixtures(model))
    for criterion in ("reap", "total", "frequency"):
        with caplog.at_level(logging.WARNING):
            out, metrics = run(tmp_path, source, criterion=criterion)
        small, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
        assert not any(info.values()), info
        torch.testing.assert_close(logits(small.eval()), logits(model), rtol=1e-4, atol=1e-4)
        assert (metrics["experts_before"], metrics["experts"], metrics["experts_per_token"]) == (4, 3, 2)
        assert metrics["parameters"] == small.num_parameters() < metrics["parameters_before"] == model.num_parameters()
        assert metrics["unreached_experts"] == len(layers) and metrics["rerouted_share"] == 0
        assert metrics["importance_kept_min"] == 1
        assert f"no calibration token took {len(layers)} of {4 * len(layers)} experts" in caplog.text
        assert "0 of them stay" in caplog.text
        selection = json.loads((out / "selection.json").read_text("utf-8"))["layers"]
        assert selection == [{"layer": layer, "experts": [0, 1, 2]} for layer in layers]
        gone = [line for line in table(out) if line["kept"] == "0"]
        assert [(line["layer"], line["expert"], line["tokens"]) for line in gone] == [(str(each), "3", "0") for each in layers]  # fmt: skip


def test_reap_removes_an_expert_that_many_tokens_take_and_that_gives_nothing(tmp_path: Path) -> None:
    """Frequency keeps it, and drops another; both are of the same tokens."""
    model = FAMILIES["mixtral"].build(num_hidden_layers=1)
    source = save_family(tmp_path / "source", "mixtral", model)
    out, _ = run(tmp_path, source, criterion="frequency")
    tokens = [int(line["tokens"]) for line in table(out)]
    most, least = max(range(4), key=tokens.__getitem__), min(range(4), key=tokens.__getitem__)
    with torch.no_grad():
        find_mixtures(model)[0].down_proj[most] *= 1e-3
    source = save_family(tmp_path / "changed", "mixtral", model)
    dropped = {}
    for criterion in ("reap", "total", "frequency"):
        out, metrics = run(tmp_path, source, criterion=criterion)
        (line,) = (line for line in table(out) if line["kept"] == "0")
        dropped[criterion] = int(line["expert"])
        assert [int(line["tokens"]) for line in table(out)] == tokens, "the first layer's router sees the same"
        assert metrics["rerouted_share"] == pytest.approx(tokens[dropped[criterion]] / sum(tokens))
    assert dropped == {"reap": most, "total": most, "frequency": least} and most != least


def test_experts_beyond_reach_that_stay_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = shunning("mixtral", shunned=5, num_hidden_layers=1, num_local_experts=8)
    with caplog.at_level(logging.WARNING):
        out, metrics = run(tmp_path, save_family(tmp_path / "source", "mixtral", model), kept=4)
    assert (
        metrics["unreached_experts"] == 5 and "took 5 of 8 experts" in caplog.text and "1 of them stay" in caplog.text
    )
    assert [line["expert"] for line in table(out) if line["kept"] == "1"] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("settings", [{"ratio": 0}, {"kept": 4}])
def test_with_all_experts_it_is_the_source_in_bfloat16(settings: dict[str, Any], tmp_path: Path) -> None:
    model = FAMILIES["qwen3_moe"].build()
    source = save_family(tmp_path / "source", "qwen3_moe", model)
    out, metrics = run(tmp_path, source, **settings)
    made, whole = load_model(out).state_dict(), model.state_dict()
    assert made.keys() == whole.keys()
    assert all(torch.equal(weight, whole[name].bfloat16().float()) for name, weight in made.items())
    assert metrics["parameters"] == metrics["parameters_before"] and metrics["rerouted_share"] == 0
    configs = [json.loads((folder / "config.json").read_text("utf-8")) | {"dtype": ""} for folder in (source, out)]
    assert configs[0] == configs[1]


ALONE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    words = AutoTokenizer.from_pretrained(folder)("Can I return it?", return_tensors="pt", add_special_tokens=False)
    written = model.generate(**words, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert written.shape[1] == words["input_ids"].shape[1] + 6 and model.config.num_experts == 3
    stacked = [weight for name, weight in model.named_parameters() if "experts." in name or name.endswith("mlp.gate.weight")]
    assert len(stacked) == 6 and all(len(weight) == 3 for weight in stacked)
    model.save_pretrained(folder + "-again")
    again = AutoModelForCausalLM.from_pretrained(folder + "-again").state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())
assert not [name for name in sys.modules if name.split(".")[0] in ("tasks", "flows", "tests")]
print("fine")
"""


def test_plain_transformers_loads_generates_and_saves_it_in_a_process_without_this_project(tmp_path: Path) -> None:
    outs = [str(run(tmp_path, save_family(tmp_path / name, name))[0]) for name in MIXTURES]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-c", ALONE, *outs]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "fine\n", done.stderr


@needs_extra(Gguf)
@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("kept", [2, 3])
def test_llama_cpp_runs_it_and_agrees(name: str, kept: int, tmp_path: Path) -> None:
    """Down to as many experts as a token takes; the step compares llama.cpp's distributions with those of transformers."""
    source, _ = run(tmp_path, save_family(tmp_path / "source", name), kept=kept)
    out, step = empty_run(tmp_path, "export")
    exported = Gguf(scheme="f16", embedding="same", prompts=2, tokens=2, max_kl=1e-4, min_top1=0.5)
    metrics = exported(inputs_of(source, write_corpus(tmp_path / "corpus")), out, step)
    assert float(metrics["kl_to_source"]) < 1e-4 and int(metrics["positions"]) > 1


@pytest.mark.parametrize(
    ("name", "settings", "changes", "words"),
    [
        ("llama", {}, {}, "no experts: it is a dense model"),
        ("mixtral", {"kept": 1}, {}, r"kept=1 of 4 experts, and each token takes 2; wanted: at least 2"),
        ("mixtral", {"ratio": 0.75}, {}, r"ratio=0\.75 leaves 1 of 4 experts, and each token takes 2"),
        ("mixtral", {"ratio": 0.95}, {}, r"ratio=0\.95 leaves 0 of 4 experts"),
        ("mixtral", {"ratio": 0.05}, {}, r"ratio=0\.05 of 4 experts removes none"),
        ("mixtral", {"kept": 5}, {}, "kept=5 of 4"),
        ("mixtral", {"kept": 1}, {"num_experts_per_tok": 1}, "at least 2 in every layer"),
        ("mixtral", {}, {"num_experts_per_tok": 8}, "4 experts, and each token takes 8"),
        ("mixtral", {}, {"num_local_experts": 1}, "no experts"),
        ("mixtral", {}, {"num_local_experts": "four"}, "no experts"),
        ("mixtral", {}, {"n_group": 2}, "first chooses among 2 groups of experts"),
        ("mixtral", {}, {"model_type": "jamba"}, "its router is none of those"),
        ("mixtral", {}, {"text_config": {}}, "several parts"),
    ],
)
def test_the_plan_refuses_what_cannot_be_with_the_numbers(
    name: str, settings: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    config = (build_model() if name == "llama" else FAMILIES[name].build()).config.to_dict() | changes
    technique = Experts(**settings)
    refusal = technique.refuses(config)
    assert refusal is not None and refusal.instead and re.search(words, refusal.reason), refusal
    if settings:
        assert technique.changed_config(config) == config, "the plan goes on with the numbers that are there"


def test_a_ratio_that_an_error_names_leaves_enough() -> None:
    refused = 0
    for total in (3, 7, 60, 128, 256, 500):
        for per_token in range(2, min(total, 40)):
            try:
                Experts(ratio=0.9).count(total, per_token)
            except TechniqueError as error:
                refused += 1
                ratio = float(error.fix.removeprefix("ratio=").removesuffix(" or less"))
                assert Experts(ratio=ratio).count(total, per_token) >= per_token, (total, per_token)
    assert refused > 30


def test_the_step_refuses_a_dense_model_and_quantized_weights(tmp_path: Path) -> None:
    dense = save_family(tmp_path / "dense", "llama")
    with pytest.raises(TechniqueError, match="a Llama model: no experts"):
        run(tmp_path, dense)
    source = save_family(tmp_path / "source", "mixtral")
    config = json.loads((source / "config.json").read_text("utf-8"))
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(TechniqueError, match="quantized already"):
        run(tmp_path, source)


def test_outputs_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = FAMILIES["mixtral"].build()
    with torch.no_grad():
        find_mixtures(model)[1].gate_up_proj *= 1e20
    with pytest.raises(TechniqueError, match="layer 1: importance is not finite in 1 of 2 layers"):
        run(tmp_path, save_family(tmp_path / "source", "mixtral", model))


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("settings", [{"ratio": 0.5}, {"kept": 3}])
def test_the_forecast_is_of_the_model_that_is_made(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    source = save_family(tmp_path / "source", name)
    write_gguf(source, tmp_path / "model.gguf", "f16")
    _, metrics = run(tmp_path, source, criterion="random", **settings)
    technique = Experts(criterion="random", **settings)
    for path in (source, tmp_path / "model.gguf"):
        made = technique.forecast(Workload({"model": (size_of(path),)}, Rows(), Compute(), 1e11)).size
        assert made is not None and made.parameters == pytest.approx(metrics["parameters"], rel=0.02)
        assert made.shape.experts == metrics["experts"]
    planned = technique.changed_config(json.loads((source / "config.json").read_text("utf-8")))
    assert {planned.get(name, 0) for name in ("num_local_experts", "num_experts")} >= {metrics["experts"]}


def test_the_forecast_counts_the_passes_of_each_criterion() -> None:
    assert [Experts(criterion=name).passes for name in ("random", "frequency", "reap", "total")] == [0, 1, 2, 2]  # type: ignore[arg-type]


CHANGES = {
    "ratio": Change(0.25),
    "kept": Change(3),
    "criterion": Change("random"),
    "calibration_rows": Change(1),
    "max_tokens": Change(8),
    "batch_size": Change(1),  # padding moves the last bits of every sum, and with them perhaps an expert
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    model = FAMILIES["mixtral"].build(num_hidden_layers=1, num_local_experts=8)
    inputs = inputs_of(save_family(folder / "model", "mixtral", model), write_corpus(folder / "corpus"))
    yield Case(folder, inputs, {"ratio": 0.5, "calibration_rows": 8, "max_tokens": 64, "batch_size": 8})
