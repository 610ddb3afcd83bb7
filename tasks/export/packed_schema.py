"""Tensors of compressed-tensors formats, compared with the headers of a folder's files.

The shapes are those that vLLM allocates before it reads the files (vllm/model_executor/layers/quantization/compressed_tensors/schemes).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import ModelError
from tasks.shared.model.weight_files import loaded_files

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

SCALES = frozenset({"BF16", "F16", "F32"})
"""Types of scales in safetensors headers."""
PARTS = (
    ".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point", ".weight_global_scale", ".weight_g_idx", ".input_scale",
    ".input_global_scale", ".input_zero_point",
)  # fmt: skip
"""Endings of tensors that only packed layers have."""
CACHE_SCALES = (".k_scale", ".v_scale")


@dataclass(frozen=True)
class Wanted:
    """A tensor that a format needs.

    dtypes: as safetensors names them.  positive: True for scales, of which every one is finite and above zero.
    """

    dtypes: frozenset[str]
    shape: tuple[int, ...]
    positive: bool = False


@dataclass(frozen=True)
class PackedLayer:
    """A linear layer of a packed model: (outputs, inputs), scheme, and format of its weights."""

    shape: tuple[int, int]
    scheme: "QuantizationScheme"
    format: str


def read_config(folder: Path, settings: Mapping[str, Any]) -> "QuantizationConfig":
    """Read `quantization_config` as compressed-tensors does.

    Raises ModelError for another library's, and for what is not its schema.
    """
    from compressed_tensors.quantization import QuantizationConfig
    from pydantic import ValidationError

    method = settings.get("quant_method")
    if method != "compressed-tensors":
        raise ModelError(
            f"{folder}/config.json",
            f"quantized by {method}",
            "compressed-tensors",
            "quantize/gptq, rtn, awq, fp8 or fp4",
        )
    try:
        return QuantizationConfig.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ModelError(
            f"{folder}/config.json", f"quantization_config.{place}: {first['msg']}", "the schema of compressed-tensors", "quantize the model again"
        ) from None  # fmt: skip


def packed_layers(folder: Path, config: "QuantizationConfig", model: Any) -> dict[str, PackedLayer]:
    """Return the linear layers that the configuration packs, by name.

    model: of the architecture, on the meta device.
    """
    from compressed_tensors.utils import match_named_modules
    from torch.nn import Linear

    found: dict[str, PackedLayer] = {}
    for scheme in config.config_groups.values():
        for name, part in match_named_modules(model, list(scheme.targets), list(config.ignore or ())):
            if isinstance(part, Linear):
                shape = (part.out_features, part.in_features)
                found[name] = PackedLayer(shape, scheme, str(scheme.format or config.format))
    if not found:
        raise ModelError(
            f"{folder}/config.json", "no linear layer is quantized", "at least one", "leave quantization_config out"
        )
    return found


def schema_problems(folder: Path, layers: Mapping[str, PackedLayer], cached: Sequence[str] = ()) -> Iterator[str]:
    """Yield every tensor, in words, that does not fit its format.

    It is missing, left over, of another type or shape, or holds scales that are not finite and above zero.

    cached: names of layers that need scales of keys and values.
    """
    from safetensors import safe_open

    headers: dict[str, tuple[str, tuple[int, ...], Path]] = {}
    for file in loaded_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                part = tensors.get_slice(name)
                headers[name] = (str(part.get_dtype()), tuple(part.get_shape()), file)
    wanted = {f"{name}.{part}": tensor for name, layer in layers.items() for part, tensor in tensors_of(layer).items()}
    wanted |= {f"{name}{part}": Wanted(SCALES, (1,), True) for name in cached for part in CACHE_SCALES}
    for name, tensor in wanted.items():
        if name not in headers:
            yield f"{name} is missing"
            continue
        dtype, shape, file = headers[name]
        if dtype not in tensor.dtypes:
            yield f"{name} is {dtype}, not {' or '.join(sorted(tensor.dtypes))}"
        elif shape != tensor.shape and not (tensor.shape == (1,) and shape == ()):
            yield f"{name} is {_size(shape)}, not {_size(tensor.shape)}"
        elif tensor.positive and not _is_positive(file, name):
            yield f"{name} has scales that are not finite and above zero"
    packed = {f"{name}." for name in layers}
    for name in headers.keys() - wanted.keys():
        owner = name[: name.rfind(".") + 1]
        if name.endswith(PARTS) or (owner in packed and name.endswith(".weight")):
            yield f"{name} is left over"


def tensors_of(layer: PackedLayer) -> dict[str, Wanted]:
    """Return the tensors of a layer, by the last part of their names.

    Raises ModelError for a format that is not known here.
    """
    weights, inputs = layer.scheme.weights, layer.scheme.input_activations
    assert weights is not None
    outputs, width = layer.shape
    groups = _groups(weights, width)
    found: dict[str, Wanted]
    if layer.format == "pack-quantized":
        found = {
            "weight_packed": Wanted(frozenset({"I32"}), (outputs, _words(width, weights.num_bits))),
            "weight_scale": Wanted(SCALES, (outputs, groups), True), "weight_shape": Wanted(frozenset({"I64"}), (2,)),
        }  # fmt: skip
        if not weights.symmetric:
            found["weight_zero_point"] = Wanted(frozenset({"I32"}), (_words(outputs, weights.num_bits), groups))
        if str(weights.actorder or "").endswith("group"):
            found["weight_g_idx"] = Wanted(frozenset({"I32"}), (width,))
    elif layer.format in ("int-quantized", "float-quantized"):
        dtype = "I8" if layer.format == "int-quantized" else "F8_E4M3"
        scales = (1,) if str(weights.strategy) == "tensor" else (outputs, groups)
        found = {"weight": Wanted(frozenset({dtype}), layer.shape), "weight_scale": Wanted(SCALES, scales, True)}
    elif layer.format in ("nvfp4-pack-quantized", "mxfp4-pack-quantized"):
        nv = layer.format.startswith("nv")
        scale = Wanted(frozenset({"F8_E4M3" if nv else "U8"}), (outputs, groups), nv)
        found = {"weight_packed": Wanted(frozenset({"U8"}), (outputs, width // 2)), "weight_scale": scale}
        if nv:
            found["weight_global_scale"] = Wanted(SCALES, (1,), True)
            if inputs is not None:
                found["input_global_scale"] = Wanted(SCALES, (1,), True)
    else:
        raise ModelError(
            "quantization_config",
            f"the format {layer.format}",
            "a format that docs/quantization.md lists",
            "quantize the model again",
        )
    if inputs is not None and inputs.dynamic is False:
        found["input_scale"] = Wanted(SCALES, (1,), True)
    return found


def _groups(weights: "QuantizationArgs", width: int) -> int:
    """Scales per output."""
    return -(-width // weights.group_size) if weights.group_size and weights.group_size > 0 else 1


def _words(count: int, bits: int) -> int:
    """Count of 32-bit words for so many integers without gaps: one may lie in two words."""
    return -(-count * bits // 32)


def _is_positive(file: Path, name: str) -> bool:
    import torch
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        values = tensors.get_tensor(name).to(torch.float32)
    return bool((values.isfinite() & (values > 0)).all())


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
