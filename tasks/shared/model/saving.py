"""Saving of models and tokenizers, so that plain transformers can load them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.shared.errors import ModelError
from tasks.shared.model.configuration import BITSANDBYTES
from tasks.shared.model.loading import Dtype, load_model, load_tokenizer
from tasks.shared.model.weights import is_gguf, quantization

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def dense_copy(source: Path, out: Path) -> None:
    """Write a GGUF file or compressed-tensors folder as a dense folder.

    In float32, so that every level times its scale is exact.
    Raises ModelError for weights of bitsandbytes, which what reads the copy would round a second time.
    """
    if not is_gguf(source) and quantization(source) == BITSANDBYTES:
        raise ModelError(
            str(source),
            "weights quantized by bitsandbytes: no other format holds their levels",
            "dense weights, or integers of compressed-tensors",
            "use the model before its quantization",
        )
    model, tokenizer = load_model(source), load_tokenizer(source, chat=False)
    if not is_gguf(source):
        from transformers import AutoModelForCausalLM

        if hasattr(model.config, "quantization_config"):  # absent where transformers has unpacked the weights
            del model.config.quantization_config
        dense = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
        weights = model.state_dict()
        dense.load_state_dict({name: weights[name] for name in dense.state_dict()})
        model = dense
    save_model(model, tokenizer, out, "float32")


def align_special_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Copy the tokenizer's end of turn and padding into the model's configurations.

    A list of several end tokens that includes the tokenizer's is kept: Llama 3 has three.  A list with a single one, as written
    by trainers, is replaced.
    """
    both: list[Any] = [model.config, model.generation_config]
    for settings in filter(None, both):
        known = settings.eos_token_id
        if not (isinstance(known, list) and len(known) > 1 and tokenizer.eos_token_id in known):
            settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id


def save_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    out: Path,
    dtype: Dtype | Literal["float16"] = "bfloat16",
) -> None:
    """Write a model folder: safetensors in `dtype`, config, generation config, tokenizer.

    Tensors that the family keeps in float32, such as a router's corrections, stay so.
    Raises ModelError if the tokenizer, once reloaded, splits text differently.
    """
    import torch

    align_special_tokens(model, tokenizer)
    exact = tuple(model._keep_in_fp32_modules_strict or ())
    kept = {name: tensor.detach().float() for name, tensor in _tensors(model) if any(part in name for part in exact)}
    model.to(getattr(torch, dtype))
    for name, tensor in _tensors(model):
        if name in kept:
            tensor.data = kept[name]
    model.save_pretrained(out)
    save_tokenizer(tokenizer, out)


def _tensors(model: "PreTrainedModel") -> "Iterator[tuple[str, torch.Tensor]]":
    """Yield every parameter and buffer with its name."""
    yield from model.named_parameters()
    yield from model.named_buffers()


PROBE = "Can I return the Wren (£249) within 30 days?\n\tIt's café-grade; naïve, 東京, ok 👍 <|im_end|> x = y[3] + 'z'"
"""Capitals, digits, spaces, punctuation, accents, another script, a four-byte symbol, markup."""


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", out: Path) -> None:
    """Write the tokenizer's files; raise ModelError if it changes once reloaded.

    Some classes rebuild the tokenizer by rules of their own on loading: Gemma's from a GGUF turns scores into merges, finds none,
    and the saved folder would split every text into letters.
    """
    tokenizer.save_pretrained(out)
    before, after = (
        each(PROBE, add_special_tokens=False)["input_ids"] for each in (tokenizer, load_tokenizer(out, chat=False))
    )
    if before != after:
        raise ModelError(
            f"{type(tokenizer).__name__} in {out.name}",
            f"once saved and reloaded, it splits a text into {len(after)} tokens that differ from the {len(before)} before",
            "a tokenizer that transformers saves without loss",
            "use the model's original Hugging Face folder instead of its GGUF file",
        )
