"""Time of a generated token by the sizes of a model, measured on this machine.

A token costs a fixed time, a time for each layer, and a time for each weight in the layers.  The three are fitted to a few models with
random weights, from the sizes of the whole down to half of its layers in the narrowest widths.  Where a device waits for its programs
to start rather than for weights, the second is nearly all, and narrower layers gain nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tasks.prune.cuts.choice import Levels
from tasks.prune.cuts.size import Cut, Parameters
from tasks.prune.selection.copying import student_config
from tasks.shared.model.loading import Dtype
from tasks.shared.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONTEXT = 64
"""Tokens before the timed ones."""
WARM_UP, TOKENS = 2, 12
"""Tokens that are generated first, and that are timed."""
ROUNDS = 3
"""Times that every model is timed, in turn with the others."""


@dataclass(frozen=True)
class TokenTime:
    """Time of a generated token of one stream, by what a cut leaves.

    fixed: outside the layers, milliseconds.
    layer: of each layer, whatever its widths, milliseconds.
    weight: of each weight inside the layers, milliseconds.
    """

    parameters: Parameters
    fixed: float
    layer: float
    weight: float

    def after(self, cut: Cut) -> float:
        """Return the time of a token of the model that remains, in milliseconds."""
        return self.fixed + self.layer * len(cut.kept) + self.weight * self.inner(cut)

    def inner(self, cut: Cut) -> int:
        """Return the number of weights inside the layers that remain."""
        return self.parameters.after(cut) - self.parameters.outer


def measure(config: Any, parameters: Parameters, levels: Levels, dtype: Dtype, device: str) -> TokenTime:
    """Time models of a few sizes, and fit their times.

    config: of the whole model.  dtype: of weights and arithmetic.
    """
    cuts = timed_cuts(levels)
    makers = [lambda cut=cut: random_model(config, cut, dtype, device) for cut in cuts]
    return fitted(parameters, list(zip(cuts, in_turn(makers), strict=True)))


def fitted(parameters: Parameters, timed: Sequence[tuple[Cut, float]]) -> TokenTime:
    """Return the times of a token's parts that are nearest to the timed models, none below zero.

    Errors count as shares of a model's time.

    timed: a cut, and the time of a token of what it leaves, in milliseconds.
    """
    import numpy as np
    from scipy.optimize import nnls

    whole = TokenTime(parameters, 0.0, 0.0, 0.0)
    scale = max(whole.inner(cut) for cut, _ in timed)  # so that the columns are of one size
    rows = np.array([[1.0, len(cut.kept), whole.inner(cut) / scale] for cut, _ in timed])
    times = np.array([time for _, time in timed])
    found, _ = nnls(rows / times[:, None], np.ones(len(times)))
    fixed, layer, weight = map(float, found)
    return replace(whole, fixed=fixed, layer=layer, weight=weight / scale)


def timed_cuts(levels: Levels) -> list[Cut]:
    """Return the cuts to time: none, half of the layers, and those with the narrowest widths."""
    before = levels.before
    narrow = (replace(before, intermediate=levels.points[-1]), *levels.heads[-1:], levels.smallest.shape)
    half = tuple(layer for layer in range(before.layers) if layer % 2 and before.layers > 1)
    return list(dict.fromkeys([Cut((), before), *(Cut(half, shape) for shape in (before, *narrow))]))


def random_model(config: Any, cut: Cut, dtype: Dtype, device: str) -> "PreTrainedModel":
    """Return a model of the sizes that a cut leaves, with random weights."""
    import torch
    from transformers import AutoModelForCausalLM

    small = student_config(config, cut.result, cut.kept)
    return AutoModelForCausalLM.from_config(small, dtype=getattr(torch, dtype)).to(device)


def in_turn(makers: "Sequence[Callable[[], PreTrainedModel]]", rounds: int = ROUNDS) -> list[float]:
    """Return the time of a token of each model, in milliseconds, by rounds over all of them.

    It is the median of the rounds, so that a machine that slows down slows all models.

    makers: give a model each time.  One of them is in memory at a time if they make it anew.
    """
    order = [place for _ in range(rounds) for place in range(len(makers))]
    found: list[list[float]] = [[] for _ in makers]
    for place in track(order, "time of a token", len(order)):
        found[place].append(token_milliseconds(makers[place]()))
    return list(map(median, found))


def token_milliseconds(model: "PreTrainedModel") -> float:
    """Return the median time of a token that a model generates for one stream, in milliseconds."""
    import torch

    model.eval()
    times = list[float]()
    with torch.inference_mode():
        read = model(torch.zeros(1, CONTEXT, dtype=torch.long, device=model.device), use_cache=True)
        for _ in range(WARM_UP + TOKENS):
            started = perf_counter()
            token = read.logits[:, -1:].argmax(-1)
            read = model(token, past_key_values=read.past_key_values, use_cache=True)
            float(read.logits[0, -1, 0])  # waits for the device
            times.append(1000 * (perf_counter() - started))
    return median(times[WARM_UP:])
