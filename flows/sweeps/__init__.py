"""Comparison of the jobs of a sweep: results, table, page."""
