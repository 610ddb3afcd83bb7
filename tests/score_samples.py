"""Scores built in code: what verdict tests judge."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.shared.formats.records import Machine
from tasks.shared.formats.scores import EvaluationSummary, ItemScore, Measure, ModelSummary, write_scores
from tasks.shared.technique import Artifact, Inputs, Kind
from tests.tiny_llama import save_tiny

FACT = Measure(title="fact accuracy")
LOOP = Measure(title="repetition", better="lower")
BITS = Measure(title="bits per byte", unit="bits per byte", better="lower", binary=False)


def some_right(count: int, share: float, seed: int = 0) -> list[float]:
    """Return `count` values, exactly `share` of them right, in random order."""
    values = [1.0] * round(count * share) + [0.0] * (count - round(count * share))
    random.Random(seed).shuffle(values)
    return values


def flipped(values: Sequence[float], to_wrong: int, to_right: int) -> list[float]:
    """Return the values with the first few right items wrong, and the first few wrong ones right."""
    result, left = list(values), {1.0: to_wrong, 0.0: to_right}
    for index, value in enumerate(values):
        if left[value]:
            left[value] -= 1
            result[index] = 1.0 - value
    return result


def items_of(
    measure: str,
    values: Mapping[str, Sequence[float]],
    tags: Sequence[Mapping[str, str]] | None = None,
    weights: Sequence[float] | None = None,
) -> list[ItemScore]:
    """Return the items of one measure.  values: by model, all of the same length."""
    count = len(next(iter(values.values())))
    return [
        ItemScore(
            measure=measure, id=f"{measure}-{index}", tags=dict(tags[index]) if tags else {"kind": "faq"}, weight=weights[index] if weights else 1.0,
            question=f"question {index}?", wanted="45 days", values={name: own[index] for name, own in values.items()},
            answers={name: f"{name} says {own[index]:g}" for name, own in values.items()},
        )
        for index in range(count)
    ]  # fmt: skip


def write_step_scores(
    folder: Path,
    measures: Mapping[str, Measure],
    items: Sequence[ItemScore],
    baseline: str = "tuned",
    accelerator: str = "",
    **models: Mapping[str, Any],
) -> Artifact:
    """Write scores to a folder.

    Models are those of the items, the baseline first; `models` adds entries or changes their fields.
    """
    folder.mkdir(parents=True)
    names = dict.fromkeys([baseline, *(name for item in items for name in item.values), *models])
    plain = {"engine": "transformers", "format": "float32"}
    entries = {
        name: ModelSummary(**{"role": "baseline" if name == baseline else "candidate", **plain, **models.get(name, {})})
        for name in names
    }
    machine = Machine(cpu="Example CPU", cores=2, memory_bytes=8_000_000_000, platform="Linux", accelerator=accelerator)
    write_scores(
        folder,
        EvaluationSummary(
            step=folder.name, measures=dict(measures), models=entries, machine=machine, versions={"torch": "2.13.0"}
        ),
        items,
    )
    return Artifact(folder.name, Kind.SCORES, folder)


def verdict_inputs(folder: Path, candidates: Sequence[str], *scores: Artifact, **ports: Sequence[str]) -> Inputs:
    """Return a verdict's inputs; all models share one tiny folder."""
    weights = folder / "weights"
    if not weights.exists():
        save_tiny(weights)
    named = {"baseline": ["tuned"], "candidates": candidates, **ports}
    return Inputs(
        {
            port: tuple(Artifact(name, Kind.MODEL, weights, f"digest of {name}") for name in names)
            for port, names in named.items()
        }
        | {"scores": scores}
    )
