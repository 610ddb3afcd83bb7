"""Conversion of a Hugging Face folder to GGUF by llama.cpp's converter (part of auto-round)."""

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.shared.errors import ModelError, TechniqueError
from tasks.shared.gguf.blocks import grids_kept
from tasks.shared.gguf.converter import converter, quiet_converter
from tasks.shared.gguf.support import attended

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
Scheme = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
EmbeddingScheme = Literal["same", "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
SHOWN = 12
STAGED = "model"
"""Folder that the converter reads.  A constant, since its name gets into the file's metadata."""


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
    config = dense_config(model)
    vocabulary = scheme if embedding == "same" else embedding
    check_rows(model, {scheme, vocabulary})
    if window := attended(config):
        log.warning(
            "the file's context is %d tokens, since llama.cpp ignores the sliding window of this family", window
        )
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".gguf-") as staging:
        folder = Path(staging) / STAGED
        stage_folder(model, folder)
        try:
            with quiet_converter(), grids_kept():
                writer = converter(config, str(model))
                from gguf import LlamaFileType

                kind = LlamaFileType["ALL_F32" if scheme == "f32" else f"MOSTLY_{scheme.upper()}"]
                instance = writer(folder, kind, out, model_name=name or model.name, eager=True)
                instance.scheme, instance.vocabulary_scheme = scheme.upper(), vocabulary.upper()
                instance.importance = importance or {}
                instance.write()
        except (AssertionError, KeyError, NotImplementedError, ValueError) as error:
            raise TechniqueError(
                str(model),
                f"llama.cpp's converter cannot read it: {type(error).__name__}: {error}",
                "a family that docs/families.md lists",
                "quantize/gptq",
            ) from error


def dense_config(model: Path) -> dict[str, Any]:
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
    tokenizer = load_tokenizer(model, chat=False)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    (staging / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_tokenizer(tokenizer, staging)
