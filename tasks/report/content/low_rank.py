"""Notes for readers on models whose matrices have low rank."""

from collections.abc import Iterator, Mapping

from tasks.report.content.provenance import Origin, ancestors
from tasks.shared.technique import WEIGHTS

TECHNIQUE = "prune/low_rank"


def rank_notes(origins: Mapping[str, Origin]) -> Iterator[str]:
    """Yield a note for each step that reduced ranks: nothing became smaller by it.

    It names the step's model and all that come from it.  The manifests tell them, since nothing in a file is of low rank by its form.
    """
    models = [name for name, origin in origins.items() if origin.kind in WEIGHTS]
    for step in (name for name in models if origins[name].technique == TECHNIQUE):
        names = [name for name in models if step in (name, *ancestors(origins, name))]
        yield (
            f"{', '.join(names)}: the matrices of the step {step} have low rank. Stock loaders take no factors, so the dense products are stored: "
            "no file is smaller and no runtime here faster for it; the sizes and times above are measured."
        )
