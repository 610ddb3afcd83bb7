"""Save a model and its tokenizer so that plain transformers loads them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import ModelError
from tasks.shared.model.loading import Dtype, load_model, load_tokenizer
from tasks.shared.model.weights import is_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def dense_copy(source: Path, out: Path) -> None:
    """A GGUF file or a compressed-tensors folder as a dense folder, in float32: every level times its scale stays exact."""
    model, tokenizer = load_model(source), load_tokenizer(source)
    if not is_gguf(source):
        from transformers import AutoModelForCausalLM

        del model.config.quantization_config
        dense = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
        weights = model.state_dict()
        dense.load_state_dict({name: weights[name] for name in dense.state_dict()})
        model = dense
    save_model(model, tokenizer, out, "float32")


def align_special_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Give the model's configurations the tokenizer's end of turn and padding.  Several ends that hold the tokenizer's stay as they
    are: Llama 3 ends turns in three ways.  Trainers write a single one as a list, which is undone.
    """
    both: list[Any] = [model.config, model.generation_config]
    for settings in filter(None, both):
        known = settings.eos_token_id
        if not (isinstance(known, list) and len(known) > 1 and tokenizer.eos_token_id in known):
            settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id


def save_model(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", out: Path, dtype: Dtype = "bfloat16"
) -> None:
    """Write a folder that plain transformers loads: safetensors in `dtype`, config, generation config, tokenizer.

    Raises ModelError for a tokenizer that, read back, cuts text in another way.
    """
    import torch

    align_special_tokens(model, tokenizer)
    model.to(getattr(torch, dtype)).save_pretrained(out)
    save_tokenizer(tokenizer, out)


PROBE = "Can I return the Wren (£249) within 30 days?\n\tIt's café-grade; naïve, 東京, ok 👍 <|im_end|> x = y[3] + 'z'"
"""Capitals, digits, spaces, marks, accents, another script, a symbol of four bytes, markup."""


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", out: Path) -> None:
    """Write the tokenizer's files.  A class may rebuild what it was loaded from by rules of its own when it is read back (Gemma's from
    a GGUF: scores become merges, of which there are none), and then writes a folder that reads every text letter by letter.
    """
    tokenizer.save_pretrained(out)
    before, after = (
        each(PROBE, add_special_tokens=False)["input_ids"] for each in (tokenizer, load_tokenizer(out, chat=False))
    )
    if before != after:
        raise ModelError(
            f"{type(tokenizer).__name__} in {out.name}",
            f"saved and read back it cuts a text into {len(after)} other tokens than before ({len(before)})",
            "a tokenizer that transformers writes as it reads it",
            "take the model's original Hugging Face folder instead of its GGUF file",
        )
