"""Chat templates and text analysis."""
