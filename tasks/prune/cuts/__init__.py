"""Cuts of several kinds of units at once: their size, their divergence, and the choice within a budget."""
