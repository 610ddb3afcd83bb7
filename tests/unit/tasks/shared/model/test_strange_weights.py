"""Weights of a stranger's model: loaded in full, or refused by name, by the plan's check and by loading alike."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.shared.errors import ModelError
from tasks.shared.model.inspection import find_fault
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.model.saving import save_model
from tasks.shared.model.sizes import parameter_count, weight_bytes
from tasks.shared.model.weight_files import unused_files
from tasks.shared.model.weights import check_source
from tests.tiny_llama import build_model, build_tokenizer, save_tiny

Change = Callable[[Path], Any]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 269060552\n"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sound models, each of two layers."""
    folder = tmp_path_factory.mktemp("bases")
    save_tiny(folder / "tied", build_model(num_hidden_layers=2))
    save_tiny(folder / "untied", build_model(num_hidden_layers=2, tie_word_embeddings=False))
    return folder


@pytest.fixture
def model(bases: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bases / "tied", tmp_path / "model"))


@pytest.fixture
def untied(bases: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bases / "untied", tmp_path / "untied"))


def configure(**settings: Any) -> Change:
    return lambda folder: edit(folder / "config.json", settings)


def edit(file: Path, settings: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def tensors(change: Callable[[dict[str, Any]], dict[str, Any]], file: str = WEIGHTS) -> Change:
    def apply(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        kept = {name: tensor.clone() for name, tensor in load_file(folder / file).items()}
        save_file(change(kept), folder / file, metadata={"format": "pt"})

    return apply


def renamed(prefix: str) -> Change:
    return tensors(lambda kept: {prefix + name: tensor for name, tensor in kept.items()})


def without(part: str) -> Change:
    return tensors(lambda kept: {name: tensor for name, tensor in kept.items() if part not in name})


def plus(*names: str) -> Change:
    import torch

    return tensors(lambda kept: kept | {name: torch.ones(3) for name in names})


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def replaced(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def cut(name: str, share: float) -> Change:
    def apply(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return apply


def sharded(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    kept = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(kept)
    parts = dict(zip(SHARDS, (names[:10], names[10:]), strict=True))
    for file, part in parts.items():
        save_file({name: kept[name].clone() for name in part}, folder / file, metadata={"format": "pt"})
    places = {name: file for file, part in parts.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def index(name: str, file: str) -> Change:
    def apply(folder: Path) -> None:
        sharded(folder)
        found = json.loads((folder / INDEX).read_text())
        found["weight_map"][name] = file
        (folder / INDEX).write_text(json.dumps(found))

    return apply


def twice(folder: Path) -> None:
    sharded(folder)
    from safetensors.torch import load_file

    first = load_file(folder / SHARDS[0])
    tensors(lambda kept: kept | {"model.embed_tokens.weight": first["model.embed_tokens.weight"] + 1}, SHARDS[1])(
        folder
    )


def after_sharding(change: Change) -> Change:
    return lambda folder: (sharded(folder), change(folder))


def quantized(method: str, **settings: Any) -> Change:
    return configure(quantization_config={"quant_method": method, **settings})


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "acme/base"})
    )


def only_adapter(folder: Path) -> None:
    adapter(folder)
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    (folder / "config.json").unlink()


def as_qweight(kept: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("up_proj.weight", "up_proj.qweight"): tensor for name, tensor in kept.items()}


def as_float8(kept: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {name: tensor.to(torch.float8_e4m3fn) if "proj" in name else tensor for name, tensor in kept.items()}


REFUSED: dict[str, tuple[Change, str]] = {
    "torch.compile": (renamed("_orig_mod."), r"21 tensors of the model missing.*20 tensors of the files.*torch\.compile.*_orig_mod\.save_pretrained"),
    "DDP": (renamed("module."), r"module\.model\.embed_tokens.*DDP.*model\.module\.save_pretrained"),
    "a hole": (without("layers.1.mlp.up_proj"), r"1 tensor of the model missing from the files \(model\.layers\.1\.mlp\.up_proj\.weight\)"),
    "biases named by the configuration": (configure(attention_bias=True), r"8 tensors of the model missing.*q_proj\.bias"),
    "a value head": (plus("v_head.weight"), r"1 tensor of the files not in the model \(v_head\.weight\).*value head"),
    "unmerged LoRA": (plus("model.layers.0.self_attn.q_proj.lora_A.default.weight"), "LoRA weights that are not merged"),
    "vocabulary resized": (configure(vocab_size=500), r"embed_tokens\.weight is 512x64, not 500x64.*set vocab_size"),
    "too few layers named": (configure(num_hidden_layers=1), "names fewer layers than the files hold"),
    "too many layers named": (configure(num_hidden_layers=3), "names more layers than the files hold"),
    "git-lfs pointer": (replaced(WEIGHTS, POINTER), r"model\.safetensors: a git-lfs pointer.*git lfs pull"),
    "git-lfs pointer of the tokenizer": (replaced("tokenizer.json", POINTER), r"tokenizer\.json: a git-lfs pointer"),
    "git-lfs pointer of the configuration": (replaced("config.json", POINTER), r"config\.json: a git-lfs pointer"),
    "git-lfs pointer of the index": (after_sharding(replaced(INDEX, POINTER)), r"index\.json: a git-lfs pointer"),
    "git-lfs pointer of a shard": (after_sharding(replaced(SHARDS[1], POINTER)), r"00002-of-00002\.safetensors: a git-lfs pointer"),
    "web page": (replaced(WEIGHTS, "\n<!DOCTYPE html><html>404</html>"), "a web page"),
    "empty file": (replaced(WEIGHTS, b""), "an empty file"),
    "zeros": (replaced(WEIGHTS, bytes(4096)), "a file of zeros"),
    "server's JSON": (replaced(WEIGHTS, '{"error": "Repository not found"}'), "not a safetensors file"),
    "pickle under a false name": (replaced(WEIGHTS, b"PK\x03\x04" + bytes(200)), "not a safetensors file"),
    "truncated": (cut(WEIGHTS, 0.5), r"truncated: 2\d\d,\d{3} bytes.*4\d\d,\d{3} bytes by its header"),
    "truncated header": (cut(WEIGHTS, 0.001), "truncated"),
    "dangling link": (lambda folder: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).symlink_to("/nowhere/blob")), "a link to a file that does not exist"),
    "a shard missing": (after_sharding(lambda folder: (folder / SHARDS[1]).unlink()), rf"1 of 2 weight files are missing: {SHARDS[1]}"),
    "shards without index": (after_sharding(lambda folder: (folder / INDEX).unlink()), rf"2 shards without {INDEX}"),
    "a tensor twice": (twice, rf"embed_tokens\.weight is in {SHARDS[0]} and in {SHARDS[1]}"),
    "an index of other files": (index("model.norm.bias", SHARDS[0]), r"1 tensors are not in the files that it names: model\.norm\.bias"),
    "an index that leaves the folder": (index("model.norm.bias", "../tied/model.safetensors"), "names a file elsewhere"),
    "only a variant": (lambda folder: (folder / WEIGHTS).rename(folder / "model.fp16.safetensors"), r"model\.fp16\.safetensors, but neither.*rename"),
    "only Mistral's format": (lambda folder: (folder / WEIGHTS).rename(folder / "consolidated.safetensors"), "consolidated"),
    "adapter": (only_adapter, r"a LORA adapter for acme/base, not a whole model.*merge_and_unload"),
    "adapter beside full weights": (adapter, r"full weights and a LORA adapter.*acme/base"),
    "awq": (quantized("awq", bits=4), r"quantized by awq"),
    "gptq": (quantized("gptq", bits=4), r"quantized by gptq"),
    "bitsandbytes": (quantized("bitsandbytes", load_in_4bit=True), r"quantized by bitsandbytes"),
    "bitsandbytes without a name": (configure(quantization_config={"load_in_8bit": True}), r"quantized by bitsandbytes"),
    "torchao": (quantized("torchao", quant_type="int4_weight_only"), r"quantized by torchao"),
    "aqlm": (quantized("aqlm"), r"quantized by aqlm"),
    "exl2": (quantized("exl2", bits=4), r"quantized by exl2, which cannot be read here: no quantizer"),
    "mlx": (configure(quantization={"bits": 4, "group_size": 64}), r"quantized by mlx"),
    "unnamed GPTQ": (tensors(as_qweight), r"tensors of GPTQ or AWQ.*no quantization_config"),
    "unnamed fp8": (tensors(as_float8), r"F8_E4M3 weights.*no quantization_config"),
    "own code": (configure(model_type="qwen", auto_map={"AutoModelForCausalLM": "modeling_q.QWen"}), r"modeling_q\.QWen.*trust_remote_code"),
    "own code around a known type": (configure(auto_map={"AutoModelForCausalLM": "modeling_x.MyLlama"}), r"MyLlama.*trust_remote_code"),
    "unknown type": (configure(model_type="frobnicator"), r"model_type frobnicator.*does not know"),
    "unknown architecture": (configure(architectures=["FrobForCausalLM"]), r"architecture FrobForCausalLM, but transformers makes a LlamaForCausalLM"),
    "no type": (lambda folder: replaced("config.json", '{"architectures": ["LlamaForCausalLM"]}')(folder), r"no model_type in config\.json"),
    "classifier": (configure(architectures=["LlamaForSequenceClassification"]), "a classifier of texts"),
    "encoder": (configure(model_type="bert", architectures=["BertModel"]), "BertModel: an encoder"),
    "masked language model": (configure(model_type="bert", architectures=["BertForMaskedLM"]), "BertForMaskedLM: an encoder"),
    "encoder-decoder": (configure(model_type="t5", architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True), "an encoder-decoder model"),
    "vision and language": (
        configure(model_type="gemma3", architectures=["Gemma3ForConditionalGeneration"], vision_config={}, text_config={}), "a multimodal model",
    ),
    "configuration with a byte order mark": (lambda folder: replaced("config.json", b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())(folder), "BOM"),
    "configuration that is a list": (replaced("config.json", "[1]"), "JSON, but a list"),
    "configuration of wrong types": (configure(hidden_size="64"), "hidden_size"),
    "damaged generation settings": (replaced("generation_config.json", "{"), r"generation_config\.json: not valid JSON"),
    "impossible generation settings": (replaced("generation_config.json", '{"max_new_tokens": -5}'), r"generation_config\.json: .*max_new_tokens"),
    "no tokenizer": (without_tokenizer, r"no tokenizer\.json"),
    "truncated tokenizer": (cut("tokenizer.json", 0.5), "its tokenizer cannot be loaded"),
    "end token as a list": (lambda folder: edit(folder / "tokenizer_config.json", {"eos_token": ["a", "b"]}), "eos_token has to be"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_damaged_foreign_and_partial_models_are_refused_by_name(model: Path, name: str) -> None:
    change, pattern = REFUSED[name]
    change(model)
    fault = find_fault(model)
    assert fault is not None
    with pytest.raises(ModelError, match=f"(?s){pattern}"):
        raise fault
    with pytest.raises(ModelError):
        load_model(model)
        load_tokenizer(model, chat=False)


def test_a_head_left_out_is_named(untied: Path) -> None:
    without("lm_head")(untied)
    assert "lm_head.weight" in str(find_fault(untied)) and "tie_word_embeddings=true" in str(find_fault(untied))


HEADERS_SHOW = (
    "git-lfs pointer",
    "truncated",
    "a shard missing",
    "a tensor twice",
    "adapter",
    "unnamed GPTQ",
    "only a variant",
)


@pytest.mark.parametrize("name", HEADERS_SHOW)
def test_what_headers_show_is_refused_without_torch(model: Path, name: str) -> None:
    change, pattern = REFUSED[name]
    change(model)
    with pytest.raises(ModelError, match=f"(?s){pattern}"):
        check_source(model)


TAKEN: dict[str, Change] = {
    "as it is": lambda folder: None,
    "left-over rotary buffers": plus("model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.cos_cached"),
    "sharded": sharded,
    "a second copy": lambda folder: shutil.copy(folder / WEIGHTS, folder / "consolidated.safetensors"),
    "a variant beside": lambda folder: shutil.copy(folder / WEIGHTS, folder / "model.fp16.safetensors"),
    "a pickle beside": replaced("pytorch_model.bin", b"x"),
    "no quantization, said so": configure(quantization_config=None),
    "own code that is transformers' own": configure(auto_map={"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}),
    "an early spelling of the class": configure(architectures=["LLaMAForCausalLM"]),
    "a trainer's class": configure(architectures=["FSDPLlamaForCausalLM"]),
    "saved from the body": lambda folder: (
        tensors(lambda kept: {name.removeprefix("model."): tensor for name, tensor in kept.items()})(folder),
        configure(architectures=["LlamaModel"])(folder),
    ),
    "a pad token without a row": configure(pad_token_id=600),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_harmless_oddities_are_taken(bases: Path, model: Path, name: str) -> None:
    import torch

    wanted = load_model(bases / "tied").state_dict()
    TAKEN[name](model)
    assert find_fault(model) is None
    found = load_model(model).state_dict()
    assert all(torch.equal(found[part], weight) for part, weight in wanted.items())


@pytest.mark.parametrize("copy", ["consolidated.safetensors", "model.fp16.safetensors", SHARDS[0], "model.gguf"])
def test_a_second_copy_counts_once(model: Path, copy: str) -> None:
    before = parameter_count(model), weight_bytes(model)
    shutil.copy(model / WEIGHTS, model / copy)
    assert (parameter_count(model), weight_bytes(model)) == before and unused_files(model) == [copy]


def test_shards_count_together(model: Path) -> None:
    before = parameter_count(model)
    sharded(model)
    assert parameter_count(model) == before
    assert weight_bytes(model) == sum((model / name).stat().st_size for name in SHARDS)


def test_a_head_that_differs_from_its_embedding_is_kept_and_said(
    untied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    configure(tie_word_embeddings=True)(untied)
    loaded = load_model(untied)
    assert "tie_word_embeddings becomes false" in caplog.text
    save_model(loaded, build_tokenizer(), tmp_path / "saved", "float32")
    again = load_model(tmp_path / "saved")
    assert torch.equal(again.lm_head.weight, loaded.lm_head.weight) and not again.config.tie_word_embeddings
    assert not torch.equal(again.lm_head.weight, again.model.embed_tokens.weight)


def test_experts_with_one_missing_are_refused(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    MixtralForCausalLM(MixtralConfig(**sizes, vocab_size=512, num_local_experts=4)).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    assert find_fault(tmp_path) is None
    without("experts.2.w1")(tmp_path)
    assert "experts.gate_up_proj" in str(find_fault(tmp_path))
