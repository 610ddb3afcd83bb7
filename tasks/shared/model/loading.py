"""Loading of models and tokenizers with transformers.

A model is a Hugging Face folder with safetensors, or a GGUF file, which transformers dequantizes.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.shared.errors import ModelError
from tasks.shared.model.prompts import settle_template
from tasks.shared.model.templates import CHATML, plain_template
from tasks.shared.model.weights import check_source, is_gguf, quick_gguf
from tasks.shared.progress import no_foreign_bars

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["float32", "bfloat16"]
log = logging.getLogger(__name__)

END_OF_TURN = "<|im_end|>"


def load_model(path: Path, dtype: Dtype = "float32", device: str = "cpu") -> "PreTrainedModel":
    """Load a model in evaluation mode.

    Raises ModelError if `check_source` refuses it or transformers cannot read it.
    """
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
    """Run layers with weight-only quantization as plain ones.

    Unpacked weights are already on the grid; compressed-tensors would round them again in every forward pass, which costs a small
    model more than the pass itself.
    """
    layers: Any = model.modules()
    for layer in layers:
        scheme = getattr(layer, "quantization_scheme", None)
        if scheme is not None and scheme.input_activations is None and scheme.output_activations is None:
            layer.quantization_enabled = False


def has_cpu_bfloat16() -> bool:
    """Return True if this CPU has bfloat16 instructions (AVX512-BF16, AMX); False if unknown."""
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags.partition("Features")[2].split("\n", 1)[0]


def place(model: Any, device: str) -> "PreTrainedModel":
    """Move a model to a device and set evaluation mode."""
    return model.to(device).eval()


def forget_quantization(model: "PreTrainedModel") -> None:
    """Mark a dequantized GGUF as dense; `save_pretrained` would treat it as quantized."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name, value in {"hf_quantizer": None, "is_quantized": False}.items():  # the trainer refuses is_quantized
        setattr(model, name, value)


def load_tokenizer(path: Path, chat: bool = True) -> "PreTrainedTokenizerBase":
    """Load a tokenizer with a pad token, the end of turn as eos, and a chat template.

    chat: raise ModelError if there is no chat template.
    The template is the model's own, which llama.cpp uses too, as `settle_template` leaves it.  It is ChatML if there is none but the
    vocabulary has ChatML's markup, or for a GGUF whose template differs from ChatML only by a default system message.
    The end of turn is what the template writes after an answer: eos may be another token (Gemma's is <eos>, its turns end with
    <end_of_turn>), a GGUF's special-token map may even name the start of a turn (SmolLM2's does), and generation would never stop.
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
            str(path), f"its tokenizer cannot be loaded: {error}", "tokenizer files in the model's folder"
        ) from error
    tokenizer.init_kwargs.pop("local_files_only", None)  # depends on the environment, but would be saved
    if END_OF_TURN in tokenizer.get_vocab() and (
        not tokenizer.chat_template or (is_gguf(path) and _writes_chatml(tokenizer))
    ):
        tokenizer.chat_template = CHATML
    if tokenizer.chat_template:
        settle_template(tokenizer)
    if chat and tokenizer.chat_template is None:
        raise ModelError(
            str(path),
            "no chat template",
            "an instruction-tuned model, or a template of your own",
            "models.NAME.template=/path/to/chat_template.jinja",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    for circumstance in (
        "is_local",
        "local_files_only",
    ):  # about this load only, but `save_pretrained` would write them
        tokenizer.init_kwargs.pop(circumstance, None)
    tokenizer.padding_side = "left"
    tokenizer.clean_up_tokenization_spaces = False  # meant for WordPiece; it removes spaces before punctuation
    return tokenizer


def training_tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    """Load a tokenizer for training.

    A base model gets the plain-text format, which the trained model carries as its template.
    """
    tokenizer = load_tokenizer(path, chat=False)
    if not tokenizer.chat_template:
        tokenizer.chat_template = plain_template(tokenizer)
        log.info(
            "%s has no chat template: turns are written as plain text, `User: ...` and `Assistant: ...`", path.name
        )
    return tokenizer


def _writes_chatml(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return True if the template renders a conversation with a system message as ChatML does."""
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
