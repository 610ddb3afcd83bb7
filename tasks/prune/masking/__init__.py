"""Masks: scores of weights, the choice of those to remove, and compensation for them."""
