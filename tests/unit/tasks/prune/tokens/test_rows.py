"""Rows of a model that stand for tokens, and ids in its configurations."""

import pytest
import torch

from tasks.prune.tokens.rows import keep_rows, renumber, token_rows
from tasks.shared.errors import TechniqueError
from tests.tiny_llama import build_model

KEPT = [0, 1, 2, 7, 40, 41, 300]
NEW = {old: new for new, old in enumerate(KEPT)}
IDS = torch.tensor([[1, 7, 300, 41]])


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_the_kept_tokens(tied: bool) -> None:
    whole, small = build_model(tie_word_embeddings=tied), build_model(tie_word_embeddings=tied)
    keep_rows(small, KEPT)
    few = torch.tensor([[NEW[int(old)] for old in IDS[0]]])
    with torch.inference_mode():
        hidden = small.model(few).last_hidden_state
        assert torch.equal(hidden, whole.model(IDS).last_hidden_state)
        assert torch.equal(small.lm_head.weight, whole.lm_head.weight[KEPT])
        torch.testing.assert_close(small(few).logits, whole(IDS).logits[..., KEPT], rtol=0, atol=1e-6)
    assert (small.lm_head.weight is small.model.embed_tokens.weight) == tied
    gone = (512 - len(KEPT)) * 64 * (1 if tied else 2)
    assert whole.num_parameters() - small.num_parameters() == gone
    assert small.config.vocab_size == len(KEPT)


def test_a_head_with_a_bias_keeps_its_values() -> None:
    from transformers import PhiConfig, PhiForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=512, tie_word_embeddings=False, **sizes)).eval()
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.arange(512.0))
    keep_rows(model, KEPT)
    assert model.lm_head.bias.tolist() == KEPT


def test_every_id_gets_its_new_number() -> None:
    config = build_model().config
    config.eos_token_id, config.pad_token_id, config.bos_token_id = [2, 300, 301], 301, 1
    renumber(config, NEW)
    assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == ([2, 6], None, 1)


def test_lists_of_a_generation_configuration_are_renumbered() -> None:
    from transformers import GenerationConfig

    settings = GenerationConfig(
        eos_token_id=[2, 40], suppress_tokens=[7, 8], bad_words_ids=[[7, 40], [7, 8]], max_length=41
    )
    renumber(settings, NEW)
    assert (settings.eos_token_id, settings.suppress_tokens, settings.bad_words_ids) == ([2, 4], [3], [[3, 4]])
    assert settings.max_length == 41


def test_weights_for_sequences_of_tokens_are_refused() -> None:
    from transformers import GenerationConfig

    with pytest.raises(TechniqueError, match="sequence_bias"):
        renumber(GenerationConfig(sequence_bias=[[[7], 1.0]]), NEW)


def test_another_table_with_a_row_per_token_is_refused() -> None:
    model = build_model()
    model.model.per_layer = torch.nn.Embedding(512, 4)
    with pytest.raises(TechniqueError, match=r"model\.per_layer"):
        token_rows(model)


def test_a_head_of_another_size_is_refused() -> None:
    model = build_model(tie_word_embeddings=False)
    model.lm_head = torch.nn.Linear(64, 500, bias=False)
    with pytest.raises(TechniqueError, match="500 rows in the head, 512"):
        token_rows(model)
