"""Weight selection: a student that is its teacher less what was left out."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.planning.sizes import size_of
from tasks.export.gguf import Gguf
from tasks.prune.depth import drop_layers
from tasks.prune.selection.copying import fill, student_config
from tasks.prune.selection.picks import choose, leading
from tasks.prune.selection.shape import Shape, shape_of, student_shape
from tasks.prune.weight_selection import WeightSelection
from tasks.shared.errors import ConfigError, TechniqueError
from tasks.shared.forecast import Rows, Workload
from tasks.shared.model.loading import load_model
from tasks.shared.model.saving import save_model
from tasks.shared.technique import Compute
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, build_tokenizer, empty_run, inputs_of, save_tiny, write_corpus

IDS = torch.arange(3, 40)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def filled(teacher: Any, student: Shape, layers: list[int], scores: Any = None) -> Any:
    """A student in memory, whose own weights start from another seed."""
    shape = shape_of(teacher.config)
    torch.manual_seed(99)
    small = type(teacher)(student_config(teacher.config, student, layers)).eval()
    fill(small, teacher, layers, choose(scores or leading(shape), shape, student))
    return small


def families() -> dict[str, Any]:
    """Tiny models of architectures with biases, with norms of heads, with more norms, each with random weights."""
    from transformers import (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        MistralConfig,
        MistralForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    sizes = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 128, "initializer_range": 0.1,
    }  # fmt: skip
    kinds = {
        "mistral": (MistralForCausalLM, MistralConfig, {}),
        "qwen2": (
            Qwen2ForCausalLM,
            Qwen2Config,
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
        ),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
        "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {"head_dim": 16, "pad_token_id": 0}),
    }
    made = {}
    for name, (model, config, more) in kinds.items():
        torch.manual_seed(3)
        made[name] = model(config(**sizes, **more)).eval()
        for parameter in made[name].parameters():
            parameter.data.add_(0.02 * torch.randn_like(parameter))  # biases and norms start at constants
    return made


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3", "gemma3"])
def test_a_student_of_the_teachers_size_gives_the_same_logits(name: str) -> None:
    teacher = families()[name]
    shape = shape_of(teacher.config)
    assert torch.equal(logits(filled(teacher, shape, [0, 1, 2, 3])), logits(teacher))


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3", "gemma3"])
def test_parts_that_do_nothing_can_be_left_out(name: str) -> None:
    """The last head group, neurons and layer are silenced in the teacher: a student without them says the same."""
    teacher = families()[name]
    with torch.no_grad():
        for layer in teacher.model.layers:
            layer.self_attn.o_proj.weight[:, 32:] = 0
            layer.mlp.down_proj.weight[:, 100:] = 0
        for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
            part.weight.zero_()
    student = student_shape(shape_of(teacher.config), 3, 0, 100, 2, 1)
    torch.testing.assert_close(logits(filled(teacher, student, [0, 1, 2])), logits(teacher), rtol=0, atol=1e-5)


def test_channels_that_carry_nothing_can_be_left_out() -> None:
    """What RMS norms divide by shrinks with the width; a teacher whose kept channels are larger by that factor says the same."""
    from transformers import LlamaForCausalLM

    teacher = build_model(rms_norm_eps=0.0)
    assert isinstance(teacher, LlamaForCausalLM)
    with torch.no_grad():
        teacher.model.embed_tokens.weight[:, 48:] = 0
        for layer in teacher.model.layers:
            layer.self_attn.o_proj.weight[48:] = 0
            layer.mlp.down_proj.weight[48:] = 0
    small = filled(teacher, student_shape(shape_of(teacher.config), 0, 48, 0, 0, 0), [0, 1, 2, 3])
    with torch.no_grad():
        for name, weight in small.named_parameters():
            if "norm" in name:
                weight.mul_((64 / 48) ** 0.5)
    torch.testing.assert_close(logits(small), logits(teacher), rtol=0, atol=1e-4)


def test_chosen_layers_are_the_teachers() -> None:
    teacher, short = build_model(), build_model()
    drop_layers(short, [1, 2])
    student = student_shape(shape_of(teacher.config), 2, 0, 0, 0, 0)
    assert torch.equal(logits(filled(teacher, student, [0, 3])), logits(short))


def test_kinds_of_layers_follow_those_they_were_taken_from() -> None:
    teacher = families()["qwen2"]
    kinds = list(teacher.config.layer_types)
    small = filled(teacher, student_shape(shape_of(teacher.config), 2, 0, 0, 0, 0), [1, 3])
    assert small.config.layer_types == [kinds[1], kinds[3]] and len(set(kinds)) == 2
    assert small.config.max_window_layers == 1


def run(tmp_path: Path, source: Path, corpus: Path | None = None, **settings: Any) -> tuple[Path, Any]:
    out, step = empty_run(tmp_path, f"step{len(list(tmp_path.iterdir()))}")
    return out, WeightSelection(**settings)(inputs_of(source, corpus), out, step)


def test_a_narrow_student_loads_and_generates(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source, corpus = save_tiny(tmp_path / "source"), write_corpus(tmp_path / "corpus")
    sizes = {"layers": 2, "hidden_size": 32, "intermediate_size": 96, "heads": 2}
    out, found = run(tmp_path, source, corpus, **sizes)
    model, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert found["parameters"] == model.num_parameters() < found["parameters_before"]
    assert (found["kv_heads"], found["taken"], found["copied"]) == (1, "0 3", 1.0)
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (2 * 16, 32)
    answer = model.generate(
        IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, min_new_tokens=4, do_sample=False
    )
    assert answer.shape == (1, IDS.shape[1] + 4)
    taken = json.loads((out / "selection.json").read_text("utf-8"))
    assert len(taken["hidden"]) == 32 and [layer["layer"] for layer in taken["layers"]] == [0, 3]
    whole = load_model(source).model.layers[3].mlp.up_proj.weight
    kept = whole[taken["layers"][1]["neurons"]][:, taken["hidden"]]
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, kept.to(torch.bfloat16).float())


def test_llama_cpp_answers_as_a_student_whose_heads_are_wider_than_its_share(tmp_path: Path) -> None:
    source, corpus = save_tiny(tmp_path / "source"), write_corpus(tmp_path / "corpus")
    student, _ = run(tmp_path, source, corpus, hidden_size=32, heads=4)  # heads of 16, and 32 / 4 is 8
    out, step = empty_run(tmp_path, "gguf")
    Gguf(scheme="f16", embedding="same", prompts=3, tokens=2, min_top1=0.95, max_kl=0.001)(
        inputs_of(student), out, step
    )
    assert (out / "model.gguf").is_file()


def test_fresh_layers_come_from_the_seed_and_the_rest_from_the_teacher(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    first, found = run(tmp_path, source, layers=6, rule="none")
    again, _ = run(tmp_path, source, layers=6, rule="none")
    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    model, teacher = load_model(first), load_model(source)
    assert found["layers"] == 6 and 0 < found["copied"] < 1
    assert torch.equal(model.model.embed_tokens.weight, teacher.model.embed_tokens.weight.bfloat16().float())
    assert not torch.equal(
        model.model.layers[0].mlp.up_proj.weight, teacher.model.layers[0].mlp.up_proj.weight.bfloat16().float()
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"layers": 5}, "teacher has 4"), ({"take": (7,)}, "no layer 7"), ({"heads": 3}, "not a multiple"), ({"hidden_size": 96}, "teacher has 64")],
)  # fmt: skip
def test_impossible_sizes_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(TechniqueError, match=words):
        run(tmp_path, save_tiny(tmp_path / "source"), write_corpus(tmp_path / "corpus"), **settings)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=512))
    save_model(model, build_tokenizer(), tmp_path / "bloom")
    with pytest.raises(TechniqueError, match=r"decoder layers not found"):
        run(tmp_path, tmp_path / "bloom", layers=1)


def test_weights_that_are_not_known_to_shrink_are_refused() -> None:
    from transformers import Phi3Config, Phi3ForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128, "pad_token_id": 0}  # fmt: skip
    teacher = Phi3ForCausalLM(Phi3Config(**sizes)).eval()
    with pytest.raises(TechniqueError, match=r"qkv_proj\.weight"):
        filled(teacher, student_shape(shape_of(teacher.config), 0, 0, 0, 2, 0), [0, 1])
    assert torch.equal(logits(filled(teacher, shape_of(teacher.config), [0, 1])), logits(teacher)), (
        "layers alone are taken"
    )


def test_the_plan_tells_what_cannot_be() -> None:
    technique = WeightSelection(heads=4, kv_heads=3)
    problems = [str(error) for error in technique.plan_problems("steps.small", {"model": ("tuned",)}, {})]
    assert len(problems) == 2
    assert all(words in "\n".join(problems) for words in ("not a multiple of 3", "steps.small.inputs.calibration"))
    sound = WeightSelection(layers=2)
    assert not list(sound.plan_problems("steps.small", {"model": ("tuned",)}, {}))


@pytest.mark.parametrize(
    "settings",
    [{"layers": 2}, {"hidden_size": 32, "intermediate_size": 64}, {"take": (0, 3), "heads": 2}, {"kv_heads": 1}],
)
def test_the_forecast_is_of_the_student_that_is_made(tmp_path: Path, settings: dict[str, Any]) -> None:
    source = save_tiny(tmp_path / "source")
    _, metrics = run(tmp_path, source, width="leading", **settings)
    technique = WeightSelection(width="leading", **settings)
    made = technique.forecast(Workload({"model": (size_of(source),)}, Rows(), Compute(), 1e11)).size
    assert made is not None and made.parameters == pytest.approx(metrics["parameters"], rel=0.02)


def test_activations_without_a_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no corpus to measure"):
        run(tmp_path, save_tiny(tmp_path / "source"), hidden_size=32)


CHANGES = {
    "layers": Change(2),
    "rule": Change("first", {"layers": 2}),
    "take": Change([1, 2]),
    "hidden_size": Change(48),
    "intermediate_size": Change(64),
    "heads": Change(2),
    "kv_heads": Change(1),
    "width": Change("leading", {"intermediate_size": 64}),
    "calibration_rows": Change(1, {"intermediate_size": 64}),
    "max_tokens": Change(8, {"intermediate_size": 64}),
    "batch_size": Change(1, {"intermediate_size": 64}),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    inputs = inputs_of(save_tiny(folder / "model"), write_corpus(folder / "corpus"))
    yield Case(folder, inputs, {"calibration_rows": 8, "max_tokens": 64, "batch_size": 8})
