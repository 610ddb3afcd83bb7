"""Labels proven by an answer's probabilities are those of the whole search, or none."""

import math
import random

import pytest

from tasks.shared.engines.label_proof import Step, proven_label, remaining_labels
from tasks.shared.engines.labels import LabelPrompt, Path

LABELS: tuple[Path, ...] = ((1,), (2, 3), (2, 4), (5, 6, 7), (5, 6, 8), (2, 3, 9))


def distribution(draw: random.Random, sharpness: float) -> dict[int, float]:
    weights = {token: math.exp(sharpness * draw.gauss(0, 1)) for token in range(10)}
    total = sum(weights.values())
    return {token: math.log(weight / total) for token, weight in weights.items()}


@pytest.mark.parametrize("known", [10, 3])
def test_a_proven_label_is_the_likeliest_of_all(known: int) -> None:
    """A random tree of distributions; the proof sees those along the greedy path only, and the top tokens of each."""
    draw, proven = random.Random(0), 0
    for _ in range(400):
        sharpness, tree = draw.choice([0.5, 2.0, 4.0]), dict[Path, dict[int, float]]()

        def after(
            path: Path, sharpness: float = sharpness, tree: dict[Path, dict[int, float]] = tree
        ) -> dict[int, float]:
            return tree.setdefault(path, distribution(draw, sharpness))

        scores = [sum(after(label[:place])[token] for place, token in enumerate(label)) for label in LABELS]
        path, steps = (), list[Step]()
        for _ in range(4):
            whole = after(path)
            top = dict(sorted(whole.items(), key=lambda pair: -pair[1])[:known])
            token = next(iter(top))
            steps.append(Step(token, top, min(top.values())))
            path = (*path, token)
        found = proven_label(LABELS, steps, 0.0)
        assert found is None or scores[found] == max(scores)
        proven += found is not None
    assert 50 < proven < 400


def test_near_ties_and_answers_without_a_label_are_left_open() -> None:
    even = {1: math.log(0.4), 2: math.log(0.4), 3: math.log(0.2)}
    assert proven_label([(1,), (2,)], [Step(1, even)]) is None
    sure = {1: math.log(0.5), 2: math.log(0.3), 3: math.log(0.2)}
    assert proven_label([(1,), (2,)], [Step(3, sure)]) == 0, "labels of one token need no answer that says them"
    assert proven_label([(1, 4), (2, 4)], [Step(3, sure)]) is None
    assert proven_label([(1, 4), (2, 4)], []) is None
    assert proven_label([(1,), (2,)], [Step(1, {1: math.nan, 2: -1.0})]) is None
    assert proven_label([(1,), (2,)], [Step(3, {3: -0.1})]) is None, "what was not reported is not known"


def test_white_space_before_the_labels_was_read_with_the_prompt() -> None:
    prompt = LabelPrompt([7, 8], ((1, 2), (1, 3)))
    assert remaining_labels(prompt, [7, 8, 1]) == ((2,), (3,)) and remaining_labels(prompt, [7, 8]) == ((1, 2), (1, 3))
    for other in ([7], [7, 8, 9], [7, 8, 1, 2]):
        assert remaining_labels(prompt, other) == ()
    assert remaining_labels(LabelPrompt([7], ((1,), (1,))), [7, 1]) == ()
