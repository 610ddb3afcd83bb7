"""Notes for readers on models with shared layers."""

from collections.abc import Iterable, Iterator

from tasks.shared.model.shared_layers import recorded_shared
from tasks.shared.technique import Artifact


def sharing_notes(models: Iterable[Artifact]) -> Iterator[str]:
    """Yield a note for each model with shared layers: its files hold the copies."""
    for model in models:
        shared = recorded_shared(model.path)
        if shared is not None:
            groups = " and ".join("+".join(map(str, group)) for group in shared.groups)
            yield (
                f"{model.name}: layers {groups} share their weights. No stock format holds a layer once for several places: its files have the "
                "copies, and its sizes and times here are those of separate layers."
            )
