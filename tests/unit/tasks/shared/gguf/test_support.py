"""What llama.cpp computes otherwise, by configurations as the hub has them: with defaults left out, or as a GGUF's header."""

from typing import Any

import pytest

from tasks.shared.gguf.support import attended, unsupported


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"model_type": "mistral", "sliding_window": 4096, "max_position_embeddings": 32768}, 4096),
        ({"model_type": "mistral", "sliding_window": None, "max_position_embeddings": 32768}, None),
        ({"model_type": "qwen2", "sliding_window": 4096, "max_position_embeddings": 32768}, None),
        ({"model_type": "qwen2", "sliding_window": 4096, "max_position_embeddings": 32768, "use_sliding_window": True}, 4096),
        ({"model_type": "phi3", "sliding_window": 262144, "max_position_embeddings": 131072}, None),
        ({"model_type": "gemma2", "sliding_window": 4096, "max_position_embeddings": 8192}, None),
    ],
)  # fmt: skip
def test_the_context_ends_only_with_a_window_that_is_used_and_ignored(
    config: dict[str, Any], length: int | None
) -> None:
    assert attended(config) == length
    assert unsupported(config) is None


def test_the_scale_of_gemma_s_attention_is_that_of_its_size() -> None:
    large = {
        "model_type": "gemma2",
        "hidden_size": 4608,
        "num_attention_heads": 32,
        "head_dim": 128,
        "query_pre_attn_scalar": 144,
    }
    assert unsupported({**large, "num_hidden_layers": 46}) is None
    found = unsupported({**large, "num_hidden_layers": 44})  # llama.cpp no longer takes it for the model of 27B
    assert found is not None and "not scaled by the head size" in found.reason


@pytest.mark.parametrize("setting", ["attention_bias", "mlp_bias"])
def test_biases_are_no_reason_where_llama_cpp_reads_them(setting: str) -> None:
    assert unsupported({"model_type": "llama", setting: True}) is None
    assert unsupported({"model_type": "smollm3", setting: False}) is None
    found = unsupported({"model_type": "smollm3", setting: True})
    assert found is not None and f"biases ({setting})" in found.reason and "compensate=false" in found.instead


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "smollm3", "gpt2", "qwen3_moe", "mixtral", "llama"])
def test_the_header_of_a_gguf_file_is_no_reason(kind: str) -> None:
    assert unsupported({"model_type": kind, "num_hidden_layers": 12}) is None
