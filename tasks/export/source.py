"""Source of an export: dense weights, whatever the model is stored as."""

from pathlib import Path


def dense_folder(source: Path, scratch: Path) -> Path:
    """Return the source if it is a dense folder; else a dense copy of it."""
    from tasks.shared.model.saving import dense_copy
    from tasks.shared.model.weights import check_source, is_gguf, is_quantized

    check_source(source)
    if not is_gguf(source) and not is_quantized(source):
        return source
    dense_copy(source, scratch / "dense")
    return scratch / "dense"
