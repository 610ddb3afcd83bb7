"""Text targets: exact match and ROUGE-L with reference answers."""

import re
from collections.abc import Iterable

from tasks.shared.text.fact_matching import LETTER, UNSPACED, normalize

WORD = re.compile(rf"[{UNSPACED}]|{LETTER}+")


def matches_reference(text: str, references: Iterable[str]) -> bool:
    """Return True if the text equals a reference after normalization."""
    return normalize(text) in {normalize(reference) for reference in references}


class _WordTokenizer:
    """Tokenizer for rouge-score, whose own keeps only the letters a to z.

    Letters of scripts that are written without spaces are words of their own.
    """

    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(normalize(text))


def rouge_l(text: str, references: Iterable[str]) -> float:
    """ROUGE-L F1 with the nearest reference: longest common subsequence of words, 0..1.

    Computed by Google's rouge-score without stemming (Lin 2004, "ROUGE", section 3).
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_WordTokenizer())
    return max(float(scorer.score(reference, text)["rougeL"].fmeasure) for reference in references)
