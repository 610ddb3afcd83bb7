"""Labels that the probabilities of an answer prove likeliest, without a further pass.

Greedy decoding computes the distribution at each token of the answer.  Along the answer, a label's log-likelihood is known exactly; where
the label leaves it, what was computed there is an upper bound, since a log-likelihood only falls with each token.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.shared.engines.labels import LabelPrompt, Path

SLACK = 0.02
"""Nats by which a label must lead: more than passes in other batches differ by rounding in float32."""

HALF_SLACK = 0.3
"""The same in bfloat16 or float16."""


@dataclass(frozen=True)
class Step:
    """A token of the answer.

    scores: log-probabilities of tokens in its place, as far as known.  ceiling: upper bound of all others.
    """

    token: int
    scores: Mapping[int, float]
    ceiling: float = 0.0


def remaining_labels(prompt: LabelPrompt, ids: Sequence[int]) -> tuple[Path, ...]:
    """Return the labels' tokens where an answer begins; empty if they do not follow the prompt.

    ids: tokens of the prompt.  White space at its end belongs to the labels (`LabelPrompt`), and must be the same for all of them.
    """
    common = os.path.commonprefix(list(prompt.labels))
    extra = len(ids) - len(prompt.ids)
    if not 0 <= extra <= len(common) or list(ids) != [*prompt.ids, *common[:extra]]:
        return ()
    rest = tuple(tuple(label[extra:]) for label in prompt.labels)
    return rest if all(rest) else ()


def proven_label(labels: Sequence[Path], steps: Sequence[Step], slack: float = SLACK) -> int | None:
    """Return the index of the label that no other can reach; None if that is not shown.

    labels: tokens after the prompt.  steps: the answer from its first token on.  slack: lead that is needed, nats.
    """
    known: dict[int, float] = {}
    bounds: list[float] = []
    for index, label in enumerate(labels):
        bound, exact = _follow(label, steps)
        if math.isnan(bound):
            return None
        bounds.append(bound)
        if exact:
            known[index] = bound
    if not known:
        return None
    best = max(known, key=known.__getitem__)
    others = [bound for index, bound in enumerate(bounds) if index != best]
    return best if known[best] > max(others, default=-math.inf) + slack else None


def _follow(label: Path, steps: Sequence[Step]) -> tuple[float, bool]:
    """Return an upper bound of a label's log-likelihood, and whether it is exact."""
    total = 0.0
    for place, token in enumerate(label):
        if place >= len(steps):
            return total, False
        step = steps[place]
        if token not in step.scores:
            return total + step.ceiling, False
        total += step.scores[token]
        if token != step.token:
            return total, place == len(label) - 1
    return total, True
