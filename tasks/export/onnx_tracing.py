"""A model as an ONNX graph with a key-value cache, by transformers' own exporter."""

import re
from typing import TYPE_CHECKING, Any

from tasks.export.tracing import quiet, sample_inputs, untraceable
from tasks.shared.engines.graph_names import LOGITS, PAST, PRESENT
from tasks.shared.errors import TechniqueError

if TYPE_CHECKING:
    from onnx import ModelProto
    from transformers import PreTrainedModel

CACHED = re.compile(r"(input|output)\.past_key_values\.layers\.(\d+)\.(key|value)s")


def trace(model: "PreTrainedModel") -> "ModelProto":
    """Return a model's graph in float32, with a key-value cache.

    It is one pass over new tokens that reads and extends the cache, and serves prompts (an empty cache) and decoding alike, in batches
    too.  Names are those of tasks/shared/engines/graph_names.py.
    Every layer caches all tokens; layers with a sliding window mask what is out of it, so that no axis depends on the length.
    Raises TechniqueError for a model that the exporter cannot trace.
    """
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    samples, shapes = sample_inputs(model)
    try:
        with quiet():
            program = OnnxExporter().export(model, samples, OnnxConfig(dynamic_shapes=shapes))
    except Exception as error:  # torch.export and torch.onnx raise anything
        raise untraceable(model, error, "export/onnx") from error
    rename(program.model.graph)
    return stripped(program.model_proto)


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
