"""Refuse to prune quantized weights, at plan time where the recipe shows it."""

from pathlib import Path

from tasks.shared.errors import TechniqueError
from tasks.shared.model.weights import is_quantized


def check_dense(model: Path) -> None:
    """Raise TechniqueError for a folder of compressed weights."""
    if model.is_dir() and is_quantized(model):
        raise TechniqueError(str(model), "quantized weights", "dense weights", "prune first, then quantize")
