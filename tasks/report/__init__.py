"""Turn a verdict into pages that people read."""
