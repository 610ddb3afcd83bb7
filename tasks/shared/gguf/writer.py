"""Conversion of a Hugging Face folder to GGUF by llama.cpp's converter (part of auto-round)."""

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.shared.errors import ModelError, TechniqueError
from tasks.shared.gguf.blocks import grids_kept, nearest_q4_0
from tasks.shared.progress import no_foreign_bars

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
Scheme = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
EmbeddingScheme = Literal["same", "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
VOCABULARY_TENSORS = ("token_embd.weight", "output.weight")
SHOWN = 12
STAGED = "model"
"""Folder that the converter reads.  A constant, since its name gets into the file's metadata."""
GPT2_SPLITS = "gpt-2"
"""llama.cpp's name for GPT-2's pre-tokenizer, a plain byte-level one."""


def tensor_bytes(elements: int, scheme: str) -> int:
    """Bytes of a tensor in a scheme.

    For example, q4_0 stores 32 weights in 18 bytes: a half-precision scale and 16 bytes of nibbles.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[scheme.upper()]]
    return elements // block * size


def write_gguf(
    model: Path,
    out: Path,
    scheme: Scheme = "f16",
    embedding: EmbeddingScheme = "same",
    name: str = "",
    importance: Mapping[str, "Tensor"] | None = None,
) -> None:
    """Write a model folder to `out`, a .gguf file that includes tokenizer and chat template.

    scheme: type of every matrix in the layers.
    embedding: type of token embedding and head; norms stay float32.
    importance: mean squared input per column of a weight, by its name in the source; scales of q4_0 are fitted with it.
    Raises TechniqueError for quantized weights, an architecture unknown to the converter, or rows that do not fill blocks.
    """
    config = read_config(model)
    vocabulary = scheme if embedding == "same" else embedding
    check_rows(model, {scheme, vocabulary})
    with quiet_converter(), grids_kept(), tempfile.TemporaryDirectory(dir=out.parent, prefix=".gguf-") as staging:
        folder = Path(staging) / STAGED
        stage_folder(model, folder)
        writer = converter(config, str(model))
        from gguf import LlamaFileType

        kind = LlamaFileType["ALL_F32" if scheme == "f32" else f"MOSTLY_{scheme.upper()}"]
        instance = writer(folder, kind, out, model_name=name or model.name, eager=True)
        instance.scheme, instance.vocabulary_scheme = scheme.upper(), vocabulary.upper()
        instance.importance = importance or {}
        instance.write()


def read_config(model: Path) -> dict[str, Any]:
    """Read a model folder's configuration.

    Raises ModelError if it is not a model folder, TechniqueError if its weights are quantized.
    """
    file = model / "config.json"
    if not file.is_file():
        raise ModelError(str(model), "no config.json", "a Hugging Face model folder", "point at the model's folder")
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown method")
        raise TechniqueError(
            str(model),
            f"weights are quantized already ({method})",
            "dense weights",
            "make it dense first (tasks.shared.model.saving.dense_copy)",
        )
    return config


def check_rows(model: Path, schemes: set[str]) -> None:
    """Raise TechniqueError if rows of any matrix are not a multiple of the schemes' block size."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from safetensors import safe_open

    block = max(GGML_QUANT_SIZES[GGMLQuantizationType[scheme.upper()]][0] for scheme in schemes)
    bad: list[str] = []
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 - not a mapping
        bad += [f"{name} (row={shape[-1]})" for name, shape in shapes.items() if len(shape) > 1 and shape[-1] % block]
    if bad:
        shown = ", ".join(bad[:SHOWN]) + (f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else "")
        raise TechniqueError(
            "scheme",
            f"blocks of {block} weights do not fill the rows of {shown}",
            f"rows that are multiples of {block}",
            "scheme=f16 and embedding=same",
        )


def stage_folder(model: Path, staging: Path) -> None:
    """Prepare the converter's input: linked weights, configuration, and corrected tokenizer.

    The configuration gets the end-of-turn id; the tokenizer is as returned by `load_tokenizer`.
    """
    from tasks.shared.model.loading import load_tokenizer
    from tasks.shared.model.saving import save_tokenizer

    staging.mkdir()
    for file in model.glob("*.safetensors*"):
        (staging / file.name).symlink_to(file.resolve())
    tokenizer = load_tokenizer(model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    (staging / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_tokenizer(tokenizer, staging)


def converter(config: dict[str, Any], where: str) -> Any:
    """Return llama.cpp's converter for an architecture, with our tensor types and tokenizers.

    Raises TechniqueError if the converter does not know the architecture.
    """
    from auto_round.export.export_to_gguf.llama_cpp_conversion import get_conversion
    from gguf import MODEL_ARCH, GGMLQuantizationType

    architecture = (config.get("architectures") or ["none"])[0]
    try:
        with newer_names():
            base = get_conversion(hparams=config, auto_update=False).get_model_class(architecture)
    except NotImplementedError as error:
        raise TechniqueError(
            where,
            f"llama.cpp's converter does not know architecture {architecture}",
            "a Llama, Mistral, Qwen or similar causal language model",
        ) from error
    if not isinstance(base.model_arch, MODEL_ARCH):
        raise TechniqueError(
            where, f"the gguf package does not know architecture {architecture}", "a newer gguf package"
        )

    class Converter(base):  # type: ignore[misc, valid-type]
        model_arch = base.model_arch
        scheme = vocabulary_scheme = "F16"
        importance: Mapping[str, "Tensor"] = {}

        def tensor_force_quant(self, name: str, new_name: str, bid: int | None, n_dims: int) -> Any:
            return GGMLQuantizationType[self.vocabulary_scheme if new_name in VOCABULARY_TENSORS else self.scheme]

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Any:
            for new_name, tensor in super().modify_tensors(data_torch, name, bid):
                kind = self.vocabulary_scheme if new_name in VOCABULARY_TENSORS else self.scheme
                known = self.importance.get(name) if kind == "Q4_0" else None
                yield new_name, tensor if known is None else nearest_q4_0(tensor, known)

        def set_vocab(self) -> None:
            splits = byte_level_splits(self.dir_model)
            if splits is None:
                super().set_vocab()
                return
            self._set_vocab_gpt2()
            if "tokenizer.ggml.add_bos_token" not in self.gguf_writer.kv_data[0]:
                self.gguf_writer.add_add_bos_token(False)

        def get_vocab_base_pre(self, tokenizer: "PreTrainedTokenizerBase") -> str:
            try:
                return str(super().get_vocab_base_pre(tokenizer))
            except NotImplementedError:
                return byte_level_splits(self.dir_model) or GPT2_SPLITS

    return Converter


@contextlib.contextmanager
def newer_names() -> Iterator[None]:
    """Let the converter's modules name architectures that the installed gguf package lacks.

    One module serves several families, and fails as a whole at the first unknown name: without this, the gguf package of May 2026
    converts no Qwen, Gemma or Granite, since their modules also name later ones.
    """
    import gguf

    known = gguf.MODEL_ARCH

    class Names:
        def __getattr__(self, name: str) -> Any:
            return getattr(known, name, name)

    gguf.MODEL_ARCH = Names()  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        gguf.MODEL_ARCH = known  # type: ignore[misc]


def byte_level_splits(folder: Path) -> str | None:
    """Name, in llama.cpp, of a byte-level BPE tokenizer's pre-tokenizer; None for other kinds.

    Used only for tokenizers that the converter does not recognize; the parity check verifies the result.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    before = content.get("pre_tokenizer") or {}
    parts = before.get("pretokenizers", [before])
    kinds = [part.get("type") for part in parts]
    if content["model"]["type"] != "BPE" or "ByteLevel" not in kinds:
        return None
    patterns = " ".join(str(part.get("pattern", "")) for part in parts)
    if "Digits" in kinds:
        return "smollm"
    if "\\p{N}{1,3}" in patterns:
        return "llama-bpe"
    return "qwen2" if "\\p{N}" in patterns and "(?i:" in patterns else GPT2_SPLITS


@contextlib.contextmanager
def quiet_converter() -> Iterator[None]:
    """Suppress the converter's log lines and progress bar, but not its errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with no_foreign_bars():
            yield
    finally:
        logging.disable(before)
