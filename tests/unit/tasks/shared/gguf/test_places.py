"""Layer and role of a matrix, by any of its names."""

import pytest

from tasks.shared.errors import TechniqueError
from tasks.shared.gguf.places import place_of


@pytest.mark.parametrize(
    ("names", "place"),
    [
        (("model.layers.3.mlp.down_proj.weight", "h.3.mlp.c_proj.weight", "blk.3.ffn_down_exps.weight"), (3, "down")),
        (("model.layers.3.block_sparse_moe.experts.0.w2.weight", "gpt_neox.layers.3.mlp.dense_4h_to_h.weight"), (3, "down")),
        (("model.layers.3.mlp.up_proj.weight", "h.3.mlp.c_fc.weight", "blk.3.ffn_gate.weight"), (3, "gate_up")),
        (("model.layers.3.block_sparse_moe.experts.0.w3.weight", "model.layers.3.mlp.experts.gate_up_proj"), (3, "gate_up")),
        (("model.layers.3.self_attn.o_proj.weight", "h.3.attn.c_proj.weight", "blk.3.attn_output.weight"), (3, "attention")),
        (("model.embed_tokens.weight", "wte.weight", "gpt_neox.embed_in.weight", "token_embd.weight"), (-1, "embedding")),
        (("lm_head.weight", "embed_out.weight", "output.weight"), (-1, "head")),
    ],
)  # fmt: skip
def test_names_of_folders_models_and_files_have_the_same_place(names: tuple[str, ...], place: tuple[int, str]) -> None:
    assert {place_of(name) for name in names} == {place}


def test_a_matrix_outside_of_layers_is_refused() -> None:
    with pytest.raises(TechniqueError, match="outside of embedding, head and layers"):
        place_of("model.vision.patch.weight")
