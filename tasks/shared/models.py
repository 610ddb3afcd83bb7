"""Load, render, save: the one way in and out of transformers.

A model is a Hugging Face folder with safetensors, or a llama.cpp GGUF file that transformers dequantises.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.shared.errors import ModelError
from tasks.shared.progress import no_foreign_bars

if TYPE_CHECKING:
    from gguf import GGUFReader
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


def check_source(path: Path) -> None:
    """Refuse what cannot or must not be loaded: a missing path, pickled weights, a folder without safetensors.

    Raises ModelError.  Pickles run code when they are read, so they are never the fallback.
    """
    if not path.exists():
        raise ModelError(
            str(path),
            "no such file or folder",
            "a Hugging Face folder with safetensors, or a .gguf file",
            "correct the model's path",
        )
    if path.is_file():
        if _magic(path) != b"GGUF":
            raise ModelError(
                str(path), "not a GGUF file", "a llama.cpp .gguf file or a folder", "point at the model's folder"
            )
        return
    if not (path / "config.json").is_file():
        raise ModelError(str(path), "no config.json in this folder", "a Hugging Face model folder")
    if any(path.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for file in path.glob(pattern))
    if pickles:
        raise ModelError(
            str(path),
            f"weights in pickles ({', '.join(pickles[:3])}), which run code when loaded",
            "safetensors only",
            "convert once in a place you trust: AutoModelForCausalLM.from_pretrained(...).save_pretrained(..., safe_serialization=True)",
        )
    raise ModelError(str(path), "no *.safetensors in this folder", "a Hugging Face model folder with weights")


def _magic(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(4)


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
            if path.is_file():
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
    """Run layers of which only the weights are quantised as plain ones.

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


def is_quantized(folder: Path) -> bool:
    """Whether a Hugging Face folder holds compressed weights."""
    return "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))


def dense_copy(source: Path, out: Path) -> None:
    """A GGUF file or a compressed-tensors folder as a dense folder, in float32: every level times its scale stays exact."""
    model, tokenizer = load_model(source), load_tokenizer(source)
    if source.is_dir():
        from transformers import AutoModelForCausalLM

        del model.config.quantization_config
        dense = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
        weights = model.state_dict()
        dense.load_state_dict({name: weights[name] for name in dense.state_dict()})
        model = dense
    save_model(model, tokenizer, out, "float32")


def forget_quantization(model: "PreTrainedModel") -> None:
    """Make a dequantised GGUF an ordinary dense model: `save_pretrained` would otherwise treat it as still quantised."""
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
        if path.is_file():
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
        plain = not tokenizer.chat_template or (path.is_file() and _writes_chatml(tokenizer))
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
    before, after = (each(PROBE, add_special_tokens=False)["input_ids"] for each in (tokenizer, load_tokenizer(out, chat=False)))
    if before != after:
        raise ModelError(
            f"{type(tokenizer).__name__} in {out.name}",
            f"saved and read back it cuts a text into {len(after)} other tokens than before ({len(before)})",
            "a tokenizer that transformers writes as it reads it",
            "take the model's original Hugging Face folder instead of its GGUF file",
        )


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
        raise ModelError("chat template", f"it refuses turns of {roles}: {error}", "a template that takes them") from error


def weight_files(path: Path) -> list[Path]:
    """The files that hold weights: the GGUF itself, or a folder's safetensors and GGUF files."""
    return [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*.gguf")])


def weight_bytes(path: Path) -> int:
    """Bytes of weights on disk."""
    return sum(file.stat().st_size for file in weight_files(path))


def parameter_count(path: Path) -> int:
    """Parameters by the tensor headers alone, nothing loaded.  Tied tensors count once; int4 words are counted as their weights.

    Raises ModelError if the path holds no weights.
    """
    files = weight_files(path)
    if not files:
        raise ModelError(str(path), "no weights", "*.safetensors or *.gguf")
    return sum(_gguf_parameters(file) if file.suffix == ".gguf" else _safetensors_parameters(file) for file in files)


def _gguf_parameters(file: Path) -> int:
    return int(sum(int(tensor.n_elements) for tensor in read_gguf(file).tensors))


def read_gguf(file: Path) -> "GGUFReader":
    """Fields and tensors of a GGUF file.  Raises ValueError, IndexError, KeyError or OSError for what is none.

    A vocabulary is cut out of the file word by word, and numpy builds an object in Python around each cut of a mapped file: for 49,152
    tokens and their merges three times the work of plain arrays, 2 s at every start.
    """
    import numpy
    from gguf import GGUFReader

    class Reader(GGUFReader):
        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = mapped.view(numpy.ndarray)

    return Reader(file)


def _safetensors_parameters(file: Path) -> int:
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(size))
    packed = {name for name in header if name.endswith((".weight_packed", ".weight_shape"))}
    count = 0
    for name, entry in header.items():
        if name == "__metadata__" or name.endswith(
            (".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx")
        ):
            continue
        elements = 1
        for length in entry["shape"]:
            elements *= length
        count += elements * 8 if name in packed else elements  # eight 4-bit weights in one 32-bit word
    return count
