"""Every technique that takes a model, crossed with every family of models: it works and reloads in plain transformers, or the plan refuses it.

The families are in tests/families.py, the techniques in tests/family_table.py.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pytest

from tasks.evaluate.models_under_test import isolated_runs
from tasks.export import graph_gate
from tasks.prune.depth import Depth
from tasks.prune.heads import Heads
from tasks.prune.hidden import Hidden
from tasks.prune.weight_selection import WeightSelection
from tasks.prune.width import Width
from tasks.shared import isolation
from tasks.shared.errors import ModelError, TechniqueError
from tasks.shared.formats.rows import read_rows, write_rows
from tasks.shared.formats.soft_targets import SoftTargets, row_key
from tasks.shared.gguf.support import BIASES
from tasks.shared.gguf.writer import write_gguf
from tasks.shared.mixtures import expert_count
from tasks.shared.model.activations import collect
from tasks.shared.model.encoding import encode
from tasks.shared.model.graph_files import graph_files
from tasks.shared.model.grids import find_levels
from tasks.shared.model.head import check_head, output_head
from tasks.shared.model.layout import decoder_layers, find_layout, part_of
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.model.masks import read_masks, write_masks
from tasks.shared.model.prunable import matrices_of
from tasks.shared.model.weights import read_gguf
from tasks.shared.technique import Artifact, Inputs, Kind
from tests.families import FAMILIES, save_family, silence_channels
from tests.family_table import CORPUS, PAGE, ROWS, Row, plan_answer, renewed, techniques
from tests.optional_packages import missing_extra
from tests.tiny_llama import empty_run, inputs_of, write_corpus

UNREAD_GGUF = ("mixtral", "olmo2", "granite", "smollm3", "gpt_neox")
"""Families whose GGUF files transformers refuses to read."""

LENGTH = 40
"""Tokens of a probe: more than the shortest sliding window."""
LAST_PROJECTIONS = {"o_proj", "down_proj", "dense", "dense_4h_to_h", "c_proj"}
MASKED = "llama"
"""Family whose model has masks: half of the weights of its layers' matrices are zero."""
DENSE = [name for name in FAMILIES if name not in ("mixtral", "qwen3_moe")]

pytestmark = pytest.mark.filterwarnings(
    "ignore:The following (rank|alpha)_pattern keys did not match"
)  # peft, of experts


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of a family's model, made once; seed 1 is the teacher's."""

    @cache
    def made(name: str, seed: int = 0) -> Path:
        folder = tmp_path_factory.mktemp(name) / "model"
        return save_masked(folder) if (name, seed) == (MASKED, 0) else save_family(folder, name, seed=seed)

    return made


def save_masked(folder: Path) -> Path:
    """Write the family's model with half of the weights of each matrix at zero, and its record of masks."""
    import torch

    model = FAMILIES[MASKED].build()
    names = [
        f"{name}.weight"
        for name, part in decoder_layers(model).named_modules(prefix="model.layers")
        if isinstance(part, torch.nn.Linear)
    ]
    with torch.no_grad():
        for name in names:
            weight = model.get_parameter(name)
            weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5] = 0.0
    save_family(folder, MASKED, model)
    write_masks(folder, names)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of a few rows with all three splits."""
    folder = write_corpus(tmp_path_factory.mktemp("corpus") / "corpus", 8)
    rows = read_rows(folder / "calibration.jsonl")
    write_rows(folder / "calibration.jsonl", rows[:2])
    write_rows(
        folder / "train.jsonl",
        [
            row.with_answer(row.messages[-1].model_copy(update={"reasoning": "It is within 45 days."}))
            for row in rows[2:6]
        ],
    )
    write_rows(folder / "test.jsonl", rows[6:])
    return folder


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate models here: a process each would take most of the time."""
    for module in (isolated_runs, graph_gate):
        monkeypatch.setattr(module, "run_isolated", lambda work, *arguments: isolation._guarded(work, arguments))


def inputs_at(row: Row, name: str, models: Callable[..., Path], corpus: Path) -> Inputs:
    places = {"models.student": (Kind.MODEL, models(name)), "models.teacher": (Kind.MODEL, models(name, 1)), CORPUS: (Kind.CORPUS, corpus)}  # fmt: skip
    return Inputs(
        {port: (Artifact(source.removeprefix("models."), *places[source]),) for port, source in row.ports().items()}
    )


def probe(rows: int = 512) -> Any:
    """Token ids without special ones, (1, LENGTH)."""
    import torch

    return torch.randint(3, rows, (1, LENGTH), generator=torch.Generator().manual_seed(7))


def logits_of(model: Any, ids: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].float()


def rounded(model: Any) -> Any:
    """The model with weights as `save_model` stores them, in bfloat16; buffers, such as rotary frequencies, are not stored."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


@lru_cache(maxsize=1)
def source_model(source: Path) -> Any:
    """A family's model, loaded once for all checks, which change nothing in it."""
    return load_model(source)


@lru_cache(maxsize=1)
def rounded_source(source: Path) -> Any:
    return rounded(load_model(source))


def reloaded(folder: Path) -> Any:
    """The model as plain transformers loads it, in float32, with every weight found and none left over."""
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), f"{folder.name}: {info}"
    return model.eval()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.label)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_technique_works_or_the_plan_says_why_not(
    name: str, row: Row, models: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    answer, inputs = plan_answer(row, models(name)), inputs_at(row, name, models, corpus)
    out, run = empty_run(tmp_path)
    if answer:
        family, _, why = answer.partition(" does not take it: ")
        assert why and row.option in family and "fix: " in why
        with pytest.raises(TechniqueError) as caught:
            row.technique(inputs, out, run)
        assert why.splitlines()[0] in str(caught.value), "the technique by itself says what the plan says"
        assert not list(out.iterdir())
        return
    if missing := missing_extra(row.technique):
        pytest.skip(f"extra {row.technique.spec.extra}: {missing}")
    metrics = row.technique(inputs, out, run)
    check = CHECKS.get(row.option, check_trained if row.option.startswith("distill/") else None)
    assert check is not None, f"{row.option} is not checked"
    check(models(name), out, metrics, inputs)
    if name == MASKED and row.technique.spec.gives is not None:
        check_masks(row, models(name), out, metrics)


def check_masks(row: Row, source: Path, out: Path, metrics: Any) -> None:
    """The weights that pruning masked are still zero: in the record, or where integers were packed, in the weights."""
    if row.option.startswith("export/"):
        return  # a file of an engine; tests/unit/tasks/shared/gguf/test_ggml.py knows which types have a zero
    if row.technique.spec.gives in ("packed", "bitsandbytes"):
        before, after = source_model(source), load_model(out)
        logits_of(after, probe())  # unpacks
        for name in masks_of(source).tensors:
            assert not after.get_parameter(name)[before.get_parameter(name) == 0].any(), name
        return
    masks = read_masks(out)
    assert masks is not None, (
        f"{row.label} drops its model's masks: call carry_masks (tasks/shared/model/masks.py) once the model is written"
    )
    assert masks.sparsity > 0.45 and "sparsity" in " ".join(metrics)


def masks_of(folder: Path) -> Any:
    masks = read_masks(folder)
    assert masks is not None
    return masks


def check_masked(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    """Half of the weights of every matrix in the layers are zero; embedding and head are the source's."""
    model, before = reloaded(out), rounded_source(source)
    assert metrics["sparsity"] == masks_of(out).sparsity >= 0.5
    assert logits_of(model, probe()).isfinite().all()
    for name, weight in model.named_parameters():
        if name in masks_of(out).tensors:
            assert int((weight == 0).sum()) >= weight.numel() // 2, name
        elif weight.dim() > 1:
            assert weight.equal(before.get_parameter(name)), f"{name} is outside of the layers' linear ones"


def check_reduced(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    """Every matrix in the layers lost directions of its output; all else is the source's."""
    import torch

    model, before = reloaded(out), rounded_source(source)
    names = {f"{name}.weight" for name in matrices_of(model)}
    for name, weight in model.named_parameters():
        was = before.get_parameter(name)
        assert torch.equal(weight, was) != (name in names), name
        if name in names and name not in (masks_of(out).tensors if read_masks(out) else {}):
            values, whole = (torch.linalg.svdvals(each.detach()) for each in (weight, was))
            assert values[-1] / values[0] < 0.2 * whole[-1] / whole[0], name
    assert metrics["reduced_matrices"] == len(names) and metrics["factored_parameters"] < metrics["parameters"]
    assert logits_of(model, probe()).isfinite().all()


def check_shared(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    """Both layers have the first one's weights; each keeps the window and positions of its place."""
    import torch

    model, before = reloaded(out), rounded_source(source)
    first, second = decoder_layers(model)
    for name, weight in decoder_layers(before)[0].named_parameters():
        assert torch.equal(first.get_parameter(name), weight) and torch.equal(second.get_parameter(name), weight), name
    assert metrics["distinct_layers"] == 1 and metrics["distinct_parameters"] < metrics["parameters"]
    assert model.config.to_dict().get("layer_types") == before.config.to_dict().get("layer_types")
    assert logits_of(model, probe()).isfinite().all()
    check_cache(model)


def check_depth(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    model = reloaded(out)
    assert len(decoder_layers(model)) == metrics["layers"] == 1
    assert logits_of(model, probe()).isfinite().all()


def check_vocabulary(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    """The same logits for the same tokens, which have other ids; ids in both configurations name the same tokens."""
    import torch

    before, after = rounded_source(source), reloaded(out)
    old_ids = torch.tensor(json.loads((out / "vocabulary.json").read_text("utf-8"))["old_ids"])
    assert metrics["parameters"] < metrics["parameters_before"] and len(old_ids) < 512
    places = probe(len(old_ids))
    torch.testing.assert_close(
        logits_of(after, places), logits_of(before, old_ids[places])[:, old_ids], rtol=1e-4, atol=1e-4
    )
    whole, small = load_tokenizer(source), load_tokenizer(out)
    for settings, given in ((after.config, before.config), (after.generation_config, before.generation_config)):
        for kind in ("eos_token_id", "pad_token_id", "bos_token_id"):
            new, old = getattr(settings, kind), getattr(given, kind)
            assert small.convert_ids_to_tokens(new) == whole.convert_ids_to_tokens(old)


def check_selection(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    model = reloaded(out)
    assert metrics["parameters"] == model.num_parameters() < metrics["parameters_before"]
    assert logits_of(model, probe()).isfinite().all()


def check_narrowed(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    """Half of the units are gone from every layer; the rest of the weights is as it was, and the cache holds what remains."""
    import torch

    model, before = reloaded(out), rounded_source(source)
    cut = {"heads": model.config.num_attention_heads, "neurons": model.config.intermediate_size}
    (axis,) = cut.keys() & metrics.keys()
    assert metrics[axis] == cut[axis] == metrics[f"{axis}_before"] / 2
    whole = dict(before.named_parameters())
    same = [name for name, weight in model.named_parameters() if weight.shape == whole[name].shape]
    assert all(torch.equal(dict(model.named_parameters())[name], whole[name]) for name in same)
    assert 0 < len(same) < len(whole)
    check_cache(model)


def check_experts(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    """Half of the experts are gone with their rows of the router, others in each layer; the rest of the weights is as it was."""
    import torch

    model, whole = reloaded(out), dict(rounded_source(source).named_parameters())
    chosen = {
        line["layer"]: line["experts"] for line in json.loads((out / "selection.json").read_text("utf-8"))["layers"]
    }
    assert metrics["experts"] == expert_count(model.config.to_dict()) == metrics["experts_before"] / 2
    for name, weight in model.named_parameters():
        before = whole[name]
        if weight.shape != before.shape:
            before = before[chosen[int(name.split(".")[2])]]
        assert torch.equal(weight, before), name
    assert sum(weight.shape != whole[name].shape for name, weight in model.named_parameters()) == 3 * len(chosen)
    assert logits_of(model, probe()).isfinite().all()
    check_cache(model)


def check_budget(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    """At least a fifth of the parameters are gone, as many as were counted before the model was made; the cache works."""
    model = reloaded(out)
    assert metrics["parameters"] == model.num_parameters() <= metrics["budget_parameters"]
    assert metrics["budget_parameters"] <= 0.8 * metrics["parameters_before"]
    with (out / "candidates.csv").open(encoding="utf-8", newline="") as stream:
        (chosen,) = (line for line in csv.DictReader(stream) if line["chosen"] == "1")
    assert int(chosen["parameters"]) == metrics["parameters"]
    assert len(decoder_layers(model)) == metrics["layers"] == int(chosen["layers"])
    check_cache(model)


def check_hidden(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    """Half of the channels are gone, the same ones in every block; heads keep their size, and the cache works."""
    import torch

    model, before = reloaded(out), rounded_source(source)
    assert metrics["hidden"] == model.config.hidden_size == metrics["hidden_before"] / 2
    kept = json.loads((out / "selection.json").read_text("utf-8"))["hidden"]
    layout = find_layout(model)
    for layer, whole in zip(decoder_layers(model), decoder_layers(before), strict=True):
        last, former = part_of(layer, layout.attention_out), part_of(whole, layout.attention_out)
        assert torch.equal(last.weight, former.weight[kept])
    assert logits_of(model, probe()).isfinite().all()
    check_cache(model)


def check_cache(model: Any) -> None:
    """Generation with a cache of keys and values gives what it gives without."""
    import torch

    ids = probe()
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cached, plain = (model.generate(ids, use_cache=use_cache, **settings) for use_cache in (True, False))
    assert torch.equal(cached, plain)


def check_compensated(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    """Half of the units are gone; of what is left, only biases of last projections differ, and new ones elsewhere are zero."""
    import torch

    model, before = reloaded(out), rounded_source(source)
    layout, whole = find_layout(model), dict(before.named_parameters())
    place = layout.feed_forward_out if "neurons" in metrics else layout.attention_out
    lasts = {f"{layout.layers}.{layer}.{place}.bias" for layer in range(len(decoder_layers(model)))}
    for name, weight in model.named_parameters():
        if name in lasts:
            assert bool((weight != whole[name] if name in whole else weight).any()), name
        elif name not in whole:
            assert name.endswith(".bias") and not weight.any(), name
        elif weight.shape == whole[name].shape:
            assert torch.equal(weight, whole[name]), name
    (axis,) = {"heads", "neurons"} & metrics.keys()
    assert metrics[axis] == metrics[f"{axis}_before"] / 2 and lasts <= dict(model.named_parameters()).keys()
    assert logits_of(model, probe()).isfinite().all()


def check_quantized(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    """Every linear layer but the head is packed, and the unpacked weights are close to the source's."""
    linear = check_packed(source, out, metrics, inputs)
    before, after = source_model(source), load_model(out)
    logits_of(after, probe())
    for name in linear:
        weight, unpacked = (model.get_submodule(name).weight for model in (before, after))
        assert 1e-3 < float((weight - unpacked).detach().norm() / weight.detach().norm()) < 0.3, name


def check_levels(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    """Every matrix in the layers is on the grid, and the outputs are nearer than by rounding; all else is the source's."""
    import torch

    model, before = reloaded(out), source_model(source)
    names = {f"{name}.weight" for name in matrices_of(model)}
    for name, weight in model.named_parameters():
        if name in names:
            assert find_levels(weight.detach().unflatten(-1, (-1, 32)), "q4_0") is not None, name
        else:
            assert torch.equal(weight, before.get_parameter(name)), name
    assert 0 < metrics["output_error"] <= metrics["rounding_error"]
    assert logits_of(model, probe()).isfinite().all()


def check_cast(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    assert logits_of(reloaded(out), probe()).allclose(logits_of(rounded_source(source), probe()), atol=1e-4)


def check_bitsandbytes(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    """Every matrix but embedding and head is quantized, and what transformers computes with the folder is close to the source."""
    kinds = (".weight.absmax", ".SCB")
    found = {name.removesuffix(kind) for name in stored(out) for kind in kinds if name.endswith(kind)}
    assert found == matrices_of(source_model(source)).keys() and len(found) >= 8
    assert 0 < float(metrics["kl_to_source"]) < 0.1
    before, after = (logits_of(model, probe()).log_softmax(-1) for model in (source_model(source), reloaded(out)))
    assert float((before.exp() * (before - after)).sum(-1).mean()) < 0.1


def check_packed(source: Path, out: Path, metrics: Any, inputs: Inputs) -> set[str]:
    """Every linear layer but the head is packed, and the model is close to its source: for weights that are scaled as well."""
    import torch

    before = source_model(source)
    linear = {name for name, part in before.named_modules() if isinstance(part, torch.nn.Linear)} - {"lm_head"}
    assert {name.removesuffix(".weight_scale") for name in stored(out) if name.endswith(".weight_scale")} == linear
    assert len(linear) >= 8
    assert 0 < float(metrics["kl_to_source"]) < 0.1
    reloaded(out)
    return linear


def stored(folder: Path) -> list[str]:
    from safetensors import safe_open

    found: list[str] = []
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            found += tensors.keys()
    return found


def check_gguf(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    """llama.cpp tokenizes as the source does, and gives its distributions: the limit is in the row's settings."""
    assert float(metrics["kl_to_source"]) < 1e-4 and int(metrics["positions"]) > 1


def check_mixed_gguf(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    """The file has the types that were chosen, and llama.cpp is as near to the source as the rounded model is."""
    with (out / "types.csv").open(encoding="utf-8", newline="") as stream:
        chosen = [line for line in csv.DictReader(stream) if line["chosen"] == "1"]
    wanted, found = Counter[str](), Counter[str]()
    for line in chosen:
        wanted[line["type"]] += int(line["bytes"])
    for tensor in read_gguf(out / "model.gguf").tensors:
        found[tensor.tensor_type.name.lower()] += int(tensor.n_bytes)
    assert set(wanted) == {"q5_0", "q8_0"} and wanted.items() <= found.items()
    assert metrics["tensor_bytes"] == wanted.total() <= metrics["budget_bytes"]
    assert 0 < float(metrics["kl_calibration"]) < 0.05 and float(metrics["kl_to_source"]) < 0.05


def check_graph(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    """The engine gives the source's distributions, as near as the row's settings ask; all matrices of integers are there."""
    assert int(metrics["positions"]) > 1 and graph_files(out) is not None
    assert (int(metrics["integer_matrices"]) >= 9) == (metrics["scheme"] == "int4")


def check_trained(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    import torch

    model, before = reloaded(out), rounded_source(source)
    after, logits = logits_of(before, probe()), logits_of(model, probe())
    assert logits.isfinite().all() and not torch.allclose(logits, after, atol=1e-3), "nothing was learned"
    assert settings_of(model) == settings_of(before), "training left its own settings in the configuration"


def settings_of(model: Any) -> dict[str, Any]:
    """A model's configuration without what saving changes."""
    found: dict[str, Any] = model.config.to_dict()
    return {
        name: value for name, value in found.items() if name not in ("dtype", "_name_or_path", "transformers_version")
    }


def check_targets(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    """The stored log-probabilities are those of the teacher's own logits."""
    import torch

    teacher = inputs.one("teacher").path
    model, targets = load_model(teacher), SoftTargets(out)
    for row in encode(read_rows(inputs.one("data").path / "train.jsonl"), load_tokenizer(teacher), 256)[:2]:
        ids, logs = targets.read(row_key(row["input_ids"], row["labels"]), 1.0)
        own = torch.log_softmax(logits_of(model, torch.tensor([row["input_ids"]])), dim=-1)
        counted = torch.tensor([label >= 0 for label in row["labels"][1:]])
        wanted = own[:-1][counted].gather(1, ids.long())
        torch.testing.assert_close(logs[:, :-1].float(), wanted, rtol=2e-3, atol=2e-3)


def check_scores(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    text = (out / "items.jsonl").read_text("utf-8")
    assert text and all(value == value for value in metrics.values()), "a figure is no number"  # noqa: PLR0124 - NaN
    assert {"student", "teacher"} <= {name.split(".")[0] for name in metrics}


def check_served(source: Path, out: Path, metrics: Any, inputs: Inputs) -> None:
    """The weights are the source's, bit by bit, and so are its masks."""
    assert logits_of(reloaded(out), probe()).equal(logits_of(reloaded(source), probe()))
    masks = read_masks(source)
    assert (masks is None) == (read_masks(out) is None) and metrics["packed_layers"] == 0


CHECKS: dict[str, Callable[..., Any]] = {
    "prune/magnitude": check_masked, "prune/wanda": check_masked, "prune/sparsegpt": check_masked,
    "prune/budget": check_budget, "prune/depth": check_depth, "prune/experts": check_experts, "prune/flap": check_compensated,
    "prune/heads": check_narrowed, "prune/width": check_narrowed,
    "prune/low_rank": check_reduced, "prune/layer_sharing": check_shared,
    "prune/hidden": check_hidden, "prune/vocabulary": check_vocabulary, "prune/weight_selection": check_selection, "quantize/rtn": check_quantized,
    "quantize/gptq": check_quantized, "quantize/fp8": check_quantized, "quantize/fp4": check_quantized, "quantize/awq": check_packed,
    "quantize/gptq_levels": check_levels, "quantize/autoround": check_quantized, "quantize/smoothquant": check_packed,
    "quantize/bitsandbytes": check_bitsandbytes, "quantize/cast": check_cast, "export/gguf": check_gguf,
    "export/mixed_gguf": check_mixed_gguf, "export/onnx": check_graph, "export/openvino": check_graph,
    "export/vllm": check_served,
    "logits/topk": check_targets, "evaluate/perplexity": check_scores,
    "evaluate/generation": check_scores,
}  # fmt: skip


@pytest.mark.parametrize("varied", [False, True], ids=["ordinary", "variant"])
@pytest.mark.parametrize("name", FAMILIES)
def test_without_a_layer_that_does_nothing_the_logits_stay(
    name: str, varied: bool, corpus: Path, tmp_path: Path
) -> None:
    """Both by depth and by weight selection; the layers' kinds, windows and positions have to move with them."""
    import torch

    family = FAMILIES[name]
    model = family.build(**(family.variant if varied else {}))
    with torch.no_grad():
        for weight, parameter in decoder_layers(model)[0].named_parameters():
            if LAST_PROJECTIONS & set(weight.split(".")):
                parameter.zero_()
    wanted = logits_of(rounded(model), probe())
    source = save_family(tmp_path / "model", name, model)
    techniques = {"depth": Depth(layers=(0,), calibration_rows=2), "selection": WeightSelection(take=(1,))}
    for label, technique in techniques.items():
        if name == "gpt2" and label == "selection":
            continue  # refused
        out, run = empty_run(tmp_path, label)
        technique(inputs_of(source, corpus), out, run)
        torch.testing.assert_close(logits_of(reloaded(out), probe()), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("varied", [False, True], ids=["ordinary", "variant"])
@pytest.mark.parametrize("name", FAMILIES)
def test_without_units_that_do_nothing_the_logits_stay(name: str, varied: bool, corpus: Path, tmp_path: Path) -> None:
    """Every second neuron, then every second query head, give nothing; biases, windows and norms of heads stay as they were."""
    import torch

    family = FAMILIES[name]
    model = family.build(**(family.variant if varied else {}))
    layout, kept = find_layout(model), torch.tensor([1.0, 0.0])
    with torch.no_grad():
        for layer in decoder_layers(model):
            attention, last = part_of(layer, layout.attention_out), part_of(layer, layout.feed_forward_out)
            attention.weight.mul_(kept.repeat(2).repeat_interleave(attention.weight.shape[1] // 4))
            if last is not None:
                last.weight.mul_(kept.repeat(last.weight.shape[1] // 2))
    wanted = logits_of(rounded(model), probe())
    source = save_family(tmp_path / "model", name, model)
    settings: dict[str, Any] = {"ratio": 0.5, "criterion": "contribution", "calibration_rows": 2}
    for technique in (Width(**settings), Heads(unit="queries", **settings)):
        if technique.refuses(model.config.to_dict()):
            continue
        out, run = empty_run(tmp_path, technique.axis)
        technique(inputs_of(source, corpus), out, run)
        torch.testing.assert_close(logits_of(reloaded(out), probe()), wanted, rtol=1e-4, atol=1e-4)
        source = out


@pytest.mark.parametrize("varied", [False, True], ids=["ordinary", "variant"])
@pytest.mark.parametrize("name", FAMILIES)
def test_without_channels_that_are_zero_the_logits_stay(name: str, varied: bool) -> None:
    """Also with the head tied where it is not, and the other way round; norms, and Gemma's embedding, are corrected for the width."""
    import torch

    family = FAMILIES[name]
    tied = bool(family.settings.get("tie_word_embeddings"))
    changes = {**family.variant, "tie_word_embeddings": not tied} if varied else {}
    if Hidden().refuses(family.build(**changes).config.to_dict()):
        return
    model = family.build(**changes, rms_norm_eps=1e-12)
    silence_channels(model, torch.arange(0, 64, 4))
    made = Hidden(ratio=0.25, multiple=16).narrow(model, probe().tolist(), 0, seed=0)
    torch.testing.assert_close(logits_of(made.model.eval(), probe()), logits_of(model, probe()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("setting", BIASES)
@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_reads_biases_or_the_plan_says_that_it_does_not(
    name: str, setting: str, corpus: Path, tmp_path: Path
) -> None:
    """Biases that a setting gives to layers, as prune/flap does."""
    config = FAMILIES[name].build().config
    if getattr(config, setting, True):
        return  # no such setting, or on in an ordinary model
    source = save_family(tmp_path / "model", name, **{setting: True})
    (row,) = (row for row in ROWS if row.option == "export/gguf")
    answer = plan_answer(row, source)
    if answer:
        assert f"its layers have biases ({setting})" in answer
        return
    out, run = empty_run(tmp_path)
    check_gguf(source, out, row.technique(inputs_of(source, corpus), out, run), inputs_of(source, corpus))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_gguf_file_is_read_back_as_the_model_it_was_or_not_at_all(name: str, tmp_path: Path) -> None:
    """Transformers leaves settings that it does not look for at its defaults, such as Gemma's soft caps."""
    import torch

    source = save_family(tmp_path / name, name)
    write_gguf(source, tmp_path / "model.gguf", "f32")
    ids = torch.arange(3, 13)[None]
    if name in UNREAD_GGUF:
        with pytest.raises(ModelError):
            load_model(tmp_path / "model.gguf")
        return
    logits = [load_model(path)(ids).logits for path in (source, tmp_path / "model.gguf")]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_computes_the_model_s_own_logits(name: str) -> None:
    import torch

    for model in (FAMILIES[name].build(), FAMILIES[name].build(**FAMILIES[name].variant)):
        with torch.no_grad():
            states = model.base_model(input_ids=probe(), use_cache=False).last_hidden_state
            torch.testing.assert_close(output_head(model)(states)[0], logits_of(model, probe()))
        check_head(model)


@pytest.mark.parametrize("name", DENSE)
def test_the_layout_names_the_last_projections(name: str) -> None:
    """What enters them, times their weight, is what each block adds: without them a layer only passes on."""
    import torch

    model = FAMILIES[name].build()
    layout, layer = find_layout(model), decoder_layers(model)[1]
    with torch.no_grad():
        for place in (layout.attention_out, layout.feed_forward_out):
            for parameter in part_of(layer, place).parameters():
                parameter.zero_()
    passed = collect(model, [{"input_ids": probe()}], [(0, layer)], lambda _, before, after, __: (after - before).abs().max())  # fmt: skip
    assert float(passed[0]) == 0.0


def test_the_table_is_the_plan_s_answer_and_every_technique_is_in_it() -> None:
    assert techniques() == {row.option for row in ROWS}
    assert PAGE.read_text("utf-8") == renewed(PAGE.read_text("utf-8")), "python -m tests.family_table"
