"""Refusal of quantized weights where a step needs dense ones.

The plan refuses them first where the recipe shows it.
"""

from pathlib import Path

from tasks.shared.errors import TechniqueError
from tasks.shared.model.weights import is_quantized


def check_dense(model: Path) -> None:
    """Raise TechniqueError for a folder of quantized weights."""
    if model.is_dir() and is_quantized(model):
        raise TechniqueError(
            str(model),
            "this model is quantized already",
            "dense weights",
            "use the model before its quantization; prune first, then quantize",
        )
