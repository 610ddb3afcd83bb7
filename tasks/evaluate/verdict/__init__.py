"""Verdict: comparisons, confidence bounds and decisions from scores."""
