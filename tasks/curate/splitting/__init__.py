"""Splits of a corpus: assignment by group, and the wall between test and training."""
