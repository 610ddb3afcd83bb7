"""Notes for readers on models with masks."""

from collections.abc import Iterable, Iterator

from tasks.shared.model.masks import recorded_masks
from tasks.shared.technique import Artifact


def mask_notes(models: Iterable[Artifact]) -> Iterator[str]:
    """Yield a note for each model with masks: zeros alone save neither bytes nor time."""
    for model in models:
        masks = recorded_masks(model.path)
        if masks is not None:
            pattern = f", {masks.pattern}" if masks.pattern else ""
            yield (
                f"{model.name}: {100 * masks.sparsity:.1f} % of the weights in {len(masks.tensors)} matrices are zero{pattern}. "
                "Zeros alone make no file smaller and no runtime here faster; the sizes and times above are measured."
            )
