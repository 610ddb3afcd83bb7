"""Label targets: one label, or a set of labels."""

import re
import unicodedata
from collections.abc import Collection

from tasks.shared.formats.targets import Labels
from tasks.shared.grading.json_values import NO_JSON, parse_json
from tasks.shared.text.fact_matching import normalize

AROUND = " \t\"'`*_()[].:;!"
"""Characters around a label that do not belong to it."""
NONE = frozenset({"", "none", "no label", "no labels", "n/a", "-", "[]"})
"""Answers that state no label."""


def plain_label(text: str) -> str:
    """Return a label in lower case, with single spaces and no punctuation around it."""
    plain = normalize(unicodedata.normalize("NFKC", text))
    return plain.strip(AROUND) or plain


def same_label(given: str, wanted: str, labels: Collection[str] = ()) -> bool:
    """Return True if an answer states the label, up to case, spaces and punctuation around it.

    labels: of the task; a label that is literally another one of them is not the same.
    """
    return given == wanted or (given not in labels and plain_label(given) == plain_label(wanted))


def canonical_label(given: str, labels: Collection[str]) -> str:
    """Return the label of the task that an answer states; any other text in plain form."""
    if given in labels:
        return given
    return next((label for label in labels if plain_label(label) == plain_label(given)), plain_label(given))


def labels_in(text: str, known: Collection[str]) -> frozenset[str]:
    """Return the labels that an answer lists, in their plain forms.

    Separated by line breaks, semicolons or commas, or in a JSON list.  known: labels that may themselves contain a comma.
    """
    value = parse_json(text)
    if value is not NO_JSON and isinstance(value, list):
        return frozenset(plain_label(str(item)) for item in value)
    whole = {plain_label(label) for label in known}
    found: set[str] = set()
    for line in re.split(r"[\n;|]", text):
        line = re.sub(r"^\s*(?:[-*\u2022]|\d+[.)])\s+", "", line)
        found.update([plain_label(line)] if plain_label(line) in whole else map(plain_label, line.split(",")))
    return frozenset(label for label in found if label in whole or label not in NONE)


def labels_f1(given: Collection[str], target: Labels) -> float:
    """F1 of a set of labels in plain form; 1 if both sets are empty."""
    wanted = {plain_label(label) for label in target.labels}
    total = len(given) + len(wanted)
    return 2 * len(wanted.intersection(given)) / total if total else 1.0
