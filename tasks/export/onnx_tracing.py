"""A model as an ONNX graph with a key-value cache, by transformers' own exporter."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

from tasks.shared.engines.onnx_names import LOGITS, PAST, PRESENT
from tasks.shared.errors import TechniqueError

if TYPE_CHECKING:
    from onnx import ModelProto
    from transformers import PreTrainedModel

BATCH, BEFORE, NEW = 2, 5, 3
"""Sizes of the sample: sequences, tokens in the cache, and tokens to read.  An axis of one would become fixed."""
AXES = {"batch": BATCH, "past": BEFORE, "length": NEW}
CACHED = re.compile(r"(input|output)\.past_key_values\.layers\.(\d+)\.(key|value)s")
NOISY = ("torch.onnx", "onnxscript", "onnx_ir", "transformers.exporters")
"""Loggers of the exporter, whose warnings are about operators that no language model uses."""


def trace(model: "PreTrainedModel") -> "ModelProto":
    """Return a model's graph in float32, with a key-value cache.

    It is one pass over new tokens that reads and extends the cache, and serves prompts (an empty cache) and decoding alike, in batches
    too.  Names are those of tasks/shared/engines/onnx_names.py.
    Every layer caches all tokens; layers with a sliding window mask what is out of it, so that no axis depends on the length.
    Raises TechniqueError for a model that the exporter cannot trace.
    """
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    samples, shapes = sample_inputs(model)
    try:
        with quiet():
            program = OnnxExporter().export(model, samples, OnnxConfig(dynamic_shapes=shapes))
    except Exception as error:  # torch.export and torch.onnx raise anything
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise TechniqueError(
            type(model).__name__,
            f"transformers' exporter cannot trace it: {cause}",
            "a model that docs/families.md lists for export/onnx",
            "export/gguf",
        ) from error
    rename(program.model.graph)
    return stripped(program.model_proto)


def sample_inputs(model: "PreTrainedModel") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return example arguments of a pass with a filled cache, and their axes that vary."""
    import torch
    from transformers import DynamicCache

    running: Any = model
    cache = DynamicCache()  # without a configuration: each layer keeps all tokens
    with torch.inference_mode(False), torch.no_grad():
        running(input_ids=torch.zeros(BATCH, BEFORE, dtype=torch.long), past_key_values=cache)
    total = BEFORE + NEW
    samples = {
        "input_ids": torch.zeros(BATCH, NEW, dtype=torch.long),
        "attention_mask": torch.ones(BATCH, total, dtype=torch.long),
        "position_ids": torch.arange(BEFORE, total)[None].repeat(BATCH, 1),
        "past_key_values": cache,
        "logits_to_keep": torch.arange(NEW - 1),
    }
    varies = torch.export.Dim.AUTO
    shapes: dict[str, Any] = {name: {0: varies, 1: varies} for name in ("input_ids", "attention_mask", "position_ids")}
    shapes |= {"past_key_values": [{0: varies, 2: varies}] * (2 * len(cache.layers)), "logits_to_keep": {0: varies}}
    return samples, shapes


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter from printing its progress and warning of what it skips."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def rename(graph: Any) -> None:
    """Give the cache's inputs and outputs their usual names.

    graph: of onnx_ir.  Raises TechniqueError for a cache of anything but keys and values.
    """
    prefix = {"input": PAST, "output": PRESENT}
    for value in [*graph.inputs, *graph.outputs]:
        if found := CACHED.fullmatch(value.name):
            value.name = f"{prefix[found[1]]}{found[2]}.{found[3]}"
    cached = {value.name.removeprefix(PRESENT) for value in graph.outputs if value.name != LOGITS}
    given = {value.name.removeprefix(PAST) for value in graph.inputs if value.name.startswith(PAST)}
    if cached != given or not given:
        odd = ", ".join(sorted(cached ^ given)) or "no cache"
        raise TechniqueError("cache", odd, "keys and values of every layer", "export/gguf")


def stripped(model: "ModelProto") -> "ModelProto":
    """Remove notes about the code of the model, which name files of this machine."""
    model.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    model.graph.ClearField("value_info")
    for part in [
        *model.graph.node,
        *model.graph.initializer,
        *model.graph.input,
        *model.graph.output,
        *model.functions,
    ]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model
