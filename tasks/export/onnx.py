"""Export to ONNX for ONNX Runtime, with a parity gate against the source model."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from tasks.export.graph import BITS, Form, GraphExport
from tasks.shared.engines.onnx_engine import ONNXRUNTIME
from tasks.shared.engines.protocol import Engine
from tasks.shared.model.graph_files import ONNX
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SMALL = 1024
"""Bytes up to which a constant stays in the graph's file."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Onnx(GraphExport):
    """A folder for ONNX Runtime on the CPU, refused if it deviates from its source.

    It holds graph, weights and tokenizer.  The graph reads and extends a key-value cache.  4-bit integers of a source that a calibrated
    quantizer wrote are taken over unchanged; a dense source is rounded.
    """

    scheme: Form = "int4"
    """Weights of the layers: float32, or integers in groups with a float32 scale (MatMulNBits)."""
    embedding: Form = "int8"
    """Weights of the token embedding and the head, which in a small model are half of the file and most sensitive to rounding."""

    files = ONNX
    scale_bits = 32
    spec: ClassVar[Spec] = Spec(
        summary="A graph for ONNX Runtime, in float32 or with 8- or 4-bit weights, that must answer like its source (extra `onnx`)",
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,), optional=True)},
        produces=Kind.ENGINE,
        libraries=(
            "torch",
            "transformers",
            "tokenizers",
            "compressed-tensors",
            "gguf",
            "onnx",
            "onnxscript",
            "onnxruntime",
        ),
        extra="onnx",
        accepts="packed",
        gives="packed",
        files="onnx",
    )

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write model.onnx and what belongs to it; see `GraphExport.export`."""
        return self.export(inputs, out, run)

    @property
    def engine(self) -> Engine:
        """ONNX Runtime."""
        return ONNXRUNTIME

    def write_graph(self, model: "PreTrainedModel", out: Path) -> int:
        """Write model.onnx and its weights; see `GraphExport`."""
        import onnx

        from tasks.export.onnx_quantizing import Plan, Quantizer
        from tasks.export.onnx_tracing import trace

        graph, done = trace(model), 0
        if self.quantized:
            plan = Plan(
                BITS[self.scheme], BITS[self.embedding], self.group_size, self.symmetric, self.activations == "int8"
            )
            done = Quantizer(graph, plan).quantize()
        onnx.save_model(
            graph, out / ONNX.graph, save_as_external_data=True, location=ONNX.weights, size_threshold=SMALL
        )
        return done

    def versions(self) -> dict[str, str]:
        """Versions of exporter and runtime; see `GraphExport`."""
        from importlib.metadata import version

        return {name: version(name) for name in ("onnx", "onnxscript", "onnxruntime")}
