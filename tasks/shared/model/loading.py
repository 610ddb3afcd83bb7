"""Load, render, save: the one way in and out of transformers.

A model is a Hugging Face folder with safetensors, or a llama.cpp GGUF file that transformers dequantizes.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.shared.errors import ModelError
from tasks.shared.model.weights import check_source, is_gguf, quick_gguf
from tasks.shared.progress import no_foreign_bars

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["float32", "bfloat16"]
log = logging.getLogger(__name__)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML (OpenAI's chat markup) without a default system message.

The embedded model's own template inserts a system text of its maker when a conversation brings none; ours all bring one.
"""
END_OF_TURN = "<|im_end|>"


def load_model(path: Path, dtype: Dtype = "float32", device: str = "cpu") -> "PreTrainedModel":
    """The model in evaluation mode.  Raises ModelError for what `check_source` refuses or transformers cannot read."""
    check_source(path)
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "trust_remote_code": False}
    try:
        with no_foreign_bars():
            if is_gguf(path):
                with quick_gguf():
                    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **options)
                forget_quantization(model)
            else:
                model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, **options)
            place(model, device)
            if getattr(model, "hf_quantizer", None) is not None:
                model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))  # unpacks the weights, once
                _keep_unpacked(model)
            return model
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            str(path), f"cannot be loaded: {error}", "a causal language model that transformers knows"
        ) from error


def _keep_unpacked(model: "PreTrainedModel") -> None:
    """Run layers of which only the weights are quantized as plain ones.

    Unpacked, weights lie on their steps; compressed-tensors would round all of them to these again in every forward pass, which
    costs a small model more than the pass itself.
    """
    layers: Any = model.modules()
    for layer in layers:
        scheme = getattr(layer, "quantization_scheme", None)
        if scheme is not None and scheme.input_activations is None and scheme.output_activations is None:
            layer.quantization_enabled = False


def has_cpu_bfloat16() -> bool:
    """Whether this processor has bfloat16 instructions (AVX512-BF16, AMX), read from the system; False where it cannot tell."""
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags.partition("Features")[2].split("\n", 1)[0]


def place(model: Any, device: str) -> "PreTrainedModel":
    """The model on a device, in evaluation mode."""
    return model.to(device).eval()


def forget_quantization(model: "PreTrainedModel") -> None:
    """Make a dequantized GGUF an ordinary dense model: `save_pretrained` would otherwise treat it as still quantized."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name, value in {"hf_quantizer": None, "is_quantized": False}.items():  # the trainer refuses is_quantized
        setattr(model, name, value)


def load_tokenizer(path: Path, chat: bool = True) -> "PreTrainedTokenizerBase":
    """The tokenizer with a pad token, the real end of turn as eos, and a chat template, unless `chat` says that none is needed.

    The template is the folder's or the file's own, which llama.cpp takes too; ChatML where there is none but its markup is known,
    and for a file that writes ChatML but for a default system message.
    A GGUF's special-token map may name the start of a turn as bos and eos (SmolLM2's does), with which generation never stops.
    """
    check_source(path)
    from transformers import AutoTokenizer

    try:
        if is_gguf(path):
            with quick_gguf():
                tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
        else:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            str(path), f"its tokenizer cannot be loaded: {error}", "tokenizer files beside the weights"
        ) from error
    tokenizer.init_kwargs.pop("local_files_only", None)  # of the environment, and it would be saved
    if END_OF_TURN in tokenizer.get_vocab():
        tokenizer.eos_token = END_OF_TURN
        plain = not tokenizer.chat_template or (is_gguf(path) and _writes_chatml(tokenizer))
        tokenizer.chat_template = CHATML if plain else tokenizer.chat_template
    if chat and tokenizer.chat_template is None:
        raise ModelError(
            str(path), "no chat template", "an instruction-tuned model, or a chat_template.jinja in its folder"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    for circumstance in ("is_local", "local_files_only"):  # of this load; `save_pretrained` would write them down
        tokenizer.init_kwargs.pop(circumstance, None)
    tokenizer.padding_side = "left"
    tokenizer.clean_up_tokenization_spaces = False  # a WordPiece habit that eats spaces before punctuation
    return tokenizer


def _writes_chatml(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer's template writes a conversation that brings its own system message as ChatML does."""
    from jinja2 import TemplateError

    roles = ("system", "user", "assistant", "user")
    talk = [{"role": role, "content": f"turn {number}"} for number, role in enumerate(roles)]
    try:
        own, plain = (
            [tokenizer.apply_chat_template(talk, chat_template=template, tokenize=False, add_generation_prompt=asked) for asked in (True, False)]
            for template in (tokenizer.chat_template, CHATML)
        )  # fmt: skip
    except TemplateError:  # it takes no system message
        return False
    return own == plain


def render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[dict[str, str]], add_generation_prompt: bool = True
) -> str:
    """The conversation as text in the model's own chat format.  Raises ModelError if its template refuses it (a system turn, say)."""
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ModelError(
            "chat template", f"it refuses turns of {roles}: {error}", "a template that takes them"
        ) from error
