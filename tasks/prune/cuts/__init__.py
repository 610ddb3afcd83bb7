"""Cuts of several kinds at once: size, divergence, and the choice within a budget."""
