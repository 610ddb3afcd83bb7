"""The model to compress: its size, and the memory of its KV cache."""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.planning.config import CONF
from flows.planning.sizes import size_of
from tasks.shared.errors import ConfigError, ModelError
from tasks.shared.forecast import SAVED_BYTES, Dimensions, Size
from tasks.shared.gguf.support import UNWINDOWED
from tasks.shared.gguf.types import FLOATS
from tasks.shared.model.families import family_config
from tasks.shared.model.gguf_files import read_gguf_header
from tasks.shared.model.sizes import weight_files
from tasks.shared.model.sources import ModelSource
from tasks.shared.paths import user_path

EMBEDDED = "smollm2_135m"
"""Option of conf/model/ that stands in where no model is given."""
COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([MB])", re.IGNORECASE)
UNIT = {"M": 1e6, "B": 1e9}
CACHE_BYTES = 2
"""Bytes of a number in the KV cache: 16-bit floating point, the default of llama.cpp, vLLM and transformers."""
CACHED = {"full_attention": False, "sliding_attention": True}
"""Kinds of layers that keep keys and values -> whether only those of a window."""


@dataclass(frozen=True)
class ModelAtHand:
    """A model to compress.

    path: None for a parameter count.  config: of the text model; empty if unknown.
    embedded: it is the project's own model, which a recipe names by its option.
    """

    label: str
    size: Size
    path: Path | None = None
    config: Mapping[str, Any] | None = None
    embedded: bool = False

    @property
    def grid(self) -> str:
        """GGUF type that its weights come from, such as q4_1; empty without a quantized file."""
        if self.path is None or not self.path.is_file():
            return ""
        from gguf import LlamaFileType

        kind = read_gguf_header(self.path).fields.get("general.file_type")
        names = {int(one): one.name.removeprefix("MOSTLY_").lower() for one in LlamaFileType}
        name = names.get(kind, "") if isinstance(kind, int) else ""
        return "" if name in {"all_f32", *FLOATS} else name


def find_model(text: str) -> ModelAtHand:
    """Return the model that a command line names.

    text: a folder, with weights or with a config.json alone; a GGUF file; a number of parameters such as 8B; empty for the embedded model.
    Raises ConfigError for what is none of these, ModelError for a folder that is no model.
    """
    if not text:
        settings = yaml.safe_load((CONF / "model" / f"{EMBEDDED}.yaml").read_text("utf-8"))
        path = ModelSource(**settings).locate("MODEL")
        return ModelAtHand(path.name, size_of(path), path, text_config(path), embedded=True)
    if (found := COUNT.fullmatch(text.strip())) and not user_path(text).exists():
        parameters = float(found[1]) * UNIT[found[2].upper()]
        return ModelAtHand(text, Size(parameters, SAVED_BYTES * parameters, 0, Dimensions(0, 0, 0, 0, 0, 0, 0)))
    path = user_path(text)
    if not path.exists():
        near = difflib.get_close_matches(path.name, [one.name for one in path.parent.glob("*")], 1)
        raise ConfigError(
            "MODEL",
            f"{text}: no such folder or file",
            "a model's folder, a .gguf file, or a number of parameters such as 8B or 135M",
            f"did you mean {path.parent / near[0]}?" if near else "check the path",
        )
    path = path.resolve()
    if path.is_file() and path.suffix != ".gguf":
        raise ConfigError("MODEL", f"{text} is a file", "a model's folder, or a .gguf file", "give its folder")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(str(path), "no config.json", "a model's folder, or a .gguf file")
    size = size_of(path) if weight_files(path) else unloaded_size(path)
    return ModelAtHand(path.name, size, path, text_config(path))


def text_config(path: Path) -> dict[str, Any]:
    """Return the configuration of a folder's or GGUF file's language model.

    A file's has the sliding window of its header.
    """
    config = family_config(path)
    config |= config.get("text_config") or {}
    if path.is_file():
        header = read_gguf_header(path)
        config["sliding_window"] = header.fields.get(f"{header.architecture}.attention.sliding_window")
    return config


def unloaded_size(folder: Path) -> Size:
    """Size of the model that a configuration without weights describes, in bfloat16.

    Raises ModelError if transformers does not know the configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = json.loads((folder / "config.json").read_text("utf-8"))
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(str(folder / "config.json"), reason, "the configuration of a causal language model") from error
    parameters = sum(weight.numel() for weight in model.parameters())
    shape = Dimensions.from_config(config | (config.get("text_config") or {}))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    outer = (1 if tied else 2) * shape.vocabulary * shape.width
    return Size(parameters, SAVED_BYTES * parameters, outer, shape)


def cache_bytes(model: ModelAtHand, context: int, streams: int) -> float | None:
    """Bytes of the KV cache: 2 x layers x width of the key heads x tokens x streams x 2 bytes.

    context: tokens of a stream.  A layer with a sliding window keeps at most its window, except where llama.cpp ignores the window.
    Returns None if the shape is not known, or the model caches something other than keys and values.
    """
    shape, config = model.size.shape, model.config or {}
    kinds = list(config.get("layer_types") or [])[: shape.layers] or ["full_attention"] * shape.layers
    if not (shape.layers and shape.value) or config.get("kv_lora_rank") or not set(kinds) <= set(CACHED):
        return None
    window = 0 if config.get("model_type") in UNWINDOWED else int(config.get("sliding_window") or 0)
    tokens = sum(min(context, window) if CACHED[kind] and window else context for kind in kinds)
    return 2.0 * shape.value * tokens * streams * CACHE_BYTES
