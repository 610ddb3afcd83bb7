"""The GGUF writer: size arithmetic, what it writes, what it refuses."""

import json
from pathlib import Path

import pytest

from tasks.shared.errors import ModelError, TechniqueError
from tasks.shared.gguf.vocabulary import byte_level_splits, sentence_pieces
from tasks.shared.gguf.writer import plan_tensors, write_gguf
from tasks.shared.model.sizes import parameter_count
from tasks.shared.model.weights import read_gguf
from tests.families import save_family
from tests.tiny_llama import build_model, build_tokenizer, save_tiny


def test_file_holds_the_declared_types_tokenizer_and_template(tmp_path: Path) -> None:
    from gguf import GGUFReader

    source, file = save_tiny(tmp_path / "source"), tmp_path / "model.gguf"
    written = write_gguf(source, file, "q4_0", "q8_0", name="tiny")
    reader = GGUFReader(file)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert (
        types["token_embd.weight"] == "Q8_0"
        and types["blk.0.ffn_up.weight"] == "Q4_0"
        and types["blk.0.attn_norm.weight"] == "F32"
    )
    assert "output.weight" not in types  # tied
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["tokenizer.ggml.model"] == "gpt2" and fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.eos_token_id"] == 2 and fields["tokenizer.ggml.add_bos_token"] is False
    assert "<|im_start|>" in fields["tokenizer.chat_template"] and fields["general.name"] == "tiny"
    assert fields["llama.block_count"] == 4 and fields["llama.attention.head_count_kv"] == 2
    weights = sum(int(tensor.n_bytes) for tensor in reader.tensors)
    vectors = sum(int(tensor.n_bytes) for tensor in reader.tensors if len(tensor.shape) == 1)
    planned = plan_tensors(source, "q4_0", "q8_0")
    assert weights - vectors == sum(tensor.bytes for tensor in planned) == sum(tensor.bytes for tensor in written)
    assert parameter_count(file) == build_model().num_parameters()
    quick = read_gguf(file)
    assert {key: field.contents() for key, field in quick.fields.items()} == fields
    assert all((mine.data == other.data).all() for mine, other in zip(quick.tensors, reader.tensors, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "source"]


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "compressed-tensors"}})
    )
    with pytest.raises(TechniqueError, match="compressed-tensors"):
        write_gguf(source, tmp_path / "model.gguf")


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["NovelForCausalLM"]}))
    with pytest.raises(TechniqueError, match="NovelForCausalLM"):
        write_gguf(source, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_rows_that_do_not_fill_blocks_are_refused(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", build_model(hidden_size=48, intermediate_size=80))
    with pytest.raises(TechniqueError, match=r"down_proj.weight \(row=80\)"):
        write_gguf(source, tmp_path / "model.gguf", "q4_0")
    write_gguf(source, tmp_path / "model.gguf", "f16")


@pytest.mark.parametrize("name", ["phi3", "gpt2", "gemma3_text", "gpt_neox", "qwen3"])
def test_the_plan_is_that_of_the_file_in_other_families(name: str, tmp_path: Path) -> None:
    """Fused projections, matrices with their axes the other way round, tied and untied heads."""
    source = save_family(tmp_path / "source", name)
    written = write_gguf(source, tmp_path / "model.gguf", "iq4_nl", "q8_0")
    planned = plan_tensors(source, "iq4_nl", "q8_0")
    kinds = [sorted((tensor.row, tensor.weights, tensor.type) for tensor in tensors) for tensors in (written, planned)]
    assert kinds[0] == kinds[1]
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in read_gguf(tmp_path / "model.gguf").tensors}
    assert {tensor.name: tensor.type for tensor in written}.items() <= types.items()


def test_types_in_blocks_of_256_fall_back_where_rows_are_shorter(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", build_model(intermediate_size=256, num_hidden_layers=1))
    with pytest.raises(TechniqueError, match="fallback=true"):
        write_gguf(source, tmp_path / "model.gguf", "q4_k", "q8_0")
    write_gguf(source, tmp_path / "model.gguf", "q4_k", "q8_0", fallback=True)
    types = {tensor.name: tensor.tensor_type.name for tensor in read_gguf(tmp_path / "model.gguf").tensors}
    assert types["blk.0.ffn_down.weight"] == "Q4_K" and types["blk.0.ffn_up.weight"] == "IQ4_NL"


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        write_gguf(tmp_path, tmp_path / "model.gguf")


def test_pre_tokenizers_by_structure(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    assert byte_level_splits(tmp_path) == "gpt-2"
    core = tokenizer.backend_tokenizer
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.save(str(tmp_path / "tokenizer.json"))
    assert byte_level_splits(tmp_path) == "smollm"
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.save(str(tmp_path / "tokenizer.json"))
    assert byte_level_splits(tmp_path) is None


def test_a_byte_level_tokenizer_marked_with_byte_fallback_stays_byte_level(tmp_path: Path) -> None:
    """Transformers marks a byte-level tokenizer so if it read it from a GGUF file."""
    source = save_tiny(tmp_path / "source")
    content = json.loads((source / "tokenizer.json").read_text("utf-8"))
    content["model"]["byte_fallback"] = True
    (source / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    assert sentence_pieces(source, 400) is None
    write_gguf(source, tmp_path / "model.gguf", "f16", "f16", name="tiny")
    assert read_gguf(tmp_path / "model.gguf").get_field("tokenizer.ggml.model").contents() == "gpt2"
