"""GGUF files of strangers: whole and placed tensor by tensor, or refused by name."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers

from flows.planning.sizes import size_of
from tasks.shared.errors import ModelError
from tasks.shared.gguf.writer import write_gguf
from tasks.shared.model import configuration
from tasks.shared.model.gguf_files import GgufHeader, read_gguf_header
from tasks.shared.model.inspection import find_fault
from tasks.shared.model.loading import load_model
from tasks.shared.model.sizes import parameter_count
from tasks.shared.model.strict import check_gguf_tensors
from tasks.shared.model.weights import check_source
from tests.tiny_llama import build_model, save_tiny


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    file = folder / "sound.gguf"
    write_gguf(save_tiny(folder / "model", build_model(num_hidden_layers=2)), file, "f32")
    return file


def rewritten(
    sound: Path,
    file: Path,
    drop: str = "?",
    tensors: Mapping[str, tuple[int, ...]] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Path:
    """The sound file without the tensors whose name has `drop`, with others of ones, and with other fields."""
    import gguf
    import numpy

    source, more = gguf.GGUFReader(sound), dict(tensors or {})
    writer = gguf.GGUFWriter(file, "llama")
    for key, field in source.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in (fields or {}):
            continue
        kind = field.types[0]
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, field.contents())
        else:
            writer.add_key_value(key, field.contents(), kind)
    for key, value in (fields or {}).items():
        if isinstance(value, list):
            writer.add_array(key, value)
            continue
        kinds = {str: gguf.GGUFValueType.STRING, float: gguf.GGUFValueType.FLOAT32}
        writer.add_key_value(key, value, kinds.get(type(value), gguf.GGUFValueType.UINT16))
    for tensor in source.tensors:
        if drop not in tensor.name and tensor.name not in more:
            writer.add_tensor(tensor.name, numpy.array(tensor.data))
    for name, shape in more.items():
        writer.add_tensor(name, numpy.ones(shape, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_the_header_is_that_of_the_package(sound: Path) -> None:
    import gguf

    reader, header = gguf.GGUFReader(sound), read_gguf_header(sound)
    assert header.tensors == {tensor.name: tuple(int(size) for size in tensor.shape[::-1]) for tensor in reader.tensors}
    single = {key for key, field in reader.fields.items() if field.types[0] != gguf.GGUFValueType.ARRAY}
    assert all(header.fields[key] == reader.fields[key].contents() for key in single if not key.startswith("GGUF."))
    assert parameter_count(sound) == sum(math.prod(shape) for shape in header.tensors.values())


def test_a_setting_per_layer_is_a_list_whose_largest_value_counts(sound: Path, tmp_path: Path) -> None:
    file = rewritten(
        sound, tmp_path / "model.gguf", fields={"llama.attention.head_count_kv": [1, 4], "llama.x": ["a", "b"]}
    )
    fields = read_gguf_header(file).fields
    assert (fields["llama.attention.head_count_kv"], fields["llama.x"]) == ((1, 4), 2)
    assert size_of(file).shape.value == 2 * size_of(sound).shape.value


MISFITS = {
    "a hole": ({"drop": "blk.1.ffn_up"}, r"1 tensor of the model missing.*layers\.1\.mlp\.up_proj"),
    "no last norm": ({"drop": "output_norm"}, r"missing.*model\.norm\.weight"),
    "experts": ({"tensors": {"blk.0.ffn_gate_exps.weight": (4, 8, 8)}}, r"1 tensor of the files not in the model \(blk\.0\.ffn_gate_exps"),
    "a bias": ({"tensors": {"blk.0.attn_q.bias": (64,)}}, r"not in the model \(blk\.0\.attn_q\.bias\)"),
    "another shape": ({"tensors": {"blk.0.ffn_up.weight": (100, 64)}}, r"up_proj\.weight is 100x64, not 128x64"),
    "scaled rotary frequencies": ({"tensors": {"rope_freqs.weight": (8,)}}, r"scaled rotary frequencies.*original Hugging Face folder"),
    "yarn": ({"fields": {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}}, r"scaled rotary frequencies \(rope.scaling: yarn by 4\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_tensors_that_transformers_cannot_place_are_refused(sound: Path, tmp_path: Path, name: str) -> None:
    changes, pattern = MISFITS[name]
    file = rewritten(sound, tmp_path / "model.gguf", **changes)  # type: ignore[arg-type]
    check_source(file)  # llama.cpp may read it
    with pytest.raises(ModelError, match=f"(?s){pattern}"):
        load_model(file)
    with pytest.raises(ModelError, match=f"(?s){pattern}"):
        raise find_fault(file) or AssertionError


def test_whole_files_are_read_tied_or_not(sound: Path, tmp_path: Path) -> None:
    untied = rewritten(sound, tmp_path / "untied.gguf", tensors={"output.weight": (512, 64)})
    assert find_fault(sound) is None and find_fault(untied) is None
    assert load_model(sound).config.tie_word_embeddings and not load_model(untied).config.tie_word_embeddings


def test_experts_have_a_place_and_are_missed(tmp_path: Path) -> None:
    import gguf
    import numpy
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
    from transformers.modeling_gguf_pytorch_utils import Qwen2MoeTensorProcessor, get_gguf_hf_weights_map

    config = Qwen3MoeConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16, vocab_size=64, num_experts=2,
        num_experts_per_tok=1, moe_intermediate_size=8, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(config)
    names = get_gguf_hf_weights_map(model, Qwen2MoeTensorProcessor())
    wanted = {f"{name.removesuffix('.weight')}.weight": model.state_dict().get(names[name]) for name in names}
    for number, left_out in enumerate(("nothing", "ffn_gate_exps")):
        file = tmp_path / f"{number}.gguf"
        writer = gguf.GGUFWriter(file, "qwen3moe")
        for name, tensor in wanted.items():
            if tensor is not None and left_out not in name and name != "output.weight":
                writer.add_tensor(
                    name, numpy.zeros((2, 8, 32) if "_exps" in name else tuple(tensor.shape), numpy.float32)
                )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if left_out == "nothing":
            check_gguf_tensors(file, config)
        else:
            with pytest.raises(ModelError, match="1 tensor of the model missing"):
                check_gguf_tensors(file, config)


KINDS = {
    "a part": ({"split.count": 3, "split.no": 0}, r"part 1 of a GGUF split in 3.*llama-gguf-split --merge"),
    "an adapter": ({"general.type": "adapter"}, "a LoRA adapter, no whole model"),
    "a projector": ({"general.type": "mmproj"}, "the image projector"),
    "an importance matrix": ({"general.type": "imatrix"}, "an importance matrix"),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_parts_and_files_of_other_kinds_are_refused(sound: Path, tmp_path: Path, name: str) -> None:
    fields, pattern = KINDS[name]
    file = rewritten(sound, tmp_path / "model.gguf", fields=fields)
    with pytest.raises(ModelError, match=f"(?s){pattern}"):
        check_source(file)


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
        (b"<html>404</html>", "a web page"),
        (b"", "an empty file"),
        (b"lmgg" + bytes(100), "not a GGUF file"),
        (b"GGUF" + (50331648).to_bytes(4, "little") + bytes(100), "big-endian"),
        (0.66, r"truncated: \d{3},\d{3} bytes.*4\d\d,\d{3} bytes by its header"),
        (0.005, "ending within its header"),
    ],
)
def test_damaged_files_are_refused(sound: Path, tmp_path: Path, content: bytes | float, pattern: str) -> None:
    whole = sound.read_bytes()
    file = tmp_path / "model.gguf"
    file.write_bytes(whole[: int(content * len(whole))] if isinstance(content, float) else content)
    with pytest.raises(ModelError, match=f"(?s){pattern}"):
        check_source(file)


def test_a_weight_file_given_in_place_of_its_folder_is_named(sound: Path) -> None:
    folder = sound.parent / "model"
    with pytest.raises(ModelError, match=f"path={folder}"):
        check_source(folder / "model.safetensors")


def test_a_header_sets_only_what_transformers_leaves_at_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 4 has heads of two sizes, and its header gives the one that is not `head_dim`."""
    fields = {"general.architecture": "gemma", "gemma.attention.key_length": 512, "gemma.embedding_length": 99}
    monkeypatch.setattr(configuration, "read_gguf_header", lambda _: GgufHeader(fields, {}))
    found = {}
    for name in ("Qwen3Config", "Gemma4TextConfig"):
        config = getattr(transformers, name)()
        before = config.to_dict()
        configuration._take_header(config, tmp_path)
        after = config.to_dict()
        found[name] = tuple(after[size] != before[size] for size in ("head_dim", "hidden_size"))
    assert found == {"Qwen3Config": (True, False), "Gemma4TextConfig": (False, False)}
