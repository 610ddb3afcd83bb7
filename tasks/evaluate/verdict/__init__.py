"""From scores to a verdict: comparisons, bounds, decisions."""
