"""Size and gradient norm of each term of a loss, and a warning for negligible terms."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

log = logging.getLogger(__name__)
LEAST_SHARE = 0.02
"""A term is negligible if its gradient norm is below this share of the largest."""


class Tally:
    """Sums of the terms since the last log line; checkpoints include them.

    since: optimizer step of that line.  It is kept here because the trainer updates its own record before it writes the line.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.since = 0
        self._open: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, terms: "Mapping[str, Tensor]") -> None:
        """Add the terms of one forward pass; they stay on the device until `state` is called.

        terms: scalars, (), by name.
        """
        for name, value in terms.items():
            self._open[name].append(value.detach())

    def state(self) -> dict[str, float]:
        """Return the sums so far as plain numbers."""
        for name, values in self._open.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(sum(float(value) for value in values))
        self._open.clear()
        return self.sums

    def take(self, step: int) -> dict[str, float]:
        """Return means over the optimizer steps since the last call, and reset the sums."""
        means = {name: total / max(1, step - self.since) for name, total in self.state().items()}
        self.sums, self.since = {}, step
        return means


def gradient_norms(
    terms: "Mapping[str, Tensor]",
    parameters: "Iterable[Parameter]",
    reduce: "Callable[[Tensor, str], Tensor] | None" = None,
) -> dict[str, float]:
    """Euclidean norm of each term's gradient over the trained parameters, as `<term>_gradient`.

    Keeps the graph and stores no gradient.

    terms: scalars, (), by name.
    reduce: function that sums a tensor over all processes ("sum"), each of which has a part of the batch; None if this process has
    the whole batch.
    """
    import torch

    trained = [parameter for parameter in parameters if parameter.requires_grad]
    norms = {}
    for term_name, term in terms.items():
        name = f"{term_name}_gradient"
        found: Sequence[Tensor | None] = [None] * len(trained)
        if term.requires_grad:
            found = torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True)
        if reduce is not None:  # all processes must reduce equally often, even without a gradient here
            pairs = zip(found, trained, strict=True)
            found = [reduce(torch.zeros_like(like) if part is None else part, "sum") for part, like in pairs]
        squares = [gradient.float().pow(2).sum() for gradient in found if gradient is not None]
        norms[name] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    return norms


def negligible_terms(history: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, float]:
    """Terms whose median gradient norm is below LEAST_SHARE of the largest, with that share.

    A term without a measurement was zero in every batch.  Empty without any measurement.
    """
    from statistics import median

    found = {
        name: [float(entry[f"{name}_gradient"]) for entry in history if f"{name}_gradient" in entry] for name in names
    }
    medians = {name: median(values) if values else 0.0 for name, values in found.items()}
    most = max(medians.values(), default=0.0)
    return {name: value / most for name, value in medians.items() if value < LEAST_SHARE * most}


def warn_negligible(history: Sequence[Mapping[str, Any]], names: Sequence[str], knob: str) -> list[str]:
    """Warn of each negligible term, and return their names.

    knob: settings that weight the terms.
    """
    negligible = negligible_terms(history, names)
    for name, share in negligible.items():
        log.warning(
            "the %s term is negligible: its gradient norm is %.1f %% of the largest; raise its weight (%s), or remove the term",
            name, 100 * share, knob,
        )  # fmt: skip
    return sorted(negligible)
