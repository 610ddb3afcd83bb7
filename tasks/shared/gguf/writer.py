"""Conversion of a Hugging Face folder to GGUF by llama.cpp's converter (part of auto-round)."""

import json
import logging
import re
import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import ModelError, TechniqueError
from tasks.shared.gguf.converter import converter, quiet_converter
from tasks.shared.gguf.ggml import library
from tasks.shared.gguf.places import HEAD, VOCABULARY_NAMES, Place, place_of
from tasks.shared.gguf.support import attended
from tasks.shared.gguf.types import FLOATS, EmbeddingScheme, PlannedTensor, Scheme, check_plan, plan_tensor
from tasks.shared.model.families import CONV1D
from tasks.shared.model.gguf_types import type_numbers

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
FLOAT_NAMES = re.compile(r"((norm|ln_\d|ln_f|wpe|mlp\.gate|block_sparse_moe\.gate|router)\.weight|[._]bias)$")
"""Matrices and vectors that stay float32; the biases of experts are one matrix."""
STAGED = "model"
"""Folder that the converter reads.  A constant, since its name gets into the file's metadata."""


def write_gguf(
    model: Path,
    out: Path,
    scheme: Scheme = "f16",
    embedding: EmbeddingScheme = "same",
    name: str = "",
    importance: Mapping[str, "Tensor"] | None = None,
    fallback: bool = False,
    types: Mapping[Place, str] | None = None,
    split_bytes: int = 0,
    scales: Mapping[str, float] | None = None,
) -> list[PlannedTensor]:
    """Write a model folder to `out`, a .gguf file that includes tokenizer and chat template.

    scheme: type of every matrix in the layers.
    embedding: type of token embedding and head; norms stay float32.
    importance: mean squared input per column of a weight, by its name in the source; block types are fitted with it.
    fallback: give matrices whose rows the type's blocks do not fill the type that `fitting_type` names.
    types: types by place, instead of `scheme` (which then only names the file's main type) and `embedding`.
    split_bytes: most bytes of tensors in a file; more are written to parts, named as `gguf_parts` names them.  0: one file.
    scales: those of matrices in nvfp4, by name in the source; families that are not SCALED get none.
    Returns the matrices with their types, as they are in the file.
    Raises TechniqueError for quantized weights, an architecture unknown to the converter, or rows that do not fill blocks.
    """
    config = dense_config(model)
    vocabulary = scheme if embedding == "same" else embedding
    types = types or {}
    planned = plan_tensors(model, scheme, embedding, fallback, types)
    check_plan(planned)
    most = split_bytes if sum(tensor.bytes for tensor in planned) > split_bytes else 0
    if not {scheme, vocabulary, *types.values()} <= FLOATS:
        library()
    if window := attended(config):
        log.warning(
            "the file's context is %d tokens, since llama.cpp ignores the sliding window of this family", window
        )
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".gguf-") as staging:
        folder = Path(staging) / STAGED
        stage_folder(model, folder)
        try:
            with quiet_converter():
                writer = converter(config, str(model))
                # Transformers 5.17 takes a llama file with exactly this name for another architecture, and cannot read it.
                title = {"mistral": "Mistral"}.get(name or model.name, name or model.name)
                instance = writer(folder, file_type(scheme), out, model_name=title, eager=True, split_max_size=most)
                instance.scheme, instance.vocabulary_scheme, instance.written = scheme, vocabulary, []
                instance.importance, instance.types, instance.scales = importance or {}, types, scales or {}
                with instance.packing():
                    instance.write()
        except (AssertionError, KeyError, NotImplementedError, ValueError) as error:
            raise TechniqueError(
                str(model),
                f"llama.cpp's converter cannot read it: {type(error).__name__}: {error}",
                "a family that docs/families.md lists",
                "quantize/gptq",
            ) from error
    written: list[PlannedTensor] = instance.written
    return written


def file_type(scheme: str) -> Any:
    """Return the number that names a file's main type, which readers show and OpenVINO needs."""
    from gguf import LlamaFileType

    type_numbers()
    names = {"F32": "ALL_F32", "Q3_K": "MOSTLY_Q3_K_S", "Q4_K": "MOSTLY_Q4_K_S", "Q5_K": "MOSTLY_Q5_K_S", "MXFP4": "MOSTLY_MXFP4_MOE"}  # fmt: skip
    return LlamaFileType[names.get(scheme.upper(), f"MOSTLY_{scheme.upper()}")]


def plan_tensors(
    model: Path,
    scheme: str,
    embedding: str = "same",
    fallback: bool = True,
    types: Mapping[Place, str] | None = None,
) -> list[PlannedTensor]:
    """Plan the types of a folder's matrices from the headers of its files, by their names there.

    The settings are those of `write_gguf`.
    """
    from safetensors import safe_open

    vocabulary = scheme if embedding == "same" else embedding
    config = dense_config(model)
    rotated = config.get("model_type") in CONV1D
    planned: list[PlannedTensor] = []
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 - not a mapping
        for name, shape in shapes.items():
            if len(shape) < 2 or FLOAT_NAMES.search(name) or (HEAD.search(name) and config.get("tie_word_embeddings")):
                continue
            outer = bool(VOCABULARY_NAMES.search(name))
            row = shape[0] if rotated and not outer and len(shape) == 2 else shape[-1]
            wanted = types[place_of(name)] if types else vocabulary if outer else scheme
            planned.append(plan_tensor(name, row, prod(shape), wanted, fallback))
    return planned


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
            "the model that was quantized",
        )
    return config


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
