"""Loading of models and tokenizers with transformers.

A model is a Hugging Face folder with safetensors, or a GGUF file, which transformers dequantizes.
"""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.shared.errors import ModelError, StillroomError
from tasks.shared.freed_memory import return_freed_memory
from tasks.shared.model.bitsandbytes_layers import loading_options, refuse_broken_layers, unpack_levels
from tasks.shared.model.configuration import BITSANDBYTES, load_config
from tasks.shared.model.graph_files import graph_files
from tasks.shared.model.prompts import settle_template
from tasks.shared.model.repairs import drop_tokens_without_row, make_writable, settle_pad
from tasks.shared.model.strict import check_gguf_tensors, one_message, refuse_misfit, refuse_not_finite
from tasks.shared.model.template_edits import CHATML, PROGRAM_ERRORS, plain_template
from tasks.shared.model.weights import check_source, is_gguf, quantization, quick_gguf
from tasks.shared.progress import no_foreign_bars

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["float32", "bfloat16"]
log = logging.getLogger(__name__)

END_OF_TURN = "<|im_end|>"


def load_model(path: Path, dtype: Dtype = "float32", device: str = "cpu") -> "PreTrainedModel":
    """Load a model in evaluation mode, every tensor of it filled once from its files.

    Raises ModelError if `check_source` or `load_config` refuses it, a tensor is missing, left over, of another shape or not finite,
    or transformers cannot read it.
    """
    check_source(path)
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    return_freed_memory()  # an earlier model's, which would add to this one's
    by_bitsandbytes = path.is_dir() and quantization(path) == BITSANDBYTES
    options = loading_options(device) if by_bitsandbytes else {}
    with no_foreign_bars(), one_message(path):
        model = _fill(path, options | {"dtype": getattr(torch, dtype)})
        place(model, device)
        if by_bitsandbytes:
            refuse_broken_layers(path, model)
            unpack_levels(model, getattr(torch, dtype))
            _cast(model, getattr(torch, dtype))
        if getattr(model, "hf_quantizer", None) is not None:
            _unpack(model, getattr(torch, dtype))
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))  # other libraries unpack here, once
            _keep_unpacked(model)
    refuse_not_finite(path, model)
    make_writable(model, str(path))
    return model


def _fill(path: Path, options: dict[str, Any]) -> "PreTrainedModel":
    """Load the model with transformers.  Raises ModelError for tensors missing or left over."""
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained  # typed without the loading information that it returns as well
    options |= {"trust_remote_code": False, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if not is_gguf(path):
        model, info = load(path, config=load_config(path), use_safetensors=True, **options)
        refuse_misfit(path, info)
        return model
    with quick_gguf():
        config = load_config(path)
        check_gguf_tensors(path, config)
        model, info = load(path.parent, config=config, gguf_file=path.name, **options)
        refuse_misfit(path, info)
    forget_quantization(model)
    return model


def _unpack(model: "PreTrainedModel", dtype: "torch.dtype") -> None:
    """Compute the weights that compressed-tensors packed, and cast the dense parts.

    Transformers leaves dense parts that it renames (GPT-NeoX's head) as stored, and 4-bit floats come out of their package in bfloat16.
    """
    _cast(model, dtype)
    quantizer: Any = model.hf_quantizer
    if getattr(quantizer, "compressor", None) and quantizer.quantization_config.is_quantization_compressed:
        quantizer.compressor.decompress_model(model=model)
        _cast(model, dtype)


def _cast(model: "PreTrainedModel", dtype: "torch.dtype") -> None:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


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
    tokenizer = _read_tokenizer(path)
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
    settle_pad(tokenizer, path)
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


def _read_tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    """Read a tokenizer, without tokens that the model has no row for.  Raises ModelError."""
    if graph_files(path) is None:  # a folder with a whole tokenizer, and weights that another engine reads
        check_source(path)
    from transformers import AutoTokenizer

    place = {"gguf_file": path.name} if is_gguf(path) else {}
    try:
        with quick_gguf() if place else nullcontext():
            tokenizer = AutoTokenizer.from_pretrained(path.parent if place else path, trust_remote_code=False, **place)
    except (StillroomError, MemoryError):
        raise
    except Exception as error:  # a damaged tokenizer.json can raise anything, even a bare Exception
        raise ModelError(
            str(path),
            f"its tokenizer cannot be loaded: {_tokenizer_fault(path, error)}",
            "tokenizer files in the model's folder",
            "copy tokenizer.json and tokenizer_config.json from the original model",
        ) from error
    drop_tokens_without_row(tokenizer, path)
    return tokenizer


def _tokenizer_fault(path: Path, error: Exception) -> str:
    """Return the reason in one line.

    Transformers' own text for a folder without a tokenizer is about its classes.
    """
    files = (
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "tekken.json",
        "*.tiktoken",
        "spiece.model",
    )
    if path.is_dir() and not any(next(path.glob(name), None) for name in files):
        return "no tokenizer.json, tokenizer.model or vocabulary in the folder"
    return " ".join(str(error).split())


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
    except (TemplateError, *PROGRAM_ERRORS):  # it takes no system message, or fails
        return False
    return own == plain
