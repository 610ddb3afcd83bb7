"""Source of an export: dense weights, whatever the model is stored as."""

from pathlib import Path

from tasks.shared.gguf.support import SCALED

GLOBAL_SCALE = ".weight_global_scale"
"""End of the name of what compressed-tensors divides a matrix's scales by."""
LARGER = 2.0
"""Factor of the scales, which halves those of the blocks: llama.cpp rounds every one of 256 and more to 448."""


def matrix_scales(source: Path) -> dict[str, float]:
    """Return the scales of a model's matrices in nvfp4, by the names of their dense weights.

    Empty for other models, and for families in which llama.cpp ignores such scales.
    """
    from tasks.shared.model.weight_files import read_json, read_tensors, tensors_of

    if not source.is_dir() or read_json(source / "config.json").get("model_type") not in SCALED:
        return {}
    names = [name for name in tensors_of(source) if name.endswith(GLOBAL_SCALE)]
    return {
        f"{name.removesuffix(GLOBAL_SCALE)}.weight": LARGER / float(value)
        for name, value in read_tensors(source, names)
    }


def dense_folder(source: Path, scratch: Path) -> Path:
    """Return the source if it is a dense folder; else a dense copy of it."""
    from tasks.shared.model.saving import dense_copy
    from tasks.shared.model.weights import check_source, is_gguf, is_quantized

    check_source(source)
    if not is_gguf(source) and not is_quantized(source):
        return source
    dense_copy(source, scratch / "dense")
    return scratch / "dense"
