"""Timing of models in inference engines."""
