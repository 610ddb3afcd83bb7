"""Configuration of a model folder, and refusal of adapters, foreign code and other kinds."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import ModelError
from tasks.shared.extras import extra_problem
from tasks.shared.model.families import NARROW_HEADS, TITLES
from tasks.shared.model.gguf_files import header_settings, read_gguf_header
from tasks.shared.model.weight_files import TensorInfo, read_json, shown, unused_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig

log = logging.getLogger(__name__)
OWN_QUANTIZATION = "compressed-tensors"
"""The quantized format that this project writes, and reads with all engines but llama.cpp."""
UNREAD = ("head_dim", "moe_intermediate_size", "n_positions", "attn_logit_softcapping", "final_logit_softcapping")
"""Settings that transformers does not read from the header of every family's GGUF."""
BITSANDBYTES = "bitsandbytes"
"""A quantized format that only transformers reads, with an optional package."""
QUANTIZED_NAMES = {
    ".qweight": "GPTQ or AWQ", ".qzeros": "GPTQ or AWQ", ".weight_packed": "compressed-tensors", ".weight_scale_inv": "fp8",
    ".weight.absmax": BITSANDBYTES, ".SCB": BITSANDBYTES, "_blocks": "mxfp4", ".codebooks": "AQLM", ".W_q": "HQQ",
}  # fmt: skip
"""Ends of tensor names that only quantized weights have, and the tool that writes them."""
MODEL_TYPES = "a decoder-only language model that transformers itself implements"
OTHER_TASKS = {
    "ForMaskedLM": "an encoder, trained to fill in masked words", "ForSequenceClassification": "a classifier of texts, without a language head",
    "ForTokenClassification": "a classifier of tokens, without a language head", "ForQuestionAnswering": "an extractor of answers, without a language head",
    "ForMultipleChoice": "a chooser among answers, without a language head", "ForPreTraining": "an encoder with its pretraining heads",
    "ForRewardModel": "a reward model, without a language head", "ForNextSentencePrediction": "an encoder, without a language head",
}  # fmt: skip


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json.

    Raises ModelError for an adapter's folder, and for a file that is absent or no JSON object.
    """
    refuse_adapter(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(str(folder), "no config.json in this folder", "a Hugging Face model folder")
    return read_json(folder / "config.json")


def refuse_adapter(folder: Path) -> None:
    """Raise ModelError for a folder with a PEFT adapter, alone or beside full weights.

    Transformers would load the adapter's base from elsewhere and put the adapter on it.
    """
    if not (folder / "adapter_config.json").exists():
        return
    adapter = read_json(folder / "adapter_config.json")
    base, kind = adapter.get("base_model_name_or_path") or "its base model", adapter.get("peft_type") or "PEFT"
    merge = (
        f"merge it: PeftModel.from_pretrained(<{base}>, <this folder>).merge_and_unload().save_pretrained(<new folder>)"
    )
    if any(folder.glob("model*.safetensors")):
        raise ModelError(
            str(folder),
            f"full weights and a {kind} adapter (adapter_config.json, for {base}): unclear which of them is meant",
            "full weights alone",
            f"if the weights are merged, move adapter_config.json and adapter_model.* elsewhere; else {merge}",
        )
    raise ModelError(str(folder), f"a {kind} adapter for {base}, not a whole model", "full weights", merge)


def quantization_method(config: Mapping[str, Any]) -> str:
    """Return the name of the method that quantized the weights; empty for dense weights."""
    for part in (config, config.get("text_config") or {}):
        found = part.get("quantization_config") or part.get("compression_config")
        if isinstance(found, Mapping):
            bits = BITSANDBYTES if found.get("load_in_4bit") or found.get("load_in_8bit") else "a method without a name"
            return str(found.get("quant_method") or bits)
    if isinstance(mlx := config.get("quantization"), Mapping) and "bits" in mlx:
        return "mlx"
    return ""


def refuse_unnamed_quantization(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """Raise ModelError for quantized tensors in a folder whose configuration does not say so."""
    if quantization_method(config):
        return
    for end, tool in QUANTIZED_NAMES.items():
        if names := [name for name in tensors if name.endswith(end)]:
            raise _unnamed(folder, f"tensors of {tool} ({shown(names, 2)})")
    small = [name for name, tensor in tensors.items() if tensor.dtype.startswith(("F8_", "F4", "F6_"))]
    if small:
        raise _unnamed(folder, f"{tensors[small[0]].dtype} weights ({shown(small, 2)})")
    whole = [
        name
        for name, tensor in tensors.items()
        if name.endswith("_proj.weight") and tensor.dtype in {"I8", "U8", "I32", "U32"}
    ]
    if whole:
        raise _unnamed(folder, f"integer weights ({shown(whole, 2)})")


def _unnamed(folder: Path, got: str) -> ModelError:
    return ModelError(
        str(folder),
        f"quantized: {got}, but no quantization_config in config.json",
        "dense weights, or a folder whose configuration says how they were quantized",
        "use the model before its quantization",
    )


def load_config(path: Path) -> "PretrainedConfig":
    """Return the configuration of a causal language model that can be run here.

    path: a folder, or a GGUF file that `check_source` accepts.  A pad token without a row in the embedding is left out.
    Raises ModelError for a model of another kind, one that needs code of its own, or a quantization that cannot be read here.
    """
    from transformers import AutoConfig

    raw = {} if path.is_file() else read_config(path)
    if raw:
        refuse_unknown_type(path, raw)
        refuse_unreadable_quantization(path, raw)
    place: dict[str, Any] = {"gguf_file": path.name} if path.is_file() else {}
    config: PretrainedConfig = AutoConfig.from_pretrained(
        path.parent if place else path, trust_remote_code=False, **place
    )
    if place:
        _take_header(config, path)
    refuse_foreign_model(path, config, raw)
    if (path / "generation_config.json").is_file():
        _refuse_unreadable_generation(path / "generation_config.json")
    pad = config.pad_token_id
    if isinstance(pad, int) and pad >= getattr(config, "vocab_size", pad + 1):
        log.warning(
            "%s: pad_token_id %d of config.json is beyond the %d tokens of the vocabulary; dropped",
            path,
            pad,
            config.vocab_size,
        )
        config.pad_token_id = None
    return config


def _take_header(config: "PretrainedConfig", file: Path) -> None:
    """Set what transformers leaves at its defaults although a GGUF's header says it.

    Sizes of heads and experts, GPT-2's positions, and Gemma's soft caps; llama.cpp computes the scale of Gemma's attention from the sizes.
    """
    if config.model_type not in TITLES:  # Gemma 4, for one, has heads of two sizes, and its header gives the other one
        return
    known, given = config.to_dict(), header_settings(read_gguf_header(file))
    for name in UNREAD:
        if name in known and name in given:
            setattr(config, name, given[name])
    if config.model_type in NARROW_HEADS:
        narrow = NARROW_HEADS[config.model_type] == config.num_hidden_layers
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if narrow else config.head_dim


def _refuse_unreadable_generation(file: Path) -> None:
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_dict(read_json(file)).validate()
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            str(file),
            " ".join(str(error).split()),
            "settings that transformers accepts",
            "correct or remove the setting that it names",
        ) from error


def refuse_unreadable_quantization(where: Path, raw: Mapping[str, Any]) -> None:
    """Raise ModelError if the installed libraries cannot read the weights' quantization."""
    method = quantization_method(raw)
    if method in {"", OWN_QUANTIZATION}:
        return
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoHfQuantizer

    reason, fix = "no quantizer of transformers reads it", "use the model before its quantization"
    settings = raw.get("quantization_config") or (raw.get("text_config") or {}).get("quantization_config") or {}
    if method in AUTO_QUANTIZATION_CONFIG_MAPPING or method == BITSANDBYTES:
        try:
            AutoHfQuantizer.from_config(settings, pre_quantized=True).validate_environment(
                device_map=None, weights_only=True
            )
            return
        except (ImportError, RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
            reason = " ".join(str(error).split())
            if method == BITSANDBYTES and (missing := extra_problem(str(where), BITSANDBYTES, (BITSANDBYTES,))):
                reason, fix = missing.got, f"{missing.fix}, or {fix}"
    raise ModelError(
        str(where),
        f"weights quantized by {method}, which cannot be read here: {reason}",
        f"dense weights, or {OWN_QUANTIZATION}",
        fix,
    )


def refuse_foreign_model(where: Path, config: "PretrainedConfig", raw: Mapping[str, Any]) -> str:
    """Raise ModelError unless the model is of transformers' causal class for its configuration.

    raw: config.json as written; empty for a GGUF.
    Returns the name of the class.  The model's own code is never run.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    written = [str(name) for name in raw.get("architectures") or ()]
    name = written[0] if written else ""
    if config.is_encoder_decoder or raw.get("is_encoder_decoder"):
        raise _wrong_kind(where, f"{name or config.model_type}: an encoder-decoder model")
    if other := next((kind for end, kind in OTHER_TASKS.items() if name.endswith(end)), ""):
        raise _wrong_kind(where, f"{name}: {other}")
    if type(config) in AutoModelForMaskedLM._model_mapping and not getattr(config, "is_decoder", False):
        raise _wrong_kind(where, f"{name or config.model_type}: an encoder, which reads both ways")
    if (
        any(raw.get(f"{sense}_config") is not None for sense in ("vision", "audio", "speech"))
        or "mm_vision_tower" in raw
    ):
        raise _wrong_kind(where, f"{name or config.model_type}: a multimodal model (vision or audio beside text)")
    known = AutoModelForCausalLM._model_mapping  # the class itself, not its name: it is what `from_pretrained` takes
    if type(config) not in known:
        raise _wrong_kind(where, f"{name or config.model_type}: no causal language model in transformers")
    cls: Any = known[type(config)]
    own = str((raw.get("auto_map") or {}).get("AutoModelForCausalLM", "")).rpartition(".")[2]
    if own and own != cls.__name__:
        raise _remote_code(where, own, str(config.model_type))
    if name and not _same_class(name, cls.__name__):
        raise ModelError(
            str(where),
            f"architecture {name}, but transformers makes a {cls.__name__} of model_type {config.model_type}",
            MODEL_TYPES,
            f"if it is one, write {cls.__name__} under architectures in config.json; else convert the model",
        )
    return str(cls.__name__)


def refuse_unknown_type(where: Path, raw: Mapping[str, Any]) -> None:
    """Raise ModelError for a model_type that the installed transformers does not know."""
    from transformers import CONFIG_MAPPING

    kind = raw.get("model_type")
    if kind in CONFIG_MAPPING:
        return
    code = raw.get("auto_map") or {}
    if code:
        raise _remote_code(where, str(code.get("AutoModelForCausalLM") or next(iter(code.values()))), str(kind))
    name = (raw.get("architectures") or ["no architecture"])[0]
    got = (
        f"model_type {kind} ({name}), which this transformers does not know"
        if kind
        else f"no model_type in config.json ({name})"
    )
    raise ModelError(str(where), got, MODEL_TYPES, "convert the model, use another one, or upgrade transformers")


def config_notes(folder: Path, raw: Mapping[str, Any]) -> list[str]:
    """Return notes on unused parts of a folder: its own code, and weights that nothing loads."""
    notes = []
    if raw.get("auto_map"):
        notes.append(f"{folder}: its own code (auto_map) is not run; transformers' class is used")
    if unused := unused_files(folder):
        notes.append(f"{folder}: not loaded and not counted: {shown(unused)}")
    return notes


def _same_class(written: str, own: str) -> bool:
    """Return True for another spelling of a class's name.

    Trainers write FSDPQwen2ForCausalLM, early checkpoints LLaMAForCausalLM.  A bare LlamaModel counts as well: its tensors are checked against the whole model.
    """
    plain = written.removeprefix("FSDP").lower()
    return plain == own.lower() or plain == own.lower().replace("forcausallm", "model")


def _wrong_kind(where: Path, got: str) -> ModelError:
    return ModelError(str(where), got, MODEL_TYPES, "use a causal language model, such as a ...ForCausalLM")


def _remote_code(where: Path, name: str, kind: str) -> ModelError:
    return ModelError(
        str(where),
        f"needs code of its own ({name}, model_type {kind}; trust_remote_code), which is never run",
        MODEL_TYPES,
        "convert the model to a class of transformers, or use another one",
    )
