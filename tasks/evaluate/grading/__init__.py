"""Grading of model answers."""
