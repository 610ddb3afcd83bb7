"""Time a model in an engine."""
