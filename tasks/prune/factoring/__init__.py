"""Products of two thin factors in place of a matrix: decomposition, ranks and record."""
