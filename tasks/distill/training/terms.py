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
"""A term whose gradient is shorter than this share of the longest has no say."""


class Tally:
    """Sums of the terms since the last log line; they survive a kill through the checkpoint.

    since: the optimizer step of that line.  The trainer updates its own record before the line is written.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.since = 0
        self._open: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, terms: "Mapping[str, Tensor]") -> None:
        """One forward pass.  The numbers stay on the device until they are asked for."""
        for name, value in terms.items():
            self._open[name].append(value.detach())

    def state(self) -> dict[str, float]:
        """Sums so far, as plain numbers."""
        for name, values in self._open.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(sum(float(value) for value in values))
        self._open.clear()
        return self.sums

    def take(self, step: int) -> dict[str, float]:
        """Means over the optimizer steps since the last time; the sums start again."""
        means = {name: total / max(1, step - self.since) for name, total in self.state().items()}
        self.sums, self.since = {}, step
        return means


def gradient_norms(
    terms: "Mapping[str, Tensor]",
    parameters: "Iterable[Parameter]",
    reduce: "Callable[[Tensor, str], Tensor] | None" = None,
) -> dict[str, float]:
    """Euclidean norm of each term's gradient over the trained parameters, as `<term>_gradient`.

    The graph is kept, and no gradient is stored.

    reduce: sums a tensor over all processes ("sum"), each with a part of the batch; None: this process has the whole batch.
    """
    import torch

    trained = [parameter for parameter in parameters if parameter.requires_grad]
    norms = {}
    for term_name, term in terms.items():
        name = f"{term_name}_gradient"
        found: Sequence[Tensor | None] = [None] * len(trained)
        if term.requires_grad:
            found = torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True)
        if reduce is not None:  # every process reduces as often as the others, whatever its rows touch
            pairs = zip(found, trained, strict=True)
            found = [reduce(torch.zeros_like(like) if part is None else part, "sum") for part, like in pairs]
        squares = [gradient.float().pow(2).sum() for gradient in found if gradient is not None]
        norms[name] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    return norms


def negligible_terms(history: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, float]:
    """Terms whose median gradient norm is under LEAST_SHARE of the largest one, with that share.

    A term without a measurement was zero in every batch.  Without any measurement, none is returned.
    """
    from statistics import median

    found = {
        name: [float(entry[f"{name}_gradient"]) for entry in history if f"{name}_gradient" in entry] for name in names
    }
    medians = {name: median(values) if values else 0.0 for name, values in found.items()}
    most = max(medians.values(), default=0.0)
    return {name: value / most for name, value in medians.items() if value < LEAST_SHARE * most}


def warn_without_say(history: Sequence[Mapping[str, Any]], names: Sequence[str], knob: str) -> list[str]:
    """Warn of each negligible term, and return their names.

    knob: the settings that weigh them.
    """
    silent = negligible_terms(history, names)
    for name, share in silent.items():
        log.warning(
            "the %s term has no say: its gradient has %.1f %% of the length of the longest; weigh it by %s, or leave it out",
            name, 100 * share, knob,
        )  # fmt: skip
    return sorted(silent)
