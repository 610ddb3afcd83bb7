"""Models and corpora that the tests of quantization and export share."""

from typing import Any

import pytest

from tasks.shared.technique import Inputs
from tests.tiny_llama import inputs_of, save_tiny, trained_model, write_corpus

OUTLIER = 32.0
OUTLIERS = [3, 9, 17, 25, 40, 57]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A trained model and a corpus."""
    folder = tmp_path_factory.mktemp("trained")
    return inputs_of(save_tiny(folder / "model", trained_model()), write_corpus(folder / "corpus", 32))


@pytest.fixture(scope="session")
def outlying(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """The trained model, which computes the same with a few large activations against small weights in every layer."""
    folder = tmp_path_factory.mktemp("outlying")
    model = trained_model()
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        widen(layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj))
        widen(layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj))
    return inputs_of(save_tiny(folder / "model", model), write_corpus(folder / "corpus", 32))


def widen(norm: Any, readers: tuple[Any, ...]) -> None:
    """Multiply a few channels of a norm and divide the columns that read them."""
    import torch

    with torch.no_grad():
        norm.weight[OUTLIERS] *= OUTLIER
        for reader in readers:
            reader.weight[:, OUTLIERS] /= OUTLIER
