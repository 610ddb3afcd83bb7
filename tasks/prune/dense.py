"""Pruning comes before quantization: weights that lie on a grid are refused, in the plan where it can be seen there."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from tasks.shared.errors import ConfigError, TechniqueError
from tasks.shared.model.weights import is_gguf, is_quantized
from tasks.shared.technique import Upstream

ORDER = "prune first, then quantize"


def quantized_before(
    where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
) -> Iterator[ConfigError]:
    """A model that a quantize step makes."""
    for name in inputs.get("model", ()):
        if name in upstream and type(upstream[name].technique).__module__.startswith("tasks.quantize."):
            yield ConfigError(f"{where}.inputs.model", f"{name}, whose weights are quantized", "dense weights", ORDER)


def check_dense(model: Path) -> None:
    """Raises TechniqueError for a folder of compressed weights."""
    if not is_gguf(model) and is_quantized(model):
        raise TechniqueError(str(model), "quantized weights", "dense weights", ORDER)
