"""Weights of an early step of a training, kept beside the trained model."""

EARLY_FOLDER = "early"
"""A model folder within the trained one."""
