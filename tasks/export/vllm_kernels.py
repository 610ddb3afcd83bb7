"""Kernels of vLLM for linear layers: GPUs that have them, and shapes that they take.

Read in vLLM's sources in December 2026 (schemes of compressed_tensors, utils/marlin_utils.py); not run here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.export.packed_schema import PackedLayer

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs

FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up"}
"""Projections that vLLM stores as one matrix, and its name."""
BY_ROWS = re.compile(r"\.(o_proj|down_proj|dense|dense_4h_to_h|c_proj)$")
"""Projections of which each GPU has a part of the inputs; of the others, a part of the outputs."""
CUDA = {75: "Turing", 80: "Ampere", 89: "Ada", 90: "Hopper", 100: "Blackwell"}
"""Compute capability times ten, and the first generation of GPUs that has it."""


@dataclass(frozen=True)
class Kernel:
    """A kernel.

    title: what it computes.  capability: least compute capability times ten.
    outputs, inputs: sizes on each GPU are multiples of these.
    below: what older GPUs do; empty if they cannot run the model.
    """

    title: str
    capability: int
    outputs: int = 1
    inputs: int = 1
    below: str = ""


MARLIN_GROUPS = (32, 64, 128)
DENSE = Kernel("bfloat16", 80, below="--dtype float16")
MARLIN = Kernel("integers by Marlin, 16-bit activations", 75, 64, 128)
INT8 = Kernel("int8 weights and activations", 75, 16, 16)
FP8 = Kernel("FP8 weights and activations", 89, 16, 16, below="the weights alone in FP8, by Marlin")
NVFP4 = Kernel("NVFP4 weights by Marlin, 16-bit activations", 75, 64, 128)
FP4 = Kernel("FP4 weights and activations", 100, 64, 128, below="the weights alone, by Marlin")
MXFP4 = Kernel("MXFP4 weights by Marlin, 16-bit activations", 80, 64, 128)


def kernel_of(layer: PackedLayer) -> Kernel | str:
    """Return the kernel that runs a layer, or why there is none."""
    weights = layer.scheme.weights
    assert weights is not None
    if layer.format in ("nvfp4-pack-quantized", "mxfp4-pack-quantized"):
        return FP4 if layer.scheme.input_activations else NVFP4 if layer.format.startswith("nv") else MXFP4
    if layer.format == "float-quantized":
        return FP8
    if layer.format == "int-quantized":
        return (
            INT8
            if layer.scheme.input_activations is not None
            else "integers that are not packed, without activations in 8 bits"
        )
    return _integers(weights)


def _integers(weights: "QuantizationArgs") -> Kernel | str:
    if weights.num_bits not in (4, 8):
        return f"{weights.num_bits} bits"
    if weights.num_bits == 8 and not weights.symmetric:
        return "8 bits with zero points"
    if weights.group_size and weights.group_size > 0 and weights.group_size not in MARLIN_GROUPS:
        return f"groups of {weights.group_size}"
    return MARLIN


@dataclass(frozen=True)
class Matrix:
    """A matrix as each GPU holds it: its sizes there, and the layers that it is made of.

    outputs, inputs: fractions where the GPUs do not divide them.
    """

    layers: tuple[str, ...]
    outputs: float
    inputs: float


def matrices_on_gpu(shapes: Mapping[str, tuple[int, int]], gpus: int) -> dict[str, Matrix]:
    """Return the matrices by name, those that vLLM fuses under one.

    shapes: (outputs, inputs) of linear layers by name.
    """
    found: dict[str, Matrix] = {}
    for name, (outputs, inputs) in shapes.items():
        parent, _, last = name.rpartition(".")
        whole = f"{parent}.{FUSED[last]}_proj" if last in FUSED else name
        before = found.get(whole, Matrix((), 0.0, 0.0))
        here = (outputs, inputs / gpus) if BY_ROWS.search(name) else (outputs / gpus, inputs)
        found[whole] = Matrix((*before.layers, name), before.outputs + here[0], here[1])
    return found


def misfits(layers: Mapping[str, PackedLayer], gpus: int) -> Iterator[str]:
    """Yield the names of matrices whose sizes on a GPU their kernel does not take."""
    for name, matrix in matrices_on_gpu({name: layer.shape for name, layer in layers.items()}, gpus).items():
        kernel = kernel_of(layers[matrix.layers[0]])
        if isinstance(kernel, Kernel) and (matrix.outputs % kernel.outputs or matrix.inputs % kernel.inputs):
            yield name


def head_problem(config: Any, gpus: int) -> str:
    """Return why the GPUs cannot share the attention heads; empty if they can.

    config: of the text model.
    """
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    groups = int(getattr(config, "num_key_value_heads", 0) or heads)
    if heads % gpus:
        return f"{gpus} GPUs do not divide {heads} attention heads"
    if groups % gpus and gpus % groups:
        return f"{gpus} GPUs and {groups} heads of keys and values do not divide one another"
    return ""
