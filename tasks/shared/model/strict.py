"""Strict loading: every tensor of a model is filled once, and none is left over."""

import logging
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import ModelError, StillroomError
from tasks.shared.model.gguf_files import GgufHeader, read_gguf_header
from tasks.shared.model.weight_files import shown

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

HARMLESS = re.compile(
    r"rotary_emb\.(inv_freq|cos|sin|cos_cached|sin_cached|_?(cos|sin)_cache)$|(^|\.)(masked_bias|position_ids)$"
)
"""Left-over buffers of earlier versions, which are computed and not learned."""
WRAPPERS = {
    "_orig_mod.": ("torch.compile", "save the model inside: model._orig_mod.save_pretrained(...)"),
    "module.": ("DataParallel or DDP", "save the model inside: model.module.save_pretrained(...)"),
    "_fsdp_wrapped_module.": ("FSDP", "save a full state dict through the trainer"),
    "_checkpoint_wrapped_module.": ("activation checkpointing", "save the model without the wrapper"),
    "base_model.model.": ("PEFT", "merge the adapter: merge_and_unload(), then save_pretrained"),
}
"""Prefixes that training frameworks put before names, whose they are, and how to save without them."""
LEFT_OVERS = {
    "lora_": ("LoRA weights that are not merged", "merge them: merge_and_unload(), then save_pretrained"),
    "v_head.": ("the value head of a reinforcement learning run", "save the language model alone"),
    "score.": ("a classifier's head", "use the language model before it became a classifier"),
    "vision": ("a vision tower", "extract the language model first"),
}
ROPE_FACTORS = re.compile(r"^rope_(freqs|factors_\w+)\.weight$")
"""Scaling of rotary frequencies in GGUF files, which transformers drops: the model would be another one."""
SCALING_TYPES = ("linear", "yarn", "longrope")
WANTED = "files that fill every tensor of the model once; transformers would fill holes with random numbers"
SAVE_AGAIN = "use the config.json and weights of one save; save again with save_pretrained"
TARGET = re.compile(r"tensors destined for ([\w.]+?)\.? ")
GGUF_HARMLESS = re.compile(r"\.attn_rot_embd$|\.attn_rot_embd\.weight$")


def refuse_misfit(where: Path, info: Mapping[str, Any]) -> None:
    """Raise ModelError if tensors are missing, left over or of another shape.

    info: what `from_pretrained(output_loading_info=True)` returned, without tied tensors and buffers that are never stored.
    """
    missing = sorted(info["missing_keys"])
    extra = sorted(name for name in info["unexpected_keys"] if not HARMLESS.search(name))
    shapes = sorted((str(name), tuple(found), tuple(wanted)) for name, found, wanted in info["mismatched_keys"])
    parts = []
    if missing:
        parts.append(f"{_tensors(missing)} of the model missing from the files ({shown(missing)})")
    if extra:
        parts.append(f"{_tensors(extra)} of the files not in the model ({shown(extra)})")
    if shapes:
        named = [f"{name} is {_size(found)}, not {_size(wanted)}" for name, found, wanted in shapes]
        parts.append(f"{_tensors(shapes)} of another shape ({shown(named, 3)})")
    if parts:
        cause, fix = _cause(missing, extra, [name for name, _, _ in shapes])
        raise ModelError(
            str(where),
            "; ".join(parts) + (f": {cause}" if cause else ""),
            WANTED,
            fix,
        )


def refuse_not_finite(where: Path, model: "PreTrainedModel") -> None:
    """Raise ModelError for weights that are NaN or infinite.

    One pass over the weights: a sum is not finite if a summand is not.
    """
    import torch

    broken = [
        name
        for name, weight in model.named_parameters()
        if weight.is_floating_point() and not bool(weight.sum(dtype=torch.float32).isfinite())
    ]
    if broken:
        raise ModelError(
            str(where),
            f"{_tensors(broken)} with NaN or infinite values ({shown(broken)})",
            "finite weights",
            "take an earlier checkpoint; if the file was converted to float16, which overflows at 65,504, convert it to bfloat16 again",
        )


def _cause(missing: list[str], extra: list[str], shapes: list[str]) -> tuple[str, str]:
    """Return the likely cause, if one is known, and what to do."""
    for prefix, (tool, fix) in WRAPPERS.items():
        if extra and sum(prefix in name for name in extra) * 2 > len(extra):
            return f"saved from inside {tool}, as {prefix} in the names tells", fix
    for part, (cause, fix) in LEFT_OVERS.items():
        if any(part in name for name in extra):
            return cause, fix
    if missing == ["lm_head.weight"] and not extra:
        fix = "set tie_word_embeddings=true in config.json if head and embedding are one; else save the whole model"
        return (
            "the language head is absent: a body saved without its head, or tied weights with tie_word_embeddings=false",
            fix,
        )
    if shapes and all("embed" in name or "lm_head" in name for name in shapes) and not missing and not extra:
        return (
            "the vocabulary was resized after config.json was written",
            "set vocab_size in config.json to the rows of the embedding",
        )
    if _deeper(missing) and not extra:
        return "config.json names more layers than the files hold", "set num_hidden_layers to the layers in the files"
    if _deeper(extra) and not missing:
        return "config.json names fewer layers than the files hold", "set num_hidden_layers to the layers in the files"
    return "", SAVE_AGAIN


def _deeper(names: list[str]) -> bool:
    """Return True if the names are those of one or more whole layers, norms included."""
    layers = {found.group(1) for name in names if (found := re.search(r"\.(\d+)\.", name))}
    whole = sum("norm" in name or ".ln_" in name for name in names) >= len(layers) and len(names) >= 5 * len(layers)
    return bool(layers) and whole and all(re.search(r"\.\d+\.", name) for name in names)


def _tensors(names: Sized) -> str:
    return f"{len(names)} tensor" + ("" if len(names) == 1 else "s")


def _size(shape: Collection[int]) -> str:
    return "x".join(map(str, shape))


def check_gguf_tensors(file: Path, config: "PretrainedConfig") -> None:
    """Raise ModelError unless a GGUF's tensors fill the model, and none is left over.

    Transformers itself skips tensors of a GGUF that it cannot place, and takes those of another shape, without a word.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if found := _rope_scaling(read_gguf_header(file)):
        raise ModelError(
            str(file),
            f"scaled rotary frequencies ({shown(found)}), which transformers drops on reading a GGUF",
            "a file that transformers reads without loss",
            "use the model's original Hugging Face folder; llama.cpp itself evaluates this file as it is",
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    refuse_misfit(file, _gguf_misfit(file, model))


def _rope_scaling(header: GgufHeader) -> list[str]:
    """Return the tensors and fields that scale rotary frequencies and that transformers drops.

    It reads the fields of gpt-oss only.
    """
    found = [name for name in header.tensors if ROPE_FACTORS.search(name)]
    prefix = f"{header.architecture}.rope."
    kind, factor = header.fields.get(f"{prefix}scaling.type"), header.fields.get(f"{prefix}scaling.factor", 1.0)
    if kind in SCALING_TYPES and factor != 1.0 and header.architecture != "gpt-oss":
        found.append(f"rope.scaling: {kind} by {factor:g}")
    if (earlier := header.fields.get(f"{prefix}scale_linear", 1.0)) != 1.0:
        found.append(f"rope.scale_linear: {earlier:g}")
    return found


def _gguf_misfit(file: Path, model: "PreTrainedModel") -> dict[str, Any]:
    """Return tensors missing, left over or of another shape, as `refuse_misfit` takes them."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    header = read_gguf_header(file)
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=model.config.to_dict())
    names = get_gguf_hf_weights_map(model, processor)
    wanted = dict(model.state_dict())
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    absent = {stored for stored in names if not {stored, f"{stored}.weight"} & header.tensors.keys()}
    filled = {name for stored, name in names.items() if stored not in absent}
    filled -= {names[stored] for stored in absent if "_exps" in stored}  # halves of one tensor: gate and up
    placed = {*names, *(f"{name}.weight" for name in names)}
    shapes = {
        (names[stored], shape, tuple(wanted[names[stored]].shape))
        for stored, shape in header.tensors.items()
        if names.get(stored) in wanted and "_exps" not in stored and math.prod(shape) != wanted[names[stored]].numel()
    }
    return {
        "missing_keys": set(wanted) - filled - set(tied),
        "unexpected_keys": {name for name in header.tensors if name not in placed and not GGUF_HARMLESS.search(name)},
        "mismatched_keys": shapes,
    }


@contextmanager
def one_message(where: Path) -> Iterator[None]:
    """Say in one message what transformers cannot load, without its table of misfits.

    Raises ModelError for whatever the block raises: a configuration of another kind can raise anything.  It names the tensors that
    transformers cannot merge or split into those of the model, such as the experts of a mixture with one missing; all other misfits are
    left to `refuse_misfit`.
    """
    logger, tables = logging.getLogger("transformers.modeling_utils"), list[str]()

    def is_other(record: logging.LogRecord) -> bool:
        if "LOAD REPORT" not in (text := record.getMessage()):
            return True
        tables.append(text)
        return False

    logger.addFilter(is_other)
    try:
        yield
    except (StillroomError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and (found := sorted(set(TARGET.findall("".join(tables))))):
            got = f"tensors are missing or misshapen: the files do not make up {shown(found)}"
            raise ModelError(str(where), got, WANTED, SAVE_AGAIN) from error
        got = f"cannot be loaded: {error or type(error).__name__}"
        raise ModelError(str(where), got, "a causal language model that transformers knows") from error
    finally:
        logger.removeFilter(is_other)
