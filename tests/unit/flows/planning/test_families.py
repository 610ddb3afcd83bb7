"""Families at plan time: a refusal names family, technique, reason and way out, and follows a model through the steps that change it."""

from pathlib import Path
from typing import Any

import pytest

from flows.planning.plan import build_plan
from tasks.shared.errors import ErrorList
from tests.family_table import save_config


def steps(**named: tuple[str, str, dict[str, Any]]) -> dict[str, Any]:
    """Steps by name: (technique's class, input model, settings)."""
    return {
        name: {"_target_": f"tasks.{target}", "inputs": {"model": model}, **settings}
        for name, (target, model, settings) in named.items()
    }


def problems(folder: Path, name: str, chain: dict[str, Any], **changes: Any) -> list[str]:
    """Messages of the plan for an ordinary model of a family."""
    save_config(folder, name, **changes)
    recipe = {
        "name": "trial",
        "seed": 0,
        "models": {"m": {"path": str(folder)}},
        "steps": {"corpus": {"_target_": "tasks.curate.support.Support"}, **chain},
    }
    try:
        build_plan(recipe)
    except ErrorList as error:
        return [str(one) for one in error.errors]
    return []


GGUF = "export.gguf.Gguf"
DEPTH = "prune.depth.Depth"


def test_the_refusal_names_family_technique_reason_and_way_out(tmp_path: Path) -> None:
    (message,) = problems(tmp_path, "gpt2", steps(int4=("quantize.gptq.GPTQ", "models.m", {})))
    assert message.startswith(
        "steps.int4.inputs.model: models.m is a GPT-2 model, and quantize/gptq does not take it: "
    )
    assert "Conv1D" in message and "fix: export/gguf" in message


def test_the_family_is_that_of_the_model_at_the_start(tmp_path: Path) -> None:
    chain = steps(slim=("prune.vocabulary.Vocabulary", "models.m", {}), int4=("quantize.rtn.RTN", "slim", {}))
    chain["slim"]["inputs"]["data"] = ["corpus"]
    (message,) = problems(tmp_path, "mixtral", chain)
    assert message.startswith("steps.int4.inputs.model: slim is a Mixtral model")


@pytest.mark.parametrize(
    ("name", "settings", "refused"),
    [
        ("gemma2", {"layers": (1,)}, True),
        ("gemma2", {"layers": (2, 3)}, False),
        ("gemma2", {"ratio": 0.25}, True),
        ("gemma2", {"ratio": 0.0}, False),
        ("smollm3", {"layers": (1,)}, True),
        ("smollm3", {"layers": (3,)}, False),
        ("smollm3", {"ratio": 0.25}, True),
    ],
)
def test_an_order_that_llama_cpp_takes_for_granted_has_to_survive(
    tmp_path: Path, name: str, settings: dict[str, Any], refused: bool
) -> None:
    """Every other layer of Gemma 2 has a window, every fourth of SmolLM3 no positions."""
    chain = steps(slim=(DEPTH, "models.m", settings), gguf=(GGUF, "slim", {}))
    kinds = {"gemma2": {"layer_types": ["sliding_attention", "full_attention"] * 2}, "smollm3": {}}[name]
    found = problems(tmp_path, name, chain, num_hidden_layers=4, **kinds)
    assert bool(found) is refused, found
    assert all("not in the order" in message and "steps.gguf" in message for message in found)


def test_a_family_that_has_no_such_order_may_lose_any_layer(tmp_path: Path) -> None:
    chain = steps(slim=(DEPTH, "models.m", {"ratio": 0.5}), gguf=(GGUF, "slim", {}))
    assert problems(tmp_path, "qwen3", chain, num_hidden_layers=4) == []


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("mistral", {"sliding_window": 8}, "a sliding window of 8 tokens"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "a sliding window of 8 tokens"),
        ("gemma3_text", {"layer_types": ["sliding_attention", "full_attention"]}, "not in the order"),
        ("gemma2", {"query_pre_attn_scalar": 16}, "not scaled by the head size"),
        ("granite", {"num_attention_heads": 2, "head_dim": 16}, "its 2 heads of 16 do not add up to the hidden size of 64"),
        ("olmo2", {"hidden_size": 32, "head_dim": 16}, "its 4 heads of 16 do not add up to the hidden size of 32"),
        ("phi3", {"hidden_size": 32, "head_dim": 16}, "its 4 heads of 16 do not add up to the hidden size of 32"),
        ("gpt2", {"n_inner": 128}, "n_inner is 128"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "some layers have no experts"),
        ("qwen3_moe", {"norm_topk_prob": False}, "do not sum to 1"),
    ],
)  # fmt: skip
def test_what_llama_cpp_computes_otherwise_is_refused(
    tmp_path: Path, name: str, changes: dict[str, Any], reason: str
) -> None:
    (message,) = problems(tmp_path, name, steps(gguf=(GGUF, "models.m", {})), **changes)
    assert reason in message


def test_an_unknown_family_is_left_to_the_technique(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    save_config(tmp_path / "m", "llama")
    (tmp_path / "m" / "config.json").write_text('{"model_type": "brand_new"}', "utf-8")
    recipe = {
        "name": "trial", "seed": 0, "models": {"m": {"path": str(tmp_path / "m")}},
        "steps": {"corpus": {"_target_": "tasks.curate.support.Support"}, **steps(slim=(DEPTH, "models.m", {}))},
    }  # fmt: skip
    assert len(build_plan(recipe).steps) == 2
