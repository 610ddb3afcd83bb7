"""Numbers and sentences of the report."""
