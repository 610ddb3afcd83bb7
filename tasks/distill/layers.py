"""Pairing of student layers with teacher layers."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tasks.shared.errors import TechniqueError

Rule = Literal["uniform", "last", "first", "kept"]
Pairs = tuple[tuple[int, int], ...]
"""(student's layer, teacher's layer), both from 0, next to the embedding."""
KEPT = "influence.csv"
"""File that `prune/depth` adds to its model: one line per layer before pruning, dropped or kept."""


def layer_pairs(rule: Rule, student: int, teacher: int, kept: Sequence[int] = ()) -> Pairs:
    """Pair layers by a rule.

    uniform: spread over the teacher's depth, last to last (PKD-skip, Sun et al. 2019, arXiv 1908.09355, section 3.2).
    last: the last ones of both (PKD-last, ibid.).  first: the first ones of both.
    kept: every layer and the teacher's layer that it was before pruning, listed in `kept`.
    """
    common = min(student, teacher)
    match rule:
        case "uniform":
            return tuple((index, -(-(index + 1) * teacher // student) - 1) for index in range(student))
        case "last":
            return tuple((student - common + index, teacher - common + index) for index in range(common))
        case "first":
            return tuple((index, index) for index in range(common))
        case "kept":
            return tuple(enumerate(kept))


def check_pairs(pairs: Pairs, student: int, teacher: int) -> Pairs:
    """Return explicit pairs unchanged.

    Raises TechniqueError for a layer that one of the models lacks, or a pair listed twice.
    """
    outside = [pair for pair in pairs if pair[0] >= student or pair[1] >= teacher]
    if outside:
        raise TechniqueError(
            "pairs", f"no such layers: {outside}", f"student's 0 to {student - 1}, teacher's 0 to {teacher - 1}"
        )
    if len(set(pairs)) < len(pairs):
        raise TechniqueError("pairs", f"a pair is listed twice in {list(pairs)}", "every pair once")
    return pairs


def kept_layers(folder: Path, student: int, teacher: int) -> list[int]:
    """Teacher layers that remain in a student made by `prune/depth`, from its record.

    Raises TechniqueError if there is no record, or if it belongs to other models.
    """
    fix = "layers=uniform, or give the step the pruned model itself and the model that was pruned as its teacher"
    record = folder / KEPT
    if not record.is_file():
        raise TechniqueError("layers", f"kept, and the student has no {KEPT}", "a student made by prune/depth", fix)
    with record.open(encoding="utf-8", newline="") as stream:
        dropped = [line["dropped"] == "1" for line in csv.DictReader(stream)]
    kept = [index for index, gone in enumerate(dropped) if not gone]
    if (len(kept), len(dropped)) != (student, teacher):
        raise TechniqueError(
            "layers",
            f"kept, and {KEPT} is of {len(kept)} layers out of {len(dropped)}; the student has {student}, the teacher {teacher}",
            "the model that was pruned as teacher",
            fix,
        )
    return kept
