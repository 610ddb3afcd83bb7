"""Export to OpenVINO, with a parity gate against the source model."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from tasks.export.graph import BITS, GraphExport
from tasks.shared.engines.openvino_engine import OPENVINO as ENGINE
from tasks.shared.engines.protocol import Engine
from tasks.shared.model.graph_files import OPENVINO
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Form = Literal["float32", "float16", "int8", "int4"]
CACHES = {"float32": "f32", "float16": "f16", "int8": "u8"}
ACTIVATION_GROUPS = {"float32": "0", "int8": "32"}
"""Inputs that share a scale; 0 rounds none."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class OpenVino(GraphExport):
    """A folder for OpenVINO, refused if it deviates from its source.

    It holds graph, weights and tokenizer.  The graph keeps a key-value cache.  4-bit integers of a source that a calibrated quantizer
    wrote are taken over unchanged; a dense source is rounded.
    """

    scheme: Form = "int4"
    """Weights of the layers: floats, or integers in groups with a float16 scale."""
    embedding: Form = "int8"
    """Weights of the token embedding and the head, which in a small model are half of the file and most sensitive to rounding."""
    cache: Literal["float32", "float16", "int8"] = "float16"
    """Stored keys and values; without this note in the file, OpenVINO takes int8."""

    files = OPENVINO
    scale_bits = 16
    spec: ClassVar[Spec] = Spec(
        summary="A graph for OpenVINO, in 32 or 16 bits or with 8- or 4-bit weights, that must answer like its source (extra `openvino`)",
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,), optional=True)},
        produces=Kind.ENGINE,
        libraries=("torch", "transformers", "tokenizers", "compressed-tensors", "gguf", "openvino"),
        extra="openvino",
        gives="packed",
        files="openvino",
    )

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write openvino_model.xml and what belongs to it; see `GraphExport.export`."""
        return self.export(inputs, out, run)

    @property
    def engine(self) -> Engine:
        """OpenVINO's CPU plugin."""
        return ENGINE

    def write_graph(self, model: "PreTrainedModel", out: Path) -> int:
        """Write openvino_model.xml and its weights; see `GraphExport`."""
        from tasks.export.openvino_quantizing import Plan, Quantizer
        from tasks.export.openvino_tracing import number_nodes, trace
        from tasks.shared.engines.openvino_graph import import_openvino

        graph = trace(model)
        layers, outer = (BITS[form] or form for form in (self.scheme, self.embedding))
        done = Quantizer(graph, Plan(layers, outer, self.group_size, self.symmetric)).quantize()
        graph.set_rt_info(CACHES[self.cache], ["runtime_options", "KV_CACHE_PRECISION"])
        graph.set_rt_info(ACTIVATION_GROUPS[self.activations], ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
        number_nodes(graph)
        import_openvino().save_model(graph, out / OPENVINO.graph, compress_to_fp16=False)
        return done

    def versions(self) -> dict[str, str]:
        """Version of exporter and runtime; see `GraphExport`."""
        from importlib.metadata import version

        return {"openvino": version("openvino")}
